r"""A law spliced from two: most coordinates follow one, some follow another, and those are drawn alike for a whole batch.

What is known of $x_0$ may walk the forward chain backwards, $q(x_{t-1} | x_t, x_0)$, beside coordinates that walk the model's. With
noise of its own for every particle, trajectories of what is known would be selected by how well the model likes them; with one
for all, the particles only compete in what is hidden.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, Distribution, Normal, constraints

from nedm_ppl._compat import validate_sample
from nedm_ppl.laws._unwrap import coordinates

__all__ = ["Spliced"]


class Spliced(Distribution):
    """A law of independent coordinates, some of which follow another law and are drawn with one noise for the whole batch.

    `log_prob` is exact for one draw: either law's in its own coordinates.

    Args:
        own: Normal or BernoulliLogits under `to_event`, batch shape (*batch,), event shape (*event,).
        shared: Another of the same kind and shapes.
        mask: Which coordinates are those of `shared`, boolean, shape (*event,).

    Raises:
        ValueError: laws of another kind.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("own", "shared", "mask")

    def __init__(self, own: Distribution, shared: Distribution, mask: ArrayLike, *, validate_args: bool | None = None):
        for law in (own, shared):
            if not law.event_dim or not isinstance(coordinates(law), Normal | BernoulliLogits):
                raise ValueError(
                    "coordinates can be spliced into a Normal or BernoulliLogits under .to_event() alone; the kernel gives a "
                    f"{type(law).__name__}."
                )
        self.own, self.shared = coordinates(own), coordinates(shared)
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
