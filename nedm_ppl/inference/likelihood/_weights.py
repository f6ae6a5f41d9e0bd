r"""Log weights of forward trajectories, the summand of the paper's estimate of p(x_0) (Section 2.3, equation 9).

With trajectories drawn from the forward chain, $p(x_0) = \mathrm{E}_q w$ and

$$\log w = \log p(x_T) + \log p(x_0 | x_1) + \sum_{t=2}^{T} \log p(x_{t-1} | x_t) - \sum_{t=1}^{T} \log q(x_t | x_{t-1}).$$

The forward chain factorizes backwards too, $q(x_{1..T} | x_0) = q(x_T | x_0) \prod_{t \ge 2} q(x_{t-1} | x_t, x_0)$, so that

$$\log w = \log \frac{\pi(x_T)}{q(x_T | x_0)} + \sum_{t=2}^{T} \log \frac{p(x_{t-1} | x_t)}{q(x_{t-1} | x_t, x_0)}
  + \log p(x_0 | x_1),$$

the same number for every trajectory. It is worked in this form because every summand compares two laws of one state and is
small, where the sums of either side alone reach T D log(1/sd), thousands of nats whose last float32 digit is a thousandth,
and cancel. Differences are taken coordinate by coordinate, added in pairs within a chunk of steps, and summed over chunks with
the rounding error carried along, so that the sum loses nothing. What is left is the rounding of the kernels' own means, about
6e-8 |x| / sd per coordinate and step and of either sign: measured at T = 2000 against float64, 1e-4 nats for 20 bits and
4e-3 for 64 reals, a tenth of what the two sides summed apart lose.

The forward chain is known, so the states of a chunk of steps are drawn first, one after the other and cheaply, and the
reverse kernel is then evaluated on all of them together. Nothing is kept of a chunk but its last state: memory depends on
the chunk and never on T.
"""

import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from nedm_ppl.arguments import Count, as_count, check_kind, check_unmasked
from nedm_ppl.inference.bound._divergence import log_ratio
from nedm_ppl.models._diffusion import Diffusion

__all__ = ["draw_log_weights", "plan", "trajectory_log_weight"]

# States evaluated together on a CPU: one trajectory gains by many steps at a time, and 64 keep its cores busy with one.
CPU_ROWS = 64


def trajectory_log_weight(diffusion: Diffusion, x0: Array, path: Array, *, chunk_size: Count | None = None) -> Array:
    r"""$\log w = \log p(x_{0..T}) - \log q(x_{1..T} | x_0)$ of given trajectories: minus the paper's work.

    Args:
        diffusion: The model.
        x0: Data $x_0$, shape (*batch, *event), in the model's units of data.
        path: Trajectories $x_{1..T}$, times ascending, shape (*sample, *batch, T, *event), in the chain's units.
        chunk_size: Steps evaluated at a time; all of them by default.

    Returns:
        Exact, in nats, shape (*sample, *batch).
    """
    check_kind("diffusion", diffusion, Diffusion)
    check_unmasked("x0", x0)
    check_unmasked("path", path)
    last, event_dim = diffusion.num_steps, diffusion.process.event_dim
    states = jnp.moveaxis(path, path.ndim - event_dim - 1, 0)
    x0 = jnp.broadcast_to(jnp.asarray(diffusion.to_chain(x0)), states.shape[1:])
    total = _ends(diffusion, x0, states[0], states[-1]), jnp.zeros(states.shape[1 : states.ndim - event_dim])
    if last > 1:

        def add(total: tuple[Array, Array], times: Array) -> tuple[tuple[Array, Array], None]:
            # x_t lies at index t - 1; beyond T the last step is repeated, and counts for nothing.
            index = jnp.minimum(times, last) - 1
            steps = _steps(diffusion, x0, times, states[index - 1], states[index])
            return _accurate_sum(total, steps), None

        total, _ = jax.lax.scan(
            add, total, _chunks(last, last - 1 if chunk_size is None else as_count("chunk_size", chunk_size))
        )
    return total[0] + total[1] + diffusion.log_jacobian


def draw_log_weights(keys: Array, diffusion: Diffusion, x0: Array, *, chunk_size: int) -> Array:
    r"""Log weights of fresh forward trajectories, one per datum, in memory independent of T.

    Args:
        keys: One key per datum, shape (n,). A trajectory depends on its own key alone, not on what it is drawn beside.
        diffusion: The model.
        x0: Data as the chain has them, shape (n, *event).
        chunk_size: Steps evaluated at a time.

    Returns:
        $\log w$ in nats, shape (n,), and exp of it unbiased for p(x_0).
    """
    process, last = diffusion.process, diffusion.num_steps

    def draw(x: Array, t: Array) -> tuple[Array, Array]:
        def one(key: Array, x: Array) -> Array:
            return process.step(t, x).sample(jax.random.fold_in(key, t)).astype(x.dtype)

        x = jnp.where(t <= last, jax.vmap(one)(keys, x), x)
        return x, x

    def add(carry: tuple, times: Array) -> tuple[tuple, None]:
        before, total = carry
        x, later = jax.lax.scan(draw, before, times)
        earlier = jnp.concatenate([before[None], later[:-1]])
        return (x, _accurate_sum(total, _steps(diffusion, x0, times, earlier, later))), None

    x0 = jnp.asarray(x0, float)
    x1, _ = draw(x0, jnp.asarray(1))
    zero = jnp.zeros(x0.shape[0])
    x_last, total = x1, (zero, zero)
    if last > 1:
        (x_last, total), _ = jax.lax.scan(add, (x1, total), _chunks(last, chunk_size))
    total = _accurate_sum(total, _ends(diffusion, x0, x1, x_last)[None])
    return total[0] + total[1]


def plan(diffusion: Diffusion, num_rows: int, memory_limit: int) -> tuple[int, int]:
    """How many trajectories to draw at a time, and how many of their steps to evaluate together.

    The estimate is the size of every intermediate of the program, as if none were freed: an upper bound on what XLA keeps
    alive, a few times too large where it fuses.

    Args:
        diffusion: The model.
        num_rows: Trajectories wanted at a time.
        memory_limit: Bytes of working memory, beyond the model's own arrays.

    Returns:
        (rows, chunk_size): as many rows as asked for, if one step of all of them fits, and then as many steps as fit; on a CPU no
        more steps than keep its cores busy, because what is evaluated together must fit its caches.

    Raises:
        ValueError: one step of one trajectory does not fit.
    """
    longest = max(1, diffusion.num_steps - 1)
    two = min(2, longest)
    sizes = {(r, c): _intermediate_bytes(diffusion, r, c) for r in (1, 2) for c in {1, two}}
    # The size is bilinear: fixed + rows * per_row + steps * per_step + rows * steps * per_both.
    per_both = sizes[2, two] - sizes[2, 1] - sizes[1, two] + sizes[1, 1]
    per_step = sizes[1, two] - sizes[1, 1] - per_both
    per_row = sizes[2, 1] - sizes[1, 1] - per_both
    fixed = sizes[1, 1] - per_row - per_step - per_both
    rows = min(num_rows, (memory_limit - fixed - per_step) // (per_row + per_both))
    if rows < 1:
        least = fixed + per_row + per_step + per_both
        raise ValueError(
            f"memory_limit must be at least about {least} bytes, what one step of one trajectory of this model takes; "
            f"got {memory_limit}."
        )
    chunk = (memory_limit - fixed - rows * per_row) // max(1, per_step + rows * per_both)
    if jax.default_backend() == "cpu":
        chunk = min(chunk, max(1, CPU_ROWS // rows))
    return rows, max(1, min(chunk, longest))


def _ends(diffusion: Diffusion, x0: Array, x1: Array, x_last: Array) -> Array:
    process = diffusion.process
    start = log_ratio(process.stationary(), process.marginal(diffusion.num_steps, x0), x_last)
    return start + diffusion.first_kernel(x1).log_prob(x0)


def _steps(diffusion: Diffusion, x0: Array, times: Array, earlier: Array, later: Array) -> Array:
    """Log ratios of the steps `times`, shape (len(times), *batch); 0 for a time beyond T."""

    def step(t: Array, earlier: Array, later: Array) -> Array:
        t_inside = jnp.minimum(t, diffusion.num_steps)
        posterior = diffusion.process.posterior(t_inside, later, x0)
        return jnp.where(
            t <= diffusion.num_steps, log_ratio(diffusion.kernel(t_inside, later), posterior, earlier), 0.0
        )

    return jax.vmap(step)(times, earlier, later)


def _chunks(last: int, chunk_size: int) -> Array:
    """Steps 2..T in rows of equal length, no longer than chunk_size; the last row may run beyond T."""
    chunk_size = as_count("chunk_size", chunk_size)
    num_chunks = math.ceil((last - 1) / chunk_size)
    length = math.ceil((last - 1) / num_chunks)
    return 2 + jnp.reshape(jnp.arange(num_chunks * length), (num_chunks, length))


def _accurate_sum(total: tuple[Array, Array], terms: Array) -> tuple[Array, Array]:
    """A running sum and the rounding error it has made so far, with `terms` added over their first axis."""
    while terms.shape[0] > 1:
        half = terms.shape[0] // 2
        terms = jnp.concatenate([terms[:half] + terms[half : 2 * half], terms[2 * half :]])
    value, error = total
    new = value + terms[0]
    # Knuth's two-sum: what the addition lost, exactly.
    part = new - value
    return new, error + ((value - (new - part)) + (terms[0] - part))


def _intermediate_bytes(diffusion: Diffusion, num_rows: int, chunk_size: int) -> int:
    arrays, static = eqx.partition(diffusion, eqx.is_array)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_rows))
    x0 = jax.ShapeDtypeStruct((num_rows, *diffusion.event_shape), jnp.result_type(float))

    def program(keys: Array, arrays: Any, x0: Array) -> Array:
        return draw_log_weights(keys, eqx.combine(arrays, static), x0, chunk_size=chunk_size)

    jaxpr = jax.make_jaxpr(program)(keys, arrays, x0)
    return sum(_bytes_of(variable.aval) for equation in _equations(jaxpr.jaxpr) for variable in equation.outvars)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a program, those of inner programs included, but for the ones that only wrap an inner program."""
    for equation in jaxpr.eqns:
        inner = [
            getattr(leaf, "jaxpr", leaf)
            for parameter in equation.params.values()
            for leaf in jax.tree.leaves(parameter, is_leaf=_is_jaxpr)
            if _is_jaxpr(leaf)
        ]
        for program in inner:
            yield from _equations(program)
        yield equation


def _is_jaxpr(leaf: Any) -> bool:
    return hasattr(leaf, "eqns") or hasattr(getattr(leaf, "jaxpr", None), "eqns")


def _bytes_of(aval: Any) -> int:
    itemsize = getattr(aval.dtype, "itemsize", 8)
    return math.prod(aval.shape) * itemsize
