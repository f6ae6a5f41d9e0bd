r"""The updates of a run as one compiled loop, which equal runs share.

A loop is compiled for a model's structure, its functions, an optimizer, an objective and the shape of a minibatch. Arrays of the
model, minibatches and keys are its arguments: no more of the data is on the device. Functions are equal where they are one object:
what a function holds is compiled with it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding
from jax.typing import ArrayLike
from numpyro.handlers import scale
from numpyro.infer import ELBO, SVI

from nedm_ppl.inference._devices import laid_out, on_all
from nedm_ppl.inference.bound._bound import unsampled_trajectories
from nedm_ppl.models._diffusion import Diffusion

__all__ = ["Augmentation", "Part", "Program", "State", "advancing", "convolves", "described"]

Augmentation = Callable[..., Any]
KEPT = 8  # compiled loops; a longer list would keep the memory of runs that do not come again


class Part(NamedTuple):
    """Data, shape (N, *event), and the context of every datum, or None."""

    x0: Any
    context: Any

    def rows(self, index: Any) -> "Part":
        return Part(self.x0[index], None if self.context is None else self.context[index])


class State(NamedTuple):
    """What a run carries from one step to the next."""

    svi: Any
    average: Any
    best: Any


class Program(NamedTuple):
    """What an update is made of."""

    diffusion: Diffusion
    optimizer: Any
    objective: ELBO
    batch_size: int
    average_decay: float
    augment: Augmentation | None

    def svi(self) -> SVI:
        """NumPyro's SVI on nats per datum, whatever the size of the minibatch."""
        programs = (scale(program, 1.0 / self.batch_size) for program in (self.diffusion.model, self.diffusion.guide))
        return SVI(*programs, self.optimizer, self.objective)

    def first_state(self, svi: SVI, rng_key: Array, batch: Part) -> Any:
        """SVI's first state; from then on it knows the parameters."""
        with unsampled_trajectories():
            return svi.init(rng_key, *batch)


def advancing(
    program: Program, key_data: Array, data: Part, sharding: Sharding | None = None
) -> Callable[[State, int, int], tuple[State, Array, Array]]:
    """(state, first, count) -> (state, losses (count,), whether the weights are finite): updates as one compiled loop."""
    seed = int(jax.random.randint(key_data, (), 0, np.iinfo(np.int32).max))
    key_augment = jax.random.fold_in(key_data, 1)
    arrays, static = eqx.partition(on_all(program, sharding), eqx.is_array)
    key_augment = on_all(key_augment, sharding)
    loop = _loop(static)
    # On a CPU, XLA works a convolution's gradient by its weights some twenty times slower inside a loop than outside.
    alone = jax.default_backend() == "cpu" and convolves(program.diffusion)

    def advance(state: State, first: int, count: int) -> tuple[State, Array, Array]:
        indices = _minibatches(seed, len(data.x0), program.batch_size, first, count)
        batches, state = laid_out(data.rows(indices), sharding, axis=1), on_all(state, sharding)
        if not alone:
            return loop(arrays, key_augment, state, batches, first)
        losses, finite = [], jnp.asarray(True)
        for i in range(count):
            batch = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batches)
            state, loss, is_finite = loop(arrays, key_augment, state, batch, first + i)
            losses.append(loss)
            finite = finite & is_finite
        return state, jnp.concatenate(losses), finite

    return advance


def convolves(diffusion: Diffusion) -> bool:
    """Whether a step of the model has a convolution, by its jaxpr."""

    def step(t: Array, x: Array) -> Array:
        return diffusion.kernel(t, x).log_prob(x)

    def within(jaxpr: Any) -> bool:
        inner = (
            value
            for equation in jaxpr.eqns
            for parameter in equation.params.values()
            for value in (parameter if isinstance(parameter, tuple | list) else (parameter,))
        )
        named = any(equation.primitive.name == "conv_general_dilated" for equation in jaxpr.eqns)
        return named or any(within(getattr(value, "jaxpr", value)) for value in inner if _is_jaxpr(value))

    t, x = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(diffusion.event_shape, jnp.float32)
    return within(jax.make_jaxpr(step)(t, x).jaxpr)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def described(objective: ELBO) -> str:
    """An objective's name and options, so that a resumed run can be told from another."""
    options = ", ".join(f"{name}={value}" for name, value in sorted(vars(objective).items()) if not callable(value))
    return f"{type(objective).__name__}({options})"


def _loop(static: Program) -> Callable[..., tuple[State, Array, Array]]:
    """The loop of a program without its arrays: one that is kept, where there is an equal one, else a new one."""
    leaves, structure = jax.tree.flatten(static)
    of = structure, tuple((type(leaf), leaf) for leaf in leaves), described(static.objective)
    try:
        # What an augmentation reads may change from run to run.
        return _kept(*of) if static.augment is None else _compiled(*of)
    except TypeError:  # a part that has no hash
        return _compiled(*of)


def _compiled(
    structure: Any, leaves: tuple[tuple[type, Any], ...], _: str
) -> Callable[..., tuple[State, Array, Array]]:
    static = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])

    @jax.jit
    def run(
        arrays: Program, key_augment: Array, state: State, batches: Part, first: ArrayLike
    ) -> tuple[State, Array, Array]:
        program: Program = eqx.combine(arrays, static)
        svi = program.svi()
        one = jax.tree.map(lambda leaf: leaf[0], batches)
        jax.eval_shape(lambda: program.first_state(svi, state.svi.rng_key, one))  # it must know the parameters

        def update(carry: tuple[State, Array], batch: Any) -> tuple[tuple[State, Array], Array]:
            state, number = carry
            if program.augment is not None:
                key = jax.random.fold_in(key_augment, number)
                batch = (program.augment(key, batch[0]), None) if batch[1] is None else program.augment(key, *batch)
            svi_state, loss = svi.update(state.svi, *batch)
            decay = program.average_decay
            rate = 1.0 - jnp.minimum(decay, (1.0 + number) / (10.0 + number)) if decay else 1.0
            average = jax.tree.map(lambda a, p: a + rate * (p - a), state.average, svi.get_params(svi_state))
            return (State(svi_state, average, state.best), number + 1), loss

        start = state, jnp.asarray(first)
        if len(batches.x0) == 1:  # no loop, for what is slow inside one
            (state, _), loss = update(start, one)
            losses = loss[None]
        else:
            (state, _), losses = jax.lax.scan(update, start, batches)
        finite = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(svi.get_params(state.svi))]
        return state, losses, jnp.all(jnp.stack(finite))

    return run


_kept = functools.lru_cache(KEPT)(_compiled)


@functools.lru_cache(2)
def _permutation(seed: int, epoch: int, num_data: int) -> np.ndarray:
    """The order of an epoch, kept while it lasts."""
    return np.random.default_rng([seed, epoch]).permutation(num_data)


def _minibatches(seed: int, num_data: int, batch_size: int, first: int, count: int) -> np.ndarray:
    """Row numbers of minibatches first..first + count - 1: epochs of one permutation each, the remainder left out.

    Of fewer data than a minibatch each has its own permutation, over and over."""
    if num_data < batch_size:
        orders = (np.random.default_rng([seed, batch]).permutation(num_data) for batch in range(first, first + count))
        return np.stack([np.resize(order, batch_size) for order in orders])
    per_epoch = num_data // batch_size
    rows = np.empty((count, batch_size), np.int64)
    for epoch in range(first // per_epoch, (first + count - 1) // per_epoch + 1):
        permutation = _permutation(seed, epoch, num_data)
        for batch in range(max(first, epoch * per_epoch), min(first + count, (epoch + 1) * per_epoch)):
            start = (batch - epoch * per_epoch) * batch_size
            rows[batch - first] = permutation[start : start + batch_size]
    return rows
