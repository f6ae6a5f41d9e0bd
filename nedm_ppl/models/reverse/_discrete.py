r"""Reverse kernels of discrete data: bits and gray levels.

Where data are discrete, what a coordinate says about its own $x_0$ is known exactly: the evidence $q(x_t | x_0)$. The
network then only has to say what the *other* coordinates and the context imply, and Bayes' rule does the rest:

$$p(x_0 = \ell | x_t) \propto \exp\big(z_\ell(x_t, t)\big)\; q(x_t | x_0 = \ell) \quad\text{per coordinate}.$$
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.nn import log_sigmoid
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.models.chain._bernoulli import BernoulliDiffusion
from nedm_ppl.models.chain._gaussian import GaussianDiffusion
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._levels import Levels, check_levels
from nedm_ppl.models.reverse._mixture import BitMixture
from nedm_ppl.models.reverse._reverse import Network, Parameterization, Prediction, map_network, require_gaussian

__all__ = ["BitPrediction", "FlipRate", "LevelPrediction", "log_frequencies", "require_bernoulli"]


class FlipRate(Parameterization):
    r"""The paper's binomial kernel, $p(x_{t-1} | x_t) = \mathrm{Bernoulli}(f_b(x_t, t))$, its rate given directly.

    $\mathrm{logit} f_b = z + \mathrm{logit}\, q(x_t = 1 | x_{t-1} = x)$: a silent network is the forward kernel reversed
    about the stationary law.

    Args:
        network: `(t, x) -> event`: z.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.BernoulliDiffusion(3, models.schedules.erasing(10))
        >>> reverse = models.FlipRate(lambda t, x: jnp.zeros(3))
        >>> models.Diffusion(process, reverse).kernel(10, jnp.array([0.0, 1.0, 1.0])).mean
        Array([0.5, 0.5, 0.5], dtype=float32)
    """

    network: Network

    def __call__(self, process: BernoulliDiffusion, t: ArrayLike, x: Array) -> Distribution:
        logits = process.step_logits(t, x) + self._output(process, t, x)
        return dist.BernoulliLogits(logits).to_event(process.event_dim)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return event_shape

    def check_process(self, process: DiffusionProcess) -> None:
        require_bernoulli(self, process)


class BitPrediction(Prediction):
    r"""Prediction of $x_0$ for bits.

    The kernel averages the posterior over the predicted bit,
    $p(x_{t-1} | x_t) = \sum_{b} p(x_0 = b | x_t)\, q(x_{t-1} | x_t, x_0 = b)$, in log space throughout. At t = 1 it is the
    prediction itself.

    With `base` a silent network is the exact posterior under a mixture of independent bits: its context is added to z, and
    the network is shown the probability of a 1 that the mixture believes in beside $x_t$. It has only the rest left to add.

    Args:
        network: `(t, x) -> event`: z, the context's log odds of a 1. With `base` its x is of shape (*event, 2): beliefs,
            then $x_t$.
        evidence: Whether the bit's own exact evidence is added to z; without it z alone is the log odds.
        base: A law of the data, roughly (`fit_bit_mixture`), trained with the network; None leaves it out.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.BernoulliDiffusion(3, models.schedules.erasing(10))
        >>> reverse = models.BitPrediction(lambda t, x: jnp.zeros(3))  # any bit is as likely as the other
        >>> models.Diffusion(process, reverse).data_law(10, jnp.array([0.0, 1.0, 1.0])).mean
        Array([0.5, 0.5, 0.5], dtype=float32)
    """

    network: Network
    evidence: bool = eqx.field(static=True, default=True)
    base: BitMixture | None = None

    def data_law(self, process: BernoulliDiffusion, t: ArrayLike, x: Array) -> Distribution:
        r"""$p(x_0 | x_t)$, independent bits."""
        return dist.BernoulliLogits(self.data_logits(process, t, x)).to_event(process.event_dim)

    def component(
        self, process: BernoulliDiffusion, t: ArrayLike, x: Array, output: Array
    ) -> tuple[Distribution, Array]:
        r"""The law of a component with this output for its log odds, and the log of what it expected of $x_t$, up to a constant."""
        if self.evidence:
            return bits_given(process, t, x, output)
        return dist.BernoulliLogits(output).to_event(process.event_dim), jnp.zeros(())

    def data_logits(self, process: BernoulliDiffusion, t: ArrayLike, x: Array) -> Array:
        r"""Log odds of $p(x_0 = 1 | x_t)$, per bit."""
        known = process.evidence(t, x) if self.evidence else jnp.zeros(())
        if self.base is None:
            return self._output(process, t, x) + known
        known = known + self.base.context(process, t, x)
        seen = jnp.stack([jax.nn.sigmoid(known), jnp.broadcast_to(x, known.shape)], axis=-1)
        shape = process.event_shape
        return map_network(self.network, t, seen, (*shape, 2), shape) + known

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return event_shape

    def check_process(self, process: DiffusionProcess) -> None:
        require_bernoulli(self, process)
        if self.base is not None and self.base.logits.shape[1:] != process.event_shape:
            raise ValueError(
                f"base must be a mixture of bits of shape {process.event_shape}; got {self.base.logits.shape[1:]}."
            )


def bits_given(process: BernoulliDiffusion, t: ArrayLike, x: Array, logits: Array) -> tuple[Distribution, Array]:
    r"""Independent bits given $x_t$, and the log of what they expected of it, up to a constant, nats, shape (*batch,).

    Args:
        process: Knows the noise.
        t: Time, in 1..T.
        x: State $x_t$, shape (*batch, *event).
        logits: Log odds of a 1 before $x_t$ is seen.
    """
    ratio = process.evidence(t, x)
    expected = jnp.logaddexp(log_sigmoid(logits) + ratio, log_sigmoid(-logits))
    # The ratio's lower half, q(x_t | 0), is the same for all logits.
    law = dist.BernoulliLogits(logits + ratio).to_event(process.event_dim)
    return law, jnp.sum(expected, axis=tuple(range(-process.event_dim, 0)))


class LevelPrediction(Prediction):
    r"""Prediction of $x_0$ among known gray levels, for a Gaussian chain.

    For t >= 2 the Gaussian step has the moments of the predicted categorical; the `quantized` first step is the
    categorical itself, so that bits per pixel are honest without dequantization.

    With `base` the logits are $z + b + \log q(x_t | \ell)$, and a silent network is the exact posterior of independent
    coordinates whose levels have log weights b. The network is then shown what that independent model believes, the
    probability of every level, beside $x_t$: it has only context left to add.

    Args:
        network: `(t, x) -> (*event, num_levels)`: z, the context's log weights. With `base` its x is of shape
            (*event, num_levels + 1): beliefs, then $x_t$.
        levels: The values a coordinate of $x_0$ can take, in the units of the data, increasing.
        base: b, log weights of the levels of every coordinate, shape (*event, num_levels), trained with the network
            (log frequencies are a good start: `log_frequencies`); None leaves it out.
        evidence: Whether the coordinate's own exact evidence is added to z.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(4, models.schedules.log_snr_linear(10))
        >>> reverse = models.LevelPrediction(lambda t, x: jnp.zeros((4, 3)), levels=[-1, 0, 1])
        >>> diffusion = models.Diffusion(process, reverse, first_step="quantized")
        >>> diffusion.first_kernel(jnp.array([-1.0, 0.0, 1.0, 1.0])).mean.round(2)
        Array([-1.,  0.,  1.,  1.], dtype=float32)
    """

    network: Network
    base: Array | None
    levels: tuple[float, ...] = eqx.field(static=True)
    evidence: bool = eqx.field(static=True)

    def __init__(
        self, network: Network, levels: Sequence[float] | ArrayLike, *, base: Array | None = None, evidence: bool = True
    ):
        self.network = network
        self.levels = tuple(np.asarray(levels, float).tolist())
        self.base = base
        self.evidence = evidence

    def __check_init__(self):
        check_levels(self.levels)

    @property
    def data_levels(self) -> tuple[float, ...]:
        return self.levels

    def data_logits(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Array:
        r"""Unnormalized $\log p(x_0 = \ell | x_t)$ per coordinate, shape (*batch, *event, num_levels)."""
        known = process.evidence(t, x, jnp.asarray(self.levels)) if self.evidence else 0.0
        if self.base is None:
            return self._output(process, t, x) + known
        known = known + self.base
        beliefs = jnp.broadcast_to(jax.nn.softmax(known, axis=-1), (*x.shape, len(self.levels)))
        seen = jnp.concatenate([beliefs, x[..., None]], axis=-1)
        shape = process.event_shape
        return map_network(self.network, t, seen, (*shape, len(self.levels) + 1), self.output_shape(shape)) + known

    def component(
        self, process: GaussianDiffusion, t: ArrayLike, x: Array, output: Array
    ) -> tuple[Distribution, Array]:
        r"""The law of a component with this output, and the log of what it expected of $x_t$, up to a constant."""
        prior = output if self.base is None else output + self.base
        if not self.evidence:
            return Levels(prior, self.levels).to_event(process.event_dim), jnp.zeros(())
        joint = jax.nn.log_softmax(prior) + process.evidence(t, x, jnp.asarray(self.levels))
        expected = jnp.sum(logsumexp(joint, axis=-1), axis=tuple(range(-process.event_dim, 0)))
        return Levels(joint, self.levels).to_event(process.event_dim), expected

    def data_law(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        r"""$p(x_0 | x_t)$, a product of categoricals over the gray levels."""
        return Levels(self.data_logits(process, t, x), self.levels).to_event(process.event_dim)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, len(self.levels))

    def check_process(self, process: DiffusionProcess) -> None:
        require_gaussian(self, process)
        expected = self.output_shape(process.event_shape)
        if self.base is not None and self.base.shape != expected:
            raise ValueError(
                f"base must have shape {expected}, log weights for every coordinate; got {self.base.shape}."
            )


def log_frequencies(data: ArrayLike, levels: Sequence[float] | ArrayLike, *, pseudo_count: float = 0.3) -> Array:
    """Log frequencies of the levels at every coordinate, shape (*event, num_levels), centered over levels.

    Args:
        data: Training data, shape (N, *event); every value is taken as the nearest level.
        levels: The gray levels.
        pseudo_count: Added to every count.
    """
    values = jnp.asarray(levels)
    index = jnp.argmin(jnp.abs(jnp.asarray(data)[..., None] - values), axis=-1)
    counts = pseudo_count + jnp.sum(jax.nn.one_hot(index, values.size), axis=0)
    logits = jnp.log(counts)
    return logits - jnp.mean(logits, axis=-1, keepdims=True)


def require_bernoulli(parameterization: Parameterization, process: DiffusionProcess) -> None:
    if not isinstance(process, BernoulliDiffusion):
        raise ValueError(
            f"{type(parameterization).__name__} needs a BernoulliDiffusion; got a {type(process).__name__}. "
            "For real data use DataPrediction, for gray levels LevelPrediction."
        )
