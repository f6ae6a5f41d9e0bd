r"""A diffusion whose every step is multiplied by $r_t$: the perturbed reverse chain (Section 2.5, Appendix C).

Two multipliers go with a chain. **r** is the truth, and weighs particles at time 0. The **guide** moves them: what r is taken
for on the way, recognized or tabulated, right or wrong.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Delta, Distribution

from nedm_ppl.inference.posterior._multiplier import Known, Product
from nedm_ppl.inference.posterior._proposals import defended, independent
from nedm_ppl.inference.posterior._tabulated import guide_of
from nedm_ppl.inference.posterior._tilted import closes, tilt
from nedm_ppl.laws._mixtures import together
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._chain import MarkovChain
from nedm_ppl.models.chain._process import DiffusionProcess

__all__ = ["Along", "Look", "MultipliedDiffusion"]


class Look(NamedTuple):
    r"""What a multiplied chain makes of a state $x_t$.

    Attributes:
        log_r: $\log r_t(x_t)$, nats, shape (*batch,).
        law: The model's kernel $p(x_{t-1} | x_t)$.
        proposal: The perturbed kernel $\tilde p(x_{t-1} | x_t)$.
        free: The kernel by which a share of particles moves unguided; None where the perturbed one is exact for what guides.
    """

    log_r: Array
    law: Distribution
    proposal: Distribution
    free: Distribution | None = None


class MultipliedDiffusion(eqx.Module):
    r"""A diffusion whose every step is multiplied by $r_t$; made by `multiply`. Its samples are approximate.

    Attributes:
        diffusion: The model p.
        r: The multiplier at t = 0, a product of factors, as a function of what the chain has: what particles are weighed by.
        guide: What they are moved by on the way, up to a constant factor; r itself, or near it.
        along: How r continues along the chain.
    """

    diffusion: Diffusion
    r: Product
    guide: Product
    along: "Along"

    def __check_init__(self):
        self.along.check(self.guide)

    def look(self, t: ArrayLike, x: Array) -> Look:
        r"""$r_t(x_t)$ and both kernels, from one evaluation of the network; at t = 1 only `log_r` means anything."""
        return self.along.look(self, t, x)

    def initial(self) -> Distribution:
        r"""The law $x_T$ is drawn from: $\pi\, r_T$ where that has a closed form, or $\pi$."""
        return self.along.initial(self)

    def log_r(self, t: ArrayLike, x: Array) -> Array:
        r"""$\log r_t(x_t)$ for t in 1..T, nats, shape (*batch,)."""
        return self.along.log_r(self, t, x)

    def kernel(self, t: ArrayLike, x: Array) -> Distribution:
        r"""The perturbed kernel $\tilde p(x_{t-1} | x_t = x)$, for t = 2..T."""
        return self.look(t, x).proposal

    def look_first(self, x1: Array) -> Look:
        r"""The same of $x_1$, with the first step $p(x_0 | x_1)$ as the law."""
        return self.multiplied(self.log_r(1, x1), self.diffusion.first_kernel(x1), x1)

    def first_kernel(self, x1: Array) -> Distribution:
        r"""The perturbed first step: $p(x_0 | x_1)\, r(x_0)$, normalized, exactly where r allows it."""
        law = self.diffusion.first_kernel(x1)
        return self.multiplied(jnp.zeros(law.batch_shape), law, x1).proposal

    def proposal(self, look: Look) -> Distribution:
        r"""The law particles are drawn from: the perturbed kernel, and for a share of them the model's own where r is guessed."""
        return look.proposal if look.free is None else defended(look.free, look.proposal)

    def multiplied(self, log_r: Array, law: Distribution, at: Array, power: ArrayLike = 1.0) -> Look:
        """A look whose perturbed kernel is the law times the guide."""
        whole = together(law)
        if whole is not None and closes(whole, self.guide):
            return Look(log_r, law, tilt(whole, self.guide, at, power).law)
        near, same = independent(law)
        if near is None:
            return Look(log_r, law, law)
        proposal = tilt(near, self.guide, at, power).law
        if same and closes(near, self.guide):
            return Look(log_r, law, proposal)
        # What is known stays known for all particles: everything else is impossible.
        known = Product(factor for factor in self.guide.factors if isinstance(factor, Known))
        return Look(log_r, law, proposal, tilt(near, known, at).law if known.factors else law)

    @property
    def num_steps(self) -> int:
        """Number of steps, T."""
        return self.diffusion.num_steps

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.diffusion.event_shape

    def reverse_chain(self, start: Array | None = None) -> MarkovChain:
        r"""The perturbed trajectory $x_1..x_T$, from `initial` or from a given $x_T$ of shape (*batch, *event)."""
        initial = self.initial() if start is None else Delta(start, event_dim=len(self.event_shape))
        return MarkovChain(initial, self.kernel, first=1, last=self.num_steps, reverse=True)

    def sample(
        self, rng_key: Array, sample_shape: tuple[int, ...] = (), *, start: Array | None = None, last_step: bool = True
    ) -> Array:
        r"""Approximate samples of $p(x_0)\, r(x_0)$, the paper's method; shape (*sample_shape, *event).

        Args:
            rng_key: Random key.
            sample_shape: How many.
            start: $x_T$ to start from, of shape (*batch, *event): the noisy image itself in the paper's denoising, the image
                with noise in its missing region in its inpainting; in the data's units. By default drawn from `initial`.
            last_step: Whether to take the first step $p(x_0 | x_1)$ too; the paper's denoising stops at $x_1$.
        """
        key_chain, key_first = jax.random.split(rng_key)
        start = None if start is None else jnp.asarray(self.diffusion.to_chain(start))
        x1 = self.reverse_chain(start).sample_end(key_chain, sample_shape)
        return self.diffusion.to_data(self.first_kernel(x1).sample(key_first) if last_step else x1)

    def sample_trajectory(
        self, rng_key: Array, sample_shape: tuple[int, ...] = (), *, start: Array | None = None
    ) -> Array:
        """Whole perturbed trajectories $x_0..x_T$, shape (*sample_shape, T + 1, *event), time ascending, in the chain's units."""
        key_chain, key_first = jax.random.split(rng_key)
        start = None if start is None else jnp.asarray(self.diffusion.to_chain(start))
        chain = self.reverse_chain(start)
        path = chain.sample(key_chain, sample_shape)
        x0 = self.first_kernel(chain.at(path, 1)).sample(key_first)
        return jnp.concatenate(
            [x0[..., None, *[slice(None)] * len(self.event_shape)].astype(path.dtype), path], -1 - len(self.event_shape)
        )


class Along(eqx.Module):
    r"""How r continues along the chain: $r_t$ for t in 1..T, where at 0 it is r.

    Attributes:
        holds_known: Whether known coordinates are held at their values at every t, as if the model had them so.
        ties_rows: Whether looks at single coordinates are wanted as rows of one linear observation.
    """

    holds_known: ClassVar[bool] = False

    @property
    def ties_rows(self) -> bool:
        return False

    def guide(self, guide: Product, process: DiffusionProcess) -> Product:
        """The guide as this continues it."""
        return guide_of(guide, process)

    def check(self, guide: Product) -> None:
        """Raise a ValueError where this guide cannot be continued so."""

    @abstractmethod
    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        """See `MultipliedDiffusion.look`."""

    def log_r(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Array:
        """See `MultipliedDiffusion.log_r`."""
        return self.look(chain, t, x).log_r

    def initial(self, chain: MultipliedDiffusion) -> Distribution:
        """See `MultipliedDiffusion.initial`."""
        return chain.diffusion.process.stationary()
