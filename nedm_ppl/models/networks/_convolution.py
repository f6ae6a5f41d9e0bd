"""What networks on images are made of: convolutions, halves and doubles of an image, and where outputs go.

On a CPU, XLA runs a convolution, and its gradient by the input, near the speed of a matrix product. Its gradient by the weights is
slow, and inside a loop some twenty times slower still: `fit` runs the updates of a model that has convolutions one by one there. To
lay patches side by side and multiply is no way out: to copy them costs as much as that gradient does.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Convolution", "ImageOutput", "channels_of", "check_scale", "enlarged", "pooled"]


class Convolution(eqx.Module):
    """A convolution of an image (height, width, channels) with an odd square, zeros around it; of its input's precision.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        side: Side of the square, pixels.
        key: Initializes the weights: normal, of variance 1 over the number of inputs to one output.
    """

    weight: Array
    bias: Array

    def __init__(self, inputs: int, outputs: int, side: int, *, key: Array):
        self.weight = jax.random.normal(key, (side, side, inputs, outputs)) / math.sqrt(side * side * inputs)
        self.bias = jnp.zeros((outputs,))

    def __call__(self, image: Array) -> Array:
        weight = self.weight.astype(image.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(image[None], weight, (1, 1), "SAME", dimension_numbers=layout)[0]
        return out + self.bias.astype(image.dtype)


class ImageOutput(eqx.Module):
    """Features of every pixel as the output that a kernel asks for: (k, *event), or (height, width, ...).

    Args:
        event_shape: Shape of one input image.
        output_shape: Shape of the output, with the height and width of the image on its first two axes or after its first.

    Raises:
        ValueError: an output without the image's height and width.
    """

    outputs_first: bool = eqx.field(static=True)
    rest: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, event_shape: tuple[int, ...], output_shape: tuple[int, ...]):
        size = event_shape[:2]
        self.outputs_first = output_shape[1:] == event_shape or output_shape[:2] != size
        if output_shape[:2] != size and output_shape[1:3] != size:
            raise ValueError(
                f"output_shape must have the image's {size} as its first two axes, or after its first; got {output_shape}."
            )
        self.rest = output_shape[:1] + output_shape[3:] if self.outputs_first else output_shape[2:]

    @property
    def size(self) -> int:
        """Outputs to a pixel."""
        return math.prod(self.rest)

    def __call__(self, features: Array) -> Array:
        """Features (height, width, size) as the output, for an image of any height and width."""
        out = jnp.reshape(features, (*features.shape[:2], *self.rest))
        return jnp.moveaxis(out, 2, 0) if self.outputs_first else out


def channels_of(event_shape: tuple[int, ...]) -> int:
    """Channels of an image (height, width) or (height, width, channels).

    Raises:
        ValueError: another shape.
    """
    if len(event_shape) not in (2, 3):
        raise ValueError(f"event_shape must be (height, width) or (height, width, channels); got {event_shape}.")
    return event_shape[2] if len(event_shape) == 3 else 1


def check_scale(size: tuple[int, ...], scale: int) -> None:
    """Raise a ValueError where an image of that height and width cannot be pooled to pixels of side `scale`."""
    if size[0] % scale or size[1] % scale:
        raise ValueError(
            f"height and width of an image must be divisible by {scale}, the coarsest scale; got {size[0]} x {size[1]}. "
            "Crop the image, or use fewer scales."
        )


def pooled(image: Array, scale: int) -> Array:
    """Means over squares of side `scale`."""
    height, width, channels = image.shape
    squares = jnp.reshape(image, (height // scale, scale, width // scale, scale, channels))
    return jnp.mean(squares, axis=(1, 3))


def enlarged(image: Array, scale: int) -> Array:
    """Every pixel as a square of side `scale`."""
    return jnp.repeat(jnp.repeat(image, scale, axis=0), scale, axis=1)
