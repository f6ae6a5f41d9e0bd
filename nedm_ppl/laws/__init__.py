"""Distributions that kernels and posteriors are made of. They know no model."""

from nedm_ppl.laws._conditioned import LinearGaussian as LinearGaussian
from nedm_ppl.laws._conditioned import PointNormal as PointNormal
