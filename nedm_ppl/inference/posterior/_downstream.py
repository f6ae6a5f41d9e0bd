r"""The rest of a NumPyro program as a multiplier: everything downstream of a diffusion prior's site.

    def program(y):
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(blur(x), 0.1).to_event(2), obs=y)

Given x, the joint density of the observed sites is $r(x)$, and the program's posterior is $p(x)\, r(x)$ up to a constant.
`Downstream` is that density, and weighs particles. `guide` is what moves them: the factors that `recognize` finds, as multipliers
with a closed form, and the rest of the density as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import Distribution

from nedm_ppl._compat import Tracer, eval_provenance, is_identically_one
from nedm_ppl.inference.posterior._multiplier import (
    Factorized,
    LinearObservation,
    Multiplier,
    NormalObservation,
    Product,
    over_batch,
)
from nedm_ppl.inference.program._recognize import Roles, by_element, gaussian_of, marks_of, num_missing, roles
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models._prior import DiffusionPrior
from nedm_ppl.models.chain._captured import is_array

__all__ = ["ByCoordinate", "Downstream", "Site", "diffusion_site", "guide"]

MOST_ROWS = 128  # of a linear observation that x does not compress: its covariance is factorized at every particle


class Downstream(Multiplier):
    """r(x): the density of everything a program observes, given the value of its diffusion site.

    Attributes:
        program: The NumPyro program; it may draw nothing but this site.
        site: The site's name.
        args: The program's arguments.
        kwargs: Its keyword arguments.
        without: Observed sites that are left out: they do not depend on x, or other factors stand for them.
        index: Which draw of a plate x is, a flat index, where each has a posterior of its own; None where x is all there is.
        batch_shape, plates: Of the site, and its batch axes counted from the right; () without an index.
    """

    program: Callable[..., Any]
    site: str = eqx.field(static=True)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = eqx.field(default_factory=dict)
    without: tuple[str, ...] = eqx.field(static=True, default=())
    index: Array | None = None
    batch_shape: tuple[int, ...] = eqx.field(static=True, default=())
    plates: tuple[int, ...] = eqx.field(static=True, default=())

    def log_r(self, x: Array) -> Array:
        if self.index is not None:
            by_row = by_member(self.sites(x), self.without, self.batch_shape, self.plates)
            return by_row.reshape(-1)[self.index]
        counted = (jnp.sum(log_density(s)) for name, s in self.sites(x).items() if name not in self.without)
        return sum(counted, jnp.zeros(()))

    def sites(self, x: Array) -> dict[str, Any]:
        """The program's sample sites given the diffusion's; all draws of a plate take the value of one."""
        everywhere = x if self.index is None else jnp.broadcast_to(x, (*self.batch_shape, *x.shape))
        return observed_sites(self.program, self.site, everywhere, self.args, self.kwargs)

    def but(self, without: tuple[str, ...]) -> "Downstream":
        """The same with more sites left out."""
        return Downstream(
            self.program,
            self.site,
            self.args,
            self.kwargs,
            (*self.without, *without),
            self.index,
            self.batch_shape,
            self.plates,
        )


class ByCoordinate(Factorized):
    """The density of one observed site whose elements depend on one coordinate of x each.

    Attributes:
        whole: The program's density.
        observed: The observed site.
        coordinate: Which coordinate every element depends on, flat; -1 where on none.
        event_shape: Of x.
    """

    whole: Downstream
    observed: str = eqx.field(static=True)
    coordinate: tuple[int, ...] = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def log_factors(self, values: Array) -> Array:
        index = self.whole.index
        size = (
            int(np.prod((*self.whole.batch_shape, *self.event_shape)))
            if index is not None
            else int(np.prod(self.event_shape))
        )

        def one(x: Array) -> Array:
            elements = by_element(self.whole.sites(x)[self.observed]).reshape(-1)
            where = np.asarray(self.coordinate)
            # What depends on no coordinate is the same for all values: put anywhere.
            total = jnp.zeros(size).at[np.maximum(where, 0)].add(jnp.where(where >= 0, elements, 0.0))
            rows = total.reshape(-1, *self.event_shape)
            return rows[0 if index is None else index]

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


def by_member(
    sites: dict[str, Any], without: tuple[str, ...], batch_shape: tuple[int, ...], plates: tuple[int, ...]
) -> Array:
    """The log density of sites, each summed over all its batch axes but the plates; shape (*batch,)."""
    total = jnp.zeros(batch_shape)
    for name, site in sites.items():
        if name in without:
            continue
        log_prob = log_density(site)
        log_prob = log_prob.reshape((1,) * max(0, len(batch_shape) - log_prob.ndim) + log_prob.shape)
        others = tuple(axis for axis in range(-log_prob.ndim, 0) if axis not in plates)
        kept = jnp.sum(log_prob, axis=others, keepdims=True)
        total = total + kept.reshape(kept.shape[kept.ndim - len(batch_shape) :])
    return total


def guide(whole: Downstream, found: Roles, event_shape: tuple[int, ...], *, rows: bool = False) -> Product:
    """The program's density as a product that moves particles: what is recognized in a closed form, and the rest.

    Args:
        whole: The program's density.
        found: What its sites are to x; of all draws of a plate where `whole` is of one.
        event_shape: Of x.
        rows: Whether looks at single coordinates are rows of a linear observation too, for a covariance that ties coordinates.
    """
    nothing = jnp.zeros(event_shape)
    direct_sites = {} if rows else found.direct
    linear_sites = {**(_spans(found.direct) if rows else {}), **found.linear}
    size = int(np.prod(event_shape))
    factors: list[Multiplier] = []
    direct = [_looks(whole, name, coordinate, event_shape) for name, coordinate in direct_sites.items()]
    if direct:
        seen, precision, weighted = (sum(parts) for parts in zip(*direct, strict=True))
        y = weighted / jnp.where(precision > 0.0, precision, 1.0)
        scale = jax.lax.rsqrt(jnp.where(precision > 0.0, precision, 1.0))
        mask = (seen > 0) & (precision > 0.0)
        factors.append(_normal(y.reshape(event_shape), scale.reshape(event_shape), mask.reshape(event_shape)))
    done = [*direct_sites]
    for name, span in linear_sites.items():
        chosen_rows = _rows_of(whole, span, size)
        law = gaussian_of(whole.sites(nothing)[name])
        assert law is not None
        blocks = law.noise.ndim == 3
        if chosen_rows is None or (blocks and whole.index is not None) or min(chosen_rows.shape[1], size) > MOST_ROWS:
            continue
        chosen = jnp.asarray(chosen_rows)[0 if whole.index is None else whole.index]

        def residual(x: Array, name: str = name, chosen: Array = chosen) -> Array:
            law = gaussian_of(whole.sites(x)[name])
            assert law is not None
            return law.residual[chosen]

        matrix = -jax.jacobian(residual)(nothing)
        if blocks:
            covariance = jax.scipy.linalg.block_diag(*(law.noise / jnp.maximum(law.power, 1e-12)[:, None, None]))
        else:
            covariance = jnp.diag(jnp.square(law.noise[chosen]) / jnp.maximum(law.power[chosen], 1e-12))
        factors.append(LinearObservation(residual(nothing), matrix, covariance=covariance))
        done.append(name)
    for name, coordinate in found.by_coordinate.items():
        factors.append(ByCoordinate(whole, name, coordinate, event_shape))
        done.append(name)
    left = {*linear_sites, *found.rest} - {*done}
    if left:
        factors.append(whole.but(tuple(done)))
    return Product(factors)


def _spans(direct: dict[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, int], ...]]:
    return {name: tuple((max(i, 0), i) for i in where) for name, where in direct.items()}


def _looks(
    whole: Downstream, name: str, coordinate: tuple[int, ...], event_shape: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """How often, with which precision, and precision times value, a site sees every coordinate; shapes (size,)."""
    nothing, size = jnp.zeros(event_shape), int(np.prod(event_shape))

    def residual(x: Array) -> Array:
        law = gaussian_of(whole.sites(x)[name])
        assert law is not None
        return law.residual

    # Every element depends on one coordinate: one derivative along all of them together has every slope.
    value, slope = jax.jvp(residual, (nothing,), (jnp.ones_like(nothing),))
    law = gaussian_of(whole.sites(nothing)[name])
    assert law is not None
    # r(x) = N(value + slope x; 0, noise^2 / power).
    precision = law.power * jnp.square(slope / law.noise)
    seen = np.asarray(coordinate)
    usable = (seen >= 0) & (precision > 0.0)
    weighted = jnp.where(usable, -law.power * (slope / law.noise) * (value / law.noise), 0.0)
    rows = whole.index is not None
    total = size * int(np.prod(whole.batch_shape)) if rows else size
    where = np.maximum(seen, 0)

    def gathered(each: Array) -> Array:
        return (
            jnp.zeros(total).at[where].add(jnp.where(usable, each, 0.0)).reshape(-1, size)[whole.index if rows else 0]
        )

    return gathered(jnp.ones_like(precision)), gathered(precision), gathered(weighted)


def _rows_of(whole: Downstream, span: tuple[tuple[int, int], ...], size: int) -> np.ndarray | None:
    """Which elements of a site are of which draw, shape (draws, elements); None where draws share elements or have not as many."""
    if whole.index is None:
        return np.arange(len(span))[None]
    num = int(np.prod(whole.batch_shape))
    low, high = np.asarray(span).T // size
    if np.any(low != high):
        return None
    rows = [np.flatnonzero(low == row) for row in range(num)]
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else None


def _normal(y: Array, scale: Array, mask: Array) -> NormalObservation:
    """An observation whose parts may be traced, and which may see nothing."""
    blank = NormalObservation(jnp.zeros(y.shape), 1.0)
    return eqx.tree_at(lambda factor: (factor.y, factor.scale, factor.mask), blank, (y, scale, mask))


class Site(NamedTuple):
    """Where a program draws from a diffusion prior, and what the rest is to it.

    Attributes:
        name: The site's name.
        diffusion: The model it draws from.
        roles: What the observed sites are.
    """

    name: str
    diffusion: Diffusion
    roles: Roles


def diffusion_site(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Site:
    """The diffusion site of a program whose only latent it is, and what its observed sites are to it.

    Raises:
        ValueError: no diffusion site, several, one that is observed, scaled or inside a plate, other latent sites beside it, a
            subsampled plate, or NaN among what is observed.
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
    check_trace(name, trace, "ParticlePosterior")
    found = roles(program_marks(program, name, prior.event_shape, args, kwargs))
    return Site(name, prior.diffusion, found)


def program_marks(
    program: Callable[..., Any],
    name: str,
    shape: tuple[int, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    latents: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Marks of a program's sites, for every value of the other latents, and of the arguments unless it must know them."""
    latents = {} if latents is None else latents
    arrays, rest = eqx.partition((args, kwargs), _is_data)

    def sites(x: Array, latents: dict[str, Any], arrays: Any) -> dict[str, Any]:
        args, kwargs = eqx.combine(arrays, rest)
        return observed_sites(handlers.condition(program, latents), name, x, args, kwargs)

    def with_these(x: Array, latents: dict[str, Any]) -> dict[str, Any]:
        return observed_sites(handlers.condition(program, latents), name, x, args, kwargs)

    x = jnp.zeros(shape)
    try:
        return marks_of(sites, x, latents, arrays)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError, ValueError):
        return marks_of(
            with_these, x, latents
        )  # a program that must see its arguments: a boolean mask as an index, a size


def _is_data(leaf: Any) -> bool:
    return is_array(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def check_trace(name: str, trace: dict[str, Any], kernel: str) -> None:
    """Refuse what would be answered wrongly in silence: a scaled prior, minibatches, missing values that nothing masks.

    Raises:
        ValueError: the diffusion's site is scaled, a site lies in a subsampled plate, or an observed value holds NaN."""
    for other, site in trace.items():
        if site["type"] != "sample":
            continue
        for frame in site["cond_indep_stack"]:
            size, subsample_size = trace[frame.name]["args"]
            if subsample_size is not None and subsample_size < size:
                raise ValueError(
                    f"site {other!r} must not lie in a subsampled plate; plate {frame.name!r} draws {subsample_size} of "
                    f"{size}, and {kernel} needs the whole likelihood at every step. Use the whole plate."
                )
        if site["is_observed"] and other != name:
            missing = num_missing(site)
            if not isinstance(missing, Tracer) and missing > 0:
                raise ValueError(
                    f"site {other!r} must observe numbers; {int(missing)} of its values are NaN. Leave missing values out by "
                    f"numpyro.handlers.mask or the law's .mask(~isnan(value))."
                )
    if not _is_plain(trace[name]):
        raise ValueError(
            f"site {name!r} must not be scaled: {kernel} samples from the prior itself, not from a power of it."
        )


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
    law = coordinates(law)
    return law if isinstance(law, DiffusionPrior) else None


def _is_plain(site: dict[str, Any]) -> bool:
    return site["scale"] is None or is_identically_one(site["scale"])
