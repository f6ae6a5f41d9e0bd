"""The paper's experiments, and others; `nedm list` names them and `nedm run` runs them."""

from nedm_ppl.experiments._digits import DIGITS
from nedm_ppl.experiments._digits_conditional import DIGITS_CONDITIONAL
from nedm_ppl.experiments._gray_code import GRAY_CODE
from nedm_ppl.experiments._heartbeat import HEARTBEAT
from nedm_ppl.experiments._own_data import own_data as own_data
from nedm_ppl.experiments._plane import PLANE
from nedm_ppl.experiments._run import run as run
from nedm_ppl.experiments._spec import Experiment as Experiment
from nedm_ppl.experiments._spec import Result as Result
from nedm_ppl.experiments._spec import Split as Split
from nedm_ppl.experiments._swiss_roll import SWISS_ROLL, SWISS_ROLL_RBF
from nedm_ppl.experiments._training import training_options as training_options

ALL = (SWISS_ROLL, SWISS_ROLL_RBF, HEARTBEAT, DIGITS, DIGITS_CONDITIONAL, PLANE, GRAY_CODE)
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}


def choose(name: str, density: str | None = None) -> Experiment:
    """The experiment of that name and, where it has several densities, of that density.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}; got {name!r}.")
    experiment = EXPERIMENTS[name]
    if density in (None, experiment.density):
        return experiment
    if experiment.of_density is None:
        raise ValueError(f"--density must be left out for {name}, which has one density; got {density!r}.")
    return experiment.of_density(density)
