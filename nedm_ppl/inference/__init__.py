"""Inference: the bound, training, and what is read off a trained model.

What these are built of is public in its folder: `inference.bound`, `inference.likelihood` and `inference.posterior`, beside
`nedm_ppl.laws`.
"""

from nedm_ppl.inference._arviz import mcmc_to_arviz as mcmc_to_arviz
from nedm_ppl.inference._arviz import samples_to_arviz as samples_to_arviz
from nedm_ppl.inference._arviz import trace_to_arviz as trace_to_arviz
from nedm_ppl.inference.bound import BoundTerms as BoundTerms
from nedm_ppl.inference.bound import TrajectoryBound as TrajectoryBound
from nedm_ppl.inference.bound import bound_terms as bound_terms
from nedm_ppl.inference.bound import evaluate as evaluate
from nedm_ppl.inference.composition import ParticleMetropolis as ParticleMetropolis
from nedm_ppl.inference.composition import PathGibbs as PathGibbs
from nedm_ppl.inference.likelihood import Classification as Classification
from nedm_ppl.inference.likelihood import Compared as Compared
from nedm_ppl.inference.likelihood import LogLikelihood as LogLikelihood
from nedm_ppl.inference.likelihood import Parzen as Parzen
from nedm_ppl.inference.likelihood import Sandwich as Sandwich
from nedm_ppl.inference.likelihood import TargetNotReachedWarning as TargetNotReachedWarning
from nedm_ppl.inference.likelihood import calibration_error as calibration_error
from nedm_ppl.inference.likelihood import classify as classify
from nedm_ppl.inference.likelihood import compare as compare
from nedm_ppl.inference.likelihood import fit_temperature as fit_temperature
from nedm_ppl.inference.likelihood import marginal_log_likelihood as marginal_log_likelihood
from nedm_ppl.inference.likelihood import parzen_log_likelihood as parzen_log_likelihood
from nedm_ppl.inference.likelihood import sandwich as sandwich
from nedm_ppl.inference.posterior import AllWeightLostError as AllWeightLostError
from nedm_ppl.inference.posterior import BernoulliObservation as BernoulliObservation
from nedm_ppl.inference.posterior import DoubtfulPosterior as DoubtfulPosterior
from nedm_ppl.inference.posterior import Downstream as Downstream
from nedm_ppl.inference.posterior import Function as Function
from nedm_ppl.inference.posterior import Known as Known
from nedm_ppl.inference.posterior import LinearObservation as LinearObservation
from nedm_ppl.inference.posterior import Lookahead as Lookahead
from nedm_ppl.inference.posterior import MultipliedDiffusion as MultipliedDiffusion
from nedm_ppl.inference.posterior import Multiplier as Multiplier
from nedm_ppl.inference.posterior import NormalObservation as NormalObservation
from nedm_ppl.inference.posterior import ParticlePosterior as ParticlePosterior
from nedm_ppl.inference.posterior import Product as Product
from nedm_ppl.inference.posterior import multiply as multiply
from nedm_ppl.inference.thermodynamics import EntropyBounds as EntropyBounds
from nedm_ppl.inference.thermodynamics import LossBands as LossBands
from nedm_ppl.inference.thermodynamics import StepLosses as StepLosses
from nedm_ppl.inference.thermodynamics import Thermodynamics as Thermodynamics
from nedm_ppl.inference.thermodynamics import Work as Work
from nedm_ppl.inference.thermodynamics import entropy_bounds as entropy_bounds
from nedm_ppl.inference.thermodynamics import loss_bands as loss_bands
from nedm_ppl.inference.thermodynamics import step_losses as step_losses
from nedm_ppl.inference.thermodynamics import work as work
from nedm_ppl.inference.training import CheckpointError as CheckpointError
from nedm_ppl.inference.training import Fitted as Fitted
from nedm_ppl.inference.training import NonFiniteLossError as NonFiniteLossError
from nedm_ppl.inference.training import dequantize as dequantize
from nedm_ppl.inference.training import drop_context as drop_context
from nedm_ppl.inference.training import fit as fit
from nedm_ppl.inference.training import with_parameters as with_parameters
from nedm_ppl.numbers import Estimate as Estimate
