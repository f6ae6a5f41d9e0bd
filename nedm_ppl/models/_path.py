r"""A diffusion inside another program with its whole trajectory as latents, for NUTS, HMC and autoguides.

$$p(x_{0..T}) = \mathcal N(x_T; 0, I) \prod_{t=1}^{T} p(x_{t-1} | x_t)$$

is a density in closed form where $p(x_0)$ is not, and one that gradients see. So the program may hold (T + 1) D latents where it
means D, and x_0 has the chain's law exactly, with no approximation beyond the sampler's. The path comes in two forms:

- **centered**: `{name}_path`, $x_{1..T}$ as one `MarkovChain` site, and then `{name}`, $x_0$ given $x_1$;
- **as noise**: `{name}_noise`, $\epsilon_{0..T}$ standard normal, and `{name}` computed from it,
  $x_T = \epsilon_T$ and $x_{t-1} = \mu_t(x_t) + L_t(x_t)\, \epsilon_{t-1}$.

Adjacent states of a chain are nearly equal, which a sampler of the centered form must find its way along, and its scales are those
of the steps; the noise has one scale and no correlation but what the rest of the program puts there. Start with the noise. Both
are for short chains: a gradient costs T network evaluations, one after the other for the noise. The kernels' arrays and
contexts may depend on latents upstream, for the density of the path is normalized whatever they are.
"""

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, Normal

from nedm_ppl.laws._low_rank import LowRankNormal, as_correlated
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models._units import in_units

__all__ = ["sample_path"]

PARTICLES = "use diffusion.prior() with inference.ParticlePosterior, which takes any chain."


def sample_path(name: str, diffusion: Diffusion, *, centered: bool = False) -> Array:
    r"""Sample $x_0$ inside a NumPyro program, with the trajectory that leads to it as latent sites.

    Args:
        name: The site of $x_0$, or with `centered=False` a deterministic of that name; the trajectory's site is `{name}_path` or
            `{name}_noise`.
        diffusion: A model of a Gaussian chain with Gaussian kernels, short. It may depend on latents upstream: on
            `diffusion.given(latent)`, or on arrays of it that do.
        centered: Whether the latents are the states themselves, or the standard normal noise that drives them.

    Returns:
        $x_0$, shape (*plates, *event), in the data's units; the path is in the chain's.

    Raises:
        ValueError: a chain over bits, a first step over gray levels, or a kernel that is not Gaussian, by name.

    Examples:
        >>> import numpyro
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as trace:
        ...     x = models.sample_path("x", diffusion)
        >>> trace["x_noise"]["value"].shape  # the first is of x_T
        (11, 2)
    """
    if not (isinstance(name, str) and hasattr(diffusion, "process")):
        raise ValueError(
            f"name must be a string and diffusion a Diffusion, in this order; got a {_name(name)} and a {_name(diffusion)}."
        )
    if diffusion.process.stationary().is_discrete:
        raise ValueError(
            f"diffusion must be of a Gaussian chain for sample_path; got a {_name(diffusion.process)}: {PARTICLES}"
        )
    if diffusion.ending.is_categorical:
        raise ValueError(
            f"first_step must be 'fixed' or 'learned' for sample_path; got 'quantized', a categorical over gray levels: {PARTICLES}"
        )
    if centered:
        chain = diffusion.reverse_chain()
        path = numpyro.sample(f"{name}_path", chain)
        first = diffusion.first_kernel(chain.at(path, 1))
        if first.is_discrete:
            raise ValueError(
                f"reverse must end in a density for sample_path; got a {_name(coordinates(first))} at t = 1: {PARTICLES}"
            )
        return numpyro.sample(name, in_units(first, diffusion.units))
    states = (diffusion.num_steps + 1, *diffusion.event_shape)
    noise = numpyro.sample(f"{name}_noise", Normal(jnp.zeros(states), 1.0).to_event(len(states)))
    end = path_end(diffusion, noise)
    return numpyro.deterministic(name, end if diffusion.units is None else diffusion.units.unsnapped(end))


def path_end(diffusion: Diffusion, noise: Array) -> Array:
    r"""$x_0$, shape (*batch, *event), from the noise $\epsilon_{0..T}$, shape (*batch, T + 1, *event), that drives it,
    in the chain's units.

    It has the law of `diffusion.sample` where the noise is standard normal, and is differentiable in the noise and the model."""
    noise = jnp.moveaxis(noise, noise.ndim - 1 - diffusion.process.event_dim, 0)

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        t, drive = at
        return _driven(diffusion.kernel(t, x), drive), None

    times = jnp.arange(2, diffusion.num_steps + 1)
    x1, _ = jax.lax.scan(step, noise[-1], (times, noise[1:-1]), reverse=True)
    return _driven(diffusion.first_kernel(x1), noise[0])


def _driven(law: Distribution, noise: Array) -> Array:
    """The Gaussian's value that standard normal noise stands for."""
    base = coordinates(law)
    if isinstance(base, LowRankNormal | LowRankMultivariateNormal):
        correlated = as_correlated(base)
        assert correlated is not None
        return correlated.driven(noise)
    if isinstance(base, MultivariateNormal):
        return base.loc + jnp.squeeze(base.scale_tril @ noise[..., None], axis=-1)
    if not isinstance(base, Normal):
        raise ValueError(
            f"reverse must be of Gaussian kernels to be driven by noise; got a {_name(base)}. Use "
            f"centered=True where it is continuous; else {PARTICLES}"
        )
    return base.loc + base.scale * noise


def _name(value: object) -> str:
    return type(value).__name__
