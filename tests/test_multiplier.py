"""Every multiplier against brute force: products normalised on grids and over states, and their normalisers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from nedm_ppl import models
from nedm_ppl.inference import (
    BernoulliObservation,
    Function,
    Known,
    LinearObservation,
    NormalObservation,
    Product,
)
from nedm_ppl.inference.multiplier import as_multiplier, perturb
from nedm_ppl.models import Levels
from tests.exact import states

LOC, SCALE = jnp.array([0.3, -0.5]), jnp.array([0.8, 1.2])
NORMAL = dist.Normal(LOC, SCALE).to_event(1)
BITS = dist.BernoulliLogits(jnp.array([0.4, -1.0, 2.0])).to_event(1)
GREYS = (-1.0, 0.0, 1.5)
LEVELS = Levels(jnp.array([[0.1, 0.5, -1.0], [1.0, 0.0, 0.3]]), GREYS).to_event(1)
MATRIX = jnp.array([[1.0, -2.0], [0.5, 0.7]])
FULL = jnp.array([[0.5, 0.2], [0.2, 0.4]])
AXIS = np.linspace(-9.0, 9.0, 361)
PLANE = jnp.asarray(np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2))
CELL = (AXIS[1] - AXIS[0]) ** 2

GAUSSIAN = {
    "masked": NormalObservation(jnp.array([1.0, jnp.nan]), 0.5),
    "diagonal": NormalObservation(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])),
    "linear": LinearObservation(jnp.array([0.5, 1.0]), MATRIX, scale=jnp.array([0.6, 0.9])),
    "full": LinearObservation(jnp.array([0.5, 1.0]), MATRIX, covariance=FULL),
    "product": NormalObservation(jnp.array([1.0, jnp.nan]), 0.5)
    * LinearObservation(jnp.array([0.5]), MATRIX[:1], scale=0.6)
    * LinearObservation(jnp.array([1.0]), MATRIX[1:], scale=0.9),
}


@pytest.mark.parametrize("power", [1.0, 0.3])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_normal_law_times_a_gaussian_observation(name, power):
    r = as_multiplier(GAUSSIAN[name])
    unnormalised = np.asarray(NORMAL.log_prob(PLANE) + power * jax.vmap(r.log_r)(PLANE), np.float64)
    law = np.exp(unnormalised) / np.exp(unnormalised).sum()
    product = perturb(NORMAL, r, LOC, power)
    np.testing.assert_allclose(np.exp(product.log_prob(PLANE)) * CELL, law, atol=2e-6)
    np.testing.assert_allclose(product.mean, law @ np.asarray(PLANE), atol=1e-4)
    np.testing.assert_allclose(
        product.variance, law @ np.square(np.asarray(PLANE) - np.asarray(product.mean)), rtol=1e-4
    )
    if power == 1.0:
        np.testing.assert_allclose(r.log_mean(NORMAL), np.log(np.exp(unnormalised).sum() * CELL), atol=1e-4)


def test_draws_of_a_linear_observation_have_its_moments():
    product = GAUSSIAN["full"].times(NORMAL)
    draws = np.asarray(product.sample(jax.random.key(0), (20_000,)), np.float64)
    gain = np.diag(SCALE**2) @ MATRIX.T @ np.linalg.inv(MATRIX @ np.diag(SCALE**2) @ MATRIX.T + FULL)
    cov = np.diag(SCALE**2) - gain @ MATRIX @ np.diag(SCALE**2)
    error = np.sqrt(np.diag(cov) / len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - product.mean) < 4.0 * error)
    products = (draws - draws.mean(axis=0))[:, 0] * (draws - draws.mean(axis=0))[:, 1]
    assert abs(products.mean() - cov[0, 1]) < 4.0 * products.std() / np.sqrt(len(draws))


DISCRETE = {
    "bits, channel": (BITS, BernoulliObservation(jnp.array([1.0, 0.0, jnp.nan]), 0.2), states(3)),
    "bits, known": (BITS, Known(jnp.array([1.0, 0.0, 0.0]), jnp.array([True, False, True])), states(3)),
    "bits, noise": (BITS, NormalObservation(jnp.array([0.7, 0.2, jnp.nan]), 0.5), states(3)),
    "levels, noise": (LEVELS, NormalObservation(jnp.array([0.4, -0.8]), 0.7), None),
    "levels, known": (LEVELS, Known(jnp.array([1.5, jnp.nan])), None),
    "both": (
        LEVELS,
        Known(jnp.array([1.5, jnp.nan])) * NormalObservation(jnp.array([0.4, -0.8]), 0.7),
        None,
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_a_discrete_law_times_what_factorises(name):
    law, r, values = DISCRETE[name]
    values = np.array([[a, b] for a in GREYS for b in GREYS]) if values is None else values
    r = as_multiplier(r)
    joint = np.exp(np.asarray(law.log_prob(values) + jax.vmap(r.log_r)(jnp.asarray(values)), np.float64))
    product = perturb(law, r, jnp.asarray(values[0]))
    np.testing.assert_allclose(np.exp(product.log_prob(values)), joint / joint.sum(), atol=1e-6)
    np.testing.assert_allclose(r.log_mean(law), np.log(joint.sum()), atol=1e-5)


def test_known_coordinates_of_a_normal_law_are_points():
    known = Known(jnp.array([jnp.nan, 2.0]))
    product = known.times(NORMAL)
    draws = product.sample(jax.random.key(0), (5,))
    assert np.all(draws[:, 1] == 2.0)
    inside = jnp.array([0.1, 2.0])
    np.testing.assert_allclose(product.log_prob(inside), dist.Normal(LOC[0], SCALE[0]).log_prob(0.1), rtol=1e-6)
    assert product.log_prob(jnp.array([0.1, 2.1])) == -jnp.inf
    np.testing.assert_allclose(known.log_mean(NORMAL), dist.Normal(LOC[1], SCALE[1]).log_prob(2.0), rtol=1e-6)
    assert known.log_r(inside) == 0.0 and known.log_r(jnp.array([0.1, 0.0])) == -jnp.inf


def test_any_function_moves_a_normal_law_by_its_gradient_and_every_bit_by_its_own_ratio():
    moved = perturb(NORMAL, as_multiplier(lambda x: -jnp.sum(jnp.cosh(x))), LOC)
    np.testing.assert_allclose(moved.mean, LOC - SCALE**2 * jnp.sinh(LOC), rtol=1e-6)
    np.testing.assert_allclose(moved.variance, SCALE**2, rtol=1e-6)

    def log_r(x):
        return x[0] * x[1] - 2.0 * x[2]

    at = jnp.array([1.0, 0.0, 1.0])
    bits = perturb(BITS, as_multiplier(log_r), at)
    logits = bits.base_dist.logits - BITS.base_dist.logits
    np.testing.assert_allclose(logits, [0.0, 1.0, -2.0], atol=1e-6)


def test_no_factor_is_one():
    law = perturb(NORMAL, Product(), LOC)
    assert law is NORMAL
    assert Product().log_mean(NORMAL) == 0.0 and Product().log_r(LOC) == 0.0


PROCESS = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(3))
BINARY = models.BernoulliDiffusion((2,), models.schedules.erasing(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Known(jnp.zeros(2), jnp.zeros(3, bool)), "mask must be boolean and of the shape of values"),
        (lambda: Known(jnp.zeros(2), jnp.zeros(2, bool)), "mask must mark at least one"),
        (lambda: Known(jnp.array([jnp.nan, 1.0]), jnp.ones(2, bool)), "values must be finite"),
        (lambda: NormalObservation(jnp.zeros(2), -1.0), "scale must be positive"),
        (lambda: NormalObservation(jnp.zeros(2), jnp.ones(3)), "scale must be a scalar or of shape"),
        (lambda: BernoulliObservation(jnp.zeros(2), 1.0), "flip must lie in"),
        (lambda: BernoulliObservation(jnp.full(2, 0.5), 0.1), "y must be bits"),
        (lambda: LinearObservation(jnp.zeros(3), MATRIX, scale=1.0), "matrix must have shape"),
        (lambda: LinearObservation(jnp.zeros(2), MATRIX), "scale or covariance must be given"),
        (
            lambda: LinearObservation(jnp.zeros(2), MATRIX, scale=-0.1),
            "scale must be positive, a standard deviation; got -0.1",
        ),
        (lambda: LinearObservation(jnp.zeros(2), MATRIX, covariance=-FULL), "positive definite"),
        (lambda: Known(jnp.zeros(2)) * Known(jnp.ones(2)), "contradict one another at"),
        (lambda: as_multiplier(3.0), "r must be a Multiplier or a function"),
        (lambda: as_multiplier(Known(jnp.zeros(3))).check(PROCESS), "values must have shape"),
        (lambda: as_multiplier(Known(jnp.full(2, 0.5))).check(BINARY), "values must be bits"),
        (lambda: as_multiplier(BernoulliObservation(jnp.zeros(2), 0.1)).check(PROCESS), "observation of bits"),
        (lambda: as_multiplier(lambda x: x).check(PROCESS), "log r must be a scalar"),
        (
            lambda: perturb(NORMAL, as_multiplier(lambda x: float(x[0])), LOC),
            "r must be differentiable to move a Gaussian kernel",
        ),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_r_without_a_gradient_can_weigh_alone():
    r = as_multiplier(Function(lambda x: float(np.asarray(x)[0]), differentiable=False))
    np.testing.assert_array_equal(perturb(NORMAL, r, LOC).mean, LOC)
