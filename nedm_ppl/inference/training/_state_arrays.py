"""Arrays as an item that orbax can checkpoint: one `arrays.npz`, and its hash beside it as `sha256sum` writes it.

Orbax writes the folder under another name, lets one of several processes write, and renames it when it is complete. Its own
array format is not used: it reads a path as a pattern (`a[b]`) or an address (a backslash), and has no hash.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nedm_ppl.files import npz, sync, whole

__all__ = ["read_arrays", "write_arrays"]

ARRAYS, DIGEST = "arrays.npz", "arrays.sha256"


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a new folder, which appears whole or not at all.

    Raises:
        OSError: the disk is full, or the place not to be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(_Arrays()) as checkpointer, _in_utf8(folder.absolute()) as path:
        checkpointer.save(path, args=_SaveArrays(arrays), force=True)
    sync(folder.parent)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_arrays` wrote.

    Raises:
        OSError: a file is missing.
        ValueError: a file is not the one that was written.
    """
    with open(folder / ARRAYS, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if (folder / DIGEST).read_bytes() != _line(digest):
            raise ValueError(f"{ARRAYS} is not the file that was written")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)


@contextmanager
def _in_utf8(folder: Path) -> Iterator[Path]:
    """A path of that folder which orbax can write down: through a link, where the bytes of its own are not UTF-8."""
    try:
        str(folder.parent).encode()
    except UnicodeEncodeError:
        with TemporaryDirectory() as links:
            link = Path(links) / "parent"
            link.symlink_to(folder.parent, target_is_directory=True)
            yield link / folder.name
    else:
        yield folder


class _Arrays(ocp.CheckpointHandler):
    """What orbax calls once the folder is made, under its temporary name."""

    def save(self, directory: Any, args: "_SaveArrays") -> None:
        folder = Path(directory)
        if jax.process_index():  # the first process alone writes
            return
        with whole(folder / ARRAYS) as stream:
            stream.write(npz(args.arrays))
        with open(folder / ARRAYS, "rb") as file, whole(folder / DIGEST) as stream:
            stream.write(_line(hashlib.file_digest(file, "sha256").hexdigest()))

    def restore(self, directory: Any, args: Any) -> dict[str, np.ndarray]:
        return read_arrays(Path(directory))


@ocp.args.register_with_handler(_Arrays, for_save=True, for_restore=True)
@dataclass
class _SaveArrays(ocp.args.CheckpointArgs):
    arrays: dict[str, Any]


def _line(digest: str) -> bytes:
    return f"{digest}  {ARRAYS}\n".encode()
