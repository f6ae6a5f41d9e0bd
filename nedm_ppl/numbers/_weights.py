"""Means of weights whose logarithms are given: in float64 for NumPy arrays, and under `jit` in their own dtype for those of JAX."""

import math
from typing import TypeVar

import jax.numpy as jnp
import jax.scipy.special
import numpy as np
import scipy.special

__all__ = ["effective_sample_size", "log_mean_exp", "relative_weights"]

A = TypeVar("A", jax.Array, np.ndarray)


def log_mean_exp(log_weights: A, axis: int = 0) -> A:
    """Log of the mean weight over an axis; minus infinity where all weights are 0."""
    logsumexp = scipy.special.logsumexp if isinstance(log_weights, np.ndarray) else jax.scipy.special.logsumexp
    return logsumexp(log_weights, axis=axis) - math.log(log_weights.shape[axis])


def effective_sample_size(log_weights: A, axis: int = 0) -> A:
    r"""$(\sum w)^2 / \sum w^2$ over an axis; 0 where all weights are 0."""
    xp = np if isinstance(log_weights, np.ndarray) else jnp
    weights = xp.exp(log_weights - _largest(log_weights, axis))
    squares = xp.sum(xp.square(weights), axis=axis)
    none = squares == 0.0
    return xp.where(none, 0.0, xp.square(xp.sum(weights, axis=axis)) / xp.where(none, 1.0, squares))


def relative_weights(log_weights: np.ndarray, axis: int = 0) -> np.ndarray:
    """Weights over their mean along an axis; NaN where all are 0."""
    weights = np.exp(log_weights - _largest(log_weights, axis))
    with np.errstate(invalid="ignore"):
        return weights / weights.mean(axis=axis, keepdims=True)


def _largest(log_weights: A, axis: int) -> A:
    xp = np if isinstance(log_weights, np.ndarray) else jnp
    largest = xp.max(log_weights, axis=axis, keepdims=True)
    return xp.where(xp.isfinite(largest), largest, 0.0)
