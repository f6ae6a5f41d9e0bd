"""The experiments' data: numbers known from elsewhere, membership, and what is refused."""

import math

import numpy as np
import pytest
from conftest import assert_mean
from sklearn.datasets import load_digits, make_swiss_roll

from nedm_ppl import data


@pytest.mark.central
@pytest.mark.parametrize(("noise", "mean_bits"), [(0.25, -0.9216), (0.5, -1.9243), (1.0, -2.9137)])
def test_swiss_roll_mean_log_density(noise, mean_bits):
    # Reference: an independent quadrature on a grid over the plane, each noise with its own pooled scale.
    draws = data.swiss_roll(7, 20_000, noise=noise)
    bits = data.swiss_roll_log_density(draws, noise) / math.log(2.0)
    assert_mean(bits, mean_bits)
    # Control: the density of another noise is lower by more than that, on the same draws (Gibbs' inequality).
    other = data.swiss_roll_log_density(draws[:2000], 1.3 * noise) / math.log(2.0)
    assert bits[:2000].mean() - other.mean() > 0.01


def test_swiss_roll_entropy_by_another_route():
    # -integral p log p over the plane from the density alone: no draws, hence no standard error.
    axis = np.linspace(-2.4, 2.4, 241)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    log_density = data.swiss_roll_log_density(grid)
    cell = (axis[1] - axis[0]) ** 2
    assert log_density.shape == (241, 241) and log_density.dtype == np.float64
    assert np.sum(np.exp(log_density)) * cell == pytest.approx(1.0, abs=1e-9)
    assert np.sum(np.exp(log_density) * log_density) * cell / math.log(2.0) == pytest.approx(-1.9243, abs=1e-4)


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_swiss_roll_log_density_against_a_dense_sum(noise):
    x = np.concatenate([data.swiss_roll(1, 20, noise=noise), [[0.0, 0.0], [3.0, -3.0]]])
    tau = 1.5 * math.pi * (1.0 + 2.0 * (np.arange(200_000) + 0.5) / 200_000)
    mean = 1.0 + 1.0 / (3.0 * math.pi)
    scale = math.sqrt(39.0 * math.pi**2 / 8.0 + noise**2 - mean**2)
    points = (mean + scale * x)[:, :, None]
    square = np.square(points - np.stack([tau * np.cos(tau), tau * np.sin(tau)])).sum(axis=1) / (2.0 * noise**2)
    nearest = square.min(axis=1)
    average = np.log(np.mean(np.exp(nearest[:, None] - square), axis=1)) - nearest
    expected = average - math.log(2.0 * math.pi * noise**2) + 2.0 * math.log(scale)
    np.testing.assert_allclose(data.swiss_roll_log_density(x, noise), expected, rtol=1e-8, atol=1e-8)


def test_swiss_roll_is_scikit_learns_standardized():
    state = np.random.RandomState(np.random.default_rng(3).bit_generator)
    raw = make_swiss_roll(1000, noise=0.5, random_state=state)[0][:, [0, 2]]
    draws = data.swiss_roll(3, 1000)
    assert draws.dtype == np.float32
    np.testing.assert_allclose(draws, (raw - 1.1061) / 6.8659, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.25, 0.5, 1.0])
def test_swiss_roll_pooled_moments(noise):
    # Means over draws, so that the standard error is that of independent numbers.
    draws = data.swiss_roll(11, 100_000, noise=noise).astype(np.float64)
    assert_mean(draws.mean(axis=1), 0.0)
    assert_mean(np.square(draws).mean(axis=1), 1.0)


@pytest.mark.parametrize("draw", [data.swiss_roll, data.heartbeat])
def test_generators_are_deterministic_and_advance(draw):
    rng = np.random.default_rng(5)
    first, second = draw(rng, 30), draw(rng, 30)
    np.testing.assert_array_equal(first, draw(5, 30))
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="rng must be a NumPy Generator or a seed"):
        draw(None, 3)
    with pytest.raises(ValueError, match="num_data must be an integer of at least 1; got 0"):
        draw(0, 0)


def test_swiss_roll_refusals():
    with pytest.raises(ValueError, match="noise must be finite and at least 0; got -1"):
        data.swiss_roll(0, 3, noise=-1.0)
    with pytest.raises(ValueError, match="above 0 for a density to exist; got 0"):
        data.swiss_roll_log_density(np.zeros((3, 2)), 0.0)
    with pytest.raises(ValueError, match=r"trailing shape \(2,\).*got shape \(3,\)"):
        data.swiss_roll_log_density(np.zeros(3))
    with pytest.raises(ValueError, match="x must be finite"):
        data.swiss_roll_log_density([np.nan, 0.0])
    assert data.swiss_roll_log_density(np.zeros((0, 2))).shape == (0,)


@pytest.mark.central
def test_heartbeat_is_uniform_over_its_five_states():
    draws = data.heartbeat(0, 5000)
    assert draws.shape == (5000, 20) and draws.dtype == np.float32
    states, counts = np.unique(draws, axis=0, return_counts=True)
    expected = np.stack([np.arange(20) % 5 == phase for phase in range(4, -1, -1)]).astype(np.float32)
    np.testing.assert_array_equal(states, expected)
    # Chi-squared with 4 degrees of freedom: 18.5 is exceeded once in a thousand.
    assert np.sum(np.square(counts - 1000.0) / 1000.0) < 18.5
    assert math.exp(data.HEARTBEAT_LOG_PROB) == pytest.approx(1.0 / len(states), rel=1e-15)
    assert data.HEARTBEAT_LOG_PROB / math.log(2.0) == pytest.approx(-2.3219, abs=1e-4)


@pytest.mark.central
def test_digits_split_and_levels():
    split, bunch = data.digits(), load_digits()
    assert [part.shape for part in split[:3]] == [(1293, 8, 8), (144, 8, 8), (360, 8, 8)]
    assert [part.dtype for part in split[:3]] == [np.float32] * 3
    order = np.random.default_rng(0).permutation(1797)
    index = {"train": order[:1293], "validation": order[1293:1437], "holdout": order[1437:]}
    for name, members in index.items():
        images = getattr(split, name)
        # Every pixel is one of the 17 levels exactly, and gives its gray level back.
        gray = np.searchsorted(np.asarray(split.levels, np.float32), images)
        np.testing.assert_array_equal(gray, bunch.images[members])
        np.testing.assert_array_equal(np.asarray(split.levels, np.float32)[gray], images)
        np.testing.assert_array_equal(getattr(split, f"{name}_labels"), bunch.target[members])


def test_digits_scale():
    split = data.digits()
    pooled = np.concatenate([split.train, split.validation]).astype(np.float64)
    assert abs(pooled.mean()) < 1e-6 and abs(pooled.std() - 1.0) < 1e-6
    assert split.scale == pytest.approx(6.02, abs=0.005)
    np.testing.assert_allclose(split.mean + split.scale * np.asarray(split.levels), np.arange(17), atol=1e-5)
    np.testing.assert_array_equal(split.train, data.digits().train)
