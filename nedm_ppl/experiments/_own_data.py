"""A person's own data as an experiment: split, the model that suits them, training until a part kept out says stop, figures.

`nedm train` runs it.
"""

import math
from collections.abc import Sequence
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
from nedm_ppl.models._default import checked_values, kind_of

__all__ = ["NAME", "own_data"]

NAME = "own data"
VALIDATION_SHARE, DROPPED_SHARE, NUM_DRAWN = 0.1, 0.1, 500


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
        ValueError: a share outside (0, 1), or fewer than ten data.
    """
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"--holdout must lie in (0, 1), a share of the data; got {holdout:g}.")
    if len(values) < 10:
        raise ValueError(f"data must be at least ten rows to be trained on and held out; got {len(values)}.")
    values = checked_values(values, columns)
    names, codes = (None, None) if labels is None else np.unique(labels, return_inverse=True)
    size, is_table = math.prod(values.shape[1:]), values.ndim == 2
    kind = kind_of(values) if kind is None else kind
    levels = None if kind == "real" else np.unique(values)  # which there are is no choice made on the holdout

    def split(seed: int) -> Split:
        order = np.random.default_rng([seed, 7]).permutation(len(values))
        reported = min(max(1, round(holdout * len(values))), len(values) - 3)
        stopped = max(1, round(VALIDATION_SHARE * (len(values) - reported)))
        parts = [np.sort(part) for part in np.split(order, [reported, reported + stopped])]
        rows = [values[part] for part in parts]
        contexts = [None if codes is None else codes[part].astype(np.int32) for part in parts]
        return Split(rows[2], rows[1], rows[0], contexts[2], contexts[1], contexts[0])

    def build(key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
        number = 0 if names is None else len(names)
        return models.diffusion_for(
            key, split.train, kind=kind, levels=levels, num_steps=num_steps, num_labels=number, columns=columns
        )

    def training(num_updates: int) -> dict[str, Any]:
        _, batch_size, every, patience = updates_for(len(values))
        augment = {} if names is None else {"augment": _dropping(len(names))}
        every = max(1, min(every, num_updates // 4))
        log_every = math.gcd(every, 50) if every >= 10 else every
        return {
            "batch_size": batch_size,
            "evaluate_every": every,
            "patience": patience,
            "log_every": log_every,
            "checkpoint_every": 20 * log_every,
        } | augment

    def about(result: Result) -> dict[str, Any]:
        return {
            "kind": kind,
            "units": repr(result.diffusion.units),
            "columns": None if columns is None else list(columns),
            "label": label,
            "labels": None if names is None else names.tolist(),
        }

    def figures(result: Result, key: Array, out: Path) -> None:
        _samples_figure(result, key, out)
        per = {"per": "row", "bits_per_unit": 1.0 / math.log(2.0)} if is_table else {"per": "dimension"}
        training_figures(result, out, num_coordinates=1 if is_table else size, **per)

    first_step = "quantized" if kind == "levels" else "learned"
    return Experiment(
        name=NAME,
        summary="data of one's own",
        unit="nats per row" if is_table else "bits per dimension",
        data=split,
        build=build,
        truth=lambda x0: None,
        figures=figures,
        num_steps=100 if is_table else 200,
        first_step=first_step,
        first_steps=(first_step,),
        num_updates=updates_for(len(values))[0],
        training=training,
        nats_per_unit=1.0 if is_table else size * math.log(2.0),
        num_times=None if size <= 64 else 50,
        likelihood_trajectories=32,
        likelihood_size=500 if size <= 64 else 50,
        extra_metrics=about,
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
    draws = eqx.filter_jit(lambda d, key: d.without_units.sample(key, (num,)))(diffusion, key)
    samples = np.asarray(diffusion.to_data(np.asarray(draws)))
    if holdout.ndim == 2:
        axes = plotting.pairs_figure(samples, holdout[:num], columns=diffusion.columns)
    else:
        limits = (float(holdout.min()), float(holdout.max()))
        axes = plotting.digits_figure(samples, holdout[:num], num_columns=8, limits=limits)
    write_figure(axes, out / "samples.png")
