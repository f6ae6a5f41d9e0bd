"""Distributions that kernels and posteriors are made of. They know no model."""

from nedm_ppl.laws._conditioned import LinearGaussian as LinearGaussian
from nedm_ppl.laws._low_rank import LowRankNormal as LowRankNormal
from nedm_ppl.laws._point_normal import PointNormal as PointNormal
