r"""A law spliced from two: known coordinates follow one, alike for a whole batch, and the others follow another, given them.

What is known of $x_0$ may walk the forward chain backwards, $q(x_{t-1} | x_t, x_0)$, beside coordinates that walk the model's. With
noise of its own for every particle, trajectories of what is known would be selected by how well the model likes them; with one
for all, the particles only compete in what is hidden. Where the model's coordinates go together, those that are hidden follow
its law given those that are known.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, Distribution, constraints

from nedm_ppl._compat import validate_sample
from nedm_ppl.inference.posterior._multiplier import Known
from nedm_ppl.laws._mixtures import beside, components, together
from nedm_ppl.laws._unwrap import coordinates

__all__ = ["Spliced"]


class Spliced(Distribution):
    r"""$q(x_K)\, p(x_H | x_K)$: known coordinates K by one law, with one noise for the whole batch, and hidden ones H by another.

    `log_prob` is exact for one draw.

    Args:
        own: p, a law that known coordinates multiply exactly: independent normals or bits, a correlated Gaussian, or a mixture of
            such; batch shape (*batch,), event shape (*event,).
        shared: q, Normal or BernoulliLogits under `to_event`, of the same shapes.
        mask: K, which coordinates are known, boolean, shape (*event,).

    Raises:
        ValueError: a law of another kind.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("own", "shared", "mask")

    def __init__(self, own: Distribution, shared: Distribution, mask: ArrayLike, *, validate_args: bool | None = None):
        # The mask carries the batch axes too, so that rows of a batch can be taken by their first axis.
        self.own, self.shared = together(own) or own, coordinates(shared)
        self.mask = jnp.broadcast_to(mask, (*own.batch_shape, *own.event_shape))
        super().__init__(own.batch_shape, own.event_shape, validate_args=validate_args)
        if self._given(self.shared.mean) is None:
            raise ValueError(
                "along='forward' needs a kernel of which coordinates can be known: normals, bits or a mixture of "
                f"such; got {type(coordinates(own)).__name__}. Use along='lookahead'."
            )

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.shared.support, self.event_dim)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        key_own, key_shared = jax.random.split(key)
        if isinstance(self.shared, BernoulliLogits):
            noise = jax.random.logistic(key_shared, self.event_shape)
            known = (noise < self.shared.logits).astype(self.shared.logits.dtype)
        else:
            known = self.shared.loc + self.shared.scale * jax.random.normal(key_shared, self.event_shape)
        given = self._given(known)
        assert given is not None
        return given.sample(key_own, sample_shape)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        known = jnp.where(self.mask, self.shared.log_prob(value), 0.0)
        given = self._given(jnp.asarray(value))
        assert given is not None
        return jnp.sum(known, axis=tuple(range(-self.event_dim, 0))) + given.log_prob(value)

    def _given(self, values: Array) -> Distribution | None:
        """The law of all coordinates given the known ones, which are points of it."""
        values, mask = jnp.broadcast_arrays(values, self.mask)
        if components(self.own) is not None:
            values, mask = beside(values, self.event_dim), beside(mask, self.event_dim)
        return Known(values, mask).times(self.own)
