"""Fewer steps: the coarse chain has the fine chain's laws at its times, and where kernels are exact it is the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from nedm_ppl import models
from nedm_ppl.models import networks, schedules
from nedm_ppl.models._respace import SPACINGS, respace
from tests.exact import log_weights
from tests.test_checkpoint import assert_same, noisy
from tests.zoo import noise_of

T, DIM, RATE = 12, 3, 0.3
LEVELS = (-1.0, 0.0, 2.0)
GAUSSIAN = models.GaussianDiffusion((DIM,), schedules.log_snr_linear(T))
LEARNED = models.GaussianDiffusion((DIM,), schedules.LearnedSchedule(schedules.cosine(T)))
BITS = models.BernoulliDiffusion((DIM,), schedules.erasing(T), rate=RATE)


def residual(output=(2, DIM)):
    return noisy(networks.ResidualMLP((DIM,), output, T, width=6, depth=1, key=jax.random.key(0)))


DIFFUSIONS = {
    "velocity": lambda: models.Diffusion(GAUSSIAN, models.VelocityPrediction(residual()), first_step="learned"),
    "learned rates": lambda: models.Diffusion(LEARNED, models.VelocityPrediction(residual())),
    "levels": lambda: models.Diffusion(
        GAUSSIAN, models.LevelPrediction(residual((DIM, 3)), LEVELS), first_step="quantized"
    ),
    "bits": lambda: models.Diffusion(BITS, models.BitPrediction(residual((DIM,))), first_step="learned"),
}
DATA = {"levels": np.array([[-1.0, 0.0, 2.0], [0.0, 0.0, -1.0]]), "bits": np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])}


@pytest.mark.cases(2)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_coarse_chain_has_the_fine_chains_laws_at_its_times(name, spacing):
    fine = DIFFUSIONS[name]()
    coarse = respace(fine, 5, spacing=spacing)
    times = coarse.reverse.network.times
    assert coarse.num_steps == 5 == len(times) and times[0] == 1 and times[-1] == T and np.all(np.diff(times) > 0)
    for quantity in ("alpha_bar", "one_minus_alpha_bar"):
        of_fine, of_coarse = (np.asarray(getattr(d.process.schedule, quantity)) for d in (fine, coarse))
        np.testing.assert_allclose(of_coarse, of_fine[[0, *times]], rtol=2e-6)
    x = jnp.asarray(DATA.get(name, np.array([[0.5, -0.2, 1.0]])), jnp.float32)
    for k, t in enumerate(times, start=1):
        for law in (lambda d, t: d.process.marginal(t, x), lambda d, t: d.data_law(t, x)):
            np.testing.assert_allclose(law(coarse, k).mean, law(fine, t).mean, rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(law(coarse, k).variance, law(fine, t).variance, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(coarse.first_kernel(x).log_prob(x), fine.first_kernel(x).log_prob(x), rtol=1e-5)


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_with_all_its_steps_it_is_the_same_model(name):
    fine = DIFFUSIONS[name]()
    x0 = jnp.asarray(DATA.get(name, np.array([[0.5, -0.2, 1.0], [0.0, 2.0, -1.0]])), jnp.float32)
    both = fine, respace(fine, T)
    same = jax.jit(lambda x0: [log_weights(jax.random.key(1), diffusion, x0, 20) for diffusion in both])(x0)
    np.testing.assert_allclose(*same, rtol=1e-5, atol=1e-4)


@pytest.mark.cases(1)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_exact_kernels_stay_exact_over_longer_steps(spacing):
    """Data that are noise already: every trajectory of the coarse chain, too, weighs log pi(x_0)."""
    silent = models.Diffusion(
        GAUSSIAN, models.VelocityPrediction(lambda t, x: jnp.zeros((2, DIM))), first_step="learned"
    )
    frequent = jnp.full(DIM, jnp.log(RATE) - jnp.log1p(-RATE))
    independent = models.Diffusion(BITS, models.BitPrediction(lambda t, x: frequent), first_step="learned")
    for fine, x0, noise in (
        (silent, jnp.array([[0.5, -2.0, 1.0]]), dist.Normal(0.0, 1.0)),
        (independent, jnp.array([[1.0, 0.0, 1.0]]), dist.Bernoulli(RATE)),
    ):
        coarse = respace(fine, 4, spacing=spacing)
        weights = jax.jit(lambda x0, coarse=coarse: log_weights(jax.random.key(2), coarse, x0, 16))(x0)
        np.testing.assert_allclose(weights, jnp.broadcast_to(noise.log_prob(x0).sum(-1), (16, 1)), rtol=1e-4)


def test_spacing_by_log_snr_is_even_in_it(x64):
    """Of a chain that spends most of its steps at high signal, the coarse one takes few of those."""
    process = models.GaussianDiffusion((1,), models.schedules.log_snr_logistic(200, start=9.0, end=-5.0, center=6.0))
    silent = models.Diffusion(process, models.VelocityPrediction(lambda t, x: jnp.zeros((2, 1))), first_step="learned")
    coarse, by_index = (respace(silent, 8, spacing=spacing).process.schedule for spacing in ("log_snr", "index"))
    even, uneven = (np.abs(np.diff(schedule.log_snr)) for schedule in (coarse, by_index))
    assert even.max() < 2.0 * even.min() and uneven.max() > 4.0 * uneven.min()
    times = np.asarray(respace(silent, 8).reverse.network.times)
    np.testing.assert_array_equal(times, np.round(np.linspace(1, 200, 8)))


@pytest.mark.central
def test_a_respaced_model_is_saved_and_loaded_and_respaced_again(tmp_path):
    coarse = respace(DIFFUSIONS["levels"](), 6)
    coarse.save(tmp_path / "model")
    loaded = models.Diffusion.load(tmp_path / "model")
    assert_same(coarse, loaded)
    np.testing.assert_array_equal(*(d.sample(jax.random.key(0), (4,)) for d in (coarse, loaded)))
    coarser = respace(loaded, 3)
    assert coarser.process.schedule.alpha_bar[-1] == pytest.approx(float(GAUSSIAN.schedule.alpha_bar[-1]), rel=1e-5)


def test_steps_are_spread_evenly_in_the_log_signal_to_noise_ratio():
    """A fine cosine chain has all the ratios there are: the spread is even to within a step, at the last step too."""
    silent = models.VelocityPrediction(lambda t, x: jnp.zeros((2, DIM)))
    fine = models.Diffusion(models.GaussianDiffusion((DIM,), schedules.log_snr_logistic(2000)), silent)
    ratios = np.asarray(respace(fine, 6, spacing="log_snr").process.schedule.log_snr)
    np.testing.assert_allclose(ratios, np.linspace(5.5, -4.0, 6), atol=0.01)
    by_index = np.asarray(respace(fine, 6).process.schedule.log_snr)
    assert np.ptp(np.diff(by_index)) > 1.0 > 0.02 > np.ptp(np.diff(ratios))
    # Where nothing is left at T the last step erases, and the others are even between their ends.
    process = models.GaussianDiffusion((DIM,), schedules.erasing(2000))
    erased = respace(models.Diffusion(process, silent), 6, spacing="log_snr").process.schedule
    assert erased.alpha_bar[-1] == 0.0
    log_snr = np.log(erased.alpha_bar[1:-1]) - np.log(erased.one_minus_alpha_bar[1:-1])
    np.testing.assert_allclose(log_snr, np.linspace(np.log(1999.0), -np.log(1999.0), 5), atol=0.5)


def test_noise_that_erases_everything_still_does():
    coarse = respace(DIFFUSIONS["bits"](), 2)
    assert coarse.process.schedule.alpha_bar[-1] == 0.0
    assert coarse.process.schedule.rates[0] == pytest.approx(1.0 / T)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: respace(DIFFUSIONS["bits"](), 1), r"num_steps must lie in 2\.\.12, the steps .*; got 1"),
        (lambda: respace(DIFFUSIONS["bits"](), T + 1), r"num_steps must lie in 2\.\.12, the steps .*; got 13"),
        (lambda: respace(DIFFUSIONS["bits"](), 3, spacing="even"), "spacing must be one of index, log_snr; got 'even'"),
        (
            lambda: respace(models.Diffusion(BITS, models.FlipRate(residual((DIM,)))), 3),
            "reverse must predict x_0 to be respaced; a FlipRate knows",
        ),
        (lambda: respace(noise_of(BITS), 3), "reverse must predict x_0 to be respaced; a "),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
