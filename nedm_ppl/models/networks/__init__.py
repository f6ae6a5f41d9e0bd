"""Networks: callables `(t, x) -> array` on one datum. Any other callable of that form serves as well."""

from nedm_ppl.models.networks.embedded import Embedded as Embedded
from nedm_ppl.models.networks.mlp import SigmoidMLP as SigmoidMLP
from nedm_ppl.models.networks.rbf import RBF as RBF
from nedm_ppl.models.networks.readout import StepReadout as StepReadout
from nedm_ppl.models.networks.readout import TimedNetwork as TimedNetwork
from nedm_ppl.models.networks.readout import time_features as time_features
from nedm_ppl.models.networks.residual import ResidualMLP as ResidualMLP
from nedm_ppl.models.networks.transformer import PatchTransformer as PatchTransformer
