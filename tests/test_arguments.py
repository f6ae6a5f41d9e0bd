"""What every entry that takes data, keys or counts refuses, in one sentence; and what it takes as it was typed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl import arguments, data, inference, models
from tests.zoo import white

KEY = jax.random.key(0)
WHITE = white(2, 3)
PROCESS = WHITE.process
NETWORK = models.networks.ResidualMLP((2,), (2, 2), 3, width=4, depth=1, key=KEY)
MODEL = models.Diffusion(PROCESS, models.DriftVariance(NETWORK))
LABELLED = models.Diffusion(
    PROCESS, models.DriftVariance(models.Conditional(lambda t, x, c: 0.1 * jnp.stack([x, x]) * c, 0))
)
DATA = np.array([[1.0, -1.2], [0.4, 0.1], [-0.5, 1.6], [1.3, 0.9], [-0.7, -1.3], [-0.6, 0.0]], np.float32)
FOUND = inference.Classification(np.zeros((6, 2)), np.zeros((6, 2)), np.log([0.5, 0.5]))


def fit(data, **options):
    return inference.fit(KEY, MODEL, data, **({"num_updates": 2, "batch_size": 3, "progress": False} | options))


TAKE_DATA = {
    "evaluate": lambda x: inference.evaluate(KEY, MODEL, x),
    "marginal_log_likelihood": lambda x: inference.marginal_log_likelihood(KEY, MODEL, x, num_trajectories=2),
    "classify": lambda x: inference.classify(KEY, LABELLED, x, [0, 1]),
    "entropy_bounds": lambda x: inference.entropy_bounds(PROCESS, x),
    "fit": fit,
    "fit, validation": lambda x: fit(DATA, validation=x),
    "fit, holdout": lambda x: fit(DATA, holdout=x),
}
TAKE_VALUES = TAKE_DATA | {
    "bound_terms": lambda x: inference.bound_terms(KEY, MODEL, x),
    "trajectory_log_weight": lambda x: inference.likelihood.trajectory_log_weight(MODEL, x, np.zeros((6, 3, 2))),
    "Estimate.of": inference.Estimate.of,
    "pareto_k": inference.likelihood.pareto_k,
    "from_log_weights": inference.LogLikelihood.from_log_weights,
    "calibration_error": lambda x: inference.calibration_error(x, np.zeros(6, int)),
    "accuracy": lambda x: FOUND.accuracy(np.ma.array(np.zeros(6, int), mask=x.mask[:, 0])),
    "contexts": lambda x: inference.evaluate(
        KEY, LABELLED, DATA, context=np.ma.array(np.zeros(6, int), mask=x.mask[:, 0])
    ),
    "a list of rows": lambda x: inference.evaluate(KEY, MODEL, list(x)),
}


@pytest.mark.parametrize("name", TAKE_VALUES)
def test_masked_values_are_refused_and_counted(name):
    mask = np.zeros((6, 2), bool)
    mask[1:3, 0] = True
    with pytest.raises(ValueError, match=r"must hold no masked values; got 2 of (6|12|4) masked"):
        TAKE_VALUES[name](np.ma.array(DATA, mask=mask))


def test_an_array_that_could_mask_and_does_not_is_an_array():
    masked = inference.evaluate(KEY, WHITE, np.ma.array(DATA)).total
    np.testing.assert_array_equal(masked, inference.evaluate(KEY, WHITE, DATA).total)


@pytest.mark.parametrize("size", [1e19, -1e20])
@pytest.mark.parametrize("name", TAKE_DATA)
def test_values_whose_squares_overflow_are_refused(name, size):
    message = f"must be at most 3e+15 in size, beyond which its squares overflow; got {abs(size):.3g}"
    with pytest.raises(ValueError, match=re.escape(message)):
        TAKE_DATA[name](np.where(np.arange(12).reshape(6, 2) == 3, size, DATA))


@pytest.mark.filterwarnings("ignore:x0 should be in the units of the model")
def test_values_as_large_as_are_taken_have_finite_bounds_and_flagged_likelihoods():
    """At 1e15 a log weight is -1e30, its digits 1e23 nats apart: a number, an error of that size, and a flag."""
    data = np.full((2, 2), 1e15)
    assert np.all(np.isfinite(inference.evaluate(KEY, WHITE, data).total))
    result = inference.marginal_log_likelihood(KEY, WHITE, data, num_trajectories=64)
    assert result.flagged.all() and np.all(result.se > 1e20) and not np.any(np.isneginf(result.k_hat))


TRACED = {
    "evaluate": (lambda x: inference.evaluate(KEY, MODEL, x).total, "inference.bound_terms"),
    "marginal_log_likelihood": (
        lambda x: inference.marginal_log_likelihood(KEY, MODEL, x).log_prob,
        "inference.likelihood.trajectory_log_weight",
    ),
    "classify": (
        lambda x: inference.classify(KEY, LABELLED, x, [0, 1]).log_prob,
        "inference.likelihood.trajectory_log_weight",
    ),
    "sandwich": (
        lambda x: inference.sandwich(jax.random.key(x[0, 0].astype(int)), MODEL, 2).lower,
        "inference.likelihood.trajectory_log_weight",
    ),
    "entropy_bounds": (lambda x: inference.entropy_bounds(PROCESS, x).lower, "step_entropy"),
    "fit": (lambda x: fit(x).seconds, "inference.TrajectoryBound"),
    "ParticlePosterior, data": (
        lambda x: posterior_of(KEY, lambda y: inference.NormalObservation(y, 0.5), x[0]),
        "inference.posterior.particle_filter",
    ),
    "ParticlePosterior, key": (
        lambda x: posterior_of(jax.random.key(x[0, 0].astype(int)), inference.NormalObservation(DATA[0], 0.5)),
        "inference.posterior.particle_filter",
    ),
    "ParticlePosterior, closure": (
        lambda x: posterior_of(KEY, lambda z: -jnp.sum((z - x[0]) ** 2)),
        "inference.posterior.particle_filter",
    ),
    "ParticlePosterior, multiplier": (
        lambda x: posterior_of(KEY, inference.NormalObservation(x[0], 0.5)),
        "inference.posterior.particle_filter",
    ),
    "ParticlePosterior, batch": (
        lambda x: inference.ParticlePosterior(
            WHITE, lambda y: inference.NormalObservation(y, 0.5), num_particles=4
        ).run_batch(KEY, x),
        "inference.posterior.particle_filter",
    ),
}


def posterior_of(key, r, *args):
    posterior = inference.ParticlePosterior(WHITE, r, num_particles=4, num_repeats=2)
    posterior.run(key, *args)
    return posterior.log_evidence.mean


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", TRACED)
def test_conveniences_that_cannot_be_traced_name_what_can(name):
    function, pure = TRACED[name]
    message = rf"{name.split(',')[0]} cannot be traced: .* Under jit, vmap or grad use .*{re.escape(pure)}"
    for traced in (jax.jit(function), jax.vmap(lambda x: function(x[None]))):
        with pytest.raises(ValueError, match=message):
            traced(jnp.asarray(DATA))


@pytest.mark.central
def test_the_pure_functions_run_under_jit_and_vmap():
    def bound(key, x):
        return inference.bound_terms(key, WHITE, x).total

    def weigh(key, x):
        return inference.likelihood.trajectory_log_weight(WHITE, x, PROCESS.forward(x).sample(key))

    def evidence(key, x):
        target = inference.multiply(WHITE, inference.NormalObservation(x, 0.5))
        return inference.posterior.particle_filter(key, target, 8).log_evidence

    keys, data = jax.random.split(KEY, 6), jnp.asarray(DATA)
    for function in (bound, weigh, evidence):
        alone = jax.jit(function)
        one_by_one = np.stack([alone(key, x) for key, x in zip(keys, data, strict=True)])
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(keys, data), one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.central
def test_whole_numbers_are_taken_as_they_are_typed():
    plain = inference.marginal_log_likelihood(KEY, WHITE, DATA, num_trajectories=4, batch_size=8)
    typed = inference.marginal_log_likelihood(KEY, WHITE, DATA, num_trajectories=4.0, batch_size=np.float64(8.0))
    np.testing.assert_array_equal(plain.log_weights, typed.log_weights)
    assert inference.evaluate(KEY, WHITE, DATA, batch_size=3.0, num_times=2.0).times.shape == (2, 6)
    assert arguments.as_count("n", 1e3) == 1000


@pytest.mark.parametrize("value", [2.5, "12", None, True, np.nan, np.inf, [3], 0])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError, match=re.escape(f"n must be an integer of at least 1; got {value!r}.")):
        arguments.as_count("n", value)


CALLS = {
    "evaluate": lambda key, model: inference.evaluate(key, model, DATA),
    "marginal_log_likelihood": lambda key, model: inference.marginal_log_likelihood(key, model, DATA),
    "sandwich": lambda key, model: inference.sandwich(key, model, 2),
    "fit": lambda key, model: inference.fit(key, model, DATA, num_updates=2),
    "classify": lambda key, model: inference.classify(key, model, DATA, [0, 1]),
}


def test_a_posteriors_key_is_named():
    for key, got in ((7, "the integer 7. Use jax.random.key(7)"), (None, "a NoneType")):
        with pytest.raises(
            ValueError, match=re.escape(f"rng_key must be one random key, such as jax.random.key(0); got {got}")
        ):
            posterior_of(key, inference.NormalObservation(DATA[0], 0.5))


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_key_and_no_model_is_named(name):
    for key, got in (
        (7, "the integer 7. Use jax.random.key(7)"),
        (MODEL, "a Diffusion. The key comes first"),
        (jax.random.split(KEY, 3), "keys of shape (3,)"),
        (None, "a NoneType"),
    ):
        message = f"rng_key must be one random key, such as jax.random.key(0); got {got}"
        with pytest.raises(ValueError, match=re.escape(message)):
            CALLS[name](key, MODEL)
    with pytest.raises(ValueError, match=re.escape("diffusion must be a Diffusion; got a GaussianDiffusion.")):
        CALLS[name](jax.random.PRNGKey(0), PROCESS)


BITS = models.BernoulliDiffusion((2,), models.schedules.erasing(3))
SMALL = {"width": 4, "depth": 1, "key": KEY}
SHAPES = {
    "process": lambda: models.GaussianDiffusion(3, PROCESS.schedule).event_shape == (3,),
    "process, typed as a list of floats": lambda: (
        models.BernoulliDiffusion([2.0, 3], BITS.schedule).event_shape == (2, 3)
    ),
    "sample": lambda: WHITE.sample(KEY, 5).shape == WHITE.sample(KEY, [5]).shape == (5, 2),
    "sample_trajectory": lambda: WHITE.sample_trajectory(KEY, 5.0).shape == (5, 4, 2),
    "chain": lambda: WHITE.reverse_chain().sample(KEY, 5).shape == (5, 3, 2),
    "chain's end": lambda: WHITE.reverse_chain().sample_end(KEY, 5).shape == (5, 2),
    "chain's times": lambda: (
        models.MarkovChain(PROCESS.stationary(), PROCESS.step, first=1.0, last=3.0).event_shape == (3, 2)
    ),
    "prior": lambda: WHITE.prior().sample(KEY, 5).shape == WHITE.prior().expand(5).sample(KEY).shape == (5, 2),
    "flow": lambda: WHITE.flow(KEY, num_probes=2.0).sample(KEY, 5).shape == (5, 2),
    "schedules": lambda: (
        {
            build(1e1).num_steps
            for build in (
                models.schedules.erasing,
                models.schedules.log_snr_linear,
                models.schedules.log_snr_logistic,
                models.schedules.cosine,
            )
        }
        == {10}
    ),
    "networks": lambda: models.networks.ResidualMLP(2, (2, 2), 3.0, **SMALL | {"width": 4.0}).num_steps == 3,
    "respace": lambda: (
        models.respace(models.Diffusion(PROCESS, models.VelocityPrediction(NETWORK)), 2.0).num_steps == 2
    ),
    "objective": lambda: inference.TrajectoryBound(2.0).num_times == 2,
    "data": lambda: data.swiss_roll(0, 1e1).shape == data.heartbeat(0, 10.0)[:, :2].shape == (10, 2),
}


@pytest.mark.cases(4)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_counts_are_taken_as_they_are_typed(name):
    assert SHAPES[name]()


NO_SHAPES = {
    "event_shape": lambda v: models.GaussianDiffusion(v, PROCESS.schedule),
    "sample_shape": lambda v: WHITE.sample(KEY, v),
    "batch_shape": lambda v: WHITE.prior().expand(v),
}


@pytest.mark.parametrize("value", [2.5, "2", (2, -1), None, (1.5,), PROCESS.schedule])
@pytest.mark.parametrize("name", NO_SHAPES)
def test_what_is_no_shape_is_named(name, value):
    got = "a FixedSchedule" if value is PROCESS.schedule else "a NoneType" if value is None else repr(value)
    with pytest.raises(
        ValueError, match=rf"{name} must be a shape, a tuple of integers of at least \d; got {re.escape(got)}\."
    ):
        NO_SHAPES[name](value)


KEYS = {
    "Diffusion.sample": lambda key: WHITE.sample(key, (3,)),
    "Diffusion.sample_trajectory": lambda key: WHITE.sample_trajectory(key, (3,)),
    "Diffusion.flow": lambda key: WHITE.flow(key),
    "MarkovChain.sample": lambda key: WHITE.reverse_chain().sample(key),
    "MarkovChain.sample_end": lambda key: WHITE.reverse_chain().sample_end(key),
    "prior": lambda key: WHITE.prior().sample(key),
    "flow": lambda key: WHITE.flow().sample(key),
    "bound_terms": lambda key: inference.bound_terms(key, WHITE, DATA),
    "fit_bit_mixture": lambda key: models.fit_bit_mixture(key, np.ones((4, 2)), 2),
    "RBF": lambda key: models.networks.RBF((2,), (2, 2), 3, key=key),
    "SigmoidMLP": lambda key: models.networks.SigmoidMLP((2,), (2, 2), 3, key=key),
    "ResidualMLP": lambda key: models.networks.ResidualMLP((2,), (2, 2), 3, key=key),
    "PatchTransformer": lambda key: models.networks.PatchTransformer((2, 2), (2, 2), 3, key=key),
}


@pytest.mark.parametrize("name", KEYS)
def test_an_integer_and_a_tuple_for_a_key_are_named(name):
    for key, got in ((7, r"the integer 7\. Use jax\.random\.key\(7\)"), ((3,), "a tuple")):
        with pytest.raises(ValueError, match=rf"key must be one random key, such as jax.random.key\(0\); got {got}"):
            KEYS[name](key)


SWAPPED = {
    "process": (lambda: models.GaussianDiffusion(PROCESS.schedule, (2,)), "schedule must be a Schedule; got a tuple."),
    "bits": (lambda: models.BernoulliDiffusion(BITS.schedule, 2), "schedule must be a Schedule; got a int."),
    "Diffusion": (
        lambda: models.Diffusion(PROCESS.step, PROCESS),
        "process must be a DiffusionProcess; got a BoundMethod.",
    ),
    "no kernel": (
        lambda: models.Diffusion(PROCESS, 3),
        "reverse must be a parameterization of a network, or a callable",
    ),
    "MarkovChain": (
        lambda: models.MarkovChain(PROCESS.step, PROCESS.stationary(), first=1, last=3),
        "initial must be a Distribution; got a BoundMethod.",
    ),
    "bound_terms": (lambda: inference.bound_terms(KEY, DATA, MODEL), "diffusion must be a Diffusion; got a ndarray."),
    "evaluate": (lambda: inference.evaluate(KEY, DATA, MODEL), "diffusion must be a Diffusion; got a ndarray."),
    "marginal_log_likelihood": (
        lambda: inference.marginal_log_likelihood(KEY, DATA, MODEL),
        "diffusion must be a Diffusion; got a ndarray.",
    ),
    "trajectory_log_weight": (
        lambda: inference.likelihood.trajectory_log_weight(DATA, MODEL, DATA),
        "diffusion must be a Diffusion; got a ndarray.",
    ),
    "respace": (lambda: models.respace(2, MODEL), "diffusion must be a Diffusion; got a int."),
    "guided": (lambda: models.guided(2.0, LABELLED), "diffusion must be a Diffusion; got a float."),
    "sample_path": (
        lambda: models.sample_path(MODEL, "x"),
        "name must be a string and diffusion a Diffusion, in this order",
    ),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_swapped_arguments_are_named(name):
    call, message = SWAPPED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
