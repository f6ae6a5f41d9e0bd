"""A context for networks that take a vector of their own width beside (t, x)."""

from collections.abc import Callable

import equinox as eqx
from jax import Array
from jax.typing import ArrayLike

__all__ = ["Embedded"]


class Embedded(eqx.Module):
    """`(t, x, context) -> network(t, x, embed(context))`, to be wrapped in `models.Conditional`.

    Args:
        network: A `ResidualMLP`, a `PatchTransformer`, or any `(t, x, vector) -> array`.
        embed: `context -> vector` of the network's width: `eqx.nn.Embedding` for labels, `eqx.nn.Linear` for measurements.
            With an `Embedding`, `diffusion.given` and all that takes contexts refuse labels that it has no row for.
    """

    network: Callable[[ArrayLike, Array, Array], Array]
    embed: Callable[[Array], Array]

    @property
    def num_labels(self) -> int | None:
        """How many labels there are, where they are embedded by a table; else None."""
        return self.embed.num_embeddings if isinstance(self.embed, eqx.nn.Embedding) else None

    def __call__(self, t: ArrayLike, x: Array, context: Array) -> Array:
        return self.network(t, x, self.embed(context))
