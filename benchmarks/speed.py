"""What the library costs over code written by hand, and how cost grows with T.

Run with `python benchmarks/speed.py`. Three comparisons, each in one process with the two sides timed alternately:

1. one optimizer step of `TrajectoryBound` under NumPyro's SVI against a loop written in JAX and optax for this one model;
2. one such step at T = 4000 against T = 40;
3. ancestral sampling against a `lax.scan` written for this one model, and its time per step over T.

Times are medians over rounds; the number to look at is the ratio, whose spread over rounds is printed beside it.
"""

import math
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from nedm_ppl import inference, models

DIM, WIDTH, DEPTH, BATCH, ROUNDS, STEPS = 64, 256, 3, 256, 15, 20


def build(num_steps: int) -> models.Diffusion:
    schedule = models.schedules.log_snr_linear(num_steps)
    network = models.networks.ResidualMLP((DIM,), (2, DIM), num_steps, width=WIDTH, depth=DEPTH, key=jax.random.key(0))
    return models.Diffusion(models.GaussianDiffusion((DIM,), schedule), models.VelocityPrediction(network))


def library_step(diffusion: models.Diffusion, x0: jax.Array) -> Callable[[], None]:
    svi = SVI(diffusion.model, diffusion.guide, optax.adam(1e-3), inference.TrajectoryBound())
    with inference.bound.unsampled_trajectories():
        state = svi.init(jax.random.key(1), x0)
    update = jax.jit(svi.update)

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, loss = update(state, x0)
        jax.block_until_ready(loss)

    return run


def closed_forms(diffusion: models.Diffusion) -> tuple[np.ndarray, np.ndarray, list[jax.Array]]:
    """Rates, shares of signal left, and of t = 1..T the signal, the noise, and the posterior's two weights and variance."""
    beta = np.asarray(diffusion.process.schedule.betas)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - beta)])
    before, now = 1.0 - alpha_bar[:-1], 1.0 - alpha_bar[1:]
    tables = [
        alpha_bar[1:],
        now,
        np.sqrt(alpha_bar[:-1]) * beta / now,
        np.sqrt(1 - beta) * before / now,
        beta * before / now,
    ]
    return beta, alpha_bar, [jnp.asarray(table, jnp.float32) for table in tables]


def hand_written_step(diffusion: models.Diffusion, x0: jax.Array) -> Callable[[], None]:
    """Loss, gradient and optimizer for this one model, in closed form; the network is the same, nothing else is shared."""
    num_steps, network = diffusion.num_steps, diffusion.reverse.network
    beta, alpha_bar, tables = closed_forms(diffusion)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    optimizer = optax.adam(1e-3)

    def loss(params, key, x0):
        network = eqx.combine(params, static)
        key_t, key_x = jax.random.split(key)
        u = (jax.random.uniform(key_t) + jnp.arange(BATCH) / BATCH) % 1.0
        t = 2 + jnp.floor(u * (num_steps - 1)).astype(int)
        a, n, c, _, v = (table[t - 1][:, None] for table in tables)
        x_t = jnp.sqrt(a) * x0 + jnp.sqrt(n) * jax.random.normal(key_x, x0.shape)
        z_mean, z_var = jnp.moveaxis(jax.vmap(network)(t, x_t), 1, 0)
        mean, var = jnp.sqrt(a) * x_t + jnp.sqrt(n) * z_mean, n * jnp.exp(z_var)
        ratio = v / (v + c**2 * var)
        kl = 0.5 * (ratio + (c * (x0 - mean)) ** 2 / (v + c**2 * var) - 1.0 - jnp.log(ratio))
        a_last, n_last, b = alpha_bar[-1], 1.0 - alpha_bar[-1], beta[0]
        prior = 0.5 * jnp.sum(a_last * x0**2 + n_last - 1.0 - math.log(n_last))
        first = 0.5 * jnp.sum(math.log(2 * math.pi * b) + b * x0**2 + 1.0 - b)
        return (num_steps - 1) * jnp.sum(kl) + prior + first

    @jax.jit
    def update(params, state, key):
        key, key_loss = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(params, key_loss, x0)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, key, value

    carry = params, optimizer.init(params), jax.random.key(1)

    def run() -> None:
        nonlocal carry
        for _ in range(STEPS):
            *carry, value = update(*carry)
        jax.block_until_ready(value)

    return run


def library_sampler(diffusion: models.Diffusion, num_samples: int) -> Callable[[], None]:
    sample = eqx.filter_jit(lambda d, key: d.sample(key, (num_samples,)))
    return lambda: jax.block_until_ready(sample(diffusion, jax.random.key(2)))


def hand_written_sampler(diffusion: models.Diffusion, num_samples: int) -> Callable[[], None]:
    num_steps = diffusion.num_steps
    beta, _, tables = closed_forms(diffusion)

    @eqx.filter_jit
    def sample(network, key):
        key_start, key_first, key_steps = jax.random.split(key, 3)

        def body(x, inputs):
            t, key = inputs
            a, n, c, d, v = (table[t - 1] for table in tables)
            z_mean, z_var = jnp.moveaxis(jax.vmap(network, in_axes=(None, 0))(t, x), 1, 0)
            mean, var = jnp.sqrt(a) * x + jnp.sqrt(n) * z_mean, n * jnp.exp(z_var)
            return c * mean + d * x + jnp.sqrt(v + c**2 * var) * jax.random.normal(key, x.shape), None

        x = jax.random.normal(key_start, (num_samples, DIM))
        times = jnp.arange(num_steps, 1, -1)
        x, _ = jax.lax.scan(body, x, (times, jax.random.split(key_steps, num_steps - 1)))
        return math.sqrt(1.0 - beta[0]) * x + math.sqrt(beta[0]) * jax.random.normal(key_first, x.shape)

    return lambda: jax.block_until_ready(sample(diffusion.reverse.network, jax.random.key(2)))


def compare(
    first: Callable[[], None], second: Callable[[], None], label: str, rounds: int = ROUNDS
) -> tuple[float, float, float, float]:
    """Median seconds of both, median and standard error of their ratio over rounds, timed alternately."""
    times = np.empty((rounds, 2))
    first(), second()
    for i in tqdm(range(rounds), desc=label, leave=False):
        for j in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            (first, second)[j]()
            times[i, j] = time.perf_counter() - start
    ratios = times[:, 0] / times[:, 1]
    spread = 1.2533 * ratios.std(ddof=1) / math.sqrt(rounds)
    return float(np.median(times[:, 0])), float(np.median(times[:, 1])), float(np.median(ratios)), float(spread)


def main() -> None:
    table = Table("comparison", "ours, ms", "other, ms", "ratio", title="Speed")
    x0 = jax.random.normal(jax.random.key(3), (BATCH, DIM))

    def row(label: str, first: Callable[[], None], second: Callable[[], None], per: int) -> None:
        ours, other, ratio, se = compare(first, second, label)
        table.add_row(label, f"{1e3 * ours / per:.3f}", f"{1e3 * other / per:.3f}", f"{ratio:.3f} ± {se:.3f}")

    short, long = build(40), build(4000)
    row(
        "train step, T = 1000: SVI against JAX and optax",
        *(f(build(1000), x0) for f in (library_step, hand_written_step)),
        STEPS,
    )
    row("train step: T = 4000 against T = 40", library_step(long, x0), library_step(short, x0), STEPS)
    middle = build(400)
    row(
        "sampling 256 data, T = 400, per step: ours against a hand-written scan",
        library_sampler(middle, 256),
        hand_written_sampler(middle, 256),
        400,
    )
    for num_steps in (40, 400, 2000):
        sampler = library_sampler(build(num_steps), 256)
        sampler()
        start = time.perf_counter()
        sampler()
        table.add_row(
            f"sampling 256 data, T = {num_steps}, per step", f"{1e3 * (time.perf_counter() - start) / num_steps:.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
