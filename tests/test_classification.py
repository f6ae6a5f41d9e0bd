"""Bayes' rule against enumeration, and calibration against labels drawn from known probabilities."""

import re

import exact
import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from nedm_ppl import inference, models
from nedm_ppl.inference import Classification
from nedm_ppl.models.chain.schedules import erasing

KEY = jax.random.key(0)


def couplings(t, x, label):
    return (0.4 + 0.6 * label) * x[::-1] - 0.1 * t - 0.5 * label


def test_classes_have_the_posterior_that_enumeration_gives_them():
    process = models.BernoulliDiffusion((2,), erasing(3), rate=0.3)
    reverse = models.BitPrediction(models.Conditional(couplings, 0))
    diffusion = models.Diffusion(process, reverse, first_step="learned")
    log_prior = np.log([0.5, 0.3, 0.2]) + 4.0
    found = inference.classify(
        KEY, diffusion, exact.states(2), np.arange(3), log_prior=log_prior, num_trajectories=2000
    )
    truth = np.stack([exact.bits_log_prob(diffusion.given(label)) for label in range(3)], axis=-1)
    np.testing.assert_allclose(np.exp(found.log_prob), softmax(truth + log_prior, axis=-1), atol=0.02)
    np.testing.assert_array_equal(found.label, np.argmax(truth + log_prior, axis=-1))
    assert np.exp(found.log_prior).sum() == pytest.approx(1.0)


def labeled(num=20_000, temperature=1.0):
    """Log likelihoods of three classes, and labels drawn from their posterior at a temperature."""
    rng = np.random.default_rng(0)
    log_likelihood = 3.0 * rng.normal(size=(num, 3))
    probs = softmax(log_likelihood / temperature, axis=-1)
    labels = (rng.random((num, 1)) > np.cumsum(probs, axis=-1)).sum(axis=-1)
    return Classification(log_likelihood, 0.0 * log_likelihood, log_softmax(np.zeros(3))), labels


def test_the_temperature_labels_were_drawn_at_is_found():
    found, labels = labeled(temperature=2.5)
    temperature = inference.fit_temperature(found, labels)
    assert temperature == pytest.approx(2.5, rel=0.05)
    calibrated = found.calibrated(temperature)
    assert calibrated.calibration_error(labels) < 0.015 < 0.1 < found.calibration_error(labels)
    assert calibrated.cross_entropy(labels) < found.cross_entropy(labels)
    assert calibrated.accuracy(labels) == found.accuracy(labels)


@pytest.mark.central
def test_the_calibration_error_of_a_case_worked_by_hand():
    # Two data at 0.9 of which one is right: |0.5 - 0.9|. One at 0.6, right: |1 - 0.6|. One at 1.0, right: 0.
    probs = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]]
    labels = [0, 1, 1, 0]
    assert inference.calibration_error(probs, labels, num_bins=10) == pytest.approx((0.8 + 0.4) / 4.0 - 0.0, abs=0.1)
    assert inference.calibration_error(probs, labels, num_bins=20) == pytest.approx((0.8 + 0.4) / 4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, y: c.accuracy(y[:-1]), "labels must be 20 integers in 0..2"),
        (lambda c, y: c.accuracy(y + 1.0), "labels must be 20 integers in 0..2"),
        (lambda c, y: c.accuracy(y + 3), "labels must be 20 integers in 0..2"),
        (lambda c, y: c.calibrated(0.0), "temperature must be positive; got 0."),
        (lambda c, y: c.calibration_error(y, num_bins=0), "num_bins must be an integer of at least 1; got 0."),
        (lambda c, y: inference.classify(KEY, None, np.zeros((1, 2)), [0]), "contexts must be two or more classes"),
        (
            lambda c, y: inference.classify(KEY, None, np.zeros((1, 2)), [0, 1], log_prior=np.zeros(3)),
            "with a log_prior of each; got 2 with (3,).",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*labeled(20))
