"""A network in half the precision, for devices that are faster in it, round which everything else stays as it is."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["BFloat16", "as_input"]


class BFloat16(eqx.Module):
    """`network` with its weights and inputs rounded to bfloat16 at every call, and its output in the default precision.

    Weights are kept, trained and saved in their own precision, and laws are worked in the default one. Every layer
    rounds to eight bits, so that this is a slightly different model, of which K is a bound and a likelihood an estimate as ever.
    Normalizations, attention's softmax and the embedding of time stay in the default precision in the networks of this package.

    Args:
        network: A `UNet`, a `PatchTransformer`, or any `(t, x, *context) -> array`; inside `Embedded`, where there is a context.
            Shapes in and out are its own.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl.models import networks
        >>> network = networks.BFloat16(networks.ResidualMLP((3,), (2, 3), 40, width=16, key=jax.random.key(0)))
        >>> network(1, jnp.ones(3)).dtype
        dtype('float32')
    """

    network: Callable[..., Any]

    def __call__(self, t: ArrayLike, x: Array, *context: Array) -> Any:
        network, x, context = jax.tree.map(rounded, (self.network, x, context))
        return jax.tree.map(lambda output: output.astype(float), network(t, x, *context))


def rounded(leaf: Any) -> Any:
    """An array of real numbers in bfloat16; anything else as it is."""
    return leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf


def as_input(x: Array, weight: Array) -> Array:
    """What a network works on: x in the default precision, or in bfloat16 where its weights are rounded to that."""
    return x.astype(jnp.bfloat16 if weight.dtype == jnp.bfloat16 else float)
