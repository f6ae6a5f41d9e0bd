"""Seven densities of the plane as they are: a Gaussian chain whose log likelihood stands beside the exact one."""

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jax import Array

from nedm_ppl import data, inference
from nedm_ppl.data._plane import check_plane
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.experiments._swiss_roll import build
from nedm_ppl.experiments._training import training_options
from nedm_ppl.files import write_figure

__all__ = ["PLANE", "plane"]

NUM_TRAIN, NUM_HOLDOUT = 200_000, 2_000


def split(density: str, seed: int) -> Split:
    rng = np.random.default_rng([seed, 5])
    mean, scale = data.plane_moments(density)
    train, holdout = (
        ((data.plane(rng, density, count) - mean) / scale).astype(np.float32) for count in (NUM_TRAIN, NUM_HOLDOUT)
    )
    return Split(train, None, holdout)


def truth(x0: np.ndarray, density: str) -> np.ndarray:
    """Log density in the units of the data as scaled."""
    mean, scale = data.plane_moments(density)
    return data.plane_log_density(mean + scale * x0.astype(np.float64), density) + 2.0 * np.log(scale)


def excess(density: str, result: Result) -> dict[str, Any]:
    """Negative log likelihood and entropy in the density's own units, and the paired excess over the truth, nats."""
    log_prob = result.likelihood.log_prob
    log_scale = 2.0 * np.log(data.plane_moments(density)[1])
    entries = {
        "nll": log_scale - log_prob,
        "excess": truth(result.split.holdout[: log_prob.size], density) - log_prob,
    }
    return {"floor": data.plane_entropy(density)} | {
        name: inference.Estimate.of(values)._asdict() for name, values in entries.items()
    }


def figures(density: str, result: Result, key: Array, out: Path) -> None:
    from nedm_ppl import plotting

    mean, scale = data.plane_moments(density)
    samples = eqx.filter_jit(lambda d, k: d.sample(k, (NUM_HOLDOUT,)))(result.diffusion, key)
    points = (mean + scale * np.asarray(part) for part in (samples, result.split.holdout))
    write_figure(plotting.plane_figure(*points), out / "samples.png")


def plane(density: str) -> Experiment:
    """The experiment on one of `PLANE_DENSITIES`."""
    check_plane(density)
    return Experiment(
        name="plane",
        summary="a density of the plane, scaled by one pair of constants; residual network",
        unit="nats",
        nats_per_unit=1.0,
        data=partial(split, density),
        build=build,
        truth=partial(truth, density=density),
        figures=partial(figures, density),
        num_steps=40,
        first_step="learned",
        first_steps=("fixed", "learned"),
        num_updates=10_000,
        training=training_options,
        likelihood_trajectories=16,
        likelihood_size=NUM_HOLDOUT,
        extra_metrics=partial(excess, density),
        density=density,
        of_density=plane,
    )


PLANE = plane("checkerboard")
