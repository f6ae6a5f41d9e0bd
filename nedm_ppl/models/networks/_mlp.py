"""The paper's network for the heartbeat (Appendix D.1.2): a sigmoid multi-layer perceptron, a readout per step."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models.networks._bfloat16 import as_input
from nedm_ppl.models.networks._readout import StepReadout, TimedNetwork

__all__ = ["SigmoidMLP"]


class SigmoidMLP(TimedNetwork):
    """Sigmoid hidden layers shared over time; outputs linear, one map per step.

    Args:
        event_shape: Shape of one datum.
        output_shape: Shape of the output.
        num_steps: T.
        width: Units per hidden layer; 50 in the paper.
        depth: Number of hidden layers; 3 in the paper.
        key: Initializes the hidden layers.
    """

    layers: tuple[eqx.nn.Linear, ...]
    readout: StepReadout
    output_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Shape,
        output_shape: Shape,
        num_steps: Count,
        *,
        width: Count = 50,
        depth: Count = 3,
        key: Array,
    ):
        check_key(key, "key")
        event_shape, output_shape = as_shape("event_shape", event_shape), as_shape("output_shape", output_shape)
        num_steps, width, depth = as_count("num_steps", num_steps), as_count("width", width), as_count("depth", depth)
        sizes = [math.prod(event_shape)] + [width] * depth
        keys = jax.random.split(key, depth)
        self.layers = tuple(eqx.nn.Linear(m, n, key=k) for m, n, k in zip(sizes, sizes[1:], keys, strict=False))
        self.readout = StepReadout(width, math.prod(output_shape), num_steps)
        self.output_shape = output_shape

    @property
    def num_steps(self) -> int:
        """T, the number of readouts."""
        return self.readout.num_steps

    def __call__(self, t: ArrayLike, x: Array) -> Array:
        h = as_input(jnp.ravel(x), self.readout.weight)
        for layer in self.layers:
            h = jax.nn.sigmoid(layer(h))
        return jnp.reshape(self.readout(t, h), self.output_shape)
