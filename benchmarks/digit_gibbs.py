"""Half a handwritten digit through noise of unknown scale, by particle Gibbs: the trained prior and NUTS in one program.

Run with `python benchmarks/digit_gibbs.py MODEL`, the folder of a model that `nedm run digits` saved. The model is respaced to 100
steps; the upper half of a holdout digit is observed with noise of standard deviation 0.3 (of the pooled standard deviation), the
lower half is hidden, and the scale of the noise is unknown. Two chains of 200 sweeps, 100 of them warm-up.

Reported are seconds after compilation, wall and processor, and effective sample sizes and r-hat over both chains of the noise scale
and of what is inferred of the hidden half.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import NUTS, Gibbs

from nedm_ppl import data, inference, models

SCALE = 0.3


def program(diffusion: models.Diffusion) -> Any:
    """The digit, the unknown scale and the upper half seen through noise."""

    def half_seen(y: Array) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x[:4], scale).to_event(2), obs=y)

    return half_seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a saved digits model")
    parser.add_argument("--num-steps", type=int, default=100, help="T after respacing")
    parser.add_argument("--num-particles", type=int, default=16)
    parser.add_argument("--num-sweeps", type=int, default=200, help="per chain, half of them warm-up")
    parser.add_argument("--digit", type=int, default=0, help="which holdout digit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digit_gibbs.json"))
    options = parser.parse_args()

    diffusion = models.respace(models.Diffusion.load(options.model), options.num_steps)
    x = jnp.asarray(data.digits().holdout[options.digit])
    key_noise, key_run = jax.random.split(jax.random.key(options.seed))
    y = x[:4] + SCALE * jax.random.normal(key_noise, (4, 8))
    model = program(diffusion)
    kernel = Gibbs([(inference.PathGibbs(model, num_particles=options.num_particles), ["x"]), (NUTS(model), None)])

    sweep = jax.jit(lambda state: kernel.sample(state, (y,), {}))
    chains, moved, wall, cpu, compiled = [], [], 0.0, 0.0, None
    warmup = options.num_sweeps // 2
    for key in jax.random.split(key_run, 2):
        # What MCMC does with the kernel, one chain after the other, compiled before the clock starts.
        state = kernel.init(key, warmup, None, (y,), {})
        compiled = sweep.lower(state).compile() if compiled is None else compiled
        start, cpu_start = time.perf_counter(), os.times().user
        rows = []
        for _ in range(options.num_sweeps):
            state = compiled(state)
            rows.append((np.exp(state.z["scale"]), np.asarray(state.z["x"]), np.asarray(state.block_states[0].moved)))
        wall, cpu = wall + time.perf_counter() - start, cpu + os.times().user - cpu_start
        chains.append(([row[0] for row in rows[warmup:]], [row[1] for row in rows[warmup:]]))
        moved.append([row[2] for row in rows])
    scale, image = (np.asarray([chain[i] for chain in chains]) for i in (0, 1))
    ink = image[:, :, 4:].sum(axis=(2, 3))
    shares = np.mean(moved, axis=(0, 1))
    result = {
        "seed": options.seed,
        "num_steps": options.num_steps,
        "num_particles": options.num_particles,
        "sweeps_per_chain": options.num_sweeps,
        "wall_seconds": round(wall, 1),
        "processor_seconds": round(cpu, 1),
        "scale": {"mean": float(scale.mean()), "sd": float(scale.std()), "truth": SCALE},
        "ess_scale": float(effective_sample_size(scale)),
        "r_hat_scale": float(split_gelman_rubin(scale)),
        "ess_hidden_ink": float(effective_sample_size(ink)),
        "r_hat_hidden_ink": float(split_gelman_rubin(ink)),
        "moved": {str(t): round(float(shares[t]), 3) for t in range(0, options.num_steps + 1, options.num_steps // 10)},
    }
    print(json.dumps(result, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
