r"""Exact posteriors of a diffusion by a particle filter over its reverse chain (Sections 2.3 and 2.5 together).

The perturbed steps of `posterior` are proposals. With their normalizers kept as weights,

$$w_t = w_{t+1}\, \frac{p(x_t | x_{t+1})}{\tilde p(x_t | x_{t+1})}\, \frac{r_t(x_t)}{r_{t+1}(x_{t+1})}, \qquad
  w_T = \frac{\pi(x_T)\, r_T(x_T)}{\tilde p(x_T)},$$

the particles at time 0 target $p(x_0)\, r(x_0)$ whatever the intermediate $r_t$ are, as long as they are positive wherever the
target is, and the mean weight, multiplied up over resampling, is unbiased for $Z = \int p(x_0)\, r(x_0)\, dx_0$. One particle
without weights is the paper's method.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jax.sharding import Sharding
from jax.typing import ArrayLike

from nedm_ppl.inference.posterior._multiplied import Look, MultipliedDiffusion
from nedm_ppl.inference.posterior._proposals import log_density
from nedm_ppl.numbers import effective_sample_size, log_mean_exp

__all__ = ["Particles", "Resampling", "multinomial", "particle_filter", "systematic"]

Resampling = Callable[[Array, Array], Array]


class Particles(NamedTuple):
    """Weighted particles at time 0, and how the filter fared on the way. Of one run.

    Attributes:
        x: Particles, shape (N, *event).
        log_weights: Their normalized log weights, shape (N,).
        log_evidence: log of the estimate of Z, which itself is unbiased; nats.
        ess: Effective sample size at t = 0..T, before any resampling there, shape (T + 1,).
        num_ancestors: Number of the particles at T that have descendants at t = 0..T, shape (T + 1,).
        log_evidence_steps: log of the estimate of the evidence so far, at t = 0..T, shape (T + 1,): minus infinity once all weight
            is lost.
    """

    x: Array
    log_weights: Array
    log_evidence: Array
    ess: Array
    num_ancestors: Array
    log_evidence_steps: Array


def systematic(rng_key: Array, weights: Array) -> Array:
    """Indices of N survivors by systematic resampling: one uniform number, and counts within 1 of N times the weight.

    Source: Kitagawa, Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models, 1996."""
    num = weights.shape[0]
    positions = (jnp.arange(num) + jax.random.uniform(rng_key)) / num
    return _invert(weights, positions)


def multinomial(rng_key: Array, weights: Array) -> Array:
    """Indices of N survivors, drawn independently."""
    return _invert(weights, jax.random.uniform(rng_key, weights.shape))


class _State(NamedTuple):
    """The filter on its way to the next state."""

    x: Array
    log_weights: Array  # since the last resampling, without r_t(x_t)
    log_evidence: Array  # of what was resampled away
    ancestors: Array


def particle_filter(
    rng_key: Array,
    target: MultipliedDiffusion,
    num_particles: int,
    *,
    resampling: Resampling = systematic,
    threshold: float = 0.5,
    sharding: Sharding | None = None,
) -> Particles:
    r"""Particles of $p(x_0)\, r(x_0)$; exact as their number grows, with an unbiased estimate of Z for any number.

    A pure function, to be jitted and mapped over keys or targets. Memory does not grow with T. With one particle, and an r that has
    a closed form with the model's kernels, it takes the draws of `target.sample` under the same key.

    Args:
        rng_key: Random key.
        target: The proposals and $r_t$, from `multiply`; its r_t must be positive where p r is. Held at a delta (`Known` with
            `constant` or `power`) they are not.
        num_particles: N.
        resampling: `(key, weights) -> indices`.
        threshold: Resample where the effective sample size falls below this share of N; 0 never, 1 always.
        sharding: How particles are laid over devices, for their first axis.

    Returns:
        Particles at time 0, in the data's units.
    """
    found = filtered(rng_key, target, num_particles, resampling=resampling, threshold=threshold, sharding=sharding)
    return found._replace(x=target.diffusion.to_data(found.x))


def filtered(
    rng_key: Array,
    target: MultipliedDiffusion,
    num_particles: int,
    *,
    resampling: Resampling,
    threshold: float,
    sharding: Sharding | None,
) -> Particles:
    """`particle_filter`, with its particles as the chain has them."""
    key_chain, key_first = jax.random.split(rng_key)
    key_start, key_steps = jax.random.split(key_chain)
    key_resample = jax.random.fold_in(key_first, 1)

    def placed(x: Array) -> Array:
        return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)

    def resampled(key: Array, state: _State, look: Look, is_row: Look) -> tuple[_State, Look]:
        def survive() -> tuple[_State, Look]:
            chosen = resampling(key, jnp.exp(state.log_weights - logsumexp(state.log_weights)))
            evidence = state.log_evidence + log_mean_exp(state.log_weights)
            x, kept = placed(state.x[chosen]), jax.tree.map(_rows(chosen), look, is_row)
            return _State(x, jnp.zeros_like(state.log_weights), evidence, state.ancestors[chosen]), kept

        poor = effective_sample_size(state.log_weights) < threshold * num_particles
        return jax.lax.cond(poor & jnp.isfinite(logsumexp(state.log_weights)), survive, lambda: (state, look))

    def step(
        state: _State, look: Look, t: ArrayLike, key: Array, is_row: Look
    ) -> tuple[_State, tuple[Array, Array, Array]]:
        state = state._replace(log_weights=usable(state.log_weights + look.log_r))
        reported = report(state)
        state, look = resampled(jax.random.fold_in(key_resample, t), state, look, is_row)
        proposal = target.proposal(look)
        x = placed(proposal.sample(key).astype(state.x.dtype))
        ratio = log_density(look.law, x) - proposal.log_prob(x) - look.log_r
        return state._replace(x=x, log_weights=usable(state.log_weights + ratio)), reported

    def report(state: _State) -> tuple[Array, Array, Array]:
        alive = jnp.zeros(num_particles, int).at[state.ancestors].set(1)
        evidence = state.log_evidence + log_mean_exp(state.log_weights)
        return effective_sample_size(state.log_weights), jnp.sum(alive), evidence

    initial = target.initial()
    x = placed(initial.sample(key_start, (num_particles,)))
    log_weights = target.diffusion.process.stationary().log_prob(x) - initial.log_prob(x)
    state = _State(x, usable(log_weights), jnp.zeros(()), jnp.arange(num_particles))
    is_row = by_particle(lambda x: target.look(target.num_steps, x), x)
    state, reports = jax.lax.scan(
        lambda state, t: step(state, target.look(t, state.x), t, jax.random.fold_in(key_steps, t), is_row),
        state,
        jnp.arange(target.num_steps, 1, -1),
    )
    is_row = by_particle(target.look_first, x)
    state, at_1 = step(state, target.look_first(state.x), 1, key_first, is_row)
    state = state._replace(log_weights=usable(state.log_weights + jax.vmap(target.r.log_r)(state.x)))
    series = [
        jnp.concatenate([jnp.stack([last, before]), along[::-1]])
        for last, before, along in zip(report(state), at_1, reports, strict=True)
    ]
    log_evidence = state.log_evidence + log_mean_exp(state.log_weights)
    return Particles(state.x, state.log_weights - logsumexp(state.log_weights), log_evidence, *series)


def usable(log_weights: Array) -> Array:
    """A weight that is NaN counts as zero."""
    return jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)


def by_particle(look: Callable[[Array], Look], x: Array) -> Look:
    """Which arrays of a look have a row for every particle: those that grow with one particle more."""
    more = jax.ShapeDtypeStruct((len(x) + 1, *x.shape[1:]), x.dtype)
    now, then = jax.eval_shape(look, x), jax.eval_shape(look, more)
    pairs = zip(jax.tree.leaves(now), jax.tree.leaves(then), strict=True)
    return jax.tree.unflatten(jax.tree.structure(now), [a.shape != b.shape for a, b in pairs])


def _rows(chosen: Array) -> Callable[[Array, bool], Array]:
    """The chosen rows of an array, where it has a row for every particle."""
    return lambda leaf, is_row: leaf[chosen] if is_row else leaf


def _invert(weights: Array, positions: Array) -> Array:
    cumulative = jnp.cumsum(weights)
    # The last sum is 1 up to rounding; dividing by it keeps every position inside.
    return jnp.minimum(jnp.searchsorted(cumulative / cumulative[-1], positions, side="right"), weights.shape[0] - 1)


run_filter = eqx.filter_jit(particle_filter)
