"""Training on a file larger than memory: anonymous memory, and time per update against the same rows in memory.

Run from the repository with `python -m benchmarks.streaming`. It writes a sparse file of 20 GB (zeros, no blocks of the disk), one
of a hundredth of its rows, and a full one of 2 GB, into a folder of its own that goes at the end. Every run is a process of its
own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from nedm_ppl import inference, models

ROW, UPDATES = (28, 28), 300


def anonymous() -> float:
    """Anonymous memory of this process now, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def trained(file: Path, in_memory: bool) -> None:
    """Train on a file, and print the peak of anonymous memory between chunks of updates and the time of the second half."""
    rows = np.load(file, mmap_mode="r")
    rows = np.array(rows) if in_memory else rows
    network = models.networks.ResidualMLP(ROW, (2, *ROW), 100, width=128, depth=3, key=jax.random.key(0))
    process = models.GaussianDiffusion(ROW, models.schedules.log_snr_linear(100))
    diffusion = models.Diffusion(process, models.VelocityPrediction(network))
    seen: list[tuple[float, float]] = []

    def watch(key: jax.Array, batch: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: seen.append((anonymous(), time.perf_counter())))
        return batch

    inference.fit(jax.random.key(1), diffusion, rows, num_updates=UPDATES, augment=watch, log_every=25, progress=False)
    half = seen[len(seen) // 2 :]
    seconds = (half[-1][1] - half[0][1]) / (len(half) - 1)
    print(json.dumps({"rows": len(rows), "peak_mb": max(mb for mb, _ in seen), "seconds": seconds}))


def run(file: Path, *options: str) -> dict[str, float]:
    """`trained` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.streaming", "--file", str(file), *options]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", type=Path)
    parser.add_argument("--in-memory", action="store_true")
    args = parser.parse_args()
    if args.file is not None:
        return trained(args.file, args.in_memory)
    row = 4 * int(np.prod(ROW))
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"sparse, 20 GB": 20 * 10**9 // row, "sparse, .2 GB": 2 * 10**8 // row}
        for name, number in sizes.items():
            file = Path(folder) / "sparse.npy"
            np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(number, *ROW)).flush()
            print(name, run(file), flush=True)
        file = Path(folder) / "full.npy"
        full = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(2 * 10**9 // row, *ROW))
        rng = np.random.default_rng(0)
        for start in range(0, len(full), 10_000):
            part = full[start : start + 10_000]
            part[:] = rng.standard_normal(part.shape, np.float32)
        full.flush()
        for _ in range(2):
            print("full, 2 GB, mapped", run(file), flush=True)
            print("full, 2 GB, in memory", run(file, "--in-memory"), flush=True)


if __name__ == "__main__":
    main()
