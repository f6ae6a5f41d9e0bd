r"""Programs as people write them, against quadrature: the same truth for every route, and no answer that is wrong in silence.

The prior is N(0, I) exactly (a chain of noise), so that a program's evidence and means are integrals over one or two coordinates.
"""

import subprocess
import sys
import textwrap
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS

from nedm_ppl import models
from nedm_ppl.inference import (
    DoubtfulPosterior,
    Function,
    LinearObservation,
    Lookahead,
    ParticleMetropolis,
    ParticlePosterior,
    PathGibbs,
)
from tests.zoo import noise_of, white

gibbs = pytest.importorskip("numpyro.infer.gibbs")
STANDARD_ERRORS = 4.5


def quadrature(log_r, dim: int, size: int | None = None) -> tuple[float, np.ndarray]:
    """log Z and the means of N(0, I) times r, on a fine grid; with a second, shifted and coarser, that must agree."""
    results = []
    size = size or {1: 48_001, 2: 1_201}[dim]
    for points in (size, size - 100):
        axis = np.linspace(-6.0, 6.0, points)
        x = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
        log_p = np.asarray(jax.lax.map(log_r, jnp.asarray(x, float), batch_size=10_000), np.float64)
        joint = log_p - 0.5 * np.sum(x**2, axis=1) - 0.5 * dim * np.log(2.0 * np.pi)
        weights = np.exp(joint - joint.max())
        results.append(
            (joint.max() + np.log(weights.sum()) + dim * np.log(axis[1] - axis[0]), weights @ x / weights.sum())
        )
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-3)
    return results[0]


def normal(mean, scale, y):
    """A program's observations, and their log density."""
    return lambda x: dist.Normal(mean(x), scale(x) if callable(scale) else scale).to_event(1), jnp.asarray(y)


def coins(x):
    return dist.Bernoulli(logits=2.0 * x[0]).expand([100]).to_event(1)


PROGRAMS = {
    "clipped": (1, 4, *normal(lambda x: jnp.clip(x, -0.5, 0.5), 0.3, [0.6])),
    "cut off": (1, 4, *normal(lambda x: jnp.minimum(x, 1.0), 0.5, [1.5])),
    "folded": (1, 4, *normal(lambda x: jnp.abs(x + 1.0) - 1.0, 0.3, [-0.5])),
    "turned": (1, 4, *normal(lambda x: jnp.where(x > 1.0, -x, x), 0.3, [1.2])),
    "gated noise": (1, 4, *normal(lambda x: x, lambda x: jnp.where(x > 1.0, 2.0, 0.3), [1.5])),
    "in small units": (1, 4, *normal(lambda x: 9e-5 * jnp.tanh(x), 2e-5, [5e-5])),
    "nearly affine": (1, 4, *normal(lambda x: x + 0.005 * x**3, 0.3, [2.0])),
    "coins": (1, 6, coins, (jnp.arange(100) < 80).astype(float)),
    "heavy tails": (1, 4, lambda x: dist.StudentT(2.0, x, 0.1).to_event(1), jnp.array([2.5])),
    "saturating": (2, 10, *normal(jnp.tanh, 0.1, np.tanh([0.5, -1.0]))),
    "masked": (
        2,
        4,
        lambda x: dist.Normal(x, 0.5).mask(jnp.array([True, False])).to_event(1),
        jnp.array([0.9, jnp.nan]),
    ),
    "a product": (2, 4, lambda x: dist.Normal(x[0] * x[1], 0.5), jnp.array(1.0)),
}


def program_of(diffusion, law, y, scale=1.0):
    def program():
        x = numpyro.sample("x", diffusion.prior())
        with handlers.scale(scale=scale):
            numpyro.sample("y", law(x), obs=y)

    return program


def assert_close(estimate, se, truth):
    assert np.all(np.abs(np.asarray(estimate) - truth) <= STANDARD_ERRORS * np.asarray(se) + 1e-5), (
        estimate,
        se,
        truth,
    )


@pytest.mark.cases(2)
@pytest.mark.central
@pytest.mark.parametrize("name", PROGRAMS)
def test_particle_posterior_against_quadrature(name):
    dim, num_steps, law, y = PROGRAMS[name]
    log_z, mean = quadrature(lambda x: law(x).log_prob(y), dim)
    posterior = ParticlePosterior(program_of(white(dim, num_steps), law, y), num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(1))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, log_z)
    assert_close(posterior.mean.mean, posterior.mean.se, mean)
    assert posterior.log_evidence.se < 0.05 and posterior.doubts == ()


def test_a_scale_round_an_observation_is_a_power_of_it():
    law, y = normal(lambda x: x, 0.3, [1.5])
    log_z, mean = quadrature(lambda x: 3.0 * law(x).log_prob(y), 1)
    posterior = ParticlePosterior(program_of(white(1, 4), law, y, scale=3.0), num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, log_z)
    assert_close(posterior.mean.mean, posterior.mean.se, mean)
    # Recognized in spite of the scale: a normal observation with a third of the variance leaves next to no spread.
    assert posterior.log_evidence.se < 2e-3


@pytest.mark.cases(1)
@pytest.mark.filterwarnings("ignore:doubt this posterior")
@pytest.mark.parametrize("along", ["unguided", "constant", "power"])
def test_every_way_along_the_chain_has_the_same_truth(along):
    law, y = normal(lambda x: jnp.clip(x, -0.5, 0.5), 0.3, [0.6])
    log_z, mean = quadrature(lambda x: law(x).log_prob(y), 1)
    posterior = ParticlePosterior(program_of(white(1, 4), law, y), along=along, num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, log_z)
    assert_close(posterior.mean.mean, posterior.mean.se, mean)


def test_a_function_is_as_well_served_as_a_program():
    y = jnp.array([0.9, -0.2])
    r = Function(lambda x: dist.Normal(x, 0.3).log_prob(y).sum())
    truth = dist.Normal(0.0, np.sqrt(1.0 + 0.3**2)).log_prob(y).sum()
    posterior = ParticlePosterior(white(2, 6), r, num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, truth)
    assert posterior.log_evidence.se < 0.02


@pytest.mark.long
@pytest.mark.parametrize("name", ["clipped", "masked"])
def test_path_gibbs_against_quadrature(name):
    dim, num_steps, law, y = PROGRAMS[name]
    _, mean = quadrature(lambda x: law(x).log_prob(y), dim)
    mcmc = MCMC(
        PathGibbs(program_of(white(dim, num_steps), law, y)),
        num_warmup=20,
        num_samples=200,
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)
    by_chain = draws.mean(axis=1)
    assert_close(by_chain.mean(axis=0), by_chain.std(axis=0, ddof=1) / np.sqrt(8) + 1e-3, mean)


@pytest.mark.long
def test_particle_metropolis_against_quadrature():
    """A slope beside x, for which the clipped mean is not even monotone."""
    diffusion, y = white(1, 4), jnp.array([0.6, 0.3])

    def program():
        slope = numpyro.sample("slope", dist.Normal(1.0, 0.5))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(slope * jnp.clip(x, -0.5, 0.5), 0.3).expand([2]).to_event(1), obs=y)

    slopes, axis = np.linspace(-2.0, 4.0, 601)[:, None], np.linspace(-6.0, 6.0, 1201)
    residual = y[:, None, None] - slopes * np.clip(axis, -0.5, 0.5)
    joint = -0.5 * (residual**2).sum(0) / 0.09 - 0.5 * (slopes - 1.0) ** 2 / 0.25 - 0.5 * axis**2
    weights = np.exp(joint - joint.max())
    truth = np.array([(weights * slopes).sum(), (weights * axis).sum()]) / weights.sum()
    kernel = ParticleMetropolis(program, num_particles=20)
    mcmc = MCMC(kernel, num_warmup=200, num_samples=1000, num_chains=8, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0))
    samples = mcmc.get_samples(group_by_chain=True)
    by_chain = np.stack([np.asarray(samples["slope"]).mean(1), np.asarray(samples["x"])[..., 0].mean(1)], -1)
    assert_close(by_chain.mean(axis=0), by_chain.std(axis=0, ddof=1) / np.sqrt(8) + 1e-3, truth)


def by_chains(mcmc, site="x"):
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)[site], np.float64).mean(axis=1)
    return draws.mean(axis=0), draws.std(axis=0, ddof=1) / np.sqrt(len(draws)) + 1e-3


@pytest.mark.long
def test_rows_of_a_plate_that_a_factor_ties_together():
    """Their filters are one: the factor has a value for every row, and each depends on two of them."""
    diffusion = white(2, 4)
    first, second = jnp.array([0.3, -0.2, 0.5]), jnp.array([2.0, -2.0, 2.0])

    def program():
        with numpyro.plate("rows", 3):
            x = numpyro.sample("x", diffusion.prior())
            numpyro.sample("first", dist.Normal(x[..., 0], 0.003), obs=first)
            numpyro.sample("second", dist.Normal(x[..., 1], 1.0), obs=second)
            numpyro.factor("tie", -2.0 * jnp.square(x[..., 1] - jnp.roll(x[..., 1], 1)))

    precision = 2.0 * np.eye(3)
    for i in range(3):
        difference = np.eye(3)[i] - np.eye(3)[i - 1]
        precision += 4.0 * np.outer(difference, difference)
    truth = np.linalg.solve(precision, np.asarray(second))
    np.testing.assert_allclose(truth, [0.43, 0.14, 0.43], atol=0.005)
    kernel = PathGibbs(program, num_particles=4)
    mcmc = MCMC(kernel, num_warmup=10, num_samples=50, num_chains=8, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0))
    mean, se = by_chains(mcmc)
    assert_close(mean[:, 1], se[:, 1], truth)
    assert_close(mean[:, 0], se[:, 0], first)


def velocity(dim):
    del dim
    return models.VelocityPrediction(lambda t, x: jnp.stack([jnp.full_like(x, 1.5), jnp.full_like(x, -2.0)]))


@pytest.mark.long
def test_two_coupled_rows_of_a_network_with_two_outputs():
    """Two rows, and a network's leading axis of two: told apart by position, never by size."""
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4))
    diffusion = models.Diffusion(process, velocity(2), first_step="learned")
    y = jnp.array([1.0, -1.0, 0.5, 2.0])

    def program():
        with numpyro.plate("rows", 2):
            x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x.reshape(-1), 0.5).to_event(1), obs=y)

    mcmc = MCMC(
        PathGibbs(program),
        num_warmup=50,
        num_samples=500,
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    mean, se = by_chains(mcmc)
    assert_close(mean, se + 0.003, np.array([[1.42, 0.34], [1.14, 1.98]]))


@pytest.mark.parametrize("rows", [129, 200])
def test_many_looks_at_one_coordinate_are_one(rows):
    y = jnp.linspace(-1.0, 2.0, rows) + 0.5 * jnp.sin(jnp.arange(rows))

    def program():
        x = numpyro.sample("x", white(1, 4).prior())
        with numpyro.plate("looks", rows):
            numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)

    posterior = ParticlePosterior(program, num_particles=200, num_repeats=8)
    posterior.run(jax.random.key(0))
    values = np.asarray(y, np.float64)
    variance = 1.0 / (1.0 + rows)
    log_z = (
        -0.5 * (values @ values - variance * values.sum() ** 2)
        - 0.5 * rows * np.log(2 * np.pi)
        + 0.5 * np.log(variance)
    )
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se + 2e-3, log_z)
    assert_close(posterior.mean.mean, posterior.mean.se + 1e-4, values.sum() * variance)


CLOSED = """
    import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
    from nedm_ppl import models
    from nedm_ppl.inference import LinearObservation, Lookahead, ParticlePosterior

    def closed(matrix, y, scale):
        covariance = matrix @ matrix.T + scale**2 * np.eye(len(y))
        solved = np.linalg.solve(covariance, y)
        log_z = -0.5 * (y @ solved + np.linalg.slogdet(covariance)[1] + len(y) * np.log(2 * np.pi))
        return log_z, matrix.T @ solved

    def check(posterior, truth, key):
        posterior.run(key)
        log_z, mean = truth
        assert abs(posterior.log_evidence.mean - log_z) <= 4.5 * posterior.log_evidence.se + 1e-4 * abs(log_z), log_z
        assert np.all(np.abs(posterior.mean.mean - mean) <= 4.5 * posterior.mean.se + 1e-3), mean
"""

ROWS = {
    "a plate of thirty": """
    def program():
        x = numpyro.sample("x", models.Diffusion(plane, plane.step).prior())
        with numpyro.plate("looks", 30):
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=looks)

    plane = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4))
    looks = np.random.default_rng(0).normal(size=(30, 2))
    truth = closed(np.tile(np.eye(2), (30, 1)), looks.reshape(-1), 1.0)
    check(ParticlePosterior(program, num_particles=200, num_repeats=8), truth, jax.random.key(1))
""",
    "a matrix of a thousand": """
    dim, rows = 16, 1000
    process = models.GaussianDiffusion((dim,), models.schedules.log_snr_linear(4))
    rng = np.random.default_rng(rows)
    matrix, y = rng.normal(size=(rows, dim)) / np.sqrt(rows), rng.normal(size=rows)
    r = LinearObservation(y, matrix, scale=0.5)
    posterior = ParticlePosterior(
        models.Diffusion(process, process.step), r, along=Lookahead("jacobian"), num_particles=200, num_repeats=8
    )
    check(posterior, closed(matrix, y, 0.5), jax.random.key(0))
""",
}


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ROWS)
def test_no_number_of_rows_hangs_and_each_has_its_closed_form(name):
    """In a process of its own, which a hang cannot outlive."""
    program = textwrap.dedent(CLOSED) + textwrap.dedent(ROWS[name])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def correlated(t, x, *, process):
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    rate = process.schedule.rates[t - 1]
    return dist.MultivariateNormal(jnp.sqrt(1.0 - rate) * x, rate * covariance)


@pytest.mark.cases(1)
@pytest.mark.parametrize("first_step", ["learned", "fixed"])
def test_a_correlated_kernel_weighs_its_own_draws(first_step):
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(6))
    diffusion = models.Diffusion(process, partial(correlated, process=process), first_step=first_step)
    covariance = np.eye(2)
    for t in range(6, 0, -1):
        rate = float(process.schedule.rates[t - 1])
        noise = np.eye(2) if t == 1 and first_step == "fixed" else np.array([[1.0, 0.8], [0.8, 1.0]])
        covariance = (1.0 - rate) * covariance + rate * noise
    gain = covariance @ np.ones(2) / (np.ones(2) @ covariance @ np.ones(2) + 0.25)
    spread = np.sqrt(np.ones(2) @ covariance @ np.ones(2) + 0.25)
    log_z = float(dist.Normal(0.0, spread).log_prob(1.5))
    r = LinearObservation([1.5], [[1.0, 1.0]], scale=0.5)
    posterior = ParticlePosterior(diffusion, r, num_particles=1000, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, log_z)
    assert_close(posterior.mean.mean, posterior.mean.se, 1.5 * gain)
    if first_step == "fixed":
        assert log_z == pytest.approx(-1.8849, abs=1e-4)


def mixture_kernel(t, x, *, process):
    rate = process.schedule.rates[t - 1]
    loc = jnp.sqrt(1.0 - rate) * x[..., None] + jnp.sqrt(rate) * jnp.array([-0.8, 0.8])
    return dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.zeros(2)), dist.Normal(loc, 0.6 * jnp.sqrt(rate))
    ).to_event(1)


@pytest.mark.cases(1)
@pytest.mark.parametrize("first_step", ["learned", "fixed"])
def test_a_mixture_kernel_weighs_its_own_draws(first_step):
    """Its marginal is on a grid: each step a convolution."""
    process = models.GaussianDiffusion((1,), models.schedules.log_snr_linear(4))
    diffusion = models.Diffusion(process, partial(mixture_kernel, process=process), first_step=first_step)
    axis = np.linspace(-7.0, 7.0, 1401)
    density = np.exp(-0.5 * axis**2) / np.sqrt(2 * np.pi)
    for t in range(4, 0, -1):
        law = (
            diffusion.first_kernel(jnp.asarray(axis)[:, None])
            if t == 1
            else diffusion.kernel(t, jnp.asarray(axis)[:, None])
        )
        step = np.exp(np.asarray(law.log_prob(jnp.asarray(axis)[:, None, None]), np.float64))
        density = step @ density * (axis[1] - axis[0])
    log_r = np.asarray(dist.Normal(jnp.asarray(axis), 0.3).log_prob(0.8), np.float64)
    z = np.sum(density * np.exp(log_r)) * (axis[1] - axis[0])
    mean = np.sum(density * np.exp(log_r) * axis) * (axis[1] - axis[0]) / z
    law, y = normal(lambda x: x, 0.3, [0.8])
    posterior = ParticlePosterior(program_of(diffusion, law, y), num_particles=1000, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, np.log(z))
    assert_close(posterior.mean.mean, posterior.mean.se, mean)


def test_bits_under_a_gaussian_site():
    process = models.BernoulliDiffusion((3,), models.schedules.erasing(3))
    bits = models.Diffusion(process, models.FlipRate(lambda t, x: jnp.zeros_like(x)))

    def program():
        x = numpyro.sample("x", bits.prior())
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)

    count = np.arange(4)
    share = np.array([1, 3, 3, 1]) / 8.0
    log_z = np.log(np.sum(share * np.exp(np.asarray(dist.Normal(count, 1.0).log_prob(1.0), np.float64))))
    assert log_z == pytest.approx(-1.2825, abs=1e-4)
    posterior = ParticlePosterior(program, num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, log_z)


def minibatch():
    x = numpyro.sample("x", white(1, 4).prior())
    with numpyro.plate("rows", 4, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=jnp.arange(4.0)[rows])


def missing():
    x = numpyro.sample("x", white(2, 4).prior())
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.array([1.0, jnp.nan]))


def scaled():
    with handlers.scale(scale=2.0):
        x = numpyro.sample("x", white(1, 4).prior())
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.ones(1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (minibatch, "site 'y' must not lie in a subsampled plate"),
        (missing, "site 'y' must observe numbers; 1 of its values are NaN"),
        (scaled, "site 'x' must not be scaled"),
    ],
)
@pytest.mark.parametrize("route", [ParticlePosterior, PathGibbs])
def test_what_would_be_wrong_in_silence_is_refused(program, message, route):
    with pytest.raises(ValueError, match=message):
        if route is ParticlePosterior:
            route(program).run(jax.random.key(0))
        else:
            MCMC(route(program), num_warmup=1, num_samples=1, progress_bar=False).run(jax.random.key(0))


def test_the_jacobian_where_no_signal_is_left():
    process = models.GaussianDiffusion((2,), models.schedules.erasing(10))
    diffusion = noise_of(process)
    r = LinearObservation([1.5], [[1.0, 1.0]], scale=0.5)
    posterior = ParticlePosterior(diffusion, r, along=Lookahead("jacobian"), num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(0))
    assert_close(posterior.log_evidence.mean, posterior.log_evidence.se, float(dist.Normal(0.0, 1.5).log_prob(1.5)))


def test_a_filter_that_loses_its_particles_says_so():
    """r_t = r of a sharp observation leaves the way to it to luck; the model's own chain finds it even less."""
    law, y = normal(lambda x: 3.0 * x[:1] * x[1:], 0.001, [1.5])
    posterior = ParticlePosterior(program_of(white(2, 4), law, y), along="unguided", num_particles=100)
    with pytest.warns(DoubtfulPosterior, match="doubt this posterior"):
        posterior.run(jax.random.key(0))
    assert len(posterior.doubts) > 0
    law, y = normal(lambda x: x, 0.5, [0.4, 0.1])
    sound = ParticlePosterior(program_of(white(2, 4), law, y), num_particles=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sound.run(jax.random.key(0))
    assert sound.doubts == ()


@pytest.mark.long
def test_one_more_latent_that_changes_what_a_site_is():
    """Gaussian in x at slope 0 only: structure holds for every value of the slope, and the guide is right at each."""
    diffusion = white(1, 4)

    def program():
        bend = numpyro.sample("bend", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x + jnp.maximum(bend, 0.0) * x**3, 0.5).to_event(1), obs=jnp.array([2.0]))

    bends, axis = np.linspace(-5.0, 5.0, 401)[:, None], np.linspace(-6.0, 6.0, 2401)
    joint = -0.5 * (2.0 - axis - np.maximum(bends, 0.0) * axis**3) ** 2 / 0.25 - 0.5 * bends**2 - 0.5 * axis**2
    weights = np.exp(joint - joint.max())
    truth = [(weights * bends).sum() / weights.sum(), (weights * axis).sum() / weights.sum()]
    mcmc = MCMC(
        gibbs.Gibbs([(PathGibbs(program), ["x"]), (NUTS(program), None)]),
        num_warmup=100,
        num_samples=500,
        num_chains=8,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    for site, value in (("bend", truth[0]), ("x", truth[1])):
        assert_close(*by_chains(mcmc, site), value)
