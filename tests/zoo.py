"""The models that several tests and benchmarks are made of; what is known of them exactly is in `exact`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from nedm_ppl import models
from nedm_ppl.models.chain.schedules import FixedSchedule, erasing, log_snr_linear
from tests.exact import DiagonalLinear, linear_data_law, linear_reverse

# --- one of every kind of kernel ----------------------------------------------------------------------------------------

BETAS = (0.1, 0.3, 0.2, 0.5)
LEVELS = (-1.0, 0.0, 1.5)
GAUSSIAN = models.GaussianDiffusion((2,), FixedSchedule(BETAS))
BERNOULLI = models.BernoulliDiffusion((3,), erasing(4), rate=0.3)
ONE_DATUM = {"gaussian": np.array([[1.5, -1.0]]), "bernoulli": np.array([[1.0, 0.0, 1.0]])}


def waves(t, x):
    return jnp.stack([jnp.sin(x[::-1]) + 0.1 * t, 0.3 * jnp.cos(x) - 0.2])


def couplings(t, x):
    return 0.8 * jnp.roll(x, 1) - 0.1 * t


def level_waves(t, x):
    return jnp.stack([jnp.sin(x), x[::-1], 0.1 * t + 0.0 * x], axis=-1)


def mixture(t, x):
    """A step in two pieces: no closed-form divergence."""
    weights = dist.Categorical(probs=jnp.array([0.3, 0.7]))
    pieces = dist.Normal(0.8 * x[..., None] + jnp.array([-0.3, 0.3]), jnp.array([0.5, 0.8]))
    return dist.MixtureSameFamily(weights, pieces).to_event(1)


def correlated(t, x):
    return dist.MultivariateNormal(0.9 * x, jnp.array([[0.5, 0.2], [0.2, 0.4]]))


MODELS = {
    "gaussian fixed": models.Diffusion(GAUSSIAN, models.DriftVariance(waves)),
    "gaussian learned": models.Diffusion(GAUSSIAN, models.DataPrediction(waves), first_step="learned"),
    "gaussian quantized": models.Diffusion(
        GAUSSIAN, models.LevelPrediction(level_waves, LEVELS), first_step="quantized"
    ),
    "gaussian mixture": models.Diffusion(GAUSSIAN, mixture, first_step="learned"),
    "gaussian correlated": models.Diffusion(GAUSSIAN, correlated),
    "bernoulli fixed": models.Diffusion(BERNOULLI, models.FlipRate(couplings)),
    "bernoulli learned": models.Diffusion(BERNOULLI, models.BitPrediction(couplings), first_step="learned"),
}


def datum_of(name: str) -> np.ndarray:
    """A datum for one of `MODELS`, shape (1, *event)."""
    return ONE_DATUM[name.split()[0]]


# --- models that are known exactly --------------------------------------------------------------------------------------


def noise_of(process) -> models.Diffusion:
    """The forward kernel in reverse: its data are the chain's own noise."""
    return models.Diffusion(process, process.step)


def white(dim: int, num_steps: int, **ends) -> models.Diffusion:
    """A model of N(0, I)."""
    return noise_of(models.GaussianDiffusion((dim,), log_snr_linear(num_steps, **ends)))


def diagonal(process, weight, bias, cov) -> models.Diffusion:
    """Kernels N(A_t x_t + b_t, diag C_t)."""
    return models.Diffusion(process, DiagonalLinear(weight, bias, cov), first_step="learned")


def gaussian(rng: np.random.Generator | int, process, size: float = 0.5):
    """Arrays of a random linear-Gaussian model for `diagonal`, and the exact mean and covariance of its data law."""
    rng, (dim,) = np.random.default_rng(rng), process.event_shape
    root, mean = rng.normal(size=(dim, dim)), size * rng.normal(size=dim)
    weight, bias, covs = linear_reverse(mean, root @ root.T / dim + 0.3 * np.eye(dim), process.schedule.rates)
    arrays = (
        weight,
        bias,
        np.stack([np.diag(np.diag(c)) for c in covs]),
    )  # the model's kernels are of independent coordinates
    return arrays, linear_data_law(*arrays)


LINEAR_PROCESS = models.GaussianDiffusion((3,), log_snr_linear(8, start=3.0, end=-6.0))


def observed(seed: int):
    """Arrays of a linear-Gaussian model and of an observation, and the posterior's exact mean, covariance and log Z."""
    rng = np.random.default_rng(seed)
    arrays, (mean, cov) = gaussian(rng, LINEAR_PROCESS)
    matrix, noise = rng.normal(size=(2, 3)), np.diag(rng.uniform(0.2, 1.0, size=2))
    y = matrix @ rng.multivariate_normal(mean, cov) + rng.multivariate_normal(np.zeros(2), noise)
    spread = matrix @ cov @ matrix.T + noise
    gain, residual = cov @ matrix.T @ np.linalg.inv(spread), y - matrix @ mean
    log_z = -0.5 * (residual @ np.linalg.solve(spread, residual) + np.linalg.slogdet(2.0 * np.pi * spread)[1])
    return arrays, (y, matrix, noise), (mean + gain @ residual, cov - gain @ matrix @ cov, log_z)


class MixtureMoments(eqx.Module):
    """Mean of x_0 given x_t under a mixture of N(mean, var I), and log of its variance over 1 - alpha_bar: shape (2, dim)."""

    weights: Array
    means: Array
    alpha_bar: Array
    var: float = eqx.field(static=True, default=1.0)

    def __call__(self, t: Array, x: Array) -> Array:
        a = self.alpha_bar[t]
        residual, total = x - jnp.sqrt(a) * self.means, 1.0 - a + a * self.var
        share = jax.nn.softmax(jnp.log(self.weights) - 0.5 * jnp.sum(jnp.square(residual), axis=-1) / total)
        mean = share @ (self.means + jnp.sqrt(a) * self.var / total * residual)
        spread = share @ jnp.square(self.means - share @ self.means)
        return jnp.stack([mean, jnp.log(self.var / total + (1.0 - a) / total**2 * spread)])
