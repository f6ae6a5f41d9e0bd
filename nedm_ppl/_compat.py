"""What the package relies on of NumPyro and JAX beyond their documented interfaces, in one place.

tests/test_compat.py says of each name what is relied on, so that a new version that changes one fails there.
"""

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


def mask_of(law: MaskedDistribution) -> Any:
    """The mask of a masked distribution: a boolean array, True, False, or None."""
    return law._mask
