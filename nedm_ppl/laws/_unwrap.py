"""What stands behind `to_event`."""

from numpyro.distributions import Distribution, Independent

__all__ = ["coordinates", "unwrap"]


def coordinates(law: Distribution) -> Distribution:
    """The law of the coordinates, before `to_event`."""
    return unwrap(law)[0]


def unwrap(law: Distribution) -> tuple[Distribution, int]:
    """A law without its `to_event`, and how many batch axes that had made event axes."""
    dims = 0
    while isinstance(law, Independent):
        dims += law.reinterpreted_batch_ndims
        law = law.base_dist
    return law, dims
