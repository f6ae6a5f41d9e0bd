"""The bound over a data set: batches leave no trace, and the standard error is that of the data and the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import assert_same_mean
from test_mixture_kernels import STATES, bits, bits_law

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


def test_whole_trajectories_give_the_same_bound_term_by_term():
    """In the mean they agree with fresh states for every step; with an exact reversal every total is log q(x_0)."""
    rng = np.random.default_rng(0)
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4, start=3.0, end=-1.0))
    model = models.Diffusion(process, lambda t, x: dist.Normal(0.8 * x, 0.5).to_event(1), first_step="learned")
    x0 = np.tile(rng.normal(size=(1, 2)), (4000, 1))
    apart = inference.evaluate(jax.random.key(0), model, x0)
    whole = inference.evaluate(jax.random.key(1), model, x0, whole_trajectories=True)
    for name in ("prior", "diffusion", "first_step", "total"):
        first, second = (np.asarray(getattr(terms, name), np.float64) for terms in (apart, whole))
        error = np.sqrt((first.var() + second.var()) / 4000)
        assert abs(first.mean() - second.mean()) < 4.5 * error + 1e-5, name
    np.testing.assert_array_equal(whole.times[:, 0], [2, 3, 4])
    exact = inference.evaluate(jax.random.key(0), bits(5), np.asarray(STATES), whole_trajectories=True)
    np.testing.assert_allclose(exact.total, np.log(bits_law()), atol=2e-5)
    with pytest.raises(ValueError, match="num_times must be None with whole_trajectories"):
        inference.evaluate(jax.random.key(0), model, x0, num_times=2, whole_trajectories=True)
