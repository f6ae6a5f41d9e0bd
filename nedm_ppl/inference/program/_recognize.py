r"""What the observed sites of a program are to x, by the program's structure.

A site is recognized where its law is Gaussian with a mean that is affine in x, or where each of its elements depends on one
coordinate of x. Types say which law a site has, and `structure` what depends on what and how, for every value of the arguments
and of the other latents. What is recognized guides particles; the program's density weighs them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    MultivariateNormal,
    Normal,
)

from nedm_ppl._compat import is_identically_one, mask_of
from nedm_ppl.inference.program._structure import Mark, structure

__all__ = ["Gaussian", "Roles", "by_element", "gaussian_of", "marks_of", "num_missing", "roles"]


class Gaussian(NamedTuple):
    """A Gaussian site, its values in one vector.

    Attributes:
        residual: Observed value less mean, shape (dim,).
        noise: Standard deviations, shape (dim,), or covariances of blocks of elements that follow one another, shape (blocks,
        k, k).
        power: What the log density of every element is multiplied by: a mask's 0 or 1, a scale; shape (dim,) or (blocks,).
    """

    residual: Array
    noise: Array
    power: Array


class Roles(NamedTuple):
    """What the sites that depend on x are; names, and flat indices of coordinates of x.

    Attributes:
        direct: Gaussian sites of which each element is an affine function of one coordinate, and which; -1 where of none.
        linear: Other Gaussian sites with an affine mean, and the span of coordinates that each element of the mean depends on.
        by_coordinate: Sites of which each element depends on one coordinate in another way, and which; -1 where on none.
        rest: The others.
        apart: Sites whose density does not depend on x.
    """

    direct: dict[str, tuple[int, ...]]
    linear: dict[str, tuple[tuple[int, int], ...]]
    by_coordinate: dict[str, tuple[int, ...]]
    rest: tuple[str, ...]
    apart: tuple[str, ...]


def roles(marks: dict[str, tuple[Mark, Mark | None]]) -> Roles:
    """The roles of sites, from the marks of their elements (`marks_of`)."""
    found = Roles({}, {}, {}, (), ())
    rest, apart = [], []
    for name, (density, gaussian) in marks.items():
        if not density.depends.any():
            apart.append(name)
        elif gaussian is not None and gaussian.affine.all():
            low, high = gaussian.low.ravel(), np.where(gaussian.depends, gaussian.high, -1).ravel()
            if gaussian.is_single.all() and density.low.size == low.size:
                found.direct[name] = tuple(high.tolist())
            else:
                found.linear[name] = tuple(zip(low.tolist(), high.tolist(), strict=True))
        elif density.is_single.all():
            found.by_coordinate[name] = tuple(np.where(density.depends, density.high, -1).ravel().tolist())
        else:
            rest.append(name)
    return found._replace(rest=tuple(rest), apart=tuple(apart))


def marks_of(sites: Callable[..., dict[str, Any]], x: Array, *others: Any) -> dict[str, tuple[Mark, Mark | None]]:
    """Marks of every site: of its density by element, and of its mean where it is Gaussian with a noise that is given.

    Args:
        sites: `x, *others` -> the observed sites of a program, by name.
        x: Of the shape of x.
        others: Pytrees of arrays whose values are not known.
    """

    def parts(x: Array, *others: Any) -> dict[str, tuple[Array, Gaussian | None]]:
        return {name: (by_element(site), gaussian_of(site)) for name, site in sites(x, *others).items()}

    found = structure(parts, x, *others)
    return {
        name: (density, None if law is None or law.noise.depends.any() or law.power.depends.any() else law.residual)
        for name, (density, law) in found.items()
    }


def by_element(site: dict[str, Any]) -> Array:
    """What every element of a site adds to a program's log density; elements of a vector that has one density are one."""
    law, power = _inner(site)
    value = _seen_value(law, power, jnp.asarray(site["value"]))
    log_prob = law.log_prob(value)
    power = jnp.broadcast_to(power, jnp.shape(log_prob))
    return jnp.where(power == 0.0, 0.0, power * log_prob)


def gaussian_of(site: dict[str, Any]) -> Gaussian | None:
    """A site as a Gaussian; None where it is another."""
    law, power = _inner(site)
    base = law
    while isinstance(base, ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, Normal | MultivariateNormal):
        return None
    shape = (*law.batch_shape, *law.event_shape)
    value = _seen_value(law, power, jnp.asarray(site["value"], float))
    residual = jnp.broadcast_to(value - base.loc, shape)
    power = jnp.broadcast_to(power, law.batch_shape).reshape(-1).astype(residual.dtype)
    if isinstance(base, Normal):
        return Gaussian(residual.reshape(-1), jnp.broadcast_to(base.scale, shape).reshape(-1), power)
    size = base.event_shape[0]
    covariance = jnp.broadcast_to(base.covariance_matrix, (*law.batch_shape, size, size))
    return Gaussian(residual.reshape(-1), covariance.reshape(-1, size, size), power)


def _inner(site: dict[str, Any]) -> tuple[Distribution, Array]:
    """The law of a site's elements, and what their log densities are multiplied by, by masks and scales."""
    law = site["fn"]
    power = jnp.ones(()) if site["scale"] is None or is_identically_one(site["scale"]) else jnp.asarray(site["scale"])
    while isinstance(law, Independent | MaskedDistribution) or _is_repeated_mask(law):
        if isinstance(law, ExpandedDistribution):
            masked, shape = law.base_dist, law.batch_shape
            law = MaskedDistribution(
                masked.base_dist.expand(shape), jnp.broadcast_to(jnp.asarray(mask_of(masked)), shape)
            )
        if isinstance(law, MaskedDistribution):
            mask = jnp.ones(()) if mask_of(law) is None else jnp.asarray(mask_of(law))
            power = power * mask
        elif power.ndim:
            power = power.reshape(*power.shape, *(1,) * law.reinterpreted_batch_ndims)
        law = law.base_dist
    return law, power


def num_missing(site: dict[str, Any]) -> Array:
    """How many elements of an observed value are NaN and are not masked."""
    law, power = _inner(site)
    value = jnp.asarray(site["value"])
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros((), int)
    return jnp.sum(jnp.isnan(value) & _counts(law, power, value))


def _is_repeated_mask(law: Distribution) -> bool:
    return isinstance(law, ExpandedDistribution) and isinstance(law.base_dist, MaskedDistribution)


def _counts(law: Distribution, power: Array, value: Array) -> Array:
    """Which elements of a value count: those that no mask or scale of 0 hides."""
    counts = power != 0.0
    return counts.reshape(*counts.shape, *(1,) * law.event_dim) if counts.ndim else counts


def _seen_value(law: Distribution, power: Array, value: Array) -> Array:
    """The value, and one that is possible where nothing counts: NaN there has no derivative."""
    if power.ndim == 0 or not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    try:
        assert law.support is not None
        possible = law.support.feasible_like(value)
    except NotImplementedError:
        return value
    return jnp.where(_counts(law, power, value), value, possible)
