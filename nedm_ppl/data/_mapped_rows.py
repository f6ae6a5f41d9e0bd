"""Rows of .npy files on a disk, mapped and not read."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from nedm_ppl.files import mapped_array, printable

__all__ = ["MappedRows"]


class MappedRows:
    """The rows of a .npy file, or of all .npy files of a folder by their names, one after the other; `inference.fit` takes it.

    Nothing is read before it is asked for, and nothing is unpickled.

    Args:
        path: A file, or a folder of files whose rows have one shape.

    Raises:
        ValueError: nothing there, a file that holds no array of numbers, or rows of several shapes.

    Examples:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from nedm_ppl import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(2):
        ...         np.save(pathlib.Path(folder) / f"{i}.npy", np.full((3, 2), float(i)))
        ...     rows = data.MappedRows(folder)
        ...     len(rows), rows[np.array([0, 5])].tolist()
        (6, [[0.0, 0.0], [1.0, 1.0]])
    """

    takes_many = True

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"data must be a .npy file or a folder of them; {printable(path)} has none.")
        self.parts = [_mapped(file) for file in files]
        shapes = {part.shape[1:] for part in self.parts}
        if len(shapes) != 1:
            got = ", ".join(map(str, sorted(shapes)))
            raise ValueError(f"files of {printable(path)} must have rows of one shape; got {got}.")
        self.starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *event)."""
        return (len(self), *self.parts[0].shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by their numbers, an array of any shape: shape (*index.shape, *event), in the files' own kind of number."""
        index = np.asarray(index)
        flat = index.ravel()
        which = np.searchsorted(self.starts, flat, side="right") - 1
        rows = np.empty((flat.size, *self.shape[1:]), np.result_type(*self.parts))
        for i in np.unique(which):
            rows[which == i] = self.parts[i][flat[which == i] - self.starts[i]]
        return rows.reshape(*index.shape, *self.shape[1:])


def _mapped(file: Path) -> np.ndarray:
    values = mapped_array(file) if file.is_file() else None
    if values is None or values.ndim < 2 or not len(values):
        raise ValueError(f"{printable(file)} must be a .npy file that holds rows of numbers; it is none.")
    return values
