r"""Laws that particles are drawn from: Gaussians and their mixtures, and the share of particles that no guess moves.

Whatever a proposal is made of, its `log_prob` is the density of its own draws, so that a weight $p / \tilde p$ is right for
every guess. A guess that is wrong costs particles; where it could cost all of them, `defended` lets a tenth of them move by
the model's own kernel, so that no weight exceeds ten times that of an unguided filter.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions import (
    BernoulliLogits,
    BernoulliProbs,
    Categorical,
    Distribution,
    ExpandedDistribution,
    Independent,
    MixtureGeneral,
    MixtureSameFamily,
    Normal,
    constraints,
)

from nedm_ppl._compat import validate_sample
from nedm_ppl.laws._conditioned import LinearGaussian
from nedm_ppl.laws._low_rank import LowRankNormal
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.laws._small_matrices import cholesky, whiten
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models.reverse._levels import Levels

__all__ = [
    "UNGUIDED",
    "NormalModes",
    "defended",
    "independent",
    "is_normal",
    "log_density",
]

UNGUIDED = 0.1  # the share of particles that the model's own kernel moves


def is_normal(law: Distribution) -> bool:
    """Whether a law is of independent normals, points among them."""
    return isinstance(coordinates(law), Normal | PointNormal)


def independent(law: Distribution) -> tuple[Distribution | None, bool]:
    """A law of independent coordinates with the mean and the variances of another, and whether it is that law itself.

    Returns:
        Normals, bits or gray levels, for which multipliers have closed forms; None for a law without moments, that nothing can
        guide. Whatever is made of it is a proposal: `law` weighs it.
    """
    base, event_dim = coordinates(law), law.event_dim
    if isinstance(base, Normal | PointNormal | BernoulliLogits | Levels):
        return law, True
    while isinstance(base, Independent | ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, BernoulliLogits | BernoulliProbs):
        mean = law.mean
        return BernoulliLogits(jnp.log(mean) - jnp.log1p(-mean)).to_event(event_dim), True
    if isinstance(base, Normal):
        return Normal(law.mean, jnp.sqrt(law.variance)).to_event(event_dim), True
    try:
        mean, variance = law.mean, law.variance
    except NotImplementedError:
        return None, False
    if law.is_discrete:
        mean = jnp.clip(mean, 1e-6, 1.0 - 1e-6)
        return BernoulliLogits(jnp.log(mean) - jnp.log1p(-mean)).to_event(event_dim), False
    usable = jnp.isfinite(mean) & jnp.isfinite(variance) & (variance > 0.0)
    scale = jnp.sqrt(jnp.where(usable, variance, 1.0))
    return Normal(jnp.where(usable, mean, 0.0), scale).to_event(event_dim), False


def log_density(law: Distribution, x: Array) -> Array:
    """log p(x) in nats, minus infinity outside the law's support, where NumPyro returns a number without meaning."""
    if isinstance(law, LinearGaussian | LowRankNormal | NormalModes) or isinstance(
        coordinates(law), Normal | PointNormal | BernoulliLogits | Levels | MixtureSameFamily | MixtureGeneral
    ):
        return law.log_prob(x)
    support = law.support
    assert support is not None
    inside = support(x)
    inside = (
        jnp.all(inside, axis=tuple(range(law.batch_shape.__len__() - inside.ndim, 0)))
        if inside.ndim > len(law.batch_shape)
        else inside
    )
    return jnp.where(inside, law.log_prob(x), -jnp.inf)


def defended(law: Distribution, guided: Distribution) -> Distribution:
    """A mixture of both: `UNGUIDED` of the particles move by the law itself."""
    shape = jnp.broadcast_shapes(law.batch_shape, guided.batch_shape)
    shares = Categorical(probs=jnp.broadcast_to(jnp.array([UNGUIDED, 1.0 - UNGUIDED]), (*shape, 2)))
    same = type(law.support) is type(guided.support)
    return MixtureGeneral(shares, [law, guided], support=None if same else law.support)


class NormalModes(Distribution):
    r"""A mixture of correlated Gaussians over a whole datum, in units of a law of independent normals.

    With $x = \mu + \sigma z$ coordinate by coordinate, $z \sim \sum_m w_m\, \mathcal N(z_m, C_m)$.

    Args:
        prior: The normals of $\mu$ and $\sigma$, batch shape (*batch,), event shape (*event,); points stay points.
        log_weights: $\log w$, up to a constant, shape (*batch, modes).
        loc: $z_m$, shape (*batch, modes, dim), dim the number of coordinates; 0 at points.
        covariance: $C_m$, shape (*batch, modes, dim, dim); the unit matrix's rows at points.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("prior", "log_weights", "loc", "covariance")

    def __init__(
        self,
        prior: Distribution,
        log_weights: Array,
        loc: Array,
        covariance: Array,
        *,
        validate_args: bool | None = None,
    ):
        self.prior, self.loc, self.covariance = prior, loc, covariance
        self.log_weights = jax.nn.log_softmax(log_weights)
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.prior.support

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        key_mode, key_noise = jax.random.split(key)
        mode = jax.random.categorical(key_mode, self.log_weights, shape=(*sample_shape, *self.batch_shape))
        chosen = jax.nn.one_hot(mode, self.loc.shape[-2], dtype=self.loc.dtype)
        loc = jnp.sum(chosen[..., None] * self.loc, axis=-2)
        factor = jnp.sum(chosen[..., None, None] * cholesky(self.covariance), axis=-3)
        noise = jax.random.normal(key_noise, loc.shape, loc.dtype)
        z = loc + jnp.sum(factor * noise[..., None, :], axis=-1)
        return self.prior.mean + jnp.sqrt(self.prior.variance) * z.reshape(*z.shape[:-1], *self.event_shape)

    @validate_sample
    def log_prob(self, value: Any) -> Array:
        """Exact log density, nats, shape (*sample_shape, *batch): that of the prior, and of the modes against a standard normal."""
        scale = jnp.sqrt(self.prior.variance)
        z = jnp.where(scale > 0.0, (value - self.prior.mean) / jnp.where(scale > 0.0, scale, 1.0), 0.0)
        z = z.reshape(*z.shape[: z.ndim - self.event_dim], 1, -1)
        factor = cholesky(self.covariance)
        whitened = whiten(factor, (z - self.loc)[..., None])[..., 0]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)
        by_mode = self.log_weights - 0.5 * jnp.sum(jnp.square(whitened), axis=-1) - log_det
        return (
            self.prior.log_prob(value) + logsumexp(by_mode, axis=-1) + 0.5 * jnp.sum(jnp.square(z[..., 0, :]), axis=-1)
        )

    @property
    def mean(self) -> Array:
        z = jnp.sum(jnp.exp(self.log_weights)[..., None] * self.loc, axis=-2)
        return self.prior.mean + jnp.sqrt(self.prior.variance) * z.reshape(jnp.shape(self.prior.mean))

    @property
    def variance(self) -> Any:
        shares = jnp.exp(self.log_weights)[..., None]
        diagonal = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        mean = jnp.sum(shares * self.loc, axis=-2, keepdims=True)
        z = jnp.sum(shares * (diagonal + jnp.square(self.loc - mean)), axis=-2)
        return self.prior.variance * z.reshape(jnp.shape(self.prior.mean))
