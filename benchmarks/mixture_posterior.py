r"""Posteriors under a 25-component Gaussian mixture prior and a linear measurement, against the exact ones.

Run with `python benchmarks/mixture_posterior.py`; `--small` takes less than a minute. Results are saved as JSON after every row.

The prior has unit covariances and means $(-8i, -8j, -8i, -8j, \dots)$, i, j in -2..2; $y = A x + \sigma_y \epsilon$. The
diffusion knows of it only the score of the noised mixture and the diagonal of its derivative, as $E[x_0 | x_t]$ and
$\mathrm{Var}[x_0 | x_t]$. Compared are

1. the particle filter (`along="lookahead"`, covariance by the Jacobian), resampled to 2,000 draws;
2. the paper's multiplied chain (`along="constant"`), which is approximate and has no weights;
3. the floor: 2,000 exact draws against 2,000 others,

by the sliced Wasserstein-1 distance to 2,000 exact draws over 100 slices, and log Z by its absolute error in nats; medians and
quartiles over instances.

`--protocol` is the comparison that others have published (Cardoso et al., Monte Carlo Guided Denoising Diffusion Models for
Bayesian Linear Inverse Problems, 2024): dx = 8, 1,000 independent filters of 128 particles, one draw from each, against 10,000
exact draws by the maximum over slices of the Wasserstein-2 distance.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from nedm_ppl import inference, models

NUM_DRAWS, NUM_SLICES = 2000, 100
AHEAD = inference.Lookahead(covariance="jacobian")
PROTOCOL_PARTICLES, PROTOCOL_RUNS, PROTOCOL_TRUTH = 128, 1000, 10_000


class Instance(NamedTuple):
    """A prior's weights and a measurement: log w (25,), A (dy, dx), sigma_y and y (dy,)."""

    log_weights: np.ndarray
    matrix: np.ndarray
    scale: float
    y: np.ndarray


class MixtureMoments(eqx.Module):
    r"""Mean of $x_0$ given $x_t$ and $\log[V / (1 - \bar\alpha_t)]$, for unit covariances: shape (2, dx)."""

    log_weights: Array
    means: Array
    alpha_bar: Array

    def __call__(self, t: Array, x: Array) -> Array:
        a = self.alpha_bar[t]
        # Squares multiplied out, for products of matrices over particles: |x|^2 is the same for every component.
        shares = self.log_weights + jnp.sqrt(a) * (self.means @ x) - 0.5 * a * jnp.sum(jnp.square(self.means), axis=-1)
        share = jax.nn.softmax(shares)
        mean = share @ self.means
        spread = jnp.maximum(share @ jnp.square(self.means) - jnp.square(mean), 0.0)
        return jnp.stack([jnp.sqrt(a) * x + (1.0 - a) * mean, jnp.log1p((1.0 - a) * spread)])


def component_means(dx: int) -> np.ndarray:
    return np.array([[-8.0 * i, -8.0 * j] * (dx // 2) for i in range(-2, 3) for j in range(-2, 3)])


def instance(seed: int, dx: int, dy: int) -> Instance:
    rng = np.random.default_rng((seed, dx, dy))
    weights = np.square(rng.normal(size=25))
    left, _, right = np.linalg.svd(rng.normal(size=(dy, dx)), full_matrices=False)
    values = np.sort(rng.uniform(size=dy))[::-1]
    matrix, scale = (left * values) @ right, rng.uniform() * values.max()
    x = component_means(dx)[rng.choice(25, p=weights / weights.sum())] + rng.normal(size=dx)
    return Instance(np.log(weights / weights.sum()), matrix, scale, matrix @ x + scale * rng.normal(size=dy))


def exact(case: Instance, rng: np.random.Generator, num: int) -> tuple[np.ndarray, float]:
    """Draws of the exact posterior, shape (num, dx), and log Z."""
    log_w, a, scale, y = case
    dx, means = a.shape[1], component_means(a.shape[1])
    covariance = a @ a.T + scale**2 * np.eye(len(y))
    terms = log_w + np.array([multivariate_normal.logpdf(y, a @ m, covariance) for m in means])
    gain = a.T @ np.linalg.inv(covariance)
    root = np.linalg.cholesky(np.eye(dx) - gain @ a)
    share = np.exp(terms - logsumexp(terms))
    chosen = (means + (y - means @ a.T) @ gain.T)[rng.choice(25, size=num, p=share / share.sum())]
    return chosen + rng.normal(size=(num, dx)) @ root.T, float(logsumexp(terms))


def slices(rng: np.random.Generator, dx: int, num: int) -> np.ndarray:
    """Random unit vectors, shape (dx, num)."""
    directions = rng.normal(size=(dx, num))
    return directions / np.linalg.norm(directions, axis=0)


def sliced_wasserstein(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> float:
    """Mean over 100 slices of the Wasserstein-1 distance of two sets of equal size."""
    directions = slices(rng, first.shape[1], NUM_SLICES)
    return float(np.mean(np.abs(np.sort(first @ directions, axis=0) - np.sort(second @ directions, axis=0))))


def max_sliced_wasserstein(truth: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> float:
    """Maximum over 1,000 slices of the Wasserstein-2 distance; `truth` has a multiple of the size of `draws`."""
    directions = slices(rng, truth.shape[1], 1000)
    repeated = np.repeat(np.sort(draws @ directions, axis=0), len(truth) // len(draws), axis=0)
    return float(np.sqrt(np.max(np.mean(np.square(np.sort(truth @ directions, axis=0) - repeated), axis=0))))


def schedule(num_times: int) -> models.schedules.Schedule:
    """Rates .02 to 1e-4 in decreasing order, respaced: `num_times` of the indices 0..999, of which 0 is the datum itself."""
    log_alpha_bar = np.append(0.0, np.cumsum(np.log1p(-np.linspace(0.02, 1e-4, 999))))
    log_alpha_bar = log_alpha_bar[np.linspace(0, 999, num_times).astype(int)[1:]]
    return models.schedules.from_alpha_bar(np.exp(log_alpha_bar), one_minus=-np.expm1(log_alpha_bar))


def posterior(case: Instance, num_times: int, *, rank: int = 0, **options: Any) -> inference.MultipliedDiffusion:
    process = models.GaussianDiffusion((case.matrix.shape[1],), schedule(num_times))
    network = MixtureMoments(
        jnp.asarray(case.log_weights), jnp.asarray(component_means(case.matrix.shape[1])), process.schedule.alpha_bar
    )
    diffusion = models.Diffusion(process, models.DataPrediction(network), first_step="learned")
    if rank:
        diffusion = models.correlated(diffusion, rank)
    r = inference.LinearObservation(case.y, case.matrix, scale=case.scale)
    return inference.multiply(diffusion, r, **options)


@eqx.filter_jit
def run_filter(key: Array, target: inference.MultipliedDiffusion, num_particles: int) -> inference.posterior.Particles:
    return inference.posterior.particle_filter(key, target, num_particles)


@eqx.filter_jit
def run_paper(key: Array, target: inference.MultipliedDiffusion) -> Array:
    return target.sample(key, (NUM_DRAWS,))


def measure(dx: int, dy: int, num_particles: int, num_times: int, num_instances: int, rank: int = 0) -> dict[str, Any]:
    """Every instance's floor, distances, error of log Z and seconds."""
    row: dict[str, Any] = {
        "dx": dx, "dy": dy, "num_particles": num_particles, "num_times": num_times, "rank": rank,
        "floor": [], "filter": [], "paper": [], "log_z_error": [], "seconds": [],
    }  # fmt: skip
    for seed in range(num_instances):
        case, rng, key = instance(seed, dx, dy), np.random.default_rng(seed), jax.random.key(seed)
        truth, log_z = exact(case, rng, 2 * NUM_DRAWS)
        first, second = truth[:NUM_DRAWS], truth[NUM_DRAWS:]
        start = time.perf_counter()
        target = posterior(case, num_times, rank=rank, along="lookahead" if rank else AHEAD)
        particles = jax.block_until_ready(run_filter(key, target, num_particles))
        row["seconds"].append(time.perf_counter() - start)  # the first one compiles
        weights = np.exp(np.asarray(particles.log_weights, np.float64))
        draws = np.asarray(particles.x)[rng.choice(num_particles, size=NUM_DRAWS, p=weights / weights.sum())]
        paper = np.asarray(run_paper(key, posterior(case, num_times, along="constant")))
        row["floor"].append(sliced_wasserstein(first, second, rng))
        row["filter"].append(sliced_wasserstein(first, draws, rng))
        row["paper"].append(sliced_wasserstein(first, paper, rng))
        row["log_z_error"].append(float(particles.log_evidence) - log_z)
    return row


@eqx.filter_jit
def run_many(keys: Array, target: inference.MultipliedDiffusion) -> Array:
    """One draw from each of many independent filters, shape (num, dx)."""

    def one(key: Array) -> Array:
        key_filter, key_choice = jax.random.split(key)
        particles = inference.posterior.particle_filter(key_filter, target, PROTOCOL_PARTICLES)
        return particles.x[jax.random.categorical(key_choice, particles.log_weights)]

    return jax.vmap(one)(keys)


def measure_protocol(dy: int, num_instances: int) -> dict[str, Any]:
    """The published comparison: distances of the filters' draws and of as many exact draws, per instance."""
    row: dict[str, Any] = {"dx": 8, "dy": dy, "floor": [], "filter": []}
    for seed in range(num_instances):
        case, rng = instance(seed, 8, dy), np.random.default_rng(seed)
        truth, _ = exact(case, rng, PROTOCOL_TRUTH + PROTOCOL_RUNS)
        target = posterior(case, 100, along=AHEAD)
        keys = jax.random.split(jax.random.key(seed), (10, PROTOCOL_RUNS // 10))
        draws = np.concatenate([np.asarray(run_many(part, target)) for part in keys])
        row["floor"].append(max_sliced_wasserstein(truth[:PROTOCOL_TRUTH], truth[PROTOCOL_TRUTH:], rng))
        row["filter"].append(max_sliced_wasserstein(truth[:PROTOCOL_TRUTH], draws, rng))
    return row


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the printed table: medians, quartiles in brackets."""

    def cell(values: Any) -> str:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        return f"{middle:.3f} [{low:.3f}, {high:.3f}]"

    return [
        [
            f"{row['dx']}, {row['dy']}", str(row["num_particles"]), str(row["num_times"]),
            *(cell(row[name]) for name in ("floor", "filter", "paper")),
            f"{np.median(row['filter']) / np.median(row['floor']):.2f}",
            cell(np.abs(row["log_z_error"])), f"{np.median(row['seconds'][1:]):.2f}",
        ]
        for row in rows
    ]  # fmt: skip


def protocol(measurements: list[int], num_instances: int, output: Path) -> None:
    """Run the published comparison and print means and medians over instances."""
    shown, rows = Table("dx, dy", "instances", "floor, mean", "filter, mean", "floor, median", "filter, median"), []
    for dy in measurements:
        rows.append(measure_protocol(dy, num_instances))
        output.write_text(json.dumps(rows))
        numbers = [f"{kind(rows[-1][name]):.3f}" for kind in (np.mean, np.median) for name in ("floor", "filter")]
        shown.add_row(f"8, {dy}", str(num_instances), *numbers)
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description="Posteriors under a mixture prior against the exact ones.")
    parser.add_argument("--small", action="store_true", help="dx = 8, 1,000 particles and 4 instances only")
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 80])
    parser.add_argument("--measurements", type=int, nargs="+", default=[1, 2, 4], help="dy")
    parser.add_argument("--times", type=int, default=100, help="indices of 0..999, ends included")
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument(
        "--rank", type=int, default=0, help="directions of models.correlated, at most dx; 0 for independent steps"
    )
    parser.add_argument("--protocol", action="store_true", help="the published comparison instead")
    parser.add_argument("--output", type=Path, default=Path("mixture_posterior.json"))
    args = parser.parse_args()
    if args.protocol:
        return protocol(args.measurements, args.instances, args.output)
    if args.small:
        args.particles, args.dims, args.instances = [1000], [8], 4
    rows = []
    for num_particles in args.particles:
        for dx in args.dims:
            for dy in args.measurements:
                rows.append(measure(dx, dy, num_particles, args.times, args.instances, min(args.rank, dx)))
                args.output.write_text(json.dumps(rows))
                print(*table(rows[-1:])[0], sep=" | ", flush=True)
    output = Table("dx, dy", "particles", "T", "floor", "filter", "paper", "filter / floor", "log Z error", "seconds")
    for cells in table(rows):
        output.add_row(*cells)
    Console().print(output)


if __name__ == "__main__":
    main()
