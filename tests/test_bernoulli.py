"""The binomial process: every law against its definition, by enumeration."""

import re

import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import chi_square
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nedm_ppl import inference, models
from nedm_ppl.models.chain.schedules import FixedSchedule, LearnedSchedule, erasing, log_snr_linear
from tests.zoo import noise_of

RATES = st.floats(0.05, 0.95)
BETAS = st.tuples(st.lists(st.floats(1e-3, 0.95), min_size=1, max_size=3), st.booleans()).map(
    lambda pair: pair[0] + [1.0 if pair[1] else 0.5]
)
BITS = jnp.array([0.0, 1.0])


def one(law) -> np.ndarray:
    """Probability of a 1, per bit."""
    return np.asarray(law.mean, np.float64)


@given(BETAS, RATES, st.sampled_from([(), (1,), (2, 2)]), st.sampled_from([(), (3,)]))
def test_t_steps_compose_to_the_marginal(betas, rate, shape, batch):
    process = models.BernoulliDiffusion(shape, FixedSchedule(betas), rate=rate)
    x0 = jnp.asarray(np.random.default_rng(0).integers(0, 2, (*batch, *shape)), float)
    probs = np.asarray(x0)
    for t in range(1, process.num_steps + 1):
        from_0, from_1 = one(process.step(t, jnp.zeros_like(x0))), one(process.step(t, jnp.ones_like(x0)))
        np.testing.assert_allclose(from_1 - from_0, 1.0 - betas[t - 1], atol=1e-6)
        probs = (1.0 - probs) * from_0 + probs * from_1
        marginal = process.marginal(t, x0)
        assert marginal.batch_shape == batch
        assert marginal.event_shape == shape
        np.testing.assert_allclose(one(marginal), probs, rtol=1e-5)
    np.testing.assert_allclose(one(process.stationary()), rate, rtol=1e-5)


@pytest.mark.central
@given(BETAS, RATES)
def test_the_posterior_is_bayes_rule(betas, rate):
    with jax.enable_x64(True):
        process = models.BernoulliDiffusion((), FixedSchedule(betas), rate=rate)
        x0, before, x_t = jnp.stack(jnp.meshgrid(BITS, BITS, BITS)).reshape(3, -1)
        for t in range(2, process.num_steps + 1):
            joint = process.marginal(t - 1, x0).log_prob(before) + process.step(t, before).log_prob(x_t)
            posterior = process.posterior(t, x_t, x0)
            bayes = posterior.log_prob(before) + process.marginal(t, x0).log_prob(x_t)
            np.testing.assert_allclose(bayes, joint, rtol=1e-9, atol=1e-9)


@given(BETAS, RATES)
def test_steps_are_reversible_about_the_stationary_law(betas, rate):
    with jax.enable_x64(True):
        process = models.BernoulliDiffusion((), FixedSchedule(betas), rate=rate)
        x, y = jnp.stack(jnp.meshgrid(BITS, BITS)).reshape(2, -1)
        pi = process.stationary()
        for t in range(1, process.num_steps + 1):
            there = pi.log_prob(x) + process.step(t, x).log_prob(y)
            np.testing.assert_allclose(there, pi.log_prob(y) + process.step(t, y).log_prob(x), rtol=1e-9, atol=1e-9)


@given(BETAS, RATES)
def test_entropies_are_sums_over_states(betas, rate):
    process = models.BernoulliDiffusion((2,), FixedSchedule(betas), rate=rate)
    x0, pi = exact.states(2), exact.product_law([rate] * 2)
    marginal = np.eye(4)
    for t, step in enumerate(exact.forward_matrices(betas, rate, 2), start=1):
        marginal = marginal @ step
        np.testing.assert_allclose(process.step_entropy(t, x0), stats.entropy(step, axis=1), atol=1e-6)
        np.testing.assert_allclose(process.marginal_entropy(t, x0), stats.entropy(marginal, axis=1), atol=1e-6)
        np.testing.assert_allclose(process.cross_entropy(t, x0), -marginal @ np.log(pi), rtol=2e-5)
    np.testing.assert_allclose(process.cross_entropy(0, x0), -np.log(pi), rtol=2e-5)
    np.testing.assert_allclose(process.null_log_prob(x0), np.log(pi), rtol=2e-5)
    divergence = [stats.entropy(row, pi) for row in marginal]
    np.testing.assert_allclose(process.prior_divergence(x0), divergence, atol=1e-5)


def test_evidence_is_the_log_likelihood_ratio_of_a_bit():
    process = models.BernoulliDiffusion((2,), erasing(7), rate=0.2)
    for t in (1, 4, 7):
        if_one, if_zero = (process.marginal(t, jnp.full((2,), b)).base_dist.log_prob(BITS) for b in (1.0, 0.0))
        np.testing.assert_allclose(process.evidence(t, BITS), if_one - if_zero, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(process.evidence(7, BITS), 0.0, atol=1e-6)


def test_a_rare_flip_keeps_its_digits_in_float32():
    num_steps, rate = 2000, 0.2
    process = models.BernoulliDiffusion((), erasing(num_steps), rate=rate)
    for t in (2, 3, 1000, 1999, 2000):
        before, beta = (num_steps - t + 1) / num_steps, 1.0 / (num_steps - t + 1)
        for x0 in (0.0, 1.0):
            prior = before * x0 + (1.0 - before) * rate
            for x_t in (0.0, 1.0):
                if_one = beta * rate + (1.0 - beta) if x_t else 1.0 - beta * rate - (1.0 - beta)
                if_zero = beta * rate if x_t else 1.0 - beta * rate
                expected = np.log(prior * if_one) - np.log((1.0 - prior) * if_zero)
                logits = process.posterior_logits(t, jnp.float32(x_t), x0)
                assert logits.dtype == jnp.float32
                np.testing.assert_allclose(logits, expected, atol=4e-6)


@pytest.mark.cases(1)
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.7])
def test_equation_14_is_off_by_the_excess_mean(rate):
    schedule = FixedSchedule([0.1, 0.2, 0.3, 0.4])
    process = models.BernoulliDiffusion((3,), schedule, rate=rate)
    x0 = jnp.asarray(np.random.default_rng(1).random((50, 3)) < 0.4, float)
    terms = inference.bound_terms(jax.random.key(0), noise_of(process), x0)
    noise_entropy = 3 * stats.bernoulli(rate).entropy()
    equation_14 = -terms.diffusion + process.marginal_entropy(4, x0) - process.marginal_entropy(1, x0) - noise_entropy
    slope = 3 * np.log(rate / (1.0 - rate)) * (schedule.alpha_bar[-1] + schedule.betas[0])
    np.testing.assert_allclose(jnp.mean(terms.total - equation_14), slope * (jnp.mean(x0) - rate), atol=2e-5)


def p_value(draws, law) -> float:
    """Chi-square of draws of bit patterns against the exact law of all patterns."""
    index = np.asarray(draws, int) @ 2 ** np.arange(draws.shape[-1])[::-1]
    counts = np.bincount(index, minlength=law.size)
    return chi_square(counts, law)


def test_draws_have_their_law_and_a_rate_off_by_a_tenth_is_seen(significance):
    betas, rate, x0 = np.array([0.1, 0.2, 0.3]), 0.3, jnp.array([1.0, 0.0])
    marginal = np.eye(4)[2]  # the pattern 10
    laws = [marginal := marginal @ step for step in exact.forward_matrices(betas, rate, 2)]
    for factor, is_right in ((1.0, True), (1.1, False)):
        process = models.BernoulliDiffusion((2,), FixedSchedule(factor * betas), rate=rate)
        path = process.forward(x0).sample(jax.random.key(5), (60_000,))
        for t, law in enumerate(laws, start=1):
            by_marginal = process.marginal(t, x0).sample(jax.random.key(t), (60_000,))
            for draws in (path[:, t - 1], by_marginal):
                assert (p_value(draws, law) > significance) == is_right


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: models.BernoulliDiffusion((2,), LearnedSchedule(log_snr_linear(3))),
            "schedule must be fixed for a BernoulliDiffusion; got a LearnedSchedule, whose gradient through bits would be "
            "silently wrong. Use schedules.erasing, or any other fixed schedule.",
        ),
        (lambda: models.BernoulliDiffusion((2,), erasing(3), rate=1.0), "rate must lie in (0, 1); got 1."),
        (lambda: models.BernoulliDiffusion((2,), erasing(3), rate=0.0), "rate must lie in (0, 1); got 0."),
        (
            lambda: models.BernoulliDiffusion((2,), erasing(3)).check_data(np.array([[0.0, 0.5]])),
            "x0 must be binary, 0 or 1, for a BernoulliDiffusion; got 0.5. Threshold or code it.",
        ),
        (
            lambda: models.BernoulliDiffusion((2,), erasing(3)).check_data(np.array([[0.0, np.nan]])),
            "x0 must be binary, 0 or 1, for a BernoulliDiffusion; got nan.",
        ),
        (
            lambda: models.BernoulliDiffusion((2,), erasing(3)).check_data(np.zeros((4, 3))),
            "x0 must have trailing shape (2,), one datum of this process; got shape (4, 3).",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_the_law_of_the_data_is_read_back_from_the_step_it_makes():
    process = models.BernoulliDiffusion((3,), FixedSchedule([0.1, 0.3, 0.2]), rate=0.3)
    law = dist.BernoulliLogits(jnp.array([0.4, -1.0, 2.0])).to_event(1)
    for t in (2, 3):
        for x in jnp.asarray(exact.states(3), float):
            implied = process.implied_data_law(t, x, process.reverse_step(t, x, law))
            np.testing.assert_allclose(one(implied), one(law), atol=1e-4)
