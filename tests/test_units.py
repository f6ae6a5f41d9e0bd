"""Units of data: a model in the data's units against the same model on data that are scaled by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from numpyro.infer.gibbs import Gibbs

from nedm_ppl import inference, models
from nedm_ppl.models.chain.schedules import log_snr_linear
from tests.zoo import LEVELS, MODELS, datum_of, waves

KEY = jax.random.key(0)
LOC, SCALE = np.array([100.0, -7.0]), np.array([3.0, 0.5])
UNITS = models.Standardize(LOC, SCALE)
GRAYS = models.GrayLevels(np.asarray(LEVELS) * 50.0 + 20.0, 20.0, 50.0)
LABELS = models.Labels(-1, 1)


def with_units(diffusion, units):
    return models.Diffusion(
        diffusion.process, diffusion.reverse, first_step=diffusion.first_step, levels=diffusion.levels, units=units
    )


def of(name):
    """A model, the same in units of data, and data of either."""
    plain, u = MODELS[name], datum_of(name)
    u = np.concatenate([u, u[:, ::-1]]) if "bern" in name else u.repeat(2, 0)
    units = LABELS if "bernoulli" in name else GRAYS if "quantized" in name else UNITS
    if units is GRAYS:
        u = np.array([[LEVELS[2], LEVELS[0]], [LEVELS[1], LEVELS[1]]])
    return plain, with_units(plain, units), u, np.asarray(units.to_data(u))


CASES = pytest.mark.parametrize("name", ["gaussian fixed", "gaussian quantized", "bernoulli learned"])
REALS = MODELS["gaussian fixed"]
IN_UNITS = with_units(REALS, UNITS)


# --- the map -------------------------------------------------------------------------------------------------------------


@CASES
def test_there_and_back_is_the_same_and_so_under_jit(name):
    _, united, u, x = of(name)
    np.testing.assert_allclose(united.to_chain(x), u, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(united.to_data(united.to_chain(x)), x)
    np.testing.assert_allclose(jax.jit(united.to_chain)(x), u, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(united.to_data)(u), x, rtol=1e-6)


def test_constants_are_in_float64_and_a_far_shift_loses_nothing():
    x = np.random.default_rng(0).normal(1e10, 1e6, (100, 2))
    units = models.Standardize.of(x, by_coordinate=True)
    u = units.to_chain(x)
    np.testing.assert_allclose(u, (x - x.mean(0)) / x.std(0), atol=1e-6)
    np.testing.assert_allclose(units.to_data(u), x, rtol=1e-15 + 1e-7 * 1e6 / 1e10)


def test_standardized_by_pooled_constants_or_by_coordinate():
    x = np.random.default_rng(0).normal([1.0, 100.0], [1.0, 20.0], (500, 2))
    assert models.Standardize.of(x).shape == ()
    pooled, each = models.Standardize.of(x).to_chain(x), models.Standardize.of(x, by_coordinate=True).to_chain(x)
    np.testing.assert_allclose([pooled.mean(), pooled.std()], [0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose([each.mean(0), each.std(0)], [[0.0, 0.0], [1.0, 1.0]], atol=1e-5)


def test_a_column_that_never_varies_keeps_its_size():
    units = models.Standardize.of(np.array([[3.0, 0.0, 1.0], [3.0, 0.0, 2.0]]), by_coordinate=True)
    assert units.scale == (3.0, 1.0, 0.5)


def test_gray_levels_are_found_whole_and_exact():
    images = np.array([[0, 5], [255, 3]])
    units = models.GrayLevels.of(images)
    assert units.grays == tuple(range(256))
    np.testing.assert_array_equal(units.to_chain(np.arange(256)), np.asarray(units.levels, np.float32))
    np.testing.assert_array_equal(jax.jit(units.to_chain)(np.arange(256)), np.asarray(units.levels, np.float32))
    np.testing.assert_array_equal(jax.jit(units.to_data)(jnp.asarray(units.levels)), np.arange(256))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: models.Standardize(0.0, 0.0), "scale must be positive"),
        (lambda: models.Standardize([0.0], 1.0), "must have one shape"),
        (lambda: models.Standardize.of(np.array([1.0, np.nan])), "must be finite"),
        (lambda: models.Labels(1, 1), "not 0"),
        (lambda: models.GrayLevels([1.0], 0.0, 1.0), "two or more"),
        (lambda: models.GrayLevels.of(np.ones(3)), "from 2 to 4,096 values"),
        (lambda: with_units(REALS, models.Standardize(np.zeros(3), np.ones(3))), "of the event shape"),
        (lambda: with_units(REALS, LABELS), "Labels are for bits"),
        (lambda: with_units(REALS, GRAYS), "must be Standardize for a model of densities"),
        (lambda: with_units(REALS, "cm"), "units must be a Units"),
    ],
)
def test_bad_units_are_refused_in_one_sentence(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_data_that_are_no_gray_level_are_refused():
    _, united, _, _ = of("gaussian quantized")
    with pytest.raises(ValueError, match="datum 0 has other values"):
        united.check_data(np.array([[20.0, 33.0]]))


# --- a model -------------------------------------------------------------------------------------------------------------


@CASES
def test_samples_are_those_of_the_model_scaled_by_hand(name):
    plain, united, _, _ = of(name)
    expected = united.units.to_data(np.asarray(plain.sample(KEY, 50)))
    drawn = united.sample(KEY, 50)
    assert drawn.dtype == np.float64
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_allclose(jax.jit(lambda key: united.sample(key, 50))(KEY), expected, rtol=1e-5)
    prior = numpyro.handlers.seed(lambda: numpyro.sample("x", united.prior()), KEY)()
    assert isinstance(prior, jax.Array)
    assert bool(united.prior().support(prior).all())


@pytest.mark.cases(2)
@CASES
def test_bounds_and_likelihoods_are_in_the_units_of_the_data(name):
    plain, united, u, x = of(name)
    jacobian = -np.log(SCALE).sum() if "fixed" in name else 0.0
    assert united.log_jacobian == pytest.approx(jacobian)

    def close(got, expected):
        np.testing.assert_allclose(got, np.asarray(expected) + jacobian, rtol=1e-4, atol=1e-4)

    close(united.null_log_prob(x), plain.null_log_prob(u))
    close(inference.evaluate(KEY, united, x).total, inference.evaluate(KEY, plain, u).total)
    close(inference.bound_terms(KEY, united, x).total, inference.bound_terms(KEY, plain, u).total)
    close(jax.jit(lambda x: inference.bound_terms(KEY, united, x).total)(x), inference.bound_terms(KEY, plain, u).total)
    whole = dict(whole_trajectories=True)
    close(inference.evaluate(KEY, united, x, **whole).total, inference.evaluate(KEY, plain, u, **whole).total)
    got, expected = (inference.marginal_log_likelihood(KEY, d, v) for d, v in ((united, x), (plain, u)))
    close(got.log_prob, expected.log_prob)
    np.testing.assert_allclose(got.se, expected.se, rtol=1e-3, atol=1e-6)
    assert got.unit == expected.unit
    path = plain.process.forward(jnp.asarray(u, float)).sample(KEY)
    weight = inference.likelihood.trajectory_log_weight
    close(weight(united, x, path), weight(plain, u, path))


@pytest.mark.long
def test_a_sandwich_is_of_data_in_their_units():
    got, expected = (inference.sandwich(KEY, d, 10, num_trajectories=4) for d in (IN_UNITS, REALS))
    np.testing.assert_allclose(got.x0, UNITS.to_data(expected.x0))
    np.testing.assert_allclose(got.lower, expected.lower - np.log(SCALE).sum(), atol=1e-4)
    np.testing.assert_allclose(got.upper, expected.upper - np.log(SCALE).sum(), atol=1e-4)


@pytest.mark.cases(1)
@CASES
def test_the_programs_score_data_in_their_units(name):
    plain, united, u, x = of(name)
    jacobian = united.log_jacobian * len(x)
    path = plain.process.forward(jnp.asarray(u, float)).sample(KEY)

    def score(diffusion, x0):
        program = numpyro.handlers.substitute(diffusion.model, {"trajectory": path})
        return numpyro.infer.util.log_density(program, (x0,), {}, {})[0]

    assert float(score(united, x)) == pytest.approx(float(score(plain, u)) + jacobian, abs=1e-3)
    drawn = numpyro.handlers.seed(united.model, KEY)()
    np.testing.assert_allclose(drawn, united.units.to_data(np.asarray(numpyro.handlers.seed(plain.model, KEY)())))
    bound = inference.TrajectoryBound(num_times=None)
    losses = [bound.loss(KEY, {}, d.model, d.guide, jnp.asarray(v, float)) for d, v in ((united, x), (plain, u))]
    assert float(losses[0]) == pytest.approx(float(losses[1]) - jacobian, rel=1e-3)


@pytest.mark.long
def test_a_path_and_a_flow_end_in_the_units_of_the_data():
    model = models.Diffusion(models.GaussianDiffusion(2, log_snr_linear(6)), models.VelocityPrediction(waves))
    united = with_units(model, UNITS)
    got, expected = (numpyro.handlers.seed(lambda d=d: models.sample_path("x", d), KEY)() for d in (united, model))
    np.testing.assert_allclose(got, UNITS.to_data(np.asarray(expected)), rtol=1e-5)
    u = jnp.array([[0.3, -0.4]])
    flows = united.flow(), model.flow()
    x = jnp.asarray(UNITS.to_data(u), float)
    np.testing.assert_allclose(flows[0].log_prob(x), flows[1].log_prob(u) - np.log(SCALE).sum(), atol=1e-4)
    np.testing.assert_allclose(
        flows[0].sample(KEY, (3,)), UNITS.to_data(np.asarray(flows[1].sample(KEY, (3,)))), rtol=1e-5
    )
    drawn, intermediates = flows[0].sample_with_intermediates(KEY, (3,))
    np.testing.assert_allclose(flows[0].log_prob(drawn, intermediates), flows[0].log_prob(drawn), atol=1e-3)


@CASES
def test_units_are_saved_with_the_model(name, tmp_path):
    _, united, _, _ = of(name)
    reverse = {"gaussian fixed": models.DriftVariance, "bernoulli learned": models.BitPrediction}
    network = models.networks.ResidualMLP((2,), (2, 2), 4, width=4, depth=1, key=KEY)
    if "bernoulli" in name:
        network = models.networks.ResidualMLP((3,), (3,), 4, width=4, depth=1, key=KEY)
    if "quantized" in name:
        network = models.networks.ResidualMLP((2,), (2, 3), 4, width=4, depth=1, key=KEY)
        kernel = models.LevelPrediction(network, GRAYS.levels)
    else:
        kernel = reverse[name](network)
    model = models.Diffusion(united.process, kernel, first_step=united.first_step, units=united.units)
    model.save(tmp_path / "model")
    loaded = models.Diffusion.load(tmp_path / "model")
    assert loaded.units == model.units
    np.testing.assert_array_equal(loaded.sample(KEY, 3), model.sample(KEY, 3))


def test_what_is_made_of_a_model_keeps_its_units():
    network = models.networks.ResidualMLP((2,), (2, 2), 8, width=4, depth=1, key=KEY)
    process = models.GaussianDiffusion(2, log_snr_linear(8))
    model = models.Diffusion(process, models.VelocityPrediction(network), units=UNITS)
    for made in (models.respace(model, 4), models.correlated(model), model.given(None)):
        assert made.units == UNITS
    assert model.with_units(None).units is None


# --- training ------------------------------------------------------------------------------------------------------------


def test_training_is_the_same_in_any_units():
    u = np.random.default_rng(0).normal(size=(200, 2)) @ np.array([[1.0, 0.5], [0.0, 0.5]])
    fits = {}
    for name, x in {"u": u, "small": 1e-3 * u, "large": 1e6 * u, "far": u + 1e4, "columns": u * [1e-3, 1e6]}.items():
        network = models.networks.ResidualMLP((2,), (2, 2), 10, width=8, depth=1, key=KEY)
        units = models.Standardize.of(x, by_coordinate=True)
        model = models.Diffusion(
            models.GaussianDiffusion(2, log_snr_linear(10)), models.VelocityPrediction(network), units=units
        )
        fit = inference.fit(
            KEY, model, x, validation=x[:50], holdout=x[:50], num_updates=100, log_every=1, progress=False
        )
        assert fit.diffusion.units == units
        fits[name] = fit.history["bound"] - model.log_jacobian, fit.holdout.mean - model.log_jacobian
        assert inference.Estimate.of(inference.evaluate(KEY, fit.diffusion, x[:50]).total).mean == pytest.approx(
            fit.holdout.mean, abs=0.5
        )
    for name in fits:
        np.testing.assert_allclose(fits[name][0], fits["u"][0], atol=1e-3)
        assert fits[name][1] == pytest.approx(fits["u"][1], abs=1e-3)


# --- posteriors ----------------------------------------------------------------------------------------------------------

Y = np.array([104.0, -7.2])
NOISE = np.array([2.0, 0.3])
LINEAR = np.array([[1.0, 2.0]])
OBSERVATIONS = {
    "normal": (
        inference.NormalObservation(Y, NOISE),
        inference.NormalObservation((Y - LOC) / SCALE, NOISE / SCALE),
        -np.log(SCALE).sum(),
    ),
    "one": (
        inference.NormalObservation([104.0, np.nan], 2.0),
        inference.NormalObservation([4.0 / 3.0, np.nan], 2.0 / 3.0),
        -np.log(3.0),
    ),
    "known": (inference.Known([np.nan, -7.2]), inference.Known([np.nan, -0.4]), -np.log(0.5)),
    "linear": (
        inference.LinearObservation([90.0], LINEAR, scale=1.5),
        inference.LinearObservation([90.0 - (LINEAR @ LOC)[0]], LINEAR * SCALE, scale=1.5),
        0.0,
    ),
    "function": (
        inference.Function(lambda x: -0.5 * jnp.square(x[0] - 104.0)),
        inference.Function(lambda u: -0.5 * jnp.square(100.0 + 3.0 * u[0] - 104.0)),
        0.0,
    ),
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_posteriors_are_those_of_data_scaled_by_hand(name):
    r, by_hand, constant = OBSERVATIONS[name]
    got, expected = (
        inference.ParticlePosterior(d, r, num_particles=300, num_repeats=2)
        for d, r in ((IN_UNITS, r), (REALS, by_hand))
    )
    got.run(KEY), expected.run(KEY)
    np.testing.assert_allclose(got.log_evidence.mean, expected.log_evidence.mean + constant, atol=2e-3)
    np.testing.assert_allclose(got.mean.mean, UNITS.to_data(expected.mean.mean), rtol=1e-3)
    assert got.get_samples()["x"].dtype == np.float64
    chains = (inference.multiply(d, r) for d, r in ((IN_UNITS, r), (REALS, by_hand)))
    draws = [jax.jit(lambda key, c=chain: c.sample(key, (20,)))(KEY) for chain in chains]
    np.testing.assert_allclose(draws[0], UNITS.to_data(np.asarray(draws[1])), rtol=1e-3, atol=1e-3)


def test_gray_levels_and_labels_are_observed_in_their_own_values():
    for name, value in (("gaussian quantized", 95.0), ("bernoulli learned", -1.0)):
        _, united, _, _ = of(name)
        size = united.event_shape[0]
        seen = np.full(size, np.nan)
        seen[0] = value
        posterior = inference.ParticlePosterior(united, inference.Known(seen), num_particles=200, num_repeats=2)
        posterior.run(KEY)
        draws = posterior.get_samples()["x"]
        assert (draws[:, 0] == value).all()
        assert set(np.unique(draws)) <= set(united.units.values())


def test_a_flipped_bit_of_other_labels_is_refused():
    _, united, _, _ = of("bernoulli learned")
    with pytest.raises(ValueError, match="bits that are called 0 and 1"):
        inference.multiply(united, inference.BernoulliObservation([0.0, 1.0, 1.0], 0.1))


def programs():
    def program(diffusion, loc, scale, y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal((x - loc) / scale + shift, 0.7).to_event(1), obs=y)

    y = jnp.array([0.5, -0.2])
    return [(program, (IN_UNITS, LOC, SCALE, y)), (program, (REALS, 0.0, 1.0, y))]


@pytest.mark.parametrize("kind", [pytest.param("gibbs", marks=pytest.mark.long), "metropolis"])
def test_composition_is_that_of_data_scaled_by_hand(kind):
    draws = []
    for program, args in programs():
        model = lambda args=args, program=program: program(*args)  # noqa: E731
        if kind == "gibbs":
            kernel = Gibbs([(inference.PathGibbs(model, num_particles=4), ["x"]), (numpyro.infer.NUTS(model), None)])
        else:
            kernel = inference.ParticleMetropolis(model, num_particles=10)
        mcmc = MCMC(kernel, num_warmup=3, num_samples=5, progress_bar=False)
        mcmc.run(KEY)
        draws.append(mcmc.get_samples())
    np.testing.assert_allclose(draws[0]["x"], UNITS.to_data(np.asarray(draws[1]["x"])), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(draws[0]["shift"], draws[1]["shift"], rtol=1e-2, atol=1e-2)


def test_a_program_whose_only_latent_is_in_units_is_inferred():
    def program(diffusion, noise, y):
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)

    got = inference.ParticlePosterior(lambda: program(IN_UNITS, NOISE, Y), num_particles=300, num_repeats=2)
    r, _, _ = OBSERVATIONS["normal"]
    expected = inference.ParticlePosterior(IN_UNITS, r, num_particles=300, num_repeats=2)
    got.run(KEY), expected.run(KEY)
    np.testing.assert_allclose(got.log_evidence.mean, expected.log_evidence.mean, atol=5e-3)
    np.testing.assert_allclose(got.mean.mean, expected.mean.mean, rtol=1e-3)


def test_units_are_code_to_jit_and_no_arrays():
    assert not jax.tree.leaves(eqx.filter(UNITS, eqx.is_array))
    assert models.Standardize(LOC, SCALE) == UNITS
