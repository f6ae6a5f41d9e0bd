"""Mixtures of independent bits: enumeration, exact context at every noise, and expectation-maximization."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.special import expit, logsumexp, softmax

from nedm_ppl import models
from nedm_ppl.models.chain.schedules import FixedSchedule
from nedm_ppl.models.reverse._mixture import _mixture, _smoothed

BETAS, RATE = [0.1, 0.3, 0.2, 1.0], 0.3
PROCESS = models.BernoulliDiffusion((3,), FixedSchedule(BETAS), rate=RATE)
LOGITS = np.array([[3.0, -1.0, 0.5], [-2.0, 0.3, 4.0], [-6.0, -6.0, 6.0], [0.0, 0.0, 0.0]])
LOG_WEIGHTS = np.array([0.2, 1.0, -0.5, -1.0])
MIXTURE = models.BitMixture(jnp.asarray(LOGITS), jnp.asarray(LOG_WEIGHTS))
LAW = softmax(LOG_WEIGHTS) @ np.stack([exact.product_law(expit(row)) for row in LOGITS])


def silent(t, x):
    return jnp.zeros(x.shape[0])


@pytest.mark.central
def test_log_probability_by_enumeration():
    states = jnp.asarray(exact.states(3))
    np.testing.assert_allclose(np.exp(MIXTURE.log_prob(states)), LAW, rtol=1e-5)
    np.testing.assert_allclose(np.exp(MIXTURE.log_prob(states.reshape(2, 4, 3))), LAW.reshape(2, 4), rtol=1e-5)
    assert MIXTURE.log_prob(states[0]).shape == ()
    belief = MIXTURE.belief(states)
    assert belief.shape == (8, 4) and np.allclose(belief.sum(axis=1), 1.0)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_with_a_silent_network_every_bit_is_bayes_rule(t):
    states = exact.states(3)
    noise = 1.0 - np.prod(1.0 - np.array(BETAS[:t]))
    joint = LAW[:, None] * exact.erasure(noise, RATE, 3)
    posterior = joint / joint.sum(axis=0)
    kernel = models.BitPrediction(silent, base=MIXTURE)
    law = kernel.data_law(PROCESS, t, jnp.asarray(states))
    np.testing.assert_allclose(law.mean, posterior.T @ states, rtol=2e-4, atol=1e-6)
    # The context is free of the bit's own state: it is what is left of the posterior odds without its evidence.
    context = MIXTURE.context(PROCESS, t, jnp.asarray(states).reshape(2, 2, 2, 3))
    for bit in range(3):
        one, other = np.moveaxis(context[..., bit], bit, 0)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_network_sees_what_the_mixture_believes_and_adds_to_it():
    seen = []

    def network(t, x):
        seen.append(x)
        return jnp.array([0.5, 0.0, -1.0])

    x = jnp.array([1.0, 0.0, 1.0])
    known = models.BitPrediction(silent, base=MIXTURE).data_logits(PROCESS, 2, x)
    np.testing.assert_allclose(
        models.BitPrediction(network, base=MIXTURE).data_logits(PROCESS, 2, x),
        known + jnp.array([0.5, 0.0, -1.0]),
        rtol=1e-6,
    )
    np.testing.assert_allclose(seen[0], jnp.stack([jax.nn.sigmoid(known), x], axis=-1), rtol=1e-6)


def test_fitting_raises_the_likelihood_to_that_of_the_law_drawn_from():
    rng = np.random.default_rng(0)
    rates = np.array([[0.95, 0.9, 0.1, 0.05, 0.5, 0.5], [0.05, 0.1, 0.9, 0.95, 0.5, 0.5]])
    draws = (rng.random((20_000, 6)) < rates[rng.integers(0, 2, 20_000)]).astype(np.float32)
    train, holdout = draws[:16_000], draws[16_000:]
    truth = models.BitMixture(jnp.log(rates) - jnp.log1p(-rates), jnp.zeros(2))
    fitted = models.fit_bit_mixture(jax.random.key(1), train, 2, batch_size=200)
    independent = models.fit_bit_mixture(jax.random.key(1), train, 1, batch_size=200)
    loss = truth.log_prob(holdout) - fitted.log_prob(holdout)
    assert_mean(loss, 0.0)
    # Control: one component is the product of the rates, and far below.
    np.testing.assert_allclose(jax.nn.sigmoid(independent.logits[0]), train.mean(axis=0), atol=0.01)
    assert np.mean(truth.log_prob(holdout) - independent.log_prob(holdout)) > 0.5
    weights = logsumexp(np.asarray(fitted.log_weights))
    assert weights == pytest.approx(0.0, abs=1e-2)


def test_a_model_with_a_mixture_is_saved_and_loaded(tmp_path):
    network = models.networks.ResidualMLP((3, 2), (3,), 4, width=4, depth=1, key=jax.random.key(0))
    diffusion = models.Diffusion(PROCESS, models.BitPrediction(network, base=MIXTURE), first_step="learned")
    diffusion.save(tmp_path / "model")
    loaded = models.Diffusion.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.reverse.base.logits, MIXTURE.logits)
    x = jnp.array([1.0, 0.0, 1.0])
    np.testing.assert_array_equal(loaded.kernel(2, x).mean, diffusion.kernel(2, x).mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": 4}, r"num_components must lie in 1\.\.3, the number of data; got 4"),
        ({"num_components": 0}, r"num_components must be an integer of at least 1; got 0"),
        ({"num_components": 2, "num_epochs": 0}, "num_epochs must be an integer of at least 1; got 0"),
        ({"num_components": 2, "batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"num_components": 2, "pseudo_count": 0.0}, "pseudo_count must be positive; got 0"),
    ],
)
def test_fitting_refuses_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.fit_bit_mixture(jax.random.key(0), np.zeros((3, 2)), **arguments)


def test_refusals():
    with pytest.raises(ValueError, match=r"log_weights \(num_components,\); got \(2, 3\) and \(3,\)"):
        models.BitMixture(jnp.zeros((2, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match="data must be bits, 0 or 1"):
        models.fit_bit_mixture(jax.random.key(0), np.full((3, 2), 0.5), 1)
    base = models.BitMixture(jnp.zeros((2, 5)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"base must be a mixture of bits of shape \(3,\); got \(5,\)"):
        models.Diffusion(PROCESS, models.BitPrediction(silent, base=base), first_step="learned")


def test_pseudo_counts_are_data_whose_bits_are_open():
    """Of a component with a share of .6, whose bits are 1 in .54 and 0 of all data, after .2 data more for each."""
    smoothed = _mixture(*_smoothed(jnp.array([0.6, 0.4]), jnp.array([[0.54, 0.0], [0.1, 0.2]]), 0.2))
    np.testing.assert_allclose(expit(smoothed.logits[0]), [0.64 / 0.8, 0.1 / 0.8], rtol=1e-6)
    np.testing.assert_allclose(softmax(smoothed.log_weights), [0.8 / 1.4, 0.6 / 1.4], rtol=1e-6)
