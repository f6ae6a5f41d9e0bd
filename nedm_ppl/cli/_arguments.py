"""Options that several commands have, and what their values must be."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nedm_ppl.files import mapped_array, printable, shortened, whole

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy as np

    from nedm_ppl.inference import LogLikelihood

__all__ = [
    "DATA",
    "MODEL",
    "MOST",
    "NUM",
    "NUM_STEPS",
    "OUT",
    "PARTICLES",
    "REPEATS",
    "check_new",
    "check_sizes",
    "data_of",
    "holdout_of",
    "label_of",
    "model_folder",
    "read_array",
    "write_csv",
    "write_likelihoods",
]

TABLES = (".csv", ".tsv", ".parquet")
MOST = 1e15  # of data and scales, whose squares float32 must hold
OUT = typer.Option("--out", help="Output folder; by default results/<experiment>, or results/<experiment>-<density>.")
MODEL = typer.Argument(help="A model folder, or the output folder of an experiment.")
DATA = typer.Option("--data", help="Data in the model's units, a table or .npy; by default the experiment's holdout.")
NUM = typer.Option("--num", help="Only the first NUM data.")
PARTICLES = typer.Option("--particles", help="Particles of a filter.")
REPEATS = typer.Option("--repeats", help="Filters per datum, pooled.")
NUM_STEPS = typer.Option("--num-steps", help="Respace the chain to so many steps; by default all.")


def check_new(out: Path, *suffixes: str) -> None:
    """Raise a ValueError where no new file of this kind can have that name, before hours are spent on what is to be in it."""
    if out.suffix not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}; got {out}.")
    if os.path.lexists(out):  # a link to nothing too
        raise ValueError(f"--out {out} exists; name another file.")
    if not out.parent.is_dir():
        raise ValueError(f"--out must lie in a folder that is there; got {out}.")


def check_sizes(**options: int | None) -> None:
    """Raise a ValueError where an integer is too large for JAX, which counts with 32 bits and takes seeds of 64."""
    for name, value in options.items():
        most = 2**63 - 1 if name == "seed" else 2**31 - 1
        if value is not None and abs(value) > most:
            raise ValueError(f"--{name.replace('_', '-')} must be at most {most} in size; got {shortened(value)}.")


def model_folder(path: Path) -> Path:
    """A model's folder, named itself or by the output folder that it is in."""
    return path / "model" if (path / "model").is_dir() else path


def holdout_of(folder: Path, name: str = "DATA") -> "tuple[np.ndarray, np.ndarray | None]":
    """Holdout data of the experiment whose metrics lie beside the model, and their contexts."""
    from nedm_ppl.experiments import choose

    metrics = folder.parent / "metrics.json"
    try:
        content = json.loads(metrics.read_text())
        path = content.get("data")  # of an image experiment on files of the user's
        chosen = choose(content["experiment"], content.get("density"), path=None if path is None else Path(path))
        split = chosen.data(content["seed"])
        return split.holdout, split.holdout_context
    except FileNotFoundError:
        raise ValueError(f"{name} must be given: there is no {metrics} that says whose holdout to take.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{name} must be given: {metrics} names no experiment of `nedm list`.") from None


def data_of(
    file: Path, folder: Path, columns: tuple[str, ...] | None, name: str = "DATA"
) -> "tuple[np.ndarray, np.ndarray | None]":
    """Data for a model from a file, by the names of its columns where it has some, and the labels that it was told of."""
    import numpy as np

    from nedm_ppl.data import read_table

    if file.suffix not in TABLES:
        return read_array(file, name), None
    if columns is None:
        return read_table(file).values, None
    label, names = _labels(folder)
    table = read_table(file, label=label, columns=columns)
    values = table.values
    if table.labels is None:
        return values, None
    texts = [str(one) for one in names]
    if unknown := sorted({str(one) for one in table.labels} - set(texts)):
        raise ValueError(
            f"{name} must have labels that the model knows, {shortened(', '.join(texts))}; got {unknown[0]!r}."
        )
    return values, np.array([texts.index(str(one)) for one in table.labels], np.int32)


def label_of(folder: Path, value: str) -> int:
    """The context that a label's value is for the model in a folder of `nedm train`."""
    texts = [str(one) for one in _labels(folder)[1]]
    if value not in texts:
        known = f"one of {shortened(', '.join(texts))}" if texts else "left out: this model was trained without"
        raise ValueError(f"--label must be {known}; got {value!r}.")
    return texts.index(value)


def _labels(folder: Path) -> tuple[str | None, list]:
    """Name of the label column that a model was trained with, and its values."""
    try:
        content = json.loads((folder.parent / "metrics.json").read_text())
        return content.get("label"), content.get("labels") or []
    except (OSError, ValueError, AttributeError, RecursionError):
        return None, []


def write_csv(file: "BinaryIO", values: "np.ndarray", columns: tuple[str, ...] | None) -> None:
    """Rows of numbers with their columns' names, x0, x1, ... where they have none."""
    import pandas as pd

    rows = values.reshape(len(values), -1)
    names = columns or [f"x{i}" for i in range(rows.shape[1])]
    file.write(pd.DataFrame(rows, columns=list(names)).to_csv(index=False).encode())


def write_likelihoods(file: Path, result: "LogLikelihood") -> None:
    """Estimates and diagnostics, a row for every datum."""
    import pandas as pd

    names = ("log_prob", "se", "ess", "k_hat", "flagged")
    frame = pd.DataFrame({name: getattr(result, name).ravel() for name in names})
    with whole(file) as stream:
        stream.write(frame.to_csv(index=False).encode())


def read_array(file: Path, name: str = "DATA") -> "np.ndarray":
    """An array of numbers from a .npy file; a ValueError names the option where there is none."""
    import numpy as np

    try:
        mapped = mapped_array(file)
    except FileNotFoundError:
        raise ValueError(f"{name} must be a .npy file; there is nothing at {printable(file)}.") from None
    if mapped is None:
        raise ValueError(f"{name} must be a .npy file that holds an array of numbers; {printable(file)} does not.")
    values = np.array(mapped)
    if (largest := float(np.max(np.abs(values.astype(float)), initial=0.0))) > MOST:
        raise ValueError(f"{name} must hold numbers of at most {MOST:g} in size; {printable(file)} holds {largest:g}.")
    return values
