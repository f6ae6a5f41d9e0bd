r"""Simulation-based calibration of two routes through a composed program: ranks of the truth among draws of its posterior.

Run with `python benchmarks/calibration.py`. The prior is a chain of 20 steps trained for a minute on two moons, blurred so that the
flow has no cliff between them, at which NUTS takes steps of a millionth; the program

    scale ~ LogNormal(-0.7, 0.5),   x ~ the diffusion,   y_i ~ N(x, scale^2), i = 1..3

has the noise scale and x as latents. For 500 data sets drawn from the program itself, latents and all, the posterior is sampled
and the rank of each true latent among its draws is taken. Where the sampler is right the rank is uniform, whatever the prior and
however little the data say (Talts et al., Validating Bayesian inference algorithms with simulation-based calibration, 2018). Beside
the coordinates of (scale, x) stands log p(y | scale, x), which notices what no coordinate does (Modrák et al., 2023).

- Particle Gibbs: x from the chain itself, by `PathGibbs` beside NUTS for the scale in numpyro's `Gibbs`.
- The flow under NUTS, through `TransformReparam`: another model, whose data sets are drawn from the flow.
- The controls are the same with a wrong weight: the last observation is counted twice, in the particles' weights alone, or in
  the flow's density. They must fail the test that the others must pass.

The test is a chi-square of the binned ranks, per quantity, at 1 % in all by Bonferroni's rule over the quantities of a run. Chains
run vmapped over data sets; draws are thinned, and the effective sample size of those kept is reported.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from matplotlib.figure import Figure
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import NUTS, Gibbs, Predictive
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.reparam import TransformReparam
from rich.console import Console
from rich.table import Table
from scipy import stats

from nedm_ppl import data, inference, models, plotting
from nedm_ppl.experiments import training_options

NUM_STEPS, NUM_OBSERVATIONS = 20, 3
BLUR = 0.3  # of the moons, in their standard deviation
NUM_DRAWS, NUM_BINS = 31, 16  # ranks 0..31, two to a bin
LEVEL = 0.01
QUANTITIES = ("scale", "x_1", "x_2", "log p(y | scale, x)")


def train(key: Array, num_steps: int) -> models.Diffusion:
    """Two moons, blurred, scaled to pooled mean 0 and variance 1."""
    key_network, key_fit, key_blur = jax.random.split(key, 3)
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(NUM_STEPS))
    network = models.networks.ResidualMLP((2,), (2, 2), NUM_STEPS, width=32, depth=2, key=key_network)
    diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
    mean, scale = data.plane_moments("moons")
    x0 = (data.plane(0, "moons", 50_000) - mean) / scale
    x0 = (x0 + BLUR * jax.random.normal(key_blur, x0.shape)) / np.sqrt(1.0 + BLUR**2)
    return inference.fit(key_fit, diffusion, x0, num_updates=num_steps, **training_options(num_steps)).diffusion


def composed(law: Callable[[], dist.Distribution]) -> Callable[..., None]:
    """The program, with x from a law."""

    def program(y: Array | None = None) -> None:
        scale = numpyro.sample("scale", dist.LogNormal(-0.7, 0.5))
        x = numpyro.sample("x", law())
        with numpyro.plate("observations", NUM_OBSERVATIONS if y is None else len(y)):
            numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    return program


def counted_twice(y: Array) -> Array:
    """The observations with the last one repeated."""
    return jnp.concatenate([y, y[-1:]])


class CountsTwice(inference.PathGibbs):
    """Wrong on purpose: the particles' weights count the last observation twice."""

    def sample(self, state: Any, model_args: tuple[Any, ...], model_kwargs: Any) -> Any:
        return super().sample(state, (counted_twice(*model_args),), model_kwargs)


def posterior(kernel: MCMCKernel, num_warmup: int, thinning: int, key: Array, y: Array) -> dict[str, Array]:
    """NUM_DRAWS thinned draws of one data set's posterior: what `MCMC` does, as a function to be vmapped."""

    def sweep(_: Any, state: Any) -> Any:
        return kernel.sample(state, (y,), {})

    def draw(state: Any, _: None) -> tuple[Any, dict[str, Array]]:
        state = jax.lax.fori_loop(0, thinning, sweep, state)
        return state, kernel.postprocess_fn((y,), {})(state.z)

    state = kernel.init(key, num_warmup, None, (y,), {})
    state = jax.lax.fori_loop(0, num_warmup, sweep, state)
    return jax.lax.scan(draw, state, None, length=NUM_DRAWS)[1]


def quantities(scale: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What is ranked, shape (*batch, 4): scale (*batch,), x (*batch, 2), y (*batch, NUM_OBSERVATIONS, 2)."""
    log_likelihood = stats.norm.logpdf(y, x[..., None, :], scale[..., None, None]).sum(axis=(-1, -2))
    return np.concatenate([scale[..., None], x, log_likelihood[..., None]], axis=-1)


def run(
    key: Array, program: Callable[..., None], sampler: Callable[..., dict[str, Array]], options: Any
) -> dict[str, Any]:
    """Histograms of ranks, their tests, effective sample sizes of the kept draws, and seconds, wall and processor."""
    key_data, key_run = jax.random.split(key)
    truth = {name: np.asarray(v) for name, v in Predictive(program, num_samples=options.num_data)(key_data).items()}

    @jax.jit
    def sample(keys: Array, y: Array) -> dict[str, Array]:
        return jax.lax.map(lambda of_one: sampler(*of_one), (keys, y), batch_size=options.batch_size)

    start, cpu = time.perf_counter(), os.times().user
    draws = jax.block_until_ready(sample(jax.random.split(key_run, options.num_data), jnp.asarray(truth["y"])))
    seconds = [time.perf_counter() - start, os.times().user - cpu]
    y = np.repeat(truth["y"][:, None], NUM_DRAWS, axis=1)
    drawn = quantities(np.asarray(draws["scale"]), np.asarray(draws["x"]), y)
    ranks = np.sum(drawn < quantities(truth["scale"], truth["x"], truth["y"])[:, None], axis=1)
    size = np.stack([effective_sample_size(of_one[None]) for of_one in drawn])
    by_quantity = {}
    for i, name in enumerate(QUANTITIES):
        counts = np.bincount(ranks[:, i] * NUM_BINS // (NUM_DRAWS + 1), minlength=NUM_BINS)
        test = stats.chisquare(counts)
        by_quantity[name] = {
            "chi_square": float(test.statistic),
            "p": float(test.pvalue),
            "ess": np.quantile(size[:, i], [0.5, 0.05]).tolist(),
            "counts": counts.tolist(),
        }
    return {"quantities": by_quantity, "seconds": seconds}


def report(results: dict[str, Any], num_data: int) -> Table:
    threshold = LEVEL / len(QUANTITIES)
    table = Table("run", "quantity", "chi-square", "p", "ESS: median, 5 %", "seconds, of the processor")
    table.title = (
        f"{num_data} data sets, {NUM_DRAWS} draws each, {NUM_BINS} bins: all p above {threshold:g} (chi-square below "
        f"{stats.chi2.isf(threshold, NUM_BINS - 1):.1f}) where draws are from the posterior, one below in a control"
    )
    for name, result in results.items():
        for i, (quantity, row) in enumerate(result["quantities"].items()):
            ends = (name, "{:.0f}, {:.0f}".format(*result["seconds"])) if i == 0 else ("", "")
            numbers = f"{row['chi_square']:.1f}", f"{row['p']:.2g}", "{:.0f}, {:.0f}".format(*row["ess"])
            table.add_row(ends[0], quantity, *numbers, ends[1])
        table.add_section()
    return table


def draw(results: dict[str, Any]) -> Figure:
    """Histograms of all runs, each with the central 99 % of a bin's count where ranks are uniform."""
    size = 9, 0.6 + 1.4 * len(results)
    figure, axes = plt.subplots(len(results), len(QUANTITIES), figsize=size, sharey="row", squeeze=False)
    for row, (name, result) in zip(axes, results.items(), strict=True):
        color = plotting.NULL if "control" in name else plotting.REVERSE
        row[0].set_ylabel(name.replace(", ", ",\n"), fontsize=8)
        for ax, (quantity, ranked) in zip(row, result["quantities"].items(), strict=True):
            counts = np.asarray(ranked["counts"])
            ax.axhspan(*stats.binom.interval(0.99, counts.sum(), 1.0 / NUM_BINS), color="0.88", zorder=0)
            ax.axhline(counts.sum() / NUM_BINS, color=plotting.TRUTH, linewidth=0.8)
            ax.bar(np.arange(NUM_BINS), counts, width=1.0, color=color, edgecolor="white", linewidth=0.4, alpha=0.8)
            ax.set_xticks([-0.5, NUM_BINS - 0.5], ["0", str(NUM_DRAWS)], fontsize=7)
            ax.tick_params(axis="y", labelsize=7)
            ax.set_title(f"{quantity}:  p = {ranked['p']:.2g}", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("rank of the truth", fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-data", type=int, default=500, help="simulated data sets")
    parser.add_argument("--batch-size", type=int, default=100, help="data sets that run vmapped together")
    parser.add_argument("--train-steps", type=int, default=5000)
    parser.add_argument("--num-particles", type=int, default=8)
    parser.add_argument("--num-warmup", type=int, default=150)
    parser.add_argument("--thinning", type=int, default=8, help="sweeps, or transitions of NUTS, per draw")
    parser.add_argument(
        "--tree-depth", type=int, default=2, help="of NUTS through the flow: vmapped, all go to the deepest"
    )
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of the flow's solver")
    parser.add_argument(
        "--runs", nargs="+", choices=["path", "path-control", "flow", "flow-control"], help="all by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/calibration"), help="earlier runs found there are shown too"
    )
    options = parser.parse_args()

    key_train, key_path, key_flow = jax.random.split(jax.random.key(options.seed), 3)
    diffusion = train(key_train, options.train_steps)
    by_path = composed(diffusion.prior)
    by_flow = composed(lambda: diffusion.flow(rtol=options.tolerance, atol=options.tolerance))
    as_noise = numpyro.handlers.reparam(by_flow, config={"x": TransformReparam()})

    def gibbs(block: type[inference.PathGibbs]) -> MCMCKernel:
        path = block(by_path, num_particles=options.num_particles)
        return Gibbs([(path, ["x"]), (NUTS(by_path, max_tree_depth=3), None)])

    def of(
        make: Callable[[], MCMCKernel], change: Callable[[Array], Array] = lambda y: y
    ) -> Callable[..., dict[str, Array]]:
        return lambda key, y: posterior(make(), options.num_warmup, options.thinning, key, change(y))

    nuts = partial(NUTS, as_noise, max_tree_depth=options.tree_depth)
    runs = {
        "path": ("particle Gibbs", key_path, by_path, of(partial(gibbs, inference.PathGibbs))),
        "path-control": ("particle Gibbs, control", key_path, by_path, of(partial(gibbs, CountsTwice))),
        "flow": ("flow under NUTS", key_flow, by_flow, of(nuts)),
        "flow-control": ("flow under NUTS, control", key_flow, by_flow, of(nuts, counted_twice)),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "calibration.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in options.runs or runs:
        title, *parts = runs[name]
        results[title] = run(*parts, options)
        file.write_text(json.dumps(results, indent=2))
    results = {title: results[title] for title, *_ in runs.values() if title in results}
    Console().print(report(results, options.num_data))
    draw(results).savefig(options.out / "calibration.png", dpi=120)


if __name__ == "__main__":
    main()
