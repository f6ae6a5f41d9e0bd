r"""Correlated steps without training: the covariance of $x_0$ given $x_t$ from the Jacobian of a model's own mean.

Where m is the mean of $x_0$ given $x_t$, the covariance is its derivative,

$$\mathrm{Cov}(x_0 | x_t) = \frac{1 - \bar\alpha_t}{\sqrt{\bar\alpha_t}}\, \frac{\partial m}{\partial x_t},$$

Tweedie's formula once more. A trained mean is near that, so its Jacobian says how coordinates go together, which a kernel of
independent coordinates leaves out. The gap between the bound and the likelihood then closes an order faster in 1/T.

The Jacobian of a network is not quite symmetric and not quite positive. It is symmetrized, and a pivot that is not positive is
raised to rounding. With `rank` it is looked at along a few directions alone, found by subspace iteration from smooth ones, and
the variances that the model states itself are kept: what the directions leave of them stays independent.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.arguments import as_count, check_kind
from nedm_ppl.laws._low_rank import LowRankNormal
from nedm_ppl.laws._small_matrices import cholesky, whiten
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._gaussian import GaussianDiffusion
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._reverse import Network, Parameterization, Prediction, first_law, require_gaussian, step_of

__all__ = ["LARGEST_FULL", "JacobianCovariance", "correlated"]

LARGEST_FULL = 32  # coordinates up to which the whole covariance is the default
RANK = 8  # the default above
ITERATIONS = 3  # of subspace iteration


class JacobianCovariance(Prediction):
    r"""A reverse kernel whose prediction of $x_0$ is Gaussian, with the mean of another and the covariance of that mean's Jacobian.

    Where nothing is left of $x_0$ in $x_t$ ($\bar\alpha_t = 0$) the mean does not move, and the other's own variances are kept.

    Args:
        reverse: The other kernel, of a Gaussian chain: a parameterization, or a callable `(t, x) -> Distribution`.
        rank: Number of directions; None takes the full covariance, D Jacobian products a step and $O(D^3)$ more.
    """

    reverse: Parameterization | Callable[[ArrayLike, Array], Distribution]
    rank: int | None = eqx.field(static=True)

    def __init__(self, reverse: Parameterization | Callable[[ArrayLike, Array], Distribution], rank: int | None = None):
        self.reverse, self.rank = reverse, rank

    @property  # type: ignore[misc]
    def network(self) -> Network:  # type: ignore[override]
        """The other kernel's network."""
        assert isinstance(self.reverse, Parameterization)
        return self.reverse.network

    @property
    def data_levels(self) -> tuple[float, ...] | None:
        return self.reverse.data_levels if isinstance(self.reverse, Parameterization) else None

    def data_law(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> Distribution:
        (mean, variance), push = jax.linearize(lambda x: self._moments(process, t, x), x)
        event_dim, event_shape = process.event_dim, process.event_shape
        ratio, is_left = process.covariance_ratio(t)

        def covariance_times(rows: Array) -> Array:
            """The rows' Jacobian products times the ratio, shape (*batch, n, *event) as `rows`."""
            axis = -1 - event_dim
            return ratio * jax.vmap(lambda row: push(row)[0], in_axes=axis, out_axes=axis)(rows)

        size, batch = math.prod(event_shape), x.shape[: x.ndim - event_dim]
        if self.rank is None or self.rank >= size:
            basis = jnp.broadcast_to(jnp.eye(size).reshape(size, *event_shape), (*batch, size, *event_shape))
            own, factor = whole(covariance_times(basis).reshape(*batch, size, size))
            own = own.reshape(*batch, *event_shape)
        else:
            factor, rest = leading(covariance_times, self.rank, batch, event_shape, variance)
            least = 0.5 * jnp.minimum(variance, rest.reshape(*batch, *(1,) * event_dim))
            own = jnp.maximum(variance - jnp.sum(jnp.square(factor), axis=-2).reshape(variance.shape), least)
        own = jnp.where(is_left, own, variance)
        factor = jnp.where(is_left, factor, 0.0).reshape(*batch, -1, *event_shape)
        return LowRankNormal(mean, own, factor, event_dim=event_dim)

    def _moments(self, process: GaussianDiffusion, t: ArrayLike, x: Array) -> tuple[Array, Array]:
        if isinstance(self.reverse, Prediction):
            law = self.reverse.data_law(process, t, x)
        else:
            law = process.implied_data_law(t, x, step_of(self.reverse, process, t, x))
        return jnp.broadcast_to(law.mean, x.shape), jnp.broadcast_to(law.variance, x.shape)

    def first_law(self, process: GaussianDiffusion, x1: Array) -> Distribution:
        return first_law(self.reverse, process, x1)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        assert isinstance(self.reverse, Parameterization)
        return self.reverse.output_shape(event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        require_gaussian(self, process)
        if isinstance(self.reverse, Parameterization):
            self.reverse.check_process(process)

    def check_data(self, x0: ArrayLike) -> None:
        if isinstance(self.reverse, Parameterization):
            self.reverse.check_data(x0)


def correlated(diffusion: Diffusion, rank: int | None = None) -> Diffusion:
    r"""The same model with steps that know how coordinates go together, from the Jacobian of its own mean; nothing is trained.

    The mean of every step stays what it was. A step costs a few Jacobian products more: D for the full covariance, about
    4 rank otherwise. A quantized first step stays as it is.

    Args:
        diffusion: A trained model of a Gaussian chain, gray levels included.
        rank: Number of directions; D is the full covariance. By default that for data of at most 32 coordinates, and 8 above.

    Raises:
        ValueError: a chain over bits, or a rank above the number of coordinates.
    """
    check_kind("diffusion", diffusion, Diffusion)
    if diffusion.process.stationary().is_discrete:
        raise ValueError(
            "diffusion must be of a Gaussian chain to get correlated steps by a Jacobian; bits have none. Use a mixture of bits."
        )
    size = math.prod(diffusion.event_shape)
    rank = (size if size <= LARGEST_FULL else RANK) if rank is None else as_count("rank", rank)
    if rank > size:
        raise ValueError(f"rank must be at most {size}, the number of coordinates of a datum; got {rank}.")
    reverse = JacobianCovariance(diffusion.reverse, None if rank == size else rank)
    return Diffusion(
        diffusion.process,
        reverse,
        first_step=diffusion.first_step,
        levels=diffusion.levels,
        units=diffusion.units,
        columns=diffusion.columns,
    )


def whole(covariance: Array) -> tuple[Array, Array]:
    """A covariance near this matrix, shape (*batch, D, D), as a diagonal, (*batch, D), and directions, (*batch, D, D)."""
    covariance = 0.5 * (covariance + jnp.swapaxes(covariance, -1, -2))
    least = jnp.finfo(covariance.dtype).eps ** 0.5
    diagonal = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    # No coordinate is more certain than by this share of the largest variance.
    largest = jnp.maximum(jnp.max(diagonal, axis=-1, keepdims=True), least)
    own = least * jnp.maximum(diagonal, least * largest)
    eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    rest = covariance + eye * (jnp.maximum(diagonal, 0.0) - diagonal - own)[..., None]
    return own, jnp.swapaxes(cholesky(rest), -1, -2)


def leading(
    covariance_times: Callable[[Array], Array],
    rank: int,
    batch_shape: tuple[int, ...],
    event_shape: tuple[int, ...],
    variance: Array,
) -> tuple[Array, Array]:
    """Directions in which a covariance exceeds the mean of what it is in all others, and that mean.

    Of the space that smooth waves are taken to by a few products with it (subspace iteration, Rayleigh and Ritz).

    Args:
        covariance_times: Its products with rows of shape (*batch, n, *event).
        rank: Number of directions.
        batch_shape: The batch.
        event_shape: Shape of one datum.
        variance: Its diagonal, shape (*batch, *event).

    Returns:
        Shapes (*batch, rank, D) and (*batch,).
    """
    size = math.prod(event_shape)
    waves = np.cos(np.pi * np.outer(np.arange(rank), np.arange(size) + 0.5) / size)

    def times(rows: Array) -> Array:
        return covariance_times(rows.reshape(*rows.shape[:-1], *event_shape)).reshape(rows.shape)

    rows = orthonormal(jnp.broadcast_to(jnp.asarray(waves, variance.dtype), (*batch_shape, rank, size)))
    for _ in range(ITERATIONS):
        rows = orthonormal(times(rows))
    inner = jnp.matmul(times(rows), jnp.swapaxes(rows, -1, -2), precision="highest")
    inner = 0.5 * (inner + jnp.swapaxes(inner, -1, -2))
    total = jnp.sum(variance.reshape(*batch_shape, size), axis=-1) - jnp.trace(inner, axis1=-2, axis2=-1)
    rest = jnp.maximum(total / (size - rank), 0.0)
    excess = inner - rest[..., None, None] * jnp.eye(rank, dtype=inner.dtype)
    return jnp.matmul(jnp.swapaxes(cholesky(excess), -1, -2), rows, precision="highest"), rest


def orthonormal(rows: Array) -> Array:
    """Rows of shape (*batch, n, D) that span the same space and are orthonormal: Cholesky's of their products, twice."""
    tiny = jnp.finfo(rows.dtype).tiny ** 0.5 * jnp.eye(rows.shape[-2], dtype=rows.dtype)
    for _ in range(2):
        rows = whiten(cholesky(jnp.matmul(rows, jnp.swapaxes(rows, -1, -2), precision="highest") + tiny), rows)
    return rows
