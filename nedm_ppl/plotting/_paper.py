"""Figures 1 and 2 of the paper, and samples in the plane."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from nedm_ppl.plotting._shared import FAINT, FORWARD, REVERSE, TRUTH, as_trajectory, axes_of

__all__ = ["drift_points", "heartbeat_figure", "plane_figure", "swiss_roll_figure"]


def drift_points(*, limit: float = 2.5, num: int = 17) -> np.ndarray:
    """A square grid of plane points for `swiss_roll_figure`, shape (num**2, 2), from -limit to limit."""
    axis = np.linspace(-limit, limit, num)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def swiss_roll_figure(
    forward: ArrayLike,
    reverse: ArrayLike,
    drift: ArrayLike,
    points: ArrayLike,
    axes: np.ndarray | None = None,
    *,
    limit: float = 3.0,
) -> np.ndarray:
    r"""Figure 1: a plane diffusion at t = 0, T/2 and T; rows forward trajectory, reverse trajectory, drift.

    Behind the reverse chain's points and the drift lie the forward chain's points in gray: the law the reverse chain should
    have at that time, and where the drift matters.

    Args:
        forward: Forward trajectories, shape (N, T + 1, 2).
        reverse: Reverse trajectories, shape (M, T + 1, 2).
        drift: $f_\mu(x, t) - x$ at `points` for t = 1, T/2 and T, shape (3, num_points, 2). Step t leads from $x_t$ to
            $x_{t-1}$, so that the first column's is that of t = 1. Each panel has its own arrow scale, with a key.
        points: Where the drift was evaluated, shape (num_points, 2); `drift_points` makes a grid.
        axes: Nine axes, shape (3, 3).
        limit: Half the width of every panel, in the units of the data.

    Returns:
        The axes, shape (3, 3).

    Raises:
        ValueError: a shape other than these.
    """
    forward, reverse = as_trajectory("forward", forward, (2,)), as_trajectory("reverse", reverse, (2,))
    if forward.shape[1] != reverse.shape[1]:
        raise ValueError(
            f"forward and reverse must have equally many times; got {forward.shape[1]} and {reverse.shape[1]}."
        )
    points, drift = np.asarray(points), np.asarray(drift)
    if points.ndim != 2 or points.shape[1] != 2 or drift.shape != (3, *points.shape):
        raise ValueError(
            "points must have shape (num_points, 2) and drift (3, num_points, 2); "
            f"got {points.shape} and {drift.shape}."
        )
    axes = axes_of(axes, (3, 3), figsize=(8.0, 8.2), sharex=True, sharey=True)
    times, labels = _three_times(forward.shape[1] - 1)
    for column, (t, label) in enumerate(zip(times, labels, strict=True)):
        axes[0, column].set_title(label)
        _scatter(axes[0, column], forward[:, t], FORWARD)
        _scatter(axes[1, column], forward[:, t], FAINT, size=9)
        _scatter(axes[1, column], reverse[:, t], REVERSE)
        _scatter(axes[2, column], forward[:, max(t, 1)], FAINT)
        _quiver(axes[2, column], points, drift[column])
    axes[2, 0].set_title("t = 1", fontsize="medium")
    for ax in axes.flat:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    for ax in axes[2]:
        ax.set_xlabel("$x_1$ (sd of the data)")
    for ax, name in zip(axes[:, 0], ("forward", "reverse", r"drift $f_\mu(x, t) - x$"), strict=True):
        ax.set_ylabel(f"{name}\n$x_2$ (sd of the data)")
    return axes


def plane_figure(samples: ArrayLike, data: ArrayLike, axes: np.ndarray | None = None) -> np.ndarray:
    """Samples of a model in the plane beside draws of the truth, on shared limits.

    Args:
        samples: Points of the model, shape (N, 2).
        data: Points of the truth, shape (M, 2); they set the limits.
        axes: Two axes, shape (2,).

    Returns:
        The axes, shape (2,).

    Raises:
        ValueError: a shape other than these.
    """
    samples, data = np.asarray(samples), np.asarray(data)
    for name, points in (("samples", samples), ("data", data)):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ValueError(f"{name} must be points of the plane, shape (N, 2), not empty; got {points.shape}.")
    axes = axes_of(axes, (2,), figsize=(8.6, 4.4), sharex=True, sharey=True)
    limit = 1.1 * float(np.abs(data).max())
    for ax, points, color, title in zip(axes, (samples, data), (REVERSE, TRUTH), ("model", "data"), strict=True):
        _scatter(ax, points, color)
        ax.set(title=f"{title}, {len(points):,} points", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.set_xlabel("$x_1$")
    axes[0].set_ylabel("$x_2$")
    return axes


def heartbeat_figure(reverse: ArrayLike, data: ArrayLike, axes: np.ndarray | None = None) -> np.ndarray:
    """Figure 2: binary sequences of the reverse chain at t = 0, T/2 and T, beside data.

    Every sequence is rotated so that a pulse, its first, is in the first column; one without any stays as it is. A
    sequence is a row, a 1 is dark.

    Args:
        reverse: Reverse trajectories of bits, shape (N, T + 1, num_bins).
        data: Sequences of the data, shape (M, num_bins); the first N are drawn.
        axes: Four axes, shape (4,): t = 0, T/2, T, data.

    Returns:
        The axes, shape (4,).

    Raises:
        ValueError: a shape other than these.
    """
    reverse, data = np.asarray(reverse), np.asarray(data)
    reverse = as_trajectory("reverse", reverse, reverse.shape[2:3])
    if data.ndim != 2 or data.shape[1:] != reverse.shape[2:]:
        raise ValueError(f"data must have shape (M, {reverse.shape[2]}), as reverse has; got {data.shape}.")
    axes = axes_of(axes, (4,), figsize=(9.0, 4.6), sharex=True, sharey=True)
    times, labels = _three_times(reverse.shape[1] - 1)
    panels = [(reverse[:, t], f"reverse, {label}", REVERSE) for t, label in zip(times, labels, strict=True)]
    for ax, (rows, title, color) in zip(axes, [*panels, (data[: len(reverse)], "data", TRUTH)], strict=True):
        extent = (0.5, rows.shape[1] + 0.5, len(rows) + 0.5, 0.5)
        cmap = ListedColormap(["white", color])
        ax.imshow(_pulse_first(rows), cmap=cmap, vmin=0, vmax=1, aspect="auto", interpolation="none", extent=extent)
        ax.set(title=title, xlabel="bin")
        ax.set_xticks(np.arange(1, rows.shape[1] + 1, 5))
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_ylabel("sequence")
    return axes


def _three_times(last: int) -> tuple[tuple[int, int, int], tuple[str, str, str]]:
    return (0, last // 2, last), ("t = 0", f"t = T/2 = {last // 2}", f"t = T = {last}")


def _scatter(ax: Axes, x: np.ndarray, color: str, size: float = 3) -> None:
    ax.scatter(x[:, 0], x[:, 1], s=size, color=color, alpha=0.7, linewidths=0, rasterized=True)


def _quiver(ax: Axes, points: np.ndarray, drift: np.ndarray) -> None:
    """Arrows whose 95th percentile spans about one and a half grid cells, and a key that says how long they are."""
    length = float(np.quantile(np.linalg.norm(drift, axis=-1), 0.95)) or 1.0
    cell = np.ptp(points, axis=0).max() / max(np.sqrt(len(points)) - 1.0, 1.0) or 1.0
    arrows = ax.quiver(
        *points.T, *drift.T, color=REVERSE, angles="xy", scale_units="xy", scale=length / (1.5 * cell), width=0.006
    )
    key = float(f"{length:.1g}")
    ax.quiverkey(
        arrows, 0.8, 0.06, key, f"{key:g}", labelpos="E", coordinates="axes", color=TRUTH, fontproperties={"size": 9}
    ).set_zorder(5)


def _pulse_first(rows: np.ndarray) -> np.ndarray:
    """Every row rotated left by the place of its first 1."""
    start = np.argmax(rows > 0.5, axis=1)
    index = (start[:, None] + np.arange(rows.shape[1])) % rows.shape[1]
    return np.take_along_axis(rows, index, axis=1)
