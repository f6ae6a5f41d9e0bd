r"""Reverse kernels: what a network's output means (Sections 2.2 and D.2.3).

A parameterisation turns a network into $p(x_{t-1} | x_t)$ for a given process. A network is any callable `(t, x) -> array`
on **one** datum, with `t` a scalar integer; batches are mapped over it here, and nowhere else. A user's own kernel needs
none of this: any callable `(t, x) -> Distribution` takes the place of a parameterisation.

Every prediction of $x_0$ becomes a Gaussian step by its moments. With $m$ and $V$ the predicted mean and variance of $x_0$
given $x_t$, and $c_t, d_t, \tilde\beta_t$ the posterior's coefficients,

$$p(x_{t-1} | x_t) = \mathcal N(c_t m + d_t x_t,\ \tilde\beta_t + c_t^2 V),$$

which has the mean and variance that the exact reverse step would have if $m$ and $V$ were exact. At t = 1 it is
$\mathcal N(m, V)$, the prediction itself.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.models.gaussian import GaussianDiffusion
from nedm_ppl.models.process import DiffusionProcess

__all__ = [
    "DataPrediction",
    "DriftVariance",
    "Network",
    "NoisePrediction",
    "Parameterisation",
    "VelocityPrediction",
    "map_network",
]

Network = Callable[[ArrayLike, Array], Array]


class Parameterisation(eqx.Module):
    """A network, and the rule that makes a reverse kernel of it; `network` maps (t, one datum) to `output_shape`."""

    network: eqx.AbstractVar[Network]

    @abstractmethod
    def __call__(self, process: Any, t: ArrayLike, x: Array) -> Distribution:
        r"""The kernel $p(x_{t-1} | x_t = x)$, for t in 1..T; event shape that of the process."""

    @abstractmethod
    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape the network must return for one datum."""

    @abstractmethod
    def check_process(self, process: DiffusionProcess) -> None:
        """Raise a ValueError where this parameterisation means nothing for `process`."""

    def _output(self, process: DiffusionProcess, t: ArrayLike, x: Array) -> Array:
        return map_network(self.network, t, x, process.event_shape, self.output_shape(process.event_shape))


class _PairPrediction(Parameterisation):
    """A network with two outputs per coordinate of a Gaussian chain: `(t, x) -> (2, *event)`."""

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        require_gaussian(self, process)

    def _pair(self, process: DiffusionProcess, t: ArrayLike, x: Array) -> tuple[Array, Array]:
        output = jnp.moveaxis(self._output(process, t, x), -1 - process.event_dim, 0)
        return output[0], output[1]


class DriftVariance(_PairPrediction):
    r"""The paper's parameterisation, equations 64 and 65.

    $\Sigma = \sigma(z^\Sigma + \mathrm{logit}\, \beta_t)$ and $\mu = (x - z^\mu)(1 - \Sigma) + z^\mu$, per coordinate:
    the step contracts towards $z^\mu$ at a rate set by $z^\Sigma$, and a silent network nearly reverses a chain of noise.

    Args:
        network: `(t, x) -> (2, *event)`: $z^\mu$, then $z^\Sigma$.
    """

    network: Network

    def __call__(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        z_mean, z_var = self._pair(process, t, x)
        logit = jnp.log(process.schedule.rates[t - 1]) - jnp.log(process.schedule.keep[t - 1])
        var = jax.nn.sigmoid(z_var + logit)
        return dist.Normal((x - z_mean) * (1.0 - var) + z_mean, jnp.sqrt(var)).to_event(process.event_dim)


class DataPrediction(_PairPrediction):
    r"""Prediction of $x_0$ itself, with a learned variance: $m = z^m$ and $V = (1 - \bar\alpha_t) \exp z^V$.

    Args:
        network: `(t, x) -> (2, *event)`: $z^m$, then $z^V$.
    """

    network: Network

    def __call__(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        mean, log_var = self._pair(process, t, x)
        return moment_matched(process, t, x, mean, process.schedule.one_minus_alpha_bar[t] * jnp.exp(log_var))


class NoisePrediction(_PairPrediction):
    r"""Prediction of the noise $\epsilon = (x_t - \sqrt{\bar\alpha_t}\, x_0) / \sqrt{1 - \bar\alpha_t}$, with a learned variance.

    $\hat\epsilon = z^m$ and $\mathrm{Var}\,\epsilon = \bar\alpha_t \exp z^V$, so that
    $m = (x_t - \sqrt{1 - \bar\alpha_t}\, \hat\epsilon) / \sqrt{\bar\alpha_t}$ and $V = (1 - \bar\alpha_t) \exp z^V$. Source: Ho et
    al., Denoising Diffusion Probabilistic Models, 2020.

    Args:
        network: `(t, x) -> (2, *event)`: $z^m$, then $z^V$.
    """

    network: Network

    def __call__(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        alpha_bar, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        epsilon, log_var = self._pair(process, t, x)
        mean = (x - jnp.sqrt(noise) * epsilon) / jnp.sqrt(alpha_bar)
        return moment_matched(process, t, x, mean, noise * jnp.exp(log_var))

    def check_process(self, process: DiffusionProcess) -> None:
        require_gaussian(self, process)
        last = process.schedule.alpha_bar[-1]
        if not isinstance(last, jax.core.Tracer) and last == 0.0:
            raise ValueError(
                "schedule must leave some signal at T for a NoisePrediction, which divides by it; got beta_T = 1. "
                "Use last_rate=0.5 in schedules.erasing, or predict the data."
            )


class VelocityPrediction(_PairPrediction):
    r"""Prediction half way between data and noise, with a learned variance; the best conditioned of the three.

    $m = \sqrt{\bar\alpha_t}\, x_t + \sqrt{1 - \bar\alpha_t}\, z^m$ and $V = (1 - \bar\alpha_t) \exp z^V$: a silent network
    is the exact reverse chain of data that are N(0, I). Up to sign $z^m$ is the velocity of Salimans and Ho, Progressive
    Distillation for Fast Sampling of Diffusion Models, 2022.

    Args:
        network: `(t, x) -> (2, *event)`: $z^m$, then $z^V$.
    """

    network: Network

    def __call__(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        alpha_bar, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        z_mean, log_var = self._pair(process, t, x)
        mean = jnp.sqrt(alpha_bar) * x + jnp.sqrt(noise) * z_mean
        return moment_matched(process, t, x, mean, noise * jnp.exp(log_var))


def moment_matched(process: GaussianDiffusion, t: ArrayLike, x: Array, mean: Array, var: Array) -> Distribution:
    r"""The Gaussian step whose moments follow from those of $x_0$ given $x_t = x$; `mean` and `var` have x's shape."""
    c, d, posterior_var = process.posterior_coefficients(t)
    scale = jnp.sqrt(posterior_var + jnp.square(c) * var)
    return dist.Normal(c * mean + d * x, scale).to_event(process.event_dim)


def map_network(
    network: Network, t: ArrayLike, x: Array, event_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> Array:
    """Apply a per-datum network to every datum of x; shape (*batch, *output_shape)."""
    batch_shape = jnp.shape(x)[: jnp.ndim(x) - len(event_shape)]
    flat = jnp.reshape(x, (math.prod(batch_shape), *event_shape))
    output = jax.vmap(network, in_axes=(None, 0))(t, flat) if batch_shape else network(t, x)[None]
    if output.shape[1:] != output_shape:
        raise ValueError(
            f"network must return shape {output_shape} for one datum of shape {event_shape}; got {output.shape[1:]}."
        )
    return jnp.reshape(output, (*batch_shape, *output_shape))


def require_gaussian(parameterisation: Parameterisation, process: DiffusionProcess) -> None:
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(
            f"{type(parameterisation).__name__} needs a GaussianDiffusion; got a {type(process).__name__}. "
            "For bits use FlipRate or BitPrediction."
        )
