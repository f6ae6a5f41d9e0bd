"""Seven densities of the plane in 32 bits of Gray code: a binomial chain whose log likelihood stands beside the exact one.

The model starts as a mixture of products of independent bits, fitted to the training data by expectation-maximization and
reversed exactly, as a joint law of all bits (`BitMixturePrediction`): the chain loses nothing against it, at any T. A residual
network, shown what the mixture believes of every bit, is trained with it on the bound. Metrics are in nats, and the excess of
the negative log likelihood over the truth is paired: both are taken on the same words.
"""

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nedm_ppl import data, inference, models
from nedm_ppl.data._plane import check_plane
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.files import write_figure

__all__ = ["GRAY_CODE", "gray_code"]

NUM_TRAIN, NUM_HOLDOUT, NUM_BITS = 2_000_000, 2_000, 32
NUM_COMPONENTS = 512


def split(density: str, seed: int) -> Split:
    rng = np.random.default_rng([seed, 4])
    train, holdout = (
        data.gray_encode(data.plane(rng, density, count), data.int_scale(density)).astype(np.float32)
        for count in (NUM_TRAIN, NUM_HOLDOUT)
    )
    return Split(train, None, holdout)


def schedule(num_steps: int) -> models.schedules.FixedSchedule:
    """Signal left after t steps 1 - (t/T)^2: finer steps than `erasing` has where words are nearly whole, and the network has most
    to add: there it knows the region a word lies in."""
    noise = np.square(np.arange(1, num_steps + 1) / num_steps)
    return models.schedules.from_alpha_bar(1.0 - noise, one_minus=noise)


def build(key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
    key_network, key_mixture = jax.random.split(key)
    process = models.BernoulliDiffusion((NUM_BITS,), schedule(num_steps))
    network = models.networks.ResidualMLP((NUM_BITS, 2), (2, NUM_BITS), num_steps, width=64, depth=2, key=key_network)
    mixture = models.fit_bit_mixture(key_mixture, split.train, min(NUM_COMPONENTS, len(split.train)))
    return models.Diffusion(process, models.BitMixturePrediction(network, mixture), first_step=first_step)


def training(num_steps: int) -> dict[str, Any]:
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-4, min(50, num_steps // 2), max(num_steps, 2))
    return {
        "batch_size": 64,
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        "objective": inference.TrajectoryBound(first_step_share=0.125),
        "average_decay": 0.99,
        "log_every": 25,
    }


def floor(density: str, result: Result) -> dict[str, Any]:
    """Negative log likelihood, the entropy no model can be below, and the paired excess over the truth, nats."""
    log_prob = result.likelihood.log_prob
    words = result.split.holdout[: log_prob.size]
    truth, reverse = data.gray_word_log_prob(words, density), result.diffusion.reverse
    entries = {"nll": -log_prob, "excess": truth - log_prob}
    if isinstance(reverse, models.BitPrediction | models.BitMixturePrediction) and reverse.base is not None:
        entries["excess_of_the_mixture_alone"] = truth - np.asarray(reverse.base.log_prob(jnp.asarray(words)))
    return {"floor": data.gray_code_entropy(density)} | {
        name: inference.Estimate.of(values)._asdict() for name, values in entries.items()
    }


def figures(density: str, result: Result, key: Array, out: Path) -> None:
    from nedm_ppl import plotting

    words = eqx.filter_jit(lambda d, k: d.sample(k, (NUM_HOLDOUT,)))(result.diffusion, key)
    scale = data.int_scale(density)
    points = data.gray_decode(np.asarray(words), scale), data.gray_decode(result.split.holdout, scale)
    write_figure(plotting.plane_figure(*points), out / "samples.png")


def gray_code(density: str) -> Experiment:
    """The experiment on one of `PLANE_DENSITIES`."""
    check_plane(density)
    return Experiment(
        name="gray-code",
        summary="a density of the plane as 32 bits of Gray code; mixture of words reversed exactly, and a residual network",
        unit="nats",
        nats_per_unit=1.0,
        data=partial(split, density),
        build=build,
        truth=partial(data.gray_word_log_prob, name=density),
        figures=partial(figures, density),
        num_steps=8,
        first_step="learned",
        first_steps=("fixed", "learned"),
        num_updates=200,
        training=training,
        likelihood_trajectories=16,
        likelihood_size=NUM_HOLDOUT,
        extra_metrics=partial(floor, density),
        density=density,
        of_density=gray_code,
    )


GRAY_CODE = gray_code("checkerboard")  # the density whose entropy is known in closed form
