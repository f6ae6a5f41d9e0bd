"""A person's own data as an experiment: split, the model that suits them, training until a part kept out says stop, figures.

`nedm train` runs it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jax import Array

from nedm_ppl import inference, models
from nedm_ppl.experiments._figures import training_figures
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.files import write_figure
from nedm_ppl.inference.training import updates_for
from nedm_ppl.models._default import IMAGE_STEPS, TABLE_STEPS, checked_values, kind_of

__all__ = ["NAME", "OwnData", "own_data"]

NAME = "own data"
VALIDATION_SHARE, DROPPED_SHARE, NUM_DRAWN = 0.1, 0.1, 500


@dataclass(frozen=True)
class OwnData:
    """Data of shape (N, *event) in units of their own, with what is known of them.

    Attributes:
        values: The data.
        kind: `real`, `levels` or `bits`.
        holdout: Share of the data that numbers are reported on.
        columns: Names of a table's columns.
        label: Name of the label's column.
        names: The labels that there are.
        codes: The place of every datum's label among them.
    """

    values: np.ndarray
    kind: str
    holdout: float
    columns: Sequence[str] | None
    label: str | None
    names: np.ndarray | None
    codes: np.ndarray | None

    @property
    def is_table(self) -> bool:
        """Whether a datum is a row, and not an image."""
        return self.values.ndim == 2

    @property
    def size(self) -> int:
        """Number of coordinates of a datum."""
        return math.prod(self.values.shape[1:])

    def split(self, seed: int) -> Split:
        """A share to report on, of the rest a tenth to stop on, and what is left to train on."""
        count = len(self.values)
        order = np.random.default_rng([seed, 7]).permutation(count)
        reported = min(max(1, round(self.holdout * count)), count - 3)
        stopped = max(1, round(VALIDATION_SHARE * (count - reported)))
        parts = [np.sort(part) for part in np.split(order, [reported, reported + stopped])]
        holdout, validation, train = (self.values[part] for part in parts)
        if self.codes is None:
            return Split(train, validation, holdout)
        contexts = [self.codes[part].astype(np.int32) for part in parts]
        return Split(train, validation, holdout, contexts[2], contexts[1], contexts[0])

    def build(self, key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
        """The model that suits the training part; which values there are at all is no choice made on the rest."""
        return models.diffusion_for(
            key,
            split.train,
            kind=self.kind,
            levels=None if self.kind == "real" else np.unique(self.values),
            num_steps=num_steps,
            num_labels=0 if self.names is None else len(self.names),
            columns=self.columns,
        )

    def training(self, num_updates: int) -> dict[str, Any]:
        """Options of `fit`, by which it stops where the part kept out says so."""
        _, batch_size, every, patience = updates_for(len(self.values))
        every = max(1, min(every, num_updates // 4))
        log_every = math.gcd(every, 50) if every >= 10 else every
        options = {
            "batch_size": batch_size,
            "evaluate_every": every,
            "patience": patience,
            "log_every": log_every,
            "checkpoint_every": 20 * log_every,
        }
        return options if self.names is None else options | {"augment": _dropping(len(self.names))}

    def about(self, result: Result) -> dict[str, Any]:
        """What metrics.json says of the data."""
        return {
            "kind": self.kind,
            "units": repr(result.diffusion.units),
            "columns": None if self.columns is None else list(self.columns),
            "label": self.label,
            "labels": None if self.names is None else self.names.tolist(),
        }

    def figures(self, result: Result, key: Array, out: Path) -> None:
        """Samples, the loss, and the bound by step."""
        _samples_figure(result, key, out)
        if self.is_table:
            training_figures(result, out, per="row", bits_per_unit=1.0 / math.log(2.0))
        else:
            training_figures(result, out, num_coordinates=self.size, per="dimension")


def own_data(
    values: np.ndarray,
    *,
    kind: str | None = None,
    holdout: float = 0.2,
    columns: Sequence[str] | None = None,
    labels: np.ndarray | None = None,
    label: str | None = None,
) -> Experiment:
    """The experiment on data of shape (N, *event), in units of their own.

    Args:
        values: The data.
        kind: As `models.diffusion_for` takes it.
        holdout: Share of the data that numbers are reported on, in (0, 1); a tenth of the rest is kept out to stop on.
        columns: Names of a table's columns.
        labels: A label of every datum, of any kind; the model is given its place among those that there are.
        label: Name of the label's column.

    Raises:
        ValueError: a share outside (0, 1), fewer than ten data, or values that no model can be made of.
    """
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"--holdout must lie in (0, 1), a share of the data; got {holdout:g}.")
    if len(values) < 10:
        raise ValueError(f"data must be at least ten rows to be trained on and held out; got {len(values)}.")
    values = checked_values(values, columns)
    names, codes = (None, None) if labels is None else np.unique(labels, return_inverse=True)
    own = OwnData(values, kind_of(values) if kind is None else kind, holdout, columns, label, names, codes)
    first_step, is_small = "quantized" if own.kind == "levels" else "learned", own.size <= 64
    return Experiment(
        name=NAME,
        summary="data of one's own",
        unit="nats per row" if own.is_table else "bits per dimension",
        data=own.split,
        build=own.build,
        truth=lambda x0: None,
        figures=own.figures,
        num_steps=TABLE_STEPS if own.is_table else IMAGE_STEPS,
        first_step=first_step,
        first_steps=(first_step,),
        num_updates=updates_for(len(values))[0],
        training=own.training,
        nats_per_unit=1.0 if own.is_table else own.size * math.log(2.0),
        num_times=None if is_small else 50,
        likelihood_trajectories=32,
        likelihood_size=500 if is_small else 50,
        extra_metrics=own.about,
    )


def _dropping(null: int) -> Any:
    """An augmentation that leaves out a tenth of the labels, so that the model is one without them too."""
    drop = inference.drop_context(null, DROPPED_SHARE)
    return lambda key, batch, contexts: (batch, drop(key, contexts))


def _samples_figure(result: Result, key: Array, out: Path) -> None:
    """Samples beside data that were not trained on: by pairs of columns, or as images."""
    from nedm_ppl import plotting

    diffusion, holdout = result.diffusion, result.split.holdout
    num = min(NUM_DRAWN, len(holdout)) if holdout.ndim == 2 else 64
    draws = eqx.filter_jit(lambda d, key: d.with_units(None).sample(key, (num,)))(diffusion, key)
    samples = np.asarray(diffusion.to_data(np.asarray(draws)))
    if holdout.ndim == 2:
        axes = plotting.pairs_figure(samples, holdout[:num], columns=diffusion.columns)
    else:
        limits = (float(holdout.min()), float(holdout.max()))
        axes = plotting.digits_figure(samples, holdout[:num], num_columns=8, limits=limits)
    write_figure(axes, out / "samples.png")
