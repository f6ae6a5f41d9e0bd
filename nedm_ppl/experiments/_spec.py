"""What an experiment is: its data, its model, its training; and what a finished run knows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from nedm_ppl import inference
from nedm_ppl.models import Diffusion

__all__ = ["Experiment", "Result", "Split"]


@dataclass(frozen=True)
class Split:
    """Data of an experiment: to train on, to stop on (or None), and to report on; and the context of every datum, or None."""

    train: np.ndarray
    validation: np.ndarray | None
    holdout: np.ndarray
    train_context: np.ndarray | None = None
    validation_context: np.ndarray | None = None
    holdout_context: np.ndarray | None = None


@dataclass(frozen=True)
class Result:
    """What a finished run knows: the model, its history, and its numbers in the experiment's unit.

    `terms` and `likelihood` hold a value for every datum, in nats: the bound of all of `split.holdout`, and log p(x_0) of its
    first `Experiment.likelihood_size`.
    """

    diffusion: Diffusion
    split: Split
    fitted: inference.Fitted
    terms: inference.BoundTerms
    likelihood: inference.LogLikelihood
    thermodynamics: inference.Thermodynamics
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper.

    Attributes:
        name: As typed on the command line.
        summary: One line, for people.
        unit: Unit of every number in metrics.json.
        nats_per_unit: What a datum's numbers in nats are divided by to be in that unit (64 log 2 for bits per pixel of an
            8 x 8 image).
        data: `(seed) -> Split`.
        build: `(key, split, num_steps, first_step) -> Diffusion`.
        truth: `(holdout) -> ` exact log likelihood of every holdout datum, nats, or None where nobody knows it.
        figures: `(result, key, folder)`: draw and write the pictures.
        num_steps: T.
        first_step: The first step unless another is asked for.
        first_steps: Those that mean something here.
        num_updates: Optimizer updates.
        training: Further arguments of `inference.fit`.
        num_times: Steps of the chain per holdout datum in the reported bound; None is all of them.
        likelihood_trajectories: Trajectories per datum of the reported log likelihood, S.
        likelihood_size: How many of the holdout's first data it is estimated for.
        extra_metrics: `(result) -> dict`, beyond the common ones.
        published: The paper's number with its unit, for the table.
        density: Which of several densities the data are from, where an experiment has several.
        of_density: `(name) -> ` the same experiment with another density.
        of_options: `(path, network, width, full) -> ` the same on the user's files, with another network, or at the paper's size.
    """

    name: str
    summary: str
    unit: str
    data: Callable[[int], Split]
    build: Callable[[Array, Split, int, str], Diffusion]
    truth: Callable[[np.ndarray], np.ndarray | None]
    figures: Callable[[Result, Array, Path], None]
    num_steps: int
    first_step: str
    first_steps: tuple[str, ...]
    num_updates: int
    training: Callable[[int], dict[str, Any]]
    nats_per_unit: float = math.log(2.0)
    num_times: int | None = None
    likelihood_trajectories: int = 64
    likelihood_size: int = 500
    extra_metrics: Callable[[Result], dict[str, Any]] = field(default=lambda result: {})
    published: str = ""
    density: str | None = None
    of_density: "Callable[[str], Experiment] | None" = None
    of_options: "Callable[[Path | None, str | None, int | None, bool], Experiment] | None" = None
