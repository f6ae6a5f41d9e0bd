"""The moves of particle Gibbs leave the exact law of whole trajectories as it is, for any number of particles."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp

from nedm_ppl import models
from nedm_ppl.inference import BernoulliObservation, multiply
from nedm_ppl.inference.posterior import conditional_filter, conditional_importance
from nedm_ppl.inference.posterior._conditional_filter import choose, resample
from nedm_ppl.inference.posterior._multiplied import Look
from tests.conftest import SIGNIFICANCE, assert_mean, chi_square
from tests.exact import product_law, reverse_matrices, states

DIM, STEPS, NUM = 2, 3, 40_000
LOG_R = jnp.array([0.0, 3.0, -2.0, 0.7])
CODE = jnp.array([2.0, 1.0])


def log_r(x):
    return LOG_R[jnp.round(x @ CODE).astype(int)]


@pytest.fixture(scope="module")
def bits():
    """A model of two bits in three steps, the law of its trajectories under r by enumeration, and exact draws of it."""
    process = models.BernoulliDiffusion((DIM,), models.schedules.erasing(STEPS), rate=0.4)
    coupling = 1.5 * jax.random.normal(jax.random.key(3), (DIM, DIM))
    reverse = models.BitPrediction(lambda t, x: 2.0 * jnp.tanh((2.0 * x - 1.0) @ coupling))
    diffusion = models.Diffusion(process, reverse, first_step="learned")
    law = product_law([0.4] * DIM)
    for matrix in reversed(reverse_matrices(diffusion)):  # axes x_T, ..., x_0
        law = law[..., None] * matrix.reshape((1,) * (law.ndim - 1) + matrix.shape)
    law = law * np.exp(np.asarray(LOG_R))
    law = law / law.sum()
    drawn = np.random.default_rng(0).choice(law.size, size=NUM, p=law.ravel())
    index = np.stack(np.unravel_index(drawn, law.shape), axis=-1)[:, ::-1]
    return diffusion, law, jnp.asarray(states(DIM)[index], float)


def p_value(paths, law) -> float:
    """Of the counts of all 256 trajectories; the rarest are counted together."""
    code = np.round(np.asarray(paths) @ np.asarray(CODE)).astype(int)[:, ::-1]
    counts = np.bincount(np.ravel_multi_index(tuple(code.T), law.shape), minlength=law.size)
    rare = law.ravel() * len(code) < 5.0
    return chi_square(
        np.append(counts[~rare], counts[rare].sum()), np.append(law.ravel()[~rare], law.ravel()[rare].sum())
    )


def moves(diffusion, paths, num_particles, along):
    """Both moves of every trajectory at an s of its own, in 0..T + 1: s, and the trajectory after each."""
    target = multiply(diffusion, log_r, along=along)

    def move(key, path):
        key_s, key_later, key_earlier = jax.random.split(key, 3)
        start = jax.random.randint(key_s, (), 0, STEPS + 2)
        later = conditional_importance(key_later, diffusion, path, num_particles, start=start)
        return start, later, conditional_filter(key_earlier, target, later, num_particles, start=start)

    return jax.jit(jax.vmap(move))(jax.random.split(jax.random.key(7), len(paths)), paths)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("num_particles", "along", "num"), [(2, "constant", NUM), (4, "lookahead", NUM), (16, "constant", NUM // 4)]
)
def test_exact_draws_stay_exact_draws(bits, num_particles, along, num):
    diffusion, law, paths = bits
    paths = paths[:num]
    start, later, after = moves(diffusion, paths, num_particles, along)
    for drawn in (paths, later, after):
        assert p_value(drawn, law) > SIGNIFICANCE
    time = np.arange(STEPS + 1)
    held_later, held_after = time <= np.asarray(start)[:, None], time >= np.asarray(start)[:, None]
    moved_later, moved_after = (np.asarray(x != y).any(axis=2) for x, y in ((later, paths), (after, later)))
    assert not (moved_later & held_later).any() and not (moved_after & held_after).any()
    # Neither move is the identity, which would pass everything above; two particles move least.
    assert np.all(moved_later.mean(axis=0)[1:] > 0.02) and np.all(moved_after.mean(axis=0) > 0.02)


def test_a_guide_that_is_not_r_leaves_exact_draws_exact(bits):
    diffusion, law, paths = bits
    guide = BernoulliObservation(jnp.array([0.0, 1.0]), 0.2)
    target = multiply(diffusion, log_r, guide, along="constant")
    keys = jax.random.split(jax.random.key(8), len(paths))
    after = jax.jit(jax.vmap(lambda key, path: conditional_filter(key, target, path, 4)))(keys, paths)
    assert p_value(after, law) > SIGNIFICANCE
    assert np.asarray(after != paths).any(axis=2).mean(axis=0).min() > 0.1


def keeping_r(key, log_weights, look, kept):
    """Ancestors of the kept particle drawn without dividing r_t out."""
    key_others, key_kept = jax.random.split(key)
    weighted = log_weights + look.log_r
    own = jax.random.categorical(key_kept, weighted + jax.vmap(lambda law: law.log_prob(kept))(look.law))
    others = jax.random.categorical(key_others, weighted, shape=weighted.shape)
    return others.at[0].set(own), jnp.zeros_like(weighted)


def without_the_first(key, log_weights):
    """A trajectory that never counts the one of before."""
    return jax.random.categorical(key, log_weights.at[0].set(-jnp.inf))


@pytest.mark.cases(1)
@pytest.mark.parametrize(("name", "wrong"), [("resample", keeping_r), ("choose", without_the_first)])
def test_a_wrong_weight_fails_the_same_test(bits, monkeypatch, name, wrong):
    diffusion, law, paths = bits
    monkeypatch.setattr(import_module("nedm_ppl.inference.posterior._conditional_filter"), name, wrong)
    assert p_value(moves(diffusion, paths, 4, "constant")[2], law) < SIGNIFICANCE


@pytest.mark.central
def test_ancestors_are_drawn_by_weight_and_the_kept_one_by_its_transition_too():
    """Of four particles, unevenly weighted: w r for all but the kept way, whose ancestor has w p(kept | x) and no r."""
    log_weights, log_r = jnp.array([0.0, -3.0, -2.0, -4.0]), jnp.array([1.0, 0.0, -1.0, 2.0])
    law = dist.Normal(jnp.arange(4.0)[:, None], jnp.ones((4, 1))).to_event(1)
    look, kept = Look(log_r, law, law), jnp.array([2.5])
    keys = jax.random.split(jax.random.key(0), NUM)
    chosen, left = jax.jit(jax.vmap(lambda key: resample(key, log_weights, look, kept)))(keys)
    own = np.exp(np.asarray(log_weights) - 0.5 * (2.5 - np.arange(4.0)) ** 2)
    assert_mean(np.asarray(chosen[:, :1] == np.arange(4)), own / own.sum())
    others = np.exp(np.asarray(log_weights + log_r))
    assert_mean(np.asarray(chosen[:, 1:2] == np.arange(4)), others / others.sum())
    assert not np.any(left)
    even = jnp.array([0.0, 0.1, 0.2, 0.1])
    chosen, left = resample(keys[0], even, look._replace(log_r=0.1 * log_r), kept)
    np.testing.assert_array_equal(chosen, np.arange(4))
    np.testing.assert_allclose(left, even + 0.1 * log_r, rtol=1e-6)


def test_importance_over_a_chain_that_ends_far_from_noise():
    """What the forward chain has not erased at T, the weights know."""
    process = models.BernoulliDiffusion((1,), models.schedules.FixedSchedule((0.1, 0.2)), rate=0.4)
    diffusion = models.Diffusion(process, models.BitPrediction(lambda t, x: 1.0 - 2.0 * x), first_step="learned")
    law = product_law([0.4])
    for matrix in reversed(reverse_matrices(diffusion)):
        law = law[..., None] * matrix.reshape((1,) * (law.ndim - 1) + matrix.shape)
    drawn = np.random.default_rng(0).choice(law.size, size=NUM, p=law.ravel())
    paths = jnp.asarray(np.stack(np.unravel_index(drawn, law.shape), axis=-1)[:, ::-1, None], float)
    keys = jax.random.split(jax.random.key(1), NUM)
    for start in (0, 1):
        move = jax.vmap(lambda key, path, s=start: conditional_importance(key, diffusion, path, 3, start=s))
        after = np.asarray(jax.jit(move)(keys, paths), int)[:, ::-1, 0]
        counts = np.bincount(np.ravel_multi_index(tuple(after.T), law.shape), minlength=law.size)
        assert chi_square(counts, law.ravel()) > SIGNIFICANCE


def test_one_of_several_by_weight():
    log_weights = jnp.array([0.3, -1.0, -jnp.inf, 0.8])
    law = np.exp(np.asarray(log_weights - logsumexp(log_weights)))
    keys = jax.random.split(jax.random.key(0), NUM)

    def from_the_law(key):
        key_before, key = jax.random.split(key)
        before = jax.random.categorical(key_before, log_weights)
        swapped = jnp.arange(4).at[0].set(before).at[before].set(0)
        return swapped[choose(key, log_weights[swapped])]

    after = jax.jit(jax.vmap(from_the_law))(keys)
    assert_mean(np.asarray(after[:, None] == np.arange(4)), law)
    # From 0 to j: w_j / (S - w_0) to be proposed, and (S - w_0) / (S - w_j), if that is below 1, to be accepted.
    moved = jax.jit(jax.vmap(lambda key: choose(key, log_weights)))(keys)
    accepted = np.minimum(1.0, (1.0 - law[0]) / (1.0 - law))
    rates = np.where(np.arange(4) > 0, law / (1.0 - law[0]) * accepted, 0.0)
    assert_mean(np.asarray(moved[:, None] == np.arange(1, 4)), rates[1:])
    nothing = jnp.full(3, -jnp.inf)
    assert choose(jax.random.key(0), nothing) == 0 and choose(jax.random.key(0), nothing.at[2].set(0.0)) == 2
