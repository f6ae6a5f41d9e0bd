"""Handwritten digits, 8 x 8 in 17 gray levels: a Gaussian chain whose probabilities are those of the gray levels themselves.

The model starts as a product of pixel histograms (`LevelPrediction.base`); a U-Net, or a transformer on 2 x 2 patches, shown what
every pixel knows about itself, adds what the others say.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from nedm_ppl import data, inference, models
from nedm_ppl.experiments._figures import training_figures
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.files import write_figure

__all__ = ["DIGITS"]

PIXELS, NETWORKS = 64, ("unet", "transformer")
SHIFTED_SHARE = 0.5
BLANK = data.digits().levels[0]


def split(seed: int) -> Split:
    digits = data.digits()  # one fixed split for every seed
    return Split(digits.train, digits.validation, digits.holdout)


def build(key: Array, split: Split, num_steps: int, first_step: str, *, network: str) -> models.Diffusion:
    levels = data.digits().levels
    process = models.GaussianDiffusion((8, 8), models.schedules.log_snr_logistic(num_steps))
    shapes = (8, 8, len(levels) + 1), (8, 8, len(levels)), num_steps
    of: Any = models.networks.PatchTransformer if network == "transformer" else models.networks.UNet
    reverse = models.LevelPrediction(of(*shapes, key=key), levels, base=models.log_frequencies(split.train, levels))
    return models.Diffusion(process, reverse, first_step=first_step)


def shift(key: Array, images: Array) -> Array:
    """Half of the images moved by up to one pixel each way, blank where nothing was."""
    key_which, key_move = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=BLANK)
    moved = jax.random.bernoulli(key_which, SHIFTED_SHARE, (len(images), 1))
    corner = 1 + jnp.where(moved, jax.random.randint(key_move, (len(images), 2), -1, 2), 0)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1]), (8, 8)))(padded, corner)


def training(num_steps: int) -> dict[str, Any]:
    warmup = min(150, num_steps // 2)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, warmup, max(num_steps, 2), 2e-5)

    def decayed(parameters: Any) -> Any:
        # Weights of linear layers alone: the histograms and the positions are no habits to be forgotten.
        return jax.tree_util.tree_map_with_path(lambda path, _: ".weight" in jax.tree_util.keystr(path), parameters)

    optimizer = optax.chain(optax.clip_by_global_norm(64.0), optax.adamw(rate, b2=0.99, weight_decay=1.0, mask=decayed))
    return {
        "batch_size": 64,
        "optimizer": optimizer,
        "objective": inference.TrajectoryBound(first_step_share=0.125),
        "average_decay": 0.998,
        "augment": shift,
        "evaluate_every": 1000,
        "num_times": 16,
        "checkpoint_every": 500,
        "log_every": 20,
    }


def about(result: Result, network: str) -> dict[str, Any]:
    return discrete(result) | {"network": network}


def discrete(result: Result) -> dict[str, Any]:
    metrics = result.metrics
    if metrics["first_step"] != "quantized":
        return {}
    return {"bits_per_dim_discrete": {"mean": -metrics["bound"]["mean"], "se": metrics["bound"]["se"]}}


def figures(result: Result, key: Array, out: Path) -> None:
    from nedm_ppl import plotting

    holdout = result.split.holdout
    limits = (float(holdout.min()), float(holdout.max()))
    trajectory = eqx.filter_jit(lambda d, k: d.sample_trajectory(k, (100,)))(result.diffusion, key)
    write_figure(plotting.digits_figure(trajectory[:, 0], holdout[:100], limits=limits), out / "samples.png")
    write_figure(plotting.reverse_chain_figure(trajectory[:8], limits=limits), out / "reverse_chain.png")
    training_figures(result, out, num_coordinates=PIXELS, per="pixel")


def of_options(path: Path | None, network: str | None, width: int | None, full: bool) -> Experiment:
    """The same with another network.

    Raises:
        ValueError: other data or another size, or a network of another name.
    """
    if path is not None or width is not None or full:
        raise ValueError(
            "--data, --width and --full must be left out for digits: their data and networks have one size."
        )
    if network not in (None, *NETWORKS):
        raise ValueError(f"--network must be one of {', '.join(NETWORKS)}; got {network!r}.")
    chosen = network or NETWORKS[0]
    return replace(DIGITS, build=partial(build, network=chosen), extra_metrics=partial(about, network=chosen))


DIGITS = Experiment(
    name="digits",
    summary="8 x 8 handwritten digits, 17 gray levels; U-Net on context, exact evidence per pixel",
    unit="bits per pixel",
    data=split,
    build=partial(build, network=NETWORKS[0]),
    truth=lambda x0: None,
    figures=figures,
    num_steps=500,
    first_step="quantized",
    first_steps=("quantized",),
    num_updates=6_000,
    training=training,
    nats_per_unit=PIXELS * math.log(2.0),
    num_times=125,
    likelihood_size=16,
    likelihood_trajectories=24,
    extra_metrics=partial(about, network=NETWORKS[0]),
    of_options=of_options,
)
