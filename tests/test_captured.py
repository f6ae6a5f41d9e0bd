"""Values that code holds are arrays of the program, wherever they are held: noticed, mapped, compiled, put back."""

import copy
import functools
import pickle
from collections import OrderedDict, namedtuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro.infer.gibbs import Gibbs

from nedm_ppl import inference, models
from nedm_ppl.models.chain._captured import combine, partition
from tests.zoo import noise_of

PROCESS = models.GaussianDiffusion((1,), models.schedules.log_snr_linear(3))
GLOBAL = {"value": None}
Pair = namedtuple("Pair", "first second")


def law(value, t, x):
    return dist.Normal(x + value, 0.5).to_event(1)


class Callable:
    def __init__(self, value):
        self.value = value

    def __call__(self, t, x):
        return law(self.value, t, x)

    def method(self, t, x):
        return law(self.value, t, x)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __call__(self, t, x):
        return law(self.value, t, x)


class Static(eqx.Module):
    function: object = eqx.field(static=True)

    def __call__(self, t, x):
        return self.function(t, x)


def in_a_default(value):
    def kernel(t, x, value=value):
        return law(value, t, x)

    return kernel


def in_a_keyword_default(value):
    def kernel(t, x, *, value=value):
        return law(value, t, x)

    return kernel


def in_an_attribute(value):
    def held(): ...

    held.value = value
    return lambda t, x: law(held.value, t, x)


def in_an_attribute_of_its_own(value):
    def kernel(t, x):
        return law(kernel.value, t, x)

    kernel.value = value
    return kernel


def in_a_global(value):
    GLOBAL["value"] = value
    return lambda t, x: law(GLOBAL["value"], t, x)


def in_a_global_of_another_function(value):
    GLOBAL["value"] = value

    def reads():
        return GLOBAL["value"]

    return lambda t, x: law(reads(), t, x)


def in_a_local_class(value):
    class Kernel:
        def __call__(self, t, x):
            return law(value, t, x)

    return Kernel()


def in_nested_containers(value):
    held = {"a": [OrderedDict(b=Pair(0, (value, "text")))], "c": {3}}
    return lambda t, x: law(held["a"][0]["b"].second[0], t, x)


HOLDERS = {
    "closure": lambda value: lambda t, x: law(value, t, x),
    "functools.partial": lambda value: functools.partial(law, value),
    "functools.partial, keyword": lambda value: functools.partial(lambda t, x, value: law(value, t, x), value=value),
    "jax Partial": lambda value: jax.tree_util.Partial(law, value),
    "callable object": Callable,
    "bound method": lambda value: Callable(value).method,
    "object with slots": Slotted,
    "default": in_a_default,
    "keyword default": in_a_keyword_default,
    "attribute": in_an_attribute,
    "global": in_a_global,
    "global of another function": in_a_global_of_another_function,
    "containers": in_nested_containers,
    "partial of a method of an object in a closure": lambda value: functools.partial(
        lambda f, t, x: f(t, x), Callable(value).method
    ),
    "static field of a module": lambda value: Static(lambda t, x: law(value, t, x)),
    "distribution": lambda value: (lambda shift: lambda t, x: dist.Normal(x + shift.loc, 0.5).to_event(1))(
        dist.Normal(value, 1.0)
    ),
}
SEALED = {
    "local class": in_a_local_class,
    "attribute of its own": in_an_attribute_of_its_own,
    "jit": lambda value: jax.jit(lambda t, x: law(value, t, x)),
    "eqx.filter_jit": lambda value: eqx.filter_jit(lambda t, x: law(value, t, x)),
}


def model(holder, value):
    return models.Diffusion(PROCESS, holder(value), first_step="learned")


@pytest.fixture(autouse=True)
def no_global():
    yield
    GLOBAL["value"] = None


@pytest.mark.central
@pytest.mark.parametrize("name", [*HOLDERS, *SEALED])
def test_a_latent_that_the_prior_depends_on_is_noticed_wherever_it_is_held(name):
    """x = 3 is N(weight, ...) given the weight: the weight's posterior is not its prior, which NUTS returned."""
    holder = (HOLDERS | SEALED)[name]

    def program():
        weight = numpyro.sample("weight", dist.Normal(0.0, 1.0))
        numpyro.sample("x", model(holder, weight).prior(), obs=jnp.array([3.0]))

    with pytest.raises(NotImplementedError, match="nor what its model depends on"):
        MCMC(NUTS(program), num_warmup=2, num_samples=2, progress_bar=False).run(jax.random.key(0))


@pytest.mark.cases(4)
@pytest.mark.parametrize("name", HOLDERS)
def test_chains_of_a_held_value_leave_vmap_and_jit_with_it(name):
    values, key = jnp.array([-2.0, 0.0, 3.0]), jax.random.key(0)
    path = jnp.array([0.3, -0.1, 0.4])[:, None]

    def chain(value):
        return model(HOLDERS[name], value).reverse_chain()

    expected = [chain(value).log_prob(path) for value in np.asarray(values)]
    chains = jax.vmap(chain)(values)
    assert chains.batch_shape == (3,)
    np.testing.assert_allclose(chains.log_prob(path), expected, rtol=1e-5)
    one = jax.jit(chain)(values[2])
    np.testing.assert_allclose(one.log_prob(path), expected[2], rtol=1e-5)
    np.testing.assert_allclose(one.sample(key), chain(3.0).sample(key), rtol=1e-5, atol=1e-5)
    priors = jax.vmap(lambda value: model(HOLDERS[name], value).prior())(values)
    assert priors.batch_shape == (3,)
    draws = priors.sample(key, (2,))
    alone = [
        model(HOLDERS[name], v).prior().sample(k, (2,))
        for v, k in zip(np.asarray(values), jax.random.split(key, 3), strict=True)
    ]
    np.testing.assert_allclose(draws, np.stack(alone, axis=1), rtol=1e-5, atol=1e-5)


def test_what_holds_nothing_traced_stays_the_same_object():
    held = np.ones(3)
    kernel = lambda t, x: law(held, t, x)  # noqa: E731
    arrays, static = partition({"kernel": kernel, "array": held})
    assert static["kernel"] is kernel and len(arrays) == 1
    assert combine(arrays, static)["array"] is held


def test_nuts_moves_a_latent_that_a_kernel_holds_where_the_prior_has_a_density():
    """x = 3 ~ N(weight, 1), weight ~ N(0, 1): the posterior is N(1.5, 1 / 2), with the kernel in functools.partial."""

    def kernel(weight, t, x):
        return dist.Normal(weight + 0.0 * x, 1.0).to_event(1)

    def program():
        weight = numpyro.sample("weight", dist.Normal(0.0, 1.0))
        held = functools.partial(kernel, weight)
        models.sample_path("x", models.Diffusion(PROCESS, held, first_step="learned"), centered=True)

    seen = numpyro.handlers.condition(program, {"x": jnp.array([3.0]), "x_path": jnp.full((3, 1), 1.5)})
    mcmc = MCMC(NUTS(seen), num_warmup=200, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(0))
    # Two states of the path and x_0 are three looks at the weight: 1.5, 1.5 and 3 with sd 1, and the prior's 0.
    weight = mcmc.get_samples()["weight"]
    np.testing.assert_allclose(weight.mean(), 1.5, atol=0.1)
    np.testing.assert_allclose(weight.std(), 0.5, atol=0.05)


@pytest.mark.central
def test_particle_methods_find_the_latent_too():
    def program():
        weight = numpyro.sample("weight", dist.Normal(0.0, 1.0))
        numpyro.sample("x", model(HOLDERS["functools.partial"], weight).prior())
        numpyro.sample("y", dist.Normal(weight, 1.0), obs=3.0)

    with pytest.raises(ValueError, match="must not depend on other latents; it depends on weight"):
        MCMC(Gibbs([(inference.PathGibbs(program), ["x"]), (NUTS(program), None)]), num_warmup=0, num_samples=1).run(
            jax.random.key(0)
        )


@pytest.mark.cases(1)
@pytest.mark.filterwarnings("ignore::nedm_ppl.models.NoDensityWarning")
@pytest.mark.parametrize("kind", ["prior", "reverse", "forward", "flow"])
def test_distributions_over_a_program_pickle(kind):
    network = models.networks.ResidualMLP((1,), (2, 1), 3, width=4, depth=1, key=jax.random.key(0))
    for reverse in (models.VelocityPrediction(network), PROCESS.step):
        diffusion = models.Diffusion(PROCESS, reverse, first_step="learned")
        one = {
            "reverse": diffusion.reverse_chain,
            "forward": lambda: PROCESS.forward(jnp.ones((2, 1))),
            "prior": diffusion.prior,
            "flow": diffusion.flow,
        }[kind]()
        check_copies(one)


def check_copies(one):
    for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert again.batch_shape == one.batch_shape and again.event_shape == one.event_shape
        draw = one.sample(jax.random.key(1))
        np.testing.assert_array_equal(again.sample(jax.random.key(1)), draw)
        np.testing.assert_array_equal(again.log_prob(draw), one.log_prob(draw))


def program(y):
    x = numpyro.sample("x", noise_of(PROCESS).prior())
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", ["program", "multiplier"])
def test_a_posterior_by_particles_pickles_before_and_after_its_run(kind):
    y, key = jnp.array([0.3]), jax.random.key(0)
    if kind == "program":
        posterior, args = inference.ParticlePosterior(program, num_particles=8), (y,)
    else:
        diffusion = noise_of(PROCESS)
        posterior, args = (
            inference.ParticlePosterior(diffusion, inference.NormalObservation(y, 0.5), num_particles=8),
            (),
        )
    fresh = pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)
    posterior.run(key, *args)
    for other in fresh:
        other.run(key, *args)
    for other in (*fresh, pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
        np.testing.assert_array_equal(other.get_samples()["x"], posterior.get_samples()["x"])
        assert other.log_evidence == posterior.log_evidence
