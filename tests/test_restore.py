"""Inpainting and denoising where the posterior is known: independent coordinates, of which hidden ones keep their prior."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from nedm_ppl import models
from nedm_ppl.files import OutputFolderError
from nedm_ppl.restoration import HIDDEN, Hidden, Noise, hidden, restore, save
from tests.conftest import assert_mean

KEY, RATE, T = jax.random.key(0), 0.3, 6
FREQUENT = jnp.full((2, 3), jnp.log(RATE) - jnp.log1p(-RATE))
BITS = models.Diffusion(
    models.BernoulliDiffusion((2, 3), models.schedules.erasing(T), rate=RATE),
    models.BitPrediction(lambda t, x: FREQUENT),
    first_step="learned",
)
NORMAL = models.Diffusion(
    models.GaussianDiffusion((4,), models.schedules.log_snr_linear(T)),
    models.VelocityPrediction(lambda t, x: jnp.zeros((2, 4))),
    first_step="learned",
)


@pytest.fixture(scope="module")
def hidden_bits():
    x0 = np.random.default_rng(1).binomial(1, RATE, size=(120, 2, 3)).astype(np.float32)
    return restore(KEY, BITS, x0, Hidden(hidden("lower", (2, 3))), num_particles=32, num_repeats=2, num_steps=4)


def test_hidden_bits_keep_their_prior_and_the_others_are_known(hidden_bits):
    result = hidden_bits
    mean = result.posterior.mean.mean
    np.testing.assert_allclose(mean[:, 0], result.x0[:, 0], atol=1e-5)
    np.testing.assert_array_equal(result.paper[:, 0], result.x0[:, 0])
    assert np.all(np.isnan(result.y[:, 1])) and np.array_equal(result.y[:, 0], result.x0[:, 0])
    assert_mean(mean[:, 1].mean(axis=-1), RATE)
    assert result.rmse == pytest.approx(np.sqrt(np.mean(np.square(mean[:, 1] - result.x0[:, 1]))), rel=1e-6)
    np.testing.assert_allclose(  # every filter's evidence is exact, and all weights stay equal
        result.posterior.log_evidence.mean,
        np.sum(np.where(result.x0[:, 0] == 1, np.log(RATE), np.log1p(-RATE)), axis=-1),
        rtol=1e-4,
    )


def test_the_probability_integral_transform_is_uniform_where_the_posterior_is_right(hidden_bits, significance):
    from scipy import stats

    assert hidden_bits.pit.shape == (120, 3)
    assert stats.kstest(hidden_bits.pit.ravel(), "uniform").pvalue > significance
    assert abs(hidden_bits.coverage() - 0.9) < 4.0 * np.sqrt(0.9 * 0.1 / hidden_bits.pit.size)


def test_noise_on_a_normal_law_shrinks_the_data():
    x0 = np.random.default_rng(2).normal(size=(60, 4)).astype(np.float32)
    result = restore(KEY, NORMAL, x0, Noise(0.5), num_particles=256, num_repeats=1)
    assert_mean(result.y - x0, 0.0)
    share = 1.0 / (1.0 + 0.5**2)
    assert_mean((result.posterior.mean.mean - share * result.y).ravel(), 0.0)
    assert_mean(np.square(result.posterior.sd).ravel() * 256 / 255, share * 0.5**2)
    assert result.rmse == pytest.approx(np.sqrt(share) * 0.5, rel=0.2)
    assert abs(result.coverage() - 0.9) < 0.1


@pytest.mark.central
def test_what_is_written(tmp_path, hidden_bits):
    metrics = save(hidden_bits, tmp_path / "made" / "out", {"task": "inpaint"})
    assert json.loads((tmp_path / "made" / "out" / "metrics.json").read_text()) == metrics
    assert metrics["num_data"] == 120 and metrics["num_steps"] == 4 and metrics["rmse"] == hidden_bits.rmse
    assert (tmp_path / "made" / "out" / "restored.png").stat().st_size > 5_000
    with xr.open_dataset(tmp_path / "made" / "out" / "posterior.nc", group="posterior", engine="h5netcdf") as draws:
        assert draws["x"].dims == ("chain", "draw", "observation", "x_dim_0", "x_dim_1")
        np.testing.assert_allclose(draws["x"].mean(("chain", "draw")), hidden_bits.posterior.mean.mean, atol=1 / 64)
    with xr.open_dataset(tmp_path / "made" / "out" / "posterior.nc", group="particles", engine="h5netcdf") as stats:
        assert stats["ess"].dims == ("observation", "repeat", "time") and stats["ess"].shape == (120, 2, 5)
    with pytest.raises(OutputFolderError, match="exists; name another folder"):
        save(hidden_bits, tmp_path / "made", {})


def test_halves():
    shape = (4, 2)
    masks = {half: hidden(half, shape) for half in HIDDEN}
    assert all(mask.shape == shape and mask.sum() == 4 for mask in masks.values())
    assert (
        masks["lower"][2:].all()
        and masks["upper"][:2].all()
        and masks["left"][:, 0].all()
        and masks["right"][:, 1].all()
    )
    np.testing.assert_array_equal(hidden("right", (5,)), [False, False, True, True, True])


X0 = np.zeros((2, 2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hidden("top", (2, 3)), "half must be one of lower, upper, left, right; got 'top'"),
        (lambda: hidden("upper", (1, 3)), "must leave something to see"),
        (lambda: restore(KEY, BITS, X0, Hidden(np.ones((3, 2), bool))), r"mask must be boolean and of shape \(2, 3\)"),
        (lambda: restore(KEY, BITS, X0, Hidden(np.ones((2, 3)))), "mask must be boolean"),
        (lambda: restore(KEY, BITS, X0, Hidden(np.ones((2, 3), bool))), "mask must hide some coordinates and leave"),
        (lambda: restore(KEY, BITS, X0, Hidden(np.zeros((2, 3), bool))), "mask must hide some coordinates and leave"),
        (lambda: restore(KEY, BITS, X0, Noise(-0.1)), "scale must be positive"),
        (lambda: restore(KEY, BITS, X0 + 0.5, Noise(0.1)), "x0 must be binary"),
        (lambda: restore(KEY, BITS, X0, Noise(0.1), num_steps=T + 1), r"num_steps must lie in 2\.\.6"),
        (
            lambda: restore(KEY, BITS, X0, Noise(0.1), num_particles=0),
            "num_particles and num_repeats must be at least 1",
        ),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
