"""Binary heartbeat (Section 3.1.1, Figure 2): a binomial chain of 2,000 steps on 20 bits, noise rate 0.2."""

from functools import partial
from pathlib import Path

import equinox as eqx
import numpy as np
from jax import Array

from nedm_ppl import data, models
from nedm_ppl.experiments._figures import training_figures
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.experiments._training import training_options
from nedm_ppl.files import write_figure

__all__ = ["HEARTBEAT"]

NUM_TRAIN, NUM_HOLDOUT, RATE = 10_000, 1_000, 0.2


def split(seed: int) -> Split:
    rng = np.random.default_rng([seed, 2])
    return Split(data.heartbeat(rng, NUM_TRAIN), None, data.heartbeat(rng, NUM_HOLDOUT))


def build(key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
    process = models.BernoulliDiffusion((20,), models.schedules.erasing(num_steps), rate=RATE)
    network = models.networks.ResidualMLP((20,), (20,), num_steps, key=key)
    return models.Diffusion(process, models.BitPrediction(network), first_step=first_step)


def truth(x0: np.ndarray) -> np.ndarray:
    return np.full(len(x0), data.HEARTBEAT_LOG_PROB)


def figures(result: Result, key: Array, out: Path) -> None:
    from nedm_ppl import plotting

    reverse = eqx.filter_jit(lambda d, k: d.sample_trajectory(k, (60,)))(result.diffusion, key)
    write_figure(plotting.heartbeat_figure(reverse, result.split.holdout), out / "figure2.png")
    training_figures(result, out)


HEARTBEAT = Experiment(
    name="heartbeat",
    summary="20 bits, a pulse every fifth bin (Figure 2); residual network on context, exact evidence per bit",
    unit="bits per sequence",
    data=split,
    build=build,
    truth=truth,
    figures=figures,
    num_steps=2000,
    first_step="fixed",
    first_steps=("fixed", "learned"),
    num_updates=6_000,
    training=partial(training_options, learning_rate=2e-3),
    likelihood_trajectories=24,
    published="-2.414 bits per sequence",
)
