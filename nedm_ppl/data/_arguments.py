"""Checks that the generators share."""

import numpy as np

from nedm_ppl.arguments import Count, as_count


def as_generator(rng: np.random.Generator | int) -> np.random.Generator:
    """The generator itself, or a fresh one of that seed.

    Raises:
        ValueError: anything else, such as a JAX key.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(rng)
    raise ValueError(
        f"rng must be a NumPy Generator or a seed, an integer of at least 0; got {rng!r}. "
        "Use numpy.random.default_rng(0)."
    )


def check_num_data(num_data: Count) -> int:
    """The number of data as an integer; a ValueError where there is nothing to draw."""
    return as_count("num_data", num_data)
