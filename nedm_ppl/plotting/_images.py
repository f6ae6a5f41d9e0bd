"""Small gray images: samples, reverse chains, restorations."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from nedm_ppl.plotting._shared import FORWARD, NULL, REVERSE, TRUTH, as_trajectory, axes_of, one_axis

__all__ = [
    "as_images",
    "digits_figure",
    "image_grid",
    "limits_of",
    "outline",
    "restoration_figure",
    "reverse_chain_figure",
]

HAIRLINE, UNSEEN = "#56B4E9", "#CFE8F7"


def image_grid(
    images: ArrayLike,
    ax: Axes | None = None,
    *,
    num_columns: int | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Axes:
    """Small images side by side, filled row by row; hairlines part them and take up no pixels.

    Args:
        images: Shape (N, height, width), gray, or (N, height, width, 3), in color; NaN is drawn blank.
        ax: Where to draw.
        num_columns: Images to a row; by default as square a grid as there is.
        limits: Values drawn black and white; by default the smallest and the largest of `images`. Give the same limits
            to grids that are to be compared.
        title: Title of the axes.

    Raises:
        ValueError: no images, or images that are not (N, height, width), or num_columns < 1.
    """
    images = as_images("images", images)
    if num_columns is not None and num_columns < 1:
        raise ValueError(f"num_columns must be at least 1; got {num_columns}.")
    columns = num_columns or int(np.ceil(np.sqrt(len(images))))
    ax = one_axis(ax, figsize=(4.0, 4.0 * np.ceil(len(images) / columns) / columns + 0.3))
    _show(ax, _mosaic(images, columns), limits_of(images) if limits is None else limits, images.shape[1:])
    ax.set(xticks=[], yticks=[], title=title)
    return ax


def digits_figure(
    samples: ArrayLike,
    holdout: ArrayLike,
    axes: np.ndarray | None = None,
    *,
    num_columns: int = 10,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Samples of an image model beside images it never saw, in the same gray levels (as figure App.1).

    Args:
        samples: Shape (N, height, width), or (N, height, width, 3).
        holdout: Shape (M, height, width), likewise; the first N are drawn.
        axes: Two axes, shape (2,): samples, holdout.
        num_columns: Images to a row.
        limits: Values drawn black and white; by default those of `holdout`.

    Returns:
        The axes, shape (2,).

    Raises:
        ValueError: no images, or images of another shape.
    """
    samples, holdout = as_images("samples", samples), as_images("holdout", holdout)
    rows = np.ceil(len(samples) / num_columns)
    axes = axes_of(axes, (2,), figsize=(8.0, 3.8 * rows / num_columns + 0.5))
    limits = limits_of(holdout) if limits is None else limits
    image_grid(samples, axes[0], num_columns=num_columns, limits=limits, title="samples")
    image_grid(holdout[: len(samples)], axes[1], num_columns=num_columns, limits=limits, title="holdout")
    outline(axes[0], REVERSE)
    outline(axes[1], TRUTH)
    return axes


def reverse_chain_figure(
    trajectory: ArrayLike,
    ax: Axes | None = None,
    *,
    times: Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Images along the reverse chain: a row per sample, a column per time, from T on the left to 0.

    Args:
        trajectory: Reverse trajectories, shape (N, T + 1, height, width).
        ax: Where to draw.
        times: Times of the columns, in the order drawn; by default nine, spread evenly from T to 0.
        limits: Values drawn black and white; by default those at time 0, so that noise beyond them is clipped.

    Raises:
        ValueError: a trajectory of another shape, or a time outside 0..T.
    """
    trajectory = np.asarray(trajectory)
    trajectory = as_trajectory("trajectory", trajectory, trajectory.shape[2:4])
    if trajectory.ndim != 4:
        raise ValueError(f"trajectory must have shape (N, T + 1, height, width); got {trajectory.shape}.")
    num_samples, last, width = len(trajectory), trajectory.shape[1] - 1, trajectory.shape[3]
    if times is None:
        times = [int(t) for t in dict.fromkeys(np.linspace(last, 0, 9).round())]
    if not times or min(times) < 0 or max(times) > last:
        raise ValueError(f"times must lie in 0..{last}, the times of this trajectory; got {list(times)}.")
    ax = one_axis(ax, figsize=(8.0, 7.4 * num_samples / len(times) + 0.8))
    frames = trajectory[:, list(times)].reshape(-1, *trajectory.shape[2:])
    _show(ax, _mosaic(frames, len(times)), limits_of(trajectory[:, 0]) if limits is None else limits, frames.shape[1:])
    centers = (np.arange(len(times)) + 0.5) * width - 0.5
    ax.set_xticks(centers, [str(t) for t in times])
    ax.set(xlabel="time t (steps); the reverse chain runs left to right", yticks=[], ylabel="sample")
    ax.tick_params(length=0)
    outline(ax, REVERSE)
    return ax


def restoration_figure(
    x0: ArrayLike,
    y: ArrayLike,
    draws: ArrayLike,
    mean: ArrayLike,
    sd: ArrayLike,
    axes: np.ndarray | None = None,
    *,
    paper: ArrayLike | None = None,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Figures 3 and 5: data, what was left of them, draws from the posterior, its mean and standard deviation; a row per datum.

    Args:
        x0: Data, gray images (N, height, width) or sequences (N, num_bins).
        y: Degraded data, same shape; NaN, what was not seen, is drawn in light blue.
        draws: Posterior draws, shape (N, S, *event).
        mean: Posterior mean, shape (N, *event).
        sd: Posterior standard deviation, same shape; drawn from black, 0, to white, its largest value.
        axes: Axes of the columns, shape (S + 4,), or (S + 5,) with `paper`.
        paper: A draw of the paper's approximate method, shape (N, *event), for one more column at the end.
        limits: Values drawn black and white in all columns but the sd's; by default those of x0.

    Returns:
        The axes.

    Raises:
        ValueError: shapes other than these.
    """
    x0, draws = np.asarray(x0), np.asarray(draws)
    if x0.ndim not in (2, 3) or 0 in x0.shape:
        raise ValueError(f"x0 must have shape (N, height, width) or (N, num_bins), N at least 1; got shape {x0.shape}.")
    if draws.ndim != x0.ndim + 1 or draws.shape[:1] + draws.shape[2:] != x0.shape:
        raise ValueError(f"draws must have shape (N, S, *event) for x0 of shape {x0.shape}; got {draws.shape}.")
    draws = np.moveaxis(draws, 1, 0)
    panels = [("holdout", x0, TRUTH), ("degraded", y, FORWARD)]
    panels += [(f"draw {i}", draw, REVERSE) for i, draw in enumerate(draws, start=1)]
    panels += [("mean", mean, REVERSE), ("sd", sd, REVERSE)]
    panels += [] if paper is None else [("the paper's", paper, NULL)]
    for name, values, _ in panels:
        if np.shape(values) != x0.shape:
            raise ValueError(f"{name} must have the shape of x0, {x0.shape}; got {np.shape(values)}.")
    # An image is as wide as its column; a sequence is one flat row of it.
    tile = x0.shape[1:] if x0.ndim == 3 else (1, x0.shape[1])
    width, row = (1.1, 1.1 * tile[0] / tile[1]) if x0.ndim == 3 else (1.5, 0.22)
    axes = axes_of(axes, (len(panels),), figsize=(width * len(panels), row * len(x0) + 0.6))
    gray, largest = limits_of(x0) if limits is None else limits, float(np.asarray(sd).max()) or 1.0
    for ax, (name, values, color) in zip(axes, panels, strict=True):
        mosaic = np.asarray(values, np.float64).reshape(-1, tile[1])
        _show(ax, mosaic, (0.0, largest) if name == "sd" else gray, tile)
        ax.set(xticks=[], yticks=[], facecolor=UNSEEN, aspect="equal" if x0.ndim == 3 else "auto")
        ax.set_title(f"sd, to {largest:.2g}" if name == "sd" else name, fontsize="small")
        outline(ax, color)
    return axes


def _mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, height, width) or (N, height, width, 3) as one, row by row; what is left of the last row is NaN."""
    count, height, width, *colors = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width, *colors), np.nan)
    cells[:count] = images
    cells = cells.reshape(rows, columns, height, width, *colors).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, *colors)


def _show(ax: Axes, mosaic: np.ndarray, limits: tuple[float, float], tile: tuple[int, ...]) -> None:
    if mosaic.ndim == 3:  # colors are drawn as they are, from 0 to 1
        shades = (mosaic - limits[0]) / (limits[1] - limits[0])
        ax.imshow(np.where(np.isnan(shades), 1.0, np.clip(shades, 0.0, 1.0)), interpolation="none")
    else:
        ax.imshow(np.ma.masked_invalid(mosaic), cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="none")
    for line, size, end in ((ax.axhline, tile[0], mosaic.shape[0]), (ax.axvline, tile[1], mosaic.shape[1])):
        for place in range(size, end, size):
            line(place - 0.5, color=HAIRLINE, linewidth=1.2)


def limits_of(images: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value."""
    return float(np.nanmin(images)), float(np.nanmax(images))


def outline(ax: Axes, color: str) -> None:
    """Axes framed in a color."""
    for spine in ax.spines.values():
        spine.set(color=color, linewidth=2.0)


def as_images(name: str, value: ArrayLike) -> np.ndarray:
    """Images as an array.

    Raises:
        ValueError: another shape, or none.
    """
    value = np.asarray(value)
    if value.shape[3:] not in ((), (3,)) or value.ndim < 3 or 0 in value.shape:
        raise ValueError(
            f"{name} must have shape (N, height, width), or with 3 colors at the end, N at least 1; got shape {value.shape}."
        )
    return value
