"""Tables of numbers from a user's own files: .csv, .tsv, .parquet, .npy and .npz. Nothing is unpickled."""

import os
import warnings
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nedm_ppl.files import mapped_array, printable, shortened

__all__ = ["Table", "read_table"]

TEXT = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*TEXT, ".parquet", ".npy", ".npz")
MOST = 2**34  # bytes that an array in an archive may claim


class Table(NamedTuple):
    """Data that were read from a file.

    Attributes:
        values: The numbers, float64, shape (N, columns) or (N, *event).
        columns: Names of the columns, where the file has some.
        labels: The label column's values, one of N, as the file has them; None without one.
    """

    values: np.ndarray
    columns: tuple[str, ...] | None
    labels: np.ndarray | None


def read_table(file: str | os.PathLike, *, label: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """Read a table of numbers, or an array.

    Args:
        file: A .csv or .tsv file with a header, a .parquet file (with the extra `parquet`), a .npy file, or a .npz file of one
            array.
        label: The column that labels rows and is no number of the datum.
        columns: The columns to read, in this order, whatever else there is; then a label column need not be there.

    Raises:
        ValueError: no such file or another kind, an empty file, no header, rows of unequal length, a cell that is no number (by its
            column and line), or a column that is not there.
        ImportError: a .parquet file without the extra.

    Examples:
        >>> import tempfile, pathlib
        >>> from nedm_ppl import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "people.csv"
        ...     _ = file.write_text("height,weight\\n170,65\\n181,80\\n")
        ...     data.read_table(file)
        Table(values=array([[170.,  65.],
               [181.,  80.]]), columns=('height', 'weight'), labels=None)
    """
    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"data must be a file of a kind that can be read, {', '.join(SUFFIXES)}; got {printable(path)}."
        )
    if not path.is_file():
        raise ValueError(f"data must be a file; there is none at {printable(path)}.")
    if path.suffix.lower() in (".npy", ".npz"):
        if label is not None or columns is not None:
            raise ValueError(f"label and columns must be names of columns; {printable(path)} has none.")
        return Table(_array(path), None, None)
    frame = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    labels = None
    if label is not None and (columns is None or label in frame.columns):
        if label not in frame.columns:
            raise ValueError(f"label must be one of the columns {shortened(', '.join(frame.columns))}; got {label!r}.")
        labels = frame.pop(label).to_numpy()
        missing = frame.index[[value != value or value is None for value in labels]]
        if len(missing):
            raise ValueError(f"column {label!r} must label every row; line {missing[0] + 2} has nothing.")
    if columns is not None:
        if missing := [name for name in columns if name not in frame.columns]:
            raise ValueError(
                f"{printable(path)} must have the columns {shortened(', '.join(columns))}; it lacks "
                f"{shortened(', '.join(missing))}."
            )
        frame = frame[list(columns)]
    if not frame.shape[1]:
        raise ValueError(f"{printable(path)} must have a column of numbers; it has none beside the label.")
    return Table(_numbers(frame, path), tuple(map(str, frame.columns)), labels)


def _text(path: Path) -> Any:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of cells that it would leave out
            frame = pd.read_csv(path, sep=TEXT[path.suffix.lower()], skipinitialspace=True, index_col=False)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{printable(path)} must have a header and rows; it is empty.") from None
    except pd.errors.ParserWarning:
        raise ValueError(
            f"{printable(path)} must have a name for every column; its rows are longer than its header."
        ) from None
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        said = shortened(str(error).replace("Error tokenizing data. C error: ", ""), 200).rstrip(".")
        raise ValueError(f"{printable(path)} must be a table of rows that are equally long; {said}.") from None
    if all(_is_number(str(name).split(".")[0]) for name in frame.columns):
        raise ValueError(
            f"{printable(path)} must begin with a header, the names of its columns; its first line is "
            f"{shortened(list(frame.columns))}."
        )
    if frame.empty:
        raise ValueError(f"{printable(path)} must have rows below its header; it has none.")
    return frame


def _parquet(path: Path) -> Any:
    import pandas as pd

    if find_spec("pyarrow") is None:
        raise ImportError("a .parquet file needs the extra `parquet`: pip install 'nedm-ppl[parquet]'.")
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except Exception as error:  # of many kinds, for a file that is none
        raise ValueError(f"{printable(path)} must be a Parquet file; {shortened(str(error), 200)}.") from None
    return frame.reset_index(drop=True)


def _numbers(frame: Any, path: Path) -> np.ndarray:
    """The frame's cells as float64; what is empty is NaN."""
    import pandas as pd

    columns = []
    for name in frame.columns:
        cells = frame[name]
        numbers = pd.to_numeric(cells, errors="coerce")
        wrong = np.flatnonzero(numbers.isna().to_numpy() & cells.notna().to_numpy())
        if len(wrong):
            line, got = wrong[0] + 2, shortened(str(cells.iloc[wrong[0]]), 40)
            raise ValueError(
                f"column {name!r} of {printable(path)} must hold numbers; line {line} has {got!r}. Code it, leave the column out, "
                "or name it as the label."
            )
        columns.append(numbers.to_numpy(np.float64, na_value=np.nan))
    return np.stack(columns, axis=1)


def _array(path: Path) -> np.ndarray:
    values = mapped_array(path) if path.suffix.lower() == ".npy" else _archived(path)
    if values is None:
        raise ValueError(f"{printable(path)} must be a NumPy file that holds an array of numbers; it is none.")
    return np.array(values, np.float64)


def _archived(path: Path) -> np.ndarray | None:
    """The array of a .npz file that has one; None where it holds no numbers."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [member.file_size for member in archive.infolist()]
        if len(sizes) == 1 and sizes[0] <= MOST:
            with np.load(path, allow_pickle=False) as archive:
                values = archive[archive.files[0]]
            return values if values.dtype.kind in "biuf" and values.ndim else None
    except MemoryError:
        raise
    except Exception:  # NumPy parses a header as Python, and raises what that raises
        return None
    raise ValueError(f"{printable(path)} must hold one array, of at most {MOST:,} bytes; it holds {len(sizes)}.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
