"""Tables: every column against every other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from nedm_ppl.plotting._shared import REVERSE, TRUTH, axes_of

__all__ = ["pairs_figure"]

MOST_COLUMNS, BINS = 6, 30


def pairs_figure(
    samples: ArrayLike, data: ArrayLike, axes: np.ndarray | None = None, *, columns: Sequence[str] | None = None
) -> np.ndarray:
    """Samples of a model of a table over data, by pairs of columns; the first six columns of more.

    A column's histograms are on the diagonal, data below it, samples above it; both on the limits that hold 99 % of the data.

    Args:
        samples: Rows of the model, shape (N, D).
        data: Rows of the data, shape (M, D).
        axes: Axes of shape (n, n), n = min(D, 6).
        columns: Names of the columns, D of them.

    Returns:
        The axes, shape (n, n).

    Raises:
        ValueError: other shapes, or another number of names.
    """
    samples, data = np.asarray(samples, float), np.asarray(data, float)
    for name, rows in (("samples", samples), ("data", data)):
        if rows.ndim != 2 or 0 in rows.shape or rows.shape[1] != data.shape[-1]:
            raise ValueError(f"{name} must be rows of one length, shape (N, D), not empty; got shape {rows.shape}.")
    size = min(data.shape[1], MOST_COLUMNS)
    names = [f"x{i}" for i in range(data.shape[1])] if columns is None else list(map(str, columns))
    if len(names) != data.shape[1]:
        raise ValueError(f"columns must be {data.shape[1]} names, one of every column; got {len(names)}.")
    side = 2.0 if size > 1 else 4.0
    axes = axes_of(axes, (size, size), figsize=(side * size + 0.6, side * size + 0.4), squeeze=False)
    limits = [_limits(data[:, i]) for i in range(size)]
    for row in range(size):
        for column in range(size):
            ax = axes[row, column]
            if row == column:
                for rows, color, name in ((data, TRUTH, "data"), (samples, REVERSE, "samples")):
                    kept = rows[:, row]
                    kept = kept[(kept >= limits[row][0]) & (kept <= limits[row][1])]
                    ax.hist(kept, bins=BINS, range=limits[row], density=True, histtype="step", color=color, label=name)
                ax.set(xlim=limits[row], yticks=[])
            else:
                rows, color = (data, TRUTH) if row > column else (samples, REVERSE)
                ax.plot(rows[:, column], rows[:, row], ".", color=color, markersize=2.0, alpha=0.4)
                ax.set(xlim=limits[column], ylim=limits[row])
            if row == size - 1:
                ax.set_xlabel(names[column])
            else:
                ax.tick_params(labelbottom=False)
            if column == 0 and size > 1:
                ax.set_ylabel(names[row])
            elif row != column:
                ax.tick_params(labelleft=False)
    axes[0, 0].legend(fontsize="x-small", frameon=False)
    return axes


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.005, 0.995])
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)
