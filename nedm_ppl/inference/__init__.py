"""Inference: the bound, training, and what is read off a trained model."""

from nedm_ppl.inference.bound import BoundTerms as BoundTerms
from nedm_ppl.inference.bound import TrajectoryBound as TrajectoryBound
from nedm_ppl.inference.bound import bound_terms as bound_terms
from nedm_ppl.inference.divergence import divergence as divergence
