"""The folder of a run: one process at a time, and what an earlier run left is there as a whole or not at all.

`--force` puts the earlier run's outputs aside, into a folder inside, its checkpoint first: by that one rename the earlier run
has left. What describes the new run, `checkpoint/run.json`, is the other mark. Whoever opens the folder next, after a kill at
any moment, finds the earlier run aside and either the new one begun, and the earlier one goes for good, or not, and it comes
back, its checkpoint last.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nedm_ppl.files import OutputFolderError, locked, sync
from nedm_ppl.inference.training._resume import BEGUN, DESCRIPTION

__all__ = ["CHECKPOINT", "OUTPUTS", "opened"]

CHECKPOINT, ASIDE = "checkpoint", ".earlier-run"
FIGURES = (
    *("bound_by_step", "denoised", "figure1", "figure2", "inpainted", "loss", "neighbors", "network", "reverse_chain"),
    *("samples", "spectrum", "thermodynamics"),
)
NUMBERS = ("metrics.json", "samples.json")
ARVIZ = ("bound", "likelihood", "thermodynamics", "training")
# All that any experiment writes; what else lies in the folder is none of a run's business.
OUTPUTS = (CHECKPOINT, "model", *NUMBERS, *(f"{name}.nc" for name in ARVIZ), *(f"{name}.png" for name in FIGURES))


@contextmanager
def opened(out: Path, *, resume: bool, force: bool) -> Iterator[None]:
    """Hold the folder for a run that begins, goes on with the one it holds, or begins again in its place.

    Raises:
        OutputFolderError: the folder is a file, holds something else or an earlier run that neither `resume` nor `force` is
            for, or another process is at work in it.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise OutputFolderError(f"--out {out} is no folder; name one.")
    if resume and force:
        raise OutputFolderError("--resume goes on with a run and --force starts again; give one of them.")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except BlockingIOError:
            raise OutputFolderError(
                f"--out {out} is in use by another process; wait until it is done, or name another folder."
            ) from None
        _settle(out)
        _check(out, resume or force)
        if force:
            _put_aside(out)
        try:
            yield
        finally:
            _settle(out)


def _check(out: Path, earlier_is_welcome: bool) -> None:
    begun, checkpoint = _is_begun(out), out / CHECKPOINT
    # A run that was killed as it began leaves a checkpoint folder with nothing in it.
    void = checkpoint.is_dir() and all(path.name in BEGUN for path in checkpoint.iterdir())
    if any(path.name != CHECKPOINT or not void for path in out.iterdir()) and not (begun and earlier_is_welcome):
        hint = (
            "--resume to go on with it, --force to start again" if begun else "another folder: it holds no earlier run"
        )
        raise OutputFolderError(f"--out {out} is not empty; use {hint}.")


def _is_begun(out: Path) -> bool:
    return (out / CHECKPOINT / DESCRIPTION).exists()


def _put_aside(out: Path) -> None:
    (out / ASIDE).mkdir(exist_ok=True)
    for name in OUTPUTS:
        if os.path.lexists(out / name):
            os.replace(out / name, out / ASIDE / name)
    sync(out)


def _settle(out: Path) -> None:
    aside = out / ASIDE
    if not aside.is_dir():
        return
    if not _is_begun(out):
        if (aside / CHECKPOINT).exists():
            shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
        for name in reversed(OUTPUTS):
            if os.path.lexists(aside / name):
                os.replace(aside / name, out / name)
    shutil.rmtree(aside)
