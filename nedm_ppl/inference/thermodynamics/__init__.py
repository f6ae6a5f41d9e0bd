"""Entropies of the reverse steps and the work of trajectories (paper, section 2.6)."""

from nedm_ppl.inference.thermodynamics._entropy import EntropyBounds as EntropyBounds
from nedm_ppl.inference.thermodynamics._entropy import entropy_bounds as entropy_bounds
from nedm_ppl.inference.thermodynamics._thermodynamics import LossBands as LossBands
from nedm_ppl.inference.thermodynamics._thermodynamics import StepLosses as StepLosses
from nedm_ppl.inference.thermodynamics._thermodynamics import Thermodynamics as Thermodynamics
from nedm_ppl.inference.thermodynamics._thermodynamics import Work as Work
from nedm_ppl.inference.thermodynamics._thermodynamics import loss_bands as loss_bands
from nedm_ppl.inference.thermodynamics._thermodynamics import step_losses as step_losses
from nedm_ppl.inference.thermodynamics._thermodynamics import work as work
