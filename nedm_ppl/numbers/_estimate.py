"""A number with its standard error, and arithmetic that means what it says."""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from nedm_ppl.arguments import check_unmasked

__all__ = ["Estimate"]


class Estimate(NamedTuple):
    """A mean and its standard error, in the unit of what was averaged: `-1.792 ± 0.013`.

    Numbers scale it, so that `2 * estimate` is in half the unit. `+` and `-` are of *independent* estimates, whose squared
    errors add; of two numbers for the same data take `Estimate.of(first - second)`, whose error is that of the pairs.

    Examples:
        >>> from nedm_ppl.inference import Estimate
        >>> Estimate(-1.792, 0.013) - Estimate(-1.802, 0.012)
        Estimate(mean=0.010000000000000009, se=0.01769180601295413)
        >>> print(Estimate(-1.792, 0.013) * 64)
        -114.69 ± 0.83
    """

    mean: float
    se: float

    @classmethod
    def of(cls, values: ArrayLike) -> "Estimate":
        """Mean of per-datum values with its standard error sd / sqrt(n), data and Monte Carlo spread together; NaN for one value.

        Steps drawn with low discrepancy are shared out over a batch; that makes the error smaller than stated, not larger.

        Raises:
            ValueError: masked values.
        """
        check_unmasked("values", values)
        values = np.asarray(values, np.float64)
        se = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
        return cls(float(values.mean()), float(se))

    def __mul__(self, factor: float) -> "Estimate":  # type: ignore[override]
        return Estimate(self.mean * factor, self.se * abs(factor))

    def __rmul__(self, factor: float) -> "Estimate":  # type: ignore[override]
        return self * factor

    def __truediv__(self, divisor: float) -> "Estimate":
        return self * (1.0 / divisor)

    def __neg__(self) -> "Estimate":
        return self * -1.0

    def __add__(self, other: "Estimate") -> "Estimate":  # type: ignore[override]
        return Estimate(self.mean + other.mean, math.hypot(self.se, other.se))

    def __sub__(self, other: "Estimate") -> "Estimate":
        return self + -other

    def __str__(self) -> str:
        """Two digits of the error, and as many of the mean."""
        if not (math.isfinite(self.se) and self.se > 0.0):
            return f"{self.mean:.4f} ± {self.se:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.se)))
        return f"{self.mean:.{digits}f} ± {self.se:.{digits}f}"
