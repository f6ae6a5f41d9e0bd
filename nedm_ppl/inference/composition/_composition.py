r"""A diffusion site among the other latents of a program: what the particle kernels `PathGibbs` and `ParticleMetropolis` share.

Given the other latents, the program's density of everything that depends on x is $r(x)$ (`downstream`). Which sites those are, and
what they are to x, is read from the program's structure once, at the start, for every value of the other latents: a site whose
density does not depend on x is never evaluated at a particle. What is recognized only guides the particles, whose weight is the
program's own density.

A site in plates holds several draws, shape (*batch, *event). Where all that depends on x lies in those plates too, every draw has a
posterior of its own given the other latents, and a filter of its own. Else they are one datum of shape (*batch, *event).
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions.distribution import validation_enabled

from nedm_ppl._compat import Tracer, init_to_sample
from nedm_ppl.inference.posterior._downstream import (
    Downstream,
    by_member,
    check_trace,
    guide,
    observed_sites,
    prior_of,
    prior_sources,
    program_marks,
)
from nedm_ppl.inference.posterior._multiplied import Along, MultipliedDiffusion
from nedm_ppl.inference.posterior._multiply import multiply
from nedm_ppl.inference.program._recognize import Roles, roles
from nedm_ppl.inference.program._structure import structure
from nedm_ppl.models._prior import DiffusionPrior
from nedm_ppl.models._stacked import stacked
from nedm_ppl.models._units import Units
from nedm_ppl.models.reverse._context import bind, held_by_rows

__all__ = ["Composition", "compose", "gibbs_interface", "is_several", "stacked", "target_of"]


class Composition(NamedTuple):
    """What a program is to its diffusion site; names and shapes alone, nothing of it depends on values.

    Attributes:
        name: The diffusion's site.
        batch_shape: Of the site: the plates it lies in.
        event_shape: Of one draw.
        units: Of the site's data, where they are others than the chain's.
        others: The latent sites beside it.
        roles: What the other sites are to x, observed and latent.
        plates: Which batch axes of the site are plates that all sites depending on x share, counted from the right; () where there
            are none or where draws depend on one another through the program.
    """

    name: str
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    units: Units | None
    others: tuple[str, ...]
    roles: Roles
    plates: tuple[int, ...]

    @property
    def num_members(self) -> int | None:
        """How many draws have a filter each; None where all have one together."""
        return math.prod(self.batch_shape) if self.plates else None


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
        ValueError: no such site or several, a site in a subsampled plate, scaled or enumerated, missing values that nothing
            masks, or a prior that depends on latents.
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
        check_trace(name, trace, kernel)
        others = {other: latents[other]["value"] for other in latents if other != name}
        if not prior_may_depend:
            _check_prior(name, prior_sources(program, name, args, kwargs, others))
        for other, entry in samples.items():
            if other != name and prior_of(entry["fn"]) is not None:
                given_x = {**others, name: site["value"]}
                _check_other_prior(name, other, prior_sources(program, other, args, kwargs, given_x))
        shape = (*prior.batch_shape, *prior.event_shape)
        found = roles(program_marks(program, name, shape, args, kwargs, others))
        frames = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
        plates = tuple(sorted(frames.values()))
        depend = [other for other in samples if other not in found.apart and other != name]
        shared = all(frames.keys() <= {frame.name for frame in samples[s]["cond_indep_stack"]} for s in depend)
        if not (shared and _is_separate(program, name, prior, plates, found.apart, args, kwargs, others)):
            plates = ()
        units = prior.diffusion.units
    return Composition(name, prior.batch_shape, prior.event_shape, units, tuple(others), found, plates)


def target_of(
    program: Callable[..., Any],
    found: Composition,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    along: Along,
    member: ArrayLike | None = None,
) -> MultipliedDiffusion:
    """The chain of a program whose other latents are all given, multiplied by what depends on its site.

    Args:
        program: The program; every latent but the diffusion's is conditioned.
        found: From `compose`.
        args, kwargs: The program's arguments.
        along: How r continues along the chain.
        member: Which draw of the plate, a flat index, where there is a filter for each.
    """
    everything = jnp.zeros((*found.batch_shape, *found.event_shape))
    given = handlers.condition(handlers.seed(program, 0), {found.name: everything})
    prior = prior_of(handlers.trace(given).get_trace(*args, **kwargs)[found.name]["fn"])
    assert prior is not None
    apart, tied = found.roles.apart, along.ties_rows
    if member is None:
        whole = Downstream(program, found.name, args, kwargs, apart)
        diffusion = stacked(prior.diffusion, found.batch_shape)
        return multiply(diffusion, whole, guide(whole, found.roles, everything.shape, rows=tied), along=along)
    whole = Downstream(program, found.name, args, kwargs, apart, jnp.asarray(member), found.batch_shape, found.plates)
    contexts = held_by_rows(prior.diffusion.reverse, found.batch_shape)
    diffusion = prior.diffusion if contexts is None else bind(prior.diffusion, contexts[member])
    return multiply(diffusion, whole, guide(whole, found.roles, found.event_shape, rows=tied), along=along)


def _concrete(leaf: Any) -> Any:
    """Ones in the place of an array that is being traced: what a program is to its site is the same for all data."""
    is_number = isinstance(leaf, Tracer) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.ones(leaf.shape, leaf.dtype) if is_number else leaf


def is_several(rng_key: Array) -> bool:
    """Whether a key is one for each of several chains, as `MCMC(chain_method="vectorized")` passes them."""
    return jnp.ndim(rng_key) > (0 if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) else 1)


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


def _check_prior(name: str, sources: list[str]) -> None:
    if sources:
        raise ValueError(
            f"the prior of site {name!r} must not depend on other latents; it depends on {', '.join(sources)}, whose conditional "
            "needs the density p(x) that no diffusion has. Use ParticleMetropolis, which needs none, or diffusion.flow() in its "
            "place, which has one."
        )


def _check_other_prior(name: str, other: str, sources: list[str]) -> None:
    if name in sources:
        raise ValueError(
            f"the prior of site {other!r} must not depend on site {name!r}: its density p({other} | {name}) is not "
            "known. Use diffusion.flow() in its place, which has a density."
        )


def _is_separate(
    program: Callable[..., Any],
    name: str,
    prior: DiffusionPrior,
    plates: tuple[int, ...],
    apart: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    others: dict[str, Any],
) -> bool:
    """Whether the draws of a plate do not meet downstream, by the program's structure: a plate alone does not keep them apart."""
    batch_shape = prior.batch_shape
    sizes = [size for axis, size in enumerate(batch_shape, -len(batch_shape)) if axis not in plates]
    if not plates or any(size != 1 for size in sizes):
        return False

    def density(x: Array, others: dict[str, Any]) -> Array:
        sites = observed_sites(handlers.condition(program, others), name, x, args, kwargs)
        return by_member(sites, apart, batch_shape, plates)

    rows = np.arange(math.prod(batch_shape)).reshape(batch_shape)
    groups = rows.reshape(*batch_shape, *(1,) * len(prior.event_shape)) + np.zeros(prior.event_shape, int)
    mark = structure(density, jnp.zeros(groups.shape), others, groups=groups)
    return bool(np.all(~mark.depends | ((mark.low == rows) & (mark.high == rows))))
