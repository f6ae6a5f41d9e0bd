r"""The rest of a NumPyro program as a multiplier: everything downstream of a diffusion prior's site.

    def program(y):
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(blur(x), 0.1).to_event(2), obs=y)

Given x, the joint density of the observed sites is $r(x)$, and the program's posterior is $p(x)\, r(x)$ up to a constant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.distributions import Distribution, Independent
from numpyro.distributions.util import is_identically_one

from nedm_ppl.inference.multiplier import Multiplier
from nedm_ppl.models.diffusion import Diffusion
from nedm_ppl.models.prior import DiffusionPrior

__all__ = ["Downstream", "Site", "diffusion_site"]


class Site(NamedTuple):
    """Where a program draws from a diffusion prior."""

    name: str
    diffusion: Diffusion


class Downstream(Multiplier):
    """r(x): the density of everything a program observes, given the value of its diffusion site.

    Attributes:
        program: The NumPyro program; it may draw nothing but this site.
        site: The site's name.
        args: The program's arguments.
        kwargs: Its keyword arguments.
    """

    program: Callable[..., Any]
    site: str = eqx.field(static=True)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = eqx.field(default_factory=dict)

    def log_r(self, x: Array) -> Array:
        given = handlers.condition(handlers.seed(self.program, 0), {self.site: x})
        # The prior's own density is no part of r, and its zero has no derivative: hide the site.
        hidden = handlers.block(given, hide=[self.site])
        trace = handlers.trace(hidden).get_trace(*self.args, **self.kwargs)
        total = jnp.zeros(())
        for site in trace.values():
            if site["type"] != "sample":
                continue
            log_prob = site["fn"].log_prob(site["value"])
            if not (site["scale"] is None or is_identically_one(site["scale"])):
                log_prob = site["scale"] * log_prob
            total = total + jnp.sum(log_prob)
        return total


def diffusion_site(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Site:
    """The diffusion site of a program whose only latent it is.

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
            "own, by particle Gibbs."
        )
    (name, site), *_ = priors.items()
    if site["is_observed"]:
        raise ValueError(f"site {name!r} is the diffusion and is observed; there is nothing left to infer.")
    others = sorted(other for other, s in samples.items() if not s["is_observed"] and other != name)
    if others:
        raise ValueError(
            f"the program must have no latent site beside the diffusion {name!r}; got {', '.join(others)}. Condition them, or "
            "infer them jointly by Gibbs, with the diffusion site in a block of its own."
        )
    prior = prior_of(site["fn"])
    assert prior is not None
    if prior.batch_shape:
        raise ValueError(
            f"site {name!r} draws several data, batch shape {prior.batch_shape}; ParticlePosterior infers one. Write the program "
            "for one datum and use run_batch."
        )
    return Site(name, prior.diffusion)


def prior_of(law: Distribution) -> DiffusionPrior | None:
    """The diffusion prior behind a site's law, through `to_event`; None where there is none."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law if isinstance(law, DiffusionPrior) else None
