"""What is drawn of image models alone: Figures 3 and D.1 of the paper, nearest neighbors, spectra."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from nedm_ppl.plotting._images import as_images, image_grid, limits_of, outline
from nedm_ppl.plotting._shared import FORWARD, NULL, REVERSE, TRUTH, axes_of, one_axis

__all__ = ["denoising_figure", "neighbors_figure", "network_figure", "spectrum_figure"]

CURVES = (REVERSE, TRUTH, FORWARD, NULL)


def denoising_figure(
    holdout: ArrayLike,
    noised: ArrayLike,
    denoised: ArrayLike,
    samples: ArrayLike,
    axes: np.ndarray | None = None,
    *,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Figure 3: images that were held out, the same under noise, a draw of each from its posterior, and samples.

    Args:
        holdout: Shape (N, height, width), or (N, height, width, 3).
        noised: The same under noise, likewise.
        denoised: A draw for each from the posterior given its noised image, likewise.
        samples: Samples of the model, shape (M, height, width), likewise.
        axes: Four axes, shape (4,).
        limits: Values drawn black and white; by default those of `holdout`.

    Returns:
        The axes, shape (4,).

    Raises:
        ValueError: no images, or images of another shape.
    """
    panels = {"holdout": holdout, "noised": noised, "denoised": denoised, "samples": samples}
    panels = {name: as_images(name, images) for name, images in panels.items()}
    axes = axes_of(axes, (4,), figsize=(10.0, 2.9))
    limits = limits_of(np.asarray(holdout)) if limits is None else limits
    for ax, (name, images), color in zip(axes, panels.items(), (TRUTH, FORWARD, REVERSE, REVERSE), strict=True):
        image_grid(images, ax, limits=limits, title=name)
        outline(ax, color)
    return axes


def neighbors_figure(
    samples: ArrayLike, nearest: ArrayLike, axes: np.ndarray | None = None, *, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Samples above the training image that is nearest to each: whether a model has learned data by heart.

    Args:
        samples: Shape (N, height, width), or (N, height, width, 3).
        nearest: The nearest training images, likewise.
        axes: Two axes, shape (2, 1).
        limits: Values drawn black and white; by default those of `nearest`.

    Returns:
        The axes, shape (2, 1).

    Raises:
        ValueError: no images, or images of another shape, or as many of one as not of the other.
    """
    samples, nearest = as_images("samples", samples), as_images("nearest", nearest)
    if samples.shape != nearest.shape:
        raise ValueError(f"nearest must have the shape of samples, {samples.shape}; got {nearest.shape}.")
    axes = np.reshape(axes_of(axes, (2, 1), figsize=(8.0, 16.0 / max(len(samples), 1) + 0.8)), (2, 1))
    limits = limits_of(nearest) if limits is None else limits
    for ax, name, images, color in (
        (axes[0, 0], "samples", samples, REVERSE),
        (axes[1, 0], "nearest training images", nearest, TRUTH),
    ):
        image_grid(images, ax, num_columns=len(samples), limits=limits, title=name)
        outline(ax, color)
    return axes


def spectrum_figure(spectra: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Mean power of images by frequency, on logarithmic axes; natural images fall like a power of the frequency.

    Args:
        spectra: Power at 1, 2, ... cycles per image, by name, each of shape (n,); at most four, the model's first.
        ax: Where to draw.

    Raises:
        ValueError: no spectra, or more than four.
    """
    if not 1 <= len(spectra) <= len(CURVES):
        raise ValueError(f"spectra must be 1 to {len(CURVES)}; got {len(spectra)}.")
    ax = one_axis(ax, figsize=(5.0, 3.6))
    for (name, power), color in zip(spectra.items(), CURVES, strict=False):
        power = np.asarray(power)
        ax.loglog(np.arange(1, len(power) + 1), power, color=color, marker="o", markersize=3, label=name)
    ax.set(xlabel="frequency (cycles per image)", ylabel="power")
    ax.legend(frameon=False)
    return ax


def network_figure(
    rows: Sequence[Sequence[str]], after: Sequence[str], bumps: ArrayLike, axes: np.ndarray | None = None
) -> np.ndarray:
    """Figure D.1: pathways from an image side by side, what follows where they join, and the bumps in time of the readout.

    Args:
        rows: What each pathway's layers are, in words, from the image on.
        after: What follows where the pathways join.
        bumps: The readout's weights at times 1..T, shape (T, J).
        axes: Two axes, shape (2,).

    Returns:
        The axes, shape (2,).

    Raises:
        ValueError: no pathway.
    """
    if not rows or not all(rows):
        raise ValueError("rows must hold at least one pathway of at least one layer; got none.")
    longest = max(map(len, rows))
    places = 1 + longest + len(after)
    axes = axes_of(axes, (2,), figsize=(1.45 * places + 3.0, 1.2 + 1.1 * len(rows)), width_ratios=(1.45 * places, 3.0))
    ax, middle = axes[0], (len(rows) - 1) / 2.0
    last = [_box(ax, 0, middle, "image")] * len(rows)
    for row, layers in enumerate(rows):
        for column, label in enumerate(layers, start=1):
            last[row] = _arrow(ax, last[row], _box(ax, column, len(rows) - 1 - row, label))
    for column, label in enumerate(after, start=1 + longest):
        place = _box(ax, column, middle, label)
        for start in dict.fromkeys(last):
            _arrow(ax, start, place)
        last = [place] * len(rows)
    ax.set(xlim=(-0.5, places - 0.5), ylim=(-0.5, len(rows) - 0.5))
    ax.axis("off")
    bumps = np.asarray(bumps)
    axes[1].plot(np.arange(1, len(bumps) + 1), bumps, color=REVERSE, linewidth=0.9)
    axes[1].set(xlabel="time t (steps)", ylabel="weight of the readout", ylim=(0.0, 1.0))
    return axes


def _box(ax: Axes, x: float, y: float, label: str) -> tuple[float, float]:
    style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": TRUTH}
    ax.text(x, y, label, ha="center", va="center", fontsize=7, bbox=style)
    return x, y


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": NULL, "shrinkA": 26, "shrinkB": 26})
    return end
