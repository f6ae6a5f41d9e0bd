"""Networks: callables `(t, x) -> array` on one datum. Any other callable of that form serves as well."""

from nedm_ppl.models.networks._bfloat16 import BFloat16 as BFloat16
from nedm_ppl.models.networks._embedded import Embedded as Embedded
from nedm_ppl.models.networks._mlp import SigmoidMLP as SigmoidMLP
from nedm_ppl.models.networks._multiscale import MultiScaleNetwork as MultiScaleNetwork
from nedm_ppl.models.networks._multiscale import time_bumps as time_bumps
from nedm_ppl.models.networks._rbf import RBF as RBF
from nedm_ppl.models.networks._readout import StepReadout as StepReadout
from nedm_ppl.models.networks._readout import TimedNetwork as TimedNetwork
from nedm_ppl.models.networks._readout import time_features as time_features
from nedm_ppl.models.networks._residual import ResidualMLP as ResidualMLP
from nedm_ppl.models.networks._transformer import PatchTransformer as PatchTransformer
from nedm_ppl.models.networks._unet import UNet as UNet
