"""Numbers of an image model beyond the bound: what its samples are like, and where the bound loses its bits."""

import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import Array
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm

from nedm_ppl import inference, models
from nedm_ppl.experiments._spec import Result

__all__ = ["bands", "drawn", "kurtosis", "nearest", "of_last_weights", "of_parzen", "of_statistics", "spectrum"]

CHUNK, MOST_COMPARED = 50, 1000


def drawn(key: Array, diffusion: models.Diffusion, count: int, progress: bool = True) -> np.ndarray:
    """Samples in the data's units, a few at a time, with a bar."""
    sample = eqx.filter_jit(lambda diffusion, key: diffusion.sample(key, (min(CHUNK, count),)))
    keys = jax.random.split(key, -(-count // CHUNK))
    shown = tqdm(keys, desc="samples", unit_scale=CHUNK, disable=not progress or len(keys) < 2)
    return np.concatenate([np.asarray(sample(diffusion, key)) for key in shown])[:count]


def spectrum(images: np.ndarray) -> np.ndarray:
    """Mean power by frequency 1, 2, ... up to half the side, cycles per image; colors are averaged. Shape (side // 2,)."""
    gray = images.reshape(*images.shape[:3], -1).mean(axis=-1)
    power = np.square(np.abs(np.fft.fft2(gray - gray.mean()))) / gray[0].size
    rows, columns = (np.fft.fftfreq(side, 1.0 / side) for side in gray.shape[1:])
    radius = np.round(np.hypot(rows[:, None], columns)).astype(int)
    count = min(gray.shape[1:]) // 2
    return np.array([power[:, radius == r].mean() for r in range(1, count + 1)])


def kurtosis(images: np.ndarray) -> float:
    """Kurtosis of the differences of neighboring pixels, across and down: 3 for Gaussian images, more where edges are sharp."""
    steps = np.concatenate([np.diff(images, axis=axis).ravel() for axis in (1, 2)]).astype(np.float64)
    return float(np.mean(steps**4) / np.mean(steps**2) ** 2)


def nearest(samples: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training image nearest to every sample, and how far it is per pixel (root mean square)."""
    flat = train.reshape(len(train), -1)
    found = NearestNeighbors(n_neighbors=1).fit(flat)
    distance, index = found.kneighbors(samples.reshape(len(samples), -1))
    return train[index[:, 0]], distance[:, 0] / math.sqrt(flat.shape[1])


def bands(result: Result, nats_per_unit: float) -> list[dict[str, Any]]:
    """What the bound loses by bands of log-SNR, in the experiment's unit."""
    losses = inference.loss_bands(result.terms, result.diffusion.process)
    edges = [None, *losses.edges.tolist(), None]
    return [
        {"log_snr": edges[i : i + 2], "mean": -mean / nats_per_unit, "se": se / nats_per_unit}
        for i, (mean, se) in enumerate(zip(losses.mean, losses.se, strict=True))
    ]


def of_last_weights(key: Array, result: Result, num_times: int | None, nats_per_unit: float) -> dict[str, float]:
    """What K gains by the average of the weights over the last of them, paired by datum, on some of the holdout."""
    of = [
        inference.evaluate(key, diffusion, result.split.holdout[:MOST_COMPARED], num_times=num_times).total
        for diffusion in (result.diffusion, result.fitted.last)
    ]
    gain = inference.Estimate.of(np.asarray(of[0], np.float64) - np.asarray(of[1], np.float64)) / nats_per_unit
    return {"mean": gain.mean, "se": gain.se}


def of_statistics(samples: np.ndarray, result: Result) -> dict[str, Any]:
    """Samples beside the holdout: power by frequency, kurtosis of derivatives; and how near training images are to each."""
    holdout, train = result.split.holdout, result.split.train
    some = holdout[np.random.default_rng(0).permutation(len(holdout))[: len(samples)]]
    few = train[np.random.default_rng(1).permutation(len(train))[:5000]]
    parts = {"samples": samples, "holdout": some}
    return {
        name: {
            "spectrum": spectrum(part).tolist(),
            "kurtosis_of_derivatives": kurtosis(part),
            "nearest_training_image": float(np.median(nearest(part, few)[1])),
        }
        for name, part in parts.items()
    }


def of_parzen(samples: np.ndarray, result: Result) -> dict[str, Any]:
    """Parzen windows on samples, and on as many and on all training images, of gray levels over 255; bits per image."""
    split = result.split
    assert split.validation is not None
    validation, holdout, train = (part / 255.0 for part in (split.validation, split.holdout, split.train))
    windows = {"samples": samples / 255.0, "as many training images": train[: len(samples)], "training images": train}
    about: dict[str, Any] = {}
    for name, points in windows.items():
        window = inference.parzen_log_likelihood(points, holdout, validation=validation)
        mean = window.mean / math.log(2.0)
        about[name] = {"mean": mean.mean, "se": mean.se, "bandwidth": window.bandwidth, "num_points": len(points)}
    return about
