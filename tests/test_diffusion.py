"""The two NumPyro programs: under SVI, Renyi's bound, Predictive and the handlers, with plates that scale right."""

import re

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conftest import assert_mean, chi_square
from numpyro.handlers import condition, seed, substitute, trace
from numpyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO
from numpyro.infer.util import log_density
from scipy import stats

from nedm_ppl import inference, models
from nedm_ppl.models.chain.schedules import FixedSchedule, LearnedSchedule, erasing, log_snr_linear
from tests.zoo import noise_of

GAUSSIAN = models.GaussianDiffusion((2,), FixedSchedule([0.1, 0.3, 0.2, 0.5]))
BERNOULLI = models.BernoulliDiffusion((2,), erasing(4), rate=0.3)
NULL = {p: noise_of(p) for p in (GAUSSIAN, BERNOULLI)}
both_families = pytest.mark.parametrize("process", [GAUSSIAN, BERNOULLI], ids=["gaussian", "bernoulli"])


def pull(t, x):
    return jnp.stack([0.4 * jnp.sin(x[::-1]) + 0.1 * t, 0.2 * jnp.cos(x)])


def couplings(t, x):
    return 1.5 * x[::-1] - 0.2 * t


COUPLED = {
    GAUSSIAN: models.Diffusion(GAUSSIAN, models.DriftVariance(pull)),
    BERNOULLI: models.Diffusion(BERNOULLI, models.BitPrediction(couplings), first_step="learned"),
}


def data(process, num=6):
    draws = np.random.default_rng(0).normal(size=(num, 2))
    return jnp.asarray(draws if process is GAUSSIAN else (draws > 0.5).astype(float))


def networked(key=0, *, learned_schedule=False):
    start = log_snr_linear(4)
    process = models.GaussianDiffusion((2,), LearnedSchedule(start) if learned_schedule else start)
    network = models.networks.RBF((2,), (2, 2), 4, width=4, key=jax.random.key(key))
    return models.Diffusion(process, models.DriftVariance(network))


# --- the same program twice ---------------------------------------------------------------------------------------------


@pytest.mark.central
@both_families
def test_with_nothing_observed_the_model_is_its_own_guide(process):
    diffusion = COUPLED[process]

    def program():
        return diffusion.model(num_data=3)

    losses = jax.jit(jax.vmap(lambda key: Trace_ELBO().loss(key, {}, program, program)))
    np.testing.assert_allclose(losses(jax.random.split(jax.random.key(0), 20)), 0.0, atol=1e-4)


@both_families
def test_permuting_time_breaks_it(process):
    """log p(x_0..x_T) of a trajectory replayed in the wrong order differs from its own: the ELBO above is not idly 0."""
    diffusion = COUPLED[process]
    x0, path = data(process), process.forward(data(process)).sample(jax.random.key(1))

    @jax.jit
    def log_joint(path):
        return log_density(diffusion.model, (x0,), {}, {"trajectory": path})[0]

    assert abs(log_joint(path) - log_joint(jnp.flip(path, axis=1))) > 0.1


# --- objectives ---------------------------------------------------------------------------------------------------------


@pytest.mark.cases(2)
@both_families
@pytest.mark.parametrize("elbo", [Trace_ELBO(), RenyiELBO(0.0, num_particles=4)], ids=["Trace_ELBO", "RenyiELBO"])
def test_plates_scale_a_minibatch_to_all_data(process, elbo):
    """With the forward kernel in reverse every estimate is the sum of log pi(x_0), times num_data over the batch."""
    diffusion, x0 = NULL[process], data(process)

    @jax.jit
    def losses(key):
        return [elbo.loss(key, {}, diffusion.model, diffusion.guide, x0, num_data=num) for num in (None, 60)]

    null = process.null_log_prob(x0).sum()
    np.testing.assert_allclose(losses(jax.random.key(0)), [-null, -10.0 * null], rtol=1e-4)


def test_a_subsample_drawn_inside_is_the_same_rows_in_both_programs():
    """A subsample's loss is 3 times minus the sum of log pi over some two of six rows; and right in the mean."""
    diffusion, x0 = NULL[GAUSSIAN], data(GAUSSIAN)

    def losses(elbo):
        loss = jax.vmap(lambda key: elbo.loss(key, {}, diffusion.model, diffusion.guide, x0, subsample_size=2))
        return np.asarray(jax.jit(loss)(jax.random.split(jax.random.key(0), 2000)))

    null = np.asarray(GAUSSIAN.null_log_prob(x0))
    pairs = np.array([-3.0 * (null[i] + null[j]) for i in range(6) for j in range(i)])
    sampled = losses(Trace_ELBO())
    assert np.max(np.min(np.abs(sampled[:, None] - pairs), axis=1)) < 1e-3
    assert_mean(sampled, -null.sum())
    assert_mean(losses(inference.TrajectoryBound(None)), -null.sum())


@pytest.mark.long
def test_renyi_with_alpha_0_is_the_importance_sampled_likelihood():
    diffusion, x0 = COUPLED[BERNOULLI], jnp.asarray(exact.states(2))
    truth = exact.bits_log_prob(diffusion)
    losses = []
    for num_particles in (1, 30, 1000):
        elbo = RenyiELBO(0.0, num_particles=num_particles)
        loss = jax.jit(jax.vmap(lambda k, e=elbo: e.loss(k, {}, diffusion.model, diffusion.guide, x0)))
        losses.append(np.asarray(loss(jax.random.split(jax.random.key(1), 50))))
    gaps = [loss.mean() + truth.sum() for loss in losses]
    assert gaps[0] > gaps[1] > abs(gaps[2])
    np.testing.assert_allclose(losses[2], -truth.sum(), atol=0.4)
    assert abs(gaps[2]) < 0.02


@pytest.mark.central
@pytest.mark.parametrize("elbo", [Trace_ELBO(), inference.TrajectoryBound()], ids=["Trace_ELBO", "TrajectoryBound"])
def test_svi_trains_network_and_schedule_alike(elbo):
    diffusion = networked(learned_schedule=True)
    x0 = 0.3 * data(GAUSSIAN, 64) + 0.5
    svi = SVI(diffusion.model, diffusion.guide, optax.adam(3e-2), elbo)
    state = svi.init(jax.random.key(0), x0)
    update = jax.jit(svi.update)
    for _ in range(150):
        state, _ = update(state, x0)
    trained = eqx.combine(svi.get_params(state)["diffusion$params"], diffusion)
    bound = jax.jit(lambda d: inference.bound_terms(jax.random.key(1), d, jnp.tile(x0, (20, 1))).total.mean())
    assert bound(trained) > bound(diffusion) + 0.3
    moved = trained.process.schedule.rates - diffusion.process.schedule.rates
    assert moved[0] == 0.0
    assert np.all(np.abs(moved[1:]) > 1e-4)


def test_a_model_has_one_parameter_site_and_an_exact_kernel_none():
    programs = trace(seed(networked().model, 0)).get_trace(data(GAUSSIAN))
    assert [name for name, site in programs.items() if site["type"] == "param"] == ["diffusion$params"]
    programs = trace(seed(NULL[GAUSSIAN].model, 0)).get_trace(data(GAUSSIAN))
    assert [name for name, site in programs.items() if site["type"] == "param"] == []
    parameters = jax.tree.leaves(eqx.filter(networked().process, eqx.is_inexact_array))
    assert parameters == []


# --- programs -----------------------------------------------------------------------------------------------------------


@both_families
def test_the_trace_holds_the_trajectory_and_the_datum_in_one_plate(process):
    diffusion, x0 = COUPLED[process], data(process)
    sites = trace(seed(diffusion.model, 0)).get_trace(x0)
    assert sites["trajectory"]["value"].shape == (6, 4, 2)
    assert sites["x0"]["is_observed"]
    np.testing.assert_array_equal(sites["x0"]["value"], x0)
    assert {frame.name for frame in sites["x0"]["cond_indep_stack"]} == {"data"}
    guide = trace(seed(diffusion.guide, 0)).get_trace(x0)
    assert guide["trajectory"]["value"].shape == (6, 4, 2)
    free = trace(seed(diffusion.model, 0)).get_trace(num_data=5)
    assert free["x0"]["value"].shape == (5, 2)


@both_families
def test_the_log_density_is_the_chain_and_the_first_step(process):
    diffusion, x0 = COUPLED[process], data(process)
    path = process.forward(x0).sample(jax.random.key(0))
    joint, _ = log_density(diffusion.model, (x0,), {}, {"trajectory": path})
    expected = diffusion.reverse_chain().log_prob(path) + diffusion.first_kernel(path[:, 0]).log_prob(x0)
    np.testing.assert_allclose(joint, expected.sum(), rtol=1e-5)
    conditioned = condition(diffusion.model, {"x0": x0})
    again, _ = log_density(conditioned, (None,), {"num_data": 6}, {"trajectory": path})
    np.testing.assert_allclose(again, joint, rtol=1e-5)
    substituted = trace(substitute(seed(diffusion.model, 1), {"trajectory": path})).get_trace(x0)
    np.testing.assert_array_equal(substituted["trajectory"]["value"], path)


@pytest.mark.central
def test_samples_of_bits_have_the_enumerated_law_by_every_route(significance):
    diffusion, num = COUPLED[BERNOULLI], 20_000
    law = np.exp(exact.bits_log_prob(diffusion))
    predictive = Predictive(diffusion.model, num_samples=num // 4)(jax.random.key(0), num_data=4)
    assert predictive["trajectory"].shape == (num // 4, 4, 4, 2)
    routes = {
        "Predictive": predictive["x0"],
        "sample": jax.jit(lambda key: diffusion.sample(key, (num,)))(jax.random.key(1)),
        "vmap": jax.jit(jax.vmap(diffusion.sample))(jax.random.split(jax.random.key(2), num)),
    }
    for draws in routes.values():
        counts = np.bincount(np.asarray(draws, int).reshape(-1, 2) @ [2, 1], minlength=4)
        assert chi_square(counts, law) > significance
        wrong = np.exp(exact.bits_log_prob(NULL[BERNOULLI]))
        assert chi_square(counts, wrong) < significance


def test_samples_of_reals_have_their_linear_gaussian_law(significance):
    arrays = exact.linear_reverse(np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.6]]), GAUSSIAN.schedule.betas)
    mean, cov = exact.linear_data_law(*arrays)
    diffusion = models.Diffusion(GAUSSIAN, exact.Linear(*arrays), first_step="learned")
    wrong = models.Diffusion(GAUSSIAN, exact.Linear(0.9 * arrays[0], *arrays[1:]), first_step="learned")
    for model, is_right in ((diffusion, True), (wrong, False)):
        draws = np.asarray(jax.jit(lambda key, d=model: d.sample(key, (60_000,)))(jax.random.key(0)))
        white = np.linalg.solve(np.linalg.cholesky(cov), (draws - mean).T)
        p_values = [stats.kstest(row, "norm").pvalue for row in white]
        p_values.append(stats.kstest((white**2).sum(axis=0), stats.chi2(2).cdf).pvalue)
        assert (min(p_values) > significance) == is_right


@pytest.mark.cases(3)
@both_families
@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)])
def test_a_trajectory_ends_in_the_sample(process, sample_shape):
    diffusion, key = COUPLED[process], jax.random.key(3)
    path = diffusion.sample_trajectory(key, sample_shape)
    assert path.shape == (*sample_shape, 5, 2)
    np.testing.assert_array_equal(path[..., 0, :], diffusion.sample(key, sample_shape))


def test_draws_and_the_support_of_a_prior_are_compiled_once():
    traced = []

    def network(t, x):
        traced.append(t)
        return 0.1 * jnp.stack([x, x], axis=-1)

    diffusion = models.Diffusion(GAUSSIAN, models.NoisePrediction(network), first_step="learned")
    keys = jax.random.split(jax.random.key(0), 2)
    for use in (diffusion.sample, diffusion.sample_trajectory, lambda key: diffusion.prior().support):
        use(keys[0])
        num = len(traced)
        use(keys[1])
        assert 0 < num == len(traced)


def test_programs_run_under_jit_and_vmap():
    diffusion, x0 = COUPLED[GAUSSIAN], data(GAUSSIAN)

    def loss(d, x):
        return Trace_ELBO().loss(jax.random.key(0), {}, d.model, d.guide, x)

    eager = loss(diffusion, x0)
    np.testing.assert_allclose(eqx.filter_jit(loss)(diffusion, x0), eager, rtol=1e-5)
    batches = jnp.stack([x0, 2.0 * x0])
    mapped = jax.vmap(lambda x: loss(diffusion, x))(batches)
    np.testing.assert_allclose(mapped, [eager, loss(diffusion, 2.0 * x0)], rtol=1e-5)


def test_models_stack_under_vmap():
    built = [networked(key) for key in (0, 1)]
    moved = [
        eqx.tree_at(lambda d: d.reverse.network.readout.bias, d, replace_fn=lambda b, k=k: b + k)
        for k, d in enumerate(built)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *moved)
    x0 = data(GAUSSIAN)

    @eqx.filter_jit
    def bound(d):
        return inference.bound_terms(jax.random.key(0), d, x0).total

    together = eqx.filter_vmap(bound)(stacked)
    np.testing.assert_allclose(together, jnp.stack([bound(d) for d in moved]), rtol=1e-4)


def test_a_larger_program_adds_its_own_sites():
    """A latent scale around the diffusion: TrajectoryBound keeps its prior and its guide's density."""
    diffusion, x0 = NULL[GAUSSIAN], data(GAUSSIAN)

    def model(x0):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        diffusion.model(x0)

    def guide(x0):
        numpyro.sample("z", dist.Normal(1.0, 0.5))
        diffusion.guide(x0)

    losses = jax.vmap(lambda key: inference.TrajectoryBound(None).loss(key, {}, model, guide, x0))
    divergence = dist.kl_divergence(dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0))
    truth = divergence - GAUSSIAN.null_log_prob(x0).sum()
    assert_mean(jax.jit(losses)(jax.random.split(jax.random.key(0), 2000)), truth)


def test_the_quantized_first_step_samples_its_levels():
    levels = (-1.0, 0.0, 1.5)
    kernel = models.LevelPrediction(lambda t, x: jnp.zeros((2, 3)), levels)
    diffusion = models.Diffusion(GAUSSIAN, kernel, first_step="quantized")
    draws = diffusion.sample(jax.random.key(0), (50,))
    assert set(np.unique(draws)) == set(levels)
    sites = trace(seed(diffusion.model, 0)).get_trace(draws)
    assert np.all(np.isfinite(sites["x0"]["fn"].log_prob(draws)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: d.guide(None), "x0 must be given to the guide: the forward chain starts from data."),
        (
            lambda d: d.model(jnp.zeros((4, 3))),
            "x0 must have trailing shape (2,), one datum of this process; got shape (4, 3).",
        ),
        (lambda d: d.model(jnp.zeros(2)), "x0 must have one batch axis before its event shape (2,); got shape (2,)."),
        (
            lambda d: d.model(jnp.zeros((3, 4, 2))),
            "x0 must have one batch axis before its event shape (2,); got shape (3, 4, 2).",
        ),
        (lambda d: d.model(jnp.zeros((0, 2))), "x0 must hold at least one datum; got the empty shape (0, 2)."),
        (
            lambda d: d.model(jnp.zeros((4, 2)), num_data=10, subsample_size=3),
            "x0 must hold all num_data = 10 data or one minibatch of 3; got 4 of them.",
        ),
    ],
)
def test_bad_data_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        seed(lambda: build(NULL[GAUSSIAN]), 0)()
