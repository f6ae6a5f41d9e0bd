r"""A diffusion site among the other latents of a program: what the particle kernels `PathGibbs` and `ParticleMetropolis` share.

Given the other latents, the program's density of everything that depends on x is $r(x)$ (`downstream`). Which sites those are
is asked of the program's own arithmetic once, at the start: a site whose density does not depend on x is never evaluated at a
particle. So is what can be recognised as Gaussian or as a product over coordinates; it only guides the particles, whose last
weight is the program's own density.

A site in plates holds several draws, shape (*batch, *event). Where all that depends on x lies in those plates too, every draw has a
posterior of its own given the other latents, and a filter of its own. Else they are one datum of shape (*batch, *event).
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions.distribution import validation_enabled
from numpyro.distributions.util import is_identically_one
from numpyro.infer.initialization import init_to_sample
from numpyro.ops.provenance import eval_provenance

from nedm_ppl.inference.downstream import (
    Downstream,
    Site,
    downstream,
    gaussian_sites,
    log_density,
    observed_sites,
    prior_of,
    prior_sources,
    product_sites,
)
from nedm_ppl.inference.multiplier import Multiplier, NormalObservation, Product
from nedm_ppl.inference.posterior import MultipliedDiffusion, multiply
from nedm_ppl.models.context import bind, held_by_rows
from nedm_ppl.models.stacked import stacked

__all__ = ["Composition", "Member", "compose", "gibbs_interface", "stacked", "target_of"]


class Composition(NamedTuple):
    """What a program is to its diffusion site; names and shapes alone, nothing of it depends on values.

    Attributes:
        name: The diffusion's site.
        batch_shape: Of the site: the plates it lies in.
        event_shape: Of one draw.
        others: The latent sites beside it.
        apart: Sites, observed and latent, whose density does not depend on x.
        direct, linear, by_coordinate: Sites that are Gaussian in x or a product over coordinates, as in `downstream.Site`.
        plates: Which batch axes of the site are plates that all sites depending on x share, counted from the right; () where there
            are none or where draws depend on one another through the program.
    """

    name: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    others: tuple[str, ...]
    apart: tuple[str, ...]
    direct: dict[str, tuple[int, ...]]
    linear: tuple[str, ...]
    by_coordinate: dict[str, tuple[int, ...]]
    plates: tuple[int, ...]

    @property
    def num_members(self) -> int | None:
        """How many draws have a filter each; None where all have one together."""
        return math.prod(self.batch_shape) if self.plates else None


class Member(Multiplier):
    """r of one draw in a plate: the density of what depends on it, all other draws of the plate being of no consequence.

    Attributes:
        program, site, args, kwargs, without: As of `Downstream`.
        batch_shape: Of the site.
        plates: Its batch axes that are plates, counted from the right.
        index: Which draw, a flat index.
    """

    program: Callable[..., Any]
    site: str = eqx.field(static=True)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    without: tuple[str, ...] = eqx.field(static=True)
    batch_shape: tuple[int, ...] = eqx.field(static=True)
    plates: tuple[int, ...] = eqx.field(static=True)
    index: Array

    def log_r(self, x: Array) -> Array:
        everywhere = jnp.broadcast_to(x, (*self.batch_shape, *x.shape))
        sites = observed_sites(self.program, self.site, everywhere, self.args, self.kwargs)
        return _by_member(sites, self.without, self.batch_shape, self.plates).reshape(-1)[self.index]


def compose(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    given: frozenset[str],
    prior_may_depend: bool,
    kernel: str,
) -> Composition:
    """What a program is to the one diffusion site that is not given.

    Args:
        program: The NumPyro program.
        args, kwargs: Its arguments.
        given: Latent sites that other kernels sample.
        prior_may_depend: Whether the prior's parameters may depend on other latents.
        kernel: Name of the kernel that asks, for messages.

    Raises:
        ValueError: no such site or several, a site in a subsampled plate, scaled or enumerated, or a prior that depends on latents.
    """
    # Values of its own, drawn at once even where the caller is being traced: chains under vmap find what one chain finds.
    # NumPyro's validation would warn of values that are only looked at.
    with jax.ensure_compile_time_eval(), validation_enabled(False):
        args, kwargs = jax.tree.map(_concrete, (args, kwargs))
        drawn = handlers.substitute(handlers.seed(program, jax.random.key(0)), substitute_fn=init_to_sample)
        trace = handlers.trace(drawn).get_trace(*args, **kwargs)
        samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
        latents = {name: site for name, site in samples.items() if not site["is_observed"]}
        name = _the_site(samples, latents, given, kernel)
        site, prior = latents[name], prior_of(latents[name]["fn"])
        assert prior is not None
        _check_site(name, site, trace, kernel)
        others = {other: latents[other]["value"] for other in latents if other != name}
        if not prior_may_depend:
            _check_prior(name, prior_sources(program, name, args, kwargs, others))
        shape = (*prior.batch_shape, *prior.event_shape)
        value = site["value"]
        conditioned = handlers.condition(program, others)

        def densities(x: Array) -> dict[str, Array]:
            sites = observed_sites(conditioned, name, x, args, kwargs)
            return {other: log_density(entry) for other, entry in sites.items()}

        depend = {other for other, source in eval_provenance(densities, x=value).items() if source}
        _check_other_priors(name, depend, samples)
        apart = tuple(other for other in samples if other not in depend and other != name)
        frames = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
        plates = tuple(sorted(frames.values()))
        shared = all(frames.keys() <= {frame.name for frame in samples[s]["cond_indep_stack"]} for s in depend)
        if not (shared and _is_separate(conditioned, name, prior.batch_shape, plates, apart, value, args, kwargs)):
            plates = ()
        direct, linear = gaussian_sites(conditioned, name, shape, args, kwargs)
        by_coordinate = {}
        if not plates:
            without = (*direct, *linear, *apart)
            by_coordinate = product_sites(
                conditioned, name, stacked(prior.diffusion, prior.batch_shape), args, kwargs, without
            )
    return Composition(
        name,
        prior.batch_shape,
        prior.event_shape,
        tuple(others),
        apart,
        {other: index for other, index in direct.items() if other in depend},
        () if plates else tuple(other for other in linear if other in depend),
        by_coordinate,
        plates,
    )


def target_of(
    program: Callable[..., Any],
    found: Composition,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    member: ArrayLike | None = None,
) -> tuple[MultipliedDiffusion, Multiplier]:
    """The perturbed chain of a program whose other latents are all given, and r as the program itself has it.

    Args:
        program: The program; every latent but the diffusion's is conditioned.
        found: From `compose`.
        args, kwargs: The program's arguments.
        options: Those of `multiply`.
        member: Which draw of the plate, a flat index, where there is a filter for each.
    """
    everything = jnp.zeros((*found.batch_shape, *found.event_shape))
    given = handlers.condition(handlers.seed(program, 0), {found.name: everything})
    prior = prior_of(handlers.trace(given).get_trace(*args, **kwargs)[found.name]["fn"])
    assert prior is not None
    whole = stacked(prior.diffusion, found.batch_shape)
    site = Site(found.name, whole, found.direct, found.linear, found.by_coordinate)
    product = downstream(program, site, args, kwargs, without=found.apart)
    if member is None:
        return multiply(whole, product, **options), Downstream(program, found.name, args, kwargs, found.apart)

    def of_member(without: tuple[str, ...]) -> Member:
        arrays = found.batch_shape, found.plates, jnp.asarray(member)
        return Member(program, found.name, args, kwargs, without, *arrays)

    def slice_(factor: Multiplier) -> Multiplier:
        if not isinstance(factor, NormalObservation):
            return of_member((*found.direct, *found.apart))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *found.event_shape)[member], factor)

    contexts = held_by_rows(prior.diffusion.reverse, found.batch_shape)
    diffusion = prior.diffusion if contexts is None else bind(prior.diffusion, contexts[member])
    sliced = Product(slice_(factor) for factor in product.factors)
    return multiply(diffusion, sliced, **options), of_member(found.apart)


def _concrete(leaf: Any) -> Any:
    """Ones in the place of an array that is being traced: what a program is to its site is the same for all data."""
    is_number = isinstance(leaf, jax.core.Tracer) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.ones(leaf.shape, leaf.dtype) if is_number else leaf


def gibbs_interface(kernel: str) -> Any:
    """The module `numpyro.infer.gibbs`.

    Raises:
        ImportError: a numpyro that has none."""
    try:
        return import_module("numpyro.infer.gibbs")
    except ImportError as error:
        raise ImportError(
            f"{kernel} needs numpyro 0.22 or newer, the first with numpyro.infer.gibbs; got {numpyro.__version__}."
        ) from error


def _the_site(samples: dict[str, Any], latents: dict[str, Any], given: frozenset[str], kernel: str) -> str:
    enumerated = [name for name, site in latents.items() if site["infer"].get("enumerate") == "parallel"]
    if enumerated:
        raise ValueError(
            f"{kernel} does not sum over enumerated sites; got {', '.join(enumerated)}. Give them a block of their own by "
            "DiscreteGibbs, or sum over them in the program."
        )
    own = [name for name in latents if name not in given]
    priors = [name for name in own if prior_of(latents[name]["fn"]) is not None]
    if kernel == "PathGibbs" and len(own) > 1:
        raise ValueError(
            f"{kernel} samples one site, and {', '.join(own)} are left to it. Give every diffusion a block of its own, and the "
            f"rest to other kernels: Gibbs([({kernel}(model), ['x']), (NUTS(model), None)])."
        )
    if len(priors) == 1:
        return priors[0]
    if priors:
        raise ValueError(
            f"{kernel} samples one diffusion site; got {', '.join(priors)}. Sample each of several in a block of its own, by "
            "PathGibbs."
        )
    observed = [name for name, site in samples.items() if site["is_observed"] and prior_of(site["fn"]) is not None]
    if observed:
        raise ValueError(
            f"site {observed[0]!r} is the diffusion and is observed or conditioned; there is nothing left for {kernel} to infer."
        )
    laws = ", ".join(f"{name!r} from a {type(latents[name]['fn']).__name__}" for name in own) or "nothing"
    raise ValueError(f'{kernel} samples a site numpyro.sample("x", diffusion.prior()); the program draws {laws}.')


def _check_site(name: str, site: dict[str, Any], trace: dict[str, Any], kernel: str) -> None:
    for frame in site["cond_indep_stack"]:
        size, subsample_size = trace[frame.name]["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"site {name!r} must not lie in a subsampled plate; plate {frame.name!r} draws {subsample_size} of {size}, and the "
                "trajectory of a draw belongs to that draw. Use the whole plate."
            )
    if not (site["scale"] is None or is_identically_one(site["scale"])):
        raise ValueError(
            f"site {name!r} must not be scaled: {kernel} samples from the prior itself, not from a power of it."
        )


def _check_prior(name: str, sources: list[str]) -> None:
    if sources:
        raise ValueError(
            f"the prior of site {name!r} must not depend on other latents; it depends on {', '.join(sources)}, whose conditional "
            "needs the density p(x) that no diffusion has. Use ParticleMetropolis, which needs none, or diffusion.flow() in its "
            "place, which has one."
        )


def _check_other_priors(name: str, depend: set[str], samples: dict[str, Any]) -> None:
    unknown = sorted(other for other in depend if prior_of(samples[other]["fn"]) is not None)
    if unknown:
        raise ValueError(
            f"the prior of site {unknown[0]!r} must not depend on site {name!r}: its density p({unknown[0]} | {name}) is not "
            "known. Use diffusion.flow() in its place, which has a density."
        )


def _by_member(
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


def _is_separate(
    program: Callable[..., Any],
    name: str,
    batch_shape: tuple[int, ...],
    plates: tuple[int, ...],
    apart: tuple[str, ...],
    value: Array,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Whether the draws of a plate do not meet downstream, asked of values: a plate alone does not keep them apart."""
    sizes = [size for axis, size in enumerate(batch_shape, -len(batch_shape)) if axis not in plates]
    if not plates or any(size != 1 for size in sizes):
        return False

    def by_member(x: Array) -> np.ndarray:
        sites = observed_sites(program, name, x, args, kwargs)
        return np.asarray(_by_member(sites, apart, batch_shape, plates))

    flat = value.reshape(-1, *value.shape[len(batch_shape) :])
    even = jnp.arange(len(flat)) % 2 == 0
    rolled = jnp.roll(flat, 1, axis=0)
    mixed = jnp.where(even.reshape(-1, *(1,) * (flat.ndim - 1)), flat, rolled)
    first, second, both = (by_member(x.reshape(value.shape)).reshape(-1) for x in (flat, rolled, mixed))
    return bool(np.allclose(both, np.where(even, first, second), rtol=1e-4, atol=1e-4))
