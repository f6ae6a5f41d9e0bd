"""A U-Net: residual blocks at scales that halve and double again, joined across, with attention at the coarsest.

Sources: Ronneberger et al., U-Net, 2015; Ho et al., Denoising Diffusion Probabilistic Models, 2020 (its blocks and its attention);
Wu and He, Group Normalization, 2018.
"""

import math
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models.networks._bfloat16 import as_input
from nedm_ppl.models.networks._convolution import Convolution, ImageOutput, channels_of, check_scale
from nedm_ppl.models.networks._multiscale import per_pixel
from nedm_ppl.models.networks._readout import TIME_FEATURES, TimedNetwork, time_features
from nedm_ppl.models.networks._residual import zeroed

__all__ = ["UNet"]

GROUPS = 8


class ImageBlock(eqx.Module):
    """Two convolutions around which a shortcut runs; between them, features are scaled and shifted as the time says."""

    shortcut: eqx.nn.Linear | None
    first: Convolution
    time: eqx.nn.Linear
    second: Convolution

    def __init__(self, inputs: int, outputs: int, time_width: int, *, key: Array):
        key_short, key_first, key_time, key_second = jax.random.split(key, 4)
        self.shortcut = None if inputs == outputs else eqx.nn.Linear(inputs, outputs, use_bias=False, key=key_short)
        self.first = Convolution(inputs, outputs, 3, key=key_first)
        self.time = zeroed(eqx.nn.Linear(time_width, 2 * outputs, key=key_time))
        self.second = Convolution(outputs, outputs, 3, key=key_second)

    def __call__(self, h: Array, time: Array) -> Array:
        scale, shift = jnp.split(self.time(time).astype(h.dtype), 2)
        u = self.first(jax.nn.silu(group_normalize(h)))
        u = self.second(jax.nn.silu(group_normalize(u) * (1.0 + scale) + shift))
        return u + (h if self.shortcut is None else per_pixel(self.shortcut, h))


class ImageAttention(eqx.Module):
    """Self-attention over the pixels of an image of any size, which knows of no places but by what the features say."""

    query_key_value: eqx.nn.Linear
    project: eqx.nn.Linear
    num_heads: int = eqx.field(static=True)

    def __init__(self, channels: int, num_heads: int, *, key: Array):
        key_in, key_out = jax.random.split(key)
        self.query_key_value = eqx.nn.Linear(channels, 3 * channels, use_bias=False, key=key_in)
        self.project = zeroed(eqx.nn.Linear(channels, channels, key=key_out))
        self.num_heads = num_heads

    def __call__(self, h: Array) -> Array:
        height, width, channels = h.shape
        heads = (height * width, self.num_heads, channels // self.num_heads)
        parts = jnp.split(per_pixel(self.query_key_value, group_normalize(h)), 3, axis=-1)
        query, key, value = (jnp.reshape(part, heads) for part in parts)
        odds = jnp.einsum("qhd,khd->hqk", query, key).astype(float) / math.sqrt(heads[-1])
        weights = jax.nn.softmax(odds, axis=-1).astype(h.dtype)
        return h + per_pixel(self.project, jnp.reshape(jnp.einsum("hqk,khd->qhd", weights, value), h.shape))


class UNet(TimedNetwork):
    """Image in, image-shaped output; silent (zero output) at the start. Takes images of other sizes than `event_shape` too.

    A third argument, a vector of the width, is added to the embedded time and modulates every block with it: see `Embedded`.

    Args:
        event_shape: Shape of one image, (height, width) or (height, width, channels).
        output_shape: Shape of the output, (k, *event) or (height, width, ...).
        num_steps: T.
        width: Channels at full size, and the size of the embedded time; divisible by 8.
        multipliers: Channels at every scale, in widths; every scale after the first is half as large as the one before.
        depth: Blocks at every scale on the way down, and on the way up.
        num_heads: Attention heads at the coarsest scale; divides its channels. 0 leaves attention out.
        key: Initializes the weights.

    Raises:
        ValueError: sizes that do not divide, or an output of another height and width.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl.models import networks
        >>> network = networks.UNet((8, 8), (2, 8, 8), 10, width=8, multipliers=(1, 2), depth=1, key=jax.random.key(0))
        >>> [jax.eval_shape(network, 1, jnp.ones(shape)).shape for shape in ((8, 8), (16, 12))]
        [(2, 8, 8), (2, 16, 12)]
    """

    embed_time: eqx.nn.Linear
    stem: Convolution
    down: tuple[tuple[ImageBlock, ...], ...]
    halve: tuple[eqx.nn.Linear, ...]
    middle: tuple[ImageBlock, ...]
    attention: ImageAttention | None
    double: tuple[eqx.nn.Linear, ...]
    up: tuple[tuple[ImageBlock, ...], ...]
    readout: eqx.nn.Linear
    place: ImageOutput
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Shape,
        output_shape: Shape,
        num_steps: Count,
        *,
        width: Count = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        depth: Count = 1,
        num_heads: Count = 4,
        key: Array,
    ):
        check_key(key, "key")
        event_shape, output_shape = as_shape("event_shape", event_shape, 1), as_shape("output_shape", output_shape, 1)
        width, multipliers = as_count("width", width), as_shape("multipliers", multipliers, 1)
        depth, num_heads = as_count("depth", depth), as_count("num_heads", num_heads, 0)
        sizes = [width * multiplier for multiplier in multipliers]
        if width % GROUPS or (num_heads and sizes[-1] % num_heads):
            raise ValueError(
                f"width must be divisible by {GROUPS}, and the channels at the coarsest scale by num_heads; got width {width}, "
                f"{sizes[-1]} channels there and num_heads {num_heads}."
            )
        self.num_steps = as_count("num_steps", num_steps)
        self.place = ImageOutput(event_shape, output_shape)
        channels = channels_of(event_shape)
        check_scale(event_shape, 2 ** (len(sizes) - 1))
        keys = iter(jax.random.split(key, 6 + 2 * len(sizes) * (depth + 1)))
        before, steps = [sizes[0], *sizes], list(pairwise(sizes))

        def blocks(inputs: int, outputs: int) -> tuple[ImageBlock, ...]:
            return tuple(ImageBlock(outputs if i else inputs, outputs, width, key=next(keys)) for i in range(depth))

        self.embed_time = eqx.nn.Linear(TIME_FEATURES, width, key=next(keys))
        self.stem = Convolution(channels, width, 3, key=next(keys))
        self.down = tuple(blocks(before[i], size) for i, size in enumerate(sizes))
        # Halved, an image keeps its channels: the first block after it changes them.
        self.halve = tuple(eqx.nn.Linear(4 * n, n, key=next(keys)) for n, _ in steps)
        self.middle = tuple(ImageBlock(sizes[-1], sizes[-1], width, key=next(keys)) for _ in range(2))
        self.attention = ImageAttention(sizes[-1], num_heads, key=next(keys)) if num_heads else None
        self.double = tuple(eqx.nn.Linear(m, 4 * n, key=next(keys)) for n, m in steps)
        self.up = tuple(blocks(2 * size, size) for size in sizes)
        self.readout = zeroed(eqx.nn.Linear(width * multipliers[0], self.place.size, key=next(keys)))

    def __call__(self, t: ArrayLike, x: Array, condition: Array | None = None) -> Array:
        check_scale(x.shape, 2 ** len(self.halve))
        time = self.embed_time(time_features(t, self.num_steps))
        time = jax.nn.silu(time if condition is None else time + condition)
        h = jnp.reshape(as_input(x, self.stem.weight), (*x.shape[:2], -1))
        h, across = self.stem(h), []
        for i, blocks in enumerate(self.down):
            h = per_pixel(self.halve[i - 1], gathered(h)) if i else h
            for block in blocks:
                h = block(h, time)
            across.append(h)
        h = self.middle[0](h, time)
        h = self.middle[1](h if self.attention is None else self.attention(h), time)
        for i in reversed(range(len(self.up))):
            h = jnp.concatenate([h, across[i]], axis=-1)
            for block in self.up[i]:
                h = block(h, time)
            h = spread(per_pixel(self.double[i - 1], h)) if i else h
        return self.place(per_pixel(self.readout, jax.nn.silu(group_normalize(h)).astype(float)))


def group_normalize(h: Array) -> Array:
    """Every group of channels to mean 0 and variance 1 over the image; computed in the default precision."""
    height, width, channels = h.shape
    groups = jnp.reshape(h.astype(float), (height * width, GROUPS, channels // GROUPS))
    centered = groups - jnp.mean(groups, axis=(0, 2), keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=(0, 2), keepdims=True) + 1e-5)
    return jnp.reshape(centered * scale, h.shape).astype(h.dtype)


def gathered(image: Array) -> Array:
    """Squares of 2 x 2 pixels as pixels of four times the channels."""
    height, width, channels = image.shape
    squares = jnp.reshape(image, (height // 2, 2, width // 2, 2, channels))
    return jnp.reshape(jnp.transpose(squares, (0, 2, 1, 3, 4)), (height // 2, width // 2, 4 * channels))


def spread(image: Array) -> Array:
    """The inverse of `gathered`."""
    height, width, channels = image.shape
    squares = jnp.reshape(image, (height, width, 2, 2, channels // 4))
    return jnp.reshape(jnp.transpose(squares, (0, 2, 1, 3, 4)), (2 * height, 2 * width, channels // 4))
