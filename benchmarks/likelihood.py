"""What evaluating a trajectory's steps side by side gains over a scan that evaluates them one after the other.

Run with `python benchmarks/likelihood.py`. Log weights of forward trajectories, T = 1000, a residual network of width 256 on
64 coordinates, for 1, 64 and 1,024 trajectories at a time. Ours is what `inference.marginal_log_likelihood` runs: the states of a
chunk of steps first, then the network on all of them together. The other side is the same sum by one `lax.scan` over steps,
written by hand for this one model. Both are compiled before they are timed; rounds alternate, and the ratio's spread over
rounds is printed beside it.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from speed import DIM, build, closed_forms, compare

from nedm_ppl import models
from nedm_ppl.inference.likelihood._likelihood import DEFAULT_MEMORY
from nedm_ppl.inference.likelihood._weights import draw_log_weights, plan

NUM_STEPS, ROUNDS = 1000, {1: 15, 64: 15, 1024: 5}  # rounds for every number of trajectories


def chunked(diffusion: models.Diffusion, x0: jax.Array) -> tuple[Callable[[], jax.Array], int]:
    """The library's log weights of one trajectory per row, and the chunk its plan chose."""
    rows, chunk_size = plan(diffusion, len(x0), DEFAULT_MEMORY)
    assert rows == len(x0)
    draw = eqx.filter_jit(lambda d, keys: draw_log_weights(keys, d, x0, chunk_size=chunk_size))
    keys = jax.random.split(jax.random.key(1), len(x0))
    return lambda: jax.block_until_ready(draw(diffusion, keys)), chunk_size


def step_by_step(diffusion: models.Diffusion, x0: jax.Array) -> Callable[[], jax.Array]:
    """The same sum by a scan: draw a state, evaluate the network there, add the log ratio, forget."""
    beta, alpha_bar, tables = closed_forms(diffusion)

    def log_normal(x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        return -0.5 * jnp.sum(jnp.square(x - mean) / var + jnp.log(2.0 * math.pi * var), axis=-1)

    @eqx.filter_jit
    def draw(network: Callable, key: jax.Array) -> jax.Array:
        key_first, key_steps = jax.random.split(key)

        def body(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            before, total = carry
            t, key = inputs
            a, n, c, d, v = (table[t - 1] for table in tables)
            rate = jnp.asarray(beta, jnp.float32)[t - 1]
            x = jnp.sqrt(1.0 - rate) * before + jnp.sqrt(rate) * jax.random.normal(key, before.shape)
            z_mean, z_var = jnp.moveaxis(jax.vmap(network, in_axes=(None, 0))(t, x), 1, 0)
            mean, var = jnp.sqrt(a) * x + jnp.sqrt(n) * z_mean, n * jnp.exp(z_var)
            ratio = log_normal(before, c * mean + d * x, v + c**2 * var) - log_normal(before, c * x0 + d * x, v)
            return (x, total + ratio), None

        first, last = beta[0], alpha_bar[-1]
        x1 = math.sqrt(1.0 - first) * x0 + math.sqrt(first) * jax.random.normal(key_first, x0.shape)
        times = jnp.arange(2, NUM_STEPS + 1)
        (x, total), _ = jax.lax.scan(
            body, (x1, jnp.zeros(len(x0))), (times, jax.random.split(key_steps, NUM_STEPS - 1))
        )
        end = log_normal(x, 0.0, 1.0) - log_normal(x, math.sqrt(last) * x0, 1.0 - last)
        return total + end + log_normal(x0, math.sqrt(1.0 - first) * x1, first)

    return lambda: jax.block_until_ready(draw(diffusion.reverse.network, jax.random.key(1)))


def main() -> None:
    table = Table(
        "trajectories", "steps together", "ours, ms", "scan, ms", "ours / scan", title="Log weights, T = 1000"
    )
    diffusion = build(NUM_STEPS)
    for rows, rounds in ROUNDS.items():
        x0 = jax.random.normal(jax.random.key(3), (rows, DIM))
        ours, chunk_size = chunked(diffusion, x0)
        other = step_by_step(diffusion, x0)
        # Two programs of one quantity: their means agree within their spread.
        first, second = np.asarray(ours()), np.asarray(other())
        if rows > 1:
            error = math.sqrt((first.var() + second.var()) / rows)
            assert abs(first.mean() - second.mean()) < 5.0 * error + 1e-3 * abs(first.mean())
        mine, theirs, ratio, se = compare(ours, other, f"{rows} trajectories", rounds)
        table.add_row(
            f"{rows:,}", str(chunk_size), f"{1e3 * mine:.1f}", f"{1e3 * theirs:.1f}", f"{ratio:.3f} ± {se:.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
