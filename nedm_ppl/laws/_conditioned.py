r"""The two laws that Gaussian kernels become when they are multiplied exactly (Section 2.5).

Coordinates that are known make a normal law with point masses in it; an observation of a linear map ties the coordinates
together:

$$\mathcal N(x; \mu, V)\, \mathcal N(y; A x, R) = \mathcal N(y; A \mu, S)\; \mathcal N\big(x;\ \mu + V A^\top S^{-1} (y - A \mu),\
  V - V A^\top S^{-1} A V\big), \qquad S = A V A^\top + R.$$

Neither needs a matrix over the coordinates of x: draws are corrected by Matheron's rule, and the density is Bayes' rule as it
stands above.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

from nedm_ppl._compat import validate_sample
from nedm_ppl.laws._low_rank import LowRankNormal
from nedm_ppl.laws._small_matrices import cholesky, solve, whiten

__all__ = ["LinearGaussian", "normal_log_prob"]


class LinearGaussian(Distribution):
    r"""$\mathcal N(x; \mu, V)\, \mathcal N(y; A x, R / \lambda)$, normalized.

    Args:
        prior: Independent normals (or `PointNormal`) under `to_event`, or a `LowRankNormal`; batch shape (*batch,), event shape
            (*event,).
        matrix: A, shape (*batch, dim, *event) or (dim, *event).
        value: y, shape (*batch, dim) or (dim,).
        covariance: R, shape (*batch, dim, dim) or (dim, dim), positive definite.
        power: $\lambda$, in [0, 1]: the observation to a power, up to a constant.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("prior", "matrix", "value", "covariance", "power")

    def __init__(
        self,
        prior: Distribution,
        matrix: Array,
        value: Array,
        covariance: Array,
        *,
        power: ArrayLike = 1.0,
        validate_args: bool | None = None,
    ):
        # Every parameter carries the batch axes, so that rows of a batch can be taken by their first axis.
        batch, dim = prior.batch_shape, jnp.shape(value)[-1]
        self.prior, self.power = prior, jnp.asarray(power, float)
        self.matrix = jnp.broadcast_to(matrix, (*batch, dim, *prior.event_shape))
        self.value = jnp.broadcast_to(value, (*batch, dim))
        self.covariance = jnp.broadcast_to(covariance, (*batch, dim, dim))
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.prior.support

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Exact draws: those of the prior, each moved by what its own simulated observation lacks of y."""
        key_prior, key_noise = jax.random.split(key)
        x = self.prior.sample(key_prior, sample_shape)
        noise = jax.random.normal(key_noise, (*x.shape[: x.ndim - self.event_dim], self.value.shape[-1]), x.dtype)
        simulated = jnp.sqrt(self.power) * self._image(x) + _apply(cholesky(self.covariance), noise)
        return x + self._gain(jnp.sqrt(self.power) * self.value - simulated)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Exact log density in nats, shape (*sample_shape, *batch), by Bayes' rule."""
        root = jnp.sqrt(self.power)
        likelihood = normal_log_prob(root * (self.value - self._image(jnp.asarray(value))), self.covariance)
        return self.prior.log_prob(value) + likelihood - self.log_evidence

    @property
    def log_evidence(self) -> Array:
        r"""$\log \int \mathcal N(x; \mu, V)\, \mathcal N(\sqrt\lambda\, y; \sqrt\lambda A x, R)\, dx$, nats, shape (*batch,)."""
        return normal_log_prob(jnp.sqrt(self.power) * (self.value - self._image(self.prior.mean)), self._spread)

    @property
    def mean(self) -> Array:
        return self.prior.mean + self._gain(jnp.sqrt(self.power) * (self.value - self._image(self.prior.mean)))

    @property
    def variance(self) -> Any:
        """Marginal variances, shape (*batch, *event)."""
        weighted = jnp.sqrt(self.power) * self._weighted  # A V
        removed = jnp.sum(jnp.square(whiten(cholesky(self._spread), _flat(weighted, self.event_dim))), axis=-2)
        return self.prior.variance - jnp.reshape(removed, jnp.shape(self.prior.variance))

    @property
    def _weighted(self) -> Array:
        """A V, shape (*batch, dim, *event)."""
        if isinstance(self.prior, LowRankNormal):
            return self.prior.covariance_times(self.matrix)
        return self.matrix * jnp.expand_dims(self.prior.variance, -1 - self.event_dim)

    @property
    def _spread(self) -> Array:
        r"""$\lambda A V A^\top + R$, shape (*batch, dim, dim)."""
        image = _flat(self._weighted, self.event_dim) @ jnp.swapaxes(_flat(self.matrix, self.event_dim), -1, -2)
        return jnp.asarray(self.power * image + self.covariance)

    def _image(self, x: Array) -> Array:
        """A x, shape (*batch, dim)."""
        flat = x.reshape(*x.shape[: x.ndim - self.event_dim], -1)
        return _apply(_flat(self.matrix, self.event_dim), flat)

    def _gain(self, residual: Array) -> Array:
        r"""$\sqrt\lambda V A^\top S^{-1}$ of a residual of shape (*batch, dim)."""
        solved = solve(cholesky(self._spread), residual[..., None])[..., 0]
        moved = jnp.sqrt(self.power) * _apply(jnp.swapaxes(_flat(self._weighted, self.event_dim), -1, -2), solved)
        return moved.reshape(*moved.shape[:-1], *self.event_shape)


def normal_log_prob(residual: Array, covariance: Array) -> Array:
    """Log density of a centered Gaussian vector, nats, shape (*batch,); `residual` (*batch, dim)."""
    factor = cholesky(covariance)
    whitened = whiten(factor, residual[..., None])[..., 0]
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
    return -0.5 * jnp.sum(jnp.square(whitened) + jnp.log(2.0 * jnp.pi), axis=-1) - log_det


def _flat(matrix: Array, event_dim: int) -> Array:
    """(*batch, dim, *event) -> (*batch, dim, coordinates)."""
    return matrix.reshape(*matrix.shape[: matrix.ndim - event_dim], -1)


def _apply(matrix: Array, vector: Array) -> Array:
    return (matrix @ vector[..., None])[..., 0]
