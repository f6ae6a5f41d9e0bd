"""The paper's experiments; `nedm list` names them and `nedm run` runs them."""

from nedm_ppl.experiments.base import Experiment as Experiment
from nedm_ppl.experiments.base import Result as Result
from nedm_ppl.experiments.base import run as run
from nedm_ppl.experiments.digits import DIGITS
from nedm_ppl.experiments.digits_conditional import DIGITS_CONDITIONAL
from nedm_ppl.experiments.heartbeat import HEARTBEAT
from nedm_ppl.experiments.swiss_roll import SWISS_ROLL, SWISS_ROLL_RBF

ALL = (SWISS_ROLL, SWISS_ROLL_RBF, HEARTBEAT, DIGITS, DIGITS_CONDITIONAL)
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}
