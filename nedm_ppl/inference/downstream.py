r"""The rest of a NumPyro program as a multiplier: everything downstream of a diffusion prior's site.

    def program(y):
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(blur(x), 0.1).to_event(2), obs=y)

Given x, the joint density of the observed sites is $r(x)$, and the program's posterior is $p(x)\, r(x)$ up to a constant.

Observed sites that are Gaussian with a mean affine in x and a noise that does not depend on it are recognised, so that what
`NormalObservation` and `LinearObservation` know in closed form holds for a program too. Whether a mean is affine is asked of its
values at random x, not of the code. Where a datum is of bits or grey levels, sites are recognised too whose density is a product
over coordinates, a mixture at every pixel say: such an r multiplies the model's prediction exactly.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import Distribution, ExpandedDistribution, Independent, MultivariateNormal, Normal
from numpyro.distributions.util import is_identically_one
from numpyro.ops.provenance import eval_provenance

from nedm_ppl.inference.multiplier import (
    Factorised,
    LinearObservation,
    Multiplier,
    NormalObservation,
    Product,
    coordinates,
    over_batch,
)
from nedm_ppl.models.diffusion import Diffusion
from nedm_ppl.models.prior import DiffusionPrior

__all__ = ["ByCoordinate", "Downstream", "Site", "diffusion_site", "downstream"]

NUM_MIXTURES = 16  # at random, by which a density is asked whether it is a product
MOST_ROWS = 128  # of a linear observation: its covariance is factorised at every particle


class Site(NamedTuple):
    """Where a program draws from a diffusion prior, and what of the rest is Gaussian.

    Attributes:
        name: The site's name.
        diffusion: The model it draws from.
        direct: Observed sites whose mean is a selection of coordinates of x plus a constant, and which coordinates: flat indices.
        linear: Observed sites whose mean is another affine map of x.
        by_coordinate: Other observed sites whose density is a product of functions of one coordinate each, and the coordinate, a
            flat index, of every factor.
    """

    name: str
    diffusion: Diffusion
    direct: dict[str, tuple[int, ...]]
    linear: tuple[str, ...]
    by_coordinate: dict[str, tuple[int, ...]]


class Downstream(Multiplier):
    """r(x): the density of everything a program observes, given the value of its diffusion site.

    Attributes:
        program: The NumPyro program; it may draw nothing but this site.
        site: The site's name.
        args: The program's arguments.
        kwargs: Its keyword arguments.
        without: Observed sites that are left out, because other factors stand for them.
    """

    program: Callable[..., Any]
    site: str = eqx.field(static=True)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = eqx.field(default_factory=dict)
    without: tuple[str, ...] = eqx.field(static=True, default=())

    def log_r(self, x: Array) -> Array:
        total = jnp.zeros(())
        for name, site in observed_sites(self.program, self.site, x, self.args, self.kwargs).items():
            if name not in self.without:
                total = total + jnp.sum(log_density(site))
        return total


class ByCoordinate(Factorised):
    """The density of one observed site whose elements depend on one coordinate of x each.

    Were they to depend on others too, `log_r` would still be the density: particles would be guided badly, and weighed right.

    Attributes:
        program, site, args, kwargs: As of `Downstream`.
        observed: The observed site.
        index: Which coordinate every element depends on, flat.
        event_shape: Of x.
    """

    program: Callable[..., Any]
    site: str = eqx.field(static=True)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    observed: str = eqx.field(static=True)
    index: tuple[int, ...] = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def log_factors(self, values: Array) -> Array:
        def one(x: Array) -> Array:
            entry = observed_sites(self.program, self.site, x, self.args, self.kwargs)[self.observed]
            return jnp.zeros(x.size).at[jnp.array(self.index)].add(_by_element(entry)).reshape(x.shape)

        return over_batch(one, values, len(self.event_shape))


def observed_sites(
    program: Callable[..., Any], site: str, x: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The sample sites of a program given its diffusion site, that one left out."""
    given = handlers.condition(handlers.seed(program, 0), {site: x})
    # The prior's own density is no part of r, and its zero has no derivative: hide the site.
    trace = handlers.trace(handlers.block(given, hide=[site])).get_trace(*args, **kwargs)
    return {name: entry for name, entry in trace.items() if entry["type"] == "sample"}


def log_density(site: dict[str, Any]) -> Array:
    """What a site adds to a program's log density, by its batch axes."""
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if _is_plain(site) else site["scale"] * log_prob


def downstream(
    program: Callable[..., Any],
    site: Site,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    without: tuple[str, ...] = (),
) -> Product:
    """The program's r as a product: the factors that `diffusion_site` recognised, and the rest but for `without`."""
    shape = site.diffusion.event_shape

    def sites(x: Array) -> dict[str, Any]:
        return observed_sites(program, site.name, x, args, kwargs)

    def loc(x: Array, name: str) -> Array:
        entry = sites(x)[name]
        return jnp.broadcast_to(_own_law(entry["fn"]).mean, jnp.shape(entry["value"])).reshape(-1)

    nothing = jnp.zeros(shape)
    now = sites(nothing)
    factors: list[Multiplier] = []
    for name, index in site.direct.items():
        entry, where = now[name], jnp.array(index)
        residual = jnp.reshape(entry["value"], -1) - loc(nothing, name)
        scale = jnp.broadcast_to(_own_law(entry["fn"]).scale, jnp.shape(entry["value"])).reshape(-1)
        flat = nothing.reshape(-1)
        y, scales = flat.at[where].set(residual), jnp.ones_like(flat).at[where].set(scale)
        mask = np.zeros(flat.size, bool)
        mask[list(index)] = True
        factors.append(NormalObservation(y.reshape(shape), scales.reshape(shape), mask.reshape(shape)))
    for name in site.linear:
        entry = now[name]
        law, residual = _own_law(entry["fn"]), jnp.reshape(entry["value"], -1) - loc(nothing, name)
        if isinstance(law, MultivariateNormal):
            covariance = law.covariance_matrix
        else:
            covariance = jnp.diag(jnp.square(jnp.broadcast_to(law.scale, jnp.shape(entry["value"])).reshape(-1)))
        factors.append(LinearObservation(residual, jax.jacobian(loc)(nothing, name), covariance=covariance))
    for name, index in site.by_coordinate.items():
        factors.append(ByCoordinate(program, site.name, args, kwargs, name, index, shape))
    done = (*site.direct, *site.linear, *site.by_coordinate, *without)
    if not set(now) <= set(done):
        factors.append(Downstream(program, site.name, args, kwargs, done))
    return Product(factors)


def diffusion_site(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Site:
    """The diffusion site of a program whose only latent it is, and which of its observed sites are Gaussian in it.

    Raises:
        ValueError: no diffusion site, several, one that is observed or inside a plate, or other latent sites beside it.
    """
    trace = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(*args, **kwargs)
    samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
    priors = {name: site for name, site in samples.items() if prior_of(site["fn"]) is not None}
    if not priors:
        raise ValueError(
            'the program must draw one site from a diffusion, numpyro.sample("x", diffusion.prior()); it has none.'
        )
    if len(priors) > 1:
        raise ValueError(
            f"the program must have one diffusion site; got {', '.join(sorted(priors))}. Sample each of several in a block of its "
            "own, by PathGibbs."
        )
    (name, site), *_ = priors.items()
    if site["is_observed"]:
        raise ValueError(f"site {name!r} is the diffusion and is observed; there is nothing left to infer.")
    others = sorted(other for other, s in samples.items() if not s["is_observed"] and other != name)
    if others:
        raise ValueError(
            f"the program must have no latent site beside the diffusion {name!r}; got {', '.join(others)}. Condition them, or "
            "sample them too: by ParticleMetropolis, or by Gibbs with the diffusion in a block of PathGibbs."
        )
    prior = prior_of(site["fn"])
    assert prior is not None
    if prior.batch_shape:
        raise ValueError(
            f"site {name!r} draws several data, batch shape {prior.batch_shape}; ParticlePosterior infers one. Write the program "
            "for one datum and use run_batch."
        )
    direct, linear = gaussian_sites(program, name, prior.event_shape, args, kwargs)
    by_coordinate = product_sites(program, name, prior.diffusion, args, kwargs, without=(*direct, *linear))
    return Site(name, prior.diffusion, direct, linear, by_coordinate)


def gaussian_sites(
    program: Callable[..., Any], name: str, event_shape: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Observed sites that are Gaussian with an affine mean: selections of coordinates, with which, and others."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *event_shape)), float)
    points = (jnp.zeros(event_shape), x[0], x[1], x[0] + x[1])
    try:
        traces = [observed_sites(program, name, point, args, kwargs) for point in points]
    except (ValueError, TypeError):  # a program that takes some x only: grey levels, bits
        return {}, ()
    direct: dict[str, tuple[int, ...]] = {}
    linear: list[str] = []
    for site in traces[0]:
        entries = [trace[site] for trace in traces]
        laws = [_own_law(entry["fn"]) for entry in entries]
        if not all(map(_is_plain, entries)) or not isinstance(laws[0], Normal | MultivariateNormal):
            continue
        means = [np.broadcast_to(law.mean, jnp.shape(entries[0]["value"])).ravel() for law in laws]
        if not (_same(laws, entries) and np.allclose(means[3] + means[0], means[1] + means[2], atol=1e-4)):
            continue
        index = _selection(means[1] - means[0], np.asarray(x[0]).ravel())
        if index is not None and isinstance(laws[0], Normal) and not {*index} & {*sum(direct.values(), ())}:
            direct[site] = index
        elif means[0].size <= MOST_ROWS:
            linear.append(site)
    return direct, tuple(linear)


def product_sites(
    program: Callable[..., Any],
    name: str,
    diffusion: Diffusion,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    without: tuple[str, ...],
) -> dict[str, tuple[int, ...]]:
    """Observed sites whose density is a product over coordinates of bits or grey levels, and the coordinate of every factor.

    Two data that differ everywhere are mixed once for every digit, in base 2, of a coordinate's place: what a factor sees of these
    mixtures spells its coordinate. More mixtures, at random, then ask whether it is so."""
    values = (0.0, 1.0) if diffusion.process.stationary().is_discrete else diffusion.levels
    if values is None:
        return {}
    rng, size = np.random.default_rng(0), math.prod(diffusion.event_shape)
    which = rng.integers(len(values), size=size)
    first, second = (
        np.asarray(values)[which],
        np.asarray(values)[(which + 1 + rng.integers(len(values) - 1, size=size)) % len(values)],
    )
    digits = [np.arange(size) >> k & 1 == 1 for k in range((size - 1).bit_length())]
    masks = [np.zeros(size, bool), np.ones(size, bool), *digits, *(rng.random((NUM_MIXTURES, size)) < 0.5)]

    def densities(x: Array) -> dict[str, Array]:
        sites = observed_sites(program, name, x, args, kwargs)
        return {site: _by_element(entry) for site, entry in sites.items() if site not in without and _is_plain(entry)}

    x = jnp.asarray(np.where(np.stack(masks), second, first), float).reshape(-1, *diffusion.event_shape)
    rows = jax.tree.map(np.asarray, jax.jit(jax.vmap(densities))(x))
    found: dict[str, tuple[int, ...]] = {}
    for site, (start, end, *mixed) in rows.items():
        index = sum((~_close(row, start)).astype(int) << k for k, row in enumerate(mixed[: len(digits)]))
        index = np.broadcast_to(index, start.shape)
        if np.all(index < size) and all(
            _close(row, np.where(mask[index], end, start)).all() for row, mask in zip(mixed, masks[2:], strict=True)
        ):
            found[site] = tuple(index.tolist())
    return found


def _close(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.isclose(first, second, rtol=1e-4, atol=1e-5)


def _by_element(site: dict[str, Any]) -> Array:
    """The log density of every element of a site, flat."""
    return jnp.reshape(coordinates(site["fn"]).log_prob(site["value"]), -1)


def _is_plain(site: dict[str, Any]) -> bool:
    return site["scale"] is None or is_identically_one(site["scale"])


def _own_law(law: Distribution) -> Distribution:
    """The law of a site's coordinates; of normals that a plate repeats, the law of one row."""
    law = coordinates(law)
    repeated = isinstance(law, ExpandedDistribution) and isinstance(law.base_dist, Normal)
    return law.base_dist if repeated else law


def _same(laws: list[Distribution], entries: list[Any]) -> bool:
    """Whether the noise is the same at every x."""
    noise = [law.covariance_matrix if isinstance(law, MultivariateNormal) else law.scale for law in laws]
    values = all(np.array_equal(entry["value"], entries[0]["value"]) for entry in entries)
    return values and all(np.allclose(each, noise[0]) for each in noise)


def _selection(image: np.ndarray, x: np.ndarray) -> tuple[int, ...] | None:
    """Flat indices of x that an image is made of, each used once; None where it is another map."""
    index = np.argmin(np.abs(image[:, None] - x[None]), axis=1)
    good = np.allclose(x[index], image, atol=1e-5) and len(np.unique(index)) == len(index)
    return tuple(int(i) for i in index) if good else None


def prior_sources(
    program: Callable[..., Any],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    latents: dict[str, Any],
) -> list[str]:
    """Which latents the diffusion site's draws depend on, by the program's arithmetic."""

    def draw(**latents: Any) -> Array:
        given = handlers.condition(handlers.seed(program, 0), latents)
        prior = prior_of(handlers.trace(given).get_trace(*args, **kwargs)[name]["fn"])
        assert prior is not None
        return prior.sample(jax.random.key(0))

    return sorted(eval_provenance(draw, **latents)) if latents else []


def prior_of(law: Distribution) -> DiffusionPrior | None:
    """The diffusion prior behind a site's law, through `to_event`; None where there is none."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law if isinstance(law, DiffusionPrior) else None
