"""The paper's network for the swiss roll (Appendix D.1.1): normalized radial basis functions, a readout per step."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models.networks._readout import StepReadout, TimedNetwork

__all__ = ["RBF"]


class RBF(TimedNetwork):
    r"""Hidden units $h_k = \mathrm{softmax}_k(-\tfrac12 |(x - c_k) / s_k|^2)$, shared over time; outputs linear, one map per step.

    Args:
        event_shape: Shape of one datum.
        output_shape: Shape of the output.
        num_steps: T.
        width: Number of basis functions; 16 in the paper.
        key: Draws the centers from N(0, I).
    """

    centers: Array
    log_scales: Array
    readout: StepReadout
    output_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Shape,
        output_shape: Shape,
        num_steps: Count,
        *,
        width: Count = 16,
        key: Array,
    ):
        check_key(key, "key")
        event_shape, output_shape = as_shape("event_shape", event_shape), as_shape("output_shape", output_shape)
        num_steps, width = as_count("num_steps", num_steps), as_count("width", width)
        self.centers = jax.random.normal(key, (width, math.prod(event_shape)))
        self.log_scales = jnp.zeros((width,))
        self.readout = StepReadout(width, math.prod(output_shape), num_steps)
        self.output_shape = output_shape

    @property
    def num_steps(self) -> int:
        """T, the number of readouts."""
        return self.readout.num_steps

    def __call__(self, t: ArrayLike, x: Array) -> Array:
        distance = jnp.sum(jnp.square(jnp.ravel(x) - self.centers), axis=-1) * jnp.exp(-2.0 * self.log_scales)
        hidden = jax.nn.softmax(-0.5 * distance)
        return jnp.reshape(self.readout(t, hidden), self.output_shape)
