"""Diffusion probabilistic models as NumPyro programs (Sohl-Dickstein et al., 2015)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nedm_ppl import inference as inference
    from nedm_ppl import models as models

__version__ = version("nedm-ppl")


def __getattr__(name: str) -> Any:
    """The two subpackages, imported when they are asked for: the command line answers, and can be stopped, before JAX is there."""
    if name in ("inference", "models"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
