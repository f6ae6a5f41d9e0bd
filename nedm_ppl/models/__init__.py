"""Models: schedules, the two diffusion processes, reverse kernels, and the NumPyro programs they make."""

from nedm_ppl.models import networks as networks
from nedm_ppl.models import schedules as schedules
from nedm_ppl.models.bernoulli import BernoulliDiffusion as BernoulliDiffusion
from nedm_ppl.models.chain import Kernel as Kernel
from nedm_ppl.models.chain import MarkovChain as MarkovChain
from nedm_ppl.models.context import Conditional as Conditional
from nedm_ppl.models.diffusion import Diffusion as Diffusion
from nedm_ppl.models.discrete import BitPrediction as BitPrediction
from nedm_ppl.models.discrete import FlipRate as FlipRate
from nedm_ppl.models.discrete import LevelPrediction as LevelPrediction
from nedm_ppl.models.discrete import Levels as Levels
from nedm_ppl.models.discrete import log_frequencies as log_frequencies
from nedm_ppl.models.flow import DiffusionFlow as DiffusionFlow
from nedm_ppl.models.flow import ProbabilityFlow as ProbabilityFlow
from nedm_ppl.models.gaussian import GaussianDiffusion as GaussianDiffusion
from nedm_ppl.models.guidance import guided as guided
from nedm_ppl.models.path import sample_path as sample_path
from nedm_ppl.models.prior import DiffusionPrior as DiffusionPrior
from nedm_ppl.models.process import DiffusionProcess as DiffusionProcess
from nedm_ppl.models.respace import respace as respace
from nedm_ppl.models.reverse import DataPrediction as DataPrediction
from nedm_ppl.models.reverse import DriftVariance as DriftVariance
from nedm_ppl.models.reverse import NoisePrediction as NoisePrediction
from nedm_ppl.models.reverse import Parameterisation as Parameterisation
from nedm_ppl.models.reverse import Prediction as Prediction
from nedm_ppl.models.reverse import VelocityPrediction as VelocityPrediction
