"""Training: SVI on K, checkpoints, and a run that can be killed."""

from nedm_ppl.inference.training._fit import Fitted as Fitted
from nedm_ppl.inference.training._fit import NonFiniteLossError as NonFiniteLossError
from nedm_ppl.inference.training._fit import dequantize as dequantize
from nedm_ppl.inference.training._fit import drop_context as drop_context
from nedm_ppl.inference.training._fit import fit as fit
from nedm_ppl.inference.training._fit import updates_for as updates_for
from nedm_ppl.inference.training._fit import with_parameters as with_parameters
from nedm_ppl.inference.training._resume import CheckpointError as CheckpointError
