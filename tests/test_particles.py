"""What a particle filter says of itself, by hand and from its own states."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from nedm_ppl import inference, models
from nedm_ppl.inference.posterior import multinomial, particle_filter, systematic
from tests.zoo import noise_of, white

MODEL = white(1, 5)
PROCESS = MODEL.process
SHARP = inference.multiply(MODEL, inference.NormalObservation(jnp.array([2.0]), 0.1), along="power")


def test_systematic_copies_are_within_one_of_what_the_weights_ask_for():
    weights = jax.random.dirichlet(jax.random.key(0), jnp.full(50, 0.3))
    draw = jax.vmap(lambda key: jnp.bincount(systematic(key, weights), length=50))
    copies = np.asarray(draw(jax.random.split(jax.random.key(1), 200)))
    assert np.all(np.abs(copies - 50.0 * np.asarray(weights)) < 1.0 + 1e-3)
    free = np.asarray(jnp.bincount(multinomial(jax.random.key(2), weights), length=50))
    assert np.any(np.abs(free - 50.0 * np.asarray(weights)) > 1.0)  # the control


def test_the_reports_run_from_the_data_to_the_noise():
    found = jax.jit(lambda key: particle_filter(key, SHARP, 32, threshold=1.0))(jax.random.key(0))
    ancestors, weights = np.asarray(found.num_ancestors), np.exp(np.asarray(found.log_weights, np.float64))
    assert ancestors[-1] == 32 and ancestors[0] < 32 and np.all(np.diff(ancestors) >= 0)
    assert len(np.unique(np.diff(ancestors))) > 1
    np.testing.assert_allclose(found.ess[0], 1.0 / np.sum(weights**2), rtol=1e-4)
    np.testing.assert_allclose(found.log_evidence_steps[0], found.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(found.log_evidence_steps[-1], 0.0, atol=1e-6)  # r to the power 0 at T
    np.testing.assert_allclose(found.ess[-1], 32.0, rtol=1e-5)


def test_every_resampling_has_a_key_of_its_own():
    keys = []

    def noted(key, weights):
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        return systematic(key, weights)

    jax.jit(lambda key: particle_filter(key, SHARP, 3, resampling=noted, threshold=1.0))(jax.random.key(0))
    jax.effects_barrier()
    assert len(keys) >= 3 and len(set(keys)) == len(keys)


def coupled(x):
    return -0.5 * jnp.square((x[0] - x[1] - 1.0) / 0.3)


GUIDES = {
    "another that closes": inference.NormalObservation(jnp.array([0.5, -0.5]), 1.0),
    "its own": None,
    "one that is guessed": inference.Function(lambda x: -0.5 * jnp.square(x[0] * x[1] + 0.3)),
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", GUIDES)
def test_one_step_is_weighed_by_the_law_of_its_draws_and_by_r(name):
    """Whatever guides, and though a share of the particles moves unguided: Z is the integral of p r."""
    process = models.GaussianDiffusion((2,), models.schedules.FixedSchedule([0.999]))
    diffusion = models.Diffusion(
        process, lambda t, x: dist.Normal(jnp.zeros_like(x), 0.5).to_event(1), first_step="learned"
    )
    target = inference.multiply(diffusion, coupled, GUIDES[name], along="lookahead")
    found = jax.jit(lambda key: particle_filter(key, target, 20_000))(jax.random.key(0))
    truth = stats.norm(0.0, np.sqrt(0.5 + 0.09)).logpdf(1.0) + np.log(np.sqrt(2.0 * np.pi) * 0.3)
    error = np.sqrt(1.0 / float(found.ess[0]) - 1.0 / 20_000)
    assert 0.0 < error < 0.03
    assert abs(np.exp(float(found.log_evidence) - truth) - 1.0) < 4.0 * error


@pytest.mark.central
def test_a_start_that_is_multiplied_already_is_weighed_as_such():
    process = models.GaussianDiffusion((1,), models.schedules.FixedSchedule([0.9]))
    r = inference.NormalObservation(jnp.array([1.0]), 1.5)
    target = inference.multiply(noise_of(process), r, along="constant")
    found = jax.jit(lambda key: particle_filter(key, target, 20_000, threshold=0.0))(jax.random.key(0))
    error = np.sqrt(1.0 / float(found.ess[0]) - 1.0 / 20_000)
    assert 0.0 < error < 0.02
    relative = np.exp(float(found.log_evidence) - stats.norm(0.0, np.sqrt(1.0 + 1.5**2)).logpdf(1.0))
    assert abs(relative - 1.0) < 4.0 * error
