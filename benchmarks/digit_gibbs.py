"""Half a handwritten digit through noise of unknown scale, by particle Gibbs: the trained prior and NUTS in one program.

Run with `python benchmarks/digit_gibbs.py MODEL`, the folder of a model that `nedm run digits` saved. The model is respaced to 100
steps; the upper half of a holdout digit is observed with noise of standard deviation 0.3 (of the pooled standard deviation), the
lower half is hidden, and the scale of the noise is unknown. Two chains of 200 sweeps, 100 of them warm-up.

Reported are seconds after compilation, wall and processor, and effective sample sizes and r-hat over both chains of the noise scale
and of what is inferred of the hidden half.

With `--fixed-scale` the scale of the noise is known, and `PathGibbs` alone is the kernel. Its means of the 32 hidden pixels are
compared with those of `ParticlePosterior`, which shares no step with it: z is their difference over both standard errors, the
chain's by effective sample size, the filter's by independent repeats.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import NUTS, Gibbs
from numpyro.infer.mcmc import MCMCKernel

from nedm_ppl import data, inference, models

SCALE = 0.3


def program(diffusion: models.Diffusion, scale: float | None = None) -> Any:
    """The digit, the scale where it is unknown, and the upper half seen through noise."""

    def half_seen(y: Array) -> None:
        noise = numpyro.sample("scale", dist.HalfNormal(1.0)) if scale is None else scale
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x[:4], noise).to_event(2), obs=y)

    return half_seen


class Sweeps(NamedTuple):
    """What was kept of a run, (chain, draw, ...), the shares that moved at t = 0..T, and seconds, wall and processor."""

    values: dict[str, np.ndarray]
    moved: np.ndarray
    wall: float
    cpu: float


def run_chains(kernel: MCMCKernel, rng_key: Array, y: Array, num_sweeps: int) -> Sweeps:
    """Two chains, one after the other, of which the second half is kept: what MCMC does, compiled before the clock starts."""
    sweep = jax.jit(lambda state: kernel.sample(state, (y,), {}))
    chains, moved, wall, cpu, compiled = [], [], 0.0, 0.0, None
    for key in jax.random.split(rng_key, 2):
        state = kernel.init(key, num_sweeps // 2, None, (y,), {})
        compiled = sweep.lower(state).compile() if compiled is None else compiled
        start, cpu_start = time.perf_counter(), os.times().user
        rows = []
        for _ in range(num_sweeps):
            state = compiled(state)
            rows.append({name: np.asarray(value) for name, value in state.z.items()})
            moved.append(np.asarray((state.block_states[0] if isinstance(kernel, Gibbs) else state).moved))
        wall, cpu = wall + time.perf_counter() - start, cpu + os.times().user - cpu_start
        chains.append({name: np.stack([row[name] for row in rows[num_sweeps // 2 :]]) for name in rows[0]})
    values = {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}
    return Sweeps(values, np.mean(moved, axis=0), wall, cpu)


def unknown_scale(diffusion: models.Diffusion, rng_key: Array, y: Array, options: argparse.Namespace) -> dict[str, Any]:
    model = program(diffusion)
    kernel = Gibbs([(inference.PathGibbs(model, num_particles=options.num_particles), ["x"]), (NUTS(model), None)])
    run = run_chains(kernel, rng_key, y, options.num_sweeps)
    scale, ink = np.exp(run.values["scale"]), run.values["x"][:, :, 4:].sum(axis=(2, 3))
    return {
        "wall_seconds": round(run.wall, 1),
        "processor_seconds": round(run.cpu, 1),
        "scale": {"mean": float(scale.mean()), "sd": float(scale.std()), "truth": SCALE},
        "ess_scale": float(effective_sample_size(scale)),
        "r_hat_scale": float(split_gelman_rubin(scale)),
        "ess_hidden_ink": float(effective_sample_size(ink)),
        "r_hat_hidden_ink": float(split_gelman_rubin(ink)),
        "moved": {str(t): round(float(run.moved[t]), 3) for t in range(0, len(run.moved), options.num_steps // 10)},
    }


def fixed_scale(diffusion: models.Diffusion, rng_key: Array, y: Array, options: argparse.Namespace) -> dict[str, Any]:
    model = program(diffusion, SCALE)
    key_chain, key_filter = jax.random.split(rng_key)
    run = run_chains(inference.PathGibbs(model, num_particles=options.num_particles), key_chain, y, options.num_sweeps)
    hidden = run.values["x"][:, :, 4:].reshape(2, -1, 32).astype(np.float64)
    spread = hidden.std(axis=(0, 1))
    sure = spread < 1e-6  # blank in every draw: no effective sample size
    size = np.full(32, np.nan)
    size[~sure] = effective_sample_size(hidden[:, :, ~sure])
    se = spread / np.sqrt(np.where(sure, 1.0, size))

    start, cpu_start = time.perf_counter(), os.times().user
    posterior = inference.ParticlePosterior(
        model, num_particles=options.filter_particles, num_repeats=options.filter_repeats
    )
    posterior.run(key_filter, y)
    mean, filter_se = (part[4:].reshape(32) for part in posterior.mean)
    seconds = time.perf_counter() - start, os.times().user - cpu_start
    gap, both = hidden.mean(axis=(0, 1)) - mean, np.hypot(se, filter_se)
    compared = both > 1e-6
    z = gap[compared] / both[compared]
    repeats = np.asarray(posterior.particles.log_evidence, np.float64)
    shares = np.exp(repeats - repeats.max())
    return {
        "wall_seconds": [round(run.wall, 1), round(seconds[0], 1)],
        "processor_seconds": [round(run.cpu, 1), round(seconds[1], 1)],
        "pixels_compared": int(compared.sum()),
        "largest_gap_elsewhere": float(np.max(np.abs(gap[~compared]), initial=0.0)),
        "largest_z": float(np.max(np.abs(z))),
        "mean_square_z": float(np.mean(np.square(z))),
        "z": [round(float(value), 2) for value in z],
        "gap_rms": float(np.sqrt(np.mean(np.square(gap)))),
        "se_rms": {"chain": float(np.sqrt(np.mean(se**2))), "filter": float(np.sqrt(np.mean(filter_se**2)))},
        "sd_rms": float(np.sqrt(np.mean(spread**2))),
        "ess_pixels": [float(np.nanmin(size)), float(np.nanmedian(size))],
        "r_hat_pixels": float(np.max(split_gelman_rubin(hidden[:, :, ~sure]))),
        "log_evidence": {"mean": float(posterior.log_evidence.mean), "se": float(posterior.log_evidence.se)},
        "repeats_that_count": float(shares.sum() ** 2 / np.sum(shares**2)),
        "ess_filter_last": np.asarray(posterior.particles.ess)[:, 0].round(1).tolist(),
        "ancestors": np.asarray(posterior.particles.num_ancestors)[:, 0].tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a saved digits model")
    parser.add_argument("--num-steps", type=int, default=100, help="T after respacing")
    parser.add_argument("--num-particles", type=int, default=16)
    parser.add_argument("--num-sweeps", type=int, default=200, help="per chain, half of them warm-up")
    parser.add_argument(
        "--fixed-scale", action="store_true", help="compare means with ParticlePosterior's, the scale known"
    )
    parser.add_argument("--filter-particles", type=int, default=500)
    parser.add_argument("--filter-repeats", type=int, default=12)
    parser.add_argument("--digit", type=int, default=0, help="which holdout digit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digit_gibbs.json"))
    options = parser.parse_args()

    diffusion = models.respace(models.Diffusion.load(options.model), options.num_steps)
    x = jnp.asarray(data.digits().holdout[options.digit])
    key_noise, key_run = jax.random.split(jax.random.key(options.seed))
    y = x[:4] + SCALE * jax.random.normal(key_noise, (4, 8))
    measure = fixed_scale if options.fixed_scale else unknown_scale
    shared = ("seed", "num_steps", "num_particles", "num_sweeps", "digit")
    result = {name: getattr(options, name) for name in shared} | measure(diffusion, key_run, y, options)
    print(json.dumps(result, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
