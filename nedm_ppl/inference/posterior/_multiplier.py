r"""Multipliers: what a distribution is multiplied by (Section 2.5).

A multiplier is a function $r(x) \ge 0$ of **one** datum, known up to its own arithmetic: $\tilde p(x) \propto p(x)\, r(x)$. Known
coordinates, observations and any function are multipliers, and so are their products.

Where r and a law have a closed form together, the multiplier knows it: `times` is the law $p\, r / \int p\, r$, and `log_mean` is
$\log \int p\, r$. Where they have none both are None, and `tilted.tilt` finds a law near the product.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.nn import log_sigmoid
from jax.scipy.linalg import block_diag
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl._compat import Tracer
from nedm_ppl.arguments import Values, check_unmasked, require
from nedm_ppl.laws._conditioned import LinearGaussian, normal_log_prob
from nedm_ppl.laws._low_rank import LowRankNormal
from nedm_ppl.laws._mixtures import components, mixture
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.laws._small_matrices import cholesky, compressed, whiten
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models._units import Units
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._levels import Levels

__all__ = [
    "BernoulliObservation",
    "Factorized",
    "Function",
    "Known",
    "LinearObservation",
    "Multiplier",
    "NormalObservation",
    "Product",
    "as_multiplier",
    "over_batch",
]

# The log odds of the impossible: finite, so that no sum of them is NaN, and far below what float32 can exponentiate.
NEVER = -1e4


class Multiplier(eqx.Module):
    """A function r of one datum, in logarithms; a pytree, so that observations may be mapped over."""

    @abstractmethod
    def log_r(self, x: Array) -> Array:
        """log r of one datum, a scalar; minus infinity where r is 0."""

    def times(self, law: Distribution, power: ArrayLike = 1.0) -> Distribution | None:
        r"""The law $p\, r^\lambda$, normalized, where it has a closed form; None where it has none.

        Of a mixture it is the mixture of the components' products, each weighted by what the component expected of r.

        Args:
            law: p, event shape that of a datum: independent over coordinates, a `LowRankNormal`, or a mixture of such.
            power: $\\lambda$, in [0, 1].
        """
        parts = components(law)
        if parts is None:
            return self._times(law, power)
        log_weights, inner = parts
        product, evidence = self._times(inner, power), self._log_mean(inner, power)
        return None if product is None or evidence is None else mixture(log_weights + evidence, product)

    def log_mean(self, law: Distribution) -> Array | None:
        r"""$\log \int p(x)\, r(x)\, dx$ in nats, exact, shape (*batch,), where it has a closed form; None where it has none."""
        parts = components(law)
        if parts is None:
            return self._log_mean(law, 1.0)
        evidence = self._log_mean(parts[1], 1.0)
        return None if evidence is None else logsumexp(parts[0] + evidence, axis=-1)

    def _times(self, law: Distribution, power: ArrayLike) -> Distribution | None:
        """`times` of a law that is no mixture."""
        return None

    def _log_mean(self, law: Distribution, power: ArrayLike) -> Array | None:
        r"""$\log \int p\, r^\lambda$ of a law that is no mixture, up to a constant of the power alone."""
        return None

    def check(self, process: DiffusionProcess) -> None:
        """Raise a ValueError of one sentence where r cannot multiply data of this process."""

    def surprise(self) -> float:
        """How far an observation is from data of mean 0 and variance 1, in standard deviations of both; 0 where that is unknown."""
        return 0.0

    def in_chain(self, units: Units, process: DiffusionProcess) -> "Multiplier":
        """The same function of the datum as the chain has it; closed forms stay closed.

        Raises:
            ValueError: r of another shape than data of this process.
        """
        return InUnits(self, units)

    @property
    def closes(self) -> bool:
        """Whether the product with normals is exact and nothing is guessed."""
        return False

    def __mul__(self, other: "Multiplier") -> "Multiplier":
        return Product((self, other))


class Factorized(Multiplier):
    r"""A product of factors $r_i(x_i)$, one per coordinate: exact for every discrete law."""

    @abstractmethod
    def log_factors(self, values: Array) -> Array:
        """log r_i at `values` of shape (..., *event), elementwise; 0 where the coordinate is not observed."""

    def _times_normal(self, loc: Array, scale: Array, power: ArrayLike) -> Distribution | None:
        """The product with independent normals, before `to_event`, where it has a closed form."""
        return None

    def _log_mean_normal(self, law: Distribution, power: ArrayLike) -> Array | None:
        """log of the mean of every factor to a power under independent normals, where it has a closed form."""
        return None

    def _seen(self, power: ArrayLike) -> tuple[Array, Array] | None:
        """What is seen of every coordinate and the precision it is seen with, where r is an observation with normal noise."""
        return None

    def log_r(self, x: Array) -> Array:
        return jnp.sum(self.log_factors(x))

    @property
    def closes(self) -> bool:
        return type(self)._times_normal is not Factorized._times_normal

    def _times(self, law: Distribution, power: ArrayLike) -> Distribution | None:
        if isinstance(law, LowRankNormal):
            seen = self._seen(power)
            return None if seen is None else law.observed(*seen)[0]
        base = coordinates(law)
        if isinstance(base, dist.Normal | PointNormal):
            product = self._times_normal(base.loc, base.scale, power)
        elif isinstance(base, dist.BernoulliLogits):
            ratio = self._finite(jnp.ones(law.event_shape)) - self._finite(jnp.zeros(law.event_shape))
            product = dist.BernoulliLogits(base.logits + power * ratio)
        elif isinstance(base, Levels):
            product = Levels(base.logits + power * self._over_levels(base, law.event_shape), base.levels)
        else:
            product = None
        return None if product is None else product.to_event(law.event_dim)

    def _log_mean(self, law: Distribution, power: ArrayLike) -> Array | None:
        if isinstance(law, LowRankNormal):
            seen = self._seen(power)
            return None if seen is None else law.observed(*seen)[1]
        base = coordinates(law)
        if isinstance(base, dist.Normal | PointNormal):
            terms = self._log_mean_normal(base, power)
        elif isinstance(base, dist.BernoulliLogits):
            one, zero = self._finite(jnp.ones(law.event_shape)), self._finite(jnp.zeros(law.event_shape))
            terms = jnp.logaddexp(log_sigmoid(base.logits) + power * one, log_sigmoid(-base.logits) + power * zero)
        elif isinstance(base, Levels):
            factors = power * self._over_levels(base, law.event_shape)
            terms = logsumexp(jax.nn.log_softmax(base.logits) + factors, axis=-1)
        else:
            terms = None
        return None if terms is None else jnp.sum(terms, axis=tuple(range(-law.event_dim, 0)))

    def in_chain(self, units: Units, process: DiffusionProcess) -> Multiplier:
        return FactorizedInUnits(self, units)

    def _over_levels(self, base: Levels, event_shape: tuple[int, ...]) -> Array:
        """log r_i at every gray level, shape (*event, num_levels)."""
        values = jnp.asarray(base.levels).reshape(-1, *(1,) * len(event_shape))
        return jnp.moveaxis(self._finite(jnp.broadcast_to(values, (len(base.levels), *event_shape))), 0, -1)

    def _finite(self, values: Array) -> Array:
        return jnp.maximum(self.log_factors(values), NEVER)


class Known(Factorized):
    """Known coordinates: a delta on them, 1 on the others.

    Args:
        values: Their values, shape (*event,); what stands at the other coordinates is ignored, NaN included.
        mask: Which are known, boolean, shape (*event,); by default those of `values` that are not NaN.

    Raises:
        ValueError: a mask of another shape, nothing known, or values that are not finite where the mask says known.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import inference
        >>> known = inference.Known([1.0, jnp.nan])  # the second is hidden
        >>> float(known.log_r(jnp.array([1.0, 7.0]))), float(known.log_r(jnp.array([2.0, 7.0])))
        (0.0, -inf)
    """

    values: Array
    mask: Array

    def __init__(self, values: Values, mask: Values | None = None):
        self.values, self.mask = _masked(values, mask, "values")

    def log_factors(self, values: Array) -> Array:
        same = jnp.abs(values - self.values) <= 1e-4 * (1.0 + jnp.abs(self.values))
        return jnp.where(self.mask & ~same, -jnp.inf, 0.0)

    def _times_normal(self, loc: Array, scale: Array, power: ArrayLike) -> Distribution:
        return PointNormal(jnp.where(self.mask, self.values, loc), jnp.where(self.mask, 0.0, scale))

    def _log_mean_normal(self, law: Distribution, power: ArrayLike) -> Array:
        return jnp.where(self.mask, law.log_prob(self.values), 0.0)

    def _seen(self, power: ArrayLike) -> tuple[Array, Array]:
        return self.values, jnp.where(self.mask, jnp.inf, 0.0)

    def surprise(self) -> float:
        return _largest(self.values, self.mask)

    def in_chain(self, units: Units, process: DiffusionProcess) -> Multiplier:
        _check_event(self.values, process, "values")
        same = Known(units.shifted(self.values), self.mask)
        return Product((same, _constant(units, process, self.mask))) if units.has_density else same

    def check(self, process: DiffusionProcess) -> None:
        _check_event(self.values, process, "values")
        known = jnp.broadcast_to(jnp.where(self.mask, self.values, 0.0), self.values.shape)
        discrete = process.stationary().is_discrete and _concrete(known)
        if discrete and not np.all(np.isin(np.asarray(known), (0.0, 1.0))):
            raise ValueError("values must be bits, 0 or 1, at the known coordinates of a binomial chain.")


class NormalObservation(Factorized):
    r"""$r(x) = \prod_i \mathcal N(y_i; x_i, s_i^2)$ over observed coordinates: data seen through noise.

    Args:
        y: Observed values, shape (*event,).
        scale: s, standard deviation of the noise, a scalar or shape (*event,), positive.
        mask: Which coordinates are observed, boolean, shape (*event,); by default those of y that are not NaN.

    Raises:
        ValueError: a scale that is not positive (under `jit` that ends the program when it runs), a mask of another shape, nothing
            observed, or y not finite where observed.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import inference
        >>> seen = inference.NormalObservation([1.0, jnp.nan], 0.5)  # the second is not observed
        >>> seen.mask
        Array([ True, False], dtype=bool)
    """

    y: Array
    scale: Array
    mask: Array

    def __init__(self, y: Values, scale: Values, mask: Values | None = None):
        self.y, self.mask = _masked(y, mask, "y")
        self.scale = _positive(scale, "scale")
        _check_broadcast(self.scale, self.y, "scale")

    def log_factors(self, values: Array) -> Array:
        return jnp.where(self.mask, dist.Normal(values, self.scale).log_prob(self.y), 0.0)

    def _times_normal(self, loc: Array, scale: Array, power: ArrayLike) -> Distribution:
        # Precisions in units of the law's own, so that power 0 and a point mass need no special case.
        gain = jnp.where(self.mask, power, 0.0) * jnp.square(scale / self.scale)
        loc, scale = (loc + gain * self.y) / (1.0 + gain), scale / jnp.sqrt(1.0 + gain)
        return PointNormal(loc, scale)

    def _seen(self, power: ArrayLike) -> tuple[Array, Array]:
        return self.y, jnp.where(self.mask, power / jnp.square(self.scale), 0.0)

    def _log_mean_normal(self, law: Distribution, power: ArrayLike) -> Array:
        noise = jnp.square(self.scale) / jnp.maximum(power, jnp.finfo(float).eps)
        spread = jnp.sqrt(law.variance + noise)
        return jnp.where(self.mask, dist.Normal(law.mean, spread).log_prob(self.y), 0.0)

    def surprise(self) -> float:
        return _largest(self.y / jnp.sqrt(1.0 + jnp.square(self.scale)), self.mask)

    def in_chain(self, units: Units, process: DiffusionProcess) -> Multiplier:
        _check_event(self.y, process, "y")
        same = NormalObservation(units.shifted(self.y), self.scale / jnp.abs(units.scales()), self.mask)
        return Product((same, _constant(units, process, self.mask)))

    def check(self, process: DiffusionProcess) -> None:
        _check_event(self.y, process, "y")


class BernoulliObservation(Factorized):
    r"""Bits seen through a channel that flips them: $r_i = 1 - \epsilon_i$ where $y_i = x_i$ and $\epsilon_i$ where not.

    Args:
        y: Observed bits, shape (*event,).
        flip: $\epsilon$, the probability of a flip, a scalar or shape (*event,), in (0, 1).
        mask: Which bits are observed, boolean, shape (*event,); by default those of y that are not NaN.

    Raises:
        ValueError: flip outside (0, 1) or y not bits (under `jit` these end the program when it runs), or a mask of another shape.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import inference
        >>> seen = inference.BernoulliObservation([0.0, 1.0], flip=0.25)
        >>> round(float(jnp.exp(seen.log_r(jnp.array([0.0, 0.0])))), 4)  # 0.75 x 0.25
        0.1875
    """

    y: Array
    flip: Array
    mask: Array

    def __init__(self, y: Values, flip: Values, mask: Values | None = None):
        self.y, self.mask = _masked(y, mask, "y")
        check_unmasked("flip", flip)
        flip = jnp.asarray(flip, float)
        _check_broadcast(flip, self.y, "flip")
        inside = (flip > 0.0) & (flip < 1.0)
        self.flip = require(flip, inside, "flip must lie in (0, 1); for bits that are known for certain use Known.")
        self.y = require(self.y, (self.y == 0.0) | (self.y == 1.0), "y must be bits, 0 or 1, where observed.")

    def log_factors(self, values: Array) -> Array:
        agree = jnp.where(jnp.abs(values - self.y) < 0.5, 1.0 - self.flip, self.flip)
        return jnp.where(self.mask, jnp.log(agree), 0.0)

    def in_chain(self, units: Units, process: DiffusionProcess) -> Multiplier:
        if (units.loc, units.scale) != ((0.0,), (1.0,)):
            raise ValueError(
                "BernoulliObservation is of bits that are called 0 and 1; this model's data have other labels. Give a function "
                "log r(x) of a datum."
            )
        return self

    def check(self, process: DiffusionProcess) -> None:
        _check_event(self.y, process, "y")
        if not process.stationary().is_discrete:
            raise ValueError(
                "BernoulliObservation is an observation of bits; got a Gaussian chain. Use NormalObservation."
            )


class LinearObservation(Multiplier):
    r"""$r(x) = \mathcal N(y; A x, R)$: a linear map of the datum, seen through Gaussian noise.

    Args:
        y: Observed values, shape (dim,); those that are NaN, or that a masked array hides, are not observed.
        matrix: A, shape (dim, *event).
        scale: Standard deviation of the noise, a scalar or shape (dim,), positive; or give `covariance`.
        covariance: R, shape (dim, dim), positive definite.

    Raises:
        ValueError: shapes that do not go together, nothing observed, numbers that are masked or not finite elsewhere than in y,
            both or neither of scale and covariance, a scale that is not positive, or a covariance that is not positive definite.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import inference
        >>> total = inference.LinearObservation([3.0], jnp.ones((1, 2)), scale=0.1)  # the sum of two coordinates
        >>> bool(total.log_r(jnp.array([1.0, 2.0])) > total.log_r(jnp.array([1.0, 1.0])))
        True
    """

    y: Array
    matrix: Array
    covariance: Array

    def __init__(self, y: Values, matrix: Values, *, scale: Values | None = None, covariance: Values | None = None):
        check_unmasked("matrix", matrix)
        check_unmasked("covariance", covariance)
        self.y, self.matrix = _observed(y), jnp.asarray(matrix, float)
        if self.y.ndim != 1 or self.matrix.shape[:1] != self.y.shape:
            raise ValueError(
                f"matrix must have shape (dim, *event) and y shape (dim,); got {self.matrix.shape} and {self.y.shape}."
            )
        if (scale is None) == (covariance is None):
            raise ValueError("scale or covariance must be given, and not both: the noise of the observation.")
        if covariance is None:
            assert scale is not None
            scale = _positive(scale, "scale")
            _check_broadcast(scale, self.y, "scale")
            self.covariance = jnp.diag(jnp.broadcast_to(jnp.square(scale), self.y.shape))
        else:
            self.covariance = jnp.asarray(covariance, float)
            if self.covariance.shape != self.y.shape * 2:
                raise ValueError(f"covariance must have shape {self.y.shape * 2}; got {self.covariance.shape}.")
            if _concrete(self.covariance) and not np.all(np.linalg.eigvalsh(np.asarray(self.covariance)) > 0.0):
                raise ValueError("covariance must be positive definite; some of its eigenvalues are not.")
        seen = ~jnp.isnan(self.y)
        if _concrete(self.y) and not (np.any(seen) and np.all(np.isfinite(np.asarray(self.y)[np.asarray(seen)]))):
            raise ValueError(
                f"y must be finite, or NaN where it is not observed, and somewhere observed; got {int(np.sum(~seen))} of "
                f"{len(seen)} NaN, {int(np.isinf(self.y).sum())} infinite."
            )
        # A row that is not observed is one of 0 = 0 x + noise, of the one variance for which that has the density 1.
        self.y, self.matrix = jnp.where(seen, self.y, 0.0), jnp.where(_like(seen, self.matrix), self.matrix, 0.0)
        if _concrete(self.matrix) and not np.all(np.isfinite(self.matrix)):
            raise ValueError("matrix must be finite in every row that is observed; got NaN or infinite values.")
        unseen = jnp.diag(jnp.full(len(seen), 0.5 / math.pi))
        self.covariance = jnp.where(seen[:, None] & seen, self.covariance, unseen)

    def log_r(self, x: Array) -> Array:
        return normal_log_prob(self.y - jnp.tensordot(self.matrix, x, x.ndim), self.covariance)

    def _times(self, law: Distribution, power: ArrayLike) -> LinearGaussian | None:
        if not isinstance(coordinates(law), dist.Normal | PointNormal | LowRankNormal):
            return None
        return LinearGaussian(law, self.matrix, self.y, self.covariance, power=power)

    def _log_mean(self, law: Distribution, power: ArrayLike) -> Array | None:
        product = self._times(law, power)
        return None if product is None else product.log_evidence

    def surprise(self) -> float:
        spread = jnp.sum(jnp.square(self.matrix), axis=tuple(range(1, self.matrix.ndim))) + jnp.diag(self.covariance)
        return _largest(self.y / jnp.sqrt(spread), True)

    def in_chain(self, units: Units, process: DiffusionProcess) -> Multiplier:
        self.check(process)
        y = self.y - jnp.tensordot(
            self.matrix, units.unsnapped(jnp.zeros(process.event_shape)), len(process.event_shape)
        )
        return LinearObservation(y, self.matrix * units.scales(), covariance=self.covariance)

    def check(self, process: DiffusionProcess) -> None:
        if self.matrix.shape[1:] != process.event_shape:
            raise ValueError(
                f"matrix must have shape (dim, *{process.event_shape}), a row per observation; got {self.matrix.shape}."
            )

    @property
    def closes(self) -> bool:
        return True

    def compressed(self) -> "LinearObservation":
        """The same observation, up to a constant factor of r, by as many rows as x has coordinates; itself if it has no more."""
        size = math.prod(self.matrix.shape[1:])
        if len(self.y) <= size:
            return self
        whitened = whiten(cholesky(self.covariance), jnp.column_stack([self.matrix.reshape(len(self.y), size), self.y]))
        matrix, y = compressed(whitened[:, :-1], whitened[:, -1])
        return LinearObservation(y, matrix.reshape(size, *self.matrix.shape[1:]), scale=1.0)

    def stacked(self, other: "LinearObservation") -> "LinearObservation":
        """Both observations as one."""
        return LinearObservation(
            jnp.concatenate([self.y, other.y]),
            jnp.concatenate([self.matrix, other.matrix]),
            covariance=block_diag(self.covariance, other.covariance),
        )


class Function(Multiplier):
    """Any r, given by its logarithm.

    Args:
        function: log r of one datum, shape (*event,), a scalar.
        differentiable: Whether a Gaussian chain may follow its gradient. Without it r moves no particle and only weighs them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import inference
        >>> ring = inference.Function(lambda x: -50.0 * (jnp.linalg.norm(x) - 1.0) ** 2)
        >>> float(ring.log_r(jnp.array([0.0, 3.0])))
        -200.0
    """

    function: Callable[[Array], Array]
    differentiable: bool = eqx.field(static=True, default=True)

    def log_r(self, x: Array) -> Array:
        return self.function(x)

    def check(self, process: DiffusionProcess) -> None:
        shape = jax.eval_shape(self.function, jnp.zeros(process.event_shape)).shape
        if shape != ():
            raise ValueError(
                f"log r must be a scalar for one datum of shape {process.event_shape}; got shape {shape}. Sum over coordinates."
            )


class Product(Multiplier):
    """The product of multipliers; of none of them, r = 1.

    Linear observations are stacked into one, and come after the factors that work coordinate by coordinate.

    Raises:
        ValueError: two deltas that contradict one another.
    """

    factors: tuple[Multiplier, ...]

    def __init__(self, factors: Iterable[Multiplier] = ()):
        flat = [part for factor in factors for part in (factor.factors if isinstance(factor, Product) else (factor,))]
        linear = [part for part in flat if isinstance(part, LinearObservation)]
        self.factors = tuple(part for part in flat if not isinstance(part, LinearObservation))
        if linear:
            self.factors += (reduce(LinearObservation.stacked, linear),)
        known = [part for part in flat if isinstance(part, Known)]
        for i, first in enumerate(known):
            for second in known[i + 1 :]:
                _check_agree(first, second)

    def log_r(self, x: Array) -> Array:
        return sum((factor.log_r(x) for factor in self.factors), jnp.zeros(()))

    def times(self, law: Distribution, power: ArrayLike = 1.0) -> Distribution | None:
        for factor in self.factors:
            product = factor.times(law, power)
            if product is None:
                return None
            law = product
        return law

    def log_mean(self, law: Distribution) -> Array | None:
        total = jnp.zeros(law.batch_shape)
        for factor in self.factors:
            part, product = factor.log_mean(law), factor.times(law)
            if part is None or product is None:
                return None
            total, law = total + part, product
        return total

    def in_chain(self, units: Units, process: DiffusionProcess) -> "Product":
        return Product(factor.in_chain(units, process) for factor in self.factors)

    @property
    def varying(self) -> "Product":
        """The same without its constant factors, which move no particle."""
        return Product(factor for factor in self.factors if not isinstance(factor, Constant))

    def check(self, process: DiffusionProcess) -> None:
        for factor in self.factors:
            factor.check(process)


class Constant(Multiplier):
    """The same number for every datum.

    Attributes:
        value: Its logarithm, nats, a scalar.
    """

    value: Array

    def log_r(self, x: Array) -> Array:
        return self.value

    def in_chain(self, units: Units, process: DiffusionProcess) -> Multiplier:
        return self

    def _times(self, law: Distribution, power: ArrayLike) -> Distribution:
        return law

    def _log_mean(self, law: Distribution, power: ArrayLike) -> Array:
        return jnp.broadcast_to(power * self.value, law.batch_shape)

    @property
    def closes(self) -> bool:
        return True


class InUnits(Multiplier):
    """A function of the datum in the data's units, as one of what the chain has."""

    multiplier: Multiplier
    units: Units

    def log_r(self, x: Array) -> Array:
        return self.multiplier.log_r(self.units.unsnapped(x))

    @property
    def differentiable(self) -> bool:
        """Whether a Gaussian chain may follow its gradient."""
        return getattr(self.multiplier, "differentiable", True)


class FactorizedInUnits(Factorized):
    """A product over coordinates likewise."""

    multiplier: Factorized
    units: Units

    def log_factors(self, values: Array) -> Array:
        return self.multiplier.log_factors(self.units.unsnapped(values))


def as_multiplier(r: Multiplier | Callable[[Array], Array] | None) -> Product:
    """A multiplier as a product of factors; a bare callable is log r of one datum, and None is r = 1."""
    if r is None:
        return Product()
    if isinstance(r, Multiplier):
        return Product((r,))
    if callable(r):
        return Product((Function(r),))
    raise ValueError(f"r must be a Multiplier or a function log r(x) of one datum; got a {type(r).__name__}.")


def over_batch(function: Callable[[Array], Array], x: Array, event_dim: int) -> Array:
    """A function of one datum on every datum of x; shape (*batch, ...)."""
    batch_shape = x.shape[: x.ndim - event_dim]
    flat = x.reshape(math.prod(batch_shape), *x.shape[x.ndim - event_dim :])
    values = jax.vmap(function)(flat)
    return values.reshape(*batch_shape, *values.shape[1:])


def _constant(units: Units, process: DiffusionProcess, mask: Array) -> Constant:
    """What the density of observed coordinates is smaller by in the data's units than in the chain's."""
    log_scale = jnp.asarray(units.log_scale(process.event_shape), float)
    return Constant(-jnp.sum(jnp.where(mask, log_scale, 0.0)))


def _largest(values: Array, mask: ArrayLike) -> float:
    """The largest size of a value where the mask is true; 0 under a transformation of JAX, where nobody can know."""
    sizes = jnp.where(mask, jnp.abs(values), 0.0)
    return float(jnp.max(sizes)) if _concrete(sizes) else 0.0


def _concrete(value: Any) -> bool:
    return not isinstance(value, Tracer)


def _observed(values: Values) -> Array:
    """Values as an array that is NaN where a masked array hides them."""
    if np.ma.isMaskedArray(values):
        values = np.ma.filled(np.ma.asarray(values).astype(float), np.nan)
    return jnp.asarray(values, float)


def _masked(values: Values, mask: Values | None, name: str) -> tuple[Array, Array]:
    check_unmasked("mask", mask)
    hidden = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else False
    values = _observed(values)
    mask = ~jnp.isnan(values) if mask is None else jnp.asarray(mask)
    if mask.shape != values.shape or mask.dtype != bool:
        raise ValueError(
            f"mask must be boolean and of the shape of {name}, {values.shape}; got {mask.dtype} of shape {mask.shape}."
        )
    mask = mask & ~jnp.asarray(hidden)
    if _concrete(mask) and not np.any(np.asarray(mask)):
        raise ValueError(f"mask must mark at least one coordinate of {name}; got none.")
    if _concrete(values) and _concrete(mask) and not np.all(np.isfinite(np.asarray(values)[np.asarray(mask)])):
        raise ValueError(f"{name} must be finite where the mask says so; got NaN or infinite values.")
    return jnp.where(mask, values, 0.0), mask


def _like(rows: Array, values: Array) -> Array:
    """What is true of rows, with as many axes as `values` has."""
    return rows.reshape(rows.shape + (1,) * (values.ndim - 1))


def _positive(scale: Values, name: str) -> Array:
    check_unmasked(name, scale)
    scale = jnp.asarray(scale, float)
    got = f"{float(np.min(np.asarray(scale))):g}" if _concrete(scale) else "one that is not"
    said = f"{name} must be positive, a standard deviation; got {got}. For exact values use Known."
    return require(scale, scale > 0.0, said)


def _check_broadcast(value: Array, like: Array, name: str) -> None:
    if value.shape not in ((), like.shape):
        raise ValueError(f"{name} must be a scalar or of shape {like.shape}; got shape {value.shape}.")


def _check_event(values: Array, process: DiffusionProcess, name: str) -> None:
    if values.shape != process.event_shape:
        raise ValueError(
            f"{name} must have shape {process.event_shape}, one datum of this model; got {values.shape}. For many observations at "
            "once see ParticlePosterior.run_batch."
        )


def _check_agree(first: Known, second: Known) -> None:
    arrays = (first.values, first.mask, second.values, second.mask)
    if first.values.shape != second.values.shape or not all(_concrete(array) for array in arrays):
        return
    both = np.asarray(first.mask & second.mask)
    clash = both & (np.asarray(first.values) != np.asarray(second.values))
    if clash.any():
        where = tuple(int(i) for i in np.argwhere(clash)[0])
        raise ValueError(
            f"known coordinates contradict one another at {where}: {float(first.values[where]):g} and "
            f"{float(second.values[where]):g}. Their product is zero everywhere."
        )
