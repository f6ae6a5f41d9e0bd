r"""Distributions that `jax.vmap` may return: several of them are one, with one more batch axis.

What `vmap` adds to the arrays of a distribution it does not add to the shape the distribution declares, and a program's arrays,
unlike a location and a scale, do not broadcast. So a distribution over a program knows how many axes its arrays had when it was
built. What they have before those are batch axes, over which it is mapped once more whenever it draws or scores.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution, kl_divergence

from nedm_ppl.arguments import Shape, as_shape

__all__ = ["Mapped", "check_expansion"]


class Mapped(Distribution):
    """A distribution whose parameters are the arrays of a program."""

    pytree_aux_fields: tuple[str, ...] = ("_ndims",)
    _ndims: tuple[int, ...] = ()

    def count_axes(self) -> None:
        """Take the arrays as they are for those of one distribution; the last thing that `__init__` does."""
        self._ndims = tuple(np.ndim(leaf) for leaf in jax.tree.leaves(self))

    @property
    def mapped_shape(self) -> tuple[int, ...]:
        """The axes that `jax.vmap` put before those of every array."""
        leaves = jax.tree.leaves(self)
        return next(
            (jnp.shape(leaf)[: jnp.ndim(leaf) - ndim] for leaf, ndim in zip(leaves, self._ndims, strict=False)), ()
        )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Batch axes: those of `jax.vmap`, and then its own."""
        return (*self.mapped_shape, *self._batch_shape)

    def check_one(self, name: str) -> None:
        """Raise a ValueError of one sentence where this is several, as `jax.vmap` returned them."""
        if self.mapped_shape:
            raise ValueError(
                f"{name} must be one, where its parts are asked for; got {math.prod(self.mapped_shape)} of them, as jax.vmap "
                f"returned them. Take one by jax.tree.map(lambda leaf: leaf[0], {name})."
            )

    def draw_each(self, draw: Callable[[Any, Array], Array], key: Array, sample_shape: tuple[int, ...]) -> Array:
        """Draws of each, along the first batch axis."""
        keys = jax.random.split(key, self.mapped_shape[0])
        return jax.vmap(draw, out_axes=len(sample_shape))(self, keys)

    def score_each(self, score: Callable[[Any, Array], Array], value: Array) -> Array:
        """Scores of each, along the first batch axis; a value with fewer axes serves all."""
        batch = jnp.broadcast_shapes(value.shape[: value.ndim - self.event_dim], self.batch_shape)
        axis = len(batch) - len(self.batch_shape)
        value = jnp.broadcast_to(value, (*batch, *self.event_shape))
        return jax.vmap(score, in_axes=(0, axis), out_axes=axis)(self, value)


@kl_divergence.register(Mapped, Mapped)
def _no_divergence(q: Mapped, p: Mapped) -> Array:
    raise NotImplementedError(
        f"the divergence of a {type(q).__name__} from a {type(p).__name__} has no closed form; average "
        "q.log_prob(x) - p.log_prob(x) over draws x of q where both have a density, and for a model's forward and reverse "
        "chains use inference.bound_terms."
    )


def check_expansion(batch_shape: tuple[int, ...], wanted: Shape) -> tuple[int, ...]:
    """The batch shape that a distribution is to have; a ValueError of one sentence where its own does not broadcast to it."""
    wanted = as_shape("batch_shape", wanted)
    try:
        fits = jnp.broadcast_shapes(batch_shape, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"batch_shape must be one that the batch shape there is, {batch_shape}, broadcasts to; got {wanted}. "
            "New axes come first, and those there are stay."
        )
    return wanted
