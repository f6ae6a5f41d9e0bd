r"""Pareto k-hat: how heavy the tail of a set of importance weights is, and when not to trust their mean.

The largest M = min(S / 5, 3 sqrt(S)) of S weights are fitted by a generalized Pareto law, whose shape k says how many moments
the weights have: their variance is finite below k = 1/2, their mean below 1. With S weights the mean is reliable for
k up to min(1 - 1 / log10 S, 0.7). The fit is Zhang and Stephens's empirical Bayes estimate, drawn towards 1/2 with the
weight of 10 observations.

Sources: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, 2024, Algorithm 1 and Appendix G;
Zhang and Stephens, A new and efficient estimation method for the generalized Pareto distribution, 2009. The numbers are
those of `arviz.psislw`, for all data at once.

A few trajectories may miss the tail that k-hat is about, and those that miss it look safest: among estimates by a poor kernel
the ones whose k-hat is low are the *worst*. The bulk of the weights is seen by any few of them. `upper_spread` is Hill's
estimate of the same k from the whole upper half, on which the luck of the largest weights has little say.

Source: Hill, A simple general approach to inference about the tail of a distribution, 1975.
"""

import numpy as np
from jax.typing import ArrayLike

from nedm_ppl.arguments import check_unmasked

__all__ = ["RELIABLE", "k_threshold", "pareto_k", "spread_threshold", "upper_spread"]

# Above this k a mean of weights is not to be trusted, however many there are.
RELIABLE = 0.7

# Log weights as close as this, in nats, are equal: their mean is known to a thousandth whatever the tail.
EQUAL = 1e-3
# Digits of log weights coarser than this, in nats, do not tell whether they are equal.
COARSE = 0.1
LEAST_TAIL = 5
# Entries of one block of the fit, data x grid x tail.
BLOCK = 2**22


def pareto_k(log_weights: ArrayLike) -> np.ndarray:
    r"""$\hat k$ of every datum's weights.

    Args:
        log_weights: Log weights in nats, trajectories first, shape (S, *batch); their order and any constant do not matter.

    Returns:
        Shape (*batch,). Minus infinity where there is no tail: all weights equal (within 1e-3 nats), or the M largest tied.
        Infinity where k cannot be told: fewer than 5 weights lie in the tail, S < 21 among others; all weights are 0; or their
        digits are coarser than 0.1 nats, as those of float32 beyond 10^6 nats. NaN where a weight is NaN.
    """
    check_unmasked("log_weights", log_weights)
    spacing = resolution(log_weights)
    log_weights = np.asarray(log_weights, np.float64)
    rows = log_weights.reshape(len(log_weights), -1).T
    largest = rows.max(axis=1, initial=-np.inf)
    k = np.where(np.isnan(largest), np.nan, np.inf)
    usable = np.isfinite(largest) & (spacing.ravel() <= COARSE)
    if len(log_weights) > 1 and usable.any():
        k[usable] = _tail_shape(rows[usable] - largest[usable, None])
    return k.reshape(log_weights.shape[1:])


def upper_spread(log_weights: ArrayLike) -> np.ndarray:
    r"""How far the upper half of the log weights lies above their median, on average: Hill's estimate of k from half of them.

    Where log w has an exponential upper tail it is the k of the weights; where log w is normal, 0.80 of its standard deviation.

    Args:
        log_weights: As for `pareto_k`.

    Returns:
        Nats, shape (*batch,), at least 0. Infinity for a single weight, and where half of the weights are 0; NaN where one is NaN.
    """
    check_unmasked("log_weights", log_weights)
    ordered = np.sort(np.asarray(log_weights, np.float64), axis=0)
    half = len(ordered) // 2
    if half == 0:
        return np.where(np.isnan(ordered[0]), np.nan, np.inf)
    median = ordered[len(ordered) - half - 1]
    spread = np.mean(ordered[len(ordered) - half :] - np.where(np.isneginf(median), 0.0, median), axis=0)
    return np.where(np.isneginf(median) & ~np.isnan(ordered[-1]), np.inf, spread)


def spread_threshold(num_trajectories: ArrayLike) -> np.ndarray:
    r"""sqrt(log(S) / 10) nats, above which `upper_spread` says that S weights do not give a reliable mean; 0 for S = 1.

    Importance sampling needs trajectories by the exponential of what the log weights spread: $S \ge e^{10\, \text{spread}^2}$,
    which is $e^{6.4\, \mathrm{Var} \log w}$ where log w is normal. The 10 is measured; see docs/likelihoods.md."""
    return np.sqrt(np.log(np.asarray(num_trajectories, np.float64)) / 10.0)


def resolution(log_weights: ArrayLike) -> np.ndarray:
    """Distance to the next number of the precision that log weights are held in, at the largest finite one; shape (*batch,)."""
    log_weights = np.asarray(log_weights)
    log_weights = log_weights if log_weights.dtype.kind == "f" else log_weights.astype(np.float64)
    largest = np.abs(np.where(np.isfinite(log_weights), log_weights, 0.0)).max(axis=0, initial=0.0)
    return np.asarray(np.spacing(largest), np.float64)


def k_threshold(num_trajectories: ArrayLike) -> np.ndarray:
    r"""min(1 - 1 / log10 S, 0.7), above which $\hat k$ says that S weights do not give a reliable mean; -inf for S = 1."""
    with np.errstate(divide="ignore"):
        return np.minimum(1.0 - 1.0 / np.log10(np.asarray(num_trajectories, np.float64)), 0.7)


def _tail_shape(rows: np.ndarray) -> np.ndarray:
    """k-hat of log weights whose largest is 0, shape (n, S), S at least 2."""
    num = rows.shape[1]
    size = int(np.ceil(min(num / 5.0, 3.0 * np.sqrt(num))))
    tail = np.sort(np.partition(rows, num - size - 1, axis=1)[:, num - size - 1 :], axis=1)
    cutoff = np.maximum(tail[:, :1], np.log(np.finfo(float).tiny))
    length = np.sum(tail > cutoff, axis=1)
    no_tail = (rows.min(axis=1) >= -EQUAL) | ((length == 0) & (size >= LEAST_TAIL))
    k = np.where(no_tail, -np.inf, np.inf)
    for size in np.unique(length[(length >= LEAST_TAIL) & ~no_tail]):
        chosen = (length == size) & ~no_tail
        # exp(a) - exp(b) = exp(b) expm1(a - b), which keeps its digits where the weights are close.
        k[chosen] = _fit(np.exp(cutoff[chosen]) * np.expm1(tail[chosen, -size:] - cutoff[chosen]))
    return k


def _fit(excess: np.ndarray) -> np.ndarray:
    """Shape k of generalized Pareto laws, for increasing positive draws of shape (n, M)."""
    num = excess.shape[1]
    size = 30 + int(num**0.5)
    block = max(1, BLOCK // (size * num))
    return np.concatenate([_fit_block(excess[i : i + block], size) for i in range(0, len(excess), block)])


def _fit_block(excess: np.ndarray, size: int) -> np.ndarray:
    num = excess.shape[1]
    grid = (1.0 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))) / (3.0 * excess[:, int(num / 4 + 0.5) - 1, None])
    grid = grid + 1.0 / excess[:, -1:]
    shape = np.log1p(-grid[:, :, None] * excess[:, None, :]).mean(axis=2)
    log_likelihood = num * (np.log(-grid / shape) - shape - 1.0)
    weight = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    weight[weight < 10.0 * np.finfo(float).eps] = 0.0
    scale = np.sum(weight * grid, axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    k = np.log1p(-scale * excess).mean(axis=1)
    return (num * k + 5.0) / (num + 10.0)
