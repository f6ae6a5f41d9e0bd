r"""Known coordinates on a trajectory of the forward chain that all particles share.

What is known of $x_0$ may walk the forward chain backwards, $q(x_{t-1} | x_t, x_0)$, beside the other coordinates, which walk the
model's. With noise of its own for every particle such a trajectory would be selected by how well the model likes it; with one
for all of them the particles only compete in what is not known.

Source: the replacement method with a particle filter over it, Trippe et al., Diffusion Probabilistic Modeling of Protein
Backbones in 3D for the Motif-Scaffolding Problem, 2022.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, Distribution, constraints
from numpyro.distributions.util import validate_sample

__all__ = ["Spliced"]


class Spliced(Distribution):
    """A law of independent coordinates, some of which follow another law and are drawn with one noise for the whole batch.

    `log_prob` is exact for one draw: either law's in its own coordinates.

    Args:
        own: Normal or BernoulliLogits under `to_event`, batch shape (*batch,), event shape (*event,).
        shared: Another of the same kind and shapes.
        mask: Which coordinates are those of `shared`, boolean, shape (*event,).
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("own", "shared", "mask")

    def __init__(self, own: Distribution, shared: Distribution, mask: ArrayLike, *, validate_args: bool | None = None):
        self.own, self.shared = own.base_dist, shared.base_dist
        # The mask carries the batch axes too, so that rows of a batch can be taken by their first axis.
        self.mask = jnp.broadcast_to(mask, (*own.batch_shape, *own.event_shape))
        super().__init__(own.batch_shape, own.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.own.support, self.event_dim)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        key_own, key_shared = jax.random.split(key)
        own = self.own.sample(key_own, sample_shape)
        if isinstance(self.shared, BernoulliLogits):
            noise = jax.random.logistic(key_shared, self.event_shape)
            shared = (noise < self.shared.logits).astype(own.dtype)
        else:
            shared = self.shared.loc + self.shared.scale * jax.random.normal(key_shared, self.event_shape)
        return jnp.where(self.mask, shared, own)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        per_coordinate = jnp.where(self.mask, self.shared.log_prob(value), self.own.log_prob(value))
        return jnp.sum(per_coordinate, axis=tuple(range(-self.event_dim, 0)))
