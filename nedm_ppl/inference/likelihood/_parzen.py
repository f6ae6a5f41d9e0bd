"""Parzen windows on samples, the number by which models without a likelihood were once compared (the paper's MNIST).

It says little of a model. A window of any width on samples in hundreds of dimensions is far from the law they are from, and
points that no model of the data would draw, such as cluster centers, score above the data themselves. It stands beside a log
likelihood here for comparison with published numbers, never in its place.

Sources: Goodfellow et al., Generative Adversarial Nets, 2014; Theis, van den Oord and Bethge, A Note on the Evaluation of
Generative Models, 2016 (its section 3.2 is the caveat).
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from nedm_ppl.arguments import check_unmasked
from nedm_ppl.numbers import Estimate

__all__ = ["Parzen", "parzen_log_likelihood"]

# Widths that are tried, in standard deviations of the samples.
WIDTHS = np.geomspace(0.05, 2.0, 30)


class Parzen(NamedTuple):
    """Log density of data under a Parzen window on samples.

    Attributes:
        log_prob: Of every datum, nats, float64, shape (N,); exact for the window.
        bandwidth: Standard deviation of the window, in the data's units.
    """

    log_prob: np.ndarray
    bandwidth: float

    @property
    def mean(self) -> Estimate:
        """Mean log density with its standard error over the data, nats per datum; the window is taken as given."""
        return Estimate.of(self.log_prob)

    def __repr__(self) -> str:
        return f"Parzen window of {self.bandwidth:.3g} on {len(self.log_prob)} data: {self.mean} nats"


def parzen_log_likelihood(
    samples: ArrayLike, x0: ArrayLike, *, validation: ArrayLike, bandwidths: ArrayLike | None = None
) -> Parzen:
    r"""The log density $\log \frac1M \sum_m N(x_0; x^{(m)}, \sigma^2 I)$ of data under a Parzen window on samples.

    Args:
        samples: A model's samples $x^{(m)}$, shape (M, *event).
        x0: Data, shape (N, *event), which chose nothing.
        validation: Data that choose $\sigma$ by their mean log density, shape (V, *event).
        bandwidths: Values of $\sigma$ to try, shape (B,); by default 30, from a twentieth to twice the samples' pooled standard
            deviation.

    Raises:
        ValueError: no samples or data, data of another shape, or a bandwidth that is not above 0.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl import inference
        >>> x = np.random.default_rng(0).normal(size=(3, 500, 2))
        >>> window = inference.parzen_log_likelihood(x[0], x[1], validation=x[2])
        >>> bool(0.1 < window.bandwidth < 0.6)
        True
    """
    parts = {}
    for name, value in (("samples", samples), ("x0", x0), ("validation", validation)):
        check_unmasked(name, value)
        parts[name] = np.asarray(value, np.float64)
        if parts[name].ndim < 2 or not len(parts[name]) or parts[name].shape[1:] != parts["samples"].shape[1:]:
            raise ValueError(
                f"{name} must have shape (N, *event), N at least 1, and the event shape of the samples; got {np.shape(value)}."
            )
    flat = {name: value.reshape(len(value), -1) for name, value in parts.items()}
    widths = WIDTHS * flat["samples"].std() if bandwidths is None else np.atleast_1d(np.asarray(bandwidths, np.float64))
    if widths.size == 0 or not np.all(widths > 0.0):
        raise ValueError(f"bandwidths must be above 0, at least one; got {widths}.")
    apart = cdist(flat["validation"], flat["samples"], "sqeuclidean")
    means = [_log_prob(apart, flat["samples"].shape[1], width).mean() for width in widths]
    best = float(widths[int(np.argmax(means))])
    apart = cdist(flat["x0"], flat["samples"], "sqeuclidean")
    return Parzen(_log_prob(apart, flat["samples"].shape[1], best), best)


def _log_prob(apart: np.ndarray, size: int, width: float) -> np.ndarray:
    normalizer = 0.5 * size * np.log(2.0 * np.pi * width**2) + np.log(apart.shape[1])
    return logsumexp(-0.5 * apart / width**2, axis=1) - normalizer
