"""Independent normals, some of which are points: what is left of normals when some coordinates are known."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

from nedm_ppl._compat import validate_sample

__all__ = ["PointNormal"]


class PointNormal(Distribution):
    """Independent normals, of which those with scale 0 are point masses.

    `log_prob` is a density over the other coordinates and a mass at the points: minus infinity anywhere else.
    """

    arg_constraints: dict[str, Any] = {"loc": constraints.real, "scale": constraints.nonnegative}
    support = constraints.real

    def __init__(self, loc: ArrayLike, scale: ArrayLike, *, validate_args: bool | None = None):
        self.loc, self.scale = jnp.broadcast_arrays(loc, scale)
        super().__init__(batch_shape=self.loc.shape, validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.loc + self.scale * jax.random.normal(key, (*sample_shape, *self.batch_shape), self.loc.dtype)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        point = self.scale == 0.0
        z = (value - self.loc) / jnp.where(point, 1.0, self.scale)
        density = -0.5 * (jnp.square(z) + jnp.log(2.0 * jnp.pi)) - jnp.log(jnp.where(point, 1.0, self.scale))
        return jnp.where(point, jnp.where(value == self.loc, 0.0, -jnp.inf), density)

    @property
    def mean(self) -> Array:
        return self.loc

    @property
    def variance(self) -> Array:
        return jnp.square(self.scale)
