"""Bounds on log p(x_0) from both sides: exact at one trajectory, closing on the truth with many."""

import re

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from scipy.special import xlogy

from nedm_ppl import inference, models
from nedm_ppl.models.chain.schedules import FixedSchedule, log_snr_linear
from tests.zoo import noise_of

PROCESS = models.BernoulliDiffusion((4,), FixedSchedule((0.1, 0.3, 0.4, 0.6)), rate=0.3)
BITS = models.Diffusion(
    PROCESS, models.BitPrediction(lambda t, x: 0.8 * jnp.roll(x, 1) - 0.1 * t), first_step="learned"
)
PLACES = 2 ** np.arange(4)[::-1]


@pytest.fixture(scope="module")
def log_prob():
    return exact.bits_log_prob(BITS)


def excess(result, log_prob):
    """Either side minus the truth of its own datum."""
    truth = log_prob[(result.x0 @ PLACES).astype(int)]
    return result.lower - truth, result.upper - truth


def dissipated(diffusion, log_prob) -> tuple[float, float]:
    """E (lower - log p) and E (upper - log p) at one trajectory a side, from the pairs (x_{t-1}, x_t)."""
    forward = exact.forward_matrices(diffusion.process.schedule.betas, diffusion.process.rate, 4)
    law = exact.product_law([diffusion.process.rate] * 4)
    upper = np.sum(law * np.log(law))
    for f, r in zip(forward[::-1], exact.reverse_matrices(diffusion)[::-1], strict=True):
        pairs = law[:, None] * r  # x_t, x_{t-1}
        upper += np.sum(xlogy(pairs, r) - xlogy(pairs, f.T))
        law = law @ r
    return float(law @ (exact.bits_bound(diffusion) - log_prob)), float(upper - law @ log_prob)


def test_with_one_trajectory_the_gap_is_the_work_dissipated_both_ways(log_prob):
    result = inference.sandwich(jax.random.key(0), BITS, 20_000, num_trajectories=1)
    assert result.x0.shape == (20_000, 4) and result.num_trajectories == 1
    lower, upper = excess(result, log_prob)
    expected = dissipated(BITS, log_prob)
    assert expected[0] < -0.05 and expected[1] > 0.05
    assert_mean(lower, expected[0])
    assert_mean(upper, expected[1])
    with pytest.raises(AssertionError):  # the control: forward trajectories alone bound from below
        assert_mean(lower, expected[1])


def test_both_sides_close_on_the_truth(log_prob):
    gaps = []
    for num_trajectories in (1, 8, 256):
        result = inference.sandwich(jax.random.key(1), BITS, 3000, num_trajectories=num_trajectories)
        lower, upper = excess(result, log_prob)
        error = 4.0 / np.sqrt(3000)
        assert lower.mean() < error * lower.std() and upper.mean() > -error * upper.std()
        gap = result.gap
        assert gap.mean > 4.0 * gap.se
        # What is certified: neither side is farther from the truth than the gap.
        assert max(-lower.mean(), upper.mean()) < gap.mean + 4.0 * gap.se
        gaps.append(gap.mean)
    assert gaps[0] > 4.0 * gaps[1] > 16.0 * gaps[2]
    assert gaps[2] < 0.01


@pytest.mark.cases(1)
@pytest.mark.parametrize("family", ["bits", "reals"])
def test_there_is_no_gap_where_every_trajectory_weighs_the_same(family):
    process = PROCESS if family == "bits" else models.GaussianDiffusion((2, 2), log_snr_linear(50))
    result = inference.sandwich(jax.random.key(2), noise_of(process), 30, num_trajectories=3)
    truth = process.null_log_prob(jnp.asarray(result.x0, float))
    np.testing.assert_allclose(result.lower, truth, atol=5e-5)
    np.testing.assert_allclose(result.upper, truth, atol=5e-5)


@pytest.mark.long
def test_grey_levels():
    levels = (-1.0, 0.0, 1.5)
    process = models.GaussianDiffusion((2,), FixedSchedule((0.1, 0.3, 0.2, 0.5)))
    reverse = models.LevelPrediction(lambda t, x: jnp.stack([jnp.sin(x), x[::-1], 0.1 * t + 0.0 * x], axis=-1), levels)
    diffusion = models.Diffusion(process, reverse, first_step="quantized")
    result = inference.sandwich(jax.random.key(3), diffusion, 2000, num_trajectories=32)
    assert set(np.unique(result.x0)) == set(np.float32(levels))
    assert result.gap.mean > -4.0 * result.gap.se
    assert np.mean(result.lower) < np.log(1.0) and result.gap.mean < 0.2


def test_batches_hold_all_data():
    result = inference.sandwich(jax.random.key(4), BITS, 25.0, num_trajectories=2.0, batch_size=4)
    assert result.x0.shape == (25, 4) and result.lower.shape == result.upper.shape == (25,)
    assert np.all(np.isfinite(result.upper))


def test_no_two_batches_hold_the_same_data():
    process = models.GaussianDiffusion((2,), log_snr_linear(3))
    result = inference.sandwich(jax.random.key(4), noise_of(process), 12, num_trajectories=1, batch_size=4)
    assert len(np.unique(result.x0, axis=0)) == 12


def test_the_gap_is_paired_by_datum():
    lower = np.array([-3.0, -1.0, -7.0])
    result = inference.Sandwich(np.zeros((3, 1)), lower, lower + np.array([0.1, 0.3, 0.2]), 4)
    assert result.gap.mean == pytest.approx(0.2) and result.gap.se == pytest.approx(0.1 / np.sqrt(3.0))
    assert result.lower_mean.se == pytest.approx(lower.std(ddof=1) / np.sqrt(3.0))


@pytest.mark.central
def test_to_arviz():
    result = inference.sandwich(jax.random.key(5), BITS, 12, num_trajectories=4)
    tree = result.to_arviz(units="bits")
    np.testing.assert_allclose(tree["sandwich"]["upper"], result.upper / np.log(2.0))
    assert tree["sandwich"]["lower"].attrs["units"] == "bits" and tree["sandwich"]["lower"].dims == ("datum",)
    np.testing.assert_array_equal(tree["simulated"]["x0"], result.x0)
    summary = result.summary()
    assert summary["gap_mean"] == pytest.approx(summary["upper_mean"] - summary["lower_mean"])
    with pytest.raises(ValueError, match=re.escape("units must be nats or bits; got 'hartleys'.")):
        result.to_arviz(units="hartleys")


@pytest.mark.parametrize(
    ("num_data", "num_trajectories", "message"),
    [
        (0, 4, "num_data must be an integer of at least 1; got 0."),
        (3, 0, "num_trajectories must be an integer of at least 1; got 0."),
    ],
)
def test_bad_requests_are_named(num_data, num_trajectories, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        inference.sandwich(jax.random.key(0), BITS, num_data, num_trajectories=num_trajectories)
