"""The reverse chain: what a network predicts, and the kernel p(x_{t-1} | x_t) that it makes (paper, section 2.2)."""

from nedm_ppl.models.reverse._context import Conditional as Conditional
from nedm_ppl.models.reverse._discrete import BitPrediction as BitPrediction
from nedm_ppl.models.reverse._discrete import FlipRate as FlipRate
from nedm_ppl.models.reverse._discrete import LevelPrediction as LevelPrediction
from nedm_ppl.models.reverse._discrete import log_frequencies as log_frequencies
from nedm_ppl.models.reverse._levels import Levels as Levels
from nedm_ppl.models.reverse._mixture import BitMixture as BitMixture
from nedm_ppl.models.reverse._mixture import fit_bit_mixture as fit_bit_mixture
from nedm_ppl.models.reverse._mixture_prediction import BitMixturePrediction as BitMixturePrediction
from nedm_ppl.models.reverse._mixture_prediction import MixturePrediction as MixturePrediction
from nedm_ppl.models.reverse._reverse import DataPrediction as DataPrediction
from nedm_ppl.models.reverse._reverse import DriftVariance as DriftVariance
from nedm_ppl.models.reverse._reverse import NoisePrediction as NoisePrediction
from nedm_ppl.models.reverse._reverse import Parameterization as Parameterization
from nedm_ppl.models.reverse._reverse import Prediction as Prediction
from nedm_ppl.models.reverse._reverse import VelocityPrediction as VelocityPrediction
