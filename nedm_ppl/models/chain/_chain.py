r"""A Markov chain as one NumPyro distribution over its whole trajectory.

A kernel is any callable `(t, x) -> Distribution`, with `t` a scalar integer and `x` a state with any batch axes on the
left. Forward, reverse and perturbed chains are all a `MarkovChain`: an initial law, a kernel, and a direction. Whatever the
direction, a trajectory is stored with time as its first event axis, ascending from data to noise, and step `t` joins
$x_{t-1}$ and $x_t$:

$$\log p(x_{a..b}) = \log p(x_b) + \sum_{t=a+1}^{b} \log p(x_{t-1} | x_t) \quad\text{(reverse)}, \qquad
  \log q(x_{a..b}) = \log q(x_a) + \sum_{t=a+1}^{b} \log q(x_t | x_{t-1}) \quad\text{(forward)}.$$

Sampling is one `lax.scan`; `log_prob` evaluates all steps in parallel. Neither unrolls, so compile time does not
depend on T.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints, kl_divergence

from nedm_ppl._compat import Tracer, validate_sample
from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key, check_kind
from nedm_ppl.models.chain._captured import combine, partition
from nedm_ppl.models.chain._mapped import Mapped, check_expansion

__all__ = ["Kernel", "MarkovChain"]

Kernel = Callable[[ArrayLike, Array], Distribution]


class MarkovChain(Mapped):
    r"""The law of a trajectory $x_a..x_b$, times ascending; event shape (b - a + 1, *state).

    Args:
        initial: Law of the state the chain starts from: $x_a$ running forward, $x_b$ running in reverse. Its batch
            shape is the chain's.
        kernel: `(t, x) -> Distribution`; forward it is the law of $x_t$ given $x_{t-1} = x$, in reverse that of
            $x_{t-1}$ given $x_t = x$. Event shape that of `initial`, batch shape that of x.
        first: a, the earliest time stored.
        last: b, the latest.
        reverse: Whether the chain runs from b to a.
        chunk_size: Number of steps `log_prob` evaluates at a time; all of them by default.

    Raises:
        ValueError: last < first, or chunk_size < 1.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("initial", "_kernel_arrays")
    pytree_aux_fields = ("_kernel_static", "first", "last", "reverse", "chunk_size")

    def __init__(
        self,
        initial: Distribution,
        kernel: Kernel,
        *,
        first: Count,
        last: Count,
        reverse: bool = False,
        chunk_size: Count | None = None,
        validate_args: bool | None = None,
    ):
        check_kind("initial", initial, Distribution)
        first, last = as_count("first", first, least=0), as_count("last", last, least=0)
        if last < first:
            raise ValueError(f"last must be at least first; got times {first}..{last}.")
        chunk_size = None if chunk_size is None else as_count("chunk_size", chunk_size)
        self.initial, self.first, self.last = initial, first, last
        self.reverse, self.chunk_size = reverse, chunk_size
        # A distribution is a pytree: the kernel's arrays are its leaves, and the code around them is static.
        self._kernel_arrays, self._kernel_static = partition(kernel)
        super().__init__(
            batch_shape=initial.batch_shape,
            event_shape=(last - first + 1, *initial.event_shape),
            validate_args=validate_args,
        )
        self.count_axes()

    @property
    def kernel(self) -> Kernel:
        """The transition kernel, `(t, x) -> Distribution`; a ValueError where `jax.vmap` returned chains of several."""
        if self._kernel_arrays:
            self.check_one("chain")
        return combine(self._kernel_arrays, self._kernel_static)

    @property
    def num_steps(self) -> int:
        """Number of transitions, last - first."""
        return self.last - self.first

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        base, extra = self.initial.support, self.event_dim - self.initial.support.event_dim
        return constraints.independent(base, extra)

    @property
    def is_discrete(self) -> bool:
        return self.initial.is_discrete

    @property
    def has_rsample(self) -> bool:
        return self.initial.has_rsample

    def rsample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """A trajectory with pathwise gradients, where the initial law and the kernel have them."""
        if not self.has_rsample:
            raise NotImplementedError("This chain's states have no pathwise gradient.")
        return self.sample(key, sample_shape)

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Exact draws, shape (*sample_shape, *batch, last - first + 1, *state)."""
        sample_shape = _checked(key, sample_shape)
        if self.mapped_shape:
            return self.draw_each(lambda chain, key: chain.sample(key, sample_shape), key, sample_shape)
        start, path = self._scan(key, sample_shape, keep=True)
        path = jnp.concatenate([path[::-1], start[None]] if self.reverse else [start[None], path])
        return jnp.moveaxis(path, 0, start.ndim - self.initial.event_dim)

    def sample_end(self, key: Array, sample_shape: Shape = ()) -> Array:
        """The state the chain ends in, equal to that of `sample` under the same key, in memory independent of T."""
        sample_shape = _checked(key, sample_shape)
        if self.mapped_shape:
            return self.draw_each(lambda chain, key: chain.sample_end(key, sample_shape), key, sample_shape)
        return self._scan(key, sample_shape, keep=False)[1]

    def _scan(self, key: Array, sample_shape: tuple[int, ...], *, keep: bool) -> tuple[Array, Any]:
        key_start, key_steps = jax.random.split(key)
        start = self.initial.sample(key_start, sample_shape)
        times = jnp.arange(self.first + 1, self.last + 1)
        end, path = _steps(self.kernel, key_steps, start, times[::-1] if self.reverse else times, keep)
        return start, path if keep else end

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Exact log density (or mass) of a trajectory in nats, shape (*sample_shape, *batch)."""
        value = jnp.asarray(value)
        if self.mapped_shape:
            return self.score_each(lambda chain, value: chain.log_prob(value), value)
        start = self.at(value, self.last if self.reverse else self.first)
        return self.initial.log_prob(start) + jnp.sum(self.log_prob_steps(value), axis=-1)

    def log_prob_steps(self, value: Array) -> Array:
        """Log density of every transition, times ascending, in nats; shape (*sample_shape, *batch, last - first)."""
        if self.mapped_shape:
            return self.score_each(lambda chain, value: chain.log_prob_steps(value), value)
        path = jnp.moveaxis(value, value.ndim - self.event_dim, 0)
        kernel = self.kernel

        def step(args: tuple[Array, Array, Array]) -> Array:
            t, earlier, later = args
            return kernel(t, later).log_prob(earlier) if self.reverse else kernel(t, earlier).log_prob(later)

        times = jnp.arange(self.first + 1, self.last + 1)
        if self.num_steps == 0:
            return jnp.zeros((*path.shape[1 : path.ndim - self.initial.event_dim], 0))
        chunk = self.num_steps if self.chunk_size is None else self.chunk_size
        if chunk >= self.num_steps:
            steps = jax.vmap(step)((times, path[:-1], path[1:]))
        else:
            steps = jax.lax.map(step, (times, path[:-1], path[1:]), batch_size=chunk)
        return jnp.moveaxis(steps, 0, -1)

    def at(self, value: Array, t: int) -> Array:
        """The state at time t of a trajectory of this chain."""
        if not self.first <= t <= self.last:
            raise ValueError(f"t must lie in {self.first}..{self.last}, the times of this trajectory; got {t}.")
        return jnp.take(value, t - self.first, axis=jnp.ndim(value) - self.event_dim)

    def expand(self, batch_shape: tuple[int, ...]) -> Distribution:
        """Independent trajectories over a larger batch shape.

        Raises:
            ValueError: a shape that the chain's own does not broadcast to.
        """
        batch_shape = check_expansion(self.batch_shape, batch_shape)
        if batch_shape == self.batch_shape:
            return self
        if self.mapped_shape:
            return super().expand(batch_shape)
        return MarkovChain(
            self.initial.expand(batch_shape),
            self.kernel,
            first=self.first,
            last=self.last,
            reverse=self.reverse,
            chunk_size=self.chunk_size,
        )

    def __repr__(self) -> str:
        size = math.prod(self.initial.event_shape)
        direction = "reverse" if self.reverse else "forward"
        return f"MarkovChain({direction}, times {self.first}..{self.last}, {size} coordinates)"


@kl_divergence.register(MarkovChain, MarkovChain)
def _divergence(q: MarkovChain, p: MarkovChain) -> Array:
    """Exact where two chains differ in the law of their start alone: what follows from a state is then the same in both."""
    if (q.first, q.last, q.reverse) != (p.first, p.last, p.reverse):
        raise NotImplementedError(
            f"the divergence of {q!r} from {p!r} has no closed form: their times or directions differ."
        )
    if q.num_steps > 0 and not _same(q, p):
        raise NotImplementedError(
            f"the divergence of {q!r} from {p!r} has a closed form only where they have the same kernel. Average "
            "q.log_prob(x) - p.log_prob(x) over draws x of q; for a model's forward and reverse chains use inference.bound_terms."
        )
    return kl_divergence(q.initial, p.initial)


def _same(q: MarkovChain, p: MarkovChain) -> bool:
    """Whether two chains are known to have one kernel; arrays that are traced are known to be the same only as one object."""
    ours, theirs = q._kernel_arrays, p._kernel_arrays
    equal = [eqx.tree_equal(q._kernel_static, p._kernel_static), len(ours) == len(theirs)]
    equal += [a is b or eqx.tree_equal(a, b) for a, b in zip(ours, theirs, strict=False)]
    return not any(isinstance(one, Tracer) for one in equal) and all(bool(one) for one in equal)


def _checked(key: Array, sample_shape: Shape) -> tuple[int, ...]:
    check_key(key, "key")
    return as_shape("sample_shape", sample_shape)


@eqx.filter_jit
def _steps(kernel: Kernel, key: Array, start: Array, times: Array, keep: bool) -> tuple[Array, Array | None]:
    """The last state and, to keep, all after the first; compiled once for a kernel's code, not at every call."""

    def body(x: Array, t: Array) -> tuple[Array, Array | None]:
        x = kernel(t, x).sample(jax.random.fold_in(key, t)).astype(start.dtype)
        return x, x if keep else None

    return jax.lax.scan(body, start, times)
