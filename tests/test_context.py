"""Conditional models: for every context the model that is given it, whether contexts come one at a time or with their data."""

import re

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from conftest import STANDARD_ERRORS, assert_mean, assert_same_mean, chi_square
from numpyro.infer import Predictive, Trace_ELBO

from nedm_ppl import inference, models
from nedm_ppl.models import networks
from nedm_ppl.models._respace import respace
from nedm_ppl.models.chain.schedules import FixedSchedule, erasing
from tests.zoo import noise_of

KEY = jax.random.key(0)
BITS = models.BernoulliDiffusion((3,), erasing(4), rate=0.3)
PLANE = models.GaussianDiffusion((2,), FixedSchedule([0.1, 0.3, 0.2, 0.5]))
NULL, CLASSES = 0, np.array([0, 1, 2])


def couplings(t, x, label):
    return (0.4 + 0.6 * label) * jnp.roll(x, 1) - 0.1 * t - 0.5 * label


def waves(t, x, wind):
    return jnp.stack([jnp.sin(x[::-1] + wind), 0.3 * jnp.cos(x) - 0.2 * wind[::-1]])


FLIPS = models.Diffusion(BITS, models.BitPrediction(models.Conditional(couplings, NULL)), first_step="learned")
WINDS = models.Diffusion(PLANE, models.DataPrediction(models.Conditional(waves, np.zeros(2))), first_step="learned")
# Every state under every context.
STATES = np.tile(exact.states(3), (3, 1, 1))
LABELS = np.repeat(CLASSES[:, None], 8, axis=1)
PAIRS = jnp.asarray(STATES.reshape(-1, 3)), jnp.asarray(LABELS.ravel())


def truths(of) -> np.ndarray:
    """A truth of every state under every context, shape (3, 8)."""
    return np.stack([of(FLIPS.given(label)) for label in CLASSES])


# --- against enumeration ------------------------------------------------------------------------------------------------


@pytest.mark.central
def test_log_likelihoods_are_those_of_the_model_given_each_context():
    truth = truths(exact.bits_log_prob)
    assert np.ptp(truth, axis=0).min() > 0.05  # the context matters
    found = inference.marginal_log_likelihood(KEY, FLIPS, STATES, context=LABELS, num_trajectories=2000)
    assert np.all(np.abs(found.log_prob - truth) <= STANDARD_ERRORS * found.se)
    alone = inference.marginal_log_likelihood(KEY, FLIPS.given(2), STATES, num_trajectories=2000)
    # Common trajectories: the same key, the same numbers.
    np.testing.assert_allclose(found.log_prob[2], alone.log_prob[2], rtol=1e-5)


@pytest.mark.cases(1)
@pytest.mark.parametrize("num_times", [None, 2])
def test_bounds_are_those_of_the_model_given_each_context(num_times):
    rows, labels = PAIRS

    @jax.jit
    def terms(key):
        options = {"num_times": num_times, "first_step_share": 0.5}
        mixed = inference.bound_terms(key, FLIPS, rows, context=labels, **options)
        return mixed.total, inference.bound_terms(key, FLIPS.given(1), rows, **options).total

    mixed, given = (np.asarray(part) for part in jax.lax.map(terms, jax.random.split(KEY, 4000), batch_size=500))
    np.testing.assert_allclose(mixed[:, labels == 1], given[:, labels == 1], rtol=1e-5, atol=1e-5)
    assert_mean(mixed, truths(exact.bits_bound).ravel())


def test_evaluation_keeps_data_and_contexts_together_over_batches():
    rows, labels = PAIRS
    many = np.tile(rows, (200, 1)), np.tile(labels, 200)
    terms = inference.evaluate(KEY, FLIPS, many[0], context=many[1], batch_size=1000)
    assert_mean(np.asarray(terms.total).reshape(200, -1), truths(exact.bits_bound).ravel())


@pytest.mark.long
def test_the_program_s_objectives_agree_in_expectation():
    rows, labels = PAIRS
    truth = -truths(exact.bits_bound).sum()

    def losses(elbo, **options):
        loss = jax.vmap(lambda key: elbo.loss(key, {}, FLIPS.model, FLIPS.guide, rows, labels, **options))
        return np.asarray(jax.jit(loss)(jax.random.split(KEY, 1000)))

    sampled = losses(Trace_ELBO())
    assert_mean(sampled, truth)
    assert_mean(losses(inference.TrajectoryBound()), truth)
    assert_same_mean(losses(inference.TrajectoryBound(), subsample_size=6), sampled)


def test_predictive_draws_each_datum_given_its_context():
    draws = Predictive(FLIPS.model, num_samples=4000, parallel=True)(KEY, None, CLASSES)["x0"]
    for i, label in enumerate(CLASSES):
        index = np.asarray(draws[:, i] @ np.array([4, 2, 1]), int)
        law = np.exp(exact.bits_log_prob(FLIPS.given(label)))
        assert chi_square(np.bincount(index, minlength=8), law) > 1e-4


# --- linear-Gaussian: a whole kernel that takes a context ----------------------------------------------------------------


def test_a_conditional_kernel_is_exact_datum_by_datum():
    mean, slope, cov = np.array([0.2, -0.1]), np.array([[1.0], [0.5]]), np.array([[0.5, 0.2], [0.2, 0.8]])
    kernel = exact.conditional_linear(mean, slope, cov, PLANE.schedule.betas)
    diffusion = models.Diffusion(PLANE, models.Conditional(kernel, np.zeros(1)), first_step="learned")
    rng = np.random.default_rng(0)
    contexts, x0 = rng.normal(size=(5, 1)), rng.normal(size=(5, 2))
    found = inference.marginal_log_likelihood(KEY, diffusion, x0, context=contexts, num_trajectories=4000)
    linear, gain = kernel.linear, np.asarray(kernel.gain)
    for i, context in enumerate(contexts):
        bias = np.asarray(linear.bias) + gain @ context
        loc, var = exact.linear_data_law(np.asarray(linear.weight), bias, np.asarray(linear.cov))
        residual = x0[i] - loc
        truth = -0.5 * (residual @ np.linalg.solve(var, residual) + np.linalg.slogdet(2.0 * np.pi * var)[1])
        assert abs(found.log_prob[i] - truth) <= STANDARD_ERRORS * found.se[i]


# --- contexts as arrays ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::nedm_ppl.models.NoDensityWarning")
def test_the_prior_of_a_batch_of_contexts_is_a_site_of_a_plate():
    def program():
        with numpyro.plate("labels", 3):
            return numpyro.sample("x", FLIPS.given(CLASSES).prior())

    x = numpyro.handlers.seed(program, KEY)()
    assert x.shape == (3, 3)
    density, _ = numpyro.infer.util.log_density(program, (), {}, {"x": x})
    assert density == 0.0  # the density of the program's other sites: it has none


def test_a_batch_of_contexts_broadcasts_against_the_batch_of_states():
    winds, x = np.random.default_rng(0).normal(size=(3, 2)), np.random.default_rng(1).normal(size=(4, 3, 2))
    together = WINDS.given(winds).kernel(2, jnp.asarray(x))
    for i, wind in enumerate(winds):
        alone = WINDS.given(wind).kernel(2, jnp.asarray(x[:, i]))
        np.testing.assert_allclose(together.mean[:, i], alone.mean, rtol=1e-5)
        np.testing.assert_allclose(together.variance[:, i], alone.variance, rtol=1e-5)
    mapped = jax.vmap(lambda wind, row: WINDS.given(wind).kernel(2, row).mean)(winds, x[0])
    np.testing.assert_allclose(mapped, together.mean[0], rtol=1e-5)


def test_gradients_reach_the_context_and_respacing_keeps_it():
    wind, x = jnp.array([0.3, -0.2]), jnp.ones(2)
    slope = jax.grad(lambda wind: WINDS.given(wind).kernel(3, x).log_prob(x))(wind)
    assert np.all(np.abs(slope) > 1e-3)
    coarse = respace(WINDS, 3).given(jnp.stack([wind, -wind]))
    np.testing.assert_allclose(
        coarse.kernel(2, jnp.ones((2, 2))).mean[1], respace(WINDS.given(-wind), 3).kernel(2, x).mean, rtol=1e-6
    )


def test_the_whole_chain_runs_with_a_batch_of_contexts():
    labels = np.repeat(CLASSES, 1000)
    draws = np.asarray(FLIPS.given(labels).sample(KEY, (3000,))).reshape(3, 1000, 3)
    for label in CLASSES:
        truth = np.exp(exact.bits_log_prob(FLIPS.given(label))) @ exact.states(3)
        assert_mean(draws[label], truth)


# --- training --------------------------------------------------------------------------------------------------------------


def labeled(num_steps=6):
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(num_steps))
    network = networks.Embedded(
        networks.ResidualMLP((2,), (2, 2), num_steps, width=16, depth=1, key=KEY), eqx.nn.Embedding(3, 16, key=KEY)
    )
    return models.Diffusion(process, models.VelocityPrediction(models.Conditional(network, 2)), first_step="learned")


@pytest.mark.long
def test_training_on_pairs_learns_what_the_context_says():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 512)
    x0 = 0.6 * rng.normal(size=(512, 2)) + 0.8 * (2.0 * labels[:, None] - 1.0)
    drop = inference.drop_context(2, 0.2)
    fitted = inference.fit(
        KEY,
        labeled(),
        x0,
        context=labels,
        num_updates=400,
        optimizer=optax.adam(1e-2),
        augment=lambda key, rows, contexts: (rows, drop(key, contexts)),
        validation=x0[:64],
        validation_context=labels[:64],
        evaluate_every=200,
        holdout=x0[64:128],
        holdout_context=labels[64:128],
        progress=False,
    )
    given = jnp.repeat(jnp.array([0, 1, 2]), 500)
    draws = np.asarray(fitted.diffusion.given(given).sample(KEY, (1500,))).reshape(3, 500, 2)
    np.testing.assert_allclose(draws.mean((1, 2)), [-0.8, 0.8, 0.0], atol=0.25)
    np.testing.assert_allclose(draws.std((1, 2)), [0.6, 0.6, 1.0], atol=0.2)
    assert fitted.holdout.mean > inference.Estimate.of(fitted.diffusion.null_log_prob(x0[64:128])).mean
    assert fitted.diffusion.context == 2  # as it was built


def test_a_context_is_no_parameter():
    """A model that is given a context of floats may be trained; the context stays."""
    network = networks.Embedded(networks.ResidualMLP((2,), (2, 2), 4, width=4, key=KEY), eqx.nn.Linear(2, 4, key=KEY))
    diffusion = models.Diffusion(PLANE, models.DataPrediction(models.Conditional(network, np.zeros(2))))
    wind = jnp.array([0.5, -0.5])
    fitted = inference.fit(
        KEY, diffusion.given(wind), np.ones((4, 2)) * [[1.0], [-1.0], [1.0], [-1.0]], num_updates=2, progress=False
    )
    np.testing.assert_array_equal(fitted.diffusion.context, wind)
    before, after = (d.reverse.network.function.embed.bias for d in (diffusion, fitted.diffusion))
    assert not np.array_equal(before, after) or not np.array_equal(
        diffusion.reverse.network.function.network.readout.bias,
        fitted.diffusion.reverse.network.function.network.readout.bias,
    )


def test_contexts_are_dropped_at_the_rate_asked_for():
    contexts = jnp.ones((4000, 2))
    dropped = inference.drop_context(np.array([7.0, 8.0]), 0.3)(KEY, contexts)
    gone = np.asarray(dropped[:, 0] == 7.0)
    np.testing.assert_array_equal(dropped, np.where(gone[:, None], [7.0, 8.0], 1.0))
    assert_mean(gone, 0.3)


# --- guidance ----------------------------------------------------------------------------------------------------------------


def test_guidance_runs_from_the_unconditional_model_through_the_conditional_one():
    x = jnp.asarray(exact.states(3))
    for weight, same in ((0.0, FLIPS), (1.0, FLIPS.given(2))):
        guided = models.guided(FLIPS, weight).given(2)
        np.testing.assert_allclose(guided.kernel(2, x).mean, same.kernel(2, x).mean, rtol=1e-5)
    labels = jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1])
    batch = models.guided(FLIPS, 3.0).given(labels).kernel(2, x).mean
    np.testing.assert_allclose(batch[2], models.guided(FLIPS, 3.0).given(2).kernel(2, x[2]).mean, rtol=1e-5)


def test_a_guided_chain_is_a_model_of_its_own_and_not_the_tempered_posterior():
    law = np.exp(exact.bits_log_prob(models.guided(FLIPS, 3.0).given(2)))
    assert law.sum() == pytest.approx(1.0, abs=1e-5)
    free, given = (exact.bits_log_prob(FLIPS.given(label)) for label in (NULL, 2))
    tempered = np.exp(free + 3.0 * (given - free))
    assert 0.5 * np.abs(law - tempered / tempered.sum()).sum() > 0.02


# --- bad input ---------------------------------------------------------------------------------------------------------------


def fit(diffusion, **options):
    return inference.fit(KEY, diffusion, PAIRS[0], num_updates=1, progress=False, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: noise_of(BITS).given(1),
            "this model has none; wrap its network in models.Conditional",
        ),
        (
            lambda: WINDS.given(np.zeros(3)),
            "context must have trailing shape (2,), one context of this model; got shape (3,)",
        ),
        (lambda: FLIPS.given(0.5), "context must be integers, the labels of this model; got float32"),
        (
            lambda: FLIPS.given(CLASSES).kernel(2, jnp.zeros((4, 3))),
            "context must have the batch axes of the data, (4,), or none; got (3,)",
        ),
        (lambda: FLIPS.given(CLASSES).kernel(2, jnp.zeros(3)), "the data, (), or none; got (3,)"),
        (lambda: FLIPS.guide(jnp.zeros((4, 3)), CLASSES), "one for all data or one for each of 4; got 3 of them"),
        (lambda: FLIPS.model(None, CLASSES, num_data=5), "context must hold all num_data = 5 data"),
        (lambda: fit(FLIPS, context=CLASSES), "the batch axes of the data, (24,), or none; got (3,)"),
        (lambda: fit(FLIPS.given(CLASSES)), "it was given a batch of them. Pass them to fit as `context`"),
        (lambda: fit(FLIPS, context=PAIRS[1], validation=PAIRS[0]), "validation_context must be given where"),
        (
            lambda: fit(FLIPS, validation=PAIRS[0], validation_context=PAIRS[1]),
            "validation_context must be given where",
        ),
        (lambda: inference.drop_context(0, 1.5), "share must lie in [0, 1]; got 1.5"),
        (lambda: models.guided(noise_of(BITS), 2.0), "takes a context to be guided"),
        (lambda: models.guided(FLIPS.given(CLASSES), 2.0), "got a batch of contexts. Call given() after guided()"),
    ],
)
def test_bad_contexts_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def embedded(num_labels=3):
    key_network, key_table = jax.random.split(KEY)
    network = networks.ResidualMLP((2,), (2, 2), 4, width=8, depth=1, key=key_network)
    labels = networks.Embedded(network, eqx.nn.Embedding(num_labels, 8, key=key_table))
    return models.Diffusion(PLANE, models.VelocityPrediction(models.Conditional(labels, 0)))


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("of", [lambda model: model, lambda model: models.guided(model, 2.0)])
def test_a_label_that_the_network_has_no_row_for_is_refused(label, of):
    """A table of embeddings would give its last row."""
    model, x0 = of(embedded()), jnp.zeros((2, 2))
    said = r"context must be labels in 0\.\.2"
    assert model.given(2).sample(KEY).shape == (2,)
    with pytest.raises(ValueError, match=said):
        model.given(label)
    with pytest.raises(ValueError, match=said):
        inference.fit(KEY, model, x0, context=np.array([0, label]), num_updates=1)
    sample = jax.jit(lambda label: model.given(label).sample(KEY))
    bound = jax.jit(lambda label: inference.bound_terms(KEY, model, x0, context=label).total)
    for compiled in (sample, bound):
        assert np.all(np.isfinite(compiled(jnp.array(2))))
        with pytest.raises(Exception, match=said):
            compiled(jnp.array(label)).block_until_ready()


def test_labels_are_not_checked_again_in_every_update():
    """A branch in a training step is one that a device waits for."""
    model, x0, labels = embedded(), jnp.zeros((4, 2)), jnp.array([0, 1, 2, 0])
    objective = inference.TrajectoryBound()
    svi = numpyro.infer.SVI(model.model, model.guide, optax.adam(1e-3), objective)
    state = svi.init(KEY, x0, labels)
    assert "cond" not in str(jax.make_jaxpr(svi.update)(state, x0, labels))
    assert "cond" in str(jax.make_jaxpr(lambda label: model.given(label).context)(labels))
    with pytest.raises(ValueError, match="context must be labels"):
        svi.init(KEY, x0, labels + 1)
