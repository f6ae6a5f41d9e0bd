r"""Dead leaves: discs that lie on each other, as images of a scene without people (Section 3.2).

Radii have the density $p(r) \propto r^{-3}$ between two limits, which makes a scene look alike at every scale; centers are uniform,
gray levels too. A leaf is laid *under* those before it until every pixel is covered: what is seen is then an exact draw of the
stationary law of leaves that fell for ever.

Sources: Lee, Mumford and Huang, Occlusion Models for Natural Images, 2001; painted from the front: Kendall and Thönnes, Perfect
Simulation in Stochastic Geometry, 1999.
"""

from collections.abc import Iterator

import numpy as np
from scipy.integrate import trapezoid

from nedm_ppl.arguments import Count, as_count
from nedm_ppl.data._arguments import as_generator

__all__ = ["dead_leaves", "leaf_radii", "same_leaf_probability"]

BATCH, FEW = 4096, 2000  # leaves drawn at a time; pixels so few that all leaves are compared with all of them at once


def dead_leaves(
    rng: np.random.Generator | int,
    num_images: Count,
    size: Count = 256,
    *,
    smallest: float = 2.0,
    largest: float = 128.0,
    supersample: Count = 4,
    noise: float = 0.0,
) -> np.ndarray:
    """Draws of the dead-leaves model; exact for radii between the two limits.

    Args:
        rng: A NumPy generator, which is advanced, or a seed.
        num_images: Number of images.
        size: Height and width, pixels.
        smallest: Smallest radius, pixels.
        largest: Largest radius, pixels.
        supersample: Points to a pixel along each axis, which are averaged; with 1 edges are hard.
        noise: Standard deviation of the Gaussian noise that a sensor adds, in gray levels; 0 adds none.

    Returns:
        Gray levels as float32, shape (num_images, size, size), uniform on [0, 1] before edges are averaged and noise is added.

    Raises:
        ValueError: `rng` is neither a generator nor a seed, radii out of order, or a negative noise.

    Examples:
        >>> from nedm_ppl import data
        >>> data.dead_leaves(0, 2, 16, largest=8.0).shape
        (2, 16, 16)
    """
    rng = as_generator(rng)
    num_images, size = as_count("num_images", num_images), as_count("size", size)
    supersample = as_count("supersample", supersample)
    _check_radii(smallest, largest)
    if not 0.0 <= noise < np.inf:
        raise ValueError(f"noise must be finite and at least 0; got {noise:g}.")
    images = np.empty((num_images, size, size), np.float32)
    for image in images:
        fine = _scene(rng, size * supersample, smallest * supersample, largest * supersample)
        image[:] = fine.reshape(size, supersample, size, supersample).mean(axis=(1, 3))
    return images + noise * rng.standard_normal(images.shape, np.float32) if noise else images


def leaf_radii(rng: np.random.Generator | int, num_leaves: Count, smallest: float, largest: float) -> np.ndarray:
    r"""Radii of density $\propto r^{-3}$ on [smallest, largest], in pixels; exact, by inversion; shape (num_leaves,)."""
    _check_radii(smallest, largest)
    uniform = as_generator(rng).uniform(size=as_count("num_leaves", num_leaves))
    return 1.0 / np.sqrt(smallest**-2 - uniform * (smallest**-2 - largest**-2))


def same_leaf_probability(distance: float, smallest: float, largest: float) -> float:
    r"""Probability that two points so far apart lie on one leaf, exact up to quadrature.

    It is $\mathrm{E}\gamma / (2\pi \mathrm{E} r^2 - \mathrm{E}\gamma)$: the topmost leaf that covers either covers both, with
    $\gamma$ the area in which the center of a leaf of radius r that covers both can lie.

    Examples:
        >>> from nedm_ppl import data
        >>> data.same_leaf_probability(0.0, 2.0, 128.0), data.same_leaf_probability(256.0, 2.0, 128.0)
        (1.0, 0.0)
    """
    _check_radii(smallest, largest)
    log_r = np.linspace(np.log(smallest), np.log(largest), 20_001)
    radii, weights = np.exp(log_r), np.exp(-2.0 * log_r)  # r^-3 dr = r^-2 d log r
    half = np.minimum(0.5 * distance / radii, 1.0)
    both = 2.0 * radii**2 * (np.arccos(half) - half * np.sqrt(1.0 - half**2))
    covers_both, covers_one = (trapezoid(weights * area, log_r) for area in (both, np.pi * radii**2))
    return float(covers_both / (2.0 * covers_one - covers_both))


def _scene(rng: np.random.Generator, size: int, smallest: float, largest: float) -> np.ndarray:
    """A scene sampled at the middles of size x size pixels."""
    gray, bare = np.empty((size, size), np.float32), np.ones((size, size), bool)
    for row, column, radius, level in _leaves(rng, size, smallest, largest):
        if np.count_nonzero(bare) <= FEW:
            rows, columns = np.nonzero(bare)
            covers = (rows[:, None] - row) ** 2 + (columns[:, None] - column) ** 2 <= radius**2
            covered = covers.any(axis=1)
            rows, columns = rows[covered], columns[covered]
            gray[rows, columns] = level[covers[covered].argmax(axis=1)]
            bare[rows, columns] = False
        else:
            _paint(gray, bare, row, column, radius, level)
        if not bare.any():
            return gray
    raise AssertionError("leaves never end")


def _leaves(rng: np.random.Generator, size: int, smallest: float, largest: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches without end of rows, columns, radii and levels of the leaves that reach the image."""
    while True:
        centers = (
            rng.uniform(-largest, size + largest, size=(2, BATCH)) - 0.5
        )  # pixel i reaches from i - 1/2 to i + 1/2
        radius, level = leaf_radii(rng, BATCH, smallest, largest), rng.uniform(size=BATCH).astype(np.float32)
        outside = np.maximum(np.maximum(-centers, centers - (size - 1)), 0.0)
        reach = np.square(outside).sum(axis=0) <= radius**2
        yield centers[0, reach], centers[1, reach], radius[reach], level[reach]


def _paint(
    gray: np.ndarray, bare: np.ndarray, row: np.ndarray, column: np.ndarray, radius: np.ndarray, level: np.ndarray
) -> None:
    """Lay leaves, one by one, under what is there."""
    top, left = (np.maximum(np.ceil(c - radius), 0).astype(int) for c in (row, column))
    bottom, right = (
        np.minimum(np.floor(c + radius) + 1, n).astype(int) for c, n in zip((row, column), bare.shape, strict=True)
    )
    places = np.arange(max(bare.shape))
    for i in range(len(row)):
        part = slice(top[i], bottom[i]), slice(left[i], right[i])
        seen = bare[part]
        if not seen.any():
            continue
        down, across = (places[part[0]] - row[i]) ** 2, (places[part[1]] - column[i]) ** 2
        seen = seen & (down[:, None] + across <= radius[i] ** 2)
        gray[part][seen] = level[i]
        bare[part][seen] = False


def _check_radii(smallest: float, largest: float) -> None:
    if not 0.0 < smallest < largest < np.inf:
        raise ValueError(f"radii must have 0 < smallest < largest, finite; got {smallest:g} and {largest:g}.")
