r"""Reverse kernels: what a network's output means (Sections 2.2 and D.2.3).

A parameterization turns a network into $p(x_{t-1} | x_t)$ for a given process. A network is any callable `(t, x) -> array`
on **one** datum, with `t` a scalar integer; batches are mapped over it here, and nowhere else. A user's own kernel needs
none of this: any callable `(t, x) -> Distribution` takes the place of a parameterization.

A prediction of $x_0$ is a law $\hat p(x_0 | x_t)$, which becomes a step by averaging the posterior over it:
$p(x_{t-1} | x_t) = \mathrm{E}\, q(x_{t-1} | x_t, x_0)$, exactly for bits and by its moments for a Gaussian chain
(`process.reverse_step`). At t = 1 the step is the prediction itself.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl._compat import Tracer
from nedm_ppl.files import shortened
from nedm_ppl.laws._low_rank import LowRankNormal
from nedm_ppl.models.chain._gaussian import GaussianDiffusion
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.networks import TimedNetwork
from nedm_ppl.models.reverse._context import bind, conditionals, held_by_rows

__all__ = [
    "DataPrediction",
    "DriftVariance",
    "Network",
    "NoisePrediction",
    "Parameterization",
    "Prediction",
    "VelocityPrediction",
    "map_network",
]

Network = Callable[[ArrayLike, Array], Array]


class Parameterization(eqx.Module):
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
        """Raise a ValueError where this parameterization means nothing for `process`."""

    @property
    def data_levels(self) -> tuple[float, ...] | None:
        """The gray levels that it predicts; None where it predicts no levels."""
        return None

    def check_data(self, x0: ArrayLike) -> None:
        """Raise a ValueError where data cannot be what this parameterization predicts; any can, unless it says otherwise."""

    def check_num_steps(self, num_steps: int) -> None:
        """Raise a ValueError where a network inside was made for another number of steps than the schedule's, T."""

        def is_timed(node: Any) -> bool:
            return isinstance(node, TimedNetwork)

        for node in filter(is_timed, jax.tree.leaves(self, is_leaf=is_timed)):
            if node.num_steps != num_steps:
                raise ValueError(
                    f"network must be made for the {num_steps} steps of the schedule; got {type(node).__name__} for "
                    f"{node.num_steps}. Build it with num_steps={num_steps}, or use models.respace for a chain with fewer steps."
                )

    def check_network(self, process: DiffusionProcess) -> None:
        """Raise a ValueError where the network takes no datum of the process, or returns another shape than is wanted of it.

        Nothing is computed. A network that holds a batch of contexts is checked when it is applied to as many data."""
        if any(jnp.ndim(node.context) != node.context_dim for node in conditionals(self)):
            return
        shape, wanted = process.event_shape, self.output_shape(process.event_shape)

        def traced(own: Parameterization, t: Array, x: Array) -> None:
            own(process, t, x)

        time, datum = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        try:
            eqx.filter_eval_shape(traced, self, time, datum)
        except Exception as error:  # whatever a user's function raises
            if isinstance(error, ValueError) and str(error).startswith("network must return"):
                raise
            raise ValueError(
                f"network must be a function (t, x) -> array of one datum, from shape {shape} to shape {wanted}, that JAX can "
                f"trace; it raised {type(error).__name__}: {shortened(str(error).strip().partition(chr(10))[0], 200)}"
            ) from error

    def _output(self, process: DiffusionProcess, t: ArrayLike, x: Array) -> Array:
        return map_network(self.network, t, x, process.event_shape, self.output_shape(process.event_shape))


class Prediction(Parameterization):
    """A parameterization that predicts $x_0$: its kernel is the step that the predicted law implies."""

    @abstractmethod
    def data_law(self, process: Any, t: ArrayLike, x: Array) -> Distribution:
        r"""The prediction $\hat p(x_0 | x_t = x)$: of independent coordinates, a correlated Gaussian, or a mixture of such laws."""

    def __call__(self, process: Any, t: ArrayLike, x: Array) -> Distribution:
        return process.reverse_step(t, x, self.data_law(process, t, x))

    def first_law(self, process: Any, x1: Array) -> Distribution:
        r"""The law of $x_0$ given $x_1$ that a quantized first step integrates over the bins of its levels."""
        return self.data_law(process, 1, x1)


class DriftVariance(Parameterization):
    r"""The paper's parameterization, equations 64 and 65.

    $\Sigma = \sigma(z^\Sigma + \mathrm{logit}\, \beta_t)$ and $\mu = (x - z^\mu)(1 - \Sigma) + z^\mu$, per coordinate:
    the step contracts towards $z^\mu$ at a rate set by $z^\Sigma$, and a silent network nearly reverses a chain of noise.

    Args:
        network: `(t, x) -> (2, *event)`: $z^\mu$, then $z^\Sigma$.
        released: Whether to do as the authors' released code and not as the paper:
            $\mu = x \sqrt{1 - \beta_t} + z^\mu \sqrt{\beta_t}$, and $z^\Sigma / \sqrt T$ in place of $z^\Sigma$.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.erasing(10))
        >>> reverse = models.DriftVariance(lambda t, x: jnp.zeros((2, 2)))
        >>> models.Diffusion(process, reverse).kernel(10, jnp.ones(2)).mean
        Array([0., 0.], dtype=float32)
    """

    network: Network
    released: bool = eqx.field(static=True, default=False)

    def __call__(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        z_mean, z_var = pair(process, self._output(process, t, x))
        rate, keep = process.schedule.rates[t - 1], process.schedule.keep[t - 1]
        z_var = z_var / math.sqrt(process.num_steps) if self.released else z_var
        var = jax.nn.sigmoid(z_var + jnp.log(rate) - jnp.log(keep))
        paper = (x - z_mean) * (1.0 - var) + z_mean
        mean = x * jnp.sqrt(keep) + z_mean * jnp.sqrt(rate) if self.released else paper
        return dist.Normal(mean, jnp.sqrt(var)).to_event(process.event_dim)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        require_gaussian(self, process)


class _MomentPrediction(Prediction):
    r"""A network with two outputs per coordinate, $z^m$ for the mean m and $z^V$ for a variance, and one more per direction.

    Without directions the prediction is $\mathcal N(m, \Lambda)$ with $\Lambda = (1 - \bar\alpha_t) \exp z^V$. With r of them,
    $z^U$, it is $\mathcal N(m, \Lambda + U^\top U)$, $U = \sqrt{1 - \bar\alpha_t}\,(z^U + U_0)$. Where U is 0 its gradient is
    0 too, so $U_0$ is small and its rows are distinct: a silent network is near the independent one, and can leave it. With as
    many directions as coordinates the covariance is any, and U upper triangular.
    """

    rank: eqx.AbstractVar[int]

    def __check_init__(self):
        if self.rank < 0:
            raise ValueError(f"rank must be at least 0, the number of directions; got {self.rank}.")

    @abstractmethod
    def _mean(self, process: GaussianDiffusion, t: ArrayLike, x: Array, z_mean: Array) -> Array:
        """m, of x's shape."""

    def data_law(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        return self.law_of(process, t, x, self._output(process, t, x))

    def law_of(self, process: GaussianDiffusion, t: ArrayLike, x: Array, output: Array) -> Distribution:
        r"""The prediction that a network's output of shape (*batch, 2 + rank, *event) stands for."""
        parts = jnp.moveaxis(output, -1 - process.event_dim, 0)
        noise, mean = process.schedule.one_minus_alpha_bar[t], self._mean(process, t, x, parts[0])
        if not self.rank:
            return dist.Normal(mean, jnp.sqrt(noise) * jnp.exp(0.5 * parts[1])).to_event(process.event_dim)
        directions = jnp.moveaxis(parts[2:], 0, -1 - process.event_dim) + directions_at_rest(
            self.rank, process.event_shape
        )
        if self.rank == math.prod(process.event_shape):
            upper = jnp.triu(jnp.ones((self.rank, self.rank))).reshape(self.rank, *process.event_shape)
            directions = directions * upper
        factor = jnp.sqrt(noise) * directions
        return LowRankNormal(mean, noise * jnp.exp(parts[1]), factor, event_dim=process.event_dim)

    def component(
        self, process: GaussianDiffusion, t: ArrayLike, x: Array, output: Array
    ) -> tuple[Distribution, Array]:
        """`law_of`, as a component of a mixture whose weights are the network's."""
        return self.law_of(process, t, x, output), jnp.zeros(())

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2 + self.rank, *event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        require_gaussian(self, process)
        size = math.prod(process.event_shape)
        if self.rank > size:
            raise ValueError(f"rank must be at most {size}, the number of coordinates of a datum; got {self.rank}.")


class DataPrediction(_MomentPrediction):
    r"""Prediction of $x_0$ itself, with a learned variance: $m = z^m$ and $V = (1 - \bar\alpha_t) \exp z^V$.

    Args:
        network: `(t, x) -> (2 + rank, *event)`: $z^m$, then $z^V$, then $z^U$.
        rank: r, the number of directions in which coordinates go together; 0 leaves them independent given $x_t$, and D, the number
            of coordinates, gives the full covariance.

    Raises:
        ValueError: a negative rank, or one above the number of coordinates.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> reverse = models.DataPrediction(lambda t, x: jnp.stack([0.5 * x, jnp.zeros(2)]))
        >>> models.Diffusion(process, reverse).data_law(5, jnp.ones(2)).mean
        Array([0.5, 0.5], dtype=float32)
    """

    network: Network
    rank: int = eqx.field(static=True, default=0)

    def _mean(self, process: GaussianDiffusion, t: ArrayLike, x: Array, z_mean: Array) -> Array:
        return z_mean


class NoisePrediction(_MomentPrediction):
    r"""Prediction of the noise $\epsilon = (x_t - \sqrt{\bar\alpha_t}\, x_0) / \sqrt{1 - \bar\alpha_t}$, with a learned variance.

    $\hat\epsilon = z^m$ and $\mathrm{Var}\,\epsilon = \bar\alpha_t \exp z^V$, so that
    $m = (x_t - \sqrt{1 - \bar\alpha_t}\, \hat\epsilon) / \sqrt{\bar\alpha_t}$ and $V = (1 - \bar\alpha_t) \exp z^V$. Source: Ho et
    al., Denoising Diffusion Probabilistic Models, 2020.

    What is left of the signal divides, and with it every error of the network: along `schedules.cosine(10_000)`, where
    $\bar\alpha_T$ is 2e-11, an untrained one would predict data of size 1e5. So m is bounded, and with it what samples can reach.
    As it stands up to B / 2, and beyond that $m \to \mathrm{sign}(m)\, B\, (1 - B / (4 |m|))$, whose derivative is continuous,
    and 0 nowhere.

    Args:
        network: `(t, x) -> (2 + rank, *event)`: $z^m$, then $z^V$, then $z^U$.
        bound: B, which no predicted mean exceeds, in the units of the data: twice the size of what is to be predicted as it is. The
            default is for data of pooled variance 1. None leaves m as it is, for a network that is trained already.
        rank: r, the number of directions in which coordinates go together; 0 leaves them independent given $x_t$, and D, the number
            of coordinates, gives the full covariance.

    Raises:
        ValueError: a bound that is not positive, a negative rank, or one above the number of coordinates.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> reverse = models.NoisePrediction(lambda t, x: jnp.zeros((2, 2)), bound=6)
        >>> models.Diffusion(process, reverse).data_law(5, jnp.zeros(2)).mean
        Array([0., 0.], dtype=float32)
    """

    network: Network
    bound: float | None = eqx.field(static=True, default=10.0)
    rank: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        if self.bound is not None and not self.bound > 0.0:
            raise ValueError(f"bound must be positive, or None; got {self.bound:g}.")

    def _mean(self, process: GaussianDiffusion, t: ArrayLike, x: Array, z_mean: Array) -> Array:
        alpha_bar, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        mean = (x - jnp.sqrt(noise) * z_mean) / jnp.sqrt(alpha_bar)
        if self.bound is None:
            return mean
        size = jnp.maximum(jnp.abs(mean), 0.5 * self.bound)  # where it is B / 2, not used
        far = jnp.sign(mean) * self.bound * (1.0 - 0.25 * self.bound / size)
        return jnp.where(jnp.abs(mean) <= 0.5 * self.bound, mean, far)

    def check_data(self, x0: ArrayLike) -> None:
        size = float(np.abs(np.asarray(x0)).max())
        if self.bound is not None and not size < self.bound:
            raise ValueError(
                f"x0 must be below the bound of a NoisePrediction, {self.bound:g}, in size; got {size:.3g}. Scale the data, "
                "or build it with a bound of twice their size."
            )

    def check_process(self, process: DiffusionProcess) -> None:
        super().check_process(process)
        last = process.schedule.alpha_bar[-1]
        if not isinstance(last, Tracer) and last == 0.0:
            raise ValueError(
                "schedule must leave some signal at T for a NoisePrediction, which divides by it; got beta_T = 1. "
                "Use last_rate=0.5 in schedules.erasing, or predict the data."
            )


class VelocityPrediction(_MomentPrediction):
    r"""Prediction half way between data and noise, with a learned variance; the best conditioned of the three.

    $m = \sqrt{\bar\alpha_t}\, x_t + \sqrt{1 - \bar\alpha_t}\, z^m$ and $V = (1 - \bar\alpha_t) \exp z^V$: a silent network
    is the exact reverse chain of data that are N(0, I). Up to sign $z^m$ is the velocity of Salimans and Ho, Progressive
    Distillation for Fast Sampling of Diffusion Models, 2022.

    Args:
        network: `(t, x) -> (2 + rank, *event)`: $z^m$, then $z^V$, then $z^U$.
        rank: r, the number of directions in which coordinates go together; 0 leaves them independent given $x_t$, and D, the number
            of coordinates, gives the full covariance.

    Raises:
        ValueError: a negative rank, or one above the number of coordinates.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> reverse = models.VelocityPrediction(lambda t, x: jnp.zeros((2, 2)))  # of data that are N(0, I)
        >>> models.Diffusion(process, reverse, first_step="learned").sample(jax.random.key(0), 5).shape
        (5, 2)
    """

    network: Network
    rank: int = eqx.field(static=True, default=0)

    def _mean(self, process: GaussianDiffusion, t: ArrayLike, x: Array, z_mean: Array) -> Array:
        alpha_bar, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        return jnp.sqrt(alpha_bar) * x + jnp.sqrt(noise) * z_mean


def step_of(reverse: Any, process: Any, t: ArrayLike, x: Array) -> Distribution:
    r"""The step $p(x_{t-1} | x_t = x)$ of a parameterization, or of a callable `(t, x) -> Distribution`."""
    if isinstance(reverse, Parameterization):
        return reverse(process, t, x)
    law = reverse(t, x)
    if law.event_shape != process.event_shape:
        raise ValueError(
            f"reverse must return a distribution of event shape {process.event_shape}; got batch shape {law.batch_shape} and "
            f"event shape {law.event_shape}. Add .to_event({process.event_dim})."
        )
    # A law that does not look at x has no batch axes of its own.
    batch_shape = jnp.broadcast_shapes(law.batch_shape, jnp.shape(x)[: jnp.ndim(x) - process.event_dim])
    return law if law.batch_shape == batch_shape else law.expand(batch_shape)


def first_law(reverse: Any, process: Any, x1: Array) -> Distribution:
    r"""The law of $x_0$ given $x_1$ that a quantized first step integrates over the bins of its levels."""
    return reverse.first_law(process, x1) if isinstance(reverse, Prediction) else step_of(reverse, process, 1, x1)


def directions_at_rest(rank: int, event_shape: tuple[int, ...]) -> Array:
    r"""$U_0$ of a prediction with directions, shape (rank, *event): cosines of length .1, or for the full rank a tenth of I."""
    size = math.prod(event_shape)
    if rank == size:
        rows = 0.1 * np.eye(size)
    else:
        waves = np.cos(np.pi * np.outer(np.arange(rank), np.arange(size) + 0.5) / size)
        rows = 0.1 * waves / np.linalg.norm(waves, axis=1, keepdims=True)
    return jnp.asarray(rows, float).reshape(rank, *event_shape)


def pair(process: GaussianDiffusion, output: Array) -> tuple[Array, Array]:
    """The two parts of a network's output of shape (*batch, 2, *event)."""
    output = jnp.moveaxis(output, -1 - process.event_dim, 0)
    return output[0], output[1]


def map_network(
    network: Network, t: ArrayLike, x: Array, event_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> Array:
    """Apply a per-datum network to every datum of x, with its own context where it holds a batch; (*batch, *output_shape)."""
    batch_shape = jnp.shape(x)[: jnp.ndim(x) - len(event_shape)]
    flat = jnp.reshape(x, (math.prod(batch_shape), *event_shape))
    contexts = held_by_rows(network, batch_shape)
    if contexts is not None:
        output = jax.vmap(lambda context, row: bind(network, context)(t, row))(contexts, flat)
    else:
        output = jax.vmap(network, in_axes=(None, 0))(t, flat) if batch_shape else network(t, x)[None]
    if output.shape[1:] != output_shape:
        raise ValueError(
            f"network must return shape {output_shape} for one datum of shape {event_shape}; got {output.shape[1:]}."
        )
    return jnp.reshape(output, (*batch_shape, *output_shape))


def require_gaussian(parameterization: Parameterization, process: DiffusionProcess) -> None:
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(
            f"{type(parameterization).__name__} needs a GaussianDiffusion; got a {type(process).__name__}. "
            "For bits use FlipRate or BitPrediction."
        )
