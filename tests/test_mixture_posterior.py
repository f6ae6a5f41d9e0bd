"""The particle filter against the exact posterior of a Gaussian mixture prior, knowing the score of the noised mixture alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from nedm_ppl import inference, models
from tests.zoo import MixtureMoments

MEANS = np.array([[-2.0, 0.0, 1.0, 2.0], [2.0, 1.0, -1.0, 0.0], [0.0, -2.0, 2.0, -1.0]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
MATRIX = np.array([[0.6, -0.3, 0.5, 0.2], [0.1, 0.7, -0.2, 0.4]])
SCALE, Y = 0.6, np.array([0.4, -0.5])


def exact(y: np.ndarray) -> tuple[float, np.ndarray]:
    covariance = MATRIX @ MATRIX.T + SCALE**2 * np.eye(2)
    terms = np.log(WEIGHTS) + [multivariate_normal.logpdf(y, MATRIX @ m, covariance) for m in MEANS]
    gain = MATRIX.T @ np.linalg.inv(covariance)
    log_z = logsumexp(terms)
    return float(log_z), np.exp(terms - log_z) @ (MEANS + (y - MEANS @ MATRIX.T) @ gain.T)


@pytest.fixture(scope="module")
def posterior() -> inference.ParticlePosterior:
    process = models.GaussianDiffusion((4,), models.schedules.log_snr_linear(200, end=-8.0))
    reverse = models.DataPrediction(
        MixtureMoments(jnp.asarray(WEIGHTS), jnp.asarray(MEANS), process.schedule.alpha_bar)
    )
    diffusion = models.Diffusion(process, reverse, first_step="learned")
    r = inference.LinearObservation(Y, MATRIX, scale=SCALE)
    result = inference.ParticlePosterior(
        diffusion, r, num_particles=250, num_repeats=16, along=inference.Lookahead("jacobian")
    )
    result.run(jax.random.key(0))
    return result


def test_posterior_mean_is_exact(posterior):
    _, mean = exact(Y)
    np.testing.assert_array_less(np.abs(posterior.mean.mean - mean), 4.0 * posterior.mean.se)


def test_log_evidence_is_exact(posterior):
    log_z, _ = exact(Y)
    assert abs(posterior.log_evidence.mean - log_z) < 4.0 * posterior.log_evidence.se


def test_another_observation_has_another_posterior(posterior):
    """The control: the same numbers do not pass for the posterior of a slightly different y."""
    log_z, mean = exact(Y + 0.5)
    assert np.any(np.abs(posterior.mean.mean - mean) > 4.0 * posterior.mean.se)
    assert abs(posterior.log_evidence.mean - log_z) > 4.0 * posterior.log_evidence.se
