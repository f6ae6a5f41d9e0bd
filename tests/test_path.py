"""A diffusion as a differentiable site, by its trajectory or its flow: exact laws, exact posteriors, gradients upstream."""

import re

import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conftest import STANDARD_ERRORS, assert_mean
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import log_density
from scipy import stats

from nedm_ppl import models
from nedm_ppl.models._path import path_end
from nedm_ppl.models.chain.schedules import FixedSchedule, erasing, log_snr_linear
from tests.zoo import noise_of

KEY = jax.random.key(0)
MEAN, SLOPE, COV = np.array([0.3, -0.2]), np.array([[0.8], [-0.4]]), np.array([[0.5, 0.2], [0.2, 0.7]])
NOISE, Y = 0.6, np.array([0.9, 0.4])
BETAS = (0.2, 0.4, 0.6)


def linear(betas=BETAS, schedule=None) -> models.Diffusion:
    """The exact reversal of data N(MEAN + SLOPE c, COV)."""
    schedule = FixedSchedule(betas) if schedule is None else schedule
    process = models.GaussianDiffusion((2,), schedule)
    kernel = exact.conditional_linear(MEAN, SLOPE, COV, schedule.betas)
    return models.Diffusion(process, models.Conditional(kernel, np.zeros(1)), first_step="learned")


def data_law(diffusion, context: float) -> tuple[np.ndarray, np.ndarray]:
    kernel = diffusion.reverse.function
    bias = np.asarray(kernel.linear.bias) + np.asarray(kernel.gain)[..., 0] * context
    return exact.linear_data_law(np.asarray(kernel.linear.weight), bias, np.asarray(kernel.linear.cov))


def hierarchy(draw_x):
    """A latent upstream of the prior, and a noisy observation downstream of it."""

    def program():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        x = draw_x(mu[None])
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=Y)

    return program


def exact_posterior(offset, slope, cov) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (mu, x) given y, where x is N(offset + slope mu, cov)."""
    joint_mean = np.concatenate([[0.0], offset])
    joint = np.block([[np.eye(1), slope[None]], [slope[:, None], cov + np.outer(slope, slope)]])
    gain = joint[:, 1:] @ np.linalg.inv(joint[1:, 1:] + NOISE**2 * np.eye(2))
    return joint_mean + gain @ (Y - offset), joint - gain @ joint[1:]


# --- the law of the path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_step", ["learned", "fixed"])
def test_noise_drives_the_chain_to_its_own_law(first_step):
    """Unit noise, coordinate by coordinate, is a linear chain's law: no draws are needed."""
    weight, bias, cov = exact.linear_reverse(MEAN, COV, BETAS)
    process = models.GaussianDiffusion((2,), FixedSchedule(BETAS))
    for kernel in (exact.Linear(weight, bias, cov), exact.DiagonalLinear(weight, bias, cov)):
        if isinstance(kernel, exact.DiagonalLinear):
            cov = np.stack([np.diag(np.diag(c)) for c in cov])
        if first_step == "fixed":
            keep = 1.0 - BETAS[0]
            weight, bias, cov = (
                np.concatenate([[a], b[1:]])
                for a, b in zip(
                    (np.sqrt(keep) * np.eye(2), np.zeros(2), BETAS[0] * np.eye(2)), (weight, bias, cov), strict=True
                )
            )
        diffusion = models.Diffusion(process, kernel, first_step=first_step)
        units = jnp.eye(8).reshape(8, 4, 2)
        loc = np.asarray(path_end(diffusion, jnp.zeros((4, 2))))
        columns = np.asarray(path_end(diffusion, units)) - loc
        truth = exact.linear_data_law(weight, bias, cov)
        np.testing.assert_allclose(loc, truth[0], atol=1e-5)
        np.testing.assert_allclose(columns.T @ columns, truth[1], atol=1e-5)


@pytest.mark.central
def test_both_forms_are_one_density_up_to_the_scales_of_the_steps():
    diffusion = linear()
    noise = np.random.default_rng(0).normal(size=(4, 2))
    joint, sites = log_density(lambda: models.sample_path("x", diffusion), (), {}, {"x_noise": noise})
    states = [noise[3]]
    for t in (3, 2, 1):
        law = diffusion.kernel(t, jnp.asarray(states[0]))
        states.insert(0, np.asarray(law.loc + law.scale_tril @ noise[t - 1]))
    values = {"x": states[0], "x_path": np.stack(states[1:])}
    centered, _ = log_density(lambda: models.sample_path("x", diffusion, centered=True), (), {}, values)
    np.testing.assert_allclose(sites["x"]["value"], states[0], rtol=1e-5)
    volume = 0.5 * np.linalg.slogdet(np.asarray(diffusion.reverse.function.linear.cov))[1].sum()
    np.testing.assert_allclose(centered, joint - volume, rtol=1e-5)


@pytest.mark.parametrize("centered", [False, True])
def test_plates_and_contexts_of_every_row(centered):
    diffusion, contexts = linear(), np.array([[-1.0], [0.0], [2.0]])

    def program():
        with numpyro.plate("rows", 3):
            models.sample_path("x", diffusion.given(contexts), centered=centered)

    draws = np.asarray(Predictive(program, num_samples=2000, parallel=True)(KEY)["x"])
    assert draws.shape == (2000, 3, 2)
    for i, context in enumerate(contexts):
        mean, cov = data_law(diffusion, context[0])
        assert_mean(draws[:, i], mean)
        assert_mean((draws[:, i, 0] - mean[0]) * (draws[:, i, 1] - mean[1]), cov[0, 1])
    assert abs(stats.pearsonr(draws[:, 0, 0], draws[:, 1, 0])[0]) < STANDARD_ERRORS / np.sqrt(2000)


# --- gradients to latents upstream ------------------------------------------------------------------------------------------


def waves(t, x, wind):
    return jnp.stack([jnp.sin(x[::-1] + wind), 0.3 * jnp.cos(x) - 0.2 * wind[::-1]])


def route(name, diffusion):
    if name == "flow":
        return numpyro.sample("x", diffusion.flow(rtol=1e-10, atol=1e-10))
    return models.sample_path("x", diffusion, centered=name == "centered")


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["flow", "centered", "noise"])
def test_gradients_upstream_match_finite_differences(double, name):
    process = models.GaussianDiffusion((2,), log_snr_linear(4))
    diffusion = models.Diffusion(
        process, models.VelocityPrediction(models.Conditional(waves, np.zeros(2))), first_step="learned"
    )

    def program():
        wind = numpyro.sample("wind", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        x = route(name, diffusion.given(wind))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=Y)

    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=2), "x_path": rng.normal(size=(4, 2)), "x_noise": rng.normal(size=(5, 2))}

    @jax.jit
    def joint(wind):
        return log_density(program, (), {}, values | {"wind": wind})[0]

    wind, h = jnp.array([0.3, -0.5]), 1e-3
    gradient = jax.jit(jax.grad(joint))(wind)
    steps = h * np.array([-2.0, -1.0, 1.0, 2.0])
    for i, unit in enumerate(np.eye(2)):
        slope = np.array([1.0, -8.0, 8.0, -1.0]) @ [float(joint(wind + step * unit)) for step in steps] / (12.0 * h)
        assert abs(slope) > 1e-2
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-4)


# --- posteriors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("centered", [False, True])
def test_nuts_on_the_path_has_the_exact_posterior_of_what_is_up_and_down_stream(centered):
    diffusion = linear()
    program = hierarchy(lambda mu: models.sample_path("x", diffusion.given(mu), centered=centered))
    mcmc = MCMC(
        NUTS(program), num_warmup=300, num_samples=1000, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(KEY)
    samples = mcmc.get_samples(group_by_chain=True)
    draws = np.concatenate([np.asarray(samples["mu"])[..., None], np.asarray(samples["x"])], axis=-1)
    offset, cov = data_law(diffusion, 0.0)
    mean, posterior = exact_posterior(offset, data_law(diffusion, 1.0)[0] - offset, cov)
    assert np.all(np.asarray(gelman_rubin(draws)) < 1.01)
    for moments, truth in ((draws, mean), (np.square(draws - mean), np.diag(posterior))):
        error = moments.std((0, 1)) / np.sqrt(effective_sample_size(moments))
        np.testing.assert_array_less(np.abs(moments.mean((0, 1)) - truth), STANDARD_ERRORS * error)


@pytest.mark.long
def test_an_autoguide_through_the_flow_non_centered():
    """The flow of a linear chain is affine, and so the posterior of its noise Gaussian: a full-rank guide can be exact."""
    diffusion = linear(schedule=log_snr_linear(8))
    program = hierarchy(lambda mu: numpyro.sample("x", diffusion.given(mu).flow(rtol=1e-3, atol=1e-3)))
    program = numpyro.handlers.reparam(program, config={"x": TransformReparam()})
    guide = autoguide.AutoMultivariateNormal(program)
    svi = SVI(program, guide, optax.adam(optax.cosine_decay_schedule(0.05, 200)), Trace_ELBO(num_particles=4))
    result = svi.run(KEY, 200, progress_bar=False)
    found = guide.get_posterior(result.params)  # of mu and x_base
    # x is the flow's own affine map of them, whatever its few steps make of the data's law.
    points = jnp.concatenate([jnp.zeros((1, 2)), jnp.eye(2)])
    maps = [np.asarray(diffusion.given(jnp.array([c])).flow().transforms[0](points)) for c in (0.0, 1.0)]
    design = np.concatenate([maps[1][:1] - maps[0][:1], maps[0][1:] - maps[0][0]]).T
    posterior = np.linalg.inv(np.eye(3) + design.T @ design / NOISE**2)
    mean = posterior @ design.T @ (Y - maps[0][0]) / NOISE**2
    # Not a sampler: the guide's own optimization error, a tenth of a standard deviation, is the scale here.
    np.testing.assert_allclose((found.mean - mean) / np.sqrt(np.diag(posterior)), 0.0, atol=0.2)
    np.testing.assert_allclose(found.covariance_matrix, posterior, atol=0.1)


# --- bad input ----------------------------------------------------------------------------------------------------------------

LEVELS = (-1.0, 1.0)
BITS = models.BernoulliDiffusion((2,), erasing(3), rate=0.5)
PROCESS = models.GaussianDiffusion((2,), FixedSchedule(BETAS))


def gray(t, x):
    return models.Levels(jnp.zeros((*x.shape, 2)), LEVELS).to_event(1)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(
    ("diffusion", "messages"),
    [
        (
            noise_of(BITS),
            ["must be of a Gaussian chain for sample_path; got a BernoulliDiffusion"] * 2,
        ),
        (
            models.Diffusion(PROCESS, PROCESS.step, first_step="quantized", levels=LEVELS),
            ["got 'quantized', a categorical"] * 2,
        ),
        (
            models.Diffusion(PROCESS, gray, first_step="learned"),
            [
                "kernels to be driven by noise; got a Levels",
                "must end in a density for sample_path; got a Levels at t = 1",
            ],
        ),
    ],
    ids=["bits", "quantized", "categorical"],
)
def test_what_has_no_gaussian_path_is_refused_by_name(diffusion, messages, centered):
    program = numpyro.handlers.seed(lambda: models.sample_path("x", diffusion, centered=centered), KEY)
    with pytest.raises(ValueError, match=re.escape(messages[centered])):
        program()
