"""How an experiment is run: train, evaluate, save, draw.

An experiment says what its data, model and training are; `run` does the same with each of them and leaves a folder:

    model/          the trained model, which `Diffusion.load` reads
    metrics.json    the numbers
    *.nc            training trace, pointwise bounds and likelihoods, losses per step and work, for ArviZ
    *.png           the pictures
    checkpoint/     the state of the training run, for --resume
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from nedm_ppl import inference
from nedm_ppl.experiments._figures import thermodynamics_figure
from nedm_ppl.experiments._folder import CHECKPOINT, opened
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.files import OutputError, reason, write_json, write_netcdf, write_outputs
from nedm_ppl.numbers import Estimate

__all__ = ["run"]


def run(
    experiment: Experiment,
    out: Path,
    *,
    seed: int = 0,
    num_updates: int | None = None,
    num_steps: int | None = None,
    first_step: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Result:
    """Run an experiment into a folder.

    Args:
        experiment: What to run.
        out: The folder; must be empty or new, unless `resume` or `force`.
        seed: Seeds data, initial weights and training.
        num_updates: Optimizer updates, in place of the experiment's.
        num_steps: T, in place of the experiment's.
        first_step: In place of the experiment's.
        resume: Go on with the run the folder holds, with the same arguments.
        force: Start again in a folder that holds an earlier run; files of other origin stay.
        progress: Whether to show bars.

    Raises:
        OutputFolderError: the folder is in use.
        OutputError: the numbers could not be had, or files not be written; what was trained is kept, with all else there is.
        ValueError: an argument this experiment cannot take.
    """
    num_steps = experiment.num_steps if num_steps is None else num_steps
    num_updates = experiment.num_updates if num_updates is None else num_updates
    first_step = experiment.first_step if first_step is None else first_step
    if first_step not in experiment.first_steps:
        raise ValueError(
            f"first_step of {experiment.name} must be one of {', '.join(experiment.first_steps)}; got {first_step!r}."
        )
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}.")
    if num_updates < 1:
        raise ValueError(f"--updates must be at least 1; got {num_updates}.")

    key_build, key_fit, key_evaluate, key_figures, key_likelihood = jax.random.split(jax.random.key(seed), 5)
    split = experiment.data(seed)
    diffusion = experiment.build(key_build, split, num_steps, first_step)
    with opened(out, resume=resume, force=force):  # only now that every argument has been seen to make sense
        fitted = inference.fit(
            key_fit,
            diffusion,
            split.train,
            context=split.train_context,
            num_updates=num_updates,
            validation=split.validation,
            validation_context=split.validation_context,
            checkpoint=out / CHECKPOINT,
            resume=resume,
            progress=progress,
            **experiment.training(num_updates),
        )
        fitted.diffusion.save(out / "model", overwrite=True)  # before anything else can fail
        try:
            result = _evaluated(experiment, fitted, split, (key_evaluate, key_likelihood), seed, progress)
            write_json(out / "metrics.json", result.metrics)
        except Exception as error:  # a chain too long for this machine's memory, a full disk
            raise OutputError(
                f"the trained model is in {out / 'model'}, but its numbers could not be had: {reason(error)}."
            ) from error
        _write(experiment, result, key_figures, out)
    return result


def _write(experiment: Experiment, result: Result, key_figures: Array, out: Path) -> None:
    """Files for ArviZ and figures."""
    outputs: dict[str, Callable[[Path], None]] = {
        "training.nc": lambda file: write_netcdf(file, inference.trace_to_arviz(result.fitted.history)),
        "bound.nc": lambda file: write_netcdf(file, result.terms.to_arviz()),
        "likelihood.nc": lambda file: write_netcdf(file, result.likelihood.to_arviz()),
        "thermodynamics.nc": lambda file: write_netcdf(file, result.thermodynamics.to_arviz()),
        "thermodynamics.png": lambda file: thermodynamics_figure(
            result, out, nats_per_unit=experiment.nats_per_unit, units=experiment.unit
        ),
        "the experiment's figures": lambda file: experiment.figures(result, key_figures, out),
    }
    write_outputs(out, outputs, "The model and metrics.json are whole; the same command with --resume writes the rest.")


def _evaluated(
    experiment: Experiment,
    fitted: inference.Fitted,
    split: Split,
    keys: tuple[Array, Array],
    seed: int,
    progress: bool,
) -> Result:
    """The trained model's bound and likelihood on the holdout, and all that is read off them."""
    start = time.perf_counter()
    context, size = split.holdout_context, experiment.likelihood_size
    terms = inference.evaluate(
        keys[0], fitted.diffusion, split.holdout, context=context, num_times=experiment.num_times, progress=progress
    )
    likelihood = inference.marginal_log_likelihood(
        keys[1],
        fitted.diffusion,
        split.holdout[:size],
        context=None if context is None else context[:size],
        num_trajectories=experiment.likelihood_trajectories,
        progress=progress,
    )
    thermodynamics = inference.Thermodynamics.of(fitted.diffusion, split.holdout, terms, likelihood)
    metrics = _metrics(experiment, fitted, split, terms, likelihood, seed)
    metrics["evaluation_seconds"] = round(time.perf_counter() - start, 2)
    result = Result(fitted.diffusion, split, fitted, terms, likelihood, thermodynamics, metrics)
    metrics |= experiment.extra_metrics(result)
    return result


def _metrics(
    experiment: Experiment,
    fitted: inference.Fitted,
    split: Split,
    terms: inference.BoundTerms,
    likelihood: inference.LogLikelihood,
    seed: int,
) -> dict[str, Any]:
    unit = 1.0 / experiment.nats_per_unit
    truth = experiment.truth(split.holdout)
    null = inference.Estimate.of(fitted.diffusion.null_log_prob(split.holdout)) * unit
    bound = inference.Estimate.of(terms.total) * unit
    same = np.asarray(terms.total)[: likelihood.log_prob.size]  # K on the data that the likelihood is of
    return {
        "experiment": experiment.name,
        **({} if experiment.density is None else {"density": experiment.density}),
        "seed": seed,
        "num_steps": fitted.diffusion.num_steps,
        "first_step": fitted.diffusion.first_step,
        "num_updates": fitted.num_updates,
        "train_seconds": round(fitted.seconds, 2),
        "holdout_size": len(split.holdout),
        "unit": experiment.unit,
        "bound": _entry(bound),
        "log_likelihood": _entry(likelihood.mean * unit)
        | {
            "num_trajectories": experiment.likelihood_trajectories,
            "num_data": likelihood.log_prob.size,
            "k_hat_max": _number(likelihood.k_hat.max()),
            "bound": _entry(inference.Estimate.of(same) * unit),
            "above_bound": _entry(inference.Estimate.of(likelihood.log_prob - same) * unit),
        },
        "null": _entry(null),
        "truth": _entry(None if truth is None else _exact(truth) * unit),
        "bound_above_null": _entry(
            inference.Estimate.of(terms.total - fitted.diffusion.null_log_prob(split.holdout)) * unit
        ),
        "terms": {
            "prior": _entry(inference.Estimate.of(-terms.prior) * unit),
            "diffusion": _entry(inference.Estimate.of(-terms.diffusion) * unit),
            "first_step": _entry(inference.Estimate.of(terms.first_step) * unit),
        },
    }


def _entry(value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {"mean": None, "se": None}
    return {"mean": _number(value.mean), "se": _number(value.se)}


def _number(value: float) -> float | None:
    """What JSON can hold; None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def _exact(truth: np.ndarray) -> Estimate:
    """The mean of exact log likelihoods; where they are all the same number it has no standard error."""
    return inference.Estimate.of(truth) if np.ptp(truth) else Estimate(float(truth[0]), math.nan)
