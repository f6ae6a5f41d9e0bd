r"""Amortised conditioning: networks that take a context c, so that one model is $p(x_0 | c)$ for every c.

$$p(x_{0..T} | c) = \pi(x_T) \prod_{t=1}^{T} p(x_{t-1} | x_t, c), \qquad q(x_{1..T} | x_0) \text{ as ever}.$$

The forward chain knows nothing of c, and neither does anything else here: a `Conditional` holds a function of (t, x, c) *and* a
context, and is an ordinary network, `(t, x) -> array`. `diffusion.given(c)` puts another context there and is an ordinary
diffusion, for one context or a batch of them. Like a distribution's parameters a batch of contexts broadcasts
against the batch axes of x, from the right. The context is a leaf: `jit` does not compile anew for another one, and
gradients reach it.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl._compat import Tracer
from nedm_ppl.arguments import require

__all__ = ["Conditional"]

Tree = TypeVar("Tree")


class Conditional(eqx.Module):
    r"""A network that takes a context, and the context it is given.

    As built it holds `null`, the context that stands for none. A model that was trained with it now and then
    (`inference.drop_context`) is then $p(x_0)$ as it stands; one that was not means nothing there, which nobody checks.

    Args:
        function: `(t, x, context) -> array` on one datum and its context, in the place of a network; or
            `(t, x, context) -> Distribution` in the place of a whole reverse kernel, given any batch axes of both. Where it has
            an attribute `num_labels`, as `networks.Embedded` has, contexts must be labels below that number.
        null: An array of the shape and kind of every context: an integer for labels, floats for measurements.

    Examples:
        >>> import equinox, jax
        >>> from nedm_ppl import models
        >>> key = jax.random.key(0)
        >>> network = models.networks.ResidualMLP((2,), (2, 2), 10, width=16, key=key)
        >>> embedded = models.networks.Embedded(network, equinox.nn.Embedding(4, 16, key=key))
        >>> reverse = models.VelocityPrediction(models.Conditional(embedded, 3))  # labels 0, 1, 2; and 3 for none
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> models.Diffusion(process, reverse).given(1).sample(key, 5).shape
        (5, 2)
    """

    function: Callable[[ArrayLike, Array, Array], Any]
    context: Array
    context_dim: int = eqx.field(static=True)

    def __init__(self, function: Callable[[ArrayLike, Array, Array], Any], null: ArrayLike):
        self.function, self.context = function, jnp.asarray(np.asarray(null))
        self.context_dim = self.context.ndim

    def __call__(self, t: ArrayLike, x: Array) -> Any:
        return self.function(t, x, self.context)

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape of one context."""
        return self.context.shape[self.context.ndim - self.context_dim :]

    def checked(self, context: ArrayLike) -> Array:
        """A context, or a batch of them, as an array of the right kind; a ValueError of one sentence where it is none."""
        values, shape = jnp.asarray(context), self.context_shape
        if values.ndim < len(shape) or values.shape[values.ndim - len(shape) :] != shape:
            raise ValueError(
                f"context must have trailing shape {shape}, one context of this model; got shape {values.shape}."
            )
        if jnp.issubdtype(self.context.dtype, jnp.integer) and not jnp.issubdtype(values.dtype, jnp.integer):
            raise ValueError(f"context must be integers, the labels of this model; got {values.dtype}.")
        if not isinstance(values, Tracer):
            self.known(values)
        return values.astype(self.context.dtype)

    def known(self, values: Array) -> Array:
        """Contexts, none of which is a label beyond those of this model; a ValueError where one is, under `jit` as it runs."""
        number = getattr(self.function, "num_labels", None)
        if number is None:
            return values
        said = f"context must be labels in 0..{number - 1}, those that the network was built for; got others."
        return require(values, (values >= 0) & (values < number), said)


def conditionals(tree: Any) -> list[Conditional]:
    """The conditional functions inside a model or network."""
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_conditional) if _is_conditional(node)]


def bind(tree: Tree, context: Array | None) -> Tree:
    """The same model or network with another context, unchecked, in every conditional function."""

    def replace(node: Any) -> Any:
        if not _is_conditional(node):
            return node
        return eqx.tree_at(lambda n: n.context, node, context, is_leaf=lambda leaf: leaf is None)

    return jax.tree.map(replace, tree, is_leaf=_is_conditional)


def holding(tree: Tree, context: Array | None) -> Tree:
    """The same model with another context that was checked already; with its own for None."""
    return tree if context is None else bind(tree, context)


def known(tree: Any, context: ArrayLike) -> Array:
    """As `checked`, and under `jit` labels beyond the model's end the program when it runs."""
    values = checked(tree, context)
    for conditional in conditionals(tree):
        values = conditional.known(values)
    return values


def checked(tree: Any, context: ArrayLike) -> Array:
    """A context, or a batch of them, as an array that suits every conditional function of a model; else a ValueError."""
    found = conditionals(tree)
    if not found:
        raise ValueError(
            "context is for a network that takes one, and this model has none; wrap its network in models.Conditional."
        )
    for conditional in found:
        context = conditional.checked(context)
    return jnp.asarray(context)


def rows_of_context(tree: Any, context: ArrayLike | None, batch_shape: tuple[int, ...]) -> Array | None:
    """The context of every datum of a batch, in a row, shape (n, *context_shape); for None, which is to keep what is held, None.

    Raises:
        ValueError: a model that takes none, a context that is none of this model's, or batch axes that do not broadcast.
    """
    if context is None:
        return None
    values = checked(tree, context)
    shape = conditionals(tree)[0].context_shape
    batch = values.shape[: values.ndim - len(shape)]
    try:
        spread = jnp.broadcast_to(values, (*batch_shape, *shape))
    except ValueError:
        raise ValueError(
            f"context must have the batch axes of the data, {tuple(batch_shape)}, or none; got {batch}. To score data with a "
            "context each, pass them as `context` and not to `given`."
        ) from None
    return jnp.reshape(spread, (math.prod(batch_shape), *shape))


def num_contexts(tree: Any, context: ArrayLike | None) -> int | None:
    """How many contexts there are on one batch axis; None for one that all data share, or for none."""
    shape = () if context is None else checked(tree, context).shape
    batch = shape[: len(shape) - conditionals(tree)[0].context_dim] if shape else ()
    if len(batch) > 1:
        raise ValueError(f"context must have one batch axis at most, as the data have; got batch axes {batch}.")
    return batch[0] if batch else None


def held_by_rows(network: Any, batch_shape: tuple[int, ...]) -> Array | None:
    """The batch of contexts that a network holds, one for every datum, or None where it holds one for all, or none."""
    for conditional in conditionals(network):
        if conditional.context.ndim > conditional.context_dim:
            return rows_of_context(network, conditional.context, batch_shape)
    return None


def _is_conditional(node: Any) -> bool:
    return isinstance(node, Conditional)
