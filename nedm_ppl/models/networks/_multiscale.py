r"""The paper's network for images (Appendix D.2, Figure D.1): convolutions at several scales, a dense pathway, a readout in time.

As the paper describes it. The authors' released code differs: leaky ReLU of slope .05 in place of softplus and tanh (`slope=0.05`),
bumps of half their spacing (`bump_width=0.5`), scales averaged and not summed (`average_scales=True`), and another mean and
variance (`DriftVariance(released=True)`). In both, time is in the readout alone.
"""

from collections.abc import Callable
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models.networks._bfloat16 import as_input
from nedm_ppl.models.networks._convolution import (
    Convolution,
    ImageOutput,
    channels_of,
    check_scale,
    enlarged,
    pooled,
)
from nedm_ppl.models.networks._readout import TimedNetwork
from nedm_ppl.models.networks._residual import zeroed

__all__ = ["MultiScaleNetwork", "time_bumps"]


def time_bumps(t: ArrayLike, num_steps: int, num_bumps: int, width: float = 1.0) -> Array:
    r"""Normalized Gaussian bumps $g_j(t)$ of the temporal readout: positive, and their sum is 1; shape (num_bumps,).

    Args:
        t: Time, a scalar in 1..T.
        num_steps: T; the centers are spread evenly over 0..T.
        num_bumps: J.
        width: Standard deviation of a bump, in spacings of the centers.

    Examples:
        >>> from nedm_ppl.models import networks
        >>> [f"{g:.2f}" for g in networks.time_bumps(5, 10, 3)]
        ['0.27', '0.45', '0.27']
    """
    spacing = num_steps / max(num_bumps - 1, 1)
    distance = (jnp.asarray(t, float) - spacing * jnp.arange(num_bumps)) / (width * spacing)
    return jax.nn.softmax(-0.5 * jnp.square(distance))


class MultiScaleConvolution(eqx.Module):
    """An image pooled to squares of side 1, 2, 4, ..., convolved at each of these scales, enlarged again and summed.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        side: Side of every convolution, in pixels of its scale.
        num_scales: Number of scales.
        average: Whether scales are averaged and not summed.
        key: Initializes the weights.
    """

    convolutions: tuple[Convolution, ...]
    average: bool = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, side: int, num_scales: int, *, average: bool, key: Array):
        keys = jax.random.split(key, num_scales)
        self.convolutions = tuple(Convolution(inputs, outputs, side, key=k) for k in keys)
        self.average = average

    def __call__(self, image: Array) -> Array:
        scales = [convolve(pooled(image, 2**s)) for s, convolve in enumerate(self.convolutions)]
        total = scales[-1]
        for finer in scales[-2::-1]:
            total = finer + enlarged(total, 2)
        return total / len(scales) if self.average else total


class MultiScaleNetwork(TimedNetwork):
    r"""Image in, image-shaped output; silent (zero output) at the start.

    Layers of multi-scale convolution, each through a softplus, run beside a dense pathway on the whole image, each of whose layers
    goes through a tanh. What they find of a pixel goes through layers on every pixel alone (1 x 1 convolutions, tanh), and is read
    out as $z = \sum_j y_j g_j(t)$ with normalized bumps $g_j$ (`time_bumps`).

    Without a dense pathway it takes images of other sizes than `event_shape` too. The default sizes are those of the paper's code
    but for the dense pathway, of 500 units there; its CIFAR-10 has depth 6, width 100, dense_width 1000, dense_outputs 5,
    upper_depth 4, upper_width 100.

    Args:
        event_shape: Shape of one image, (height, width) or (height, width, channels).
        output_shape: Shape of the output, (k, *event) or (height, width, ...).
        num_steps: T.
        depth: Layers of multi-scale convolution; 0 leaves the dense pathway alone.
        width: Channels of these layers.
        side: Side of a convolution, odd.
        num_scales: Scales of every layer; the coarsest, 2^(num_scales - 1), divides height and width.
        dense_width: Units of the dense pathway's hidden layer; 0 leaves the pathway out.
        dense_outputs: Outputs of the dense pathway for every pixel.
        upper_depth: Layers on every pixel alone.
        upper_width: Channels of these layers.
        num_bumps: J.
        bump_width: Standard deviation of a bump, in spacings of their centers.
        slope: Slope below 0 of a leaky ReLU in place of softplus and tanh; None keeps these.
        average_scales: Whether scales are averaged and not summed.
        key: Initializes the weights.

    Raises:
        ValueError: sizes that do not divide, an even `side`, an output of another height and width, or neither pathway.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl.models import networks
        >>> network = networks.MultiScaleNetwork((8, 8), (2, 8, 8), 10, num_scales=2, key=jax.random.key(0))
        >>> [jax.eval_shape(network, 1, jnp.ones(shape)).shape for shape in ((8, 8), (16, 12))]
        [(2, 8, 8), (2, 16, 12)]
    """

    layers: tuple[MultiScaleConvolution, ...]
    dense: tuple[eqx.nn.Linear, ...]
    upper: tuple[eqx.nn.Linear, ...]
    readout: eqx.nn.Linear
    place: ImageOutput
    num_steps: int = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_scales: int = eqx.field(static=True)
    num_bumps: int = eqx.field(static=True)
    bump_width: float = eqx.field(static=True)
    slope: float | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Shape,
        output_shape: Shape,
        num_steps: Count,
        *,
        depth: Count = 4,
        width: Count = 20,
        side: Count = 3,
        num_scales: Count = 1,
        dense_width: Count = 0,
        dense_outputs: Count = 2,
        upper_depth: Count = 2,
        upper_width: Count = 20,
        num_bumps: Count = 10,
        bump_width: float = 1.0,
        slope: float | None = None,
        average_scales: bool = False,
        key: Array,
    ):
        check_key(key, "key")
        event_shape, output_shape = as_shape("event_shape", event_shape, 1), as_shape("output_shape", output_shape, 1)
        depth, dense_width, upper_depth = counts(0, depth=depth, dense_width=dense_width, upper_depth=upper_depth)
        width, dense_outputs, upper_width = counts(1, width=width, dense_outputs=dense_outputs, upper_width=upper_width)
        side, self.num_scales = counts(1, side=side, num_scales=num_scales)
        self.num_steps, self.num_bumps = counts(1, num_steps=num_steps, num_bumps=num_bumps)
        check_pathways(depth, dense_width, side, bump_width)
        self.event_shape, self.bump_width, self.slope = event_shape, bump_width, slope
        channels, self.place = channels_of(event_shape), ImageOutput(event_shape, output_shape)
        key_layers, key_dense, key_upper, key_out = jax.random.split(key, 4)
        self.layers = multiscale_layers([channels] + [width] * depth, side, self.num_scales, average_scales, key_layers)
        check_scale(event_shape, self._coarsest)
        pixels = event_shape[0] * event_shape[1]
        self.dense = linears([pixels * channels, dense_width, pixels * dense_outputs] if dense_width else [], key_dense)
        found = (width if depth else 0) + (dense_outputs if dense_width else 0)
        self.upper = linears([found] + [upper_width] * upper_depth, key_upper)
        self.readout = zeroed(
            eqx.nn.Linear(upper_width if upper_depth else found, self.place.size * self.num_bumps, key=key_out)
        )

    @property
    def _coarsest(self) -> int:
        return 2 ** (self.num_scales - 1) if self.layers else 1

    def __call__(self, t: ArrayLike, x: Array) -> Array:
        size = x.shape[:2]
        check_scale(size, self._coarsest)
        if self.dense and x.shape != self.event_shape:
            raise ValueError(
                f"x must have shape {self.event_shape}, that of the dense pathway; got {x.shape}. Build the network with "
                "dense_width=0 for images of several sizes."
            )
        image = jnp.reshape(as_input(x, self.readout.weight), (*size, -1))
        found = []
        if self.layers:
            h = image
            for layer in self.layers:
                h = self._bent(layer(h), jax.nn.softplus)
            found.append(h)
        if self.dense:
            h = jnp.ravel(image)
            for linear in self.dense:
                h = self._bent(linear(h), jnp.tanh)
            found.append(jnp.reshape(h, (*size, -1)))
        h = jnp.concatenate(found, axis=-1)
        for linear in self.upper:
            h = self._bent(per_pixel(linear, h), jnp.tanh)
        y = jnp.reshape(per_pixel(self.readout, h), (*size, -1, self.num_bumps))
        return self.place(y @ time_bumps(t, self.num_steps, self.num_bumps, self.bump_width))

    def _bent(self, h: Array, otherwise: Callable[[Array], Array]) -> Array:
        return otherwise(h) if self.slope is None else jax.nn.leaky_relu(h, self.slope)


def counts(least: int, **values: Count) -> tuple[int, ...]:
    """Whole numbers of at least `least`, by the names that a sentence would call them."""
    return tuple(as_count(name, value, least) for name, value in values.items())


def check_pathways(depth: int, dense_width: int, side: int, bump_width: float) -> None:
    """Raise a ValueError where these make no network."""
    if side % 2 == 0:
        raise ValueError(f"side must be odd, so that a convolution has a middle; got {side}.")
    if not depth and not dense_width:
        raise ValueError("depth or dense_width must be at least 1: with both 0 the network has no pathway.")
    if not bump_width > 0.0:
        raise ValueError(f"bump_width must be above 0; got {bump_width:g}.")


def multiscale_layers(
    sizes: list[int], side: int, num_scales: int, average: bool, key: Array
) -> tuple[MultiScaleConvolution, ...]:
    """Layers between these numbers of channels; none for fewer than two."""
    return tuple(
        MultiScaleConvolution(m, n, side, num_scales, average=average, key=k)
        for (m, n), k in zip(pairwise(sizes), jax.random.split(key, len(sizes) - 1), strict=True)
    )


def linears(sizes: list[int], key: Array) -> tuple[eqx.nn.Linear, ...]:
    """Linear layers between these sizes; none for fewer than two."""
    keys = jax.random.split(key, max(len(sizes) - 1, 0))
    return tuple(eqx.nn.Linear(m, n, key=k) for (m, n), k in zip(pairwise(sizes), keys, strict=True))


def per_pixel(linear: eqx.nn.Linear, image: Array) -> Array:
    """A linear layer on the channels of every pixel, in the image's precision: a 1 x 1 convolution."""
    out = image @ linear.weight.T.astype(image.dtype)
    return out if linear.bias is None else out + linear.bias.astype(image.dtype)
