r"""Twenty programs as people write them, on every route to their posterior, against quadrature.

Run from the repository with `python -m benchmarks.programs`. Every program has N(0, I) for its prior, the law of a chain of noise,
so that its evidence and its means are integrals over one or two coordinates. Two schedules, T = 4 and T = 40:

- `ParticlePosterior`, 16 repeats of 1,000 particles: log Z and the means of x, the verdict, and how far one repeat alone is off;
- `PathGibbs`, 16 chains of 300 sweeps with 16 particles: the means of x;
- `ParticleMetropolis`, 16 chains of 500 steps with 50 particles: the same program with a slope, law(slope x) and
  slope ~ N(1, .3^2), as one more latent: the means of the slope and of x.

The standard error of a number is that of 16 independent repeats or chains, so that its deviation follows Student's law with 15
degrees of freedom. A number misses if its p-value is below FAILURE_RATE over the number of all comparisons. A miss that nothing
warns of is a silent miss. The verdict of chains: R-hat of every site at most 1.1, an effective size of at least 100, a fifth of
all steps moves.

Each finished run is a line of the file that `--out` names; a second call goes on where the first stopped.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC
from rich.console import Console
from rich.table import Table
from scipy import stats
from tqdm import tqdm

from nedm_ppl import models
from nedm_ppl.inference import ParticleMetropolis, ParticlePosterior, PathGibbs
from tests.test_programs import PROGRAMS as TESTED
from tests.test_programs import normal
from tests.zoo import noise_of

FAILURE_RATE = 0.05
NUM_REPEATS, NUM_PARTICLES = 16, 1000
SLOPE = dist.Normal(1.0, 0.3)

Law = Callable[[jax.Array], dist.Distribution]


def contaminated(x: jax.Array) -> dist.Distribution:
    """Normal observations, a fifth of which are from a Cauchy law."""
    weights = dist.Categorical(probs=jnp.array([0.8, 0.2]))
    return dist.MixtureGeneral(weights, [dist.Normal(x, 0.2), dist.Cauchy(0.0, 1.0).expand([2])]).to_event(1)


def classes(x: jax.Array) -> dist.Distribution:
    """Ten draws of three classes whose logits are affine in x."""
    return dist.Categorical(logits=jnp.stack([x[0], x[1], -x[0] - x[1]])).expand([10]).to_event(1)


def sharp_gate(x: jax.Array) -> dist.Distribution:
    return dist.Normal(jnp.where(x[0] > 0.0, x, -x), 0.05).to_event(1)


PROGRAMS: dict[str, tuple[int, Law, Any]] = {name: (dim, law, y) for name, (dim, _, law, y) in TESTED.items()} | {
    "affine, loose": (2, *normal(lambda x: jnp.array([1.0, -0.5]) + 0.5 * x, 2.0, [0.4, 1.0])),
    "affine, sharp": (2, *normal(lambda x: x, 0.01, [0.7, -1.2])),
    "clipped, sharp": (2, *normal(lambda x: jnp.clip(x, -0.5, 0.5), 0.02, [0.48, -0.1])),
    "saturating, sharp": (1, *normal(jnp.tanh, 0.01, [0.4])),
    "counts": (1, lambda x: dist.Poisson(jnp.exp(x)).expand([20]).to_event(1), jnp.arange(20) % 4),
    "contaminated": (2, contaminated, jnp.array([0.9, -0.4])),
    "classes": (2, classes, jnp.array([0, 0, 1, 0, 2, 0, 0, 1, 0, 0])),
    "two signs": (2, sharp_gate, jnp.array([0.6, -0.3])),
}
SCHEDULES = {"log SNR": models.schedules.log_snr_linear, "erasing": models.schedules.erasing}
STEPS = 4, 40


def diffusion_of(dim: int, schedule: str, num_steps: int) -> models.Diffusion:
    return noise_of(models.GaussianDiffusion((dim,), SCHEDULES[schedule](num_steps)))


def program_of(name: str, diffusion: models.Diffusion, slope: bool = False) -> Callable[[], None]:
    _, law, y = PROGRAMS[name]

    def program() -> None:
        scale = numpyro.sample("slope", SLOPE) if slope else 1.0
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", law(scale * x), obs=y)

    return program


def truth_of(name: str, slope: bool = False) -> list[float]:
    """log Z and the means of x; with a slope the means of the slope and of x. On a grid; a second, coarser one must agree."""
    dim, law, y = PROGRAMS[name]
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(31) if slope else (np.zeros(1), np.ones(1))
    found = []
    for size in {1: (110_000, 88_000), 2: (1_540, 1_320)}[dim]:
        axis = -5.5 + 11.0 * (np.arange(size) + 0.5) / size  # middles of cells that end where programs jump
        x = jnp.asarray(np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim), float)
        prior = np.asarray(-0.5 * jnp.sum(x**2, -1), np.float64) - 0.5 * dim * np.log(2.0 * np.pi)
        log_r = jax.jit(lambda x, a: jax.vmap(lambda x: law(a * x).log_prob(y))(x))
        joint = np.stack([np.asarray(log_r(x, 1.0 + 0.3 * node), np.float64) + prior for node in nodes])
        joint += np.log(node_weights / node_weights.sum())[:, None]
        weights = np.exp(joint - joint.max())
        total = weights.sum()
        mean = weights.sum(0) @ np.asarray(x, np.float64) / total
        first = (weights.sum(1) @ (1.0 + 0.3 * nodes)) / total if slope else joint.max() + np.log(total)
        found.append([float(first if slope else first + dim * np.log(axis[1] - axis[0])), *map(float, mean)])
    np.testing.assert_allclose(*found, atol=2e-4)
    return found[0]


def p_values(found: np.ndarray, se: np.ndarray, truth: list[float]) -> list[float]:
    """Of numbers whose errors are those of NUM_REPEATS independent repeats; 1e-4 is what float32 and the grid may err by."""
    return (2.0 * stats.t.sf(np.abs(found - truth) / (se + 1e-4), NUM_REPEATS - 1)).tolist()


def by_particles(name: str, schedule: str, num_steps: int) -> dict[str, Any]:
    truth = truth_of(name)
    program = program_of(name, diffusion_of(PROGRAMS[name][0], schedule, num_steps))
    posterior = ParticlePosterior(program, num_particles=NUM_PARTICLES, num_repeats=NUM_REPEATS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior.run(jax.random.key(0))
    log_z, mean = posterior.log_evidence, posterior.mean
    numbers = np.array([float(log_z.mean), *np.ravel(mean.mean)])
    errors = np.array([float(log_z.se), *np.ravel(mean.se)])
    single = np.asarray(posterior.particles.log_evidence, np.float64) - truth[0]
    return {
        "truth": truth,
        "found": numbers.tolist(),
        "se": errors.tolist(),
        "p": p_values(numbers, errors, truth),
        "single": float(np.median(np.abs(single))),
        "warned": list(posterior.doubts),
    }


def by_chains(kernel: Any, truth: list[float], sites: list[str], num_samples: int) -> dict[str, Any]:
    mcmc = MCMC(
        kernel,
        num_warmup=num_samples // 4,
        num_samples=num_samples,
        num_chains=NUM_REPEATS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples(group_by_chain=True)
    values = np.concatenate(
        [np.asarray(draws[site], np.float64).reshape(NUM_REPEATS, num_samples, -1) for site in sites], -1
    )
    r_hat = float(np.max([gelman_rubin(values[..., i]) for i in range(values.shape[-1])]))
    size = float(np.min([effective_sample_size(values[..., i]) for i in range(values.shape[-1])]))
    moves = float(np.mean(np.any(values[:, 1:] != values[:, :-1], axis=-1)))
    warned = [f"R-hat {r_hat:.2f}"] * (not r_hat <= 1.1) + [f"effective size {size:.0f}"] * (not size >= 100)
    means = values.mean(axis=1)
    found, se = means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(NUM_REPEATS)
    return {
        "truth": truth,
        "found": found.tolist(),
        "se": se.tolist(),
        "p": p_values(found, se, truth),
        "warned": warned + [f"moves {moves:.2f}"] * (not moves >= 0.2),
    }


def by_gibbs(name: str, schedule: str, num_steps: int) -> dict[str, Any]:
    program = program_of(name, diffusion_of(PROGRAMS[name][0], schedule, num_steps))
    return by_chains(PathGibbs(program, num_particles=16), truth_of(name)[1:], ["x"], 300)


def by_metropolis(name: str, schedule: str, num_steps: int) -> dict[str, Any]:
    program = program_of(name, diffusion_of(PROGRAMS[name][0], schedule, num_steps), slope=True)
    kernel = ParticleMetropolis(program, num_particles=50)
    return by_chains(kernel, truth_of(name, slope=True), ["slope", "x"], 500)


ROUTES = {"ParticlePosterior": by_particles, "PathGibbs": by_gibbs, "ParticleMetropolis": by_metropolis}


def table(rows: list[dict[str, Any]]) -> Table:
    """What every run found: right, warned of, or a silent miss."""
    level = FAILURE_RATE / sum(len(row["p"]) for row in rows)
    shown = Table(
        "route", "schedule", "T", "runs", "silent misses", "warned, wrong", "warned, right", "median |log Z - truth|"
    )
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["route"], row["schedule"], row["num_steps"]), []).append(row)
    for key, group in groups.items():
        wrong = [min(row["p"]) < level for row in group]
        warned = [bool(row["warned"]) for row in group]
        silent = [row["name"] for row, w, v in zip(group, wrong, warned, strict=True) if w and not v]
        single = [row["single"] for row in group if "single" in row]
        shown.add_row(
            *map(str, key),
            str(len(group)),
            f"{len(silent)} {', '.join(silent)}",
            str(sum(w and v for w, v in zip(wrong, warned, strict=True))),
            str(sum(v and not w for w, v in zip(wrong, warned, strict=True))),
            f"{np.median(single):.4f}" if single else "",
        )
    shown.title = f"{level:.1e}: the p-value of a miss"
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/programs.jsonl"), help="a line for every run")
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=list(ROUTES))
    parser.add_argument("--steps", nargs="*", type=int, default=list(STEPS), help="T")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(row["route"], row["schedule"], row["num_steps"], row["name"]) for row in rows}
    runs = [(r, s, t, n) for r in args.routes for t in args.steps for s in SCHEDULES for n in PROGRAMS]
    for route, schedule, num_steps, name in tqdm(runs):
        if (route, schedule, num_steps, name) in done:
            continue
        start = time.perf_counter()
        row = {"route": route, "schedule": schedule, "num_steps": num_steps, "name": name}
        row |= ROUTES[route](name, schedule, num_steps)
        rows.append(row | {"seconds": time.perf_counter() - start})
        with args.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        if len(rows) % 8 == 0:
            jax.clear_caches()
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    main()
