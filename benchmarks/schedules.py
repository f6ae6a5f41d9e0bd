"""What a schedule of equal losses gains: train, measure the loss of every step, place the steps anew, train again.

Run with `python benchmarks/schedules.py`; some minutes. The swiss roll (noise 0.5), T = 40, a residual network, from two
schedules: the paper's, and log-SNR falling linearly. For each: K and importance-sampled log p on the same holdout before
and after `schedules.from_losses`, and how uneven the losses per step are (largest over mean).
"""

import argparse
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from nedm_ppl import data, inference, models
from nedm_ppl.experiments import training_options

NUM_STEPS, BITS = 40, 1.0 / np.log(2.0)


def trained(schedule: models.schedules.Schedule, x: np.ndarray, num_updates: int, seed: int) -> models.Diffusion:
    network = models.networks.ResidualMLP((2,), (2, 2), schedule.num_steps, key=jax.random.key(seed))
    process = models.GaussianDiffusion((2,), schedule)
    diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return inference.fit(key, diffusion, x, num_updates=num_updates, **training_options(num_updates)).diffusion


def main() -> None:
    parser = argparse.ArgumentParser(description="Schedules of equal losses against those they were made from.")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps of each training")
    parser.add_argument("--holdout", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, holdout = data.swiss_roll(args.seed, 100_000), data.swiss_roll(args.seed + 1, args.holdout)
    starts = {
        "1 / (T - t + 1)": models.schedules.erasing(NUM_STEPS, first_rate=1e-3, last_rate=0.5),
        "log-SNR linear": models.schedules.log_snr_linear(NUM_STEPS),
    }
    table = Table(
        "schedule", "K, bits", "log p, bits (2,000 points)", "loss of a step, largest / mean", "K gained, paired"
    )
    for name, schedule in starts.items():
        before: Any = None
        for label in (name, "  equal losses"):
            diffusion = trained(schedule, train, args.steps, args.seed)
            terms = inference.evaluate(jax.random.key(2), diffusion, holdout)
            likelihood = inference.marginal_log_likelihood(
                jax.random.key(3), diffusion, holdout[:2000], num_trajectories=64
            )
            losses = inference.step_losses(terms).mean
            bound = np.asarray(terms.total, np.float64)
            gained = "" if before is None else str(inference.Estimate.of(bound - before) * BITS)
            table.add_row(
                label,
                str(inference.Estimate.of(bound) * BITS),
                str(likelihood.mean * BITS),
                f"{losses.max() / losses.mean():.2f}",
                gained,
            )
            before, schedule = bound, models.schedules.from_losses(schedule, losses)
    truth = inference.Estimate.of(data.swiss_roll_log_density(holdout)) * BITS
    table.caption = (
        f"exact mean log density on the holdout {truth} bits; {args.steps} optimizer steps, seed {args.seed}"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
