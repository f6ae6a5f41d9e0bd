r"""Gaussians whose covariance is a diagonal and a few directions, $\Lambda + U^\top U$, and what is closed among them.

With $x = \mu + \sqrt\Lambda\, \epsilon + U^\top z$, $\epsilon$ and z standard normal, everything is worked by the small matrix

$$C = I + U \Lambda^{-1} U^\top, \qquad
  \Sigma^{-1} = \Lambda^{-1} - \Lambda^{-1} U^\top C^{-1} U \Lambda^{-1}, \qquad \log|\Sigma| = \log|\Lambda| + \log|C|,$$

in $O(D r^2)$ for rank r. With r = D the covariance is any; the diagonal then only has to be below its least eigenvalue. The
density is that of the diagonal times a factor that is near 1 where the directions are short, so that differences from another
law's density keep their digits. Given z the coordinates are independent, so that whatever observes them one by one leaves a
law of the same kind.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
    kl_divergence,
)

from nedm_ppl._compat import validate_sample
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.laws._small_matrices import cholesky, inverse_factor, solve, whiten
from nedm_ppl.laws._unwrap import unwrap

__all__ = ["LowRankNormal", "as_low_rank"]


class LowRankNormal(Distribution):
    r"""$\mathcal N(\mu,\ \Lambda + U^\top U)$ over data of any shape.

    Args:
        loc: $\mu$, shape (*batch, *event).
        diagonal: $\Lambda$, variances, shape (*batch, *event); a coordinate of variance 0, in every direction too, is a point.
        factor: U, shape (*batch, rank, *event). Rank 0 is allowed.
        event_dim: Number of axes of one datum.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("loc", "diagonal", "factor")

    def __init__(
        self,
        loc: Array,
        diagonal: ArrayLike,
        factor: Array,
        *,
        event_dim: int = 1,
        validate_args: bool | None = None,
    ):
        batch = jnp.broadcast_shapes(
            jnp.shape(loc)[: jnp.ndim(loc) - event_dim],
            jnp.shape(diagonal)[: max(0, jnp.ndim(diagonal) - event_dim)],
            jnp.shape(factor)[: jnp.ndim(factor) - event_dim - 1],
        )
        event = jnp.shape(loc)[jnp.ndim(loc) - event_dim :]
        # Every parameter carries the batch axes, so that rows of a batch can be taken by their first axis.
        self.loc, self.diagonal = (jnp.broadcast_to(part, (*batch, *event)) for part in (loc, diagonal))
        self.factor = jnp.broadcast_to(factor, (*batch, jnp.shape(factor)[-1 - event_dim], *event))
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def rank(self) -> int:
        """r, the number of directions."""
        return self.factor.shape[-1 - self.event_dim]

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Exact draws, shape (*sample_shape, *batch, *event)."""
        key_own, key_shared = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        own = jax.random.normal(key_own, (*shape, *self.event_shape), self.loc.dtype)
        shared = jax.random.normal(key_shared, (*shape, self.rank), self.loc.dtype)
        return self.loc + jnp.sqrt(self.diagonal) * own + self.along(shared)

    rsample = sample

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Exact log density in nats, shape (*sample_shape, *batch)."""
        own = self.independent.log_prob(value)
        return jnp.sum(own, axis=tuple(range(-self.event_dim, 0))) + self.coupling(value)

    @property
    def independent(self) -> Distribution:
        r"""$\mathcal N(\mu, \Lambda)$, coordinate by coordinate: the law without its directions."""
        return PointNormal(self.loc, jnp.sqrt(self.diagonal))

    def coupling(self, value: ArrayLike) -> Array:
        r"""What the directions add to the log density of $\mathcal N(\mu, \Lambda)$, nats, shape (*sample_shape, *batch)."""
        small = self._small
        along = self._rows(jnp.asarray(value) - self.loc, self._weighted)
        whitened = whiten(small, along[..., None])[..., 0]
        return 0.5 * jnp.sum(jnp.square(whitened), axis=-1) - log_det(small)

    @property
    def mean(self) -> Array:
        return self.loc

    @property
    def variance(self) -> Array:
        """Marginal variances, shape (*batch, *event)."""
        return self.diagonal + jnp.sum(jnp.square(self.factor), axis=-1 - self.event_dim)

    def entropy(self) -> Array:
        """Exact differential entropy in nats, shape (*batch,)."""
        own = 0.5 * jnp.log(2.0 * math.pi * math.e * self.diagonal)
        return jnp.sum(own, axis=tuple(range(-self.event_dim, 0))) + log_det(self._small)

    def along(self, z: Array) -> Array:
        r"""$U^\top z$ for z of shape (..., rank); shape (..., *event)."""
        weights = z.reshape(*z.shape, *(1,) * self.event_dim)
        return jnp.sum(weights * self.factor, axis=-1 - self.event_dim)

    def driven(self, noise: Array) -> Array:
        r"""The value that standard normal noise stands for, $\mu + R\, \epsilon$ with $R R^\top = \Sigma$; shape that of the noise.

        With $W = \Lambda^{-1/2} U^\top$ and $L L^\top = C$, $R = \Lambda^{1/2} (I + W (I + L)^{-1} W^\top)$."""
        scale = jnp.sqrt(self.diagonal)
        rows = self._weighted * jnp.expand_dims(scale, -1 - self.event_dim)
        eye = jnp.eye(self.rank, dtype=self.loc.dtype)
        z = whiten(eye + self._small, self._rows(noise, rows)[..., None])[..., 0]
        weights = z.reshape(*z.shape, *(1,) * self.event_dim)
        return self.loc + scale * (noise + jnp.sum(weights * rows, axis=-1 - self.event_dim))

    def covariance_times(self, rows: Array) -> Array:
        r"""$a^\top \Sigma$ for every row a; shape (*batch, n, *event), as `rows`."""
        return self._diagonal_row * rows + self._mixed(self._inner(rows, self.factor), self.factor)

    def precision_times(self, rows: Array) -> Array:
        r"""$a^\top \Sigma^{-1}$ for every row a; shape (*batch, n, *event), as `rows`."""
        weighted = self._weighted
        solved = solve(self._small, jnp.swapaxes(self._inner(rows, weighted), -1, -2))
        return self._inverse_row * rows - self._mixed(jnp.swapaxes(solved, -1, -2), weighted)

    def observed(self, value: Array, precision: Array) -> tuple["LowRankNormal", Array]:
        r"""The law given independent observations $y_i = x_i + $ noise of every coordinate, and what it expected of them.

        Args:
            value: y, shape (*event,) or with batch axes.
            precision: One over the noise's variance: 0 where nothing is seen, infinite where x is known.

        Returns:
            The conditional law, and $\log \mathcal N(y; \mu, \Sigma + \mathrm{noise})$ over what is seen, nats, shape (*batch,). A
            point that is seen is left out of it.
        """
        seen, known = precision > 0.0, jnp.isinf(precision)
        noise = jnp.where(seen & ~known, 1.0 / jnp.where(seen & ~known, precision, 1.0), 0.0)
        total = self.diagonal + noise
        counts = seen & (total > 0.0)
        # The weights of what is seen of the noise-free diagonal, and the law of z given them.
        usable = jnp.where(counts, 1.0 / jnp.where(counts, total, 1.0), 0.0)
        residual = jnp.where(seen, value - self.loc, 0.0)
        weighted = self.factor * jnp.expand_dims(usable, -1 - self.event_dim)
        small = cholesky(jnp.eye(self.rank) + self._inner(weighted, self.factor))
        along = self._rows(residual, weighted)
        z = solve(small, along[..., None])[..., 0]
        gain = self.diagonal * usable
        left = jnp.where(known, 0.0, 1.0 - gain)
        # Of z given y the covariance is C^-1 = M M', M upper triangular.
        root = jnp.swapaxes(whiten(small, jnp.eye(self.rank, dtype=self.loc.dtype)), -1, -2)
        factor = self._mixed(jnp.swapaxes(root, -1, -2), self.factor) * jnp.expand_dims(left, -1 - self.event_dim)
        loc = jnp.where(known, value, self.loc + gain * residual + left * self.along(z))
        law = LowRankNormal(loc, self.diagonal * left, factor, event_dim=self.event_dim)
        own = jnp.where(counts, Normal(0.0, jnp.sqrt(jnp.where(counts, total, 1.0))).log_prob(residual), 0.0)
        whitened = whiten(small, along[..., None])[..., 0]
        evidence = jnp.sum(own, axis=tuple(range(-self.event_dim, 0))) + 0.5 * jnp.sum(jnp.square(whitened), axis=-1)
        return law, evidence - log_det(small)

    def moved(self, shift: Array, scale: Array, noise: ArrayLike) -> "LowRankNormal":
        """The law of `shift + scale x + noise`, the noise independent, of this variance; scale and noise scalars."""
        diagonal = jnp.square(scale) * self.diagonal + noise
        return LowRankNormal(scale * self.loc + shift, diagonal, scale * self.factor, event_dim=self.event_dim)

    @property
    def _small(self) -> Array:
        r"""Lower triangular L with $L L^\top = C$, shape (*batch, rank, rank)."""
        return cholesky(jnp.eye(self.rank, dtype=self.loc.dtype) + self._inner(self._weighted, self.factor))

    @property
    def _weighted(self) -> Array:
        r"""$U \Lambda^{-1}$, shape (*batch, rank, *event); 0 at points."""
        return self.factor * self._inverse_row

    @property
    def _diagonal_row(self) -> Array:
        return jnp.expand_dims(self.diagonal, -1 - self.event_dim)

    @property
    def _inverse_row(self) -> Array:
        point = self._diagonal_row == 0.0
        return jnp.where(point, 0.0, 1.0 / jnp.where(point, 1.0, self._diagonal_row))

    def _inner(self, first: Array, second: Array) -> Array:
        """Products of rows over the event, (*batch, m, *event) and (*batch, n, *event) -> (*batch, m, n)."""
        first, second = flat(first, self.event_dim), flat(second, self.event_dim)
        return jnp.matmul(first, jnp.swapaxes(second, -1, -2), precision="highest")

    def _rows(self, x: Array, rows: Array) -> Array:
        """Products of x, (*batch, *event), with rows, (*batch, n, *event); shape (*batch, n)."""
        return jnp.sum(jnp.expand_dims(x, -1 - self.event_dim) * rows, axis=tuple(range(-self.event_dim, 0)))

    def _mixed(self, weights: Array, rows: Array) -> Array:
        """Sums of rows, (*batch, m, n) and (*batch, n, *event) -> (*batch, m, *event)."""
        mixed = jnp.matmul(weights, flat(rows, self.event_dim), precision="highest")
        return mixed.reshape(*mixed.shape[:-1], *self.event_shape)


def as_low_rank(law: Distribution) -> LowRankNormal | None:
    """A Gaussian of another class as a `LowRankNormal`, exactly; None for what is no Gaussian of one datum.

    Independent normals have rank 0. A full covariance keeps half of what its least eigenvalue is known to exceed on the diagonal,
    and has the rank of its dimension."""
    if isinstance(law, LowRankNormal):
        return law
    if isinstance(law, LowRankMultivariateNormal):
        return LowRankNormal(law.loc, law.cov_diag, jnp.swapaxes(law.cov_factor, -1, -2))
    if isinstance(law, MultivariateNormal):
        covariance = jnp.matmul(law.scale_tril, jnp.swapaxes(law.scale_tril, -1, -2), precision="highest")
        return from_covariance(law.loc, covariance)
    base, event_dim = unwrap(law)
    if event_dim == 0 or not isinstance(base, Normal | PointNormal):
        return None
    variance = jnp.square(base.scale)
    shape = jnp.broadcast_shapes(jnp.shape(base.loc), jnp.shape(variance))
    cut = len(shape) - event_dim
    none = jnp.zeros((*shape[:cut], 0, *shape[cut:]))
    return LowRankNormal(jnp.broadcast_to(base.loc, shape), variance, none, event_dim=event_dim)


def as_correlated(law: Distribution) -> LowRankNormal | None:
    """The same, of laws whose coordinates go together; None for independent normals too."""
    correlated = isinstance(law, LowRankNormal | LowRankMultivariateNormal | MultivariateNormal)
    return as_low_rank(law) if correlated else None


def from_covariance(loc: Array, covariance: Array) -> LowRankNormal:
    r"""The Gaussian of a full covariance, shape (*batch, D, D), positive definite; of rank D.

    $1 / \mathrm{tr}\, \Sigma^{-1}$ is below the least eigenvalue: half of it is the diagonal, and the rest is factored."""
    root = inverse_factor(covariance)
    own = 0.5 / jnp.sum(jnp.square(root), axis=(-2, -1))[..., None]
    rest = cholesky(covariance - own[..., None] * jnp.eye(covariance.shape[-1], dtype=covariance.dtype))
    return LowRankNormal(loc, own, jnp.swapaxes(rest, -1, -2))


def gaussian_divergence(q: LowRankNormal, p: LowRankNormal) -> Array:
    r"""$\mathrm{KL}(q \| p)$ in nats, exact, shape that of the broadcast batch shapes.

    Half of $\sum (\rho - 1 - \log \rho) + |\delta|^2_{\Sigma_p^{-1}} + \log|C_p| - \log|C_q| - \mathrm{tr}\,(\ldots)$, where $\rho$
    is the ratio of the diagonals: every term is small where the laws are near one another."""
    axes = tuple(range(-p.event_dim, 0))
    ratio, shift = q.diagonal / p.diagonal, q.loc - p.loc
    own = jnp.sum(ratio - 1.0 - jnp.log(ratio) + jnp.square(shift) / p.diagonal, axis=axes)
    small, weighted = p._small, p._weighted
    # Inverted once: substitution through rows of all coordinates is slow.
    root = whiten(small, jnp.eye(p.rank, dtype=small.dtype))
    along = jnp.sum(root * p._rows(shift, weighted)[..., None, :], axis=-1)
    spread = weighted * jnp.expand_dims(jnp.sqrt(q.diagonal), -1 - p.event_dim)
    removed = jnp.sum(jnp.square(p._mixed(root, spread)), axis=(*axes, -1 - p.event_dim))
    total = own - jnp.sum(jnp.square(along), axis=-1) - removed + 2.0 * log_det(small)
    if q.rank:
        shared = p.precision_times(q.factor)
        total = total + jnp.sum(shared * q.factor, axis=(*axes, -1 - p.event_dim)) - 2.0 * log_det(q._small)
    return 0.5 * total


def flat(rows: Array, event_dim: int) -> Array:
    """(*batch, n, *event) -> (*batch, n, coordinates); n may be 0."""
    cut = rows.ndim - event_dim
    return rows.reshape(*rows.shape[:cut], math.prod(rows.shape[cut:]))


def log_det(factor: Array) -> Array:
    """Sum of the logs of a triangular matrix's diagonal: half the log determinant of what it is the root of."""
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


def _registered(q: Distribution, p: Distribution) -> Array:
    first, second = as_low_rank(q), as_low_rank(p)
    if first is None or second is None or first.event_shape != second.event_shape:
        raise NotImplementedError(f"the divergence of {type(q).__name__} from {type(p).__name__} has no closed form.")
    return gaussian_divergence(first, second)


_CORRELATED = (LowRankNormal, LowRankMultivariateNormal, MultivariateNormal)
for _q in (Independent, *_CORRELATED):
    for _p in (Independent, *_CORRELATED):
        # What NumPyro has stays: independent laws of any kind, and two full covariances.
        if (_q, _p) not in ((Independent, Independent), (MultivariateNormal, MultivariateNormal)):
            kl_divergence.register(_q, _p)(_registered)
