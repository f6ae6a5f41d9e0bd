"""Laws of gray levels: a categorical over known values, free or of a Gaussian integrated over their bins."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints
from numpyro.util import is_prng_key

from nedm_ppl._compat import validate_sample

__all__ = ["Levels", "OneOf", "QuantizedNormal", "check_levels"]


class OneOf(constraints._SingletonConstraint):
    """Membership in a finite set of reals; which reals, `Levels.log_prob` checks."""

    is_discrete = True
    event_dim = 0

    def __call__(self, x: ArrayLike) -> Array:
        return jnp.isfinite(jnp.asarray(x))

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.zeros_like(prototype)


class Levels(Distribution):
    """A categorical law over known real values.

    Args:
        logits: Unnormalized log weights, shape (*batch, num_levels).
        levels: The values, increasing, num_levels of them.
    """

    arg_constraints = {"logits": constraints.real_vector}
    support = OneOf()
    has_rsample = False
    pytree_aux_fields = ("levels",)

    def __init__(self, logits: Array, levels: tuple[float, ...], *, validate_args: bool | None = None):
        self.logits, self.levels = logits, tuple(levels)
        super().__init__(batch_shape=jnp.shape(logits)[:-1], validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        assert is_prng_key(key)
        index = jax.random.categorical(key, self.logits, shape=sample_shape + self.batch_shape)
        return jnp.asarray(self.levels)[index]

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Exact log mass in nats; minus infinity off the levels (beyond a hundredth of the smallest gap)."""
        levels, value = jnp.asarray(self.levels), jnp.asarray(value)
        distance = jnp.abs(value[..., None] - levels)
        index = jnp.argmin(distance, axis=-1)
        on_level = jnp.min(distance, axis=-1) <= 0.01 * jnp.min(jnp.diff(levels))
        log_probs = jax.nn.log_softmax(self.logits, axis=-1)
        shape = jnp.broadcast_shapes(index.shape, self.batch_shape)
        log_probs = jnp.broadcast_to(log_probs, (*shape, len(self.levels)))
        chosen = jnp.take_along_axis(log_probs, jnp.broadcast_to(index, shape)[..., None], axis=-1)[..., 0]
        return jnp.where(on_level, chosen, -jnp.inf)

    @property
    def mean(self) -> Array:
        return jax.nn.softmax(self.logits, axis=-1) @ jnp.asarray(self.levels)

    @property
    def variance(self) -> Array:
        squares = jnp.square(jnp.asarray(self.levels) - self.mean[..., None])
        return jnp.sum(jax.nn.softmax(self.logits, axis=-1) * squares, axis=-1)


class QuantizedNormal(Levels):
    """A Gaussian integrated over the bins around known levels; bins meet half way, the outer two are unbounded.

    A value's mass is had from its own bin, whatever the number of levels; `logits` are of all of them.

    Args:
        loc: Means of independent Gaussians, shape (*batch,).
        scale: Their standard deviations, which broadcast with them.
        levels: The gray levels, increasing.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    reparametrized_params = ["loc", "scale"]

    def __init__(
        self, loc: ArrayLike, scale: ArrayLike, levels: tuple[float, ...], *, validate_args: bool | None = None
    ):
        self.loc, self.scale = jnp.broadcast_arrays(loc, scale)
        self.levels = tuple(levels)
        Distribution.__init__(self, batch_shape=jnp.shape(self.loc), validate_args=validate_args)

    @property
    def logits(self) -> Array:  # type: ignore[override]
        """Log masses of all levels, shape (*batch, num_levels)."""
        edges = self._edges()
        return _log_mass(edges[:-1], edges[1:], self.loc[..., None], self.scale[..., None])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        assert is_prng_key(key)
        noise = jax.random.normal(key, sample_shape + self.batch_shape, self.loc.dtype)
        return jnp.asarray(self.levels)[jnp.searchsorted(self._edges()[1:-1], self.loc + self.scale * noise)]

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log mass in nats, exact up to rounding; minus infinity off the levels (beyond a hundredth of the smallest gap)."""
        levels, edges, value = jnp.asarray(self.levels), self._edges(), jnp.asarray(value)
        index = jnp.searchsorted(edges[1:-1], value)
        on_level = jnp.abs(value - levels[index]) <= 0.01 * jnp.min(jnp.diff(levels))
        return jnp.where(on_level, _log_mass(edges[index], edges[index + 1], self.loc, self.scale), -jnp.inf)

    def _edges(self) -> Array:
        centers = jnp.asarray(self.levels)
        inner = 0.5 * (centers[1:] + centers[:-1])
        far = 1e3 * (1.0 + jnp.abs(centers[-1] - centers[0]))  # finite, so that gradients are
        return jnp.concatenate([inner[:1] - far, inner, inner[-1:] + far])


def _log_mass(lower: Array, upper: Array, loc: Array, scale: Array) -> Array:
    """Log mass of a Gaussian between two edges."""
    lower, upper = (lower - loc) / scale, (upper - loc) / scale
    # In the upper tail Phi(b) - Phi(a) = Phi(-a) - Phi(-b), which keeps its digits.
    flip = lower > 0.0
    lower, upper = jnp.where(flip, -upper, lower), jnp.where(flip, -lower, upper)
    log_lower, log_upper = log_ndtr(lower), log_ndtr(upper)
    ratio = jnp.minimum(log_lower - log_upper, -1e-7)
    return log_upper + jnp.log(-jnp.expm1(ratio))


def check_levels(levels: tuple[float, ...]) -> None:
    """Raise a ValueError where `levels` are not two or more increasing values."""
    if len(levels) < 2 or any(not a < b for a, b in pairwise(levels)):
        raise ValueError(f"levels must be at least two increasing values; got {levels}.")
