r"""A factor of one coordinate as a table: $r_i(x_i) \approx \sum_k w_k\, \mathcal N(x_i; c_k, h_k^2)$.

Where r is a product over coordinates, each of its factors is a function on a line, and quadrature sees all of it: flat sides,
two modes, a peak of any width. A mixture of Gaussians has a closed form with a Gaussian law, as a Gaussian observation has.
The table is made once, outside the particles. It guides, and the program's own density weighs.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import Categorical, Distribution, MixtureSameFamily

from nedm_ppl.inference.posterior._multiplier import (
    NEVER,
    Factorized,
    LinearObservation,
    Multiplier,
    Product,
    over_batch,
)
from nedm_ppl.inference.program._structure import structure
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.models.chain._process import DiffusionProcess

__all__ = ["Tabulated", "guide_of", "tabulate"]

REACH = 8.0  # data are scaled to variance 1; beyond this from 0 nothing is tabulated
FIRST_CELLS, MORE_CELLS, LEVELS = 64, 24, 12
LOWEST = -1e12  # the log of what is zero; below every log r that shows where its peak is
COMPONENTS, FEW_COMPONENTS, MANY_COORDINATES = 24, 8, 64


class Tabulated(Factorized):
    r"""A product of functions of one coordinate each, and $\sum_k w_{ik}\, \mathcal N(x_i; c_{ik}, h_{ik}^2)$ near each of them.

    Attributes:
        exact: The factors themselves, which discrete laws are multiplied by.
        log_weights, loc, scale: $\log w$, c and h, shape (*event, components); w up to a constant.
        seen: Which coordinates r depends on, shape (*event,).
    """

    exact: Factorized
    log_weights: Array
    loc: Array
    scale: Array
    seen: Array

    def log_factors(self, values: Array) -> Array:
        return self.exact.log_factors(values)

    def _product_with_normal(self, loc: Array, scale: Array, power: ArrayLike) -> tuple[Array, Array, Array]:
        """Log weights, means and standard deviations of the product's components, shape (*batch, *event, components)."""
        seen = self.seen[..., None]
        mean, variance = loc[..., None], jnp.square(scale)[..., None]
        # To a power: a Gaussian's width grows, and its place stays.
        noise = jnp.square(self.scale) / power
        total = variance + noise
        evidence = power * self.log_weights - 0.5 * (
            jnp.square(mean - self.loc) / total + jnp.log(2.0 * jnp.pi * total)
        )
        locs = jnp.where(seen, mean + variance / total * (self.loc - mean), mean)
        scales = jnp.sqrt(jnp.where(seen, variance * (noise / total), variance))
        return jnp.where(seen, evidence, 0.0), locs, scales

    def _times_normal(self, loc: Array, scale: Array, power: ArrayLike) -> Distribution:
        log_weights, loc, scale = self._product_with_normal(loc, scale, power)
        return MixtureSameFamily(Categorical(logits=log_weights), PointNormal(loc, scale))

    def _log_mean_normal(self, base: Distribution, power: ArrayLike) -> Array:
        by_component = self._product_with_normal(base.mean, jnp.sqrt(base.variance), power)[0]
        return jnp.where(self.seen, logsumexp(by_component, axis=-1), 0.0)

    @property
    def closes(self) -> bool:
        return False


class Together(Factorized):
    """Several products over coordinates as one."""

    factors: tuple[Factorized, ...]

    def log_factors(self, values: Array) -> Array:
        return sum((factor.log_factors(values) for factor in self.factors), jnp.zeros(jnp.shape(values)))


class Separated(Factorized):
    """An r whose logarithm is a sum of functions of one coordinate each: each is what r changes with that coordinate alone."""

    whole: Multiplier
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def log_factors(self, values: Array) -> Array:
        def one(x: Array) -> Array:
            size = x.size
            alone = jnp.diag(x.reshape(-1)).reshape(size, *self.event_shape)
            nothing = self.whole.log_r(jnp.zeros(self.event_shape, x.dtype))
            return (jax.vmap(self.whole.log_r)(alone) - nothing * (1.0 - 1.0 / size)).reshape(self.event_shape)

        return over_batch(one, values, len(self.event_shape))


def guide_of(r: Product, process: DiffusionProcess) -> Product:
    """r as it moves particles of a Gaussian chain: linear observations in few rows, factors over coordinates tabulated."""
    if process.stationary().is_discrete:
        return r
    shape = process.event_shape
    kept: list[Multiplier] = []
    products: list[Factorized] = []
    for factor in r.factors:
        if isinstance(factor, LinearObservation):
            kept.append(factor.compressed())
        elif isinstance(factor, Factorized) and not factor.closes:
            products.append(factor)
        elif _is_sum(factor, shape):
            products.append(Separated(factor, shape))
        else:
            kept.append(factor)
    if not products:
        return Product(kept)
    together = products[0] if len(products) == 1 else Together(tuple(products))
    return Product((*kept, tabulate(together, _seen(together, shape))))


def _is_sum(factor: Multiplier, shape: tuple[int, ...]) -> bool:
    """Whether log r is a sum of functions of one coordinate each, by its program."""
    if factor.closes or not getattr(factor, "differentiable", True) or math.prod(shape) > MANY_COORDINATES:
        return False
    try:
        return bool(structure(factor.log_r, jnp.zeros(shape)).is_sum)
    except (TypeError, ValueError, NotImplementedError, jax.errors.JAXTypeError):
        return False  # an r that cannot be traced is an r that nothing can move, which is said where it is to be moved


def _seen(factor: Factorized, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(structure(factor.log_factors, jnp.zeros(shape)).depends)


def tabulate(factor: Factorized, seen: Array) -> Tabulated:
    """Tabulate a product of functions of one coordinate each.

    Args:
        factor: The product.
        seen: Which coordinates r depends on, shape (*event,).

    The cells of a line are split where they hold most of r, again and again, and then merged into a few Gaussians.
    """
    num = COMPONENTS if seen.size <= MANY_COORDINATES else FEW_COMPONENTS
    tables = jax.jit(lambda: _tables(factor, seen.shape, num))()
    log_weights, loc, scale = (table.reshape(*seen.shape, num) for table in tables)
    return Tabulated(factor, log_weights, loc, scale, seen)


def _tables(factor: Factorized, shape: tuple[int, ...], num: int) -> tuple[Array, Array, Array]:
    """Log weights, means and standard deviations for every coordinate, shape (coordinates, num)."""
    size, total = math.prod(shape), FIRST_CELLS + LEVELS * MORE_CELLS

    def at(points: Array) -> Array:
        """log r_i in the middles of cells, shape (coordinates, cells)."""
        return jax.vmap(lambda x: _finite(factor.log_factors(x.reshape(shape)).reshape(-1)), 1, 1)(points)

    edges = jnp.linspace(-REACH, REACH, FIRST_CELLS + 1)
    room = ((0, 0), (0, total - FIRST_CELLS))
    low, high = (
        jnp.pad(jnp.broadcast_to(side, (size, FIRST_CELLS)), room, constant_values=REACH)
        for side in (edges[:-1], edges[1:])
    )
    value = jnp.pad(at(0.5 * (low + high)[:, :FIRST_CELLS]), room, constant_values=-jnp.inf)

    def split(level: Array, cells: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, value = cells
        width, middle = high - low, 0.5 * (low + high)
        # So that a cell whose middle misses a narrow peak is still split: logs, of which the nearest to the peak is the largest.
        score = jnp.where(width > 0.0, value + _likely(middle) + 2.0 * jnp.log(width), -jnp.inf)
        _, worst = jax.lax.top_k(score, MORE_CELLS)
        rows, place = jnp.arange(size)[:, None], FIRST_CELLS + level * MORE_CELLS
        left, right, between = low[rows, worst], high[rows, worst], middle[rows, worst]
        halves = at(jnp.concatenate([0.5 * (left + between), 0.5 * (between + right)], axis=1))
        high = jax.lax.dynamic_update_slice(high.at[rows, worst].set(between), right, (0, place))
        low = jax.lax.dynamic_update_slice(low, between, (0, place))
        value = value.at[rows, worst].set(halves[:, :MORE_CELLS])
        return low, high, jax.lax.dynamic_update_slice(value, halves[:, MORE_CELLS:], (0, place))

    low, high, value = jax.lax.fori_loop(0, LEVELS, split, (low, high, value))
    order = jnp.argsort(low, axis=1)
    low, high, value = (jnp.take_along_axis(part, order, axis=1) for part in (low, high, value))
    return jax.vmap(lambda low, high, value: _merged(low, high, value, num))(low, high, value)


def _likely(x: Array) -> Array:
    """Where data are likely to be, in logs: heavy tails about 0, at their scale."""
    return -1.5 * jnp.log1p(0.25 * jnp.square(x))


def _finite(values: Array) -> Array:
    return jnp.maximum(jnp.where(jnp.isnan(values), LOWEST, values), LOWEST)


def _merged(low: Array, high: Array, value: Array, num: int) -> tuple[Array, Array, Array]:
    """Cells of a line as a few Gaussians: log weights, means, standard deviations."""
    width, middle = high - low, 0.5 * (low + high)
    mass = value + jnp.log(width)
    # By the root of the mass, so that tails have components too.
    share = jnp.cumsum(jax.nn.softmax(0.5 * value + _likely(middle) + jnp.log(width)))
    share = share - 0.5 * jnp.diff(share, prepend=0.0)
    group = jnp.clip((num * share / jnp.maximum(share[-1], 1e-30)).astype(int), 0, num - 1)
    member = jax.nn.one_hot(group, num, axis=0, dtype=bool)
    by_group = jnp.where(member, mass, -jnp.inf)
    log_weights = logsumexp(by_group, axis=1)
    is_empty = ~jnp.isfinite(log_weights)
    shares = jnp.where(is_empty[:, None], 0.0, jnp.exp(by_group - jnp.where(is_empty, 0.0, log_weights)[:, None]))
    loc = shares @ middle
    variance = jnp.sum(shares * (jnp.square(middle - loc[:, None]) + jnp.square(width) / 12.0), axis=1)
    # Twice the spread of a cell, so that neighbors overlap and r has no ripples.
    scale = jnp.where(is_empty, 1.0, 2.0 * jnp.sqrt(variance))
    return jnp.where(is_empty, NEVER + jnp.max(log_weights), log_weights), loc, jnp.maximum(scale, 1e-6)
