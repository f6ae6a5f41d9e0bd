"""Warnings of data and observations far from all that a model has seen: most often they are in other units than it is."""

import warnings

import numpy as np
from jax.typing import ArrayLike

from nedm_ppl.arguments import DataWarning
from nedm_ppl.models.chain._process import DiffusionProcess

__all__ = ["FAR", "warn_of_data", "warn_of_observation"]

# Standard deviations of the data beyond which something is in other units than the model, and not just rare.
FAR = 10.0


def warn_of_data(process: DiffusionProcess, x0: ArrayLike) -> None:
    """Warn (`models.DataWarning`) of data, as the chain has them, that are ten times as large as those of a Gaussian chain."""
    if process.stationary().is_discrete or not np.size(x0):
        return
    size = float(np.sqrt(np.mean(np.square(np.asarray(x0, np.float64)))))
    if size > FAR:
        warnings.warn(
            f"x0 should be in the units of the model, in which data have a mean square of about 1 on its chain; their root mean "
            f"square there is {size:.3g}.",
            DataWarning,
            stacklevel=3,
        )


def warn_of_observation(distance: float) -> None:
    """Warn (`models.DataWarning`) of an observation that is so many standard deviations from data of mean 0 and variance 1."""
    if distance > FAR:
        warnings.warn(
            f"an observation should be near what the model has seen; one is {distance:.3g} standard deviations of the data and its "
            "own noise away. Is it in the model's units?",
            DataWarning,
            stacklevel=4,
        )
