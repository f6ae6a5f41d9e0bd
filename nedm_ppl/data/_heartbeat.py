"""The binary heartbeat (Section 3.1.1): 20 bins with a pulse in every fifth, at one of five phases."""

import math

import numpy as np

from nedm_ppl.arguments import Count
from nedm_ppl.data._arguments import as_generator, check_num_data

__all__ = ["HEARTBEAT_LOG_PROB", "heartbeat"]

NUM_BINS, PERIOD = 20, 5

HEARTBEAT_LOG_PROB: float = -math.log(PERIOD)
"""Exact log probability of every heartbeat, log(1/5) nats, or -2.3219 bits; every other sequence has probability 0."""


def heartbeat(rng: np.random.Generator | int, num_data: Count) -> np.ndarray:
    """Draws of the heartbeat, phases uniform.

    Args:
        rng: A NumPy generator, which is advanced, or a seed.
        num_data: Number of sequences, at least 1.

    Returns:
        0 or 1 as float32, shape (num_data, 20); the mean of every sequence is 0.2. Bits are not standardized.

    Raises:
        ValueError: `rng` is neither a generator nor a seed, or num_data < 1.

    Examples:
        >>> from nedm_ppl import data
        >>> data.heartbeat(0, 3).sum(axis=1)  # four beats each
        array([4., 4., 4.], dtype=float32)
    """
    num_data = check_num_data(num_data)
    phase = as_generator(rng).integers(PERIOD, size=(num_data, 1))
    return (np.arange(NUM_BINS) % PERIOD == phase).astype(np.float32)
