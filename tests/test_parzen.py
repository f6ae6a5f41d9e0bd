"""Parzen windows against closed forms."""

import numpy as np
import pytest
from scipy import stats

from nedm_ppl import inference

RNG = np.random.default_rng(0)


def test_a_window_on_one_sample_is_a_gaussian():
    center, x0 = RNG.normal(size=(1, 2, 3)), RNG.normal(size=(5, 2, 3))
    found = inference.parzen_log_likelihood(center, x0, validation=x0, bandwidths=[0.7])
    expected = stats.norm.logpdf(x0, center, 0.7).sum(axis=(1, 2))
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-12)
    assert found.bandwidth == 0.7 and found.mean.mean == pytest.approx(expected.mean())


def test_a_window_on_two_samples_is_their_mixture_and_validation_alone_chooses_its_width():
    samples, x0 = np.array([[-1.0], [2.0]]), RNG.normal(size=(50, 1))
    validation, widths = RNG.normal(size=(300, 1)), np.array([0.2, 0.9, 1.4, 3.0])

    def density(x, width):
        return np.log(0.5 * stats.norm.pdf(x, -1.0, width) + 0.5 * stats.norm.pdf(x, 2.0, width)).ravel()

    found = inference.parzen_log_likelihood(samples, x0, validation=validation, bandwidths=widths)
    best = widths[np.argmax([density(validation, width).mean() for width in widths])]
    assert found.bandwidth == best and best not in (widths[0], widths[-1])
    np.testing.assert_allclose(found.log_prob, density(x0, best), rtol=1e-10)
    other = inference.parzen_log_likelihood(samples, x0 + 3.0, validation=validation, bandwidths=widths)
    assert other.bandwidth == best


def test_the_default_widths_hold_the_best_one():
    """In the plane the best width of n points of a normal law is about n ** (-1 / 6), Silverman's."""
    x = RNG.normal(size=(3, 1000, 2))
    found = inference.parzen_log_likelihood(x[0], x[1], validation=x[2])
    assert 0.6 < found.bandwidth / 1000 ** (-1 / 6) < 1.7
    assert abs(found.mean.mean + np.log(2 * np.pi * np.e)) < 4.0 * found.mean.se + 0.05
    assert repr(found).startswith("Parzen window of 0.") and "1000 data" in repr(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((0, 2)), np.ones((1, 2)), np.ones((1, 2)), None), "samples must have shape"),
        ((np.ones((3, 2)), np.ones((1, 3)), np.ones((1, 2)), None), r"x0 must have shape .*; got \(1, 3\)"),
        ((np.ones((3, 2)), np.ones((1, 2)), np.ones(2), None), r"validation must have shape .*; got \(2,\)"),
        ((np.ones((3, 2)), np.ones((1, 2)), np.ones((1, 2)), [0.0]), "bandwidths must be above 0"),
    ],
)
def test_refusals(arguments, message):
    samples, x0, validation, bandwidths = arguments
    with pytest.raises(ValueError, match=message):
        inference.parzen_log_likelihood(samples, x0, validation=validation, bandwidths=bandwidths)
