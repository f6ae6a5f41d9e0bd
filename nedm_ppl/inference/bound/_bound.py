r"""The paper's bound K, per datum and per step, and as a NumPyro ELBO (Section 2.4, Appendix B, equations 10-15).

$$\log p(x_0) \ge K(x_0) = - \underbrace{\mathrm{KL}(q(x_T | x_0) \| \pi)}_{\text{prior}}
  - \underbrace{\sum_{t=2}^{T} \mathrm{E}\, \mathrm{KL}\big(q(x_{t-1} | x_t, x_0) \,\|\, p(x_{t-1} | x_t)\big)}_{\text{diffusion}}
  + \underbrace{\mathrm{E} \log p(x_0 | x_1)}_{\text{first step}},$$

expectations under $q(x_t | x_0)$. Every divergence and entropy is analytic, so the only Monte Carlo is over $x_t$, and
each term needs $x_t$ alone: steps are drawn independently, any subset of them is an unbiased estimate, and memory does not
depend on T. This is the exact expectation; the paper's equation 14 replaces the cross-entropies to $\pi$ by $H_p(X_T)$,
which holds in the mean over data of unit second moment (or mean `rate`), and never per datum.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import MaskedDistribution
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer import ELBO

from nedm_ppl._compat import Messenger, mask_of
from nedm_ppl.arguments import Count, as_count, check_key, check_kind, check_unmasked
from nedm_ppl.inference._named_arrays import UNBIASED, container, data_dims, dataset, per_unit
from nedm_ppl.inference.bound._divergence import divergence, log_ratio
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.reverse._context import holding, known, rows_of_context

__all__ = ["BoundTerms", "TrajectoryBound", "bound_terms", "trajectory_terms"]

# Rows of network evaluations done side by side when all steps are taken.
CHUNK_ROWS = 4096


class BoundTerms(NamedTuple):
    r"""The bound's three terms for every datum, in nats, and the divergences they were summed from.

    Attributes:
        prior: $\mathrm{KL}(q(x_T | x_0) \| \pi)$, exact, shape (*batch,).
        diffusion: The sum over t = 2..T of expected divergences, unbiased, shape (*batch,).
        first_step: $\mathrm{E} \log p(x_0 | x_1)$: exact for the fixed first step, else unbiased, shape (*batch,).
        times: The steps evaluated, shape (num_times, *batch).
        divergences: The divergence of each of those steps, unbiased, shape (num_times, *batch).
    """

    prior: Array
    diffusion: Array
    first_step: Array
    times: Array
    divergences: Array

    def __repr__(self) -> str:
        return f"BoundTerms of batch shape {jnp.shape(self.prior)}, {jnp.shape(self.times)[0]} steps each, nats"

    @property
    def total(self) -> Array:
        """K per datum: an unbiased estimate of a lower bound on log p(x_0); nats, shape (*batch,)."""
        return self.first_step - self.diffusion - self.prior

    def to_arviz(self, *, units: str = "nats") -> Any:
        """The bound of every datum, term by term and step by step, in a group of its own named `bound`.

        The group has no `chain` and no `draw`: a datum's bound is one number with Monte Carlo noise, not a draw of a posterior.

        Args:
            units: `nats` or `bits`.

        Returns:
            `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the variables

            - `bound`, the lower bound K, and its terms `prior`, `diffusion`, `first_step`: dimensions (*datum,);
            - `divergence`: dimensions (time, *datum) with t as coordinate where every step was taken, else (drawn_step, *datum)
              beside the variable `time` that says which step each was.

        Raises:
            ValueError: units other than these.
        """
        factor = per_unit(units)
        values = [np.asarray(term, np.float64) * factor for term in (*self[:3], self.divergences)]
        prior, diffusion, first_step, divergences = values
        times = np.asarray(self.times)
        data = data_dims(prior.ndim)

        def described(value: np.ndarray, long_name: str, estimate: str, dims: tuple[str, ...] = data) -> tuple:
            return dims, value, {"long_name": long_name, "units": units, "estimate": estimate}

        first_estimate = f"exact for the fixed first step, else {UNBIASED}"
        bound_estimate = f"lower bound on log p(x_0), {UNBIASED}"
        variables = {
            "bound": described(
                first_step - diffusion - prior, "bound K = first_step - diffusion - prior", bound_estimate
            ),
            "prior": described(prior, "KL(q(x_T | x_0) || pi)", "exact"),
            "diffusion": described(diffusion, "sum over steps t >= 2 of E KL(q || p)", UNBIASED),
            "first_step": described(first_step, "E log p(x_0 | x_1)", first_estimate),
        }
        coords = {name: np.arange(size) for name, size in zip(data, prior.shape, strict=True)}
        by_step = times.reshape(len(times), math.prod(times.shape[1:]))
        shared = bool(np.all(by_step == by_step[:, :1])) and len(np.unique(by_step[:, :1])) == len(times)
        step_dim = "time" if shared else "drawn_step"
        variables["divergence"] = described(
            divergences, "KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))", UNBIASED, (step_dim, *data)
        )
        if shared:
            coords["time"] = by_step[:, 0]
        else:
            variables["time"] = ((step_dim, *data), times, {"long_name": "step t", "estimate": "exact"})
        return container({"bound": dataset(variables, coords)})


def bound_terms(
    rng_key: Array,
    diffusion: Diffusion,
    x0: Array,
    *,
    context: ArrayLike | None = None,
    num_times: Count | None = None,
    first_step_share: float = 1.0,
) -> BoundTerms:
    r"""The bound K of every datum, term by term.

    Args:
        rng_key: Draws $x_t$, and the steps where `num_times` is given.
        diffusion: The model.
        x0: Data $x_0$, shape (*batch, *event), in the model's units of data.
        context: The context of every datum, shape (*batch, *context_shape), or one for all; by default what the model is given.
        num_times: Steps evaluated per datum, drawn uniformly from 2..T, stratified over the whole batch (low
            discrepancy: each datum's are uniform, together they cover the steps evenly) and weighted to stay unbiased.
            None takes every step.
        first_step_share: Share of the data whose first step is evaluated, in (0, 1]; the others' term is 0 and theirs is
            weighted up, which is unbiased for every datum and spares a network evaluation. The fixed first step is exact
            for all of them at no cost.

    Raises:
        ValueError: num_times < 1, a share outside (0, 1], or contexts that do not suit the model and the data; a label beyond
            the model's ends a program under `jit` when it runs.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> inference.bound_terms(jax.random.key(0), diffusion, jnp.zeros((5, 2)), num_times=3)
        BoundTerms of batch shape (5,), 3 steps each, nats
    """
    check_unmasked("context", context)
    contexts = None if context is None else known(diffusion, context)
    return _terms(rng_key, diffusion, x0, contexts, num_times, first_step_share)


def _terms(
    rng_key: Array,
    diffusion: Diffusion,
    x0: Array,
    context: Array | None,
    num_times: Count | None,
    first_step_share: float,
) -> BoundTerms:
    """`bound_terms` where labels need no check as the program runs: training checks them before."""
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    if not 0.0 < first_step_share <= 1.0:
        raise ValueError(f"first_step_share must lie in (0, 1]; got {first_step_share:g}.")
    num_times = None if num_times is None else as_count("num_times", num_times)
    check_unmasked("x0", x0)
    process, x0 = diffusion.process, diffusion.to_chain(x0)
    batch_shape = jnp.shape(x0)[: jnp.ndim(x0) - process.event_dim]
    flat = jnp.reshape(jnp.asarray(x0), (-1, *process.event_shape))  # traced steps index the data: no array of NumPy
    contexts = rows_of_context(diffusion, context, batch_shape)
    key_first, key_times, key_steps = jax.random.split(rng_key, 3)

    last = process.num_steps
    if num_times is None or last == 1:
        times, steps = _all_steps(key_steps, holding(diffusion, contexts), flat)
        total = jnp.sum(steps, axis=0)
    else:
        times = _low_discrepancy(key_times, num_times, flat.shape[0], 2, last)
        steps = _drawn_steps(key_steps, diffusion, flat, contexts, times)
        total = (last - 1) * jnp.mean(steps, axis=0)

    first_step = _first_step(key_first, diffusion, flat, contexts, first_step_share) + diffusion.log_jacobian
    terms = process.prior_divergence(flat), total, first_step, times, steps
    return BoundTerms(*(jnp.reshape(term, (*term.shape[:-1], *batch_shape)) for term in terms))


def trajectory_terms(
    rng_key: Array, diffusion: Diffusion, x0: Array, *, context: ArrayLike | None = None
) -> BoundTerms:
    r"""The bound K of every datum from one whole forward trajectory: its log weight, step by step.

    The same expectation as `bound_terms`, with every term a log ratio at the trajectory's own states. Its spread is that of the
    log weight, which vanishes with the gap between K and log p(x_0): the better the model, the more precise the number.

    Args:
        rng_key: Draws the trajectories.
        diffusion: The model.
        x0: Data $x_0$, shape (*batch, *event).
        context: As in `bound_terms`.

    Returns:
        Terms whose total is $\log w = \log p(x_{0..T}) - \log q(x_{1..T} | x_0)$, nats, each unbiased, and those of all steps.
    """
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    check_unmasked("x0", x0)
    check_unmasked("context", context)
    process, x0 = diffusion.process, diffusion.to_chain(x0)
    batch_shape = jnp.shape(x0)[: jnp.ndim(x0) - process.event_dim]
    flat = jnp.reshape(jnp.asarray(x0, float), (-1, *process.event_shape))
    given, last = diffusion.given(rows_of_context(diffusion, context, batch_shape)), process.num_steps

    def later(t: ArrayLike, x: Array) -> Array:
        return process.step(t, x).sample(jax.random.fold_in(rng_key, t)).astype(flat.dtype)

    def step(x: Array, t: Array) -> tuple[Array, Array]:
        x_t = later(t, x)
        return x_t, -log_ratio(given.kernel(t, x_t), process.posterior(t, x_t, flat), x)

    x1, times = later(1, flat), jnp.arange(2, last + 1)
    x_last, steps = jax.lax.scan(step, x1, times)
    prior = -log_ratio(process.stationary(), process.marginal(last, flat), x_last)
    times = jnp.broadcast_to(times[:, None], steps.shape)
    first_step = given.first_kernel(x1).log_prob(flat) + diffusion.log_jacobian
    terms = prior, jnp.sum(steps, axis=0), first_step, times, steps
    return BoundTerms(*(jnp.reshape(term, (*term.shape[:-1], *batch_shape)) for term in terms))


class TrajectoryBound(ELBO):
    r"""The bound K as a NumPyro objective, for programs with a diffusion's `model` and `guide` inside.

    Equal in expectation to `Trace_ELBO` on the same programs, with the trajectory integrated out analytically step by step
    instead of drawn: the trajectory site is never sampled. Plates, `handlers.scale` and `handlers.mask` apply as they do
    there, and other sites of the two programs enter through their log densities.

    Args:
        num_times: Steps per datum, 1 by default (an unbiased low-discrepancy subsample); None takes them all.
        num_particles: Number of such estimates averaged.
        first_step_share: Share of the data whose first step is evaluated, unbiased; see `bound_terms`.

    Examples:
        >>> import jax, numpyro, optax
        >>> from nedm_ppl import data, inference, models
        >>> network = models.networks.ResidualMLP((2,), (2, 2), 10, width=8, depth=1, key=jax.random.key(0))
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, models.VelocityPrediction(network))
        >>> objective = inference.TrajectoryBound()
        >>> svi = numpyro.infer.SVI(diffusion.model, diffusion.guide, optax.adam(1e-3), objective)
        >>> svi.run(jax.random.key(1), 5, data.swiss_roll(0, 100), progress_bar=False).losses.shape
        (5,)
    """

    can_infer_discrete = True

    def __init__(self, num_times: Count | None = 1, num_particles: Count = 1, *, first_step_share: float = 1.0):
        super().__init__(num_particles=as_count("num_particles", num_particles))
        self.num_times = None if num_times is None else as_count("num_times", num_times)
        self.first_step_share = first_step_share

    def loss(self, rng_key: Array, param_map: dict, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Array:
        """Minus the bound in nats, summed over data as the programs' plates scale it."""

        def particle(key: Array) -> Array:
            return self._elbo(key, param_map, model, guide, args, kwargs)

        if self.num_particles == 1:
            return -particle(rng_key)
        return -jnp.mean(self.vectorize_particles_fn(particle, jax.random.split(rng_key, self.num_particles)))

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: dict, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """`loss` as SVI asks for it; no mutable state is kept."""
        return {"loss": self.loss(rng_key, param_map, model, guide, *args, **kwargs), "mutable_state": None}

    def _elbo(self, rng_key: Array, param_map: dict, model: Any, guide: Any, args: tuple, kwargs: dict) -> Array:
        key_guide, key_model, key_bound = jax.random.split(rng_key, 3)
        with unsampled_trajectories():
            guide_trace = trace(substitute(seed(guide, key_guide), data=param_map)).get_trace(*args, **kwargs)
            replayed = replay(seed(model, key_model), guide_trace)
            model_trace = trace(substitute(replayed, data=param_map)).get_trace(*args, **kwargs)

        sites = [site for site in model_trace.values() if "diffusion" in site.get("infer", {})]
        if not sites:
            raise ValueError("TrajectoryBound needs a program that runs diffusion.model; it found no diffusion site.")
        analytic = {site["name"] for site in sites}
        elbo = sum(
            (self._site_bound(jax.random.fold_in(key_bound, i), site) for i, site in enumerate(sites)),
            start=jnp.zeros(()),
        )
        for sign, sampled in ((1.0, model_trace), (-1.0, guide_trace)):
            for name, site in sampled.items():
                if site["type"] == "sample" and name not in analytic and not _is_trajectory(site):
                    elbo = elbo + sign * _scaled_sum(site, site["fn"].log_prob(site["value"]))
        return elbo

    def _site_bound(self, rng_key: Array, site: dict) -> Array:
        if not site["is_observed"]:
            raise ValueError(
                f"site {site['name']!r} must be observed for a TrajectoryBound; pass the data to the model."
            )
        diffusion, context = site["infer"]["diffusion"], site["infer"].get("context")
        terms = _terms(rng_key, diffusion, site["value"], context, self.num_times, self.first_step_share)
        bound = terms.total
        if isinstance(site["fn"], MaskedDistribution):
            bound = jnp.where(mask_of(site["fn"]), bound, 0.0)
        return _scaled_sum(site, bound)


class unsampled_trajectories(Messenger):
    """A NumPyro handler that gives the trajectories of diffusions a placeholder value, so that no chain is run for them.

    It knows them by the mark that `Diffusion.model` and `Diffusion.guide` leave in `infer`; other sites are let be."""

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and _is_trajectory(msg) and msg["value"] is None:
            dtype = int if msg["fn"].support.is_discrete else float
            msg["value"] = jnp.zeros(msg["fn"].shape(msg["kwargs"].get("sample_shape", ())), dtype)


def _is_trajectory(site: dict) -> bool:
    return "diffusion_trajectory" in site.get("infer", {})


def _scaled_sum(site: dict, log_prob: Array) -> Array:
    return jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)


def _step(rng_key: Array, diffusion: Diffusion, t: Array, x0: Array) -> Array:
    r"""$\mathrm{KL}(q(x_{t-1} | x_t, x_0) \| p(x_{t-1} | x_t))$ at one draw of $x_t$; t a scalar, x0 with batch axes."""
    key_x, key_divergence = jax.random.split(rng_key)
    x_t = diffusion.process.marginal(t, x0).sample(key_x)
    posterior = diffusion.process.posterior(t, x_t, x0)
    return divergence(key_divergence, posterior, diffusion.kernel(t, x_t))


def _drawn_steps(rng_key: Array, diffusion: Diffusion, x0: Array, contexts: Array | None, times: Array) -> Array:
    def step(key: Array, t: Array, row: Array, context: Array | None) -> Array:
        return _step(key, holding(diffusion, context), t, row)

    # One flat axis for draws and data: XLA multiplies matrices faster than it multiplies batches of them.
    keys = jax.random.split(rng_key, times.size)
    rows, contexts = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (times.shape[0],) + (1,) * (leaf.ndim - 1)), (x0, contexts)
    )
    steps = jax.vmap(step)(keys, jnp.ravel(times), rows, contexts)
    return jnp.reshape(steps, times.shape)


def _all_steps(rng_key: Array, diffusion: Diffusion, x0: Array) -> tuple[Array, Array]:
    times = jnp.arange(2, diffusion.num_steps + 1)

    @jax.checkpoint
    def step(t: Array) -> Array:
        return _step(jax.random.fold_in(rng_key, t), diffusion, t, x0)

    num_data = x0.shape[0]
    if times.size == 0:
        return jnp.zeros((0, num_data), int), jnp.zeros((0, num_data))
    steps = jax.lax.map(step, times, batch_size=max(1, CHUNK_ROWS // num_data))
    return jnp.broadcast_to(times[:, None], (times.size, num_data)), steps


def _low_discrepancy(rng_key: Array, num_times: int, num_data: int, first: int, last: int) -> Array:
    """Steps in first..last, shape (num_times, num_data): one uniform shift of an even grid over [0, 1).

    The grid is stratified over a datum's own draws first, then over the data. Source: Kingma et al., Variational Diffusion
    Models, 2021, appendix I.1.
    """
    strata = jnp.arange(num_times)[:, None] + jnp.arange(num_data) / num_data
    uniform = (jax.random.uniform(rng_key) + strata / num_times) % 1.0
    return jnp.minimum(first + jnp.floor(uniform * (last - first + 1)).astype(int), last)


def _first_step(rng_key: Array, diffusion: Diffusion, x0: Array, contexts: Array | None, share: float) -> Array:
    r"""$\mathrm{E}_{q(x_1 | x_0)} \log p(x_0 | x_1)$ per datum."""
    process = diffusion.process
    exact = diffusion.ending.expected_log_prob(process, x0)
    if exact is not None:
        return exact
    key_rows, key_x = jax.random.split(rng_key)
    num_data = x0.shape[0]
    count = max(1, round(share * num_data))
    rows = jnp.arange(num_data) if count == num_data else jax.random.choice(key_rows, num_data, (count,), replace=False)
    x1 = process.step(1, x0[rows]).sample(key_x)
    given = holding(diffusion, None if contexts is None else contexts[rows])
    log_prob = given.first_kernel(x1).log_prob(x0[rows])
    return jnp.zeros(num_data).at[rows].set(num_data / count * log_prob)
