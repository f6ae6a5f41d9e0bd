"""The bound over a data set: batches leave no trace, and the standard error is that of the data and the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_mean

from nedm_ppl import inference, models

KEY = jax.random.key(0)


def model() -> models.Diffusion:
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(6))
    return models.Diffusion(process, models.DriftVariance(lambda t, x: jnp.zeros((2, 2))))


def test_a_last_batch_that_is_not_full_neither_adds_nor_loses_data():
    x0 = np.random.default_rng(0).standard_normal((10, 2))
    terms = inference.evaluate(KEY, model(), x0, batch_size=4)
    assert terms.total.shape == (10,) and terms.divergences.shape == (5, 10)
    exact = model().process.prior_divergence(jnp.asarray(x0))
    np.testing.assert_allclose(terms.prior, exact, rtol=1e-5)


@pytest.mark.central
def test_subsampled_and_full_evaluation_have_one_mean():
    x0 = np.tile(np.array([[0.5, -1.0]]), (2000, 1))
    full = inference.evaluate(KEY, model(), x0, batch_size=1000)
    drawn = inference.evaluate(jax.random.key(1), model(), x0, num_times=2, batch_size=1000)
    assert drawn.times.shape == (2, 2000)
    assert_same_mean(full.total, drawn.total)


def test_every_batch_has_noise_of_its_own():
    """A mean does not see it: data alike, four to a batch, and no two terms alike."""
    terms = inference.evaluate(KEY, model(), np.tile([[0.5, -1.0]], (12, 1)), batch_size=4)
    assert len(np.unique(terms.total)) == 12


def test_an_estimate_is_a_mean_with_its_standard_error_in_any_unit():
    values = np.random.default_rng(0).standard_normal(100)
    value = inference.Estimate.of(values)
    assert value.mean == pytest.approx(values.mean()) and value.se == pytest.approx(values.std(ddof=1) / 10)
    assert (value * -2.0).mean == -2.0 * value.mean and (value * -2.0).se == 2.0 * value.se
    assert 2.0 * value == value * 2.0 == value / 0.5 and -value == value * -1.0
    first, second = inference.Estimate(1.0, 3.0), inference.Estimate(0.5, 4.0)
    assert first + second == (1.5, 5.0) and first - second == (0.5, 5.0)  # independent: squared errors add
    assert str(inference.Estimate(-1.7921, 0.0131)) == "-1.792 ± 0.013" and str(first * 100) == "100 ± 300"
    assert str(inference.Estimate(1.0, np.nan)) == "1.0000 ± nan" and str(inference.Estimate(1.0, 0.0)) == "1.0000 ± 0"


def test_data_the_process_cannot_have_are_refused():
    with pytest.raises(ValueError, match=r"x0 must have trailing shape \(2,\)"):
        inference.evaluate(KEY, model(), np.zeros((4, 3)))
