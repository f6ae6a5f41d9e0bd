"""Colors, and what is asked of trajectories and axes."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

__all__ = ["FAINT", "FORWARD", "NULL", "REVERSE", "TRUTH", "as_trajectory", "axes_of", "one_axis"]

FORWARD = "#0072B2"
"""The color of the forward chain, as a hexadecimal string."""

REVERSE = "#D55E00"
"""The color of the model: of its reverse chain, its samples and its bound."""

TRUTH = "#000000"
"""The color of data and of what is known exactly."""

NULL = "#6E6E6E"
"""The color of the noise law, and of the paper's approximate method."""

FAINT = "#A8A8A8"


def as_trajectory(name: str, value: ArrayLike, event_shape: tuple[int, ...]) -> np.ndarray:
    """A trajectory of that event shape as an array, shape (N, T + 1, *event).

    Raises:
        ValueError: another shape.
    """
    value = np.asarray(value)
    if value.ndim < 3 or value.shape[2:] != event_shape or 0 in value.shape:
        event = ", ".join(map(str, event_shape)) if event_shape else "*event"
        raise ValueError(f"{name} must have shape (N, T + 1, {event}), time ascending; got shape {value.shape}.")
    return value


def one_axis(ax: Axes | None, *, figsize: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure."""
    return ax if ax is not None else plt.subplots(figsize=figsize, layout="constrained")[1]


def axes_of(
    axes: np.ndarray | None, shape: tuple[int, ...], *, figsize: tuple[float, float], **share: Any
) -> np.ndarray:
    """The axes given, which must have that shape, or those of a new figure."""
    if axes is None:
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        return plt.subplots(rows, columns, figsize=figsize, layout="constrained", **share)[1]
    axes = np.asarray(axes, dtype=object)
    if axes.shape != shape:
        raise ValueError(f"axes must have shape {shape}; got {axes.shape}. Use plt.subplots, or leave axes out.")
    return axes
