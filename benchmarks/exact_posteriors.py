r"""Posteriors by particles where they are known exactly: linear-Gaussian chains, and bits few enough to enumerate.

Run from the repository with `python -m benchmarks.exact_posteriors`; the closed forms are those of the tests.

*Linear-Gaussian.* 20 random priors of 3 coordinates, T = 8, each with a random observation of two linear combinations: the largest
deviation of the mean, the covariance and Z from the truth in standard errors, over all instances and entries, and the root mean
square of those deviations, which is 1 where there is no bias. The paper's method, 20,000 draws, beside them.

*Bits.* 8 of them, T = 20, random weights, $\log r \sim 0.5\, \mathcal N(0, 1)$ over the 256 states: total variation of 4,096
weighted particles over that of as many exact draws, and $Z / Z_\text{exact}$ over 100 runs.
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from nedm_ppl import inference, models
from nedm_ppl.inference import multiply
from nedm_ppl.inference.posterior import particle_filter
from tests.exact import bits_log_prob
from tests.zoo import LINEAR_PROCESS, diagonal, observed

NUM_INSTANCES, NUM_RUNS, NUM_PARTICLES, NUM_DRAWS = 20, 100, 1000, 20_000
DIM, NUM_STEPS, NUM_BIT_PARTICLES = 8, 20, 4096
PLACES = 2.0 ** np.arange(DIM)[::-1]


def deviations(draws: np.ndarray, truth: Any) -> np.ndarray:
    """How many standard errors the mean over the first axis is from the truth, flat."""
    return ((draws.mean(axis=0) - truth) / (draws.std(axis=0, ddof=1) / np.sqrt(len(draws)))).ravel()


def linear_gaussian() -> Table:
    """Every instance by the filter, with both covariances, and by the paper's method."""

    @eqx.filter_jit
    def run(keys: jax.Array, target: Any) -> inference.posterior.Particles:
        return jax.lax.map(lambda key: particle_filter(key, target, NUM_PARTICLES), keys)

    @eqx.filter_jit
    def paper(key: jax.Array, target: Any) -> jax.Array:
        return target.sample(key, (NUM_DRAWS,))

    found: dict[str, list[list[np.ndarray]]] = {"diagonal": [], "jacobian": [], "the paper's": []}
    for seed in range(NUM_INSTANCES):
        arrays, (y, matrix, noise), (mean, cov, log_z) = observed(seed)
        diffusion, r = diagonal(LINEAR_PROCESS, *arrays), inference.LinearObservation(y, matrix, covariance=noise)
        upper = np.triu_indices(len(mean))
        for how in ("diagonal", "jacobian"):
            keys = jax.random.split(jax.random.key(seed), NUM_RUNS)
            particles = run(keys, multiply(diffusion, r, along=inference.Lookahead(how)))
            z = np.exp(np.asarray(particles.log_evidence, np.float64) - log_z)
            weights, x = np.exp(np.asarray(particles.log_weights, np.float64)), np.asarray(particles.x, np.float64)
            # Z times a mean over particles is unbiased for Z times the posterior's, run by run.
            first = z[:, None] * (np.einsum("rn,rnd->rd", weights, x) - mean)
            second = np.einsum("rn,rnd,rne->rde", weights, x - mean, x - mean) - cov
            second = z[:, None] * second[:, *upper]
            found[how].append([deviations(first, 0.0), deviations(second, 0.0), deviations(z, 1.0)])
        draws = np.asarray(paper(jax.random.key(seed), multiply(diffusion, r)), np.float64)
        products = np.einsum("nd,ne->nde", draws - mean, draws - mean)[:, *upper]
        found["the paper's"].append([deviations(draws, mean), deviations(products, cov[upper])])
    title = f"linear-Gaussian, {NUM_INSTANCES} instances, {NUM_RUNS} runs of {NUM_PARTICLES} particles"
    table = Table("method", "mean", "covariance", "Z", title=f"{title}: standard errors off, rms (largest)")
    for name, rows in found.items():
        parts = [np.concatenate(part) for part in zip(*rows, strict=True)]
        cells = [f"{np.sqrt(np.mean(part**2)):.2f} ({np.abs(part).max():.2f})" for part in parts]
        table.add_row(name, *cells, *["has none"] * (3 - len(cells)))
    return table


def bits_diffusion(kernel: type, seed: int) -> models.Diffusion:
    """A network with random weights under a kernel of bits."""
    rng = np.random.default_rng(seed)
    network = models.networks.ResidualMLP((DIM,), (DIM,), NUM_STEPS, width=32, depth=1, key=jax.random.key(seed))
    network = jax.tree.map(
        lambda x: x + rng.normal(0.0, 0.3, x.shape).astype(x.dtype) if eqx.is_inexact_array(x) else x, network
    )
    process = models.BernoulliDiffusion((DIM,), models.schedules.erasing(NUM_STEPS), rate=0.4)
    return models.Diffusion(process, kernel(network), first_step="learned")


def bits(num_seeds: int, thresholds: list[float]) -> Table:
    """Every kernel and choice of r along the chain."""

    @eqx.filter_jit
    def run(keys: jax.Array, diffusion: models.Diffusion, log_r: jax.Array, along: str, threshold: float) -> Any:
        def function(x: jax.Array) -> jax.Array:
            return log_r[jnp.round(x @ jnp.asarray(PLACES, float)).astype(int)]

        target = multiply(diffusion, function, along=along)
        return jax.lax.map(lambda key: particle_filter(key, target, NUM_BIT_PARTICLES, threshold=threshold), keys)

    table = Table(
        "kernel", "seed", "along", "resampled below", "total variation / exact draws'", "Z / exact", title="8 bits"
    )
    for kernel in (models.FlipRate, models.BitPrediction):
        for seed in range(num_seeds):
            diffusion = bits_diffusion(kernel, seed)
            log_r = 0.5 * np.random.default_rng(100 + seed).normal(size=2**DIM)
            joint = np.exp(bits_log_prob(diffusion) + log_r)
            law, z = joint / joint.sum(), joint.sum()
            counts = np.random.default_rng(0).multinomial(NUM_BIT_PARTICLES, law, size=400) / NUM_BIT_PARTICLES
            floor = 0.5 * np.abs(counts - law).sum(axis=1).mean()
            for along in ("constant", "power", "lookahead"):
                for threshold in thresholds:
                    keys = jax.random.split(jax.random.key(seed), NUM_RUNS)
                    particles = run(keys, diffusion, jnp.asarray(log_r, float), along, threshold)
                    index = np.round(np.asarray(particles.x) @ PLACES).astype(int)
                    weights = np.exp(np.asarray(particles.log_weights, np.float64))
                    masses = [np.bincount(*row, 2**DIM) for row in zip(index, weights, strict=True)]
                    ratio = 0.5 * np.abs(np.stack(masses) - law).sum(axis=1) / floor
                    relative = np.exp(np.asarray(particles.log_evidence, np.float64)) / z
                    cells = [f"{v.mean():.4g} ± {v.std(ddof=1) / np.sqrt(NUM_RUNS):.2g}" for v in (ratio, relative)]
                    table.add_row(kernel.__name__, str(seed), along, f"{threshold:g}", *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Particle posteriors against exact ones.")
    parser.add_argument("--seeds", type=int, default=3, help="random networks per kernel of bits")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.9], help="shares of the particles")
    args = parser.parse_args()
    Console().print(linear_gaussian())
    Console().print(bits(args.seeds, args.thresholds))


if __name__ == "__main__":
    main()
