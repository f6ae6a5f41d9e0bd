"""What `nedm` and saved folders make of accidents: kills, damaged files, odd command lines, full disks.

Run with `python benchmarks/robustness.py`; an hour on two cores. Every accident ends in one of four ways: well (the same bits
as an undisturbed run, the same model as was saved, exit code 0), in one sentence, in a traceback (or a crash, a hang, a
message of several lines), or as another model than the one that was saved. All accidents are drawn from one seed.

Commands run in forks of a process that has imported everything and computed nothing, on a small swiss roll. Disks are file
systems in memory, which only root can mount: `unshare -Urm python benchmarks/robustness.py` is root of its own.
"""

import argparse
import atexit
import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "nedm_robustness_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what XLA says of its cache is not what a command says

import numpy as np
from rich.console import Console
from rich.table import Table

from nedm_ppl import cli, data, inference, models
from nedm_ppl import restoration as restore
from nedm_ppl.experiments import EXPERIMENTS, Split
from nedm_ppl.inference.training._resume import CheckpointError
from nedm_ppl.models._saving import ModelFolderError, _json_sha256

WELL, SENTENCE, TRACEBACK, ANOTHER = OUTCOMES = ("well", "in one sentence", "in a traceback", "as another model")
HUNG_AFTER, MEMORY = 300, 12 * 2**30  # s and bytes of address space, of one command
NAME, STEPS = "swiss-roll-rbf", 600
RUN = ["run", NAME, "--updates", str(STEPS), "--num-steps", "3"]
console = Console(width=160)


def smaller(experiment: Any) -> Any:
    """The experiment on a few hundred data, with a checkpoint every hundred steps."""

    def few(seed: int) -> Split:
        split = experiment.data(seed)
        return Split(split.train[:300], None, split.holdout[:100])

    def training(steps: int) -> dict[str, Any]:
        return experiment.training(steps) | {"checkpoint_every": 100}

    return replace(experiment, data=few, training=training, likelihood_size=6, likelihood_trajectories=24)


# Commands


def nedm(arguments: list[str], folder: Path, kill_after: float | None = None) -> tuple[int, str]:
    """Run a command in a fork, there: its exit code, negative for a signal, and what it said on standard error."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as shown:
        process = os.fork()
        if not process:
            try:
                os.dup2(said.fileno(), 2)
                os.dup2(shown.fileno(), 1)
                os.chdir(folder)
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                sys.argv = ["nedm", *arguments]
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                code: Any = 0
                cli.main()
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                code = 1
                traceback.print_exc()
            leave(code or 0)
        deadline = time.monotonic() + (HUNG_AFTER if kill_after is None else kill_after)
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                ended = os.waitpid(process, 0)
                break
            time.sleep(0.002)
        said.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), said.read().decode("utf-8", "replace")


@contextmanager
def temporary(parent: Path | None = None) -> Iterator[Path]:
    """A folder that goes with this process alone: a `TemporaryDirectory` goes with the first fork that ends."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leave(code: int) -> None:
    """End as a process of its own would, with what libraries do at exit, and without what is open here."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(code)


def outcome(code: int, said: str) -> str:
    """How a command ended. Typer frames its sentence on usage."""
    lines = said.strip().splitlines()
    framed = code == 2 and said.startswith("Usage:") and "Traceback" not in said
    own = code in (1, 2) and len(lines) == 1 and lines[0].startswith("nedm: ")
    return WELL if code == 0 and "Traceback" not in said else SENTENCE if own or framed else TRACEBACK


def bits(out: Path) -> dict[str, Any]:
    """What a run computes: its arrays and its numbers, without the seconds they took."""
    metrics = json.loads((out / "metrics.json").read_text())
    numbers = {name: value for name, value in metrics.items() if not name.endswith("seconds")}
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {"arrays": (out / "model" / "arrays.npz").read_bytes(), "metrics": numbers, "names": names}


# Kills


def kills(count: int, rng: np.random.Generator, scratch: Path) -> Iterator[tuple[str, str]]:
    """A run killed at a random moment, then again under --resume, and finished; one in five begins again with --force."""
    start = time.monotonic()
    run_once(scratch / "reference")
    seconds, expected = time.monotonic() - start, bits(scratch / "reference")
    for i in range(count):
        out = scratch / f"killed{i}"
        if i % 5 == 0:
            shutil.copytree(scratch / "reference", out)
        options = ["--force"] if i % 5 == 0 else []
        nedm([*RUN, *options, "--out", str(out)], scratch, kill_after=rng.uniform(0.0, seconds))
        nedm([*RUN, "--resume", "--out", str(out)], scratch, kill_after=rng.uniform(0.0, seconds))
        yield resumed(out, scratch, expected)
        shutil.rmtree(out, ignore_errors=True)


def run_once(out: Path) -> None:
    for again in ([], ["--force"]):  # the second has everything compiled
        code, said = nedm([*RUN, *again, "--out", str(out)], out.parent)
        if code:
            raise RuntimeError(said)


def resumed(out: Path, scratch: Path, expected: dict[str, Any]) -> tuple[str, str]:
    code, said = nedm([*RUN, "--resume", "--out", str(out)], scratch)
    ended = outcome(code, said)
    return (ANOTHER if ended == WELL and bits(out) != expected else ended), said


# Full disks


def disks(count: int, rng: np.random.Generator, scratch: Path) -> Iterator[tuple[str, str]]:
    """A run on a disk that is full before it ends: what it says, if --resume then ends well on a greater one."""
    reference = scratch / "reference"
    if not reference.exists():
        run_once(reference)
    expected = bits(reference)
    whole = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    for i in range(count):
        with mounted(scratch / "disk", int(whole * (i + 0.5) / count)) as disk:
            code, said = nedm([*RUN, "--out", str(disk / "out")], scratch)
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            ended, later = resumed(disk / "out", scratch, expected)
            yield (outcome(code, said), said) if ended == WELL else (ended, later)


@contextmanager
def mounted(disk: Path, size: int) -> Iterator[Path]:
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def can_mount(scratch: Path) -> bool:
    try:
        with mounted(scratch / "disk", 2**20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


# Odd command lines

NUMBERS = [
    "-1",
    "0",
    "3",
    "1e3",
    "1.5",
    "nan",
    "-inf",
    "1e400",
    "",
    " ",
    "-",
    "0x10",
    "1_0",
    "٣",
    "é",
    "9" * 20,
    f"{10**11}",
]
NUMBERS += [f"{2**31}", f"{2**63}", f"{-(2**63) - 1}", "\udcff", "[bold]", "7" * 5000, "None", "1;2", "%d", "{0}"]
PATHS = [
    "",
    ".",
    "..",
    "/",
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "/proc/self/mem",
    "n\udcffwhere",
    "x" * 300,
    "a/b/c",
]
PATHS += ["~", "a[b]", "a\\b", "-", "file", "file/x.npy", "link", "model", "a\nb.npy", "[red].npy", "é.nc", "earlier"]
OPTIONS = {
    "seed": NUMBERS,
    "num": NUMBERS,
    "particles": NUMBERS,
    "num-steps": NUMBERS,
    "repeats": NUMBERS,
    "out": PATHS,
}
OPTIONS |= {"updates": NUMBERS, "context": NUMBERS, "target-se": NUMBERS, "scale": NUMBERS}
OPTIONS |= {"trajectories": NUMBERS, "max-trajectories": NUMBERS}
TAKES = {
    "run": ["seed", "updates", "num-steps", "out"],
    "sample": ["seed", "num", "context", "out", "MODEL"],
    "loglik": ["seed", "num", "trajectories", "target-se", "max-trajectories", "out", "MODEL", "ARRAY"],
    "inpaint": ["seed", "num", "particles", "repeats", "num-steps", "out", "MODEL", "mask", "data"],
    "denoise": ["seed", "num", "particles", "repeats", "num-steps", "scale", "out", "MODEL", "data"],
    "show": ["MODEL"],
}
FEW = {"sample": ["--num", "2"], "loglik": ["--num", "2", "--trajectories", "3"]}
FEW |= {command: [*FEW["loglik"], "--repeats", "1"] for command in ("inpaint", "denoise")}


def arrays(scratch: Path) -> list[str]:
    """Files that are no data of this model, each in its own way."""
    x = np.zeros((3, 2), np.float32)
    odd: dict[str, Any] = {
        "nan": x * np.nan, "inf": x + np.inf, "great": x + 1e30, "double": np.full((3, 2), 1e300), "none": x[:0], "flat": x[0],
        "scalar": x[0, 0], "wide": np.zeros((3, 3)), "deep": np.zeros((1,) * 30), "bool": x > 0, "integers": x.astype(int) + 2**62,
        "swapped": x.astype(">f4"), "fortran": np.asfortranarray(x), "complex": x + 1j, "text": x.astype("U3"),
        "dates": np.zeros((3, 2), "M8[s]"), "objects": np.array([[{}, []]], object), "fields": np.zeros(3, [("a", "f4")]),
    }  # fmt: skip
    for name, array in odd.items():  # objects can only be written pickled; what reads them must refuse them
        np.save(scratch / f"{name}.npy", array, allow_pickle=True)
    np.savez(scratch / "archive.npy", x)
    content = (scratch / "bool.npy").read_bytes()
    for name, new in {"half": content[:70], "empty": b"", "header": content.replace(b"(3, 2)", b"(2**9")}.items():
        (scratch / f"{name}.npy").write_bytes(new)
    with (scratch / "claims.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2 * 10**13, 2)})
    return sorted(path.name for path in scratch.glob("*.npy") if path.is_file()) + PATHS


def commands(count: int, rng: np.random.Generator, scratch: Path) -> Iterator[tuple[str, str]]:
    """One option or path of a command that is well but for it."""
    if not (scratch / "reference").exists():
        run_once(scratch / "reference")
    files = arrays(scratch)
    odd = OPTIONS | {"MODEL": PATHS, "ARRAY": files, "mask": files, "data": files}
    lines = sorted((command, option, value) for command in TAKES for option in TAKES[command] for value in odd[option])
    for i in rng.permutation(len(lines))[:count]:
        command, option, value = lines[i]
        with temporary(scratch) as folder:
            (folder / "file").write_text("mine")
            (folder / "link").symlink_to("nowhere")
            (folder / "earlier").mkdir()
            (folder / "earlier" / "metrics.json").write_text("[")
            for path in scratch.glob("*.npy"):
                (folder / path.name).symlink_to(path)
            arguments = line(command, option, value, scratch / "reference")
            code, said = nedm(arguments, folder)
            yield outcome(code, said), f"nedm {' '.join(arguments)}: exit code {code}\n{said}"


def line(command: str, option: str, value: str, model: Path) -> list[str]:
    places = [value if option == "MODEL" else str(model), *([value] if option == "ARRAY" else [])]
    arguments = RUN if command == "run" else [command, *FEW.get(command, []), *places]
    return [*arguments, *([] if option.isupper() else [f"--{option}", value])]


# Damaged folders


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """One accident of a disk, an editor or a copy."""
    at, size = int(rng.integers(len(content))), int(rng.integers(1, 64))
    start, rest = content[:at], content[at + size :]
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    match int(rng.integers(8)):
        case 0:
            return start + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
        case 1:
            return start
        case 2:
            return start + bytes(size) + rest
        case 3:
            return start + rest
        case 4:
            return start + rng.bytes(size) + rest
        case 5:
            return start + content[at : at + size] + content[at:]
        case 6:
            return content + rng.bytes(size)
    i = int(rng.choice(digits)) if digits else at
    return content[:i] + str((content[i] - 48 + int(rng.integers(1, 10))) % 10).encode() + content[i + 1 :]


def damaged(files: list[Path], rng: np.random.Generator) -> None:
    """Change one file in one way, or lose it, or put another in its place. Small files as often as great ones."""
    file, other = (files[int(i)] for i in rng.choice(len(files), 2, replace=len(files) < 2))
    match int(rng.integers(12)):
        case 0:
            file.unlink()
        case 1:
            shutil.copy(other, file)
        case _:
            file.write_bytes(changed(file.read_bytes(), rng))


def not_finite(folder: Path, rng: np.random.Generator) -> None:
    """A value of an array that is NaN, with the hashes it then has."""
    document = json.loads((folder / "model.json").read_text())
    values = dict(np.load(folder / "arrays.npz"))
    name = str(rng.choice([name for name in values if values[name].dtype.kind == "f" and values[name].size]))
    values[name].flat[int(rng.integers(values[name].size))] = np.nan
    np.savez(folder / "arrays.npz", **values)
    document["sha256"] = hashlib.sha256((folder / "arrays.npz").read_bytes()).hexdigest()
    document["json_sha256"] = _json_sha256(document)
    (folder / "model.json").write_text(json.dumps(document))


def small(seed: int) -> models.Diffusion:
    import jax

    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(3))
    network = models.networks.ResidualMLP((2,), (2, 2), 3, width=8, depth=1, key=jax.random.key(seed))
    return models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")


def same(one: Any, other: Any) -> bool:
    import jax

    (a, tree), (b, structure) = jax.tree.flatten(one), jax.tree.flatten(other)
    return tree == structure and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)
    )


def model_folders(count: int, rng: np.random.Generator, scratch: Path) -> Iterator[tuple[str, str]]:
    """Load a saved model, one of whose files was damaged."""
    saved, folder = small(0), scratch / "model"
    for i in range(count):
        saved.save(folder)
        not_finite(folder, rng) if i % 20 == 0 else damaged(sorted(folder.iterdir()), rng)
        yield refused(lambda: models.Diffusion.load(folder), saved, ModelFolderError)
        shutil.rmtree(folder)


def checkpoints(count: int, rng: np.random.Generator, scratch: Path) -> Iterator[tuple[str, str]]:
    """Resume a finished training run, one of whose files was damaged or one of whose steps was renamed."""
    import jax

    x, good, folder = data.swiss_roll(0, 100), scratch / "good", scratch / "run"

    def fit(folder: Path, resume: bool) -> models.Diffusion:
        options: dict[str, Any] = {"num_steps": 40, "batch_size": 8, "log_every": 10, "checkpoint_every": 20}
        options |= {"checkpoint": folder, "resume": resume, "progress": False}
        return inference.fit(jax.random.key(1), small(0), x, **options).diffusion

    fitted = fit(good, False)
    for i in range(count):
        shutil.copytree(good, folder)
        if i % 20 == 0:
            (folder / "steps" / "40").rename(folder / "steps" / str(rng.choice([1, 39, 41, 60, 400])))
        else:
            damaged(sorted(path for path in folder.rglob("*") if path.is_file()), rng)
        yield refused(lambda: fit(folder, True), fitted, CheckpointError)
        shutil.rmtree(folder)


def refused(load: Callable[[], Any], saved: Any, error_type: type[Exception]) -> tuple[str, str]:
    try:
        loaded = load()
    except error_type as error:
        return (TRACEBACK if "\n" in str(error) else SENTENCE), str(error)
    except Exception as error:
        return TRACEBACK, f"{type(error).__name__}: {error}"
    return (WELL if same(saved, loaded) else ANOTHER), ""


# Commands first: a process that has computed cannot fork.
KINDS = {
    "kills": ("killed twice at random moments, then --resume", kills, 50),
    "disks": ("disk full, then --resume on a greater one", disks, 10),
    "commands": ("odd command lines", commands, 200),
    "models": ("damaged model folders", model_folders, 1000),
    "checkpoints": ("damaged checkpoints", checkpoints, 240),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What accidents end in.")
    for name, (what, _, count) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"{what}; by default {count}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--verbose", action="store_true", help="show what every accident ended in, not the bad ends alone"
    )
    args = parser.parse_args()
    EXPERIMENTS[NAME] = smaller(EXPERIMENTS[NAME])
    table = Table("what", "count", *OUTCOMES, "seconds")
    with temporary() as scratch:
        for number, (kind, (what, accidents, _)) in enumerate(KINDS.items()):
            count, start = getattr(args, kind), time.monotonic()
            if kind == "disks" and not can_mount(scratch):
                count = 0
            if not count:
                continue
            ended: Counter[str] = Counter()
            for how, said in accidents(count, np.random.default_rng([args.seed, number]), scratch):
                ended[how] += 1
                if args.verbose or how in (TRACEBACK, ANOTHER):
                    print(
                        f"--- {what}, number {ended.total()} ended {how}:\n{said[:1500]}", file=sys.stderr, flush=True
                    )
            table.add_row(what, f"{count}", *(f"{ended[how]}" for how in OUTCOMES), f"{time.monotonic() - start:.0f}")
    console.print(table)


if __name__ == "__main__":
    assert restore  # imported, so that forks need not
    main()
