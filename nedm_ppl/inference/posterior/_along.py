r"""How r continues along the chain (Section 2.5, Appendix C). It is one of

- `constant`, $r_t = r$: the paper's experiments;
- `power`, $r_t = r^{(T-t)/T}$: the paper's other choice, which leaves $x_T \sim \pi$ untouched;
- `lookahead`, $r_t(x_t) = \mathrm{E}_{\hat p(x_0 | x_t)}\, r(x_0)$ with the model's own prediction of $x_0$: the nearest of the
  three to the exact $\mathrm{E}[r(x_0) | x_t]$, under which all weights would be equal;
- `forward`, for known coordinates alone, $r_t = 1$: they walk the forward chain backwards from their values, on one trajectory
  for all particles, and the others walk the model's chain;
- `unguided`, $r_t = 1$: the model's own chain, weighed by r at the end;
- a function $(t, x_t) \mapsto \log r_t(x_t)$ of one's own.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.inference.posterior._lookahead import Lookahead
from nedm_ppl.inference.posterior._multiplied import Along, Look, MultipliedDiffusion
from nedm_ppl.inference.posterior._multiplier import Known, Product, as_multiplier, over_batch
from nedm_ppl.inference.posterior._proposals import independent
from nedm_ppl.inference.posterior._spliced import Spliced
from nedm_ppl.inference.posterior._tilted import closes, tilt
from nedm_ppl.models.chain._process import DiffusionProcess

__all__ = ["Constant", "Forward", "Power", "Supplied", "Unguided", "as_along"]


class Constant(Along):
    r"""$r_t = r$ at every t: the paper's denoising and inpainting."""

    holds_known = True

    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        log_r = over_batch(chain.r.log_r, x, len(chain.event_shape))
        return chain.multiplied(log_r, chain.diffusion.kernel(t, x), x)

    def initial(self, chain: MultipliedDiffusion) -> Distribution:
        noise = chain.diffusion.process.stationary()
        product = chain.guide.times(noise) if closes(noise, chain.guide) else None
        return noise if product is None else product


class Power(Along):
    r"""$r_t = r^{(T-t)/T}$: nothing at T, all of r at 0."""

    holds_known = True

    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        log_r = over_batch(chain.r.log_r, x, len(chain.event_shape))
        log_r = jnp.where(t == chain.num_steps, 0.0, _share(chain, t) * log_r)
        return chain.multiplied(log_r, chain.diffusion.kernel(t, x), x, _share(chain, t - 1))


class Unguided(Along):
    r"""$r_t = 1$ at every t but 0: particles move by the model's own chain, and r weighs them at its end."""

    def guide(self, guide: Product, process: DiffusionProcess) -> Product:
        return guide

    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        law = chain.diffusion.kernel(t, x)
        return Look(self.log_r(chain, t, x), law, law)

    def log_r(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Array:
        return jnp.zeros(x.shape[: x.ndim - len(chain.event_shape)])


class Forward(Along):
    r"""Known coordinates by the forward chain, $q(x_{t-1} | x_t, x_0)$, and the others by the model's; $r_t = 1$.

    All particles, and all samples of one call, share the trajectory of the known coordinates (`spliced.Spliced`), which is
    drawn anew by every filter. Their weights say how well each suits it. Z is unbiased over trajectories too, and filters are
    pooled by their evidences as ever; each alone has the posterior given its trajectory, so take many filters.

    Source: Trippe et al., Diffusion Probabilistic Modeling of Protein Backbones in 3D for the Motif-Scaffolding Problem, 2022.
    """

    def check(self, guide: Product) -> None:
        if len(guide.factors) != 1 or not isinstance(guide.factors[0], Known):
            raise ValueError(
                "along='forward' is for known coordinates alone, one Known; use along='lookahead' for this r."
            )

    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        law = chain.diffusion.kernel(t, x)
        values, mask = _known(chain.guide)
        return Look(self.log_r(chain, t, x), law, Spliced(law, chain.diffusion.process.posterior(t, x, values), mask))

    def log_r(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Array:
        return jnp.zeros(x.shape[: x.ndim - len(chain.event_shape)])

    def initial(self, chain: MultipliedDiffusion) -> Distribution:
        process = chain.diffusion.process
        values, mask = _known(chain.guide)
        return Spliced(process.stationary(), process.marginal(chain.num_steps, values), mask)


class Supplied(Along):
    r"""$r_t$ as the user gives it, for t in 1..T; at 0 it is r."""

    function: Callable[[ArrayLike, Array], Array]

    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        log_r = over_batch(lambda x: self.function(t, x), x, len(chain.event_shape))
        law = chain.diffusion.kernel(t, x)
        near, _ = independent(law)
        if near is None:
            return Look(log_r, law, law)
        return Look(log_r, law, tilt(near, as_multiplier(lambda x: self.function(t - 1, x)), x).law, law)


def as_along(along: Along | str | Callable[[ArrayLike, Array], Array]) -> Along:
    """The way along the chain that a name or a function stands for.

    Raises:
        ValueError: anything else.
    """
    if isinstance(along, Along):
        return along
    if isinstance(along, str) and along in NAMED:
        return NAMED[along]()
    if callable(along) and not isinstance(along, type):
        return Supplied(along)
    raise ValueError(
        "along must be constant, power, lookahead, forward, unguided, a Lookahead or a function (t, x) -> log r_t(x); "
        f"got {along!r}."
    )


NAMED: dict[str, Callable[[], Along]] = {
    "constant": Constant,
    "power": Power,
    "lookahead": Lookahead,
    "forward": Forward,
    "unguided": Unguided,
}


def _share(chain: MultipliedDiffusion, t: ArrayLike) -> Array:
    """The power of r at time t."""
    return jnp.asarray((chain.num_steps - t) / chain.num_steps)


def _known(guide: Product) -> tuple[Array, Array]:
    """Known values, 0 at the others, where nothing looks; and which they are."""
    (factor,) = guide.factors
    assert isinstance(factor, Known)
    return jnp.where(factor.mask, factor.values, 0.0), factor.mask
