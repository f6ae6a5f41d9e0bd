"""Two checkouts of the library timed against each other, alternately, each in a process of its own.

Run with `python benchmarks/versions.py OLD`, where OLD is the root of another checkout, as `git worktree add` makes one. What is
timed is what `speed.py` and `mixture_posterior.py` time, by this checkout's files and either library. Two processes of one
library differ by several percent, whatever they run, so each is started several times: the ratio of new to old is the mean over
starts of the median over rounds, and its standard error is over starts.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


def filtering(dx: int, dy: int) -> Callable[[], None]:
    """A thousand particles over 100 times, as in the table of mixture posteriors."""
    import mixture_posterior as mixture

    target = mixture.posterior(mixture.instance(0, dx, dy), 100, along=mixture.AHEAD)
    return lambda: jax.block_until_ready(mixture.run_filter(jax.random.key(0), target, 1000))


def papers_chain() -> Callable[[], None]:
    import mixture_posterior as mixture

    target = mixture.posterior(mixture.instance(0, 8, 2), 100, along="constant")
    return lambda: jax.block_until_ready(mixture.run_paper(jax.random.key(0), target))


def training(num_steps: int) -> Callable[[], None]:
    import speed

    x0 = jax.random.normal(jax.random.key(3), (speed.BATCH, speed.DIM))
    return speed.library_step(speed.build(num_steps), x0)


def sampling(num_steps: int) -> Callable[[], None]:
    import speed

    return speed.library_sampler(speed.build(num_steps), 256)


CASES: dict[str, Callable[[], Callable[[], None]]] = {
    "20 training steps, T = 40": lambda: training(40),
    "20 training steps, T = 1000": lambda: training(1000),
    "20 training steps, T = 4000": lambda: training(4000),
    "256 samples, T = 40": lambda: sampling(40),
    "256 samples, T = 400": lambda: sampling(400),
    "256 samples, T = 2000": lambda: sampling(2000),
    "the paper's multiplied chain, 2,000 draws": papers_chain,
    **{f"filter, dx = {dx}, dy = {dy}": lambda dx=dx, dy=dy: filtering(dx, dy) for dx in (8, 80) for dy in (1, 2, 4)},
}


def serve(name: str) -> None:
    """A worker: run once to compile, then once for every line that comes, and answer with its seconds."""
    run = CASES[name]()
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


def worker(root: Path, name: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, __file__, "--serve", name]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("again\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def timed(name: str, old: Path, rounds: int) -> np.ndarray:
    """Seconds of new and old by turns, shape (rounds, 2), by two processes that are started for it."""
    pair, times = [worker(root.resolve(), name) for root in (ROOT, old)], np.empty((rounds, 2))
    for process in pair:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    for i in range(rounds):
        for j in (0, 1) if i % 2 else (1, 0):
            times[i, j] = ask(pair[j])
    for process in pair:
        process.kill()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?", help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    if options.old is None or not (options.old / "nedm_ppl").is_dir():
        parser.error(f"old must be the root of a checkout; got {options.old}")
    table = Table("what", "new, ms", "old, ms", "new / old")
    for name in [name for name in CASES if options.only in name]:
        pairs = [timed(name, options.old, options.rounds) for _ in tqdm(range(options.starts), desc=name, leave=False)]
        times, ratios = np.median(pairs, axis=(0, 1)), np.array([np.median(of[:, 0] / of[:, 1]) for of in pairs])
        ratio, se = ratios.mean(), ratios.std(ddof=1) / np.sqrt(options.starts)
        table.add_row(name, f"{1e3 * times[0]:.1f}", f"{1e3 * times[1]:.1f}", f"{ratio:.3f} ± {se:.3f}")
        print(name, f"{ratio:.3f} ± {se:.3f}", flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
