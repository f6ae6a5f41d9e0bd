"""A residual multi-layer perceptron with a time embedding: the default for vectors and short sequences."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models.networks._bfloat16 import as_input
from nedm_ppl.models.networks._readout import TIME_FEATURES, TimedNetwork, time_features

__all__ = ["ResidualMLP", "zeroed"]


class ResidualBlock(eqx.Module):
    r"""$h + W_2\, \mathrm{silu}\big((1 + a(t)) \odot W_1 h + b(t)\big)$, with a and b linear in the features of time."""

    up: eqx.nn.Linear
    time: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, *, key: Array):
        key_up, key_time, key_down = jax.random.split(key, 3)
        self.up = eqx.nn.Linear(width, width, key=key_up)
        self.time = eqx.nn.Linear(TIME_FEATURES, 2 * width, key=key_time)
        self.down = eqx.nn.Linear(width, width, key=key_down)

    def __call__(self, h: Array, features: Array) -> Array:
        scale, shift = jnp.split(self.time(features).astype(h.dtype), 2)
        return h + self.down(jax.nn.silu(self.up(h) * (1.0 + scale) + shift))


class ResidualMLP(TimedNetwork):
    """Residual blocks on the flattened datum, every block told the time; silent (zero output) at the start.

    A third argument, a vector of the width, is added to the hidden units before the first block: see `Embedded`.

    Args:
        event_shape: Shape of one datum.
        output_shape: Shape of the output.
        num_steps: T.
        width: Units per block.
        depth: Number of blocks.
        direction_width: Units through which all of the output but its first two rows is read, the directions of a prediction with
            `rank`: so the readout of many coordinates stays as small as without them. 0 reads every row from the last block.
        key: Initializes the weights.

    Raises:
        ValueError: a `direction_width` where the output has no more than two rows.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl.models import networks
        >>> network = networks.ResidualMLP((3,), (2, 3), 40, width=16, key=jax.random.key(0))
        >>> network(1, jnp.ones(3)).shape
        (2, 3)
    """

    embed: eqx.nn.Linear
    blocks: tuple[ResidualBlock, ...]
    readout: eqx.nn.Linear
    directions: tuple[eqx.nn.Linear, ...]
    num_steps: int = eqx.field(static=True)
    output_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Shape,
        output_shape: Shape,
        num_steps: Count,
        *,
        width: Count = 128,
        depth: Count = 3,
        direction_width: Count = 0,
        key: Array,
    ):
        check_key(key, "key")
        event_shape, output_shape = as_shape("event_shape", event_shape), as_shape("output_shape", output_shape)
        narrow = as_count("direction_width", direction_width, 0)
        if narrow and (not output_shape or output_shape[0] < 3):
            raise ValueError(
                f"direction_width must be 0 where the output has no rows beyond its first two; got {narrow} for {output_shape}."
            )
        num_steps, width, depth = as_count("num_steps", num_steps), as_count("width", width), as_count("depth", depth)
        key_in, key_out, *keys = jax.random.split(key, depth + 2)
        self.embed = eqx.nn.Linear(math.prod(event_shape), width, key=key_in)
        self.blocks = tuple(ResidualBlock(width, key=k) for k in keys)
        size = math.prod(output_shape)
        first = 2 * size // output_shape[0] if narrow else size
        self.readout = zeroed(eqx.nn.Linear(width, first, key=key_out))
        self.directions = ()
        if narrow:
            inner = eqx.nn.Linear(width, narrow, key=jax.random.fold_in(key_out, 1))
            self.directions = (inner, zeroed(eqx.nn.Linear(narrow, size - first, key=key_out)))
        self.num_steps = num_steps
        self.output_shape = output_shape

    def __call__(self, t: ArrayLike, x: Array, condition: Array | None = None) -> Array:
        features = time_features(t, self.num_steps)
        h = self.embed(as_input(jnp.ravel(x), self.embed.weight))
        h = h if condition is None else h + condition
        for block in self.blocks:
            h = block(h, features)
        output = self.readout(h)
        if self.directions:
            inner, outer = self.directions
            output = jnp.concatenate([output, outer(inner(h))])
        return jnp.reshape(output, self.output_shape)


def zeroed(linear: eqx.nn.Linear) -> eqx.nn.Linear:
    """A linear layer that starts silent."""
    return jax.tree.map(jnp.zeros_like, linear)
