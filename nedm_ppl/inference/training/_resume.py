"""A training run's record: where it stands, what it has seen, and how it is written and read back.

    run.json      what the run is: digests of its model, data and key, and its options
    steps/60/     its state after 60 steps, a flat list of arrays with their hash; the last two are kept

A step's folder is written under another name and renamed when complete (orbax), so that a kill at any moment leaves the last
one whole. A run with other data, another key or another network is refused in one sentence, and so is a state that is not the
one that was written.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl.files import OutputError, reason, shortened, write_json
from nedm_ppl.inference._devices import wait_for_all
from nedm_ppl.numbers import Estimate

__all__ = ["CheckpointError", "TrainingRecord"]

DESCRIPTION, STEPS, VERSION, KEPT = "run.json", "steps", 3, 2
BEGUN = {".run.json.new", "run.tmp"}  # what a run leaves that was killed as it began
UNFINISHED = ".orbax-checkpoint-tmp"
OTHER = {
    "model": "another model",
    "data": "other data",
    "validation": "another validation part",
    "context": "other contexts",
    "rng_key": "another key",
    "arrays": "another model or optimizer",
}


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used for this run."""


class TrainingRecord:
    """Counts steps, keeps the history, and writes both with the state of the optimizer."""

    def __init__(
        self,
        *,
        diffusion: Any,
        data: Any,
        validation: np.ndarray | None,
        rng_key: Array,
        contexts: Sequence[Any] = (),
        **options: Any,
    ):
        self.step = 0
        self.seconds = 0.0
        self._trace: list[tuple[float, float]] = []
        self._validation: list[tuple[float, float, float]] = []
        self._description: dict[str, Any] = {
            "format": "nedm_ppl.training",
            "version": VERSION,
            "model": hashlib.sha256(
                re.sub(r" at 0x[0-9a-f]+", "", str(jax.tree.structure(diffusion))).encode()
            ).hexdigest(),
            "rng_key": np.asarray(_plain(rng_key)).tolist(),
            **options,
        }
        self._data = data, validation, contexts

    def add_steps(self, count: int, bound: float, seconds: float) -> None:
        """Note `count` optimizer steps and their mean bound (nats per datum)."""
        self.step += count
        self.seconds += seconds
        self._trace.append((self.step, float(bound)))

    def add_validation(self, value: Estimate) -> bool:
        """Note an evaluation on the validation part; whether it is the best so far."""
        best = all(value.mean > mean for _, mean, _ in self._validation)
        self._validation.append((self.step, value.mean, value.se))
        return best

    def stopped(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        if patience is None or not self._validation:
            return False
        means = [mean for _, mean, _ in self._validation]
        return len(means) - 1 - int(np.argmax(means)) >= patience

    def is_due(self, num_updates: int, patience: int | None, every: int) -> bool:
        """Whether the state is to be written: after every so many updates, and at the end."""
        return self.step % every == 0 or self.step == num_updates or self.stopped(patience)

    def history(self) -> dict[str, np.ndarray]:
        """The training trace, arrays by name."""
        trace = np.asarray(self._trace, np.float64).reshape(-1, 2)
        validation = np.asarray(self._validation, np.float64).reshape(-1, 3)
        return {
            "step": trace[:, 0].astype(int),
            "bound": trace[:, 1],
            "validation_step": validation[:, 0].astype(int),
            "validation_bound": validation[:, 1],
            "validation_se": validation[:, 2],
        }

    def open(self, folder: Path | None, state: Any, *, resume: bool) -> Any:
        """Prepare the folder for a new run, or read the last complete state of the run it holds; nothing where there is none."""
        if folder is None:
            return state
        data, validation, contexts = self._data  # hashed only where something is kept
        self._description["data"] = _digest(data)
        self._description["validation"] = None if validation is None else _digest(validation)
        if contexts:
            self._description["context"] = [_digest(values) for values in contexts]
        self._description["arrays"] = [[list(leaf.shape), str(leaf.dtype)] for leaf in _leaves(state)]
        file = folder / DESCRIPTION
        used = folder.exists() and any(path.name not in BEGUN for path in folder.iterdir())
        wait_for_all("the checkpoint folder was looked into")  # before the first of several processes writes there
        if used and not resume:
            raise CheckpointError(f"checkpoint folder {folder} is not empty; pass resume=True, or name another folder.")
        if not used:
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(file, self._description)
            return state
        if not file.exists():
            raise CheckpointError(f"checkpoint folder {folder} holds no training run: {DESCRIPTION} is missing.")
        self._check_description(file)
        return self._read(folder / STEPS, state)

    def write(self, folder: Path, state: Any) -> None:
        """Write the state of this step; earlier ones but the last are removed when this one is complete.

        Raises:
            OutputError: it could not be written; the last complete state is intact.
        """
        from nedm_ppl.inference.training._state_arrays import write_arrays

        arrays = {f"state_{i:05d}": _bits(np.asarray(leaf)) for i, leaf in enumerate(_leaves(state))}
        arrays |= {f"history_{name}": values for name, values in self.history().items()}
        arrays |= {"step": np.asarray(self.step), "seconds": np.asarray(self.seconds, np.float64)}
        try:
            write_arrays(folder / STEPS / str(self.step), arrays)
            for step in _steps(folder / STEPS)[:-KEPT] if jax.process_index() == 0 else ():
                shutil.rmtree(folder / STEPS / str(step))
        except OSError as error:
            raise OutputError(
                f"the state of step {self.step} could not be written to {folder}: {reason(error)}. What was written before is "
                "whole, and the run can be resumed from it."
            ) from error

    def _check_description(self, file: Path) -> None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            written = found["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(
                f"{file} is damaged: it is not the JSON of a training run. Start again elsewhere."
            ) from None
        if type(written) is int and written < VERSION:
            raise CheckpointError(
                f"{file.parent} holds a run of an older version of nedm_ppl; resume it with that, or start again elsewhere."
            )
        for name, expected in self._description.items():
            if name not in found or found[name] != expected:
                what = OTHER.get(name, f"{name} {shortened(repr(found.get(name)), 200)} and not {expected!r}")
                raise CheckpointError(f"{file.parent} holds a run with {what}; resume with the same arguments.")

    def _read(self, steps: Path, state: Any) -> Any:
        from nedm_ppl.inference.training._state_arrays import read_arrays

        if jax.process_index() == 0:
            for path in steps.glob(f"*{UNFINISHED}*") if steps.exists() else ():  # of a run killed while it wrote
                shutil.rmtree(path, ignore_errors=True)
        written = _steps(steps)
        if not written:
            return state
        leaves, treedef = jax.tree.flatten(state)
        folder = steps / str(written[-1])
        try:
            arrays = read_arrays(folder)
            if int(arrays["step"]) != written[-1]:
                raise ValueError(f"it is the state of step {int(arrays['step'])}")
            saved = [arrays[f"state_{i:05d}"] for i in range(len(leaves))]
            for array, leaf in zip(saved, _leaves(state), strict=True):
                if (array.shape, array.dtype) != (leaf.shape, _bits(np.asarray(leaf)).dtype):
                    raise ValueError("its arrays have other shapes")
            columns = [arrays[f"history_{name}"].tolist() for name in self.history()]
            trace, validation = zip(*columns[:2], strict=True), zip(*columns[2:], strict=True)
            self._trace, self._validation = list(trace), list(validation)
            self.step, self.seconds = written[-1], float(arrays["seconds"])
        except Exception as error:  # whatever NumPy trips over in a damaged file
            raise CheckpointError(
                f"checkpoint {folder} is damaged ({reason(error)}). Remove that folder to resume from an earlier one."
            ) from None
        return jax.tree.unflatten(treedef, [_like(array, leaf) for array, leaf in zip(saved, leaves, strict=True)])


def _steps(folder: Path) -> list[int]:
    """The steps whose state is complete, ascending."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and str(int(name)) == name)


def _digest(data: Any) -> str:
    """Of an array, or of rows that are read some at a time; no copy is made."""
    found = hashlib.sha256()
    for part in data.chunks() if hasattr(data, "chunks") else (data,):
        found.update(memoryview(np.ascontiguousarray(part)).cast("B"))
    return found.hexdigest()


def _leaves(state: Any) -> list[Array]:
    return [_plain(leaf) for leaf in jax.tree.leaves(state)]


def _plain(leaf: Any) -> Array:
    """An array that can be written: keys as their integers."""
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _bits(array: np.ndarray) -> np.ndarray:
    """NumPy's files know no bfloat16 and its like: their bits are stored."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _like(array: np.ndarray, leaf: Any) -> Array:
    if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array.view(jnp.asarray(leaf).dtype))
