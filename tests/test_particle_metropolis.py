"""Particle marginal Metropolis-Hastings against closed forms, and evidences of composed programs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy import stats

from nedm_ppl import models
from nedm_ppl.inference import ParticleMetropolis, ParticlePosterior
from tests.conftest import STANDARD_ERRORS
from tests.zoo import diagonal, gaussian

DIM, STEPS = 2, 5
PROCESS = models.GaussianDiffusion((DIM,), models.schedules.log_snr_linear(STEPS, start=3.0, end=-6.0))


ARRAYS, (MEAN, COV) = gaussian(0, PROCESS, size=1.0)
MODEL = diagonal(PROCESS, *ARRAYS)
Y = jnp.array([0.5, 1.0])


def program(y):
    """The prior's mean is theta times a vector: the model itself depends on a latent, and so does the noise."""
    theta = numpyro.sample("theta", dist.Normal(0.5, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))
    x = numpyro.sample("x", diagonal(PROCESS, ARRAYS[0], theta * ARRAYS[1], ARRAYS[2]).prior())
    numpyro.deterministic("twice", 2.0 * scale)
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


def exact(y):
    """Posterior means of theta, theta^2, scale, scale^2 and x by a grid over (theta, log scale)."""
    theta, log_scale = np.linspace(-4.0, 5.0, 241), np.linspace(-3.5, 2.0, 241)
    log_density = np.empty((len(theta), len(log_scale)))
    gains = []
    for j, scale in enumerate(np.exp(log_scale)):
        spread = COV + scale**2 * np.eye(DIM)
        law = stats.multivariate_normal(np.zeros(DIM), spread)
        log_density[:, j] = law.logpdf(np.asarray(y) - theta[:, None] * MEAN) + stats.norm(-0.5, 0.5).logpdf(
            np.log(scale)
        )
        gains.append(COV @ np.linalg.inv(spread))
    log_density += stats.norm(0.5, 1.0).logpdf(theta)[:, None]
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    prior_mean = theta[:, None] * MEAN
    x = prior_mean[:, None] + np.einsum("jab,ib->ija", np.stack(gains), np.asarray(y) - prior_mean)
    by_theta, by_scale, scale = weight.sum(axis=1), weight.sum(axis=0), np.exp(log_scale)
    return np.concatenate(
        [
            [by_theta @ theta, by_theta @ theta**2, by_scale @ scale, by_scale @ scale**2],
            np.einsum("ij,ija->a", weight, x),
        ]
    )


def run(kernel, *args, num_warmup=300, num_samples=6000, **options):
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(0), *args, **options)
    return mcmc


def test_a_prior_that_depends_on_latents_and_a_constrained_one_are_exact():
    kernel = ParticleMetropolis(program, num_particles=8)
    mcmc = run(kernel, Y, extra_fields=("accept_prob", "log_density"))
    samples = {name: np.asarray(value, np.float64)[None] for name, value in mcmc.get_samples().items()}
    theta, scale = samples["theta"], samples["scale"]
    draws = np.concatenate(
        [np.stack([theta, theta**2, scale, scale**2], axis=-1), samples["x"]],
        axis=-1,
    )
    errors = draws.std(axis=(0, 1)) / np.sqrt(effective_sample_size(draws))
    assert np.all(np.abs(draws.mean(axis=(0, 1)) - exact(Y)) <= STANDARD_ERRORS * errors)
    np.testing.assert_allclose(samples["twice"], 2.0 * scale, rtol=1e-6)
    fields = mcmc.get_extra_fields()
    assert 0.1 < fields["accept_prob"].mean() < 0.5
    # The accepted evidence stays as it was accepted: where the chain stood still, to the last bit.
    still = np.asarray(samples["theta"][0, 1:] == samples["theta"][0, :-1])
    np.testing.assert_array_equal(np.diff(np.asarray(fields["log_density"]))[still], 0.0)
    assert 0.5 < still.mean() < 0.95


@pytest.mark.central
def test_a_proposal_is_held_against_the_evidence_that_was_accepted():
    """Whatever the old values would be estimated at anew: against one far below every proposal is taken, far above none."""
    kernel = ParticleMetropolis(program, num_particles=4)
    state = kernel.init(jax.random.key(0), 0, None, (Y,), {})
    step = jax.jit(lambda state: kernel.sample(state, (Y,), {}))
    below, above = (step(state._replace(log_density=jnp.asarray(value))) for value in (-1e6, 1e6))
    assert below.accept_prob == 1.0 and below.z["theta"] != state.z["theta"]
    assert above.accept_prob == 0.0 and above.log_density == 1e6
    for name in state.z:
        np.testing.assert_array_equal(above.z[name], state.z[name])


def test_adaptation_ends_with_warm_up_and_so_does_its_acceptance():
    kernel = ParticleMetropolis(program, num_particles=4)
    state = kernel.init(jax.random.key(0), 5, None, (Y,), {})
    state = state._replace(
        mean_accept_prob=jnp.asarray(0.9), adapt_state=state.adapt_state._replace(cov=jnp.eye(2) / 2)
    )
    step = jax.jit(lambda state: kernel.sample(state, (Y,), {}))
    last, first = (step(state._replace(i=jnp.asarray(i))) for i in (4, 5))
    assert np.any(np.asarray(last.adapt_state.cov != state.adapt_state.cov))
    assert last.adapt_state.log_step != state.adapt_state.log_step
    for new, old in zip(first.adapt_state, state.adapt_state, strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_allclose(first.mean_accept_prob, first.accept_prob, atol=1e-6)
    np.testing.assert_allclose(last.mean_accept_prob, 0.9 + (last.accept_prob - 0.9) / 5, rtol=1e-6)


def test_a_plate_has_a_filter_per_row():
    def rows(y):
        scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))
        with numpyro.plate("rows", 3):
            x = numpyro.sample("x", MODEL.prior())
            numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    kernel = ParticleMetropolis(rows, num_particles=256)
    y = jnp.array([[0.5, 1.0], [0.0, 0.2], [-1.0, 0.3]])
    state = kernel.init(jax.random.key(0), 0, {"scale": jnp.array(-0.3)}, (y,), {})
    assert kernel._found.num_members == 3 and state.z["x"].shape == (3, DIM)
    scale = np.exp(-0.3)
    law = stats.multivariate_normal(MEAN, COV + scale**2 * np.eye(DIM))
    exact = law.logpdf(np.asarray(y)).sum() + stats.norm(-0.5, 0.5).logpdf(-0.3)
    assert abs(float(state.log_density) - exact) < 0.1


def test_evidence_of_a_parameter_on_a_grid_and_of_two_priors():
    """log Z for every value of a parameter by `run_batch`, and the posterior odds of two diffusions."""
    other_arrays, (other_mean, other_cov) = gaussian(1, PROCESS, size=1.0)
    scales = jnp.array([0.2, 0.5, 1.0, 2.0])

    def composed(diffusion):
        def given_scale(scale, y):
            x = numpyro.sample("x", diffusion.prior())
            numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

        return given_scale

    evidences = []
    for diffusion, (mean, cov) in ((MODEL, (MEAN, COV)), (diagonal(PROCESS, *other_arrays), (other_mean, other_cov))):
        posterior = ParticlePosterior(composed(diffusion), num_particles=256, num_repeats=8)
        posterior.run_batch(jax.random.key(0), scales, jnp.tile(Y, (len(scales), 1)))
        exact = [
            stats.multivariate_normal(mean, cov + float(s) ** 2 * np.eye(DIM)).logpdf(np.asarray(Y)) for s in scales
        ]
        log_z = posterior.log_evidence
        assert np.all(np.abs(log_z.mean - exact) <= STANDARD_ERRORS * log_z.se)
        assert np.all(log_z.se < 0.1)
        evidences.append((log_z, np.asarray(exact)))
    (first, first_exact), (second, second_exact) = evidences
    odds = np.abs(first.mean - second.mean - (first_exact - second_exact))
    assert np.all(odds <= STANDARD_ERRORS * np.hypot(first.se, second.se))


def test_a_diffusion_that_changes_along_a_batch_is_refused():
    def tilted(theta, y):
        x = numpyro.sample("x", diagonal(PROCESS, ARRAYS[0], theta * ARRAYS[1], ARRAYS[2]).prior())
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="it depends on run_batch's arguments"):
        ParticlePosterior(tilted).run_batch(jax.random.key(0), jnp.ones(2), jnp.zeros((2, DIM)))


def discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", MODEL.prior()) + k, 1.0).to_event(1), obs=y)


def nothing_else(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", MODEL.prior()), 1.0).to_event(1), obs=y)


def impossible(y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    x = numpyro.sample("x", MODEL.prior())
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)
    numpyro.factor("never", -jnp.inf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParticleMetropolis(program, num_particles=0), "num_particles must be at least 1"),
        (lambda: ParticleMetropolis(program, step_size=0.0), "step_size must be positive"),
        (lambda: ParticleMetropolis(discrete), "got the discrete k. Use Gibbs"),
        (lambda: ParticleMetropolis(nothing_else), "it has none. Use ParticlePosterior"),
        (lambda: ParticleMetropolis(impossible), "density zero, or NaN"),
        (lambda: ParticleMetropolis(handlers.condition(program, {"x": Y})), "observed or conditioned"),
        (lambda: Gibbs([(ParticleMetropolis(program), ["x"]), (NUTS(program), None)]), "does not implement `refresh`"),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), 0, None, (Y,), {})
