"""Gaussian parameterizations: the paper's equations 64 and 65, predictions of x_0 and of the noise, exact where the truth is."""

import re

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nedm_ppl import inference, models
from nedm_ppl.models import networks
from nedm_ppl.models.chain.schedules import FixedSchedule, cosine, erasing, log_snr_linear

BETAS = [0.05, 0.2, 0.3, 0.4, 0.6]
PROCESS = models.GaussianDiffusion((2,), FixedSchedule(BETAS))
PREDICTIONS = {"data": models.DataPrediction, "noise": models.NoisePrediction, "velocity": models.VelocityPrediction}


def silent(t, x):
    return jnp.zeros((2, *x.shape))


def wavy(t, x):
    return jnp.stack([jnp.sin(x) + 0.1 * t, 0.3 * jnp.cos(x) - 0.2])


X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))


@pytest.mark.central
@pytest.mark.parametrize("t", [1, 3, 5])
def test_drift_and_variance_are_equations_64_and_65(t):
    kernel = models.DriftVariance(wavy)(PROCESS, t, X)
    z_mean, z_var = np.sin(X) + 0.1 * t, 0.3 * np.cos(X) - 0.2
    var = 1.0 / (1.0 + np.exp(-(z_var + np.log(BETAS[t - 1] / (1.0 - BETAS[t - 1])))))
    np.testing.assert_allclose(kernel.variance, var, rtol=1e-5)
    np.testing.assert_allclose(kernel.mean, (X - z_mean) * (1.0 - var) + z_mean, rtol=1e-5, atol=1e-6)


def test_drift_and_variance_survive_a_last_rate_of_1():
    process = models.GaussianDiffusion((2,), erasing(3))
    kernel = models.DriftVariance(wavy)(process, 3, X)
    np.testing.assert_allclose(kernel.variance, 1.0)
    np.testing.assert_allclose(kernel.mean, np.sin(X) + 0.3, rtol=1e-5)


def moments(name, t, x, output):
    """What each prediction says of x_0 given x_t, from its docstring."""
    signal = np.prod(1.0 - np.array(BETAS[:t]))
    noise, (z_mean, z_var) = 1.0 - signal, output
    mean = {
        "data": z_mean,
        "noise": (x - np.sqrt(noise) * z_mean) / np.sqrt(signal),
        "velocity": np.sqrt(signal) * x + np.sqrt(noise) * z_mean,
    }[name]
    return mean, noise * np.exp(z_var)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("t", [1, 2, 5])
def test_a_prediction_becomes_the_step_with_its_moments(name, t):
    kernel = PREDICTIONS[name](wavy)(PROCESS, t, X)
    mean, var = moments(name, t, np.asarray(X, np.float64), np.asarray(wavy(t, X)))
    if t > 1:
        # Total expectation and variance over x_0 of the posterior, itself from the product of two Gaussians in x_{t-1}.
        signal, beta = np.prod(1.0 - np.array(BETAS[: t - 1])), BETAS[t - 1]
        precision = 1.0 / (1.0 - signal) + (1.0 - beta) / beta
        weight = np.sqrt(signal) / (1.0 - signal) / precision
        mean = weight * mean + np.sqrt(1.0 - beta) / beta / precision * np.asarray(X)
        var = 1.0 / precision + weight**2 * var
    np.testing.assert_allclose(kernel.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kernel.variance, var, rtol=1e-4)


def silence(name):
    """The network under which a prediction is the exact one for data that are N(0, I): m = sqrt(alpha_bar) x."""

    def network(t, x):
        signal, noise = PROCESS.schedule.alpha_bar[t], PROCESS.schedule.one_minus_alpha_bar[t]
        mean = {"data": jnp.sqrt(signal) * x, "noise": jnp.sqrt(noise) * x, "velocity": jnp.zeros_like(x)}[name]
        return jnp.stack([mean, jnp.zeros_like(x)])

    return PREDICTIONS[name](network)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_prediction_of_noise_reverses_noise(name):
    """Data that are N(0, I) stay N(0, I): the exact reverse step is the forward kernel, at every t."""
    for t in (1, 2, 5):
        kernel, forward = silence(name)(PROCESS, t, X), PROCESS.step(t, X)
        np.testing.assert_allclose(kernel.mean, forward.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kernel.variance, forward.variance, rtol=1e-5)
    silent_velocity = models.VelocityPrediction(silent)(PROCESS, 3, X)
    np.testing.assert_allclose(silent_velocity.mean, PROCESS.step(3, X).mean, rtol=1e-5, atol=1e-6)


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("first_step", ["fixed", "learned"])
def test_zero_gain_on_isotropic_data(name, first_step):
    diffusion = models.Diffusion(PROCESS, silence(name), first_step=first_step)
    x0 = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)))
    weights = jax.jit(lambda key: exact.log_weights(key, diffusion, x0, 3))(jax.random.key(0))
    np.testing.assert_allclose(weights, np.tile(PROCESS.null_log_prob(x0), (3, 1)), atol=1e-4)
    draws = jax.jit(lambda key: inference.bound_terms(key, diffusion, jnp.tile(x0, (1000, 1, 1))).total)
    bound = np.asarray(draws(jax.random.key(1)))
    # K draws x_t alone: equal in expectation, and for data of N(0, I) the bound is tight up to H_p(X_T) at each datum.
    error = 4.0 * bound.std(axis=0, ddof=1) / np.sqrt(1000)
    assert np.all(np.abs(bound.mean(axis=0) - PROCESS.null_log_prob(x0)) <= error + 1e-4)


@given(st.floats(-2.0, 2.0), st.floats(0.1, 3.0), st.integers(2, 5))
def test_the_exact_prediction_of_gaussian_data_is_the_exact_reversal(mean, var, t):
    signal = np.prod(1.0 - np.array(BETAS[:t]))
    noise = 1.0 - signal
    total = signal * var + noise

    def network(_, x):
        data = mean + np.sqrt(signal) * var / total * (x - np.sqrt(signal) * mean)
        return jnp.stack([data, jnp.full_like(x, np.log(var / total))])

    weight, bias, cov = exact.linear_reverse(np.full(2, mean), var * np.eye(2), BETAS)
    kernel = models.DataPrediction(network)(PROCESS, t, X)
    np.testing.assert_allclose(kernel.mean, X @ weight[t - 1].T + bias[t - 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kernel.variance, np.tile(np.diag(cov[t - 1]), (3, 1)), rtol=1e-4)


@pytest.mark.cases(4)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("event", [(), (2,), (2, 2)])
def test_a_network_sees_one_datum_whatever_the_batch(batch, event):
    seen = []

    def network(t, x):
        seen.append(x.shape)
        return jnp.stack([jnp.sum(x) + x, x])

    process = models.GaussianDiffusion(event, log_snr_linear(4))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(*batch, *event)))
    kernel = models.DriftVariance(network)(process, 2, x)
    assert set(seen) == {event}
    assert (kernel.batch_shape, kernel.event_shape) == (batch, event)
    if batch:
        alone = models.DriftVariance(network)(process, 2, x[(0,) * len(batch)])
        np.testing.assert_allclose(kernel.mean[(0,) * len(batch)], alone.mean, rtol=1e-5)


BITS = models.BernoulliDiffusion((2,), erasing(3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: models.DriftVariance(lambda t, x: x)(PROCESS, 1, X),
            "network must return shape (2, 2) for one datum of shape (2,); got (2,).",
        ),
        (
            lambda: models.Diffusion(PROCESS, models.VelocityPrediction(lambda t, x: x)),
            "network must return shape (2, 2) for one datum of shape (2,); got (2,).",
        ),
        (
            lambda: models.Diffusion(PROCESS, models.VelocityPrediction(lambda x: x, rank=1)),
            "network must be a function (t, x) -> array of one datum, from shape (2,) to shape (3, 2), that JAX can trace; it "
            "raised TypeError: ",
        ),
        (
            lambda: models.FlipRate(lambda t, x: x[:1])(BITS, 1, jnp.ones((3, 2))),
            "network must return shape (2,) for one datum of shape (2,); got (1,).",
        ),
        *(
            (
                lambda kind=kind: models.Diffusion(BITS, kind(silent)),
                f"{kind.__name__} needs a GaussianDiffusion; got a BernoulliDiffusion. For bits use FlipRate or BitPrediction.",
            )
            for kind in (models.DriftVariance, *PREDICTIONS.values())
        ),
        (
            lambda: models.Diffusion(models.GaussianDiffusion((2,), erasing(3)), models.NoisePrediction(silent)),
            "schedule must leave some signal at T for a NoisePrediction, which divides by it; got beta_T = 1.",
        ),
    ],
)
def test_bad_kernels_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_the_reverse_kernel_of_a_user_must_have_the_events_shape():
    diffusion = models.Diffusion(PROCESS, lambda t, x: PROCESS.step(t, x).base_dist)
    message = re.escape(
        "reverse must return a distribution of event shape (2,); got batch shape (3, 2) and event shape ()."
    )
    with pytest.raises(ValueError, match=message + r" Add \.to_event\(1\)"):
        diffusion.kernel(2, X)


NETWORKS = {
    "RBF": lambda: networks.RBF((2,), (2, 2), 4, key=jax.random.key(0)),
    "SigmoidMLP": lambda: networks.SigmoidMLP((2,), (2, 2), 4, key=jax.random.key(0)),
    "ResidualMLP": lambda: networks.ResidualMLP((2,), (2, 2), 4, key=jax.random.key(0)),
    "PatchTransformer": lambda: networks.PatchTransformer((2, 2), (2, 2, 2), 4, key=jax.random.key(0)),
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_made_for_another_number_of_steps_is_refused(name):
    """On 6 steps the readouts per step gave NaN, and the others the features of times beyond T."""
    network = NETWORKS[name]()
    assert network.num_steps == 4
    shape = (2, 2) if name == "PatchTransformer" else (2,)
    wrapped = models.Conditional(networks.Embedded(network, lambda c: jnp.zeros(64)), 0)
    message = rf"network must be made for the 6 steps of the schedule; got {name} for 4. Build it with num_steps=6"
    for inner in (network, wrapped):
        for kind in (models.DriftVariance, *PREDICTIONS.values()):
            with pytest.raises(ValueError, match=message):
                models.Diffusion(models.GaussianDiffusion(shape, log_snr_linear(6)), kind(inner))
    assert models.Diffusion(models.GaussianDiffusion(shape, log_snr_linear(4)), kind(network)).num_steps == 4


@pytest.mark.cases(1)
@pytest.mark.parametrize("num_steps", [10, 10_000])
def test_samples_of_an_untrained_noise_prediction_are_within_its_bound(num_steps):
    """Unbounded they reach 689 and 682,047."""
    process = models.GaussianDiffusion((2,), cosine(num_steps))
    diffusion = models.Diffusion(process, models.NoisePrediction(silent), first_step="learned")
    samples = np.abs(diffusion.sample(jax.random.key(0), (500,)))
    assert 2.0 < samples.max() < 10.0
    free = models.Diffusion(process, models.NoisePrediction(silent, bound=None), first_step="learned")
    assert np.abs(free.sample(jax.random.key(0), (500,))).max() > 300.0


def test_the_bound_of_a_noise_prediction_leaves_means_up_to_half_of_it():
    """m = x / sqrt(alpha_bar) for a silent network: as it is, then 1 - B / (4 m) of B, with gradients everywhere."""
    process = models.GaussianDiffusion((1,), log_snr_linear(4))
    scale = np.sqrt(process.schedule.alpha_bar[4])

    def mean(m, bound=4.0):
        return models.NoisePrediction(silent, bound=bound).data_law(process, 4, jnp.array([m * scale])).mean[0]

    for m, expected, slope in (
        (1.5, 1.5, 1.0),
        (-1.5, -1.5, 1.0),
        (2.0, 2.0, 1.0),
        (8.0, 3.5, 1 / 16),
        (-400.0, -3.99, 1e-4 / 4),
    ):
        np.testing.assert_allclose(mean(m), expected, rtol=1e-5)
        np.testing.assert_allclose(jax.grad(mean)(m), slope, rtol=1e-4)
    with pytest.raises(ValueError, match=re.escape("bound must be positive, or None; got 0.")):
        models.NoisePrediction(silent, bound=0.0)
    diffusion = models.Diffusion(process, models.NoisePrediction(silent, bound=4.0))
    with pytest.raises(
        ValueError, match=r"x0 must be below the bound of a NoisePrediction, 4, in size; got 4.5\. Scale"
    ):
        diffusion.check_data(np.array([[1.0], [-4.5]]))
