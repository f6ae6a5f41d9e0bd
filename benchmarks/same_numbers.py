"""What two checkouts of the library compute under the same keys, and how far apart it is.

Run with `python benchmarks/same_numbers.py OLD`, where OLD is the root of another checkout, as `git worktree add` makes one.
Four of the shipped experiments in small: a short chain, a little data, weights that are drawn and not trained. Each is measured
in a process of its own. The table has the largest difference of every kind of number, over the largest absolute value in the
old one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
NUM_STEPS = {"swiss-roll": 10, "heartbeat": 20, "digits": 8, "gray-code": 10}
NUM_TRAIN, NUM_DATA, SPREAD, FLIP, NOISE = 2000, 16, 0.05, 0.1, 0.5


def key(number: int) -> jax.Array:
    return jax.random.key(number)


def drawn(diffusion: Any) -> Any:
    """The model with noise on every weight, so that no network is silent."""
    arrays, rest = eqx.partition(diffusion, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jax.random.split(key(1), len(leaves))
    noisy = [leaf + SPREAD * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, noisy), rest)


def measured(name: str) -> dict[str, np.ndarray]:
    """All numbers of one experiment, by the names that this checkout has or had."""
    import nedm_ppl
    from nedm_ppl import inference
    from nedm_ppl.experiments import EXPERIMENTS

    assert nedm_ppl.__file__.startswith(os.environ["PYTHONPATH"]), (
        nedm_ppl.__file__
    )  # the checkout, and not what is installed

    experiment: Any = EXPERIMENTS[name]
    is_old = hasattr(experiment, "train_steps")
    split: Any = experiment.data(0)
    x0 = np.asarray(split.holdout[:NUM_DATA])
    start = experiment.build(
        key(0), type(split)(split.train[:NUM_TRAIN], None, x0), NUM_STEPS[name], experiment.first_step
    )
    count = {"num_steps" if is_old else "num_updates": 20}
    options = experiment.training(20) | count | {"batch_size": 32, "log_every": 5, "progress": False}
    fitted = inference.fit(key(2), start, split.train[:NUM_TRAIN], **options)
    diffusion = drawn(start)
    terms = inference.evaluate(key(3), diffusion, x0)
    likelihood = inference.log_likelihood if is_old else inference.marginal_log_likelihood
    found = likelihood(key(4), diffusion, x0, **{"num_particles" if is_old else "num_trajectories": 8})
    return {
        "loss while training": fitted.history["bound"],
        "K": terms.total,
        "log likelihood": found.log_prob,
        "its log weights": found.log_weights,
        **posteriors(inference, diffusion, x0[0]),
    }


def posteriors(inference: Any, diffusion: Any, y: np.ndarray) -> dict[str, Any]:
    """Of one datum seen through noise, or through a channel that flips bits."""
    is_bits = diffusion.process.stationary().is_discrete
    r = inference.BernoulliObservation(y, FLIP) if is_bits else inference.NormalObservation(y, NOISE)
    filtered = inference.ParticlePosterior(diffusion, r, num_particles=64, num_repeats=4, along="lookahead")
    filtered.run(key(5))
    chain = inference.multiply(diffusion, r, along="constant")

    def program(y: jax.Array) -> None:
        x = numpyro.sample("x", diffusion.prior())
        seen = dist.Bernoulli(jnp.where(x > 0.5, 1.0 - FLIP, FLIP)) if is_bits else dist.Normal(x, NOISE)
        numpyro.sample("y", seen.to_event(y.ndim), obs=y)

    kernel = inference.PathGibbs(program, num_particles=8, along="lookahead")
    mcmc = MCMC(kernel, num_warmup=0, num_samples=20, progress_bar=False)
    mcmc.run(key(7), jnp.asarray(y))
    return {
        "log evidence": filtered.log_evidence.mean,
        "posterior mean": filtered.mean.mean,
        "multiplied chain": eqx.filter_jit(chain.sample)(key(6), (32,)),
        "PathGibbs": mcmc.get_samples()["x"],
    }


def worker(root: Path, name: str, file: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, __file__, "--measure", name, str(file)], env=environment, check=True)


def difference(new: np.ndarray, old: np.ndarray) -> float:
    """The largest difference over the largest absolute value of the old one."""
    if new.shape != old.shape:
        raise ValueError(f"shapes must be the same; got {new.shape} and {old.shape}.")
    return float(np.max(np.abs(new - old)) / np.max(np.abs(old)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?", help="root of the other checkout")
    parser.add_argument("--only", default="", help="experiments whose name holds this")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        warnings.simplefilter("ignore")
        name, file = options.measure
        return np.savez(file, **{kind: np.asarray(value, np.float64) for kind, value in measured(name).items()})
    if options.old is None or not (options.old / "nedm_ppl").is_dir():
        parser.error(f"old must be the root of a checkout; got {options.old}")
    names, columns = [name for name in NUM_STEPS if options.only in name], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            files = [Path(folder) / f"{name}-{which}.npz" for which in ("new", "old")]
            for root, file in zip((ROOT, options.old.resolve()), files, strict=True):
                worker(root, name, file)
            new, old = (np.load(file) for file in files)
            columns[name] = {kind: difference(new[kind], old[kind]) for kind in old.files}
    table = Table("largest relative difference", *names)
    for kind in columns[names[0]]:
        table.add_row(kind, *(f"{columns[name][kind]:.1e}" for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
