"""The paper's experiments, and others; `nedm list` names them and `nedm run` runs them."""

from pathlib import Path

from nedm_ppl.experiments._digits import DIGITS
from nedm_ppl.experiments._digits_conditional import DIGITS_CONDITIONAL
from nedm_ppl.experiments._gray_code import GRAY_CODE
from nedm_ppl.experiments._heartbeat import HEARTBEAT
from nedm_ppl.experiments._own_data import own_data as own_data
from nedm_ppl.experiments._pictures import CIFAR10, DEAD_LEAVES, FACES, FASHION, MNIST, PHOTOGRAPHS, TEXTURE
from nedm_ppl.experiments._plane import PLANE
from nedm_ppl.experiments._run import run as run
from nedm_ppl.experiments._spec import Experiment as Experiment
from nedm_ppl.experiments._spec import Result as Result
from nedm_ppl.experiments._spec import Split as Split
from nedm_ppl.experiments._swiss_roll import SWISS_ROLL, SWISS_ROLL_RBF
from nedm_ppl.experiments._training import training_options as training_options

IMAGES = (DEAD_LEAVES, TEXTURE, PHOTOGRAPHS, FACES, MNIST, FASHION, CIFAR10)
ALL = (SWISS_ROLL, SWISS_ROLL_RBF, HEARTBEAT, DIGITS, DIGITS_CONDITIONAL, PLANE, GRAY_CODE, *IMAGES)
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}


def choose(
    name: str,
    density: str | None = None,
    *,
    path: Path | None = None,
    network: str | None = None,
    width: int | None = None,
    full: bool = False,
) -> Experiment:
    """The experiment of that name and, where it has several densities, of that density.

    Args:
        name: As `nedm list` has it.
        density: One of its densities.
        path: A file or folder of the user's to read an image experiment's data from.
        network: `unet` or `paper`, of an image experiment; `unet` or `transformer`, of the digits.
        width: Channels of an image experiment's U-Net at full size.
        full: An image experiment at the paper's size.

    Raises:
        ValueError: there is none, or it has no such options.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}; got {name!r}.")
    experiment = EXPERIMENTS[name]
    if path is not None or network is not None or width is not None or full:
        if experiment.of_options is None:
            raise ValueError(
                f"--data, --network, --width and --full must be left out for {name}: they are of the image experiments."
            )
        experiment = experiment.of_options(path, network, width, full)
    if density in (None, experiment.density):
        return experiment
    if experiment.of_density is None:
        raise ValueError(f"--density must be left out for {name}, which has one density; got {density!r}.")
    return experiment.of_density(density)
