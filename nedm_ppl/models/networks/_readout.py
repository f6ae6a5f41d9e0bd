r"""How a network knows the time: features of t for shared weights, and a readout of its own per step.

A readout per step is the paper's way for its two small experiments. It costs T times the weights, so every optimizer step
is O(T); networks with a time embedding are O(1) in T.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

__all__ = ["TIME_FEATURES", "StepReadout", "TimedNetwork", "time_features"]


TIME_FEATURES = 16


def time_features(t: ArrayLike, num_steps: int) -> Array:
    r"""Sines and cosines of $\tfrac\pi2 2^k\, t/T$, k = 0..7, from a quarter turn over the chain up; shape (16,)."""
    angles = 0.5 * np.pi * 2.0 ** np.arange(TIME_FEATURES // 2) * (jnp.asarray(t, float) / num_steps)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class TimedNetwork(eqx.Module):
    """A network made for chains of one number of steps: on another it would answer for other times, or for none.

    Its `num_steps` is T, as a field or as a property."""


class StepReadout(eqx.Module):
    """One linear map per step t = 1..T, applied to shared hidden units; zero at the start.

    Args:
        hidden: Number of hidden units.
        output: Number of outputs.
        num_steps: T.
    """

    weight: Array
    bias: Array

    def __init__(self, hidden: int, output: int, num_steps: int):
        self.weight = jnp.zeros((num_steps, output, hidden))
        self.bias = jnp.zeros((num_steps, output))

    @property
    def num_steps(self) -> int:
        """T."""
        return self.weight.shape[0]

    def __call__(self, t: ArrayLike, h: Array) -> Array:
        index = jnp.asarray(t) - 1
        return jnp.take(self.weight, index, axis=0) @ h + jnp.take(self.bias, index, axis=0)
