"""The bound over a data set, with its standard error."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding
from jax.typing import ArrayLike
from tqdm.auto import tqdm

from nedm_ppl.arguments import Count, as_count, check_concrete, check_key, check_kind, check_unmasked, whole
from nedm_ppl.inference._devices import fetched, laid_out, on_all, rows_over
from nedm_ppl.inference._far import warn_of_data
from nedm_ppl.inference.bound._bound import BoundTerms, bound_terms, trajectory_terms
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.reverse._context import rows_of_context

__all__ = ["evaluate"]


def evaluate(
    rng_key: Array,
    diffusion: Diffusion,
    x0: ArrayLike,
    *,
    context: ArrayLike | None = None,
    num_times: Count | None = None,
    whole_trajectories: bool = False,
    batch_size: Count = 512,
    sharding: Sharding | None = None,
    progress: bool = False,
) -> BoundTerms:
    """The bound K of every datum of a data set, in batches; see `bound_terms`.

    Args:
        rng_key: Random key; each batch has its own.
        diffusion: The model.
        x0: Data, shape (N, *event).
        context: The context of every datum, shape (N, *context_shape), or one for all; by default what the model is given. Under
            one key data are noised alike whatever their contexts, so that differences between contexts are precise.
        num_times: Steps per datum, stratified; None takes all T.
        whole_trajectories: Whether a datum's states are one trajectory, in place of a fresh $x_t$ for every step. The spread of
            the total is then that of a log weight, which vanishes with the gap between K and log p(x_0): the way to measure a gap.
        batch_size: Data evaluated at a time.
        sharding: How they are laid over devices, for their first axis.
        progress: Whether to show a bar.

    Returns:
        Terms in nats, shape (N,), and (num_times, N) for the divergences. `Estimate.of(terms.total)` is the
        bound's mean with its standard error.

    Warns:
        DataWarning: data far too large for the model.

    Raises:
        ValueError: data that are masked, not finite, too large to square, of another shape or outside the model's support;
            numbers that are no counts; or an argument traced by JAX, where `bound_terms` serves.

    Examples:
        >>> import jax
        >>> from nedm_ppl import data, inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)  # untrained
        >>> terms = inference.evaluate(jax.random.key(0), diffusion, data.swiss_roll(0, 100))
        >>> terms.total.shape, type(inference.Estimate.of(terms.total)).__name__
        ((100,), 'Estimate')
    """
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    check_concrete("evaluate", "inference.bound_terms", rng_key, diffusion, x0, context)
    batch_size = as_count("batch_size", batch_size)
    sharding = rows_over(sharding, "batch_size", batch_size)
    num_times = None if num_times is None else as_count("num_times", num_times)
    if whole_trajectories and num_times is not None:
        raise ValueError(f"num_times must be None with whole_trajectories, which take every step; got {num_times}.")
    x0 = whole("x0", x0)
    diffusion.check_data(x0)
    check_unmasked("context", context)
    contexts = rows_of_context(diffusion, context, (len(x0),))
    x0, chain = np.asarray(diffusion.to_chain(x0)), on_all(diffusion.with_units(None), sharding)  # in float64, and once
    warn_of_data(chain.process, x0)
    starts = range(0, len(x0), batch_size)
    batches = []
    for i, start in enumerate(tqdm(starts, desc="bound", unit="batch", disable=not progress)):
        # The last batch is filled up, so that one compiled function serves all.
        rows = np.arange(start, start + (min(batch_size, len(x0)) if sharding is None else batch_size))
        filled = np.where(rows < len(x0), rows, start)
        batch = laid_out((jnp.asarray(x0[filled]), None if contexts is None else contexts[filled]), sharding)
        key = on_all(jax.random.fold_in(rng_key, i), sharding)
        terms = _bound_terms(key, chain, *batch, num_times, whole_trajectories)
        batches.append([fetched(term)[..., : np.sum(rows < len(x0))] for term in terms])
    found = BoundTerms(*(jnp.asarray(np.concatenate(term, axis=-1)) for term in zip(*batches, strict=True)))
    return found if diffusion.units is None else found._replace(first_step=found.first_step + diffusion.log_jacobian)


@eqx.filter_jit
def _bound_terms(
    rng_key: Array,
    diffusion: Diffusion,
    x0: Array,
    contexts: Array | None,
    num_times: int | None,
    whole_trajectories: bool,
) -> BoundTerms:
    if whole_trajectories:
        return trajectory_terms(rng_key, diffusion, x0, context=contexts)
    return bound_terms(rng_key, diffusion, x0, context=contexts, num_times=num_times)
