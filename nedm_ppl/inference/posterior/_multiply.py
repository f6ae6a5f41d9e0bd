r"""Multiplying a diffusion by r(x): kernel in, kernel out (Section 2.5).

The target is $\tilde p(x_0) \propto p(x_0)\, r(x_0)$. Every intermediate law is multiplied by an $r_t(x_t)$, with $r_0 = r$,
and every step becomes

$$\tilde p(x_{t-1} | x_t) \propto p(x_{t-1} | x_t)\, r_{t-1}(x_{t-1}),$$

normalized. Running these steps is the paper's method. It is **approximate**: the normalizer of each step depends on $x_t$ and
is dropped. `particles` keeps it as a weight, and is exact.
"""

from collections.abc import Callable

from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.inference._far import warn_of_observation
from nedm_ppl.inference.posterior._along import as_along
from nedm_ppl.inference.posterior._multiplied import Along, MultipliedDiffusion
from nedm_ppl.inference.posterior._multiplier import Multiplier, as_multiplier
from nedm_ppl.models._diffusion import Diffusion

__all__ = ["multiply"]


def multiply(
    diffusion: Diffusion,
    r: Multiplier | Callable[[Array], Array] | None,
    guide: Multiplier | None = None,
    *,
    along: Along | str | Callable[[ArrayLike, Array], Array] = "constant",
) -> MultipliedDiffusion:
    r"""The reverse chain multiplied by r, Section 2.5: kernel in, kernel out. **Approximate**; `ParticlePosterior` is exact.

    Args:
        diffusion: The model p.
        r: A multiplier, or a function log r(x) of one datum, in the data's units.
        guide: What moves particles in its place, where that is another; whatever it is, r weighs them.
        along: How r continues along the chain: `constant` (the paper's experiments), `power` (the paper's other choice),
            `lookahead` or a `Lookahead` with its options, `forward` (known coordinates alone), `unguided` (not at all), or a
            function $(t, x_t) \mapsto \log r_t(x_t)$ of one datum, for t in 1..T, in the chain's units.

    Warns:
        DataWarning: an observation of a Gaussian chain that is far from all data the model has seen.

    Raises:
        ValueError: r of another shape or for other data, an unknown `along`, or one that does not go with r.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> chain = inference.multiply(diffusion, inference.NormalObservation(jnp.ones(2), 0.5))
        >>> chain.sample(jax.random.key(0), (5,)).shape
        (5, 2)
    """
    product, along = as_multiplier(r), as_along(along)
    moving = product if guide is None else as_multiplier(guide)
    units, process = diffusion.units, diffusion.process
    if units is not None:
        product, moving = product.in_chain(units, process), moving.in_chain(units, process).varying
    product.check(process)
    moving.check(process)
    if not process.stationary().is_discrete:
        warn_of_observation(max((factor.surprise() for factor in product.factors), default=0.0))
    return MultipliedDiffusion(diffusion, product, along.guide(moving, process), along)
