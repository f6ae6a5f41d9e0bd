"""What the package relies on of NumPyro and JAX beyond their documented interfaces, in one place.

tests/test_compat.py says of each name what is relied on, so that a new version that changes one fails there.
"""

import sys
from typing import Any

from jax.core import Tracer as Tracer
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Literal as Literal
from numpyro.contrib.module import eqx_module as eqx_module
from numpyro.distributions import MaskedDistribution
from numpyro.distributions.util import is_identically_one as is_identically_one
from numpyro.distributions.util import sum_rightmost as sum_rightmost
from numpyro.distributions.util import validate_sample as validate_sample
from numpyro.infer.initialization import init_to_sample as init_to_sample
from numpyro.ops.provenance import eval_provenance as eval_provenance
from numpyro.primitives import Messenger as Messenger

# What may stand between who asks and a density: wrappers of it.
WITHIN = ("numpyro.distributions", "nedm_ppl.models", "jax.", "jaxtyping", "beartype", "contextlib")


def mask_of(law: MaskedDistribution) -> Any:
    """The mask of a masked distribution: a boolean array, True, False, or None."""
    return law._mask


def density_asked_by() -> tuple[str, Any]:
    """Who asks the distribution that calls this for a density: a module, and the message of the site where NumPyro scores one.

    NumPyro scores a program's trace in loops over a variable `site`, and tells a distribution nothing of the site it is of.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(WITHIN):
        frame = frame.f_back
    site = frame.f_locals.get("site")
    return frame.f_globals.get("__name__", ""), site if isinstance(site, dict) and "is_observed" in site else None
