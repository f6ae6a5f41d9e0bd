"""Bits and gray levels: with the exact context, every prediction is Bayes' rule."""

import re

import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import STANDARD_ERRORS, chi_square, standard_error
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax, logsumexp

from nedm_ppl import inference, models
from nedm_ppl.models.chain.schedules import FixedSchedule, erasing, log_snr_linear
from nedm_ppl.models.reverse._levels import QuantizedNormal

BETAS = [0.1, 0.3, 0.2, 1.0]
PROBS = np.array([0.1, 0.6])
LEVELS = (-1.0, 0.25, 2.0)
BITS = models.BernoulliDiffusion((2,), FixedSchedule(BETAS), rate=0.3)
REALS = models.GaussianDiffusion((2,), FixedSchedule(BETAS[:3]))


def test_a_silent_flip_rate_reverses_noise():
    kernel = models.FlipRate(lambda t, x: jnp.zeros_like(x))
    for t in (1, 2, 4):
        np.testing.assert_allclose(
            exact.law_matrix(lambda x, t=t: kernel(BITS, t, x), 2), exact.erasure(BETAS[t - 1], 0.3, 2), rtol=1e-5
        )


def test_a_flip_rate_is_shifted_log_odds():
    x, z = jnp.array([1.0, 0.0]), np.array([0.7, -1.2])
    kernel = models.FlipRate(lambda t, x: jnp.asarray(z))(BITS, 2, x)
    forward = (1.0 - BETAS[1]) * np.asarray(x) + BETAS[1] * 0.3
    np.testing.assert_allclose(kernel.mean, 1.0 / (1.0 + (1.0 - forward) / forward * np.exp(-z)), rtol=1e-5)


@pytest.mark.central
@pytest.mark.parametrize("evidence", [True, False])
def test_bit_prediction_with_the_exact_context_is_bayes_rule(evidence):
    """Independent bits: the context is their prior odds, and the bit's own evidence does the rest."""
    prior = jnp.asarray(np.log(PROBS) - np.log1p(-PROBS))

    def by_hand(t, x):
        return prior + BITS.evidence(t, x)

    network = (lambda t, x: prior) if evidence else by_hand
    kernel = models.BitPrediction(network, evidence=evidence)
    for t, truth in enumerate(exact.exact_reverse(exact.product_law(PROBS), BETAS, 0.3, 2), start=1):
        matrix = exact.law_matrix(lambda x, t=t: kernel(BITS, t, x), 2)
        np.testing.assert_allclose(matrix, truth, rtol=1e-4)


@pytest.mark.parametrize("first_step", ["learned", "quantized"])
def test_independent_data_with_exact_context_leave_nothing_to_the_trajectory(first_step):
    """beta_T = 1 and exact kernels: every trajectory's weight is log p(x_0), to rounding."""
    if first_step == "learned":
        prior = jnp.asarray(np.log(PROBS) - np.log1p(-PROBS))
        diffusion = models.Diffusion(BITS, models.BitPrediction(lambda t, x: prior), first_step="learned")
        x0, truth = exact.states(2), np.log(exact.product_law(PROBS))
        weights = jax.jit(lambda key: exact.log_weights(key, diffusion, jnp.asarray(x0), 4))(jax.random.key(0))
        np.testing.assert_allclose(weights, np.tile(truth, (4, 1)), atol=2e-5)
    else:
        # One step: x_1 is pure noise, and the first step is the levels' own law.
        log_weights = np.log([[0.2, 0.3, 0.5]] * 2)
        process = models.GaussianDiffusion((2,), erasing(1))
        kernel = models.LevelPrediction(lambda t, x: jnp.asarray(log_weights), LEVELS)
        diffusion = models.Diffusion(process, kernel, first_step="quantized")
        x0 = jnp.array([[-1.0, 2.0], [0.25, 0.25]])
        weights = exact.log_weights(jax.random.key(0), diffusion, x0, 4)
        np.testing.assert_allclose(weights, np.tile(np.log([0.2 * 0.5, 0.3 * 0.3]), (4, 1)), atol=2e-5)


@pytest.mark.central
@pytest.mark.parametrize("prior", [(1 / 3, 1 / 3, 1 / 3), (0.2, 0.7, 0.1)])
def test_level_prediction_with_the_exact_context_is_bayes_rule(prior):
    kernel = models.LevelPrediction(lambda t, x: jnp.tile(jnp.log(jnp.array(prior)), (2, 1)), LEVELS)
    x_t = np.random.default_rng(0).normal(size=(5, 2))
    for t in (1, 2, 3):
        signal = np.prod(1.0 - np.array(BETAS[:t]))
        likelihood = stats.norm.logpdf(x_t[..., None], np.sqrt(signal) * np.array(LEVELS), np.sqrt(1.0 - signal))
        posterior = log_softmax(np.log(prior) + likelihood, axis=-1)
        law = kernel.data_law(REALS, t, jnp.asarray(x_t))
        assert law.event_shape == (2,)
        for i, level in enumerate(LEVELS):
            np.testing.assert_allclose(
                law.log_prob(jnp.full((5, 2), level)), posterior[..., i].sum(-1), rtol=2e-4, atol=2e-4
            )
        if t > 1:
            # The Gaussian step has the moments of the mixture of posteriors, one per level.
            weight = np.exp(posterior)
            steps = [REALS.posterior(t, jnp.asarray(x_t), jnp.full((5, 2), level)) for level in LEVELS]
            means = np.stack([np.asarray(s.mean) for s in steps], axis=-1)
            mean = (weight * means).sum(-1)
            var = (weight * (means - mean[..., None]) ** 2).sum(-1) + np.asarray(steps[0].variance)
            step = kernel(REALS, t, jnp.asarray(x_t))
            np.testing.assert_allclose(step.mean, mean, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(step.variance, var, rtol=1e-3)


def test_with_a_base_a_silent_network_is_bayes_rule_and_sees_what_it_says():
    base = jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]))
    seen = []

    def network(t, x):
        seen.append(x)
        return jnp.zeros((2, 3))

    by_base = models.LevelPrediction(network, LEVELS, base=base)
    by_network = models.LevelPrediction(lambda t, x: base, LEVELS)
    x_t = jnp.array([0.4, -1.1])
    log_probs = jax.nn.log_softmax(by_network.data_logits(REALS, 2, x_t), axis=-1)
    np.testing.assert_allclose(jax.nn.log_softmax(by_base.data_logits(REALS, 2, x_t), axis=-1), log_probs, rtol=1e-5)
    np.testing.assert_allclose(seen[0], jnp.concatenate([jnp.exp(log_probs), x_t[:, None]], axis=-1), rtol=1e-5)


def test_log_frequencies_count_the_nearest_level():
    data = np.array([[-1.0, 0.3], [-0.9, 2.0], [0.2, 2.1], [-1.0, 1.9]])
    log_weights = models.log_frequencies(data, LEVELS, pseudo_count=0.5)
    counts = np.array([[3.5, 1.5, 0.5], [0.5, 1.5, 3.5]])
    np.testing.assert_allclose(jax.nn.softmax(log_weights, axis=-1), counts / 5.5, rtol=1e-5)
    np.testing.assert_allclose(log_weights.mean(axis=-1), 0.0, atol=1e-6)


def test_without_evidence_the_network_is_the_prediction():
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]]))
    kernel = models.LevelPrediction(lambda t, x: logits, LEVELS, evidence=False)
    np.testing.assert_allclose(kernel.data_law(REALS, 2, jnp.ones(2)).base_dist.logits, logits)


def test_levels_is_a_law_over_its_levels(significance):
    logits = jnp.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]])
    law = models.Levels(logits, LEVELS)
    probs = np.exp(log_softmax(logits, axis=-1))
    log_prob = np.stack([law.log_prob(jnp.full((2,), level)) for level in LEVELS], axis=-1)
    np.testing.assert_allclose(np.exp(log_prob), probs, rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_prob).sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(law.mean, probs @ LEVELS, rtol=1e-5)
    np.testing.assert_allclose(law.variance, probs @ np.square(LEVELS) - (probs @ LEVELS) ** 2, rtol=1e-4)
    assert law.log_prob(jnp.array([0.3, 0.26])).tolist() == [-jnp.inf, pytest.approx(np.log(1 / 3), rel=1e-5)]
    draws = np.asarray(law.sample(jax.random.key(0), (20_000,)))
    counts = np.stack([(draws == np.float32(level)).sum(axis=0) for level in LEVELS])
    assert counts.sum() == draws.size
    assert chi_square(counts[:, 0], probs[0]) > significance
    assert chi_square(counts[:, 1], probs[1]) > significance
    assert chi_square(counts[:, 0], probs[1]) < significance


def test_levels_broadcast_and_pass_through_jit():
    law = models.Levels(jnp.zeros((4, 2, 3)), LEVELS).to_event(1)
    values = jnp.full((5, 4, 2), 2.0)
    np.testing.assert_allclose(jax.jit(lambda d, x: d.log_prob(x))(law, values), np.full((5, 4), -2.0 * np.log(3.0)))


@given(st.floats(-6.0, 6.0), st.floats(0.05, 5.0))
def test_quantize_is_the_gaussian_over_its_bins(loc, scale):
    law = QuantizedNormal(jnp.float32(loc), jnp.float32(scale), LEVELS)
    edges = np.array([-np.inf, -0.375, 1.125, np.inf])
    log_cdf, log_sf = stats.norm.logcdf(edges, loc, scale), stats.norm.logsf(edges, loc, scale)
    with np.errstate(invalid="ignore", divide="ignore"):
        low = logsumexp(np.stack([log_cdf[1:], log_cdf[:-1]]), b=np.array([[1.0], [-1.0]]), axis=0)
        high = logsumexp(np.stack([log_sf[:-1], log_sf[1:]]), b=np.array([[1.0], [-1.0]]), axis=0)
    expected = np.where(edges[:-1] > loc, high, low)
    log_prob = np.array([law.log_prob(jnp.float32(level)) for level in LEVELS])
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(log_prob, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("loc", [-50.0, 0.0, 50.0])
def test_quantize_has_finite_gradients_in_the_tails(loc):
    def log_prob(loc, scale):
        return QuantizedNormal(loc, scale, LEVELS).log_prob(jnp.float32(2.0))

    value, gradient = jax.value_and_grad(log_prob, argnums=(0, 1))(jnp.float32(loc), jnp.float32(0.01))
    assert np.all(np.isfinite([value, *gradient]))


def test_quantize_takes_plain_numbers():
    """A user's kernel of one scalar coordinate, Normal(x, 0.5), holds a Python float."""
    law = QuantizedNormal(jnp.float32(0.2), 0.5, LEVELS)
    np.testing.assert_allclose(
        law.log_prob(0.25), np.log(np.diff(stats.norm.cdf([-0.375, 1.125], 0.2, 0.5)))[0], rtol=1e-4
    )


def test_the_quantized_first_step_integrates_the_kernel_at_t_1():
    def kernel(t, x):
        return dist.Normal(0.5 * x, 0.7).to_event(1)

    diffusion = models.Diffusion(REALS, kernel, first_step="quantized", levels=LEVELS)
    x1 = jnp.array([0.4, -2.0])
    cdf = stats.norm.cdf([-np.inf, -0.375, 1.125, np.inf], 0.5 * np.asarray(x1)[:, None], 0.7)
    log_prob = diffusion.first_kernel(x1).log_prob(jnp.array([0.25, -1.0]))
    np.testing.assert_allclose(log_prob, np.log(np.diff(cdf)[0, 1]) + np.log(np.diff(cdf)[1, 0]), rtol=1e-4)


def laplace(t, x):
    return dist.Laplace(x, 1.0).to_event(1)


def three(t, x):
    return jnp.zeros((2, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.LevelPrediction(three, [1.0]), "levels must be at least two increasing values; got (1.0,)."),
        (
            lambda: models.LevelPrediction(three, [1.0, 0.0]),
            "levels must be at least two increasing values; got (1.0, 0.0).",
        ),
        (
            lambda: models.Diffusion(REALS, laplace, first_step="quantized"),
            "levels must be given for a quantized first step: the values a coordinate of x_0 can take.",
        ),
        (
            lambda: models.Diffusion(BITS, BITS.step, first_step="quantized", levels=LEVELS),
            "first_step 'quantized' is for Gaussian chains; bits are discrete already: use 'learned'.",
        ),
        (
            lambda: models.Diffusion(REALS, laplace, first_step="quantized", levels=LEVELS).first_kernel(jnp.ones(2)),
            "first_step 'quantized' integrates a Gaussian kernel at t = 1; got a Laplace.",
        ),
        (
            lambda: models.Diffusion(REALS, laplace, first_step="last"),
            "first_step must be one of fixed, learned, quantized; got 'last'.",
        ),
        (
            lambda: models.Diffusion(REALS, models.BitPrediction(three)),
            "BitPrediction needs a BernoulliDiffusion; got a GaussianDiffusion. For real data use DataPrediction, for gray "
            "levels LevelPrediction.",
        ),
        (
            lambda: models.Diffusion(REALS, models.FlipRate(three)),
            "FlipRate needs a BernoulliDiffusion; got a GaussianDiffusion.",
        ),
        (
            lambda: models.Diffusion(BITS, models.LevelPrediction(three, LEVELS)),
            "LevelPrediction needs a GaussianDiffusion; got a BernoulliDiffusion.",
        ),
        (
            lambda: models.LevelPrediction(three, LEVELS)(
                models.GaussianDiffusion((3,), log_snr_linear(3)), 1, jnp.ones(3)
            ),
            "network must return shape (3, 3) for one datum of shape (3,); got (2, 3).",
        ),
    ],
)
def test_bad_discrete_kernels_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_two_levels_of_two_coordinates_are_not_taken_for_a_pair():
    """Logits of shape (*event, num_levels) stay where they are, whatever the numbers."""
    process = models.GaussianDiffusion((2,), log_snr_linear(4))
    kernel = models.LevelPrediction(lambda t, x: jnp.stack([x, 10.0 * x], axis=-1), (-1.0, 1.0), evidence=False)
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(kernel.data_logits(process, 2, x), np.stack([x, 10.0 * x], axis=-1))


def test_levels_and_base_are_checked():
    network = lambda t, x: jnp.zeros((2, 2))  # noqa: E731
    with pytest.raises(ValueError, match="levels must be at least two increasing values"):
        models.LevelPrediction(network, (1.0, -1.0))
    process = models.GaussianDiffusion((2,), log_snr_linear(4))
    with pytest.raises(
        ValueError, match=r"base must have shape \(2, 2\), log weights for every coordinate; got \(1,\)"
    ):
        models.Diffusion(process, models.LevelPrediction(network, (-1.0, 1.0), base=jnp.zeros(1)))
    with pytest.raises(ValueError, match="levels must be left to a LevelPrediction, which brings its own"):
        models.Diffusion(process, models.LevelPrediction(network, (-1.0, 1.0)), levels=(0.0, 2.0))


def test_a_flip_rate_of_a_single_bit():
    process = models.BernoulliDiffusion((), FixedSchedule([0.2, 0.4]), rate=0.3)
    x = jnp.array([0.0, 1.0])
    kernel = models.FlipRate(lambda t, x: jnp.zeros(()))(process, 2, x)
    np.testing.assert_allclose(kernel.probs, process.step(2, x).probs, rtol=1e-6)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "kind", [models.DataPrediction, models.NoisePrediction, models.VelocityPrediction, models.DriftVariance]
)
def test_a_quantized_first_step_is_a_probability_over_levels_whatever_the_parameterization(kind):
    """The kernel at t = 1 over the levels' bins: it sums to 1, is drawn on them, and K is a bound on a probability."""

    def network(t, x):
        return jnp.stack([0.8 * jnp.sin(x), 0.3 * x - 3.0])

    diffusion = models.Diffusion(REALS, kind(network), first_step="quantized", levels=LEVELS)
    x1 = jnp.array([[0.3, -1.0], [2.0, 0.25]])
    law, kernel = diffusion.first_kernel(x1), diffusion.kernel(1, x1)
    words = jnp.asarray([[a, b] for a in LEVELS for b in LEVELS])
    total = jnp.sum(jnp.exp(jax.vmap(lambda word: law.log_prob(jnp.broadcast_to(word, (2, 2))))(words)), axis=0)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    edge = 0.5 * (LEVELS[0] + LEVELS[1])
    lowest = stats.norm.logcdf((edge - np.asarray(kernel.mean)) / np.sqrt(kernel.variance)).sum(axis=-1)
    np.testing.assert_allclose(law.log_prob(jnp.full((2, 2), LEVELS[0])), lowest, rtol=1e-3, atol=1e-4)
    draws = np.asarray(diffusion.sample(jax.random.key(0), (100,)))
    assert np.isin(draws, np.float32(LEVELS)).all()
    x0 = jnp.tile(jnp.asarray(draws[:4]), (200, 1, 1)).reshape(-1, 2)
    bound = jax.jit(lambda: inference.bound_terms(jax.random.key(1), diffusion, x0).total)()
    by_datum = np.asarray(bound, np.float64).reshape(200, 4)
    assert np.all(by_datum.mean(axis=0) < STANDARD_ERRORS * standard_error(by_datum))


def test_the_null_of_a_quantized_model_is_the_noise_laws_probability_of_the_levels():
    levels = (-1.0, 0.0, 1.5)
    process = models.GaussianDiffusion((2,), log_snr_linear(4))
    quantized = models.Diffusion(process, process.step, first_step="quantized", levels=levels)
    edges = stats.norm.cdf([-np.inf, -0.5, 0.75, np.inf])
    expected = np.log(np.diff(edges))[[0, 2]].sum()
    np.testing.assert_allclose(quantized.null_log_prob(jnp.array([[-1.0, 1.5]])), [expected], rtol=1e-5)
    with pytest.raises(
        ValueError, match="x0 must take the 3 gray levels of the quantized first step; datum 1 has other"
    ):
        quantized.check_data(np.array([[-1.0, 1.5], [-1.0, 0.3]]))
