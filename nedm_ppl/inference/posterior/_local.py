r"""A law of independent normals times an r without a closed form: a local Gaussian approximation (Laplace) at every particle.

The product $p(x)\, r(x)^\lambda$ is climbed by damped Newton steps, which never overshoot: a step that does not go up is taken
back, and the next one is shorter. Where a datum has few coordinates its modes are found from several starts, each with the
covariance that its curvature implies. Larger data are moved along one direction, $\Sigma\, \nabla \log r$ (equation 61), as
far as it goes up.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.inference.posterior._proposals import NormalModes
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.laws._small_matrices import cholesky, inverse_factor, positive_part, solve

__all__ = ["MOST_COORDINATES", "Tilted", "modes", "moved"]

MOST_COORDINATES = 16  # for whose Hessians Newton's method is used
STARTS, STEPS, LINE_STEPS = 4, 12, 6
LEAST_PRECISION = 0.5  # of a mode in any direction, in units of the law's
WIDENED = 1.2  # variances of a mode, beyond those of its curvature: tails


class Tilted(NamedTuple):
    r"""A law multiplied by r.

    Attributes:
        law: $p\, r / \int p\, r$, or near it.
        log_mean: $\log \int p\, r$, or near it, nats, shape (*batch,).
    """

    law: Distribution
    log_mean: Array


def modes(law: Distribution, log_r: Callable[[Array], Array], power: ArrayLike = 1.0) -> Tilted:
    """The modes of the product, from `STARTS` starts, as a mixture of Gaussians.

    Args:
        law: Independent normals, batch shape (*batch,), event shape (*event,), of `MOST_COORDINATES` at most.
        log_r: log r of one datum.
        power: lambda.
    """
    shape, batch_shape = law.event_shape, law.batch_shape
    size = int(np.prod(shape))
    starts = np.concatenate([np.zeros((1, size)), 1.5 * np.random.default_rng(0).normal(size=(STARTS - 1, size))])

    def one(mean: Array, scale: Array) -> tuple[Array, Array, Array, Array]:
        def height(z: Array) -> Array:
            return -0.5 * jnp.sum(jnp.square(z)) + power * log_r((mean + scale * z).reshape(shape))

        # At a point the start is the point.
        z, top, precision = jax.vmap(lambda start: _climb(height, jnp.where(scale > 0.0, start, 0.0)))(
            jnp.asarray(starts, mean.dtype)
        )
        covariance = WIDENED * _inverse(precision)
        log_det = -2.0 * jnp.sum(jnp.log(jnp.diagonal(cholesky(precision), axis1=-2, axis2=-1)), axis=-1)
        log_weights = jnp.where(_is_new(z, precision) & jnp.isfinite(top), top + 0.5 * log_det, -jnp.inf)
        total = logsumexp(log_weights)
        lost = ~jnp.isfinite(total)
        log_weights = jnp.where(lost, jnp.where(jnp.arange(STARTS) == 0, 0.0, -jnp.inf), log_weights)
        eye = jnp.eye(size, dtype=mean.dtype)
        return (
            log_weights,
            jnp.where(lost, 0.0, z),
            jnp.where(lost, eye, covariance),
            jnp.where(lost, power * log_r(mean.reshape(shape)), total),
        )

    num = int(np.prod(batch_shape))
    mean, scale = (
        jnp.broadcast_to(part, (*batch_shape, *shape)).reshape(num, size) for part in (law.mean, jnp.sqrt(law.variance))
    )
    found = jax.vmap(one)(mean, scale)
    log_weights, z, covariance, total = (part.reshape(*batch_shape, *part.shape[1:]) for part in found)
    return Tilted(
        NormalModes(law, jnp.maximum(log_weights, -1e4 + jnp.max(log_weights, -1, keepdims=True)), z, covariance), total
    )


def moved(law: Distribution, log_r: Callable[[Array], Array], power: ArrayLike = 1.0) -> Tilted:
    """The law with its mean moved along its own covariance times the gradient of log r, to the top of the product on that line."""
    shape, batch_shape = law.event_shape, law.batch_shape

    def one(mean: Array, variance: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(log_r)(mean)
        direction = jnp.where(jnp.isfinite(slope), variance * slope, 0.0)
        square = jnp.sum(
            jnp.where(variance > 0.0, jnp.square(direction) / jnp.where(variance > 0.0, variance, 1.0), 0.0)
        )
        usable = square > 0.0
        square = jnp.where(usable, square, 1.0)

        def height(s: Array) -> Array:
            return -0.5 * jnp.square(s[0]) + power * log_r(mean + s[0] / jnp.sqrt(square) * direction)

        s, top, precision = _climb(height, jnp.zeros(1, mean.dtype), LINE_STEPS)
        good = usable & jnp.isfinite(top)
        log_mean = jnp.where(good, top - 0.5 * jnp.log(precision[0, 0]), power * value)
        return mean + jnp.where(good, s[0] / jnp.sqrt(square), 0.0) * direction, log_mean

    num = int(np.prod(batch_shape))
    mean, variance = (
        jnp.broadcast_to(part, (*batch_shape, *shape)).reshape(num, *shape) for part in (law.mean, law.variance)
    )
    loc, log_mean = jax.vmap(one)(mean, variance)
    normal = PointNormal(loc.reshape(*batch_shape, *shape), jnp.sqrt(variance).reshape(*batch_shape, *shape))
    return Tilted(normal.to_event(len(shape)), log_mean.reshape(batch_shape))


def _climb(height: Callable[[Array], Array], start: Array, steps: int = STEPS) -> tuple[Array, Array, Array]:
    """A maximum of a function by damped Newton steps: the place, the value, and minus the curvature there, positive definite."""
    eye = jnp.eye(start.shape[0], dtype=start.dtype)

    def curvature(z: Array) -> Array:
        matrix = -jax.hessian(height)(z)
        return jnp.where(jnp.all(jnp.isfinite(matrix)), matrix, eye)

    def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        z, value, damping = state
        slope = jax.grad(height)(z)
        slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
        matrix = curvature(z)
        stiff = matrix + (damping * (1.0 + jnp.max(jnp.abs(jnp.diagonal(matrix))))) * eye
        new = z + solve(cholesky(stiff), slope[:, None])[:, 0]
        new_value = height(new)
        better = new_value > jnp.where(jnp.isnan(value), -jnp.inf, value)
        z, value = jnp.where(better, new, z), jnp.where(better, new_value, value)
        return (z, value, jnp.where(better, 0.1 * damping, 10.0 * damping)), None

    (z, value, _), _ = jax.lax.scan(step, (start, height(start), jnp.asarray(1e-2, start.dtype)), None, steps)
    matrix = curvature(z)
    # Where the curvature is not that of a maximum (a flat side, a kink, a ridge), near the law's own, which is 1 in its units.
    least = LEAST_PRECISION * eye
    return z, value, positive_part(matrix - least) + least


def _inverse(matrix: Array) -> Array:
    factor = inverse_factor(matrix)
    return factor @ jnp.swapaxes(factor, -1, -2)


def _is_new(z: Array, precision: Array) -> Array:
    """Whether a mode is none of those before it, by its own curvature."""
    difference = z[:, None] - z[None]
    square = jnp.einsum("ijk,ikl,ijl->ij", difference, precision, difference)
    before = jnp.tril(jnp.ones(square.shape, bool), -1)
    return ~jnp.any(before & (square < 0.25), axis=1)
