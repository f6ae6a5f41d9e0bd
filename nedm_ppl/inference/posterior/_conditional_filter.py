r"""Two moves of a whole trajectory $x_0..x_T$ that leave $p(x_{0..T})\, r(x_0)$ as it is: the steps of particle Gibbs.

**The conditional particle filter.** The filter of `particles`, with one particle held on the trajectory of before; at the end a
particle is chosen by its weight and traced back to the start. It leaves the target invariant for every number of particles,
whatever the proposals $\tilde p$ and the intermediate $r_t$. Where particles are resampled, the kept one draws its ancestor too,
given the rest of its way,

$$P(a_t = i) \propto w_t^i\, \frac{p(x^*_{t-1} | x_t^i)}{r_t(x_t^i)},$$

for $w_t$ contains an $r_t(x_t)$ that the rest of the way replaces by the true r. Source: Lindsten, Jordan, Schön, Particle Gibbs
with Ancestor Sampling, 2014, with resampling where the weights ask for it.

**Conditional importance resampling.** Given $x_s$, what is later than s has the law $p(x_{s+1..T} | x_s)$, in which r does not
occur and for which the forward chain is a proposal. The trajectory of before is one of N candidates, and one is chosen by weight,

$$\log w = \log \frac{\pi(x_T)}{q(x_T | x_0)} + \sum_{t > s} \log \frac{p(x_{t-1} | x_t)}{q(x_{t-1} | x_t, x_0)},$$

which is $p(x_{s..T}) / q(x_{s+1..T} | x_s)$ up to a factor of $x_0..x_s$ alone, written so that every summand is small
(`weights`).

Where steps are small a filter from T forgets its start, and the ancestors of the kept particle never change. With both moves at a
random s, drawn apart from the state, the trajectory moves at every scale: above s by the second, below s by the first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from nedm_ppl.inference.likelihood._weights import log_ratio
from nedm_ppl.inference.posterior._multiplied import Look, MultipliedDiffusion
from nedm_ppl.inference.posterior._multiplier import NEVER
from nedm_ppl.inference.posterior._particles import usable
from nedm_ppl.inference.posterior._proposals import log_density
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.numbers import effective_sample_size

__all__ = ["conditional_filter", "conditional_importance"]

THRESHOLD = 0.5  # resample where the effective sample size falls below this share of the particles


class _State(NamedTuple):
    """The filter on its way: what `particles` carries, and where everything came from. Particle 0 is the kept one."""

    x: Array
    log_weights: Array  # since the last resampling, without r_t(x_t)
    history: Array  # states at t = 0..T, (T + 1, N, *event)
    ancestors: Array  # of the particles at t = 0..T - 1, among those at t + 1, (T, N)


def conditional_filter(
    rng_key: Array,
    target: MultipliedDiffusion,
    path: Array,
    num_particles: int,
    *,
    start: ArrayLike | None = None,
) -> Array:
    r"""A trajectory from a kernel that leaves $p(x_{0..T})\, r(x_0)$ invariant, for any number of particles from 2 on.

    A pure function, to be jitted and mapped over keys, targets and trajectories.

    Args:
        rng_key: Random key.
        target: The proposals and $r_t$, from `multiply`; its r_t must be positive where p r is.
        path: The trajectory of before, shape (T + 1, *event), times ascending, with $r(x_0) > 0$.
        num_particles: N, the kept one among them.
        start: s: states from $x_s$ on are held; at 0 all of them. By default, as at T + 1, none.

    Returns:
        A trajectory, shape (T + 1, *event).
    """
    last = target.num_steps
    start = jnp.asarray(last + 1 if start is None else start)
    key_start, key_steps, key_choose = jax.random.split(rng_key, 3)
    initial, is_free = target.initial(), start > last
    history = jnp.repeat(path[:, None], num_particles, axis=1)
    fresh = initial.sample(key_start, (num_particles,)).astype(path.dtype).at[0].set(path[-1])
    history = history.at[last].set(jnp.where(is_free, fresh, history[last]))
    log_weights = target.diffusion.process.stationary().log_prob(fresh) - initial.log_prob(fresh)
    ancestors = jnp.broadcast_to(jnp.arange(num_particles), (last, num_particles))
    top = jnp.minimum(start, last)
    state = _State(history[top], usable(jnp.where(is_free, log_weights, 0.0)), history, ancestors)

    def step(state: _State, t: ArrayLike, look: Look) -> _State:
        key_resample, key_move = jax.random.split(jax.random.fold_in(key_steps, t))
        # r_t may be any positive function: where it is zero or NaN, it is another.
        look = look._replace(log_r=jnp.where(jnp.isfinite(look.log_r), look.log_r, NEVER))
        kept = path[t - 1]
        chosen, log_weights = resample(key_resample, state.log_weights, look, kept)
        look = jax.tree.map(lambda leaf: leaf[chosen], look)
        keys = jax.random.split(key_move, num_particles)
        x = jax.vmap(lambda look, key: target.proposal(look).sample(key))(look, keys).astype(path.dtype).at[0].set(kept)
        ratio = (
            jax.vmap(lambda look, x: log_density(look.law, x) - target.proposal(look).log_prob(x))(look, x) - look.log_r
        )
        return _State(
            x,
            usable(log_weights + ratio),
            state.history.at[t - 1].set(x),
            state.ancestors.at[t - 1].set(chosen),
        )

    def one(i: Array, state: _State) -> _State:
        return step(state, top - i, jax.vmap(lambda x: target.look(top - i, x))(state.x))

    state = jax.lax.fori_loop(0, top - 1, one, state)
    state = step(state, 1, jax.vmap(target.look_first)(state.x))
    log_weights = usable(state.log_weights + jax.vmap(target.r.log_r)(state.x))
    end = jnp.where(top > 0, choose(key_choose, log_weights), 0)

    def back(index: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        states, parents = row
        return parents[index], states[index]

    end, earlier = jax.lax.scan(back, end, (state.history[:-1], state.ancestors))
    return jnp.concatenate([earlier, state.history[-1, end][None]])


def conditional_importance(
    rng_key: Array, diffusion: Diffusion, path: Array, num_trajectories: int, *, start: ArrayLike = 0
) -> Array:
    r"""A trajectory from a kernel that leaves $p(x_{0..T})\, r(x_0)$ invariant for every r, and $x_0..x_s$ as they are.

    A pure function, to be jitted and mapped over keys, models and trajectories.

    Args:
        rng_key: Random key.
        diffusion: The model p.
        path: The trajectory of before, shape (T + 1, *event), times ascending.
        num_trajectories: N, the one of before among them.
        start: s: from T on nothing moves.

    Returns:
        A trajectory, shape (T + 1, *event).
    """
    process, last = diffusion.process, diffusion.num_steps
    start = jnp.asarray(start)
    key_steps, key_choose = jax.random.split(rng_key)
    x0 = path[0]

    def later(t: ArrayLike, x: Array) -> Array:
        return process.step(t, x).sample(jax.random.fold_in(key_steps, t)).astype(path.dtype).at[0].set(path[t])

    def one(t: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, log_weights, history = state
        after = later(t, x)
        ratio = log_ratio(diffusion.kernel(t, after), process.posterior(t, after, x0), x)
        return after, usable(log_weights + ratio), history.at[t].set(after)

    history = jnp.repeat(path[:, None], num_trajectories, axis=1)
    is_whole = start == 0
    x1 = jnp.where(is_whole, later(1, history[0]), history[1])
    log_weights = jnp.where(is_whole, diffusion.first_kernel(x1).log_prob(x0), 0.0)
    begin = jnp.clip(start, 1, last)
    x = jnp.where(is_whole, x1, history[begin])
    state = x, usable(log_weights), history.at[1].set(x1)
    x, log_weights, history = jax.lax.fori_loop(begin + 1, last + 1, one, state)
    log_weights = log_weights + log_ratio(process.stationary(), process.marginal(last, x0), x)
    return history[:, choose(key_choose, usable(log_weights))]


def resample(key: Array, log_weights: Array, look: Look, kept: Array) -> tuple[Array, Array]:
    """Ancestors of the next particles, where the weights ask for new ones, and the weights they leave behind."""
    weighted = usable(log_weights + look.log_r)
    num = weighted.shape[0]
    key_others, key_kept = jax.random.split(key)
    others = jax.random.categorical(key_others, weighted, shape=(num,))
    # With w_t / r_t: the rest of the kept way ends in the true r.
    own = jax.random.categorical(key_kept, usable(log_weights + jax.vmap(lambda law: log_density(law, kept))(look.law)))
    is_poor = effective_sample_size(weighted) < THRESHOLD * num
    chosen = jnp.where(is_poor, others.at[0].set(own), jnp.arange(num))
    return chosen, jnp.where(is_poor, 0.0, weighted)


def choose(key: Array, log_weights: Array) -> Array:
    """An index by a kernel that leaves the law of weights invariant and starts at 0: another by weight, if it is accepted.

    Source: Liu, Peskun's theorem and a modified discrete-state Gibbs sampler, 1996: it stays less often than a fresh draw."""
    key_other, key_accept = jax.random.split(key)
    others = log_weights.at[0].set(-jnp.inf)
    proposed = jax.random.categorical(key_other, others)
    log_accept = logsumexp(others) - logsumexp(log_weights.at[proposed].set(-jnp.inf))
    accepted = jnp.log(jax.random.uniform(key_accept)) < log_accept
    return jnp.where(accepted & jnp.isfinite(log_weights[proposed]), proposed, 0)
