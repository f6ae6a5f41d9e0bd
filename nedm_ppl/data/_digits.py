"""Scikit-learn's handwritten digits: 1,797 real 8 x 8 images in 17 gray levels, in one fixed split.

The images are permuted by `numpy.random.default_rng(0)`. The first 1,437 are for training, of which the last 144 are kept
apart for validation; the other 360 are the holdout. One pair of constants, the mean and the standard deviation
over all pixels of those 1,437, standardizes everything.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998: its test part,
as `sklearn.datasets.load_digits` ships it.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

__all__ = ["Digits", "digits"]

NUM_LEVELS, NUM_TRAIN, NUM_VALIDATION = 17, 1437, 144


class Digits(NamedTuple):
    """The split, standardized; images float32, shape (N, 8, 8), labels int64, shape (N,), 0..9.

    Attributes:
        train: 1,293 images.
        validation: 144 images, for choices made while training.
        holdout: 360 images, for reported numbers only.
        train_labels: The digits drawn in `train`.
        validation_labels: Those of `validation`.
        holdout_labels: Those of `holdout`.
        levels: The 17 standardized gray levels, 0..16 before, increasing. Each is a float32 number, and every pixel equals
            one of them exactly.
        mean: Pooled mean in gray levels: level = mean + scale * pixel.
        scale: Pooled standard deviation, 6.02 gray levels. A density in nats per pixel of these units is log(scale) larger
            than one in gray levels.
    """

    train: np.ndarray
    validation: np.ndarray
    holdout: np.ndarray
    train_labels: np.ndarray
    validation_labels: np.ndarray
    holdout_labels: np.ndarray
    levels: tuple[float, ...]
    mean: float
    scale: float


def digits() -> Digits:
    """The digits with their split and gray levels; the same arrays at every call."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    gray, labels = bunch.images[order].astype(np.int64), bunch.target[order]
    mean, scale = float(gray[:NUM_TRAIN].mean()), float(gray[:NUM_TRAIN].std())
    levels = ((np.arange(NUM_LEVELS) - mean) / scale).astype(np.float32)
    parts = [NUM_TRAIN - NUM_VALIDATION, NUM_TRAIN]
    train, validation, holdout = np.split(levels[gray], parts)
    train_labels, validation_labels, holdout_labels = np.split(labels, parts)
    return Digits(
        train=train,
        validation=validation,
        holdout=holdout,
        train_labels=train_labels,
        validation_labels=validation_labels,
        holdout_labels=holdout_labels,
        levels=tuple(map(float, levels)),
        mean=mean,
        scale=scale,
    )
