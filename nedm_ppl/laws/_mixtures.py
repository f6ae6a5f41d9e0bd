r"""Mixtures of laws of one datum, $\sum_k w_k\, p_k(x)$: NumPyro's `MixtureSameFamily`, taken apart and put together.

The components stand on the last batch axis. What is true of every component is worked for all of them at once, with the datum
beside them on an axis of length 1.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Categorical, Distribution, MixtureSameFamily

from nedm_ppl.laws._low_rank import as_correlated
from nedm_ppl.laws._unwrap import unwrap

__all__ = ["beside", "components", "mixture", "stack_of", "together"]


def components(law: Distribution) -> tuple[Array, Distribution] | None:
    r"""$\log w$, normalized, shape (*batch, K), and the components, batch shape (*batch, K); None for a law that is no mixture."""
    if not isinstance(law, MixtureSameFamily):
        return None
    return jax.nn.log_softmax(law.mixing_distribution.logits), law.component_distribution


def mixture(log_weights: Array, parts: Distribution) -> MixtureSameFamily:
    """The mixture of components of batch shape (*batch, K); log weights up to a constant, shape (*batch, K)."""
    shape = jnp.broadcast_shapes(jnp.shape(log_weights), parts.batch_shape)
    if parts.batch_shape != shape:
        parts = parts.expand(shape)
    return MixtureSameFamily(Categorical(logits=jnp.broadcast_to(log_weights, shape)), parts)


def together(law: Distribution) -> Distribution | None:
    """A law that is no product of coordinates, with Gaussians as `LowRankNormal`: correlated, or a mixture; else None."""
    parts = components(law)
    if parts is None:
        return as_correlated(law)
    inner = as_correlated(parts[1])
    return law if inner is None else mixture(parts[0], inner)


def stack_of(law: Distribution) -> Distribution | None:
    """Of independent draws of a mixture or a correlated law, declared one datum, the law of one draw; else None."""
    base, dims = unwrap(law)
    is_joint = isinstance(base, MixtureSameFamily) or as_correlated(base) is not None
    return base if dims and base.event_dim and is_joint else None


def beside(x: ArrayLike, event_dim: int) -> Array:
    """Data of shape (*batch, *event) with an axis for components, (*batch, 1, *event)."""
    return jnp.expand_dims(jnp.asarray(x), -1 - event_dim)
