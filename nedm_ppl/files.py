"""Files that are whole or not there, whatever stops the process that writes them."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # not posix
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "OutputError",
    "OutputFolderError",
    "locked",
    "mapped_array",
    "npz",
    "printable",
    "reason",
    "shortened",
    "sync",
    "whole",
    "write_figure",
    "write_json",
    "write_netcdf",
    "write_outputs",
]


class OutputError(OSError):
    """Some outputs of work that is done could not be written; the others are there."""


class OutputFolderError(ValueError):
    """An output folder that must not be written to."""


@contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content appears under the name of `file` when it is complete; of what fails nothing is left.

    Raises:
        OSError: the disk is full, or the folder is not there or not to be written to. The old file, if any, is intact.
    """
    new = file.with_name(f".{file.name}.new")
    try:
        with new.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON in one piece: whole or not at all."""
    with whole(file) as stream:
        stream.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def npz(arrays: Mapping[str, Any]) -> bytes:
    """Arrays as the content of an `.npz` file.

    It is made in memory. NumPy leaves an archive open that meets a full disk, and Python complains when that goes; so does a
    view of the content that outlives its buffer, and `getvalue` of a buffer that is complete makes no copy.
    """
    import numpy as np

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def write_netcdf(file: Path, data: Any) -> None:
    """Write what ArviZ works with, `InferenceData` or `DataTree`, as netCDF: whole or not at all.

    It is made in memory. HDF5 that meets a full disk keeps its file open, and ends the process when it tries again at exit.
    """
    tree = data.to_datatree() if hasattr(data, "to_datatree") else data
    content = bytes(tree.to_netcdf(engine="h5netcdf"))  # newer versions of xarray return a view of a buffer
    with whole(file) as stream:
        stream.write(content)


def write_outputs(out: Path, outputs: Mapping[str, Callable[[Path], None]], kept: str) -> None:
    """Write all that can be written: where one output fails, the others are written none the less.

    Args:
        out: The folder.
        outputs: What writes each of them, given its path, by name.
        kept: A sentence on what is safe, should any fail.

    Raises:
        OutputError: some could not be written; the message says which, and why the first of them failed.
    """
    failures = {}
    for name, write in outputs.items():
        try:
            write(out / name)
        except Exception as error:  # whatever a plotting or a storage library trips over
            failures[name] = error
    if failures:
        first = next(iter(failures.values()))
        raise OutputError(f"{', '.join(failures)} could not be written to {out}: {reason(first)}. {kept}") from first


def mapped_array(file: Path) -> np.ndarray | None:
    """The array of numbers in a .npy file, mapped and not read; None where the file holds none. Nothing is unpickled.

    Mapping compares what the header claims with what the file holds, and allocates nothing.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception:  # NumPy parses a header as Python, and raises what that raises
        return None
    return values if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.ndim else None


def reason(error: BaseException) -> str:
    """An exception in a clause."""
    return shortened(str(error).rstrip("."), 200) or type(error).__name__


def shortened(value: Any, most: int = 80) -> str:
    """A value in at most so many characters of one line."""
    text = printable(" ".join((value if isinstance(value, str) else repr(value)).split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(value: Any) -> str:
    """A text or path in one line, of characters that can be shown: a path may hold any bytes, JSON half of a surrogate pair."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file or folder for this process, as long as it lives and no longer; where a system has no such locks nothing is held.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make a write, or a folder's renames, outlast a power cut."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_figure(axes: Any, file: Path) -> None:
    """Write the figure that holds these axes, and close it."""
    import matplotlib.pyplot as plt

    figure = np.asarray(axes).ravel()[0].figure
    try:
        with whole(file) as stream:
            figure.savefig(stream, format=file.suffix[1:], dpi=150, bbox_inches="tight")
    finally:
        plt.close(figure)
