"""Posteriors by particles and the paper's perturbed chain, against closed forms and enumeration."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

from nedm_ppl import inference, models
from nedm_ppl.inference import Lookahead, ParticlePosterior, multiply
from nedm_ppl.inference.posterior import particle_filter
from nedm_ppl.inference.posterior._downstream import Downstream, diffusion_site, guide
from tests.conftest import assert_mean, standard_error
from tests.exact import bits_log_prob, linear_data_law, states
from tests.zoo import LINEAR_PROCESS, diagonal, observed

PROCESS, STEPS, DIM = LINEAR_PROCESS, 8, 3


@pytest.fixture(scope="module")
def instances():
    """20 random instances, 64 runs of 32 particles each, by both covariances; and the paper's method."""
    cases = [observed(seed) for seed in range(20)]
    arrays, observations = (
        [jnp.asarray(np.stack([case[part][i] for case in cases]), float) for i in range(3)] for part in (0, 1)
    )

    def posterior(key, model, observation):
        y, matrix, noise = observation
        diffusion = diagonal(PROCESS, *model)
        r = inference.LinearObservation(y, matrix, covariance=noise)
        targets = [multiply(diffusion, r, along=Lookahead(how)) for how in ("diagonal", "jacobian")]
        runs = [jax.vmap(lambda k, t=t: particle_filter(k, t, 32))(jax.random.split(key, 64)) for t in targets]
        kept = [(run.x, run.log_weights, run.log_evidence) for run in runs]
        return kept, multiply(diffusion, r).sample(key, (1000,))

    keys = jax.random.split(jax.random.key(0), len(cases))
    runs, paper = jax.jit(jax.vmap(posterior))(keys, arrays, observations)
    return cases, runs, paper


@pytest.mark.central
@pytest.mark.cases(1)
@pytest.mark.parametrize("which", [0, 1], ids=["diagonal", "jacobian"])
def test_linear_gaussian_posteriors_and_evidence_are_exact(instances, which):
    cases, runs, _ = instances
    x, log_weights, log_evidence = (np.asarray(part, np.float64) for part in runs[which])
    for i, (_, _, (mean, cov, log_z)) in enumerate(cases):
        z = np.exp(log_evidence[i] - log_z)
        assert_mean(z, 1.0)
        # Z times a mean over particles is unbiased for Z times the posterior mean, run by run.
        weights = np.exp(log_weights[i])
        first = np.einsum("rn,rnd->rd", weights, x[i])
        assert_mean(z[:, None] * (first - mean), 0.0)
        centered = x[i] - mean
        second = np.einsum("rn,rnd,rne->rde", weights, centered, centered) - cov
        assert_mean(z[:, None, None] * second, 0.0)


def test_the_papers_method_is_biased_on_the_same_instances(instances):
    cases, _, paper = instances
    means = np.stack([case[2][0] for case in cases])
    bias = np.asarray(paper, np.float64).mean(axis=1) - means
    error = np.stack([standard_error(draws) for draws in paper])
    assert np.mean(np.square(bias / error)) > 10.0  # 1 without bias


def test_a_weight_without_one_of_its_factors_fails_the_same_test(instances):
    cases, runs, _ = instances
    log_evidence = np.asarray(runs[0][2], np.float64)
    with pytest.raises(AssertionError):
        for i, (arrays, (y, matrix, noise), (_, _, log_z)) in enumerate(cases):
            r = inference.Product((inference.LinearObservation(y, matrix, covariance=noise),))
            target = Forgetful(diagonal(PROCESS, *arrays), r, r, Lookahead())
            keys = jax.random.split(jax.random.key(i), 64)
            spoiled = _evidences(keys, target)
            assert log_evidence[i].shape == spoiled.shape
            assert_mean(np.exp(np.asarray(spoiled, np.float64) - log_z), 1.0)


class Forgetful(inference.MultipliedDiffusion):
    """A filter whose r_t is not divided out again: one factor of every weight left out."""

    def look(self, t, x):
        look = super().look(t, x)
        return look._replace(law=_Scaled(look.law, look.log_r))

    def proposal(self, look):
        return look.proposal


class _Scaled(dist.Distribution):
    pytree_data_fields = ("law", "extra")

    def __init__(self, law, extra):
        self.law, self.extra = law, extra
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    def log_prob(self, value):
        return self.law.log_prob(value) + 0.1 * self.extra


@eqx.filter_jit
def _evidences(keys, target):
    return jax.vmap(lambda key: particle_filter(key, target, 32).log_evidence)(keys)


# --- bits ---------------------------------------------------------------------------------------------------------------

BIT_DIM, BIT_STEPS, NUM = 8, 20, 4096
TABLE = 0.5 * np.random.default_rng(1).normal(size=2**BIT_DIM)
PLACES = 2.0 ** np.arange(BIT_DIM)[::-1]


def table_log_r(x):
    return jnp.asarray(TABLE, float)[jnp.round(x @ jnp.asarray(PLACES, float)).astype(int)]


@pytest.fixture(scope="module")
def enumerated():
    process = models.BernoulliDiffusion((BIT_DIM,), models.schedules.erasing(BIT_STEPS), rate=0.4)
    coupling = 0.5 * jax.random.normal(jax.random.key(3), (BIT_DIM, BIT_DIM))

    def network(t, x):
        return jnp.tanh((2.0 * x - 1.0) @ coupling) * (1.0 - t / BIT_STEPS)

    diffusion = models.Diffusion(process, models.BitPrediction(network), first_step="learned")
    joint = np.exp(bits_log_prob(diffusion) + TABLE)
    return diffusion, joint / joint.sum(), joint.sum()


def independent_distance(law) -> float:
    """Mean total variation between a law and NUM exact draws of it."""
    counts = np.random.default_rng(0).multinomial(NUM, law, size=200) / NUM
    return float(0.5 * np.abs(counts - law).sum(axis=1).mean())


@pytest.mark.cases(1)
@pytest.mark.parametrize("along", ["constant", "power", "lookahead", lambda t, x: 0.5 * table_log_r(x)])
def test_every_state_of_an_enumerated_posterior(enumerated, along):
    diffusion, law, z = enumerated
    target = multiply(diffusion, table_log_r, along=along)

    @jax.jit
    def run(keys):
        return jax.lax.map(lambda key: particle_filter(key, target, NUM), keys)

    particles = run(jax.random.split(jax.random.key(5), 6))
    assert_mean(np.exp(np.asarray(particles.log_evidence, np.float64)) / z, 1.0)
    index = np.round(np.asarray(particles.x) @ PLACES).astype(int)
    weights = np.exp(np.asarray(particles.log_weights, np.float64))
    found = [np.bincount(i, w, 2**BIT_DIM) for i, w in zip(index, weights, strict=True)]
    distance = np.mean([0.5 * np.abs(each - law).sum() for each in found])
    assert distance <= 1.5 * independent_distance(law)


@pytest.mark.cases(1)
@pytest.mark.parametrize("along", ["constant", "power", "lookahead"])
def test_the_evidence_is_unbiased_over_100_runs_of_few_particles(enumerated, along):
    diffusion, _, z = enumerated
    target = multiply(diffusion, table_log_r, along=along)
    run = jax.jit(jax.vmap(lambda key: particle_filter(key, target, 64).log_evidence))
    assert_mean(np.exp(np.asarray(run(jax.random.split(jax.random.key(6), 100)), np.float64)) / z, 1.0)


@pytest.mark.cases(1)
@pytest.mark.parametrize(("along", "repeats"), [("lookahead", 8), ("forward", 200)])
def test_known_bits(enumerated, along, repeats):
    diffusion, _, _ = enumerated
    known = jnp.array([1.0, 0.0, jnp.nan, jnp.nan, 1.0, jnp.nan, jnp.nan, jnp.nan])
    agree = np.all(np.isnan(known) | (states(BIT_DIM) == np.asarray(known)), axis=1)
    joint = np.where(agree, np.exp(bits_log_prob(diffusion)), 0.0)
    size = {"num_particles": 4000 // repeats, "num_repeats": repeats}
    posterior = ParticlePosterior(diffusion, inference.Known(known), **size, along=along)
    posterior.run(jax.random.key(1))
    relative = np.exp(np.asarray(posterior.particles.log_evidence, np.float64)) / joint.sum()
    assert_mean(relative, 1.0)
    truth = (joint / joint.sum()) @ states(BIT_DIM)
    assert np.all(np.abs(posterior.mean.mean - truth) <= 4.0 * posterior.mean.se + 1e-6)


def test_a_known_coordinate_of_a_linear_gaussian_by_forward():
    mean, cov = linear_data_law(*CASE[0])
    posterior = ParticlePosterior(MODEL, ONE_KNOWN, num_particles=16, num_repeats=400, along="forward")
    posterior.run(jax.random.key(3))
    log_z = dist.Normal(mean[0], np.sqrt(cov[0, 0])).log_prob(0.7)
    assert_mean(np.exp(np.asarray(posterior.particles.log_evidence, np.float64) - float(log_z)), 1.0)
    truth = mean + cov[:, 0] * (0.7 - mean[0]) / cov[0, 0]
    assert np.all(np.abs(posterior.mean.mean - truth) <= 4.0 * posterior.mean.se + 1e-6)


def test_particles_of_one_filter_share_what_is_known():
    target = multiply(MODEL, ONE_KNOWN, along="forward")
    path = target.reverse_chain().sample(jax.random.key(0), (5,))
    np.testing.assert_allclose(path[..., 0], np.broadcast_to(path[:1, :, 0], path.shape[:2]), rtol=1e-5, atol=1e-6)
    assert np.all(np.std(path[..., 1], axis=0) > 0.0)
    np.testing.assert_allclose(target.sample(jax.random.key(1), (5,))[:, 0], 0.7, rtol=1e-6)


# --- identities ---------------------------------------------------------------------------------------------------------

CASE = observed(0)
MODEL = diagonal(PROCESS, *CASE[0])
Y, MATRIX, NOISE = (jnp.asarray(part, float) for part in CASE[1])
OBSERVED = inference.LinearObservation(Y, MATRIX, covariance=NOISE)
ONE_KNOWN = inference.Known(jnp.full(DIM, jnp.nan).at[0].set(0.7))
HEAVY = models.Diffusion(PROCESS, lambda t, x: dist.StudentT(5.0, x, 1.0).to_event(1), first_step="learned")


def test_without_r_it_is_the_prior_exactly():
    key = jax.random.key(2)
    particles = eqx.filter_jit(particle_filter)(key, multiply(MODEL, None, along="lookahead"), 50)
    assert particles.log_evidence == 0.0
    np.testing.assert_array_equal(particles.ess, np.full(STEPS + 1, 50.0, np.float32))
    np.testing.assert_array_equal(particles.num_ancestors, 50)
    for draws in (particles.x, multiply(MODEL, None).sample(key, (50,))):
        np.testing.assert_allclose(draws, MODEL.sample(key, (50,)), rtol=1e-5, atol=1e-6)


def test_one_particle_and_a_constant_r_that_closes_is_the_papers_sampler():
    key, target = jax.random.key(4), multiply(MODEL, OBSERVED)
    particles = eqx.filter_jit(particle_filter)(key, target, 1)
    np.testing.assert_allclose(particles.x, target.sample(key, (1,)), rtol=1e-5, atol=1e-6)


@pytest.mark.central
def test_one_step_with_an_exact_product_has_no_variance():
    process = models.GaussianDiffusion((2,), models.schedules.FixedSchedule([0.999]))
    diffusion = models.Diffusion(
        process, lambda t, x: dist.Normal(jnp.zeros_like(x), 0.5).to_event(1), first_step="learned"
    )
    r = inference.NormalObservation(jnp.array([1.0, -1.0]), 0.3)
    posterior = ParticlePosterior(diffusion, r, num_particles=64, num_repeats=3)
    posterior.run(jax.random.key(0))
    exact = dist.Normal(jnp.zeros(2), np.sqrt(0.25 + 0.09)).log_prob(r.y).sum()
    np.testing.assert_allclose(posterior.particles.log_evidence, exact, rtol=1e-5)
    np.testing.assert_allclose(posterior.particles.ess[:, 0], 64.0, rtol=1e-5)


def test_the_papers_starting_points():
    noisy = jnp.array([0.5, -0.5, 1.0])
    target = multiply(MODEL, inference.NormalObservation(noisy, 0.2))
    x1 = target.sample(jax.random.key(0), (4,), start=noisy, last_step=False)
    path = target.sample_trajectory(jax.random.key(0), (4,), start=noisy)
    assert path.shape == (4, STEPS + 1, DIM)
    np.testing.assert_array_equal(path[:, -1], jnp.broadcast_to(noisy, (4, DIM)))
    np.testing.assert_allclose(path[:, 1], x1, rtol=1e-6)
    known = multiply(MODEL, inference.Known(jnp.array([jnp.nan, 0.7, jnp.nan])))
    held = known.sample_trajectory(jax.random.key(1), (4,))
    np.testing.assert_array_equal(held[..., 1], jnp.full((4, STEPS + 1), 0.7))


# --- the object, and programs -------------------------------------------------------------------------------------------


def program(y):
    x = numpyro.sample("z", MODEL.prior())
    numpyro.sample("y", dist.MultivariateNormal(MATRIX @ x, NOISE), obs=y)


def test_a_program_is_its_multiplier():
    direct = ParticlePosterior(MODEL, OBSERVED, num_particles=200)
    traced = ParticlePosterior(program, num_particles=200)
    direct.run(jax.random.key(0))
    traced.run(jax.random.key(0), Y)
    np.testing.assert_allclose(traced.log_evidence.mean, direct.log_evidence.mean, rtol=1e-5)
    np.testing.assert_allclose(traced.mean.mean, direct.mean.mean, rtol=1e-4, atol=1e-5)
    assert traced.site == "z" and traced.get_samples()["z"].shape == (800, DIM)
    assert traced.get_samples(group_by_repeat=True)["z"].shape == (4, 200, DIM)


def test_a_hierarchy_of_gaussian_rows_has_its_closed_form():
    """Case 5 of a conjugate composition: a learned prior under a plate of repeated measurements with an offset."""
    mean, cov = linear_data_law(*CASE[0])
    ys = np.array([[0.3, -1.0, 0.5], [0.7, -0.4, 0.1]])

    def rows(ys):
        x = numpyro.sample("x", MODEL.prior())
        with numpyro.plate("rows", 2):
            numpyro.sample("y", dist.Normal(2.0 * x + 1.0, 0.8).to_event(1), obs=ys)

    posterior = ParticlePosterior(rows, num_particles=50, num_repeats=8, along=Lookahead("jacobian"))
    posterior.run(jax.random.key(3), jnp.asarray(ys))
    a = np.concatenate([2.0 * np.eye(DIM)] * 2)
    spread, residual = a @ cov @ a.T + 0.64 * np.eye(2 * DIM), ys.ravel() - 1.0 - a @ mean
    log_z = -0.5 * (residual @ np.linalg.solve(spread, residual) + np.linalg.slogdet(2.0 * np.pi * spread)[1])
    assert_mean(np.exp(np.asarray(posterior.particles.log_evidence, np.float64) - log_z), 1.0)
    truth = mean + cov @ a.T @ np.linalg.solve(spread, residual)
    assert np.all(np.abs(posterior.mean.mean - truth) <= 4.0 * posterior.mean.se)


@pytest.mark.long
def test_many_observations_side_by_side():
    ys = Y + jnp.arange(3.0)[:, None]
    batched = ParticlePosterior(program, num_particles=100, num_repeats=2)
    batched.run_batch(jax.random.key(0), ys, batch_size=2)
    whole = ParticlePosterior(
        MODEL, lambda y: inference.LinearObservation(y, MATRIX, covariance=NOISE), num_particles=100, num_repeats=2
    )
    whole.run_batch(jax.random.key(0), ys)
    np.testing.assert_allclose(batched.log_evidence.mean, whole.log_evidence.mean, rtol=1e-4)
    assert batched.mean.mean.shape == (3, DIM) and batched.get_samples()["z"].shape == (3, 200, DIM)
    with pytest.raises(ValueError, match=r"one leading axis, .*; got args\[0\] of shape \(\)"):
        batched.run_batch(jax.random.key(0), jnp.zeros(()))


def test_observations_of_a_batch_that_are_no_batch_are_named():
    batch = inference.NormalObservation(jnp.zeros((4, DIM)), 0.5)
    for r in (batch, inference.NormalObservation(jnp.zeros(DIM), 0.5)):
        for args in ((), (batch,)):
            with pytest.raises(
                ValueError, match=r"r must be a function of run_batch's .*; got one NormalObservation for all"
            ):
                ParticlePosterior(MODEL, r).run_batch(jax.random.key(0), *args)
    by_argument = ParticlePosterior(MODEL, lambda r: r)
    with pytest.raises(
        ValueError, match=re.escape(f"args[0].y of shape (4, {DIM}), args[0].scale of shape (), args[0].mask")
    ):
        by_argument.run_batch(jax.random.key(0), batch)
    with pytest.raises(ValueError, match="one leading axis, that of the observations; got no arguments"):
        by_argument.run_batch(jax.random.key(0))


@pytest.mark.long
def test_a_program_that_is_not_gaussian_against_a_grid():
    process = models.GaussianDiffusion((1,), models.schedules.log_snr_linear(6, start=3.0, end=-7.0))
    diffusion = models.Diffusion(process, process.step, first_step="fixed")  # the prior is N(0, 1) exactly

    def counts(y):
        x = numpyro.sample("x", diffusion.prior())
        with numpyro.plate("rows", 3), handlers.scale(scale=2.0):
            numpyro.sample("y", dist.Poisson(jnp.exp(x[0])), obs=y)
        numpyro.factor("tilt", -0.5 * x[0])

    y = jnp.array([2.0, 3.0, 1.0])
    posterior = ParticlePosterior(counts, num_particles=500, num_repeats=16)
    posterior.run(jax.random.key(0), y)
    grid = np.linspace(-6.0, 6.0, 4001)
    log_r = 2.0 * np.sum(np.asarray(dist.Poisson(np.exp(grid)[:, None]).log_prob(y), np.float64), axis=1) - 0.5 * grid
    density = np.exp(log_r - 0.5 * grid**2) / np.sqrt(2.0 * np.pi)
    z, step = density.sum(), grid[1] - grid[0]
    assert_mean(np.exp(np.asarray(posterior.particles.log_evidence, np.float64)) / (z * step), 1.0)
    assert abs(posterior.mean.mean[0] - density @ grid / z) <= 4.0 * posterior.mean.se[0]


@pytest.mark.long
def test_a_product_over_coordinates_is_recognized_and_exact(enumerated):
    diffusion, _, _ = enumerated
    order = jnp.array([6, 0, 3, 3])  # a coordinate seen twice, and four not at all

    def mixed(y, z):
        x = numpyro.sample("x", diffusion.prior())
        which = dist.Categorical(probs=jnp.array([0.8, 0.2]))
        parts = [dist.Normal(x[order], 0.5), dist.Cauchy(0.0, 1.0).expand((4,))]
        numpyro.sample("y", dist.MixtureGeneral(which, parts).to_event(1), obs=y)
        numpyro.sample("z", dist.Bernoulli(jnp.where(x > 0.5, 0.9, 0.1)).to_event(1), obs=z)
        numpyro.sample("pair", dist.Bernoulli(0.2 + 0.6 * x[0] * x[1]), obs=1)

    y, z = jnp.array([0.9, -0.3, 1.6, 0.4]), jnp.array([0, 1, 1, 0, 0, 1, 0, 1])
    found = diffusion_site(mixed, (y, z), {})
    assert found.roles.by_coordinate == {"y": tuple(order.tolist()), "z": tuple(range(BIT_DIM))}
    assert found.roles.rest == ("pair",)
    x = states(BIT_DIM)
    log_y = np.log(0.8 * stats.norm(x[:, order], 0.5).pdf(y) + 0.2 * stats.cauchy.pdf(y)).sum(axis=1)
    log_z = np.where(x == np.asarray(z), np.log(0.9), np.log(0.1)).sum(axis=1)
    log_r = log_y + log_z + np.log(0.2 + 0.6 * x[:, 0] * x[:, 1])
    r = Downstream(mixed, "x", (y, z))
    np.testing.assert_allclose(jax.vmap(r.log_r)(jnp.asarray(x, float)), log_r, rtol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(guide(r, found.roles, (BIT_DIM,)).log_r)(jnp.asarray(x, float)), log_r, rtol=1e-5
    )
    joint = np.exp(bits_log_prob(diffusion) + log_r)
    posterior = ParticlePosterior(mixed, num_particles=200, num_repeats=16)
    posterior.run(jax.random.key(2), y, z)
    assert_mean(np.exp(np.asarray(posterior.particles.log_evidence, np.float64)) / joint.sum(), 1.0)
    assert np.all(np.abs(posterior.mean.mean - joint @ x / joint.sum()) <= 4.0 * posterior.mean.se + 1e-6)


@pytest.mark.long
def test_a_program_of_flipped_bits_is_its_multiplier(enumerated):
    diffusion, _, _ = enumerated
    z = jnp.array([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])

    def flipped(z):
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("z", dist.Bernoulli(jnp.where(x > 0.5, 0.9, 0.1)).to_event(1), obs=z)

    traced = ParticlePosterior(flipped, num_particles=100)
    direct = ParticlePosterior(diffusion, inference.BernoulliObservation(z, 0.1), num_particles=100)
    traced.run(jax.random.key(0), z)
    direct.run(jax.random.key(0))
    np.testing.assert_allclose(traced.log_evidence.mean, direct.log_evidence.mean, rtol=1e-5)


def test_what_is_reported_of_given_particles_is_the_formula():
    """Two repeats whose evidences are as one to three, of particles with given weights."""
    x = np.arange(80.0).reshape(2, 40, 1)
    own = np.random.default_rng(0).dirichlet(np.full(40, 0.5))
    nothing = np.zeros((2, STEPS + 1))
    posterior = ParticlePosterior(MODEL, OBSERVED, num_particles=40, num_repeats=2)
    posterior._key = jax.random.key(3)
    posterior._particles = inference.posterior.Particles(
        x, np.log([own, own]), np.log([1.0, 3.0]), nothing + 40.0, nothing + 40, nothing
    )
    np.testing.assert_allclose(posterior.log_evidence, [np.log(2.0), 0.5], rtol=1e-6)  # sd of 1/2, 3/2 over root 2
    share = np.array([0.25, 0.75])
    weights = share[:, None] * own
    by_repeat = x[..., 0] @ own
    mean = share @ by_repeat
    np.testing.assert_allclose(posterior.mean.mean, [mean], rtol=1e-6)
    delta = share * (by_repeat - mean)
    np.testing.assert_allclose(posterior.mean.se, [np.sqrt(2.0 * np.sum(delta**2))], rtol=1e-6)
    np.testing.assert_allclose(posterior.sd, [np.sqrt(np.sum(weights * (x[..., 0] - mean) ** 2))], rtol=1e-6)
    draws = posterior.get_samples()["x"][:, 0].astype(int)
    assert np.all(np.abs(np.bincount(draws, minlength=80) - 80.0 * weights.ravel()) <= 1.0 + 1e-3)
    grouped = posterior.get_samples(group_by_repeat=True)["x"][..., 0].astype(int)
    copies = np.stack([np.bincount(row - 40 * i, minlength=40) for i, row in enumerate(grouped)])
    assert np.all(np.abs(copies - 40.0 * own) <= 1.0 + 1e-3)
    assert np.any(copies[0] != copies[1])  # noise of its own for each


def test_the_report(capsys, tmp_path):
    posterior = ParticlePosterior(MODEL, OBSERVED, num_particles=50, num_repeats=2)
    with pytest.raises(RuntimeError, match="call run"):
        posterior.get_samples()
    posterior.run(jax.random.key(0))
    posterior.print_summary(max_rows=2)
    printed = capsys.readouterr().out
    assert "x[0]" in printed and "1 more coordinates" in printed and "log evidence" in printed
    data = posterior.to_arviz()
    assert data["posterior"]["x"].shape == (1, 100, DIM)
    assert data["particles"]["ess"].dims == ("repeat", "time")
    assert str(data["particles"]["doubts"].values) == "; ".join(posterior.doubts)
    data.to_netcdf(tmp_path / "posterior.nc")
    np.testing.assert_allclose(np.exp(posterior.log_weights).sum(), 1.0, rtol=1e-6)
    single = ParticlePosterior(MODEL, OBSERVED, num_particles=50, num_repeats=1)
    single.run(jax.random.key(0))
    assert np.isnan(single.log_evidence.se) and np.all(np.isnan(single.mean.se))


def two_sites():
    numpyro.sample("a", MODEL.prior())
    numpyro.sample("b", MODEL.prior())


def other_latent(y):
    scale = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", MODEL.prior()), scale).to_event(1), obs=y)


def several(y):
    with numpyro.plate("rows", 2):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", MODEL.prior()), 1.0).to_event(1), obs=y)


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (lambda: ParticlePosterior(MODEL), (), "r must be given with a Diffusion"),
        (lambda: ParticlePosterior(MODEL, OBSERVED, num_particles=0), (), "at least 1"),
        (lambda: ParticlePosterior(MODEL, OBSERVED, threshold=1.5), (), "threshold must lie in"),
        (lambda: ParticlePosterior(MODEL, OBSERVED, along="sideways"), (), "along must be constant"),
        (lambda: ParticlePosterior(MODEL, ONE_KNOWN, along="constant"), (), "would be held at their values at every t"),
        (lambda: ParticlePosterior(HEAVY, ONE_KNOWN, along="forward"), (), "or a mixture of such; got StudentT"),
        (lambda: ParticlePosterior(MODEL, OBSERVED, along="forward"), (), "is for known coordinates alone"),
        (lambda: Lookahead(num_draws=0), (), "num_draws must be at least 1; got 0"),
        (lambda: ParticlePosterior(two_sites), (), "must have one diffusion site; got a, b"),
        (lambda: ParticlePosterior(other_latent), (jnp.zeros(DIM),), "got noise"),
        (lambda: ParticlePosterior(several), (jnp.zeros((2, DIM)),), "draws several data"),
        (lambda: ParticlePosterior(lambda: numpyro.sample("x", dist.Normal())), (), "it has none"),
        (lambda: ParticlePosterior(handlers.condition(program, {"z": jnp.zeros(DIM)})), (Y,), "is observed"),
        (lambda: ParticlePosterior(MODEL, lambda x: -jnp.inf * jnp.ones(())), (), "all weight was lost at t = 0"),
        (lambda: ParticlePosterior(MODEL, lambda x: jnp.nan * x[0], along="power"), (), "all weight was lost at t = "),
    ],
)
def test_bad_input_gets_one_sentence(make, args, message):
    with pytest.raises(ValueError, match=message):
        make().run(jax.random.key(0), *args)
