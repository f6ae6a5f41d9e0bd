"""The bound K: below the truth by enumeration, equal to the exact expectation, the same for every way of drawing it."""

import re

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import assert_mean, assert_same_mean
from numpyro.handlers import mask, scale, scope
from numpyro.infer import Trace_ELBO
from scipy import stats
from scipy.special import logsumexp

from nedm_ppl import inference, models
from nedm_ppl.inference.bound import divergence
from nedm_ppl.models.chain.schedules import FixedSchedule, LearnedSchedule, erasing, log_snr_linear
from tests.zoo import BERNOULLI, BETAS, GAUSSIAN, MODELS, ONE_DATUM, datum_of, mixture, noise_of

every_model = pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("gaussian mixture", "gaussian correlated")]
)
bits = pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("bernoulli")])


def many(key, diffusion, x0, num: int, num_times=None):
    """K of `num` independent estimates of every datum, shape (num, len(x0))."""
    terms = jax.jit(lambda k, x: inference.bound_terms(k, diffusion, x, num_times=num_times))
    return np.asarray(terms(key, jnp.tile(x0, (num, 1, 1))).total, np.float64)


# --- against the truth --------------------------------------------------------------------------------------------------


@pytest.mark.cases(1)
@pytest.mark.parametrize("process", [GAUSSIAN, BERNOULLI], ids=["gaussian", "bernoulli"])
def test_with_the_forward_kernel_in_reverse_every_trajectory_weighs_the_same(process):
    """Reversibility: log p(x_{0..T}) - log q(x_{1..T} | x_0) = log pi(x_0), whatever the trajectory."""
    x0 = jnp.array([[3.0, -1.0], [0.0, 0.2]]) if process is GAUSSIAN else jnp.asarray(exact.states(3), float)
    for first_step in ("fixed", "learned"):
        diffusion = models.Diffusion(process, process.step, first_step=first_step)
        weights = jax.jit(lambda key, d=diffusion: exact.log_weights(key, d, x0, 8))(jax.random.key(0))
        np.testing.assert_allclose(weights, np.tile(process.null_log_prob(x0), (8, 1)), atol=2e-5)
    if process is BERNOULLI:
        np.testing.assert_allclose(exact.bits_log_prob(diffusion), process.null_log_prob(x0), rtol=1e-5)


@pytest.mark.cases(1)
@pytest.mark.central
@bits
def test_a_chain_of_bits_by_enumeration(name):
    diffusion, x0 = MODELS[name], jnp.asarray(exact.states(3), float)
    log_prob, bound = exact.bits_log_prob(diffusion), exact.bits_bound(diffusion)
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-4)
    assert np.all(bound < log_prob)
    assert_mean(many(jax.random.key(1), diffusion, x0, 4000), bound)
    assert_mean(many(jax.random.key(2), diffusion, x0, 4000, num_times=1), bound)
    weights = jax.jit(lambda key: exact.log_weights(key, diffusion, x0, 20_000))(jax.random.key(3))
    assert_mean(weights, bound)
    assert_mean(np.exp(np.asarray(weights, np.float64) - log_prob), 1.0)


@pytest.mark.cases(1)
@bits
def test_more_trajectories_come_closer_from_below(name):
    """E log of the n-trajectory average rises with n from K towards log p(x_0)."""
    diffusion, x0 = MODELS[name], jnp.asarray(exact.states(3), float)
    weights = jax.jit(lambda key: exact.log_weights(key, diffusion, x0, 8000))(jax.random.key(4))
    weights, truth = np.asarray(weights, np.float64), exact.bits_log_prob(diffusion)
    means = [logsumexp(weights.reshape(n, -1, 8), axis=0) - np.log(n) for n in (1, 4, 16)]
    below = [estimates.mean(axis=0) for estimates in means]
    errors = [estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates)) for estimates in means]
    for fewer, more, error in zip(below, [*below[1:], truth], errors, strict=True):
        assert np.all(fewer < more + 4.0 * error)
        assert fewer.mean() < more.mean()


MEAN, COV = np.array([0.5, -0.3]), np.array([[1.2, 0.7], [0.7, 0.8]])


@pytest.mark.parametrize("betas", [(0.1, 0.3, 0.4, 1.0), BETAS])
def test_gaussian_data_with_the_exact_linear_reverse(betas):
    """Nothing is lost but what x_T still says of x_0: with beta_T = 1, not even that, trajectory by trajectory."""
    kernel = exact.Linear(*exact.linear_reverse(MEAN, COV, betas))
    x0 = np.random.default_rng(0).multivariate_normal(MEAN, COV, 4)
    process = models.GaussianDiffusion((2,), FixedSchedule(betas))
    diffusion = models.Diffusion(process, kernel, first_step="learned")
    mean, cov = exact.linear_data_law(*exact.linear_reverse(MEAN, COV, betas))
    truth = stats.multivariate_normal(mean, cov).logpdf(x0)
    weights = jax.jit(lambda key: exact.log_weights(key, diffusion, jnp.asarray(x0), 4000))(jax.random.key(5))
    bound = exact.linear_bound(x0, betas, *exact.linear_reverse(MEAN, COV, betas))
    if betas[-1] == 1.0:
        np.testing.assert_allclose([mean, *cov], [MEAN, *COV], rtol=1e-6)
        np.testing.assert_allclose(bound, truth, rtol=1e-9)
        np.testing.assert_allclose(weights, np.tile(truth, (4000, 1)), atol=2e-4)
    else:
        assert np.all(bound < truth - 1e-3)
        assert_mean(np.exp(np.asarray(weights, np.float64) - truth), 1.0)
    assert_mean(many(jax.random.key(6), diffusion, jnp.asarray(x0), 4000), bound)


def test_the_gap_of_a_wrong_linear_chain_is_its_closed_form():
    weight, bias, cov = exact.linear_reverse(MEAN, COV, BETAS)
    wrong = exact.DiagonalLinear(0.9 * weight, bias + 0.1, 1.2 * cov)
    arrays = np.asarray(wrong.weight), np.asarray(wrong.bias), np.stack([np.diag(np.diag(c)) for c in 1.2 * cov])
    x0 = np.random.default_rng(1).multivariate_normal(MEAN, COV, 4)
    diffusion = models.Diffusion(GAUSSIAN, wrong, first_step="learned")
    bound = exact.linear_bound(x0, BETAS, *arrays)
    truth = stats.multivariate_normal(*exact.linear_data_law(*arrays)).logpdf(x0)
    assert np.all(bound < truth)
    assert_mean(many(jax.random.key(7), diffusion, jnp.asarray(x0), 8000), bound)
    weights = jax.jit(lambda key: exact.log_weights(key, diffusion, jnp.asarray(x0), 8000))(jax.random.key(8))
    assert_mean(weights, bound)
    assert_mean(np.exp(np.asarray(weights, np.float64) - truth), 1.0)


@pytest.mark.parametrize(("num_steps", "bits_per_datum"), [(100, -2.9737), (500, -2.4820)])
def test_the_best_bound_on_the_heartbeat(num_steps, bits_per_datum):
    """Reference: docs of this project, by enumerating 5^5 counts; any per-bit reverse kernel, fixed first step."""
    assert exact.heartbeat_best_bound(num_steps) == pytest.approx(bits_per_datum, abs=5e-5)


def test_the_best_bound_on_the_heartbeat_is_reached_by_the_exact_kernel():
    process = models.BernoulliDiffusion((20,), erasing(100), rate=exact.RATE)
    diffusion = models.Diffusion(process, exact.heartbeat_kernel(process))
    draws = many(jax.random.key(9), diffusion, jnp.asarray(exact.heartbeats()), 200) / np.log(2.0)
    assert_mean(draws.mean(axis=1), exact.heartbeat_best_bound(100))


# --- every way of drawing it --------------------------------------------------------------------------------------------


@pytest.mark.cases(2)
@pytest.mark.central
@every_model
def test_terms_sum_to_the_bound(name):
    diffusion, x0 = MODELS[name], jnp.tile(datum_of(name), (6, 1)).reshape(2, 3, -1)
    terms = jax.jit(lambda key: inference.bound_terms(key, diffusion, x0))(jax.random.key(0))
    assert terms.total.shape == terms.prior.shape == terms.diffusion.shape == terms.first_step.shape == (2, 3)
    assert terms.times.shape == terms.divergences.shape == (3, 2, 3)
    np.testing.assert_array_equal(terms.times[:, 0, 0], [2, 3, 4])
    np.testing.assert_allclose(terms.divergences.sum(axis=0), terms.diffusion, rtol=1e-5)
    np.testing.assert_allclose(terms.total, terms.first_step - terms.diffusion - terms.prior, rtol=1e-6)
    np.testing.assert_allclose(terms.prior, diffusion.process.prior_divergence(x0), rtol=1e-6)
    assert np.all(terms.divergences > -1e-5)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["gaussian quantized", "bernoulli fixed"])
def test_a_subsample_of_steps_has_the_expectation_of_all(name):
    diffusion, x0 = MODELS[name], datum_of(name)
    everything = many(jax.random.key(0), diffusion, x0, 3000)
    # Draws within one call share one shift of the grid: independent calls, one datum each.
    some = jax.jit(jax.vmap(lambda key: inference.bound_terms(key, diffusion, x0, num_times=5).total))
    assert_same_mean(some(jax.random.split(jax.random.key(1), 3000)), everything)


def test_data_of_numpy_serve_in_a_traced_function():
    """Steps that are drawn there are traced, and index the data."""
    diffusion, x0 = MODELS["gaussian learned"], np.array([[1.5, -1.0], [0.3, 0.2]])

    def totals(x0):
        keys = jax.random.split(jax.random.key(0), 3)
        return jax.jit(jax.vmap(lambda key: inference.bound_terms(key, diffusion, x0, num_times=1).total))(keys)

    np.testing.assert_array_equal(totals(x0), totals(jnp.asarray(x0)))


def test_a_share_of_the_first_steps_is_unbiased():
    diffusion, x0 = MODELS["gaussian learned"], jnp.array([[1.5, -1.0], [0.0, 2.0], [-2.0, 0.3], [0.1, 0.1]])

    def total(key, share):
        return inference.bound_terms(key, diffusion, x0, first_step_share=share).total.sum()

    keys = jax.random.split(jax.random.key(0), 8000)
    some, every = (jax.jit(jax.vmap(lambda key, s=s: total(key, s)))(keys) for s in (0.5, 1.0))
    assert_same_mean(some, every)
    assert np.var(some) > np.var(every)


def test_steps_are_uniform_for_each_datum_and_even_over_all(significance):
    process = models.GaussianDiffusion((1,), log_snr_linear(6))
    diffusion = noise_of(process)

    def times(key, num_times, num_data):
        return inference.bound_terms(key, diffusion, jnp.zeros((num_data, 1)), num_times=num_times).times

    drawn = jax.jit(jax.vmap(lambda key: times(key, 2, 3)))(jax.random.split(jax.random.key(0), 3000))
    assert drawn.shape == (3000, 2, 3)
    for datum in range(3):
        counts = np.bincount(np.asarray(drawn)[:, 0, datum], minlength=7)[2:]
        assert stats.chisquare(counts).pvalue > significance
    for seed in range(5):
        counts = np.bincount(np.asarray(times(jax.random.key(seed), 2, 10)).ravel(), minlength=7)
        np.testing.assert_allclose(counts[2:], 4, atol=1)
        assert counts[:2].sum() == 0


@pytest.mark.parametrize("num_times", [None, 3])
def test_no_two_terms_share_their_noise(num_times, x64):
    """With a silent kernel N(0, 1) and x_0 = 0 a divergence says how large its noise was: 2 KL = v - 1 - log v + d^2 n e^2."""
    process = models.GaussianDiffusion((1,), log_snr_linear(5))
    diffusion = models.Diffusion(process, lambda t, x: dist.Normal(jnp.zeros_like(x), 1.0).to_event(1))
    terms = jax.jit(lambda key: inference.bound_terms(key, diffusion, jnp.zeros((4, 1)), num_times=num_times))(
        jax.random.key(0)
    )
    times = np.asarray(terms.times)
    _, d, var = (np.asarray(part) for part in jax.vmap(process.posterior_coefficients)(terms.times.ravel()))
    square = 2.0 * np.asarray(terms.divergences).ravel() - var + 1.0 + np.log(var)
    noise = square / (d**2 * np.asarray(process.schedule.one_minus_alpha_bar)[times.ravel()])
    assert np.all(noise > 0.0) and np.diff(np.sort(noise)).min() > 1e-6


def test_a_chain_of_one_step_has_no_diffusion_term():
    process = models.GaussianDiffusion((2,), FixedSchedule([0.4]))
    x0 = jnp.ones((3, 2))
    for num_times in (None, 2):
        terms = inference.bound_terms(jax.random.key(0), noise_of(process), x0, num_times=num_times)
        np.testing.assert_array_equal(terms.diffusion, 0.0)
        np.testing.assert_allclose(terms.total, process.null_log_prob(x0), rtol=1e-5)


@pytest.mark.cases(2)
@every_model
def test_the_trajectory_bound_is_trace_elbo_in_expectation(name):
    diffusion, x0 = MODELS[name], datum_of(name)

    def losses(elbo, key):
        loss = jax.vmap(lambda k: elbo.loss(k, {}, diffusion.model, diffusion.guide, x0))
        return jax.jit(loss)(jax.random.split(key, 4000))

    sampled = losses(Trace_ELBO(), jax.random.key(0))
    assert_same_mean(losses(inference.TrajectoryBound(None), jax.random.key(1)), sampled)
    assert_same_mean(losses(inference.TrajectoryBound(), jax.random.key(2)), sampled)


def test_particles_are_averaged():
    diffusion, x0 = MODELS["gaussian learned"], datum_of("gaussian")
    elbos = [inference.TrajectoryBound(1, num_particles=n) for n in (1, 8)]
    keys = jax.random.split(jax.random.key(0), 1000)
    one, eight = (
        jax.jit(jax.vmap(lambda k, e=e: e.loss(k, {}, diffusion.model, diffusion.guide, x0)))(keys) for e in elbos
    )
    assert_same_mean(one, eight)
    assert 4.0 < np.var(one) / np.var(eight) < 16.0


@pytest.mark.cases(1)
@pytest.mark.parametrize("elbo", [Trace_ELBO(), inference.TrajectoryBound(None), inference.TrajectoryBound(2)])
def test_scale_mask_and_plates_apply_as_in_trace_elbo(elbo):
    diffusion = noise_of(GAUSSIAN)
    x0 = jnp.array([[1.0, 2.0], [-1.0, 0.5], [3.0, 0.0]])
    keep = jnp.array([True, False, True])

    def loss(key, wrap=lambda f: f, **kwargs):
        return elbo.loss(key, {}, wrap(diffusion.model), wrap(diffusion.guide), x0, **kwargs)

    @jax.jit
    @jax.vmap
    def losses(key):
        return {
            "plain": loss(key),
            "scaled": loss(key, lambda f: scale(f, 0.1)),
            "kept": loss(key, lambda f: mask(f, mask=keep)),
            "dropped": loss(key, lambda f: mask(f, mask=~keep)),
            "of thirty": loss(key, num_data=30),
        }

    drawn, null = losses(jax.random.split(jax.random.key(0), 2000)), GAUSSIAN.null_log_prob(x0)
    assert_mean(drawn["plain"], -null.sum())
    assert_mean(drawn["kept"], -(null * keep).sum())
    # Under one key the draws are the same, and the identities hold to rounding.
    np.testing.assert_allclose(drawn["scaled"], 0.1 * drawn["plain"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(drawn["of thirty"], 10.0 * drawn["plain"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(drawn["kept"] + drawn["dropped"], drawn["plain"], rtol=1e-4, atol=1e-4)


# --- gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.cases(1)
@pytest.mark.parametrize(("first_step", "num_times"), [("fixed", None), ("learned", 2)])
def test_gradients_of_network_and_schedule_against_finite_differences(x64, first_step, num_times):
    schedule = LearnedSchedule(log_snr_linear(5))
    network = models.networks.RBF((2,), (2, 2), 5, width=4, key=jax.random.key(0))
    process = models.GaussianDiffusion((2,), schedule)
    diffusion = models.Diffusion(process, models.DriftVariance(network), first_step=first_step)
    params, static = eqx.partition(diffusion, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    flat = flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape)
    assert flat.dtype == jnp.float64
    x0 = jnp.array([[0.5, -1.0], [1.2, 0.3], [-0.7, 2.0]])

    @jax.jit
    def bound(flat):
        model = eqx.combine(unravel(flat), static)
        return jnp.mean(inference.bound_terms(jax.random.key(2), model, x0, num_times=num_times).total)

    gradient = jax.jit(jax.grad(bound))(flat)
    logits = slice(*_place_of(params, params.process.schedule.logits))
    assert np.all(gradient[logits] != 0.0)
    only_logits = jnp.zeros_like(flat).at[logits].set(1.0)
    directions = [only_logits, *jax.random.normal(jax.random.key(3), (4, *flat.shape))]
    for direction in directions:
        h = 1e-6
        difference = (bound(flat + h * direction) - bound(flat - h * direction)) / (2.0 * h)
        np.testing.assert_allclose(gradient @ direction, difference, rtol=1e-6, atol=1e-8)


def _place_of(params, leaf) -> tuple[int, int]:
    """Where one leaf lies in the raveled parameters."""
    start = 0
    for other in jax.tree.leaves(params):
        if other is leaf:
            return start, start + other.size
        start += other.size
    raise AssertionError("the leaf is no parameter")


def test_the_gradient_of_bits_against_finite_differences(x64):
    network = models.networks.SigmoidMLP((3,), (3,), 4, width=4, depth=1, key=jax.random.key(0))
    x0 = jnp.asarray(exact.states(3))
    params, static = eqx.partition(network, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    flat = flat + 0.5 * jax.random.normal(jax.random.key(1), flat.shape)

    @jax.jit
    def bound(flat):
        reverse = models.BitPrediction(eqx.combine(unravel(flat), static))
        diffusion = models.Diffusion(BERNOULLI, reverse, first_step="learned")
        return jnp.mean(inference.bound_terms(jax.random.key(2), diffusion, x0).total)

    gradient = jax.jit(jax.grad(bound))(flat)
    for direction in jax.random.normal(jax.random.key(3), (4, *flat.shape)):
        h = 1e-6
        difference = (bound(flat + h * direction) - bound(flat - h * direction)) / (2.0 * h)
        np.testing.assert_allclose(gradient @ direction, difference, rtol=1e-6, atol=1e-8)


# --- divergences --------------------------------------------------------------------------------------------------------


def laplace(t, x):
    return dist.Laplace(0.9 * x, 0.6).to_event(1)


@pytest.mark.cases(1)
@pytest.mark.parametrize("kernel", [mixture, laplace])
def test_a_kernel_without_a_closed_form_is_unbiased(kernel):
    """One step integrated on a grid: x_1 and x_2 given x_0 in one dimension."""
    betas, x0 = (0.3, 0.4), 0.7
    process = models.GaussianDiffusion((1,), FixedSchedule(betas))
    grid = np.linspace(-6.0, 6.0, 1201)
    width = grid[1] - grid[0]
    x1 = stats.norm.pdf(grid, np.sqrt(0.7) * x0, np.sqrt(0.3))
    pairs = x1[:, None] * stats.norm.pdf(grid[None], np.sqrt(0.6) * grid[:, None], np.sqrt(0.4)) * width**2
    assert pairs.sum() == pytest.approx(1.0, abs=1e-6)
    law = kernel(2, jnp.asarray(grid)[None, :, None])
    step = np.asarray(law.log_prob(jnp.asarray(grid)[:, None, None]), np.float64)
    first = np.asarray(kernel(1, jnp.asarray(grid)[:, None]).log_prob(jnp.array([x0])), np.float64)
    forward = stats.norm.logpdf(grid[:, None], np.sqrt(0.7) * x0, np.sqrt(0.3)) + stats.norm.logpdf(
        grid[None], np.sqrt(0.6) * grid[:, None], np.sqrt(0.4)
    )
    truth = np.sum(pairs * (stats.norm.logpdf(grid)[None] + step + first[:, None] - forward))
    diffusion = models.Diffusion(process, kernel, first_step="learned")
    assert_mean(many(jax.random.key(0), diffusion, jnp.array([[x0]]), 20_000)[:, 0], truth)


@pytest.mark.parametrize("certain", [np.inf, -np.inf])
def test_the_divergence_of_a_certain_bit_is_what_the_other_law_gives_it(certain):
    p = dist.BernoulliLogits(jnp.array([0.7])).to_event(1)
    found = divergence(
        jax.random.key(0), dist.BernoulliLogits(jnp.array([certain]), validate_args=False).to_event(1), p
    )
    np.testing.assert_allclose(found, np.log1p(np.exp(-0.7 if certain > 0 else 0.7)), rtol=1e-6)


def test_divergences_of_bits_are_sums_over_states():
    q, p = np.array([0.3, 0.999, 1e-4]), np.array([0.6, 0.9, 1e-3])
    laws = [dist.BernoulliLogits(jnp.asarray(np.log(x) - np.log1p(-x))).to_event(1) for x in (q, p)]
    expected = stats.entropy(exact.product_law(q), exact.product_law(p))
    np.testing.assert_allclose(divergence(jax.random.key(0), *laws), expected, rtol=1e-4)


def test_the_divergence_of_a_certain_bit_is_its_log_probability():
    certain = dist.BernoulliLogits(jnp.array([jnp.inf, -jnp.inf]), validate_args=False).to_event(1)
    p = dist.BernoulliLogits(jnp.array([0.5, 0.5])).to_event(1)
    truth = -p.log_prob(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(divergence(jax.random.key(0), certain, p), truth, rtol=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_bad_requests_are_named():
    diffusion, x0 = MODELS["gaussian fixed"], datum_of("gaussian")
    key, bound = jax.random.key(0), inference.TrajectoryBound()
    for build, message in (
        (
            lambda: inference.bound_terms(key, diffusion, x0, num_times=0),
            "num_times must be an integer of at least 1; got 0.",
        ),
        (
            lambda: inference.bound_terms(key, diffusion, x0, first_step_share=0.0),
            "first_step_share must lie in (0, 1]; got 0.",
        ),
        (
            lambda: bound.loss(key, {}, lambda: None, lambda: None),
            "TrajectoryBound needs a program that runs diffusion.model; it found no diffusion site.",
        ),
        (
            lambda: bound.loss(key, {}, lambda x: diffusion.model(None), lambda x: None, x0),
            "site 'x0' must be observed for a TrajectoryBound; pass the data to the model.",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build()


def test_programs_under_scope_and_with_a_users_own_chain_keep_their_bound():
    """The bound knows a diffusion's trajectory by its mark, not by its name or its class."""
    diffusion, x0 = MODELS["gaussian learned"], jnp.tile(ONE_DATUM["gaussian"], (4, 1))
    loss = lambda model, guide: float(  # noqa: E731
        inference.TrajectoryBound(None).loss(jax.random.key(0), {}, model, guide, x0)
    )
    plain = loss(diffusion.model, diffusion.guide)
    assert loss(scope(diffusion.model, prefix="a"), scope(diffusion.guide, prefix="a")) == pytest.approx(plain)

    walk = models.MarkovChain(dist.Normal(0.0, 1.0), lambda t, x: dist.Normal(x, 1.0), first=1, last=4)
    shifted = models.MarkovChain(dist.Normal(1.0, 1.0), lambda t, x: dist.Normal(x, 1.0), first=1, last=4)

    def model(x0):
        numpyro.sample("walk", walk)
        diffusion.model(x0)

    def guide(x0):
        numpyro.sample("walk", shifted)
        diffusion.guide(x0)

    def losses(seed, *programs):
        bound = jax.vmap(lambda key: inference.TrajectoryBound(None).loss(key, {}, *programs, x0))
        return np.asarray(jax.jit(bound)(jax.random.split(jax.random.key(seed), 60)))

    assert_same_mean(
        losses(1, model, guide) - 0.5, losses(2, diffusion.model, diffusion.guide)
    )  # KL of N(1, 1) from N(0, 1)
