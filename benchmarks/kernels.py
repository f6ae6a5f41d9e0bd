r"""Kernels that know how coordinates go together, against those that do not, where the truth is exact.

Run from the repository with `python -m benchmarks.kernels exact | trained | sampling | cost`. Data are mixtures of isotropic
Gaussians, so that log p and every conditional moment are known: the swiss roll (as 400 narrow components along it), five Gaussians
in 8 coordinates, and 400 smooth curves with noise in 16. The schedule is log-SNR from log 999 to -6, the first step learned.

- `exact`: kernels of the exact moments, diagonal, full, and by the Jacobian of the exact mean (full, and of rank 4);
- `trained`: VelocityPrediction of one network and budget, diagonal, of rank 4, and full, against the truth, paired;
- `sampling`: log p by importance sampling at T = 10 with 256 trajectories;
- `cost`: what a training step of rank 4 takes, over one of independent coordinates.

A gap is log p - log w of whole trajectories in the mean, with its standard error over the data.
"""

import argparse
import json
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from scipy.special import logsumexp

from nedm_ppl import inference, models
from nedm_ppl.data._swiss_roll import swiss_roll_moments
from nedm_ppl.inference.likelihood._weights import draw_log_weights
from nedm_ppl.laws import LowRankNormal


class Mixture(eqx.Module):
    """A mixture of Gaussians of one variance, all components alike."""

    centers: jax.Array
    scale: float = eqx.field(static=True)

    def __init__(self, centers: np.ndarray, scale: float):
        self.centers, self.scale = jnp.asarray(centers, float), float(scale)

    @property
    def dim(self) -> int:
        return self.centers.shape[1]

    def draw(self, rng: np.random.Generator, num: int) -> np.ndarray:
        index = rng.choice(len(self.centers), num)
        return (np.asarray(self.centers)[index] + self.scale * rng.normal(size=(num, self.dim))).astype(np.float32)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        away = np.asarray(x, float)[:, None] - np.asarray(self.centers, float)
        log_norm = self.dim * np.log(self.scale * np.sqrt(2.0 * np.pi)) + np.log(len(self.centers))
        return logsumexp(-0.5 * np.sum(np.square(away / self.scale), -1), axis=1) - log_norm

    def moments(self, process: Any, t: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Of x_0 given x_t: shares of the components, their means, the variance within, and the mean."""
        signal, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        centers, own = self.centers, self.scale**2
        total = signal * own + noise
        away = x[..., None, :] - jnp.sqrt(signal) * centers
        shares = jax.nn.softmax(-0.5 * jnp.sum(jnp.square(away), -1) / total, axis=-1)
        means = centers + jnp.sqrt(signal) * own / total * away
        return shares, means, own * noise / total, jnp.einsum("...k,...kd->...d", shares, means)


def swiss_roll(num: int = 400) -> Mixture:
    mean, scale = swiss_roll_moments(0.5)
    tau = 1.5 * np.pi * (1.0 + 2.0 * (np.arange(num) + 0.5) / num)
    curve = np.stack([tau * np.cos(tau), tau * np.sin(tau)], -1)
    return Mixture((curve - mean) / scale, 0.5 / scale)


def five() -> Mixture:
    centers = np.random.default_rng(0).normal(size=(5, 8))
    centers = centers / centers.std()
    pooled = np.sqrt(np.var(centers) + 0.25)
    return Mixture((centers - centers.mean()) / pooled, 0.5 / pooled)


def curves() -> Mixture:
    place = np.linspace(0.0, 3.0, 16)
    kernel = np.exp(-0.5 * np.square(place[:, None] - place)) + 1e-9 * np.eye(16)
    centers = np.random.default_rng(1).normal(size=(400, 16)) @ np.linalg.cholesky(kernel).T
    return Mixture(centers, 0.15)


SETS = {"swiss roll, 2-d": swiss_roll, "five Gaussians, 8-d": five, "curves, 16-d": curves}


class Exact(models.Prediction):
    """The exact moments of x_0 given x_t: the mean with its variances, or with the full covariance."""

    network: Any
    truth: Mixture
    full: bool = eqx.field(static=True)

    def data_law(self, process: Any, t: Any, x: jax.Array) -> dist.Distribution:
        shares, means, within, mean = self.truth.moments(process, t, x)
        away = means - mean[..., None, :]
        if not self.full:
            variance = within + jnp.einsum("...k,...kd->...d", shares, jnp.square(away))
            return dist.Normal(mean, jnp.sqrt(variance)).to_event(1)
        covariance = jnp.einsum("...k,...kd,...ke->...de", shares, away, away)
        own = 0.5 * within * jnp.ones_like(mean)
        rest = covariance + (within - own[..., None]) * jnp.eye(self.truth.dim)
        return LowRankNormal(mean, own, jnp.swapaxes(jnp.linalg.cholesky(rest), -1, -2))

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return event_shape

    def check_process(self, process: Any) -> None: ...


def exact_models(truth: Mixture, num_steps: int) -> dict[str, models.Diffusion]:
    process = models.GaussianDiffusion((truth.dim,), models.schedules.log_snr_linear(num_steps))
    diagonal = models.Diffusion(process, Exact(None, truth, False), first_step="learned")
    full = models.Diffusion(process, Exact(None, truth, True), first_step="learned")
    found = {"diagonal": diagonal, "full": full, "Jacobian": models.correlated(diagonal, truth.dim)}
    if truth.dim > 4:
        found["Jacobian, rank 4"] = models.correlated(diagonal, 4)
    return found


@eqx.filter_jit
def log_weights(keys: jax.Array, diffusion: models.Diffusion, x0: jax.Array) -> jax.Array:
    """Log weights of one fresh trajectory per datum."""
    return draw_log_weights(keys, diffusion, x0, chunk_size=10)


def gap(diffusion: models.Diffusion, truth: Mixture, x0: np.ndarray, seed: int = 0) -> np.ndarray:
    """log p - log w of a trajectory of every datum."""
    keys = jax.random.split(jax.random.key(seed), len(x0))
    parts = [log_weights(keys[i : i + 500], diffusion, jnp.asarray(x0[i : i + 500])) for i in range(0, len(x0), 500)]
    return truth.log_prob(x0) - np.asarray(jnp.concatenate(parts), float)


def exact(num_data: int, chosen: str, steps: list[int]) -> None:
    """Kernels of exact moments."""
    for name, make in SETS.items():
        if chosen not in name:
            continue
        truth = make()
        x0 = truth.draw(np.random.default_rng(7), num_data)
        for num_steps in steps:
            for kernel, diffusion in exact_models(truth, num_steps).items():
                found = gap(diffusion, truth, x0)
                row = {"data": name, "T": num_steps, "kernel": kernel, "gap": found.mean(), "se": se(found)}
                print(json.dumps(row | {"sd": found.std()}), flush=True)


def trained(num_updates: int, num_steps: int = 40) -> None:
    """One network and budget for every kernel; the gap of each, and what each is ahead of the diagonal one by, paired."""
    for name, make in SETS.items():
        truth = make()
        x0, train = truth.draw(np.random.default_rng(7), 2000), truth.draw(np.random.default_rng(8), 200_000)
        process = models.GaussianDiffusion((truth.dim,), models.schedules.log_snr_linear(num_steps))
        diagonal = None
        for rank in dict.fromkeys((0, truth.dim, min(4, truth.dim))):
            network = models.networks.ResidualMLP(
                (truth.dim,), (2 + rank, truth.dim), num_steps, width=256, key=jax.random.key(0)
            )
            reverse = models.VelocityPrediction(network, rank=rank)
            start = time.perf_counter()
            fitted = inference.fit(
                jax.random.key(1),
                models.Diffusion(process, reverse, first_step="learned"),
                train,
                num_updates=num_updates,
                batch_size=512,
                optimizer=optax.chain(
                    optax.clip_by_global_norm(1.0),
                    optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-3, 100, num_updates)),
                ),
                average_decay=0.999,
                progress=False,
            )
            found = gap(fitted.diffusion, truth, x0)
            diagonal = found if diagonal is None else diagonal
            ahead = diagonal - found
            row = {"data": name, "T": num_steps, "rank": rank, "gap": found.mean(), "se": se(found), "sd": found.std()}
            row |= {"ahead": ahead.mean(), "ahead_se": se(ahead), "seconds": time.perf_counter() - start}
            print(json.dumps(row), flush=True)


def se(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def sampling(num_data: int = 200) -> None:
    """log p by importance sampling, T = 10, 256 trajectories, less the truth."""
    for name, make in SETS.items():
        truth = make()
        x0 = truth.draw(np.random.default_rng(9), num_data)
        for kernel, diffusion in exact_models(truth, 10).items():
            found = inference.marginal_log_likelihood(jax.random.key(0), diffusion, x0, num_trajectories=256)
            short = truth.log_prob(x0) - np.asarray(found.log_prob)
            print(json.dumps({"data": name, "kernel": kernel, "short": short.mean(), "se": se(short)}), flush=True)


def cost(only: str, rounds: int = 7, num_updates: int = 20) -> None:
    """Seconds of an update by rank over that of independent coordinates, in turns: 64 coordinates, and images of 32 x 32."""
    cases = {
        "D = 64, residual network": (
            lambda shape, key: models.networks.ResidualMLP((64,), shape, 40, key=key),
            (64,),
            128,
        ),
        "D = 1,024, residual network": (
            lambda shape, key: models.networks.ResidualMLP((1024,), shape, 40, key=key),
            (1024,),
            128,
        ),
        "D = 1,024, residual network, directions by 32 units": (
            lambda shape, key: models.networks.ResidualMLP(
                (1024,), shape, 40, direction_width=32 if shape[0] > 2 else 0, key=key
            ),
            (1024,),
            128,
        ),
        "D = 1,024, U-Net of width 16": (
            lambda shape, key: models.networks.UNet((32, 32), shape, 40, width=16, key=key),
            (32, 32),
            16,
        ),
    }
    optimizer = optax.adam(1e-3)
    for name, (network, event, batch) in cases.items():
        if only not in name:
            continue
        process = models.GaussianDiffusion(event, models.schedules.log_snr_linear(40))
        x0 = np.random.default_rng(0).normal(size=(512, *event)).astype(np.float32)
        made = {
            rank: models.Diffusion(
                process,
                models.VelocityPrediction(network((2 + rank, *event), jax.random.key(0)), rank=rank),
                first_step="learned",
            )
            for rank in (0, 4)
        }

        def seconds(rank: int, updates: int, made: Any = made, x0: Any = x0, batch: int = batch) -> float:
            options = {"batch_size": batch, "optimizer": optimizer, "log_every": num_updates, "progress": False}
            start = time.perf_counter()
            inference.fit(jax.random.key(1), made[rank], x0, num_updates=updates, **options)
            return time.perf_counter() - start

        for rank in made:
            seconds(rank, num_updates)
        of: dict[int, list[float]] = {rank: [] for rank in made}
        for _ in range(rounds):
            for rank in made:
                once, thrice = seconds(rank, num_updates), seconds(rank, 3 * num_updates)
                of[rank].append((thrice - once) / (2 * num_updates))
        ratio = np.median(np.array(of[4]) / np.array(of[0]))
        print(f"{name}: rank 4 takes {ratio:.2f} of {1e3 * np.median(of[0]):.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["exact", "trained", "sampling", "cost"])
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--data", type=int, default=4_000)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[10, 20, 40, 100], help="T of the chains of exact moments"
    )
    parser.add_argument("--only", default="", help="a part of a data set's name")
    args = parser.parse_args()
    parts = {"exact": lambda: exact(args.data, args.only, args.steps), "trained": lambda: trained(args.updates)}
    (parts | {"sampling": sampling, "cost": lambda: cost(args.only)})[args.part]()


if __name__ == "__main__":
    main()
