"""A transformer on patches of an image, told the time by scale, shift and gate in every block.

Source of the conditioning: Peebles and Xie, Scalable Diffusion Models with Transformers, 2023 (adaLN-Zero).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models.networks._bfloat16 import as_input
from nedm_ppl.models.networks._readout import TIME_FEATURES, TimedNetwork, time_features
from nedm_ppl.models.networks._residual import zeroed

__all__ = ["PatchTransformer"]


class TransformerBlock(eqx.Module):
    """Self-attention over patches, then a perceptron on each, both modulated by the time."""

    modulation: eqx.nn.Linear
    query_key_value: eqx.nn.Linear
    project: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    num_heads: int = eqx.field(static=True)

    def __init__(self, width: int, num_heads: int, *, key: Array):
        key_attend, key_project, key_up, key_down, key_time = jax.random.split(key, 5)
        self.modulation = zeroed(eqx.nn.Linear(width, 6 * width, key=key_time))
        self.query_key_value = eqx.nn.Linear(width, 3 * width, use_bias=False, key=key_attend)
        self.project = eqx.nn.Linear(width, width, key=key_project)
        self.up = eqx.nn.Linear(width, 3 * width, key=key_up)
        self.down = eqx.nn.Linear(3 * width, width, key=key_down)
        self.num_heads = num_heads

    def __call__(self, h: Array, time: Array) -> Array:
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = jnp.split(self.modulation(time).astype(h.dtype), 6)
        u = normalize(h) * (1.0 + scale_a) + shift_a
        h = h + (1.0 + gate_a) * jax.vmap(self.project)(self._attend(u))
        u = normalize(h) * (1.0 + scale_m) + shift_m
        return h + (1.0 + gate_m) * jax.vmap(self.down)(jax.nn.silu(jax.vmap(self.up)(u)))

    def _attend(self, u: Array) -> Array:
        num_patches, width = u.shape
        heads = (num_patches, self.num_heads, width // self.num_heads)
        query, key, value = (
            jnp.reshape(part, heads) for part in jnp.split(jax.vmap(self.query_key_value)(u), 3, axis=-1)
        )
        odds = jnp.einsum("qhd,khd->hqk", query, key).astype(float) / math.sqrt(heads[-1])
        weights = jax.nn.softmax(odds, axis=-1).astype(u.dtype)
        return jnp.reshape(jnp.einsum("hqk,khd->qhd", weights, value), u.shape)


class PatchTransformer(TimedNetwork):
    """Image in, image-shaped output; silent (zero output) at the start.

    A third argument, a vector of the width, is added to the embedded time and modulates every block with it: see `Embedded`.

    Args:
        event_shape: Shape of the input, (height, width) or (height, width, channels).
        output_shape: Shape of the output, (height, width, ...), or with the outputs first, (k, height, width, ...).
        num_steps: T.
        patch: Side of a patch; divides height and width.
        width: Features per patch.
        depth: Number of blocks.
        num_heads: Attention heads; divides `width`.
        key: Initializes the weights.

    Raises:
        ValueError: sizes that do not divide, or an output of another height and width.
    """

    embed: eqx.nn.Linear
    position: Array
    embed_time: eqx.nn.Linear
    blocks: tuple[TransformerBlock, ...]
    modulation: eqx.nn.Linear
    readout: eqx.nn.Linear
    num_steps: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    output_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Shape,
        output_shape: Shape,
        num_steps: Count,
        *,
        patch: Count = 2,
        width: Count = 64,
        depth: Count = 4,
        num_heads: Count = 4,
        key: Array,
    ):
        check_key(key, "key")
        event_shape, output_shape = as_shape("event_shape", event_shape), as_shape("output_shape", output_shape)
        num_steps, depth = as_count("num_steps", num_steps), as_count("depth", depth)
        patch, width, num_heads = as_count("patch", patch), as_count("width", width), as_count("num_heads", num_heads)
        if len(event_shape) not in (2, 3):
            raise ValueError(f"event_shape must be (height, width) or (height, width, channels); got {event_shape}.")
        rows, columns = event_shape[:2]
        if rows % patch or columns % patch or width % num_heads:
            raise ValueError(
                f"patch must divide the image and num_heads the width; got patch {patch}, image {event_shape[:2]}, "
                f"num_heads {num_heads}, width {width}."
            )
        if (rows, columns) not in (output_shape[:2], output_shape[1:3]):
            raise ValueError(
                f"output_shape must have the image's {(rows, columns)} as its first two axes, or after its first; got "
                f"{output_shape}."
            )
        key_in, key_position, key_time, key_out, *keys = jax.random.split(key, depth + 4)
        area = patch * patch
        self.embed = eqx.nn.Linear(area * math.prod(event_shape[2:]), width, key=key_in)
        self.position = 0.5 * jax.random.normal(key_position, (rows * columns // area, width))
        self.embed_time = eqx.nn.Linear(TIME_FEATURES, width, key=key_time)
        self.blocks = tuple(TransformerBlock(width, num_heads, key=k) for k in keys)
        self.modulation = zeroed(eqx.nn.Linear(width, 2 * width, key=key_out))
        self.readout = zeroed(eqx.nn.Linear(width, area * math.prod(output_shape) // (rows * columns), key=key_out))
        self.num_steps, self.patch = num_steps, patch
        self.output_shape = output_shape

    def __call__(self, t: ArrayLike, x: Array, condition: Array | None = None) -> Array:
        time = self.embed_time(time_features(t, self.num_steps))
        time = jax.nn.silu(time if condition is None else time + condition)
        h = jax.vmap(self.embed)(self._to_patches(as_input(x, self.embed.weight))) + self.position
        for block in self.blocks:
            h = block(h, time)
        scale, shift = jnp.split(self.modulation(time), 2)
        return self._to_image(jax.vmap(self.readout)(normalize(h) * (1.0 + scale) + shift), x.shape[:2])

    def _to_patches(self, x: Array) -> Array:
        rows, columns, p = x.shape[0] // self.patch, x.shape[1] // self.patch, self.patch
        x = jnp.reshape(x, (rows, p, columns, p, -1))
        return jnp.reshape(jnp.transpose(x, (0, 2, 1, 3, 4)), (rows * columns, -1))

    def _to_image(self, patches: Array, size: tuple[int, ...]) -> Array:
        rows, columns, p = size[0] // self.patch, size[1] // self.patch, self.patch
        patches = jnp.reshape(patches, (rows, columns, p, p, -1))
        image = jnp.reshape(jnp.transpose(patches, (0, 2, 1, 3, 4)), (*size, -1))
        if self.output_shape[:2] == size:
            return jnp.reshape(image, self.output_shape)
        outputs_first = jnp.reshape(image, (*size, self.output_shape[0], *self.output_shape[3:]))
        return jnp.moveaxis(outputs_first, 2, 0)


def normalize(h: Array) -> Array:
    """Every row to mean 0 and variance 1; computed in the default precision."""
    rows = h.astype(float)
    centered = rows - jnp.mean(rows, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + 1e-5)
    return (centered * scale).astype(h.dtype)
