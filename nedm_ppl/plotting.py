r"""The paper's figures and the curves of training, from arrays.

Every function takes arrays and Matplotlib axes, draws, and returns the axes; none draws random numbers, computes with
a model, shows or saves. Where axes are left out a new figure of a readable size is made. A trajectory has time on the
axis after its first, ascending from data: shape (N, T + 1, *event), so that `trajectory[:, t]` is $x_t$ whatever
direction the chain ran in.

One color is the forward chain's, one the model's, and black the truth; all from the set of Okabe and Ito (2008), which
readers with any color vision tell apart. Training objectives come in bits, as their argument names say.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

__all__ = [
    "FORWARD",
    "NULL",
    "REVERSE",
    "TRUTH",
    "bound_by_step",
    "digits_figure",
    "drift_points",
    "heartbeat_figure",
    "image_grid",
    "loss_curve",
    "plane_figure",
    "restoration_figure",
    "reverse_chain_figure",
    "swiss_roll_figure",
    "thermodynamics_figure",
]

FORWARD, REVERSE, TRUTH, NULL = "#0072B2", "#D55E00", "#000000", "#6E6E6E"
VALIDATION, FAINT, HAIRLINE, UNSEEN = "#009E73", "#A8A8A8", "#56B4E9", "#CFE8F7"

# Where a chain has more steps, the mean of neighbors is drawn.
STEPS_DRAWN = 100


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
    forward, reverse = _trajectory("forward", forward, (2,)), _trajectory("reverse", reverse, (2,))
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
    axes = _axes(axes, (3, 3), figsize=(8.0, 8.2), sharex=True, sharey=True)
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
    axes = _axes(axes, (2,), figsize=(8.6, 4.4), sharex=True, sharey=True)
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
    reverse = _trajectory("reverse", reverse, reverse.shape[2:3])
    if data.ndim != 2 or data.shape[1:] != reverse.shape[2:]:
        raise ValueError(f"data must have shape (M, {reverse.shape[2]}), as reverse has; got {data.shape}.")
    axes = _axes(axes, (4,), figsize=(9.0, 4.6), sharex=True, sharey=True)
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


def image_grid(
    images: ArrayLike,
    ax: Axes | None = None,
    *,
    num_columns: int | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Axes:
    """Small gray images side by side, filled row by row; hairlines part them and take up no pixels.

    Args:
        images: Shape (N, height, width); NaN is drawn blank.
        ax: Where to draw.
        num_columns: Images to a row; by default as square a grid as there is.
        limits: Values drawn black and white; by default the smallest and the largest of `images`. Give the same limits
            to grids that are to be compared.
        title: Title of the axes.

    Raises:
        ValueError: no images, or images that are not (N, height, width), or num_columns < 1.
    """
    images = _images("images", images)
    if num_columns is not None and num_columns < 1:
        raise ValueError(f"num_columns must be at least 1; got {num_columns}.")
    columns = num_columns or int(np.ceil(np.sqrt(len(images))))
    ax = _axis(ax, figsize=(4.0, 4.0 * np.ceil(len(images) / columns) / columns + 0.3))
    _show(ax, _mosaic(images, columns), _limits(images) if limits is None else limits, images.shape[1:])
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
        samples: Shape (N, height, width).
        holdout: Shape (M, height, width); the first N are drawn.
        axes: Two axes, shape (2,): samples, holdout.
        num_columns: Images to a row.
        limits: Values drawn black and white; by default those of `holdout`.

    Returns:
        The axes, shape (2,).

    Raises:
        ValueError: no images, or images of another shape.
    """
    samples, holdout = _images("samples", samples), _images("holdout", holdout)
    rows = np.ceil(len(samples) / num_columns)
    axes = _axes(axes, (2,), figsize=(8.0, 3.8 * rows / num_columns + 0.5))
    limits = _limits(holdout) if limits is None else limits
    image_grid(samples, axes[0], num_columns=num_columns, limits=limits, title="samples")
    image_grid(holdout[: len(samples)], axes[1], num_columns=num_columns, limits=limits, title="holdout")
    _outline(axes[0], REVERSE)
    _outline(axes[1], TRUTH)
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
    trajectory = _trajectory("trajectory", trajectory, trajectory.shape[2:4])
    if trajectory.ndim != 4:
        raise ValueError(f"trajectory must have shape (N, T + 1, height, width); got {trajectory.shape}.")
    num_samples, last, width = len(trajectory), trajectory.shape[1] - 1, trajectory.shape[3]
    if times is None:
        times = [int(t) for t in dict.fromkeys(np.linspace(last, 0, 9).round())]
    if not times or min(times) < 0 or max(times) > last:
        raise ValueError(f"times must lie in 0..{last}, the times of this trajectory; got {list(times)}.")
    ax = _axis(ax, figsize=(8.0, 7.4 * num_samples / len(times) + 0.8))
    frames = trajectory[:, list(times)].reshape(-1, *trajectory.shape[2:])
    _show(ax, _mosaic(frames, len(times)), _limits(trajectory[:, 0]) if limits is None else limits, frames.shape[1:])
    centers = (np.arange(len(times)) + 0.5) * width - 0.5
    ax.set_xticks(centers, [str(t) for t in times])
    ax.set(xlabel="time t (steps); the reverse chain runs left to right", yticks=[], ylabel="sample")
    ax.tick_params(length=0)
    _outline(ax, REVERSE)
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
    axes = _axes(axes, (len(panels),), figsize=(width * len(panels), row * len(x0) + 0.6))
    gray, largest = _limits(x0) if limits is None else limits, float(np.asarray(sd).max()) or 1.0
    for ax, (name, values, color) in zip(axes, panels, strict=True):
        mosaic = np.asarray(values, np.float64).reshape(-1, tile[1])
        _show(ax, mosaic, (0.0, largest) if name == "sd" else gray, tile)
        ax.set(xticks=[], yticks=[], facecolor=UNSEEN, aspect="equal" if x0.ndim == 3 else "auto")
        ax.set_title(f"sd, to {largest:.2g}" if name == "sd" else name, fontsize="small")
        _outline(ax, color)
    return axes


def loss_curve(
    steps: ArrayLike,
    bound_bits: ArrayLike,
    ax: Axes | None = None,
    *,
    null_bits: float | None = None,
    truth_bits: float | None = None,
    validation: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    per: str = "datum",
) -> Axes:
    r"""The bound K over training, in bits, with what is known of its range.

    The vertical limits hold the lines, the validation bars and all but the lowest twentieth of the curve: the first
    steps of an untrained network are often far below everything of interest.

    Args:
        steps: Training step of every value, shape (n,).
        bound_bits: The minibatch's bound, shape (n,): bits, higher is better.
        ax: Where to draw.
        null_bits: $L_\text{null}$, the log likelihood under the noise law.
        truth_bits: The data's own mean log density or mass (minus their entropy), which K cannot exceed in the mean.
        validation: Steps, means and standard errors of the bound on held-out data, each of shape (m,), in bits. Bars are
            two standard errors either way.
        per: What the bits are per: "datum", "pixel", "sequence".

    Raises:
        ValueError: `steps` and `bound_bits`, or the three of `validation`, not 1-D and equally long, or empty.
    """
    steps, bound_bits = _curves(steps=steps, bound_bits=bound_bits)
    ax = _axis(ax, figsize=(6.4, 4.0))
    shown = [np.quantile(bound_bits[np.isfinite(bound_bits)], [0.05, 1.0])] if np.isfinite(bound_bits).any() else []
    ax.plot(steps, bound_bits, color=REVERSE, alpha=0.55, linewidth=0.9, label="training minibatch")
    if validation is not None:
        at, mean, error = _curves(validation_steps=validation[0], mean=validation[1], standard_error=validation[2])
        ax.errorbar(
            at,
            mean,
            2.0 * error,
            color=VALIDATION,
            marker="o",
            markersize=4,
            capsize=3,
            label=r"validation, $\pm$2 s.e.",
        )
        shown += [mean - 2.0 * error, mean + 2.0 * error]
    for value, color, style, name in (
        (truth_bits, TRUTH, "-", "truth"),
        (null_bits, NULL, "--", r"null, $L_\mathrm{null}$"),
    ):
        if value is not None:
            ax.axhline(value, color=color, linestyle=style, linewidth=1.4, label=f"{name} = {value:.4g} bits")
            shown.append(np.array([value]))
    if shown:
        low, high = np.min(np.concatenate(shown)), np.max(np.concatenate(shown))
        margin = 0.06 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)
    ax.set(xlabel="training step", ylabel=f"bound $K$ (bits per {per})")
    # Between a null line and the curve there is room.
    ax.legend(loc="lower right" if null_bits is None else "center right", framealpha=0.9)
    return ax


def bound_by_step(times: ArrayLike, divergences_nats: ArrayLike, ax: Axes | None = None) -> Axes:
    r"""Where along the chain the bound loses its bits: the mean divergence of every step.

    The area under the curve is the bound's diffusion term. It is not all waste: a perfect reverse chain, too, pays here
    for what the forward chain forgets of a datum.

    Args:
        times: Steps t, shape (num_times, *batch), as in `inference.BoundTerms`.
        divergences_nats: $\mathrm{KL}(q(x_{t-1} | x_t, x_0) \| p(x_{t-1} | x_t))$ at those, unbiased, nats, same shape.
            Drawn as the mean over data at each t, in bits, with a band of two standard errors. A t that occurs once
            has no standard error and no band.
        ax: Where to draw.

    Raises:
        ValueError: the two shapes differ, or hold no datum. (Of a chain of one step there is nothing to draw but that.)
    """
    times, divergences = np.asarray(times), np.asarray(divergences_nats, np.float64)
    if times.shape != divergences.shape or times.ndim == 0 or 0 in times.shape[1:] or times.shape == (0,):
        raise ValueError(
            f"times and divergences_nats must have one shape, not empty; got {times.shape} and {divergences.shape}."
        )
    at, inverse, count = np.unique(times.ravel(), return_inverse=True, return_counts=True)
    bits = divergences.ravel() / np.log(2.0)
    mean = np.bincount(inverse, bits) / count
    squares = np.bincount(inverse, np.square(bits - mean[inverse]))
    error = np.sqrt(squares / np.maximum(count - 1, 1) / count)
    error = np.where(count > 1, error, np.nan)
    ax = _axis(ax, figsize=(6.4, 4.0))
    if not at.size:
        _nothing(ax)
    ax.plot(at, mean, color=REVERSE, linewidth=1.4, marker="o" if at.size <= 60 else "", markersize=3, label="mean")
    ax.fill_between(at, mean - 2.0 * error, mean + 2.0 * error, color=REVERSE, alpha=0.25, label=r"$\pm$2 s.e.")
    ax.axhline(0.0, color=NULL, linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="step t (data at 0, noise at T)", ylabel="divergence (bits per datum and step)")
    ax.legend(loc="upper right")
    return ax


def thermodynamics_figure(
    log_snr: ArrayLike,
    entropy: tuple[ArrayLike, ArrayLike],
    losses: tuple[ArrayLike, ArrayLike, ArrayLike],
    work: tuple[ArrayLike, ArrayLike],
    axes: np.ndarray | None = None,
    *,
    nats_per_unit: float = math.log(2.0),
    units: str = "bits",
) -> np.ndarray:
    r"""Which steps of a trained chain lose its bits, between which entropies they lie, and what work its trajectories do.

    Left: loss per step over the log signal-to-noise ratio of $x_t$, with two standard errors. Above the dashed line, an equal
    share of all loss, steps should be finer (shaded), below it they may be coarser. Middle: the corridor that equation 24
    leaves to $H_q(X_{t-1} | X_t)$, seen from its upper bound, and the model's own bound, lower plus loss; a kernel that has
    learned nothing is at the top. Beyond 100 steps neighbors are averaged. Right: work of forward trajectories, each datum's
    moved so that its Jarzynski average lies at the mean of all. The mean work is $-K$; its distance from the Jarzynski
    average is dissipated, and a chain slow enough has none.

    Args:
        log_snr: Of t = 1..T, nats, shape (T,).
        entropy: Lower and upper bound of t = 1..T, nats, each of shape (T,).
        losses: Steps t, mean losses and their standard errors, nats, each of shape (n,); none where T is 1.
        work: Work of every trajectory, shape (S, N), and the Jarzynski averages $-\log \hat p(x_0)$, shape (N,), nats.
        axes: Three axes, shape (3,).
        nats_per_unit: Every number is divided by this (64 log 2 for bits per pixel of an 8 x 8 image).
        units: What the numbers are then in, for the labels.

    Returns:
        The axes, shape (3,).

    Raises:
        ValueError: a shape other than these.
    """
    log_snr, lower, upper = _curves(log_snr=log_snr, lower=entropy[0], upper=entropy[1])
    times, mean, se = _curves(
        least=min(1, log_snr.size - 1), times=losses[0], losses=losses[1], standard_errors=losses[2]
    )
    done, free_energy = (np.asarray(value, np.float64) for value in work)
    if done.ndim != 2 or done.shape[1:] != free_energy.shape or 0 in done.shape:
        raise ValueError(f"work must have shapes (S, N) and (N,), not empty; got {done.shape} and {free_energy.shape}.")
    unit = 1.0 / nats_per_unit
    index = times.astype(int) - 1
    lower, upper = lower[index], upper[index]
    groups = np.array_split(np.arange(times.size), min(times.size, STEPS_DRAWN)) if times.size else []
    times, log_snr, mean, lower, upper = (
        np.array([values[group].mean() for group in groups]) for values in (times, log_snr[index], mean, lower, upper)
    )
    se = np.array([np.sqrt(np.sum(np.square(se[group]))) / group.size for group in groups])
    axes = _axes(axes, (3,), figsize=(13.0, 4.0))
    _loss_panel(axes[0], log_snr, mean * unit, se * unit, units)
    _corridor_panel(axes[1], times, (lower - upper) * unit, (lower - upper + mean) * unit, units)
    _work_panel(axes[2], done * unit, free_energy * unit, units)
    return axes


def _loss_panel(ax: Axes, at: np.ndarray, mean: np.ndarray, se: np.ndarray, units: str) -> None:
    shown = np.isfinite(at)
    if not shown.any():  # a chain of one step, or of two whose last erases everything
        _nothing(ax)
        return
    share = mean.mean()
    at, mean, se = at[shown], mean[shown], se[shown]
    ax.plot(at, mean, color=REVERSE, linewidth=1.4, marker="o", markersize=2.5, label=r"model, $\pm$2 s.e.")
    ax.fill_between(at, mean - 2.0 * se, mean + 2.0 * se, color=REVERSE, alpha=0.35, linewidth=0)
    ax.axhline(share, color=NULL, linestyle="--", linewidth=1.2, label=f"equal share, {share:.2g}")
    ax.fill_between(at, share, mean, where=mean > share, interpolate=True, color=REVERSE, alpha=0.12, linewidth=0)
    ax.set(xlabel="log signal-to-noise ratio of $x_t$ (nats)", ylabel=f"loss per step ({units})")
    ax.set_ylim(top=1.3 * max(share, float(np.max(mean))))
    ax.invert_xaxis()
    ax.set_title("shaded: finer steps wanted", fontsize="medium")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


def _corridor_panel(ax: Axes, times: np.ndarray, lower: np.ndarray, model: np.ndarray, units: str) -> None:
    if not times.size:
        _nothing(ax)
        return
    ax.fill_between(
        times, lower, 0.0, color=FORWARD, alpha=0.2, linewidth=0, label=r"$H_q(X_{t-1}\,|\,X_t)$ is in here"
    )
    ax.axhline(0.0, color=FORWARD, linewidth=1.2, label="upper: kernel that has learned nothing")
    ax.plot(times, model, color=REVERSE, linewidth=1.4, label="model: lower bound + loss")
    ax.plot(times, lower, color=FORWARD, linewidth=1.2, linestyle=":", label="lower: kernel that knows the datum")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="step t (data at 0, noise at T)", ylabel=f"entropy of a step less its upper bound\n({units})")
    ax.margins(y=0.12)
    ax.set_title("entropy of the reverse steps, equation 24", fontsize="medium")
    ax.legend(loc="lower right", fontsize="small", framealpha=0.9)


def _work_panel(ax: Axes, work: np.ndarray, free_energy: np.ndarray, units: str) -> None:
    usable = np.isfinite(free_energy)
    jarzynski = free_energy[usable].mean()
    moved = (work - free_energy)[:, usable] + jarzynski
    moved = moved[np.isfinite(moved)]
    mean = moved.mean()
    low, high = np.quantile(moved, [0.0005, 0.9995])
    bins = int(np.clip(np.sqrt(moved.size), 8, 60))
    ax.hist(moved, bins=bins, range=(low, high) if high > low else None, density=True, color=FAINT)
    ax.axvline(jarzynski, color=TRUTH, linewidth=1.4, label=f"Jarzynski average, {jarzynski:.4g}")
    ax.axvline(mean, color=REVERSE, linewidth=1.4, linestyle="--", label=f"mean work, $-K$ = {mean:.4g}")
    ax.set(xlabel=f"work of a forward trajectory ({units})", ylabel="density", yticks=[])
    ax.margins(y=0.3)
    ax.set_title(f"{mean - jarzynski:.2g} {units} dissipated", fontsize="medium")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.9)


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


def _mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, height, width) as one, row by row; what is left of the last row is NaN."""
    count, height, width = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width), np.nan)
    cells[:count] = images
    return cells.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def _show(ax: Axes, mosaic: np.ndarray, limits: tuple[float, float], tile: tuple[int, ...]) -> None:
    ax.imshow(np.ma.masked_invalid(mosaic), cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="none")
    for line, size, end in ((ax.axhline, tile[0], mosaic.shape[0]), (ax.axvline, tile[1], mosaic.shape[1])):
        for place in range(size, end, size):
            line(place - 0.5, color=HAIRLINE, linewidth=1.2)


def _limits(images: np.ndarray) -> tuple[float, float]:
    return float(np.nanmin(images)), float(np.nanmax(images))


def _outline(ax: Axes, color: str) -> None:
    for spine in ax.spines.values():
        spine.set(color=color, linewidth=2.0)


def _trajectory(name: str, value: ArrayLike, event_shape: tuple[int, ...]) -> np.ndarray:
    value = np.asarray(value)
    if value.ndim < 3 or value.shape[2:] != event_shape or 0 in value.shape:
        event = ", ".join(map(str, event_shape)) if event_shape else "*event"
        raise ValueError(f"{name} must have shape (N, T + 1, {event}), time ascending; got shape {value.shape}.")
    return value


def _images(name: str, value: ArrayLike) -> np.ndarray:
    value = np.asarray(value)
    if value.ndim != 3 or 0 in value.shape:
        raise ValueError(f"{name} must have shape (N, height, width), N at least 1; got shape {value.shape}.")
    return value


def _nothing(ax: Axes) -> None:
    """Say that a chain has no step to show."""
    ax.text(0.5, 0.5, "no step t > 1 with signal left", transform=ax.transAxes, ha="center", va="center")


def _curves(*, least: int = 1, **named: ArrayLike) -> list[np.ndarray]:
    curves = [np.asarray(value) for value in named.values()]
    if any(curve.ndim != 1 for curve in curves) or len({curve.size for curve in curves}) != 1 or curves[0].size < least:
        shapes = ", ".join(str(curve.shape) for curve in curves)
        raise ValueError(f"{', '.join(named)} must be 1-D, equally long and not empty; got shapes {shapes}.")
    return curves


def _axis(ax: Axes | None, *, figsize: tuple[float, float]) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=figsize, layout="constrained")[1]


def _axes(axes: np.ndarray | None, shape: tuple[int, ...], *, figsize: tuple[float, float], **share: Any) -> np.ndarray:
    """The axes given, of that shape, or those of a new figure."""
    if axes is None:
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        return plt.subplots(rows, columns, figsize=figsize, layout="constrained", **share)[1]
    axes = np.asarray(axes, dtype=object)
    if axes.shape != shape:
        raise ValueError(f"axes must have shape {shape}; got {axes.shape}. Use plt.subplots, or leave axes out.")
    return axes
