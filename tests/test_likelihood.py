"""log p(x_0) by importance sampling: exact where it can be, within its own error elsewhere, and honest about both."""

import itertools
import math
import re
import warnings

import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray as xr
from conftest import assert_mean, assert_same_mean
from numpyro.infer import RenyiELBO
from scipy import stats

from nedm_ppl import inference, models
from nedm_ppl.inference import LogLikelihood, marginal_log_likelihood
from nedm_ppl.inference import _named_arrays as named_arrays
from nedm_ppl.inference.likelihood import (
    _likelihood,
    _weights,
    k_threshold,
    pareto_k,
    trajectory_log_weight,
    upper_spread,
)
from nedm_ppl.inference.likelihood._likelihood import _draw
from nedm_ppl.inference.likelihood._weights import _accurate_sum, plan
from nedm_ppl.models.chain.schedules import FixedSchedule, _derived, erasing, log_snr_linear
from tests.zoo import BETAS, GAUSSIAN, LEVELS, MODELS, ONE_DATUM, datum_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

# Not every mark of noise is gone at T here, so that the ratio at x_T counts.
LEAKY = models.BernoulliDiffusion((8,), FixedSchedule((0.2, 0.3, 0.4, 0.6, 0.8)), rate=0.4)


every_model = pytest.mark.parametrize("name", MODELS)


def random_bits(strength: float) -> models.Diffusion:
    """A random network on 8 bits; its strength sets the spread of the weights."""
    weight = strength * jax.random.normal(jax.random.key(7), (8, 8))
    return models.Diffusion(LEAKY, models.BitPrediction(lambda t, x: weight @ (2.0 * x - 1.0)), first_step="learned")


RANDOM, STATES = random_bits(0.2), exact.states(8)


@pytest.fixture(scope="module")
def random_truth():
    return exact.bits_log_prob(RANDOM)


# --- against the truth --------------------------------------------------------------------------------------------------


@pytest.mark.cases(4)
@pytest.mark.parametrize("num_steps", [1, 4, 200])
@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("first_step", ["fixed", "learned"])
def test_with_the_forward_kernel_in_reverse_there_is_no_variance(family, num_steps, first_step):
    if family == "gaussian":
        process, x0 = models.GaussianDiffusion((2,), log_snr_linear(num_steps)), np.array([[3.0, -1.0], [0.0, 0.2]])
    else:
        process, x0 = models.BernoulliDiffusion((3,), erasing(num_steps), rate=0.3), exact.states(3)
    result = marginal_log_likelihood(
        jax.random.key(0), models.Diffusion(process, process.step, first_step=first_step), x0, num_trajectories=8
    )
    null = process.null_log_prob(jnp.asarray(x0, float))
    np.testing.assert_allclose(result.log_weights, np.tile(null, (8, 1)), atol=2e-4)
    np.testing.assert_allclose(result.log_prob, null, atol=2e-4)
    np.testing.assert_allclose(result.se, 0.0, atol=2e-4)
    np.testing.assert_allclose(result.ess, 8.0, rtol=1e-6)
    assert np.all(np.isneginf(result.k_hat))


def within(result: LogLikelihood, truth: np.ndarray, standard_errors: float) -> np.ndarray:
    return np.abs(result.log_prob - truth) <= standard_errors * result.se


def test_every_state_of_an_enumerated_chain(random_truth):
    result = marginal_log_likelihood(jax.random.key(1), RANDOM, STATES, num_trajectories=2048)
    spread = result.log_weights.std(axis=0)
    assert spread.min() >= 0.3 and spread.max() <= 1.0
    assert within(result, random_truth, 4.0).all()
    assert not result.flagged.any()
    np.testing.assert_allclose(
        np.exp(result.log_prob).sum(), 1.0, atol=4.0 * np.hypot.reduce(np.exp(random_truth) * result.se)
    )


def test_a_weight_without_one_of_its_factors_fails_the_same_test(random_truth):
    @jax.jit
    def weights(key):
        process = RANDOM.process
        path = process.forward(jnp.asarray(STATES, float)).sample(key, (512,))
        x = {t: path[..., t - 1, :] for t in (1, 2)}
        whole = trajectory_log_weight(RANDOM, jnp.asarray(STATES, float), path)
        return whole, whole - RANDOM.kernel(2, x[2]).log_prob(x[1]) + process.step(2, x[1]).log_prob(x[2])

    whole, short = (LogLikelihood.from_log_weights(w) for w in weights(jax.random.key(2)))
    assert within(whole, random_truth, 4.0).all()
    assert within(short, random_truth, 4.0).mean() < 0.8


def test_standard_errors_cover(random_truth):
    """Nominal 95 %; 1,024 independent estimates have a standard error of 0.7 % there."""
    result = marginal_log_likelihood(jax.random.key(3), RANDOM, np.tile(STATES, (4, 1)), num_trajectories=256)
    assert 0.90 <= within(result, np.tile(random_truth, 4), 1.96).mean() <= 0.98


MEAN, COV = np.array([0.5, -0.3]), np.array([[1.2, 0.7], [0.7, 0.8]])


@pytest.mark.central
@pytest.mark.parametrize("betas", [(0.1, 0.3, 0.4, 1.0), BETAS])
def test_gaussian_data_with_the_exact_linear_reverse(betas):
    """With beta_T = 1 nothing is left of x_0 in x_T: no variance. Otherwise what is left is all the variance there is."""
    arrays = exact.linear_reverse(MEAN, COV, betas)
    x0 = np.random.default_rng(0).multivariate_normal(MEAN, COV, (2, 3))
    process = models.GaussianDiffusion((2,), FixedSchedule(betas))
    diffusion = models.Diffusion(process, exact.Linear(*arrays), first_step="learned")
    truth = stats.multivariate_normal(*exact.linear_data_law(*arrays)).logpdf(x0)
    result = marginal_log_likelihood(jax.random.key(4), diffusion, x0, num_trajectories=2000)
    assert result.log_prob.shape == result.flagged.shape == (2, 3) and result.log_weights.shape == (2000, 2, 3)
    if betas[-1] == 1.0:
        np.testing.assert_allclose(result.log_weights, np.broadcast_to(truth, (2000, 2, 3)), atol=2e-4)
        assert np.all(result.se < 1e-5) and np.all(np.isneginf(result.k_hat))
    else:
        assert np.all(result.se > 1e-4)
        assert within(result, truth, 4.0).all()


def test_grey_levels_have_probabilities_that_sum_to_one():
    x0 = np.stack(np.meshgrid(LEVELS, LEVELS), axis=-1)
    result = marginal_log_likelihood(jax.random.key(5), MODELS["gaussian quantized"], x0, num_trajectories=4000)
    probability = np.exp(result.log_prob)
    assert abs(probability.sum() - 1.0) < 4.0 * np.sqrt(np.sum(np.square(probability * result.se)))


# --- the weights --------------------------------------------------------------------------------------------------------


@pytest.mark.cases(2)
@every_model
def test_a_log_weight_is_the_difference_of_two_log_probabilities(name):
    diffusion, x0 = MODELS[name], jnp.tile(jnp.asarray(datum_of(name), float), (3, 1))

    @jax.jit
    def both_ways(key):
        forward = diffusion.process.forward(x0)
        path = forward.sample(key, (5,))
        first = diffusion.first_kernel(path[..., 0, :]).log_prob(x0)
        ours = [trajectory_log_weight(diffusion, x0, path, chunk_size=size) for size in (None, 2)]
        return ours, first + diffusion.reverse_chain().log_prob(path) - forward.log_prob(path)

    (whole, chunked), definition = both_ways(jax.random.key(0))
    assert whole.shape == (5, 3)
    np.testing.assert_allclose(whole, definition, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(chunked, whole, rtol=1e-6, atol=2e-6)


def test_running_sums_keep_the_digits_of_their_terms():
    terms = np.random.default_rng(0).normal(1.0, 300.0, (40, 50, 8)).astype(np.float32)
    truth = terms.astype(np.float64).sum(axis=(0, 1))

    @jax.jit
    def add(terms):
        start = jnp.zeros(8), jnp.zeros(8)
        (value, error), _ = jax.lax.scan(lambda total, chunk: (_accurate_sum(total, chunk), None), start, terms)
        return value + error, jax.lax.scan(lambda total, term: (total + term, None), start[0], terms.reshape(-1, 8))[0]

    ours, plain = (np.abs(np.asarray(total) - truth).max() for total in add(terms))
    assert ours < 1e-2 < plain


def test_what_a_large_sum_loses_of_small_terms_is_kept_beside_it():
    def add(total, term):
        return _accurate_sum(total, term), None

    (value, error), _ = jax.lax.scan(add, (jnp.full(1, 1e7), jnp.zeros(1)), jnp.full((2000, 1, 1), 0.3))
    assert np.float64(value[0]) - 1e7 == 0.0  # float32 has no room for them
    assert np.float64(value[0]) + np.float64(error[0]) - 1e7 == pytest.approx(600.0, rel=1e-4)


def long_chain(family: str):
    _derived.cache_clear()  # JAX remembers the dtype it gave an array, across a change of precision
    if family == "bits":
        process = models.BernoulliDiffusion((20,), erasing(2000), rate=exact.RATE)
        return models.Diffusion(process, models.FlipRate(lambda t, x: jnp.roll(x, 5) - 0.3)), exact.heartbeats()[0]
    process = models.GaussianDiffusion((64,), log_snr_linear(2000))
    return models.Diffusion(process, models.DriftVariance(lambda t, x: 0.01 * jnp.stack([jnp.sin(x), x]))), np.ones(64)


@pytest.mark.cases(1)
@pytest.mark.parametrize(("family", "allowed", "gain"), [("bits", 2e-4, 0.5), ("reals", 1e-2, 4.0)])
def test_digits_over_two_thousand_steps(family, allowed, gain):
    """Against float64 on one trajectory; what is left is the kernels' own rounding, 6e-8 |x| / sd a coordinate and step."""
    diffusion, x0 = long_chain(family)
    path = np.asarray(diffusion.process.forward(jnp.asarray(x0, float)).sample(jax.random.key(0), (16,)))

    def both(dtype):
        diffusion, x0 = long_chain(family)

        @jax.jit
        def weigh(path, x0):
            first = diffusion.first_kernel(path[..., 0, :]).log_prob(x0)
            apart = first + diffusion.reverse_chain().log_prob(path) - diffusion.process.forward(x0).log_prob(path)
            return trajectory_log_weight(diffusion, x0, path, chunk_size=100), apart

        return [np.asarray(x) for x in weigh(jnp.asarray(path, dtype), jnp.asarray(x0, dtype))]

    with jax.enable_x64(True):
        truth, same = both(jnp.float64)
    ours, apart = both(jnp.float32)
    assert ours.dtype == np.float32 and truth.dtype == np.float64
    np.testing.assert_allclose(truth, same, atol=1e-8)
    assert np.abs(ours - truth).max() < allowed
    # The control: the two sides summed apart, each up to 4e5 nats for the reals.
    assert np.abs(apart - truth).max() > gain * np.abs(ours - truth).max()


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["gaussian fixed", "gaussian quantized", "bernoulli learned"])
def test_memory_and_batches_change_rounding_alone(name):
    diffusion, x0 = MODELS[name], np.tile(datum_of(name), (5, 1))

    def draw(**kwargs):
        return marginal_log_likelihood(jax.random.key(0), diffusion, x0, num_trajectories=6, **kwargs).log_weights

    whole = draw()
    assert np.unique(whole).size > 6  # data alike, trajectories not
    for kwargs in ({"batch_size": 4}, {"memory_limit": 12_000}):
        np.testing.assert_allclose(draw(**kwargs), whole, rtol=1e-5, atol=1e-5)
    more = marginal_log_likelihood(jax.random.key(0), diffusion, x0[:3], num_trajectories=9).log_weights
    np.testing.assert_allclose(more[:6], whole[:, :3], rtol=1e-5, atol=1e-5)


def test_numbers_of_data_share_a_few_compiled_programs(monkeypatch):
    """A new size would be compiled anew at every call: of 33 to 40 data, one program."""
    sizes, drawn = [], _likelihood.draw_log_weights

    def counted(keys, *args, **options):  # runs where it is traced
        sizes.append(len(keys))
        return drawn(keys, *args, **options)

    monkeypatch.setattr(_likelihood, "draw_log_weights", counted)
    process = models.GaussianDiffusion(
        (7,), log_snr_linear(3)
    )  # of a shape that nothing else has, so that it is traced here
    model = models.Diffusion(process, process.step)
    x0 = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    whole = marginal_log_likelihood(jax.random.key(0), model, x0, num_trajectories=1).log_weights
    for num in (33, 37):
        some = marginal_log_likelihood(jax.random.key(0), model, x0[:num], num_trajectories=1).log_weights
        np.testing.assert_array_equal(some, whole[:, :num])
    assert set(sizes) == {40}


def big_model(num_steps: int) -> models.Diffusion:
    process = models.GaussianDiffusion((20,), log_snr_linear(num_steps))
    network = models.networks.ResidualMLP((20,), (2, 20), num_steps, width=64, depth=1, key=jax.random.key(0))
    return models.Diffusion(process, models.DataPrediction(network))


def test_the_compiled_program_keeps_to_the_limit_whatever_the_number_of_steps(monkeypatch):
    if jax.default_backend() == "cpu":
        assert [plan(big_model(100), rows, 2**40) for rows in (1, 3, 64, 1000)] == [
            (1, 64),
            (3, 21),
            (64, 1),
            (1000, 1),
        ]
    monkeypatch.setattr(_weights, "CPU_ROWS", 10**9)
    taken = {}
    for num_steps in (100, 1000):
        rows, chunk = plan(big_model(num_steps), 256, 2**22)
        assert rows == 256 and 1 <= chunk < 50
        index, x0 = np.zeros(rows, int), np.zeros((rows, 20))
        program = _draw.lower(jax.random.key(0), big_model(num_steps), x0, index, index, chunk).compile()
        taken[num_steps] = program.compiled.memory_analysis().temp_size_in_bytes
    assert max(taken.values()) < 2**22
    assert taken[1000] < 1.1 * taken[100]
    rows, chunk = plan(big_model(100), 256, 2**15)
    assert rows < 256 and chunk == 1
    assert plan(big_model(100), 3, 2**40) == (3, 99)


# --- in expectation -----------------------------------------------------------------------------------------------------


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["gaussian learned", "bernoulli fixed"])
def test_it_is_the_renyi_elbo_of_order_zero(name):
    diffusion, x0 = MODELS[name], datum_of(name)
    elbo = RenyiELBO(alpha=0, num_particles=4)
    loss = jax.vmap(lambda key: elbo.loss(key, {}, diffusion.model, diffusion.guide, jnp.asarray(x0, float)))
    theirs = -jax.jit(loss)(jax.random.split(jax.random.key(0), 6000))
    ours = marginal_log_likelihood(jax.random.key(1), diffusion, np.tile(x0, (6000, 1)), num_trajectories=4).log_prob
    assert_same_mean(ours, theirs)
    one = marginal_log_likelihood(jax.random.key(1), diffusion, np.tile(x0, (6000, 1)), num_trajectories=1).log_prob
    with pytest.raises(AssertionError):
        assert_same_mean(one, theirs)


def test_it_rises_from_the_bound_to_the_truth(random_truth):
    x0, truth = np.tile(STATES[37], (4000, 1)), random_truth[37]
    estimates = [
        marginal_log_likelihood(jax.random.key(6), RANDOM, x0, num_trajectories=num).log_prob for num in (1, 4, 32)
    ]
    assert_mean(estimates[0], exact.bits_bound(RANDOM)[37])
    for fewer, more in itertools.pairwise(estimates):
        assert fewer.mean() + 4.0 * fewer.std() / math.sqrt(4000) < more.mean()
    assert estimates[-1].mean() < truth + 4.0 * estimates[-1].std() / math.sqrt(4000)


def test_the_bias_of_the_log_is_what_it_is_said_to_be(random_truth):
    result = marginal_log_likelihood(jax.random.key(7), RANDOM, np.tile(STATES[37], (6000, 1)), num_trajectories=32)
    assert_mean(result.log_prob - random_truth[37] - result.bias, 0.0)
    with pytest.raises(AssertionError):
        assert_mean(result.log_prob - random_truth[37], 0.0)


# --- errors and diagnostics ---------------------------------------------------------------------------------------------


def test_the_formulas_on_four_weights():
    weights = np.array([1.0, 2.0, 3.0, 6.0])
    result = LogLikelihood.from_log_weights(np.log(weights)[:, None] - 1000.0)
    assert result.log_prob[0] == pytest.approx(math.log(3.0) - 1000.0, abs=1e-9)
    assert result.se[0] == pytest.approx(weights.std(ddof=1) / 2.0 / 3.0, rel=1e-6)
    assert result.ess[0] == pytest.approx(144.0 / 50.0, rel=1e-6)
    assert result.bias[0] == pytest.approx(-0.5 * result.se[0] ** 2)
    assert result.num_trajectories[0] == 4 and result.flagged[0]


def test_every_degenerate_set_of_weights_has_a_value():
    equal, zero, one_zero = np.full(50, -3.0), np.full(50, -np.inf), np.append(np.full(49, 0.0), -np.inf)
    result = LogLikelihood.from_log_weights(np.stack([equal, zero, one_zero], axis=1))
    np.testing.assert_allclose(result.log_prob, [-3.0, -np.inf, math.log(0.98)])
    np.testing.assert_allclose(result.se, [0.0, np.inf, np.sqrt(0.98 * 0.02 / 49.0) / 0.98])
    np.testing.assert_allclose(result.ess, [50.0, 0.0, 49.0])
    np.testing.assert_array_equal(result.k_hat, [-np.inf, np.inf, -np.inf])
    np.testing.assert_array_equal(result.flagged, [False, True, False])
    single = LogLikelihood.from_log_weights(np.array([[-3.0]]))
    assert single.log_prob[0] == -3.0 and np.isnan(single.se[0]) and single.ess[0] == 1.0
    assert np.isposinf(single.k_hat[0]) and single.flagged[0]
    broken = LogLikelihood.from_log_weights(np.array([[np.nan], [0.0]]))
    assert np.isnan(broken.log_prob[0]) and broken.flagged[0]


@pytest.mark.parametrize("shape", [0.3, 0.9])
def test_k_hat_finds_the_shape_of_a_known_tail(shape):
    """Averaged over 200 data; the prior draws it towards 1/2 with the weight of 10 of M = 192 tail weights."""
    weights = stats.genpareto(shape).rvs((4096, 200), random_state=np.random.default_rng(0))
    k = pareto_k(np.log(weights))
    tail = math.ceil(3 * math.sqrt(4096))
    assert_mean(k, (tail * shape + 5.0) / (tail + 10.0) + 0.0)
    assert np.mean(k > 0.7) == pytest.approx(float(shape > 0.7), abs=0.1)


@pytest.mark.central
def test_k_hat_is_arvizs():
    """With 400 weights both of ArviZ's roundings of the tail's length are 60; ties only ArviZ before 1 leaves out of the tail."""
    rng = np.random.default_rng(1)
    log_weights = np.concatenate([s * rng.standard_normal((400, 20)) for s in (0.01, 0.5, 2.0, 8.0)], axis=1) - 50.0
    if int(az.__version__.split(".")[0]) < 1:
        log_weights[:, 25] = np.round(log_weights[:, 25], 1)
    draws = ("chain", "draw")
    groups = {"posterior": {"x": (draws, np.zeros((1, 400)))}}
    # Leaving a datum out divides by its likelihood.
    groups["log_likelihood"] = {"x": ((*draws, "datum"), -log_weights[None])}
    data = named_arrays.container({name: xr.Dataset(values) for name, values in groups.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some k are high, as they are meant to be
        theirs = az.loo(data, pointwise=True, reff=1.0).pareto_k
    np.testing.assert_allclose(pareto_k(log_weights), theirs, rtol=1e-6, atol=1e-9)


def test_the_threshold_grows_with_the_number_of_trajectories():
    expected = [-np.inf, 0.0, 1.0 - 1.0 / math.log10(64), 0.5, 0.7, 0.7]
    np.testing.assert_allclose(k_threshold([1, 10, 64, 100, 4096, 10**6]), expected)


@pytest.mark.long
@pytest.mark.parametrize("num", [64, 256])
def test_data_that_are_not_flagged_are_the_safer_ones(num, random_truth):
    """Half of the data are of a good kernel, the others of poor ones whose missed tails look safe to k-hat alone."""
    rng, shape = np.random.default_rng(0), (num, 512)
    poor = random_bits(1.0)
    drawn = [
        (
            marginal_log_likelihood(
                jax.random.key(20), RANDOM, np.tile(STATES, (6, 1)), num_trajectories=num
            ).log_weights,
            random_truth,
        ),
        (
            marginal_log_likelihood(
                jax.random.key(21), poor, np.tile(STATES, (2, 1)), num_trajectories=num
            ).log_weights,
            exact.bits_log_prob(poor),
        ),
        (rng.normal(0.0, 2.2, shape), np.array([0.5 * 2.2**2])),
        (rng.exponential(0.95, shape), np.array([math.log(1.0 / (1.0 - 0.95))])),
    ]
    truth = np.concatenate([np.tile(t, w.shape[1] // len(t)) for w, t in drawn])
    result = LogLikelihood.from_log_weights(np.concatenate([w for w, _ in drawn], axis=1))
    covered, good = within(result, truth, 1.96), np.arange(len(truth)) < 6 * 256
    assert covered[good].mean() > 0.9 and covered[~good].mean() < 0.75
    assert result.flagged[good].mean() < 0.3 and result.flagged[~good].mean() > 0.97
    assert covered[~result.flagged].mean() > 0.9 > 0.7 > covered[result.flagged].mean()
    # The control: among data of poor kernels, the low k-hats are those that missed the tail.
    safe = result.k_hat[~good] <= k_threshold(num)
    assert covered[~good][safe].mean() < covered[~good][~safe].mean() - 0.15


def test_the_spread_is_that_of_the_upper_half():
    log_weights = np.log([[1.0], [2.0], [3.0], [6.0], [0.5]])
    assert upper_spread(log_weights)[0] == pytest.approx(np.log([3.0 / 2.0, 6.0 / 2.0]).mean())
    assert upper_spread(log_weights - 1e3)[0] == pytest.approx(np.log([3.0 / 2.0, 6.0 / 2.0]).mean())
    halves = np.array([[0.0], [0.0], [-np.inf], [-np.inf], [-np.inf]])
    assert np.isposinf(upper_spread(halves)[0]) and np.isposinf(upper_spread(halves[:1])[0])
    assert np.isnan(upper_spread(np.array([[0.0], [np.nan], [0.0]]))[0])
    rng = np.random.default_rng(0)
    assert_mean(upper_spread(rng.exponential(0.7, (4001, 200))), 0.7)
    assert_mean(upper_spread(rng.normal(0.0, 2.0, (4001, 200))), 2.0 * math.sqrt(2.0 / math.pi))


def test_log_weights_whose_digits_are_lost_are_not_taken_for_equal():
    """float32 holds -1e38 to 1e31 nats: a thousand equal weights say nothing, and -1e5 to a hundredth, which is enough."""
    result = LogLikelihood.from_log_weights(np.full((1000, 2), [-1e38, -1e5], np.float32))
    np.testing.assert_array_equal(result.flagged, [True, False])
    np.testing.assert_array_equal(result.k_hat, [np.inf, -np.inf])
    assert result.se[0] > 1e30 and result.se[1] == 0.0


def test_a_hopeless_model_is_flagged():
    """Reverse kernels far narrower than the posterior: weights of infinite variance."""
    narrow = models.Diffusion(GAUSSIAN, lambda t, x: dist.Normal(0.9 * x, 0.15).to_event(1), first_step="learned")
    result = marginal_log_likelihood(jax.random.key(8), narrow, ONE_DATUM["gaussian"], num_trajectories=1000)
    assert result.flagged.all() and result.k_hat[0] > 0.7 and result.ess[0] < 100


def test_a_summary_of_all_data(random_truth):
    result = marginal_log_likelihood(jax.random.key(9), RANDOM, STATES, num_trajectories=64)
    summary = result.summary()
    assert summary["mean_bits"] == pytest.approx(summary["mean_nats"] / math.log(2.0))
    assert (summary["mean_nats"], summary["se_nats"]) == (result.mean.mean, result.mean.se)
    assert summary["monte_carlo_se_nats"] == pytest.approx(np.sqrt(np.sum(result.se**2)) / 256)
    assert abs(summary["mean_nats"] - summary["bias_nats"] - random_truth.mean()) < 4 * summary["monte_carlo_se_nats"]
    assert summary["num_data"] == 256 and summary["num_trajectories"] == 64
    assert "unbiased" in summary["estimate"] and summary["num_above_target"] == 0


# --- adaptive -----------------------------------------------------------------------------------------------------------


def test_a_target_is_reached_for_every_datum(random_truth):
    fixed = marginal_log_likelihood(jax.random.key(10), RANDOM, STATES, num_trajectories=64)
    target = float(np.median(fixed.se))
    result = marginal_log_likelihood(jax.random.key(10), RANDOM, STATES, num_trajectories=64, target_se=target)
    assert np.all(result.se <= target) and result.reached.all()
    assert set(np.unique(result.num_trajectories)) >= {64, 128}
    np.testing.assert_array_equal(np.isfinite(result.log_weights).sum(axis=0), result.num_trajectories)
    # Those that were good enough are as they were, the others have their trajectories and more.
    np.testing.assert_allclose(result.log_weights[:64], fixed.log_weights, rtol=1e-5, atol=1e-5)
    assert within(result, random_truth, 4.5).all()
    assert "neither unbiased nor a bound" in result.label


def test_no_two_data_and_no_two_rounds_share_a_trajectory():
    """Data alike: every trajectory weighs differently, and those of later rounds are not the first ones again."""
    diffusion, x0 = MODELS["gaussian fixed"], np.tile(datum_of("gaussian fixed")[:1], (3, 1))
    with pytest.warns(inference.TargetNotReachedWarning):
        result = marginal_log_likelihood(
            jax.random.key(0), diffusion, x0, num_trajectories=2, target_se=1e-6, max_trajectories=8
        )
    assert result.log_weights.shape == (8, 3) and len(np.unique(result.log_weights)) == 24


def test_a_target_beyond_the_cap_returns_what_there_is_and_says_so():
    message = "target_se 1e-06 was not reached for 4 of 4 data by 100 trajectories; their largest standard error is"
    with pytest.warns(inference.TargetNotReachedWarning, match=re.escape(message)):
        result = marginal_log_likelihood(
            jax.random.key(11), RANDOM, STATES[:4], num_trajectories=40, target_se=1e-6, max_trajectories=100
        )
    assert not result.reached.any() and result.summary()["num_above_target"] == 4
    np.testing.assert_array_equal(result.num_trajectories, 100)
    fixed = marginal_log_likelihood(jax.random.key(11), RANDOM, STATES[:4], num_trajectories=100)
    np.testing.assert_allclose(result.log_prob, fixed.log_prob, rtol=1e-6)


# --- ArviZ --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared():
    """The right model and a wrong one on the same 60 data drawn from the right one."""
    x0 = np.asarray(RANDOM.sample(jax.random.key(12), (60,)))
    return {
        name: marginal_log_likelihood(jax.random.key(13), diffusion, x0, num_trajectories=64)
        for name, diffusion in {"right": RANDOM, "silent": random_bits(0.0)}.items()
    }


@pytest.mark.central
@pytest.mark.parametrize("arviz_version", [None, "1.0.0"])
def test_to_arviz(compared, monkeypatch, tmp_path, arviz_version):
    if arviz_version:
        real = named_arrays.version
        monkeypatch.setattr(named_arrays, "version", lambda name: arviz_version if name == "arviz" else real(name))
    result = compared["right"]
    tree = result.to_arviz(units="bits")
    group, weights = tree["likelihood"], tree["sample_stats"]["log_weight"]
    assert group["log_prob"].dims == ("datum",) and group["log_prob"].attrs["units"] == "bits"
    assert "unbiased" in group["log_prob"].attrs["estimate"]
    np.testing.assert_allclose(group["log_prob"], result.log_prob / math.log(2.0))
    for name in ("ess", "k_hat", "num_trajectories", "flagged", "reached"):
        np.testing.assert_array_equal(group[name], getattr(result, name))
    assert weights.dims == ("trajectory", "datum")
    np.testing.assert_allclose(weights, result.log_weights / np.log(2.0), rtol=1e-6)
    assert not {"posterior", "log_likelihood"} & {str(name).strip("/") for name in _groups(tree)}
    tree.to_netcdf(str(tmp_path / "loglik.nc"))
    with pytest.raises(ValueError, match=re.escape("units must be nats or bits; got 'bananas'.")):
        result.to_arviz(units="bananas")


def _groups(tree):
    return tree.groups() if callable(tree.groups) else tree.groups


@pytest.mark.central
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 on pandas 3
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")  # ArviZ 1, and the column `warning` before
def test_az_compare_says_the_difference_of_held_out_log_likelihoods(compared):
    elpds = {name: result.to_elpd() for name, result in compared.items()}
    difference = compared["right"].log_prob - compared["silent"].log_prob
    if int(az.__version__.split(".")[0]) >= 1:
        table, name, sign = az.compare(elpds, method="pseudo-BMA", round_to="none"), "elpd", -1.0
    else:
        table, name, sign = az.compare(elpds, method="pseudo-BMA"), "elpd_loo", 1.0
        assert table.loc["right", "warning"] == compared["right"].flagged.any()
    assert list(table.index) == ["right", "silent"]
    assert table.loc["right", name] == pytest.approx(compared["right"].log_prob.sum())
    assert table.loc["silent", "elpd_diff"] == pytest.approx(sign * difference.sum())
    assert table.loc["silent", "dse"] == pytest.approx(np.sqrt(60 * difference.var()))
    assert table.loc["right", "se"] == pytest.approx(np.sqrt(60 * compared["right"].log_prob.var()))
    assert name in str(elpds["right"])


def test_an_elpd_needs_finite_numbers():
    with pytest.raises(ValueError, match="finite log likelihoods of at least two data; got 1 of 2"):
        LogLikelihood.from_log_weights(np.array([[0.0, -np.inf], [0.1, -np.inf]])).to_elpd()


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x0", "kwargs", "message"),
    [
        ("gaussian fixed", None, {"num_trajectories": 0}, "num_trajectories must be an integer of at least 1; got 0."),
        ("gaussian fixed", None, {"batch_size": 0}, "batch_size must be an integer of at least 1; got 0."),
        ("gaussian fixed", None, {"target_se": 0.0}, "target_se must be positive, in nats; got 0."),
        ("gaussian fixed", None, {"target_se": math.nan}, "target_se must be positive, in nats; got nan."),
        (
            "gaussian fixed",
            None,
            {"target_se": 0.1, "num_trajectories": 1},
            "num_trajectories must be at least 2 with a target_se",
        ),
        (
            "gaussian fixed",
            None,
            {"target_se": 0.1, "max_trajectories": 10},
            "max_trajectories must be at least num_trajectories = 64; got 10.",
        ),
        ("gaussian fixed", None, {"memory_limit": 100}, "memory_limit must be at least about"),
        ("gaussian fixed", [[math.nan, 0.0]], {}, "x0 must be finite"),
        ("gaussian fixed", [[0.0, 0.0, 0.0]], {}, "x0 must have trailing shape (2,)"),
        ("gaussian fixed", np.zeros((0, 2)), {}, "x0 must hold at least one datum"),
        ("bernoulli fixed", [[0.0, 1.0, 0.5]], {}, "x0 must be binary, 0 or 1"),
        (
            "gaussian quantized",
            [[0.0, 0.3]],
            {},
            "x0 must take the 3 gray levels of the quantized first step; datum 0",
        ),
    ],
)
def test_bad_requests_are_named(name, x0, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        marginal_log_likelihood(
            jax.random.key(0), MODELS[name], datum_of(name) if x0 is None else np.asarray(x0), **kwargs
        )


def test_a_chunk_holds_at_least_one_step():
    diffusion, x0 = MODELS["gaussian fixed"], jnp.asarray(datum_of("gaussian"), float)
    path = diffusion.process.forward(x0).sample(jax.random.key(0))
    with pytest.raises(ValueError, match=re.escape("chunk_size must be an integer of at least 1; got 0.")):
        trajectory_log_weight(diffusion, x0, path, chunk_size=0)
