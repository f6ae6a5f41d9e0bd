"""A stack of draws has the laws of its draws, whatever the kernel, the plates and the number of rows."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import STANDARD_ERRORS
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

from nedm_ppl import models
from nedm_ppl.inference import PathGibbs
from nedm_ppl.inference.composition._composition import target_of
from nedm_ppl.models._stacked import stacked
from nedm_ppl.models.chain.schedules import FixedSchedule, LearnedSchedule, log_snr_linear
from tests.zoo import noise_of

SCHEDULE = FixedSchedule([0.1, 0.3, 0.2, 0.5])
GAUSSIAN = models.GaussianDiffusion((2,), SCHEDULE)
LEARNED = models.GaussianDiffusion((2,), LearnedSchedule(SCHEDULE))
BITS = models.BernoulliDiffusion((2,), SCHEDULE, rate=0.3)
LEVELS = (-1.0, 0.0, 1.5)
MIXTURE = models.BitMixture(jnp.array([[2.0, -1.0], [-1.0, 0.5], [0.3, 3.0]]), jnp.array([0.0, -0.4, 0.2]))
WEIGHTS = jnp.array([[0.1, -0.2, 0.5], [1.0, 0.0, -1.0]])


def twice(t, x):
    """Two outputs a coordinate, each mixing the two coordinates and told from the other."""
    return jnp.stack([jnp.sin(x) + 0.3 * x[::-1] + 0.1 * t, 0.3 * jnp.cos(x) - 0.4])


def three(t, x):
    return jnp.concatenate([twice(t, x), jnp.cos(x + t)[None]])


def six(t, x):
    return jnp.stack([three(t, x), -three(t, 0.5 * x)])


def once(t, x):
    """One output a coordinate, of any shape of x that a base makes."""
    x = x.reshape(2, -1).sum(axis=-1)
    return 0.7 * jnp.sin(x) - 0.4 * x[::-1] + 0.1 * t


def thrice(t, x):
    return once(t, x)[:, None] * jnp.array([0.5, -1.0, 0.2])


def correlated(t, x):
    return dist.MultivariateNormal(0.9 * x, 0.3 * jnp.array([[1.0, 0.8], [0.8, 1.0]]))


def blind(t, x):
    """A law that does not look at x has no batch axes."""
    return dist.Normal(jnp.array([0.3, -0.5]), 0.4).to_event(1)


def levels(**options):
    return models.Diffusion(GAUSSIAN, models.LevelPrediction(thrice, LEVELS, **options), first_step="quantized")


def bits(**options):
    return models.Diffusion(BITS, models.BitPrediction(once, **options), first_step="learned")


DIFFUSIONS = {
    "drift and variance": models.Diffusion(GAUSSIAN, models.DriftVariance(twice), first_step="learned"),
    "data": models.Diffusion(GAUSSIAN, models.DataPrediction(twice), first_step="learned"),
    "noise": models.Diffusion(GAUSSIAN, models.NoisePrediction(twice)),
    "velocity": models.Diffusion(GAUSSIAN, models.VelocityPrediction(twice), first_step="learned"),
    "velocity, learned rates": models.Diffusion(LEARNED, models.VelocityPrediction(twice), first_step="learned"),
    "velocity, quantized": models.Diffusion(
        GAUSSIAN, models.VelocityPrediction(twice), first_step="quantized", levels=LEVELS
    ),
    "drift and variance, quantized": models.Diffusion(
        GAUSSIAN, models.DriftVariance(twice), first_step="quantized", levels=LEVELS
    ),
    "levels": levels(),
    "levels, no evidence": levels(evidence=False),
    "levels, base": levels(base=WEIGHTS),
    "levels, base, no evidence": levels(base=WEIGHTS, evidence=False),
    "flip rate": models.Diffusion(BITS, models.FlipRate(once), first_step="learned"),
    "bits": bits(),
    "bits, no evidence": bits(evidence=False),
    "bits, base": bits(base=MIXTURE),
    "bits, base, no evidence": bits(base=MIXTURE, evidence=False),
    "callable": noise_of(GAUSSIAN),
    "correlated": models.Diffusion(GAUSSIAN, correlated, first_step="learned"),
    "directions": models.Diffusion(GAUSSIAN, models.VelocityPrediction(three, rank=1), first_step="learned"),
    "directions, quantized": models.Diffusion(
        GAUSSIAN, models.VelocityPrediction(three, rank=1), first_step="quantized", levels=LEVELS
    ),
    "by a Jacobian": models.correlated(
        models.Diffusion(GAUSSIAN, models.VelocityPrediction(twice), first_step="learned")
    ),
    "mixture": models.Diffusion(
        GAUSSIAN, models.MixturePrediction(models.VelocityPrediction(six), 2), first_step="learned"
    ),
    "mixture of bits": models.Diffusion(BITS, models.BitMixturePrediction(None, MIXTURE), first_step="learned"),
    "blind": models.Diffusion(GAUSSIAN, blind, first_step="learned"),
}
every_diffusion = pytest.mark.parametrize("name", DIFFUSIONS)


def states(diffusion, shape):
    draws = np.random.default_rng(len(shape)).normal(size=(*shape, 2))
    return jnp.asarray((draws > 0.0).astype(float) if diffusion.process.stationary().is_discrete else draws)


def data(diffusion, shape):
    draws = states(diffusion, shape)
    return draws if diffusion.levels is None else jnp.asarray(diffusion.levels)[(draws > 0.0).astype(int)]


def laws(diffusion, x):
    """Every law of a model at states x, and whether it is of data."""
    yield diffusion.process.step(3, x), False
    for t in (1, 2, 4):
        yield diffusion.kernel(t, x), False
        yield diffusion.data_law(t, x), diffusion.levels is not None
        yield diffusion.laws(t, x)[0], False
    yield diffusion.first_kernel(x), True


def assert_laws_of_a_stack(one, stack, plates, batch):
    x = states(one, (*batch, *plates))
    values = {False: states(one, (*batch, *plates))[..., ::-1], True: data(one, (*batch, *plates))}
    axes = tuple(range(len(batch), len(batch) + len(plates)))

    @jax.jit
    def log_probs_and_means(x):
        pairs = []
        for (apart, of_data), (together, _) in zip(laws(one, x), laws(stack, x), strict=True):
            assert (together.batch_shape, together.event_shape) == (batch, (*plates, 2))
            assert jax.eval_shape(together.sample, jax.random.key(0)).shape == x.shape
            value = values[of_data]
            pairs.append((together.log_prob(value), apart.log_prob(value).sum(axis=axes)))
            pairs.append((together.mean, apart.mean))
        return pairs

    for together, apart in log_probs_and_means(x):
        np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.cases(2)
@every_diffusion
@pytest.mark.parametrize("plates", [(), (1,), (2,), (3, 2)])
def test_the_law_of_a_stack_is_the_independent_laws(name, plates):
    one = DIFFUSIONS[name]
    stack = stacked(one, plates)
    assert stack.event_shape == (*plates, 2) and stack.levels == one.levels
    assert_laws_of_a_stack(one, stack, plates, (5,))


@pytest.mark.cases(2)
@pytest.mark.parametrize("plates", [(2,), (3, 2)])
@pytest.mark.parametrize("contexts", ["one", "each", "whole kernel"])
def test_contexts_are_the_rows_own(plates, contexts):
    def output(t, x, context):
        return twice(t, x) * (1.0 + context)

    def kernel(t, x, context):
        return dist.Normal(context[..., None] + 0.5 * x, 0.4).to_event(1)

    null = jnp.zeros(())
    reverse = models.Conditional(kernel, null)
    if contexts != "whole kernel":
        reverse = models.VelocityPrediction(models.Conditional(output, null))
    given = jnp.asarray(0.7) if contexts == "one" else jnp.arange(float(np.prod(plates))).reshape(plates)
    one = models.Diffusion(GAUSSIAN, reverse, first_step="learned").given(given)
    assert_laws_of_a_stack(one, stacked(one, plates), plates, (5,))


@pytest.mark.central
def test_a_stack_of_a_stack_and_gradients_of_its_network():
    network = models.networks.ResidualMLP((2,), (2, 2), 4, width=4, depth=1, key=jax.random.key(0))
    network = jax.tree.map(lambda a: a + 0.1, network)
    one = models.Diffusion(GAUSSIAN, models.VelocityPrediction(network), first_step="learned")
    x = states(one, (3, 2))
    twice_stacked = stacked(stacked(one, (2,)), (3,))

    @eqx.filter_jit
    def score(diffusion):
        return jnp.sum(diffusion.kernel(2, x).log_prob(x + 0.1))

    np.testing.assert_allclose(score(twice_stacked), score(one), rtol=1e-5)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda diffusion, plates: score(stacked(diffusion, plates))))
    both = [jax.tree.leaves(gradient(one, plates)) for plates in ((), (3, 2))]
    for first, second in zip(*both, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


# --- through particle Gibbs ---------------------------------------------------------------------------------------------

PROCESS = models.GaussianDiffusion((2,), log_snr_linear(4))
Y = jnp.array([[1.0, -1.0], [0.5, 2.0]])


def constant(t, x):
    return jnp.stack([jnp.full_like(x, 1.5), jnp.full_like(x, -2.0)])


def prior_moments(diffusion):
    """Mean and variance of a coordinate of x_0, all steps being Gaussian with an affine mean and a fixed variance."""
    mean, var = 0.0, 1.0
    for t in range(diffusion.num_steps, 0, -1):
        at_zero, at_one = (diffusion.kernel(t, jnp.full(2, x)) for x in (0.0, 1.0))
        slope = float((at_one.mean - at_zero.mean)[0])
        mean, var = float(at_zero.mean[0]) + slope * mean, slope**2 * var + float(at_zero.variance[0])
    return mean, var


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("kind", "outside"),
    [
        (models.VelocityPrediction, True),
        (models.DataPrediction, True),
        (functools.partial(models.NoisePrediction, bound=None), True),  # linear, as the truth below is
        (models.DriftVariance, True),
        (models.VelocityPrediction, False),
    ],
)
def test_particle_gibbs_alone_on_two_rows_observed_together_or_apart(kind, outside):
    diffusion = models.Diffusion(PROCESS, kind(constant), first_step="learned")

    def program():
        with numpyro.plate("rows", 2):
            x = numpyro.sample("x", diffusion.prior())
            if not outside:
                numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)
        if outside:
            numpyro.sample("y", dist.Normal(x.reshape(-1), 0.5), obs=Y.reshape(-1))

    mcmc = MCMC(PathGibbs(program), num_warmup=100, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = np.asarray(mcmc.get_samples()["x"], np.float64)[None]
    mean, var = prior_moments(diffusion)
    weight = var / (var + 0.25)
    truth = mean + weight * (np.asarray(Y) - mean)
    moments = np.stack([draws - truth, np.square(draws - truth) - 0.25 * weight])
    for moment in moments:
        error = moment.std(axis=(0, 1)) / np.sqrt(effective_sample_size(moment))
        assert np.all(np.abs(moment.mean(axis=(0, 1))) <= STANDARD_ERRORS * error)


# --- how a plate is taken -----------------------------------------------------------------------------------------------


def taken(program):
    """What PathGibbs found, and the target of a row."""
    kernel = PathGibbs(program, num_particles=2)
    kernel.init(jax.random.key(0), 0, None, (), {})
    return kernel._found, lambda row: target_of(program, kernel._found, (), {}, kernel._along, jnp.asarray(row))


@pytest.mark.parametrize(("step", "members"), [(0, 3), (1, None), (-1, None)])
def test_rows_are_apart_only_where_no_row_sees_one_before_or_after_it(step, members):
    one = noise_of(PROCESS)

    def program():
        with numpyro.plate("rows", 3):
            x = numpyro.sample("x", one.prior())[..., 0]
            other = jnp.concatenate([x[1:], x[-1:]]) if step == 1 else jnp.concatenate([x[:1], x[:-1]])
            numpyro.factor("tie", -jnp.square(x - other if step else x))

    assert taken(program)[0].num_members == members


def test_a_row_has_the_context_of_its_own():
    null = jnp.zeros(())
    reverse = models.Conditional(lambda t, x, context: dist.Normal(context[..., None] + 0.5 * x, 0.4).to_event(1), null)
    one = models.Diffusion(PROCESS, reverse, first_step="learned")

    def program():
        with numpyro.plate("rows", 3):
            x = numpyro.sample("x", one.given(jnp.array([1.0, 2.0, 4.0])).prior())
            numpyro.sample("y", dist.Normal(x[..., 0], 1.0), obs=jnp.zeros(3))

    found, target = taken(program)
    assert found.num_members == 3
    assert [float(target(row).diffusion.context) for row in range(3)] == [1.0, 2.0, 4.0]
