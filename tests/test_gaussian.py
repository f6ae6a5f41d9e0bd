"""The Gaussian process: every law against its definition, entropies against draws, the paper's equation 14."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import assert_mean
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nedm_ppl import inference, models
from nedm_ppl.models.chain.schedules import FixedSchedule, erasing, log_snr_linear
from tests.zoo import noise_of

BETAS = st.lists(st.floats(1e-3, 0.95), min_size=2, max_size=4)
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2)])
BATCHES = st.sampled_from([(), (2,), (2, 3)])
SEEDS = st.integers(0, 2**31 - 1)


def normals(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@given(BETAS, SHAPES, BATCHES, SEEDS)
def test_t_steps_compose_to_the_marginal(betas, shape, batch, seed):
    process = models.GaussianDiffusion(shape, FixedSchedule(betas))
    x0 = normals(seed, *batch, *shape)
    mean, var = x0, jnp.zeros_like(x0)
    for t in range(1, process.num_steps + 1):
        step = process.step(t, mean)
        gain = process.step(t, mean + 1.0).mean - step.mean
        mean, var = step.mean, gain**2 * var + step.variance
        marginal = process.marginal(t, x0)
        assert marginal.batch_shape == batch
        assert marginal.event_shape == shape
        np.testing.assert_allclose(marginal.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(marginal.variance, var, rtol=1e-4)


@pytest.mark.central
@given(BETAS, SHAPES, BATCHES, SEEDS)
def test_the_posterior_is_bayes_rule(betas, shape, batch, seed):
    with jax.enable_x64(True):
        process = models.GaussianDiffusion(shape, FixedSchedule(betas))
        x0, before, x_t = normals(seed, 3, *batch, *shape)

        @jax.jit
        def both(t):
            joint = process.marginal(t - 1, x0).log_prob(before) + process.step(t, before).log_prob(x_t)
            posterior = process.posterior(t, x_t, x0)
            assert posterior.batch_shape == batch
            return posterior.log_prob(before) + process.marginal(t, x0).log_prob(x_t), joint

        for t in range(2, process.num_steps + 1):
            np.testing.assert_allclose(*both(t), rtol=1e-9, atol=1e-9)


@given(BETAS, SHAPES, SEEDS)
def test_steps_are_reversible_about_the_stationary_law(betas, shape, seed):
    with jax.enable_x64(True):
        process = models.GaussianDiffusion(shape, FixedSchedule(betas))
        x, y = normals(seed, 2, *shape)
        pi = process.stationary()
        for t in range(1, process.num_steps + 1):
            there = pi.log_prob(x) + process.step(t, x).log_prob(y)
            np.testing.assert_allclose(there, pi.log_prob(y) + process.step(t, y).log_prob(x), rtol=1e-9, atol=1e-9)


def test_the_last_rate_may_erase_everything():
    process = models.GaussianDiffusion((2,), erasing(4))
    x0 = jnp.array([3.0, -2.0])
    for law in (process.step(4, x0), process.marginal(4, x0), process.stationary()):
        np.testing.assert_array_equal(law.mean, 0.0)
        np.testing.assert_array_equal(law.variance, 1.0)
    np.testing.assert_allclose(process.prior_divergence(x0), 0.0, atol=1e-6)
    # x_T says nothing: the posterior is the marginal one step before.
    posterior, before = process.posterior(4, jnp.array([7.0, 7.0]), x0), process.marginal(3, x0)
    np.testing.assert_allclose(posterior.mean, before.mean, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance, before.variance, rtol=1e-6)


def test_the_posterior_at_t_1_is_the_datum():
    process = models.GaussianDiffusion((2,), log_snr_linear(4))
    c, d, var = process.posterior_coefficients(1)
    np.testing.assert_allclose([c, d, var], [1.0, 0.0, 0.0], atol=1e-7)
    assert process.posterior_entropy(1, jnp.zeros((3, 2))).tolist() == [-jnp.inf] * 3


@pytest.mark.parametrize("t", [1, 3, 5])
def test_entropies_are_minus_the_mean_log_density(t):
    process = models.GaussianDiffusion((2, 2), FixedSchedule([0.05, 0.2, 0.3, 0.4, 0.6]))
    x0 = normals(0, 3, 2, 2)
    key, pi = jax.random.key(t), process.stationary()

    def surprise(law, under):
        return -under.log_prob(law.sample(key, (20_000,)))

    step, marginal = process.step(t, x0), process.marginal(t, x0)
    assert_mean(surprise(step, step), process.step_entropy(t, x0))
    assert_mean(surprise(marginal, marginal), process.marginal_entropy(t, x0))
    assert_mean(surprise(marginal, pi), process.cross_entropy(t, x0))
    assert process.cross_entropy(t, x0).shape == process.marginal_entropy(t, x0).shape == (3,)
    if t > 1:
        posterior = process.posterior(t, marginal.sample(key), x0)
        assert_mean(surprise(posterior, posterior), process.posterior_entropy(t, x0))


def test_cross_entropy_at_time_0_is_the_null_model():
    process = models.GaussianDiffusion((3,), log_snr_linear(4))
    x0 = normals(1, 5, 3)
    expected = stats.norm.logpdf(x0).sum(axis=-1)
    np.testing.assert_allclose(process.cross_entropy(0, x0), -expected, rtol=1e-5)
    np.testing.assert_allclose(process.null_log_prob(x0), expected, rtol=1e-5)


def test_prior_divergence_is_the_divergence_from_the_stationary_law():
    process = models.GaussianDiffusion((3,), FixedSchedule([0.1, 0.3, 0.2]))
    x0 = normals(2, 5, 3)
    expected = dist.kl_divergence(process.marginal(3, x0), process.stationary())
    np.testing.assert_allclose(process.prior_divergence(x0), expected, rtol=1e-4)


@pytest.mark.parametrize("excess", [0.0, 0.5, -0.3])
def test_equation_14_is_off_by_the_excess_second_moment(excess):
    dim, schedule = 3, FixedSchedule([0.1, 0.2, 0.3, 0.4])
    process = models.GaussianDiffusion((dim,), schedule)
    x0 = normals(3, 50, dim)
    x0 = x0 * jnp.sqrt((1.0 + excess) / jnp.mean(x0**2))
    terms = inference.bound_terms(jax.random.key(0), noise_of(process), x0)
    noise_entropy = dim / 2 * np.log(2.0 * np.pi * np.e)
    equation_14 = -terms.diffusion + process.marginal_entropy(4, x0) - process.marginal_entropy(1, x0) - noise_entropy
    expected = -0.5 * dim * excess * (schedule.alpha_bar[-1] + schedule.betas[0])
    np.testing.assert_allclose(jnp.mean(terms.total - equation_14), expected, atol=2e-5)


def test_evidence_is_the_log_density_of_every_level():
    process, levels = models.GaussianDiffusion((2,), log_snr_linear(5)), jnp.array([-1.0, 0.5, 2.0])
    x_t = normals(4, 4, 2)
    expected = jnp.stack([process.marginal(3, jnp.full((2,), v)).base_dist.log_prob(x_t) for v in levels], axis=-1)
    evidence = process.evidence(3, x_t, levels)
    np.testing.assert_allclose(evidence - evidence[..., :1], expected - expected[..., :1], rtol=1e-4, atol=1e-5)


def p_values(process, t, draws, x0):
    """Kolmogorov-Smirnov of draws of x_t against q(x_t | x_0), per coordinate, from the rates alone."""
    signal = np.prod(1.0 - np.array(process.schedule.betas[:t]))
    truth = [stats.norm(np.sqrt(signal) * v, np.sqrt(1.0 - signal)) for v in np.asarray(x0)]
    return [stats.kstest(np.asarray(draws)[:, i], law.cdf).pvalue for i, law in enumerate(truth)]


def test_draws_have_their_law_and_a_rate_off_by_a_tenth_is_seen(significance):
    betas = np.array([0.1, 0.2, 0.3])
    right, wrong = (models.GaussianDiffusion((2,), FixedSchedule(b)) for b in (betas, 1.1 * betas))
    x0 = jnp.array([2.5, -1.5])
    for process, is_right in ((right, True), (wrong, False)):
        path = process.forward(x0).sample(jax.random.key(5), (60_000,))
        for t in (1, 2, 3):
            by_marginal = process.marginal(t, x0).sample(jax.random.key(t), (60_000,))
            for draws in (path[:, t - 1], by_marginal):
                assert np.all((np.array(p_values(right, t, draws, x0)) > significance) == is_right)


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        (np.zeros((4, 3)), "x0 must have trailing shape (2,), one datum of this process; got shape (4, 3)."),
        (np.zeros(()), "x0 must have trailing shape (2,), one datum of this process; got shape ()."),
        (np.zeros((0, 2)), "x0 must hold at least one datum; got the empty shape (0, 2)."),
        (np.array([[0.0, np.nan]]), "x0 must be finite; got NaN or infinite values. Drop or impute those data."),
        (np.array([[0.0, np.inf]]), "x0 must be finite; got NaN or infinite values."),
    ],
)
def test_bad_data_are_named(x0, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.GaussianDiffusion((2,), log_snr_linear(3)).check_data(x0)


@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
def test_a_time_that_is_none_of_the_chains_is_refused(family):
    schedule = models.schedules.log_snr_linear(5)
    process = {"gaussian": models.GaussianDiffusion, "bernoulli": models.BernoulliDiffusion}[family]((2,), schedule)
    x = jnp.ones((3, 2))
    for law, first in ((process.step, 1), (process.marginal, 0), (lambda t, x: process.posterior(t, x, x), 2)):
        for t in (first - 1, 6):
            with pytest.raises(ValueError, match=rf"t must lie in {first}\.\.5; got {t}"):
                law(t, x)
        with pytest.raises(ValueError, match=r"t must be a scalar, one time for all data; got shape \(3,\)"):
            law(jnp.array([2, 3, 4]), x)


def test_a_learned_rate_near_1_keeps_its_digits_and_its_gradient():
    schedule = models.schedules.LearnedSchedule(models.schedules.FixedSchedule([0.1, 0.5, 0.9]))
    schedule = eqx.tree_at(lambda s: s.logits, schedule, jnp.array([0.0, 18.0]))
    ratio = schedule.alpha_bar[3] / schedule.alpha_bar[2]
    np.testing.assert_allclose(schedule.keep[2], ratio, rtol=1e-5)
    loss = lambda s: jnp.sum(models.GaussianDiffusion((2,), s).step(3, jnp.ones(2)).mean)  # noqa: E731
    assert np.all(np.isfinite(eqx.filter_grad(loss)(schedule).logits))
