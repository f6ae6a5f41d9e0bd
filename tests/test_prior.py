"""A diffusion prior is a site like any other, but for its density, which whoever asks for a derivative is told."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import AIES, ESS, MCMC, NUTS, SA, Predictive
from numpyro.infer.elbo import get_importance_log_probs
from numpyro.infer.gibbs import Gibbs
from numpyro.infer.inspect import get_model_relations
from numpyro.infer.util import log_density

from nedm_ppl import inference, models
from tests.zoo import noise_of, white

GAUSSIAN = white(2, 4, start=3.0, end=-6.0)
PROCESS = GAUSSIAN.process
BITS = models.BernoulliDiffusion((3,), models.schedules.erasing(4), rate=0.3)
BERNOULLI = noise_of(BITS)


def both(y=None):
    """Two kinds of diffusion in one program, one of them in a plate."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    bits = numpyro.sample("bits", BERNOULLI.prior())
    with numpyro.plate("rows", 2):
        x = numpyro.sample("x", GAUSSIAN.prior())
        numpyro.sample("y", dist.Normal(x + jnp.sum(bits), scale).to_event(1), obs=y)


VALUES = {"scale": jnp.array(0.5), "bits": jnp.array([1.0, 0.0, 1.0]), "x": jnp.ones((2, 2))}


@pytest.mark.central
def test_under_numpyros_handlers():
    draws = Predictive(both, num_samples=3)(jax.random.key(0))
    assert draws["x"].shape == (3, 2, 2) and draws["bits"].shape == (3, 3) and draws["y"].shape == (3, 2, 2)
    assert np.isin(draws["bits"], (0.0, 1.0)).all()

    def drawn(key):
        return handlers.trace(handlers.seed(both, key)).get_trace()["x"]["value"]

    keys = jax.random.split(jax.random.key(1), 3)
    mapped = jax.vmap(drawn)(keys)
    np.testing.assert_allclose(mapped[1], drawn(keys[1]), rtol=1e-5, atol=1e-6)
    given = handlers.seed(handlers.condition(both, {"x": VALUES["x"]}), 0)
    assert handlers.trace(given).get_trace()["x"]["is_observed"]
    done = handlers.trace(handlers.do(handlers.seed(both, 0), {"bits": jnp.full(3, 7.0)})).get_trace()
    np.testing.assert_allclose(done["y"]["fn"].mean, done["x"]["value"] + 21.0, rtol=1e-6)
    assert np.isin(done["bits"]["value"], (0.0, 1.0)).all()


@pytest.mark.filterwarnings("ignore::nedm_ppl.models.NoDensityWarning")
def test_the_density_of_a_program_is_that_of_its_other_sites():
    joint, _ = log_density(both, (jnp.zeros((2, 2)),), {}, VALUES)
    rest = dist.HalfNormal(1.0).log_prob(0.5) + 4 * dist.Normal(3.0, 0.5).log_prob(0.0)
    np.testing.assert_allclose(joint, rest, rtol=1e-6)


def denoise(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    x = numpyro.sample("x", GAUSSIAN.prior())
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


def drawn_by(kernel, num_chains=1):
    mcmc = MCMC(
        kernel, num_warmup=2, num_samples=2, num_chains=num_chains, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), jnp.ones(2))


def by_importance():
    def guide(y):
        numpyro.sample("scale", dist.Delta(0.5))
        numpyro.sample("x", dist.Delta(jnp.ones(2), event_dim=1))

    get_importance_log_probs(handlers.seed(denoise, 0), handlers.seed(guide, 1), (jnp.ones(2),), {}, {})


FLAT = {
    "log_density": lambda: log_density(denoise, (jnp.ones(2),), {}, {"scale": jnp.array(0.5), "x": jnp.ones(2)}),
    "a density": lambda: GAUSSIAN.prior().log_prob(jnp.ones(2)),
    "a density in a plate": lambda: GAUSSIAN.prior().expand((3,)).to_event(1).log_prob(jnp.ones((3, 2))),
    "SA": lambda: drawn_by(SA(denoise)),
    "AIES": lambda: drawn_by(AIES(denoise), 6),
    "ESS": lambda: drawn_by(ESS(denoise), 6),
    "importance": by_importance,
}


@pytest.mark.filterwarnings("ignore:There are not enough devices")
@pytest.mark.parametrize("who", FLAT)
def test_what_takes_the_zero_for_a_flat_prior_is_told_once(who, monkeypatch):
    monkeypatch.setattr("nedm_ppl.models._prior._warned", False)
    with pytest.warns(models.NoDensityWarning, match=r"takes the zero.*PathGibbs.*Metropolis, or diffusion\.flow"):
        FLAT[who]()
    FLAT[who]()  # a second warning would be an error


def posterior_by_particles():
    given = handlers.condition(denoise, {"scale": jnp.array(0.5)})
    inference.ParticlePosterior(given, num_particles=50, num_repeats=2).run(jax.random.key(0), jnp.ones(2))


def predicted():
    Predictive(denoise, num_samples=2)(jax.random.key(0), None)
    Predictive(denoise, posterior_samples={"x": jnp.ones((2, 2))})(jax.random.key(0), None)


RIGHT = {
    "NUTS given the site": lambda: drawn_by(NUTS(handlers.condition(denoise, {"x": jnp.ones(2)}))),
    "NUTS, then PathGibbs": lambda: drawn_by(
        Gibbs([(NUTS(denoise), ["scale"]), (inference.PathGibbs(denoise), ["x"])])
    ),
    "PathGibbs, then NUTS": lambda: drawn_by(Gibbs([(inference.PathGibbs(denoise), ["x"]), (NUTS(denoise), None)])),
    "ParticleMetropolis": lambda: drawn_by(inference.ParticleMetropolis(denoise, num_particles=10)),
    "ParticlePosterior": posterior_by_particles,
    "Predictive": predicted,
    "relations": lambda: get_model_relations(denoise, (jnp.ones(2),)),
}


@pytest.mark.cases(1)
@pytest.mark.filterwarnings("ignore::nedm_ppl.inference.DoubtfulPosterior")
@pytest.mark.parametrize("who", RIGHT)
def test_what_needs_no_density_is_told_nothing(who, monkeypatch):
    monkeypatch.setattr("nedm_ppl.models._prior._warned", False)
    RIGHT[who]()  # warnings are errors
    assert not models._prior._warned


def nuts(program, *args):
    mcmc = MCMC(NUTS(program), num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    return mcmc.get_samples()


def test_nuts_beside_the_sites_runs_and_through_them_says_what_to_do():
    y = jnp.zeros((2, 2))
    given = handlers.condition(both, {name: VALUES[name] for name in ("bits", "x")})
    assert np.all(np.isfinite(nuts(given, y)["scale"]))
    with pytest.raises(NotImplementedError, match=r"ParticlePosterior.*PathGibbs.*Metropolis, or diffusion\.flow"):
        nuts(handlers.condition(both, {"bits": VALUES["bits"]}), y)
    with pytest.raises(RuntimeError, match="DiffusionPrior distribution at site bits does not have enumerate support"):
        nuts(handlers.condition(both, {"x": VALUES["x"]}), y)


def upstream(in_a_closure):
    weight = numpyro.sample("weight", dist.Normal(0.0, 1.0))
    if in_a_closure:
        kernel = lambda t, x: dist.Normal(weight * x, 0.5).to_event(1)  # noqa: E731
    else:
        kernel = jax.tree_util.Partial(lambda weight, t, x: dist.Normal(weight * x, 0.5).to_event(1), weight)
    numpyro.sample("x", models.Diffusion(PROCESS, kernel, first_step="learned").prior(), obs=jnp.zeros(2))


@pytest.mark.parametrize("in_a_closure", [False, True])
def test_a_latent_that_the_model_depends_on_is_noticed(in_a_closure):
    with pytest.raises(NotImplementedError, match="nor what its model depends on"):
        nuts(upstream, in_a_closure)


def test_draws_of_the_prior_are_the_models():
    prior = GAUSSIAN.prior()
    np.testing.assert_array_equal(prior.sample(jax.random.key(0), (3,)), GAUSSIAN.sample(jax.random.key(0), (3,)))
    assert prior.expand((4,)).sample(jax.random.key(0)).shape == (4, 2)
    assert not prior.has_enumerate_support and not prior.is_discrete
    bits = models.BernoulliDiffusion((2,), models.schedules.erasing(3))
    discrete = noise_of(bits).prior()
    assert discrete.is_discrete and not discrete.has_enumerate_support


@pytest.mark.filterwarnings("ignore::nedm_ppl.models.NoDensityWarning")
def test_values_and_batches_of_another_shape_are_refused():
    prior = GAUSSIAN.prior().expand((3,))
    assert prior.log_prob(jnp.zeros((5, 1, 2))).shape == (5, 3) and prior.log_prob(jnp.zeros(2)).shape == (3,)
    assert prior.expand((4, 3)).batch_shape == (4, 3) and GAUSSIAN.prior().expand(()).batch_shape == ()
    for shape in ((3,), (), (3, 4), (2, 2)):
        with pytest.raises(
            ValueError, match=re.escape("value must have shape (3, 2), with any batch axes that broadcast")
        ):
            prior.log_prob(jnp.zeros(shape))
    chain = GAUSSIAN.reverse_chain().expand((3,))
    for law in (prior, chain):
        for shape in ((), (2,), (3, 2), (1,)):
            with pytest.raises(ValueError, match=re.escape(f"(3,), broadcasts to; got {shape}")):
                law.expand(shape)


def test_priors_that_vmap_returned_are_asked_for_one_at_a_time():
    priors = jax.vmap(lambda bias: models.Diffusion(PROCESS, Shift(bias), first_step="learned").prior())(
        jnp.arange(3.0)
    )
    assert priors.batch_shape == (3,) and not priors.is_discrete and priors.support(jnp.zeros((3, 2))).all()
    with pytest.raises(ValueError, match="prior must be one, where its parts are asked for; got 3 of them"):
        _ = priors.diffusion
    assert jax.tree.map(lambda leaf: leaf[1], priors).diffusion.reverse.bias == 1.0


class Shift(eqx.Module):
    bias: jax.Array

    def __call__(self, t, x):
        return dist.Normal(x + self.bias, 1.0).to_event(1)
