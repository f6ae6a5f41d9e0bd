r"""The posterior over the phases of a heartbeat of which only silent bins are seen, against the true one.

    nedm run heartbeat --first-step learned --out FOLDER
    python benchmarks/heartbeat_posteriors.py FOLDER

All bins of h of the five phases are hidden, h = 2, 3, 4; the pulse is among them, and every visible bin is 0. The true posterior is
uniform over the hidden phases. The distance is the total variation over sequences, in which mass on anything but a
heartbeat counts as wrong; that of as many exact draws stands beside it.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from nedm_ppl import data, inference, models

NUM_BINS, PERIOD = 20, 5
HEARTBEATS = (np.arange(NUM_BINS) % PERIOD == np.arange(PERIOD)[:, None]).astype(float)


def distance(posterior: inference.ParticlePosterior, hidden: list[int]) -> tuple[float, float, np.ndarray]:
    """Total variation from the true posterior, the mass on no heartbeat, and the masses of the five phases."""
    x, weights = posterior.particles.x, np.exp(posterior.log_weights)
    matches = np.all(x[..., None, :] == HEARTBEATS, axis=-1)
    masses = np.sum(weights[..., None] * matches, axis=(0, 1))
    truth = np.isin(np.arange(PERIOD), hidden) / len(hidden)
    other = 1.0 - masses.sum()
    return 0.5 * (np.abs(masses - truth).sum() + other), other, masses


def of_exact_draws(num_hidden: int, num_draws: int) -> float:
    law = np.full(num_hidden, 1.0 / num_hidden)
    counts = np.random.default_rng(0).multinomial(num_draws, law, size=1000) / num_draws
    return float(0.5 * np.abs(counts - law).sum(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Posterior over hidden phases of the heartbeat.")
    parser.add_argument("folder", type=Path, help="output folder of `nedm run heartbeat --first-step learned`")
    parser.add_argument("--particles", type=int, default=4096)
    parser.add_argument("--num-steps", type=int, default=None, help="of the respaced chain; by default all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    diffusion = models.Diffusion.load(args.folder / "model")
    diffusion = diffusion if args.num_steps is None else models.respace(diffusion, args.num_steps)
    assert np.all(np.isin(data.heartbeat(args.seed, 50), HEARTBEATS))
    table = Table(
        "hidden phases", "total variation", "exact draws", "on no heartbeat", "masses of the phases", "log Z", "true", "s",
        title=f"heartbeat, T = {diffusion.num_steps}, {args.particles} particles, seed {args.seed}",
    )  # fmt: skip
    for h in (2, 3, 4):
        hidden = list(range(h))
        values = np.where(np.isin(np.arange(NUM_BINS) % PERIOD, hidden), np.nan, 0.0)
        start = time.perf_counter()
        posterior = inference.ParticlePosterior(
            diffusion, inference.Known(jnp.asarray(values)), num_particles=args.particles, num_repeats=1
        )
        posterior.run(jax.random.fold_in(jax.random.key(args.seed), h))
        tv, other, masses = distance(posterior, hidden)
        table.add_row(
            str(h), f"{tv:.4f}", f"{of_exact_draws(h, args.particles):.4f}", f"{other:.4f}",
            " ".join(f"{mass:.3f}" for mass in masses), f"{float(posterior.log_evidence.mean):.4f}",
            f"{np.log(h / PERIOD):.4f}", f"{time.perf_counter() - start:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
