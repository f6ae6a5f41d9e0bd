"""What an accelerator gives: training, sampling, likelihood and particles, in a table with the device's name.

Run from the repository with `python -m benchmarks.gpu`; it takes at most five minutes on a GPU, compilation included, and nothing
requires one. `--small` runs everything in sizes for a CPU. Throughput is timed after compilation, on a device that is waited for.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from nedm_ppl import data, inference, models

Row = tuple[str, float, str]


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Median time of a compiled call."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def digits(num_steps: int, bfloat16: bool = False) -> models.Diffusion:
    """The transformer of `nedm run digits --network transformer`, not trained."""
    levels = data.digits().levels
    network = models.networks.PatchTransformer((8, 8, 18), (8, 8, 17), num_steps, key=jax.random.key(0))
    network = models.networks.BFloat16(network) if bfloat16 else network
    process = models.GaussianDiffusion((8, 8), models.schedules.log_snr_logistic(num_steps))
    reverse = models.LevelPrediction(network, levels, base=models.log_frequencies(data.digits().train, levels))
    return models.Diffusion(process, reverse, first_step="quantized")


def pictures(width: int, bfloat16: bool) -> models.Diffusion:
    """A U-Net for 32 x 32 x 3, not trained."""
    shape, num_steps = (32, 32, 3), 1000
    network = models.networks.UNet(shape, (2, *shape), num_steps, width=width, key=jax.random.key(0))
    network = models.networks.BFloat16(network) if bfloat16 else network
    process = models.GaussianDiffusion(shape, models.schedules.log_snr_logistic(num_steps))
    return models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")


def training(name: str, diffusion: models.Diffusion, x0: np.ndarray) -> list[Row]:
    """One gradient step of K on a minibatch: data per second, and the share of operations that the compiler counts per second."""
    arrays, static = eqx.partition(diffusion, eqx.is_inexact_array)

    @jax.jit
    def step(arrays: Any, key: jax.Array, x0: jax.Array) -> tuple[jax.Array, Any]:
        def loss(arrays: Any) -> jax.Array:
            return -jnp.mean(inference.bound_terms(key, eqx.combine(arrays, static), x0, num_times=1).total)

        value, gradient = jax.value_and_grad(loss)(arrays)
        return value, jax.tree.map(lambda a, g: a - 1e-4 * g, arrays, gradient)

    compiled = step.lower(arrays, jax.random.key(0), x0).compile()
    cost = compiled.cost_analysis() or {}
    taken = seconds(lambda: compiled(arrays, jax.random.key(0), x0))
    rows = [(f"{name}: training", len(x0) / taken, "data/s")]
    if "flops" in cost:
        rows.append((f"{name}: arithmetic of training", cost["flops"] / taken / 1e12, "TFLOP/s"))
    return rows


def sampling(name: str, diffusion: models.Diffusion, number: int) -> list[Row]:
    draw = eqx.filter_jit(lambda d, key: d.sample(key, number))
    return [
        (
            f"{name}: sampling, T = {diffusion.num_steps}",
            number / seconds(lambda: draw(diffusion, jax.random.key(0))),
            "data/s",
        )
    ]


def likelihood(diffusion: models.Diffusion, x0: np.ndarray, num_trajectories: int) -> list[Row]:
    def run() -> np.ndarray:
        found = inference.marginal_log_likelihood(jax.random.key(0), diffusion, x0, num_trajectories=num_trajectories)
        return found.log_prob

    number = len(x0) * num_trajectories * diffusion.num_steps
    return [("digits: likelihood, in chunks", number / seconds(run), "steps/s")]


def particles(diffusion: models.Diffusion, number: int) -> list[Row]:
    target = inference.multiply(diffusion, inference.NormalObservation(np.zeros(2), 0.5), along="lookahead")
    run = eqx.filter_jit(lambda target, key: inference.posterior.particle_filter(key, target, number).log_evidence)
    taken = seconds(lambda: run(target, jax.random.key(0)))
    return [(f"{number:,} particles, T = {diffusion.num_steps}", taken, "s")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    batch, width, steps = (8, 8, 10) if args.small else (512, 64, 500)
    start, rng = time.perf_counter(), np.random.default_rng(0)
    of_digits, gray = digits(steps), np.resize(data.digits().train, (batch, 8, 8)).astype(np.float32)
    colored = rng.normal(size=(batch, 32, 32, 3)).astype(np.float32)
    network = models.networks.ResidualMLP((2,), (2, 2), 40, key=jax.random.key(0))
    plane = models.Diffusion(
        models.GaussianDiffusion(2, models.schedules.log_snr_linear(40)), models.VelocityPrediction(network)
    )
    rows: list[Row] = []
    for part in (
        lambda: training("digits' transformer, float32", of_digits, gray),
        lambda: training("digits' transformer, bfloat16", digits(steps, True), gray),
        lambda: training("U-Net, float32", pictures(width, False), colored),
        lambda: training("U-Net, bfloat16", pictures(width, True), colored),
        lambda: sampling("digits' transformer", of_digits, batch),
        lambda: likelihood(of_digits, gray[:4], 4 if args.small else 256),
        lambda: particles(plane, 1_000),
        lambda: particles(plane, 2_000 if args.small else 100_000),
    ):
        rows += part()
        print(*rows[-1], flush=True)
    device = jax.devices()[0].device_kind
    table = Table("what", "measured", "unit", title=f"{device}, {time.perf_counter() - start:.0f} s in all")
    for name, value, unit in rows:
        table.add_row(name, f"{value:,.3g}", unit)
    Console().print(table)
    if args.out is not None:
        args.out.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
