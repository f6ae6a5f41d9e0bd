"""A training run's record: where it stands, what it has seen, and how it is written and read back (orbax).

A checkpoint is a numbered folder of arrays that orbax writes under another name and renames when complete, so that a kill
at any moment leaves the last one whole. It holds the run's state as a flat list of arrays, beside a description of the run
that made it; a run with other data, another key or another network is refused in one sentence.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl.inference.evaluation import Estimate

__all__ = ["CheckpointError", "TrainingRecord"]

DESCRIPTION = "run.json"
OTHER = {
    "model": "another model",
    "data": "other data",
    "validation": "another validation part",
    "context": "other contexts",
    "rng_key": "another key",
    "arrays": "another model or optimiser",
}


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used for this run."""


class TrainingRecord:
    """Counts steps, keeps the history, and writes both with the state of the optimiser."""

    def __init__(
        self,
        *,
        diffusion: Any,
        data: np.ndarray,
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
            "version": 1,
            "model": _digest(re.sub(r" at 0x[0-9a-f]+", "", str(jax.tree.structure(diffusion))).encode()),
            "data": _digest(np.ascontiguousarray(data).tobytes()),
            "validation": None if validation is None else _digest(np.ascontiguousarray(validation).tobytes()),
            "rng_key": np.asarray(_plain(rng_key)).tolist(),
            **options,
        }
        if contexts:
            self._description["context"] = [_digest(np.ascontiguousarray(values).tobytes()) for values in contexts]

    def add_steps(self, count: int, bound: float, seconds: float) -> None:
        """Note `count` optimiser steps and their mean bound (nats per datum)."""
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

    def open(self, folder: Path, state: Any, *, resume: bool) -> Any:
        """Prepare the folder for a new run, or read the last complete state of the run it holds."""
        self._description["arrays"] = [[list(leaf.shape), str(leaf.dtype)] for leaf in _leaves(state)]
        file = folder / DESCRIPTION
        if not resume:
            if folder.exists() and any(folder.iterdir()):
                raise CheckpointError(
                    f"checkpoint folder {folder} is not empty; pass resume=True, or name another folder."
                )
            folder.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._description))
            temporary.replace(file)
            return state
        if not file.exists():
            file.with_suffix(".tmp").unlink(missing_ok=True)  # of a run killed as it began
            if folder.exists() and any(folder.iterdir()):
                raise CheckpointError(f"checkpoint folder {folder} holds no training run: {DESCRIPTION} is missing.")
            return self.open(folder, state, resume=False)
        self._check_description(file)
        return self._read(folder, state)

    def write(self, folder: Path, state: Any) -> None:
        """Write the state of this step; the previous one is removed only when this one is complete."""
        import orbax.checkpoint as ocp

        arrays = {f"state_{i:05d}": np.asarray(leaf) for i, leaf in enumerate(_leaves(state))}
        arrays |= {f"history_{name}": values for name, values in self.history().items() if values.size}
        arrays["seconds"] = np.asarray(self.seconds, np.float64)
        with _manager(folder) as manager:
            manager.save(self.step, args=ocp.args.StandardSave(arrays), force=True)
            manager.wait_until_finished()

    def _check_description(self, file: Path) -> None:
        try:
            found = json.loads(file.read_text())
            keys = found.keys()
        except (ValueError, AttributeError, UnicodeDecodeError):
            raise CheckpointError(
                f"{file} is damaged: it is not the JSON of a training run. Start again elsewhere."
            ) from None
        for name, expected in self._description.items():
            if name not in keys or found[name] != expected:
                what = OTHER.get(name, f"{name} {found.get(name)!r} and not {expected!r}")
                raise CheckpointError(f"{file.parent} holds a run with {what}; resume with the same arguments.")

    def _read(self, folder: Path, state: Any) -> Any:
        import orbax.checkpoint as ocp

        leaves, treedef = jax.tree.flatten(state)
        with _manager(folder) as manager:
            step = manager.latest_step()
            if step is None:
                return state
            try:
                arrays = manager.restore(step, args=ocp.args.StandardRestore())
                saved = [arrays[f"state_{i:05d}"] for i in range(len(leaves))]
                if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(saved, _leaves(state), strict=True)):
                    raise ValueError("shapes differ")
                self.seconds = float(arrays["seconds"])
                names = ("step", "bound", "validation_step", "validation_bound", "validation_se")
                columns = {name: np.asarray(arrays.get(f"history_{name}", ())) for name in names}
            except Exception as error:
                raise CheckpointError(
                    f"checkpoint {folder / str(step)} is damaged ({type(error).__name__}). Remove that folder to resume from "
                    "an earlier one."
                ) from None
        self.step = int(step)
        self._trace = list(zip(columns["step"], columns["bound"], strict=True))
        self._validation = list(zip(*(columns[name] for name in names[2:]), strict=True))
        return jax.tree.unflatten(treedef, [_like(array, leaf) for array, leaf in zip(saved, leaves, strict=True)])


def _manager(folder: Path) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute() / "steps", options=options)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _leaves(state: Any) -> list[Array]:
    return [_plain(leaf) for leaf in jax.tree.leaves(state)]


def _plain(leaf: Any) -> Array:
    """An array that can be written: keys as their integers."""
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _like(array: Any, leaf: Any) -> Array:
    if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)
