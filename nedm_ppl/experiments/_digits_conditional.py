"""Handwritten digits given their label, and Bayes' rule on them: a density model as a classifier.

The model of `digits` with a label beside the time in every block. A tenth of the labels are dropped in training, so that the same
weights are p(x_0) and p(x_0 | label). Every image is then classified by its log likelihood under each of the ten labels; the one
number that calibration needs is fitted on the validation part.
"""

import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl import data, inference, models
from nedm_ppl.experiments._digits import PIXELS, discrete, shift
from nedm_ppl.experiments._digits import training as digits_training
from nedm_ppl.experiments._figures import training_figures
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.files import write_figure
from nedm_ppl.models._respace import respace

__all__ = ["DIGITS_CONDITIONAL"]

NUM_CLASSES, NO_LABEL, DROPPED_SHARE, WIDTH = 10, 10, 0.1, 64
CLASSIFY_STEPS, CLASSIFY_TRAJECTORIES = 50, 2


def split(seed: int) -> Split:
    d = data.digits()
    return Split(d.train, d.validation, d.holdout, d.train_labels, d.validation_labels, d.holdout_labels)


def build(key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
    key_network, key_embed = jax.random.split(key)
    levels = data.digits().levels
    process = models.GaussianDiffusion((8, 8), models.schedules.log_snr_logistic(num_steps))
    shapes = (8, 8, len(levels) + 1), (8, 8, len(levels))
    network = models.networks.Embedded(
        models.networks.PatchTransformer(*shapes, num_steps, width=WIDTH, key=key_network),
        eqx.nn.Embedding(NUM_CLASSES + 1, WIDTH, key=key_embed),
    )
    reverse = models.LevelPrediction(
        models.Conditional(network, NO_LABEL), levels, base=models.log_frequencies(split.train, levels)
    )
    return models.Diffusion(process, reverse, first_step=first_step)


def augment(key: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    """Some images shifted, and some labels dropped."""
    key_shift, key_drop = jax.random.split(key)
    return shift(key_shift, images), inference.drop_context(NO_LABEL, DROPPED_SHARE)(key_drop, labels)


def training(num_steps: int) -> dict[str, Any]:
    return digits_training(num_steps) | {"augment": augment}


def classification(result: Result) -> dict[str, Any]:
    """Accuracy and calibration on the holdout, before and after a temperature fitted on the validation part."""
    diffusion, split = result.diffusion, result.split
    labels_validation, labels = np.asarray(split.validation_context), np.asarray(split.holdout_context)
    respaced = respace(diffusion, CLASSIFY_STEPS) if diffusion.num_steps > CLASSIFY_STEPS else diffusion
    keys = jax.random.split(jax.random.key(result.metrics["seed"]))
    validation, holdout = (
        inference.classify(key, respaced, images, np.arange(NUM_CLASSES), num_trajectories=CLASSIFY_TRAJECTORIES)
        for key, images in zip(keys, (np.asarray(split.validation), split.holdout), strict=True)
    )
    temperature = inference.fit_temperature(validation, labels_validation)

    def numbers(at: inference.Classification) -> dict[str, float]:
        return {"calibration_error": at.calibration_error(labels), "cross_entropy_nats": at.cross_entropy(labels)}

    accuracy = holdout.accuracy(labels)
    return {
        "classification": {
            "accuracy": {"mean": accuracy, "se": float(np.sqrt(accuracy * (1.0 - accuracy) / len(labels)))},
            "accuracy_validation": validation.accuracy(labels_validation),
            "bayes": numbers(holdout),
            "tempered": {"temperature": temperature} | numbers(holdout.calibrated(temperature)),
            "chain_steps": respaced.num_steps,
            "num_trajectories": CLASSIFY_TRAJECTORIES,
        }
    }


def extra_metrics(result: Result) -> dict[str, Any]:
    return discrete(result) | classification(result)


def figures(result: Result, key: Array, out: Path) -> None:
    from nedm_ppl import plotting

    holdout, truth = data.digits().holdout, data.digits().holdout_labels
    limits = (float(holdout.min()), float(holdout.max()))
    labels = jnp.repeat(jnp.arange(NUM_CLASSES), 10)
    samples = eqx.filter_jit(lambda d, k: d.sample(k, (len(labels),)))(result.diffusion.given(labels), key)
    alike = np.concatenate([np.flatnonzero(truth == label)[:10] for label in range(NUM_CLASSES)])
    write_figure(plotting.digits_figure(samples, holdout[alike], limits=limits), out / "samples.png")
    training_figures(result, out, num_coordinates=PIXELS, per="pixel")


DIGITS_CONDITIONAL = Experiment(
    name="digits-conditional",
    summary="digits given their label, and classified by Bayes' rule from their log likelihoods",
    unit="bits per pixel",
    data=split,
    build=build,
    truth=lambda x0: None,
    figures=figures,
    num_steps=500,
    first_step="quantized",
    first_steps=("quantized",),
    num_updates=4_000,
    training=training,
    nats_per_unit=PIXELS * math.log(2.0),
    num_times=125,
    likelihood_size=16,
    likelihood_trajectories=24,
    extra_metrics=extra_metrics,
)
