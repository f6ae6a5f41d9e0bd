"""A NumPyro run as ArviZ data, with what its program says of the observations."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import assert_mean
from numpyro.infer import MCMC, NUTS
from scipy import stats

from nedm_ppl import inference
from tests.zoo import white

Y = np.array([0.5, -1.0, 2.0], np.float32)
COUNTS = np.array([3, 0])


def program(y, *, counts=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    numpyro.deterministic("twice", 2.0 * level)
    numpyro.factor("tilt", -0.1 * level**2)
    with numpyro.plate("rows", 3):
        numpyro.sample("y", dist.Normal(level, 0.5), obs=y)
    if counts is not None:
        numpyro.sample("counts", dist.Poisson(jnp.exp(level)).expand([2]).to_event(1), obs=counts)


@pytest.fixture(scope="module")
def run():
    mcmc = MCMC(
        NUTS(program), num_warmup=50, num_samples=400, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), Y, counts=COUNTS, extra_fields=("diverging",))
    return mcmc


@pytest.mark.central
def test_every_observation_has_its_log_likelihood_its_data_and_draws(run):
    data = inference.mcmc_to_arviz(run, program, (Y,), {"counts": COUNTS}, predictive=jax.random.key(1))
    level = data.posterior["level"].to_numpy()
    assert level.shape == (2, 400) and data.sample_stats["diverging"].shape == (2, 400)
    found = data.log_likelihood
    assert set(found.data_vars) == {"y", "counts"} and found["y"].dims == ("chain", "draw", "y_dim_0")
    np.testing.assert_allclose(found["y"], stats.norm.logpdf(Y, level[..., None], 0.5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found["counts"], stats.poisson.logpmf(COUNTS, np.exp(level)[..., None]).sum(-1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(data.observed_data["y"], Y)
    np.testing.assert_array_equal(data.observed_data["counts"], COUNTS)
    # Draws are of the law given each draw of the latents: residuals are standard normal, and no observation's own.
    drawn = data.posterior_predictive
    residual = ((drawn["y"].to_numpy() - level[..., None]) / 0.5).reshape(-1)
    assert_mean(np.stack([residual, residual**2], axis=-1), [0.0, 1.0])
    assert_mean((drawn["counts"].to_numpy() - np.exp(level)[..., None]).reshape(-1), 0.0)


def test_groups_are_those_that_were_asked_for(run):
    assert not hasattr(inference.mcmc_to_arviz(run), "log_likelihood")
    with_program = inference.mcmc_to_arviz(run, program, (Y,), {"counts": COUNTS})
    assert hasattr(with_program, "log_likelihood") and not hasattr(with_program, "posterior_predictive")


def test_a_diffusion_site_is_a_latent_like_others():
    def seen(y):
        x = numpyro.sample("x", white(2, 3).prior())
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = jnp.array([1.0, -1.0])
    mcmc = MCMC(inference.PathGibbs(seen, num_particles=2), num_warmup=2, num_samples=50, progress_bar=False)
    mcmc.run(jax.random.key(0), y)
    data = inference.mcmc_to_arviz(mcmc, seen, (y,), predictive=jax.random.key(1))
    x = data.posterior["x"].to_numpy()
    np.testing.assert_allclose(data.log_likelihood["y"], stats.norm.logpdf(y, x, 0.5).sum(-1), rtol=1e-4)
    assert data.posterior_predictive["y"].shape == (1, 50, 2)


def other(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("height", dist.Normal()), 1.0), obs=y)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((), {"predictive": jax.random.key(0)}, "program must be given"),
        ((None, (Y,)), {}, "program must be given"),
        ((program, (None,)), {}, "must have an observed site"),
        ((other, (Y,)), {}, "there are none of height"),
        ((program, (Y,)), {"predictive": 3}, "rng_key"),
    ],
)
def test_what_does_not_go_together_is_refused(run, given, options, message):
    with pytest.raises(ValueError, match=message):
        inference.mcmc_to_arviz(run, *given, **options)
