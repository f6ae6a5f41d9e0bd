"""A trained model multiplied by r(x): the perturbed chain and the particles that make it exact (paper, section 2.5)."""

from nedm_ppl.inference.posterior._conditional_filter import conditional_filter as conditional_filter
from nedm_ppl.inference.posterior._conditional_filter import conditional_importance as conditional_importance
from nedm_ppl.inference.posterior._downstream import Downstream as Downstream
from nedm_ppl.inference.posterior._lookahead import Lookahead as Lookahead
from nedm_ppl.inference.posterior._multiplied import Along as Along
from nedm_ppl.inference.posterior._multiplied import MultipliedDiffusion as MultipliedDiffusion
from nedm_ppl.inference.posterior._multiplier import BernoulliObservation as BernoulliObservation
from nedm_ppl.inference.posterior._multiplier import Function as Function
from nedm_ppl.inference.posterior._multiplier import Known as Known
from nedm_ppl.inference.posterior._multiplier import LinearObservation as LinearObservation
from nedm_ppl.inference.posterior._multiplier import Multiplier as Multiplier
from nedm_ppl.inference.posterior._multiplier import NormalObservation as NormalObservation
from nedm_ppl.inference.posterior._multiplier import Product as Product
from nedm_ppl.inference.posterior._multiply import multiply as multiply
from nedm_ppl.inference.posterior._particle_posterior import AllWeightLostError as AllWeightLostError
from nedm_ppl.inference.posterior._particle_posterior import ParticlePosterior as ParticlePosterior
from nedm_ppl.inference.posterior._particle_verdict import DoubtfulPosterior as DoubtfulPosterior
from nedm_ppl.inference.posterior._particles import Particles as Particles
from nedm_ppl.inference.posterior._particles import multinomial as multinomial
from nedm_ppl.inference.posterior._particles import particle_filter as particle_filter
from nedm_ppl.inference.posterior._particles import systematic as systematic
