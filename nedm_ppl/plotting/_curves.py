"""Training, the bound along the chain, and thermodynamics, as curves."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from nedm_ppl.plotting._shared import FAINT, FORWARD, NULL, REVERSE, TRUTH, axes_of, one_axis

__all__ = ["bound_by_step", "loss_curve", "thermodynamics_figure"]

VALIDATION = "#009E73"

# Where a chain has more steps, the mean of neighbors is drawn.
STEPS_DRAWN = 100


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
    ax = one_axis(ax, figsize=(6.4, 4.0))
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
    ax = one_axis(ax, figsize=(6.4, 4.0))
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
    axes = axes_of(axes, (3,), figsize=(13.0, 4.0))
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


def _nothing(ax: Axes) -> None:
    """Say that a chain has no step to show."""
    ax.text(0.5, 0.5, "no step t > 1 with signal left", transform=ax.transAxes, ha="center", va="center")


def _curves(*, least: int = 1, **named: ArrayLike) -> list[np.ndarray]:
    curves = [np.asarray(value) for value in named.values()]
    if any(curve.ndim != 1 for curve in curves) or len({curve.size for curve in curves}) != 1 or curves[0].size < least:
        shapes = ", ".join(str(curve.shape) for curve in curves)
        raise ValueError(f"{', '.join(named)} must be 1-D, equally long and not empty; got shapes {shapes}.")
    return curves
