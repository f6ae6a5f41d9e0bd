"""A diffusion prior inside a conjugate hierarchical program, by its flow and by its path: against the exact posterior.

Run with `python benchmarks/composition.py`. The program is

    mu ~ N(0, 1),   x ~ diffusion given mu (its data are N(m + b mu, S)),   a ~ N(0, 1),   y_i ~ N(x + a, 0.6^2), i = 1..3

with Gaussian kernels, so that the posterior of (mu, x, a) is Gaussian and known; mu is upstream of the prior, a is not. NUTS runs
two chains through every route. Printed is how far each posterior moment (means, variances, covariances) is from the exact
one, in its own Monte Carlo standard errors (effective sample size of that moment), the largest r-hat, and divergences. The exact
posterior is that of the route's own law of x given mu, taken from its affine map of noise.

A second table times draws of a program with the prior under `Predictive` against ancestral sampling alone, rounds
alternating, both compiled, in processor time, which a busy machine disturbs less than a clock.
"""

import argparse
import math
import os
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import TransformReparam
from rich.console import Console
from rich.table import Table

from nedm_ppl import models
from nedm_ppl.models._path import path_end

MEAN, SLOPE = np.array([0.3, -0.2]), np.array([0.8, -0.4])
COV = np.array([[0.5, 0.2], [0.2, 0.7]])
NOISE, Y = 0.6, np.array([[0.9, 0.4], [1.3, -0.2], [0.2, 0.6]])
NUM_STEPS, ROUNDS = 8, 25
Route = Callable[[models.Diffusion], jax.Array]


class Reversal(eqx.Module):
    """The exact reversal of data N(MEAN + SLOPE mu, COV), as a callable (t, x, mu) -> Distribution."""

    weight: jax.Array
    offset: jax.Array
    scale_tril: jax.Array

    def __init__(self, schedule: models.schedules.Schedule):
        betas, eye = np.asarray(schedule.betas, float), np.eye(2)
        alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
        weights, offsets, scales = [], [], []
        for beta, before, now in zip(betas, alpha_bar, alpha_bar[1:], strict=False):
            cov, later = before * COV + (1.0 - before) * eye, now * COV + (1.0 - now) * eye
            weight = np.sqrt(1.0 - beta) * cov @ np.linalg.inv(later)
            weights.append(weight)
            offsets.append(np.sqrt(before) * eye - np.sqrt(now) * weight)
            scales.append(np.linalg.cholesky(cov - weight @ later @ weight.T))
        self.weight, self.offset, self.scale_tril = (jnp.asarray(np.stack(part)) for part in (weights, offsets, scales))

    def __call__(self, t: jax.Array, x: jax.Array, mu: jax.Array) -> dist.Distribution:
        mean = MEAN + SLOPE * mu[..., None]
        loc = jnp.einsum("ij,...j->...i", self.weight[t - 1], x) + jnp.einsum("ij,...j->...i", self.offset[t - 1], mean)
        return dist.MultivariateNormal(loc, scale_tril=self.scale_tril[t - 1])


def build(num_steps: int) -> models.Diffusion:
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(num_steps, end=-8.0))
    reverse = models.Conditional(Reversal(process.schedule), 0.0)
    return models.Diffusion(process, reverse, first_step="learned")


def through_flow(diffusion: models.Diffusion) -> jax.Array:
    return numpyro.sample("x", diffusion.flow(rtol=1e-4, atol=1e-4))


def through_path(diffusion: models.Diffusion, *, centered: bool) -> jax.Array:
    return models.sample_path("x", diffusion, centered=centered)


ROUTES = {
    "path, as noise": (lambda diffusion: through_path(diffusion, centered=False), False),
    "path, centered": (lambda diffusion: through_path(diffusion, centered=True), False),
    "flow": (through_flow, False),
    "flow, TransformReparam": (through_flow, True),
}


def affine(route: Route, diffusion: models.Diffusion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offset, slope and covariance of the law of x given mu that the route samples from, from its own affine map of noise."""
    shape = (2,) if route is through_flow else (diffusion.num_steps + 1, 2)

    def data(mu: float, noise: jax.Array) -> np.ndarray:
        given = diffusion.given(mu)
        flow = route is through_flow
        return np.asarray(given.flow().transforms[0](noise) if flow else path_end(given, noise))

    none, units = jnp.zeros((1, *shape)), jnp.eye(math.prod(shape)).reshape(-1, *shape)
    base = data(0.0, none)[0]
    columns = data(0.0, units) - base
    return base, data(1.0, none)[0] - base, columns.T @ columns


def posterior(offset: np.ndarray, slope: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (mu, x, a) given Y: conditioning of their joint Gaussian with y."""
    mean = np.concatenate([[0.0], offset, [0.0]])
    prior = np.zeros((4, 4))
    prior[0, 0] = prior[3, 3] = 1.0
    prior[0, 1:3] = prior[1:3, 0] = slope
    prior[1:3, 1:3] = cov + np.outer(slope, slope)
    design = np.tile(np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]), (len(Y), 1))
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + NOISE**2 * np.eye(2 * len(Y)))
    return mean + gain @ (Y.ravel() - design @ mean), prior - gain @ design @ prior


def moments(draws: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every posterior moment's error in standard errors, and effective sample sizes, of draws (chains, num, 4)."""
    centered = draws - mean
    upper = np.triu_indices(4)
    products = centered[..., upper[0]] * centered[..., upper[1]]
    values = np.concatenate([centered, products - cov[upper]], axis=-1)
    size = np.asarray(effective_sample_size(values))
    return np.abs(values.mean((0, 1))) / (values.std((0, 1)) / np.sqrt(size)), size


def run_routes(num_samples: int, num_chains: int, seed: int) -> Table:
    table = Table(
        "route",
        "moments",
        "largest error, s.e.",
        "worst r-hat",
        "least ESS",
        "divergences",
        "gradients a draw",
        "seconds, of the processor",
        title=f"NUTS against the exact posterior, T = {NUM_STEPS}; {num_chains} chains x {num_samples:,} draws, seed {seed}",
    )
    diffusion = build(NUM_STEPS)
    for name, (route, reparam) in ROUTES.items():

        def program(route: Route = route) -> None:
            mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
            x = route(diffusion.given(mu))
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x + a, NOISE).expand(Y.shape).to_event(2), obs=Y)

        model = numpyro.handlers.reparam(program, config={"x": TransformReparam()}) if reparam else program
        mcmc = MCMC(
            NUTS(model),
            num_warmup=num_samples // 4,
            num_samples=num_samples,
            num_chains=num_chains,
            # Under vmap every chain would take the deepest tree and the most solver steps of them all.
            chain_method="sequential",
            progress_bar=False,
        )
        start, cpu_start = time.perf_counter(), os.times().user
        mcmc.run(jax.random.key(seed), extra_fields=("diverging", "num_steps"))
        sites, fields = mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields()
        seconds, cpu = time.perf_counter() - start, os.times().user - cpu_start
        draws = np.concatenate(
            [np.asarray(sites["mu"])[..., None], np.asarray(sites["x"]), np.asarray(sites["a"])[..., None]], axis=-1
        ).astype(float)
        errors, size = moments(draws, *posterior(*affine(route, diffusion)))
        table.add_row(
            name,
            str(len(errors)),
            f"{errors.max():.2f}",
            f"{np.max(gelman_rubin(draws)):.4f}",
            f"{size.min():.0f}",
            str(int(np.sum(fields["diverging"]))),
            f"{np.mean(fields['num_steps']):.1f}",
            f"{seconds:.0f}, {cpu:.0f}",
        )
    return table


def run_predictive(num_samples: int) -> Table:
    """Draws of a program with the prior against `diffusion.sample`, a residual network of width 128 on 16 coordinates."""
    process = models.GaussianDiffusion((16,), models.schedules.log_snr_linear(200))
    network = models.networks.ResidualMLP((16,), (2, 16), 200, key=jax.random.key(0))
    diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")

    def program(diffusion: models.Diffusion) -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x, scale).to_event(1))

    @eqx.filter_jit
    def predictive(diffusion: models.Diffusion) -> dict:
        return Predictive(program, num_samples=num_samples, parallel=True)(jax.random.key(0), diffusion)

    @eqx.filter_jit
    def ancestral(diffusion: models.Diffusion) -> jax.Array:
        return diffusion.sample(jax.random.key(0), (num_samples,))

    times = np.empty((ROUNDS + 1, 2))
    for i in range(ROUNDS + 1):
        for j, draw in enumerate((predictive, ancestral)):
            start = time.process_time()
            jax.block_until_ready(draw(diffusion))
            times[i, j] = time.process_time() - start
    times = times[1:]  # the first round compiles
    ratios = times[:, 0] / times[:, 1]
    spread = 1.2533 * ratios.std(ddof=1) / math.sqrt(ROUNDS)
    table = Table(
        "draws",
        "Predictive, ms of processor",
        "ancestral, ms",
        "ratio",
        title="A program with diffusion.prior(), T = 200",
    )
    ours, alone = 1e3 * np.median(times, axis=0)
    table.add_row(f"{num_samples:,}", f"{ours:.0f}", f"{alone:.0f}", f"{np.median(ratios):.3f} ± {spread:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-samples", type=int, default=2000, help="draws per chain")
    parser.add_argument("--num-chains", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--routes-only", action="store_true", help="leave out the draws under Predictive")
    arguments = parser.parse_args()
    console = Console()
    if not arguments.routes_only:
        console.print(run_predictive(1000))
    console.print(run_routes(arguments.num_samples, arguments.num_chains, arguments.seed))


if __name__ == "__main__":
    main()
