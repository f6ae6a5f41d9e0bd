r"""Posteriors of hidden and of noisy digits under a trained model, against estimators fitted on the same training images.

    nedm run digits --out FOLDER
    python benchmarks/digit_posteriors.py FOLDER

The first 100 holdout images. *Inpainting*: the lower half is hidden; beside the posterior mean stand 10 nearest neighbors, linear
regression and the mean image, from the upper half to the lower. *Denoising*: Gaussian noise of the pooled variance on every pixel;
beside it the Wiener filter, $\mu + C (C + \sigma^2 I)^{-1} (y - \mu)$ with mean and covariance of the training images. All of these
are fitted on the 1,437 images that are not holdout. Errors are root mean squares in gray levels, 0..16.

Coverage is the share of hidden pixels whose randomized probability integral transform lies in the central 90 %; many pixels are
blank for certain, so that it is also reported for those of which the particles disagree. The standard errors are over images.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor

from nedm_ppl import data
from nedm_ppl import restoration as restore
from nedm_ppl.models import Diffusion


def rmse(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Root mean square over all pixels, and its standard error over images; both (N, pixels), in gray levels."""
    squares = np.mean(np.square(data.digits().scale * (estimate - truth)), axis=1)
    root = np.sqrt(squares.mean())
    return float(root), float(squares.std(ddof=1) / np.sqrt(len(squares)) / (2.0 * root))


def coverage(inside: np.ndarray, counted: np.ndarray) -> tuple[float, float]:
    """Share of the counted pixels that are inside, and its standard error over images; both boolean, (N, pixels)."""
    share = inside[counted].mean()
    error = np.sum((inside - share) * counted, axis=1) / counted.sum(axis=1).mean()
    return float(share), float(error.std(ddof=1) / np.sqrt(len(error)))


def regressions(hidden: np.ndarray, x0: np.ndarray) -> dict[str, tuple[float, float]]:
    """Errors of estimators of the hidden pixels from the others."""
    digits = data.digits()
    train = np.concatenate([digits.train, digits.validation])
    seen, unseen = train[:, ~hidden], train[:, hidden]
    neighbors = KNeighborsRegressor(10).fit(seen, unseen).predict(x0[:, ~hidden])
    linear = LinearRegression().fit(seen, unseen).predict(x0[:, ~hidden])
    means = np.broadcast_to(unseen.mean(axis=0), linear.shape)
    named = {"10 nearest neighbors": neighbors, "linear regression": linear, "mean image": means}
    return {name: rmse(estimate, x0[:, hidden]) for name, estimate in named.items()}


def wiener(y: np.ndarray, scale: float) -> np.ndarray:
    """The best linear estimate of images seen through noise, by the moments of the training images; shape (N, 64)."""
    digits = data.digits()
    train = np.concatenate([digits.train, digits.validation]).reshape(-1, 64).astype(np.float64)
    mean, cov = train.mean(axis=0), np.cov(train.T)
    return mean + (y.reshape(-1, 64) - mean) @ np.linalg.solve(cov + scale**2 * np.eye(64), cov)


def measure(diffusion: Diffusion, x0: np.ndarray, degradation: Any, args: argparse.Namespace) -> dict[str, Any]:
    start, cpu = time.perf_counter(), os.times()
    key, options = jax.random.key(args.seed), {"num_particles": args.particles, "num_steps": args.num_steps}
    options["num_repeats"] = args.repeats
    result = restore.restore(key, diffusion, x0, degradation, **options, progress=args.progress)
    posterior, where = result.posterior, result.degraded
    truth = x0[:, where]
    row = {
        "posterior mean": rmse(posterior.mean.mean[:, where], truth),
        "one posterior draw": rmse(posterior.get_samples()["x"][:, 0][:, where], truth),
        "one draw of the paper's method": rmse(result.paper[:, where], truth),
    }
    if isinstance(degradation, restore.Noise):
        row["Wiener filter"] = rmse(wiener(result.y, degradation.scale), truth)
        row["noise"] = rmse(result.y[:, where], truth)
    else:
        row |= regressions(where, x0)
    inside, open_ = np.abs(result.pit - 0.5) < 0.45, posterior.sd[:, where] > 0.0
    ess, shares = posterior.particles.ess.reshape(-1, args.num_steps + 1), np.exp(posterior.log_weights).sum(axis=-1)
    return {
        "rmse": row,
        "coverage": coverage(inside, np.ones_like(open_)),
        "coverage_open": coverage(inside, open_),
        "share_open": float(open_.mean()),
        "pit": np.histogram(result.pit, np.linspace(0.0, 1.0, 11))[0].tolist(),
        "ess": [float(np.median(ess.min(axis=-1))), float(np.median(ess[:, 0]))],
        "repeats": float(np.median(1.0 / np.square(shares).sum(axis=-1))),
        "ancestors": float(np.median(posterior.particles.num_ancestors[..., 0])),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": sum(os.times()[:2]) - sum(cpu[:2]),
    }


def report(title: str, row: dict[str, Any]) -> Table:
    table = Table("estimate", "RMSE, gray levels", title=title)
    for name, (mean, se) in row["rmse"].items():
        table.add_row(name, f"{mean:.3f} ± {se:.3f}")
    table.add_section()
    for name, key in (("all pixels", "coverage"), (f"the {row['share_open']:.0%} not certain", "coverage_open")):
        table.add_row(f"inside the central 90 %, {name}", "{:.1%} ± {:.1%}".format(*row[key]))
    table.add_row("deciles of the transform", " ".join(map(str, row["pit"])))
    table.add_row("median effective sample size, least and last", "{:.1f}, {:.1f}".format(*row["ess"]))
    table.add_row("median effective number of filters", f"{row['repeats']:.1f}")
    table.add_row("median number of ancestors", f"{row['ancestors']:.0f}")
    table.add_row("seconds, of all cores", f"{row['seconds']:.0f}, {row['cpu_seconds']:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Inpainted and denoised digits against fitted estimators.")
    parser.add_argument("folder", type=Path, help="output folder of `nedm run digits`")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=16, help="filters per image, pooled by their evidences")
    parser.add_argument("--num-steps", type=int, default=100, help="of the respaced chain")
    parser.add_argument("--tasks", nargs="+", choices=["inpaint", "denoise"], default=["inpaint", "denoise"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("digit_posteriors.json"))
    args = parser.parse_args()
    diffusion = Diffusion.load(args.folder / "model")
    x0 = data.digits().holdout[: args.images]
    kinds = {"inpaint": restore.Hidden(restore.hidden("lower", (8, 8))), "denoise": restore.Noise(1.0)}
    rows = {}
    for task in args.tasks:
        rows[task] = measure(diffusion, x0, kinds[task], args)
        args.output.write_text(json.dumps(rows))
        title = f"{task}, T = {args.num_steps}, {args.repeats} x {args.particles} particles, {args.images} images, seed {args.seed}"
        Console().print(report(title, rows[task]))


if __name__ == "__main__":
    main()
