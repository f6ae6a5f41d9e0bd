"""Work, Jarzynski's equality and the loss per step, against enumeration of whole chains and kernels that are known."""

import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean
from exact import bits_bound, bits_log_prob, states

from nedm_ppl import inference, models
from tests.zoo import white


def bits(num_steps: int = 3) -> models.Diffusion:
    """Two bits and a kernel that is no reversal of anything."""
    process = models.BernoulliDiffusion((2,), models.schedules.erasing(num_steps, last_rate=0.8), rate=0.3)
    network = models.networks.SigmoidMLP((2,), (2,), num_steps, width=4, depth=1, key=jax.random.key(3))
    network = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), network)
    return models.Diffusion(process, models.BitPrediction(network), first_step="learned")


def noise_model(num_steps: int = 6) -> models.Diffusion:
    """The forward kernel in reverse: it knows nothing of the data, and its model is the noise."""
    return white(3, num_steps)


@pytest.fixture(scope="module")
def of_bits():
    return summarized(bits(), states(2), num_particles=2000)


def summarized(diffusion: models.Diffusion, x0, num_particles: int = 32, num_times: int | None = None):
    terms = inference.evaluate(jax.random.key(0), diffusion, x0, num_times=num_times)
    likelihood = inference.marginal_log_likelihood(jax.random.key(1), diffusion, x0, num_trajectories=num_particles)
    return inference.Thermodynamics.of(diffusion, x0, terms, likelihood), terms, likelihood


def test_jarzynskis_equality_and_the_second_law_over_every_trajectory(x64):
    diffusion = bits()
    paths = np.array(list(product(states(2), repeat=3)))  # (64, T, 2): all of them
    x0, every = jnp.asarray(states(2)), jnp.asarray(np.broadcast_to(paths[:, None], (64, 4, 3, 2)))
    chance = np.exp(jax.jit(lambda x0: diffusion.process.forward(x0).log_prob(every))(x0))
    work = -np.asarray(jax.jit(lambda x0: inference.likelihood.trajectory_log_weight(diffusion, x0, every))(x0))
    free_energy, mean_work = -bits_log_prob(diffusion), np.sum(chance * work, axis=0)
    np.testing.assert_allclose(chance.sum(axis=0), 1.0, atol=1e-9)
    np.testing.assert_allclose(np.sum(chance * np.exp(-work), axis=0), np.exp(-free_energy), rtol=1e-8)
    np.testing.assert_allclose(mean_work, -bits_bound(diffusion), atol=1e-8)
    assert np.all(mean_work > free_energy + 1e-4)
    # Under trajectories that are not the forward chain's there is no equality.
    assert np.all(np.abs(np.mean(np.exp(-work), axis=0) / np.exp(-free_energy) - 1.0) > 0.003)


def test_sampled_work_agrees_with_enumeration(of_bits):
    diffusion = bits()
    result, _, likelihood = of_bits
    work = result.work
    assert_mean(work.work, -bits_bound(diffusion))
    exact = -bits_log_prob(diffusion)
    assert np.all(np.abs(work.free_energy - exact) < 4.0 * work.free_energy_se) and np.all(work.free_energy_se < 0.05)
    assert work.mean.mean == pytest.approx(np.mean(work.work)) and work.jarzynski.mean == pytest.approx(
        np.mean(work.free_energy)
    )
    assert work.gap.mean == pytest.approx(work.mean.mean - work.jarzynski.mean) and work.gap.mean > 0.0
    assert np.array_equal(work.free_energy, -likelihood.log_prob)


def test_a_chain_that_is_its_own_reversal_dissipates_nothing():
    diffusion, x0 = noise_model(), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    result, _, _ = summarized(diffusion, x0)
    null = -np.asarray(diffusion.null_log_prob(x0))
    np.testing.assert_allclose(result.work.work, np.broadcast_to(null, (32, 5)), atol=2e-5)
    np.testing.assert_allclose(result.work.dissipated, 0.0, atol=2e-5)
    assert abs(result.work.gap.mean) < 1e-5 and np.all(result.work.free_energy_se < 1e-5)


@pytest.mark.parametrize("num_times", [None, 3])
def test_a_kernel_that_has_learned_nothing_loses_the_whole_corridor(num_times):
    diffusion, x0 = noise_model(), np.random.default_rng(1).normal(size=(2000, 3)).astype(np.float32)
    terms = inference.evaluate(jax.random.key(0), diffusion, x0, num_times=num_times)
    losses, bounds = inference.step_losses(terms), inference.entropy_bounds(diffusion.process, x0)
    assert np.array_equal(losses.times, np.arange(2, 7))
    width = (bounds.upper_any_data - bounds.lower)[1:]
    assert np.all(np.abs(losses.mean - width) < 4.0 * losses.se + 1e-6) and np.all(losses.se < 0.1 * width)
    if num_times is None:
        assert losses.mean.sum() == pytest.approx(float(np.mean(terms.diffusion)), rel=1e-5)
    assert np.any(np.abs(0.8 * losses.mean - width) > 4.0 * losses.se)  # the control


@pytest.mark.parametrize("num_times", [None, 4])
def test_losses_by_band_are_sums_of_those_of_its_steps(num_times):
    diffusion, x0 = noise_model(), np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    terms = inference.evaluate(jax.random.key(0), diffusion, x0, num_times=num_times)
    log_snr = np.asarray(diffusion.process.schedule.log_snr)
    edges = [np.mean(log_snr[3:5]), np.mean(log_snr[1:3])]
    found = inference.loss_bands(terms, diffusion.process, edges)
    assert found.mean.sum() == pytest.approx(float(np.mean(terms.diffusion)), rel=1e-5)
    times, divergences = np.asarray(terms.times), np.asarray(terms.divergences)
    for band, steps in enumerate(((5, 6), (3, 4), (2,))):
        of = np.where(np.isin(times, steps), divergences, 0.0).sum(axis=0) * 5 / len(times)
        assert found.mean[band] == pytest.approx(of.mean(), rel=1e-5)
        assert found.se[band] == pytest.approx(of.std(ddof=1) / np.sqrt(50), rel=1e-4)
    with pytest.raises(ValueError, match="edges must ascend"):
        inference.loss_bands(terms, diffusion.process, [1.0, 0.0])


def test_a_step_evaluated_once_has_no_error():
    times, divergences = jnp.array([[2, 4], [4, 3]]), jnp.array([[1.0, 2.0], [4.0, 5.0]])
    losses = inference.step_losses(inference.BoundTerms(*jnp.zeros((3, 2)), times, divergences))
    assert losses.times.tolist() == [2, 3, 4] and losses.mean.tolist() == [1.0, 5.0, 3.0]
    assert np.isnan(losses.se[:2]).all() and losses.se[2] == pytest.approx(1.0)


def test_errors_of_work_are_over_the_data_and_paired():
    """Two data of very different work, three trajectories each, of which one weighs nothing that is known."""
    work = np.array([[1.0, 101.0], [2.0, 102.0], [3.0, np.nan]])
    found = inference.Work(work, np.array([1.5, 101.0]), np.zeros(2))
    assert found.mean.mean == pytest.approx((2.0 + 101.5) / 2) and found.mean.se == pytest.approx(99.5 / 2)
    assert found.gap.mean == pytest.approx(0.5) and found.gap.se == pytest.approx(0.0, abs=1e-12)
    assert found.jarzynski.mean == pytest.approx(51.25)


@pytest.mark.central
def test_arviz_has_entropies_losses_and_work_in_the_unit_asked_for(of_bits):
    result = of_bits[0]
    nats, in_bits = result.to_arviz(), result.to_arviz(units="bits")
    steps, work = nats["thermodynamics"], nats["work"]
    assert steps["entropy_lower"].dims == ("time",) and steps["loss"].dims == ("loss_time",)
    assert steps["loss_time"].values.tolist() == [2, 3] and steps["time"].values.tolist() == [1, 2, 3]
    assert work["work"].dims == ("trajectory", "datum") and work["work"].shape == (2000, 4)
    assert float(in_bits["work"]["free_energy"][0]) == pytest.approx(result.work.free_energy[0] / math.log(2))
    assert steps["loss"].attrs["units"] == "nats" and "unbiased" in steps["loss"].attrs["estimate"]
    assert float(steps["log_snr"][-1]) == float(in_bits["thermodynamics"]["log_snr"][-1])
    with pytest.raises(ValueError, match="units must be nats or bits; got 'bans'"):
        result.to_arviz(units="bans")
