"""Chains multiplied by r: where the model's prediction is the truth, so is every step; and r to a power is that power."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl import inference, models
from nedm_ppl.inference import multiply
from nedm_ppl.inference.posterior._proposals import log_density
from tests.zoo import noise_of

NORMAL = inference.NormalObservation(jnp.array([0.9, jnp.nan, -0.4]), jnp.array([0.5, 1.0, 0.2]))
LINEAR = inference.LinearObservation(
    jnp.array([0.5, -1.0]),
    jnp.array([[1.0, -0.5, 0.3], [0.0, 2.0, 1.0]]),
    covariance=jnp.array([[0.5, 0.2], [0.2, 0.4]]),
)
CHANNEL = inference.BernoulliObservation(jnp.array([1.0, jnp.nan, 0.0]), 0.2)


def noise(family: str) -> models.Diffusion:
    """A model whose data are its own noise: what it predicts of x_0 is exact."""
    if family == "bits":
        process = models.BernoulliDiffusion((3,), models.schedules.erasing(5, last_rate=0.5), rate=0.3)
    else:
        process = models.GaussianDiffusion((3,), models.schedules.log_snr_linear(5, start=3.0, end=-1.0))
    return noise_of(process)


def states(family: str, seed: int) -> jax.Array:
    key = jax.random.key(seed)
    return jax.random.bernoulli(key, 0.4, (6, 3)).astype(float) if family == "bits" else jax.random.normal(key, (6, 3))


EXACT = {
    "normal": ("reals", NORMAL, {}),
    "linear": ("reals", LINEAR, {}),
    "linear, jacobian": ("reals", LINEAR, {"covariance": "jacobian"}),
    "both": ("reals", NORMAL * LINEAR, {}),
    "two looks": ("reals", NORMAL * inference.NormalObservation(jnp.zeros(3), 0.7), {}),
    "channel": ("bits", CHANNEL, {}),
    "bits through noise": ("bits", NORMAL * CHANNEL, {}),
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", EXACT)
def test_a_lookahead_from_an_exact_prediction_leaves_the_weights_alone(name, x64):
    """p(x_{t-1} | x_t) r_{t-1}(x_{t-1}) = proposal r_t(x_t) at every pair of states, down to r itself at t = 0."""
    family, r, options = EXACT[name]
    target = multiply(noise(family), r, along="lookahead", **options)
    later, earlier = states(family, 0), states(family, 1)

    def change(t):
        look = target.look(t, later) if t > 1 else target.look_first(later)
        before = target.log_r(t - 1, earlier) if t > 1 else jax.vmap(target.r.log_r)(earlier)
        return log_density(look.law, earlier) - look.proposal.log_prob(earlier) + before - look.log_r

    for t in range(target.num_steps, 0, -1):
        np.testing.assert_allclose(jax.jit(partial(change, t))(), 0.0, atol=1e-5)


POWERS = {
    "normal": ("reals", NORMAL),
    "linear": ("reals", LINEAR),
    "channel": ("bits", CHANNEL),
    "a function of bits": ("bits", inference.Function(lambda x: x @ jnp.array([1.0, -2.0, 0.5]))),
}


@pytest.mark.cases(2)
@pytest.mark.central
@pytest.mark.parametrize("name", POWERS)
def test_along_power_every_step_is_multiplied_by_its_own_power(name, x64):
    family, r = POWERS[name]
    target = multiply(noise(family), r, along="power")
    last, x = target.num_steps, states(family, 0)
    here, there = states(family, 1), states(family, 2)
    log_r = jax.vmap(r.log_r)
    for t in range(last, 1, -1):
        look = target.look(t, x)
        np.testing.assert_allclose(look.log_r, (last - t) / last * log_r(x), rtol=1e-6)
        wanted = look.law.log_prob(here) - look.law.log_prob(there)
        wanted += (last - t + 1) / last * (log_r(here) - log_r(there))
        np.testing.assert_allclose(look.proposal.log_prob(here) - look.proposal.log_prob(there), wanted, atol=1e-6)


def test_known_coordinates_walk_the_forward_chain_from_their_values():
    diffusion, known = noise("reals"), inference.Known(jnp.array([jnp.nan, 2.0, jnp.nan]))
    target = multiply(diffusion, known, along="forward")
    law = diffusion.process.marginal(target.num_steps, jnp.full(3, 2.0))
    start = target.initial()
    at = jnp.array([0.3, -0.2, 0.8])
    by_coordinate = diffusion.process.stationary().base_dist.log_prob(at).at[1].set(law.base_dist.log_prob(at)[1])
    np.testing.assert_allclose(start.log_prob(at), by_coordinate.sum(), rtol=1e-6)


# --- what r is guided by where it has no closed form -----------------------------------------------------------------------


def predicting(mean, log_variance, num_steps: int = 5) -> models.Diffusion:
    """A model that predicts one law of x_0 at every state."""
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(num_steps, start=3.0, end=-2.0))
    output = jnp.stack([jnp.asarray(mean), jnp.asarray(log_variance)])
    return models.Diffusion(process, models.DataPrediction(lambda t, x: output), first_step="learned")


def test_a_tabulated_factor_moves_a_step_as_quadrature_does(x64):
    """E q(x_{t-1} | x_t, x_0) over the prediction times r, its mean and its variance, coordinate by coordinate."""
    model, t, x = predicting([0.5, -0.3], [-1.0, -0.5]), 3, jnp.array([0.4, -0.8])
    target = multiply(model, inference.Function(lambda x: -jnp.sum(0.5 * jnp.abs(x - 0.2))), along="lookahead")
    step = target.look(t, x[None]).proposal
    c, d, var = (np.asarray(part) for part in model.process.posterior_coefficients(t))
    law = model.data_law(t, x)
    for i in range(2):
        z = np.linspace(-8.0, 8.0, 40_001)
        weight = np.exp(-0.5 * (z - float(law.mean[i])) ** 2 / float(law.variance[i]) - 0.5 * np.abs(z - 0.2))
        mean = np.sum(weight * z) / weight.sum()
        spread = np.sum(weight * (z - mean) ** 2) / weight.sum()
        np.testing.assert_allclose(step.mean[0, i], c * mean + d * x[i], atol=5e-3)
        np.testing.assert_allclose(step.variance[0, i], var + c**2 * spread, rtol=2e-2)
        assert abs(spread / float(law.variance[i]) - 1.0) > 0.1


def test_modes_are_moved_with_what_is_observed_beside_them(x64):
    """A Gaussian r given as a function, beside a normal observation: the step's mean is the conjugate one."""
    model, t, x = predicting([0.5, -0.3], [-0.2, 0.1]), 3, jnp.array([0.4, -0.8])
    seen = inference.NormalObservation(jnp.array([2.0, np.nan]), scale=0.5)
    target = multiply(model, seen * inference.Function(lambda x: -2.0 * jnp.square(x[0] - x[1])), along="lookahead")
    step, law = jax.jit(lambda: (target.look(t, x[None]).proposal, model.data_law(t, x)))()
    c, d, _ = model.process.posterior_coefficients(t)
    precision = (
        np.diag(1.0 / np.asarray(law.variance)) + np.diag([4.0, 0.0]) + 4.0 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    )
    mean = np.linalg.solve(precision, np.asarray(law.mean / law.variance) + np.array([8.0, 0.0]))
    np.testing.assert_allclose(step.mean[0], c * mean + d * x, atol=1e-3)
    assert np.max(np.abs(mean - np.asarray(law.mean))) > 0.5
