"""Training data that are read when they are wanted: a memory-mapped array, or any source of rows by their number.

A source has a length and items: `numpy.load(file, mmap_mode="r")`, `data.MappedRows` of several such files, a Grain `MapDataset`.
Which rows a minibatch has depends on the seed and the number of the update alone. So a run that is killed and resumed reads the
same rows again, whatever the source.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["Streamed", "is_streamed"]

CHUNK = 1024  # rows read at a time where all are read


class Streamed:
    """Rows of a source as the chain has them, in the order given, read when they are asked for.

    Args:
        source: Has a length, and an item for every number below it; a NumPy array is asked for many at once.
        to_chain: Data in their units to the chain's dtype and units.
        order: Which of the source's rows these are; all of them by default.
    """

    def __init__(self, source: Any, to_chain: Callable[[np.ndarray], np.ndarray], order: np.ndarray | None = None):
        self.source, self.to_chain, self.order = source, to_chain, order

    def __len__(self) -> int:
        return len(self.source if self.order is None else self.order)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by their numbers: an array of any shape, a slice; shape (*index.shape, *event)."""
        index = np.arange(len(self))[index] if isinstance(index, slice) else np.asarray(index)
        places = index if self.order is None else self.order[index]
        if isinstance(self.source, np.ndarray) or getattr(self.source, "takes_many", False):
            return self.to_chain(np.asarray(self.source[places]))
        rows = np.stack([np.asarray(self.source[int(place)]) for place in places.ravel()])
        return self.to_chain(rows.reshape(*places.shape, *rows.shape[1:]))

    def part(self, order: np.ndarray) -> "Streamed":
        """Some of these rows."""
        return Streamed(self.source, self.to_chain, order if self.order is None else self.order[order])

    def some(self, most: int = CHUNK) -> np.ndarray:
        """At most so many rows, evenly spread."""
        return self[np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int))]

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows in their order, some at a time."""
        for start in range(0, len(self), CHUNK):
            yield self[np.arange(start, min(start + CHUNK, len(self)))]


def is_streamed(data: Any) -> bool:
    """Whether data are read when they are wanted: a memory-mapped array, or a source that is no array and no list."""
    if isinstance(data, np.memmap):
        return True
    is_array = hasattr(data, "__array__") or isinstance(data, list | tuple | int | float)
    return not is_array and hasattr(data, "__len__") and hasattr(data, "__getitem__")
