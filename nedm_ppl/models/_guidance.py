r"""Classifier-free guidance: a picture-maker's knob, and not a posterior.

With z the output of a conditional network and $\emptyset$ its null context,

$$\tilde z_t(x, c) = z_t(x, \emptyset) + w\,\big(z_t(x, c) - z_t(x, \emptyset)\big).$$

w = 0 is the unconditional model, w = 1 the conditional one, and w > 1 goes beyond: samples look more like their context and less
like each other. One would hope for $p(x_0)\, p(c | x_0)^w$, and does not get it: the noised marginals of that law are not the
products of the noised factors, so no chain of these kernels has it, at any T. The result is a diffusion like
any other, with samples and a log likelihood of its own, of no program that anybody wrote down. For a posterior condition the
model (w = 1), or multiply it: `inference.multiply`, and exactly by `inference.ParticlePosterior`.

Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022; their w is ours minus 1.
"""

from collections.abc import Callable

import equinox as eqx
import jax
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import check_kind
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.reverse._context import Conditional, conditionals
from nedm_ppl.models.reverse._reverse import Parameterization

__all__ = ["Guided", "guided"]


class Guided(eqx.Module):
    r"""$z(\emptyset) + w\,(z(c) - z(\emptyset))$ of a conditional network z: twice its cost.

    Attributes:
        function: `(t, x, context) -> array`.
        null: The context that stands for none.
        weight: w.
    """

    function: Callable[[ArrayLike, Array, Array], Array]
    null: Array
    weight: float

    @property
    def num_labels(self) -> int | None:
        """How many labels the network knows, where it says so."""
        return getattr(self.function, "num_labels", None)

    def __call__(self, t: ArrayLike, x: Array, context: Array) -> Array:
        free = self.function(t, x, self.null)
        return free + self.weight * (self.function(t, x, context) - free)


def guided(diffusion: Diffusion, weight: float) -> Diffusion:
    r"""Classifier-free guidance, **not a posterior**: see the top of `models.guidance` for what it is.

    Args:
        diffusion: A conditional model as it was built and trained, holding its null context, with which it must have been trained
            too (`inference.drop_context`). All outputs of its network are extrapolated: logits of levels and bits, and for
            Gaussian kernels the mean and the log variance.
        weight: w; 0 is the unconditional model, 1 the conditional one, and more than 1 exaggerates.

    Returns:
        A conditional model: `guided(diffusion, 2.0).given(context).sample(key, (100,))`.

    Raises:
        ValueError: no conditional network; a batch of contexts in the null's place.
    """
    check_kind("diffusion", diffusion, Diffusion)
    found = conditionals(diffusion.reverse)
    if not found or not isinstance(diffusion.reverse, Parameterization):
        raise ValueError("diffusion must have a network that takes a context to be guided; see models.Conditional.")
    if any(node.context.ndim > node.context_dim for node in found):
        raise ValueError(
            "diffusion must hold its null context to be guided; got a batch of contexts. Call given() after guided()."
        )

    def guide(node: object) -> object:
        if not isinstance(node, Conditional):
            return node
        return Conditional(Guided(node.function, node.context, weight), node.context)

    return jax.tree.map(guide, diffusion, is_leaf=lambda node: isinstance(node, Conditional))
