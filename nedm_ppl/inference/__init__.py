"""Inference: the bound, training, and what is read off a trained model."""

from nedm_ppl.inference.bound import BoundTerms as BoundTerms
from nedm_ppl.inference.bound import TrajectoryBound as TrajectoryBound
from nedm_ppl.inference.bound import bound_terms as bound_terms
from nedm_ppl.inference.bound import unsampled_trajectories as unsampled_trajectories
from nedm_ppl.inference.diagnostics import bound_to_arviz as bound_to_arviz
from nedm_ppl.inference.diagnostics import samples_to_arviz as samples_to_arviz
from nedm_ppl.inference.diagnostics import trace_to_arviz as trace_to_arviz
from nedm_ppl.inference.divergence import divergence as divergence
from nedm_ppl.inference.evaluation import Estimate as Estimate
from nedm_ppl.inference.evaluation import estimate as estimate
from nedm_ppl.inference.evaluation import evaluate as evaluate
from nedm_ppl.inference.resume import CheckpointError as CheckpointError
from nedm_ppl.inference.training import Fitted as Fitted
from nedm_ppl.inference.training import NonFiniteLossError as NonFiniteLossError
from nedm_ppl.inference.training import dequantise as dequantise
from nedm_ppl.inference.training import fit as fit
from nedm_ppl.inference.training import with_parameters as with_parameters
