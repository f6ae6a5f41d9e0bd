"""Swiss roll in the plane (Section 3.1.1, Figure 1): a Gaussian chain of 40 steps.

Two entries: a residual network in the velocity parameterization, whose steps know how the two coordinates go together; and the
paper's own network, 16 radial basis functions with a readout per step in the parameterization of equations 64 and 65.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl import data, models
from nedm_ppl.experiments._figures import training_figures
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.experiments._training import training_options
from nedm_ppl.files import write_figure

__all__ = ["SWISS_ROLL", "SWISS_ROLL_RBF"]

NUM_TRAIN, NUM_HOLDOUT = 100_000, 20_000


def split(seed: int) -> Split:
    rng = np.random.default_rng([seed, 1])
    return Split(data.swiss_roll(rng, NUM_TRAIN), None, data.swiss_roll(rng, NUM_HOLDOUT))


def build(key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(num_steps))
    network = models.networks.ResidualMLP((2,), (4, 2), num_steps, key=key)
    return models.Diffusion(process, models.VelocityPrediction(network, rank=2), first_step=first_step)


def build_rbf(key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(num_steps))
    network = models.networks.RBF((2,), (2, 2), num_steps, width=16, key=key)
    return models.Diffusion(process, models.DriftVariance(network), first_step=first_step)


def figures(result: Result, key: Array, out: Path) -> None:
    from nedm_ppl import plotting

    diffusion, num_steps = result.diffusion, result.diffusion.num_steps
    key_forward, key_reverse = jax.random.split(key)
    x0 = jnp.asarray(result.split.holdout[:2000])
    forward = jnp.concatenate([x0[:, None], diffusion.process.forward(x0).sample(key_forward)], axis=1)
    reverse = eqx.filter_jit(lambda d, k: d.sample_trajectory(k, (2000,)))(diffusion, key_reverse)
    points = plotting.drift_points()
    times = (1, max(1, num_steps // 2), num_steps)
    drift = np.stack([diffusion.kernel(t, jnp.asarray(points)).mean - points for t in times])
    write_figure(plotting.swiss_roll_figure(forward, reverse, drift, points), out / "figure1.png")
    training_figures(result, out)


SWISS_ROLL = Experiment(
    name="swiss-roll",
    summary="2-D swiss roll, noise 0.5 (Figure 1); residual network, full covariance",
    unit="bits",
    data=split,
    build=build,
    truth=data.swiss_roll_log_density,
    figures=figures,
    num_steps=40,
    first_step="learned",
    first_steps=("fixed", "learned"),
    num_updates=10_000,
    training=training_options,
    likelihood_size=2000,
    published="2.35 bits, on a roll that is almost free of noise",
)

SWISS_ROLL_RBF = replace(
    SWISS_ROLL,
    name="swiss-roll-rbf",
    summary="the same with the paper's network: 16 radial basis functions, a readout per step",
    build=build_rbf,
    first_step="fixed",
    num_updates=100_000,
    training=partial(training_options, learning_rate=1e-2),
)
