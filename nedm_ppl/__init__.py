"""Diffusion probabilistic models as NumPyro programs (Sohl-Dickstein et al., 2015)."""

from importlib.metadata import version

from nedm_ppl import inference as inference
from nedm_ppl import models as models

__version__ = version("nedm-ppl")
