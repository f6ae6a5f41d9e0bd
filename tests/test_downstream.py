"""What moves particles of a Gaussian program is the program's own density, up to a constant: offsets, scales and masks included."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from nedm_ppl.inference.posterior._downstream import Downstream, diffusion_site, guide
from tests.zoo import white

MODEL = white(3, 4)
PROCESS = MODEL.process


def looks(x):
    with handlers.scale(scale=3.0):
        numpyro.sample("y", dist.Normal(2.0 * x + 1.0, 0.8).to_event(1), obs=jnp.array([0.5, -1.0, 2.0]))
    numpyro.sample("again", dist.Normal(x[1] - 0.3, 0.5), obs=0.7)


def masked(x):
    seen = jnp.array([True, False, True])
    numpyro.sample("y", dist.Normal(x - 0.5, 0.4).mask(seen).to_event(1), obs=jnp.array([0.5, -1.0, 2.0]))


def rows(x):
    with handlers.scale(scale=0.4):
        numpyro.sample("sum", dist.Normal(x.sum() + 2.0, 0.7), obs=1.0)
    matrix, noise = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), jnp.array([[0.5, 0.2], [0.2, 0.4]])
    with handlers.scale(scale=2.0):
        numpyro.sample("pair", dist.MultivariateNormal(matrix @ x - 1.0, noise), obs=jnp.array([0.3, -0.6]))


def other_families(x):
    with handlers.scale(scale=2.5):
        numpyro.sample(
            "coins", dist.Bernoulli(logits=2.0 * x[jnp.array([0, 0, 2])]).to_event(1), obs=jnp.array([1, 0, 1])
        )


@pytest.mark.central
@pytest.mark.cases(3)
@pytest.mark.parametrize("part", [looks, masked, rows, other_families])
@pytest.mark.parametrize("as_rows", [False, True])
def test_the_guide_of_what_is_recognized_is_the_density(part, as_rows, x64):
    def program():
        part(numpyro.sample("x", MODEL.prior()))

    found = diffusion_site(program, (), {})
    assert not found.roles.rest
    whole = Downstream(program, "x", (), {}, found.roles.apart)
    moving = guide(whole, found.roles, (3,), rows=as_rows)
    x = jax.random.normal(jax.random.key(0), (20, 3))
    moves, weighs = map(np.asarray, jax.jit(lambda x: (jax.vmap(moving.log_r)(x), jax.vmap(whole.log_r)(x)))(x))
    difference = moves - weighs
    np.testing.assert_allclose(difference, difference[0], atol=1e-6)
    assert np.ptp(weighs) > 1.0


GATED = {
    "a constant noise": (lambda x: numpyro.sample("y", dist.Normal(2.0 * x[0], 0.5), obs=0.3), True),
    "a noise that depends on x": (
        lambda x: numpyro.sample("y", dist.Normal(2.0 * x[0], jnp.where(x[0] > 1.0, 2.0, 0.3)), obs=0.3),
        False,
    ),
    "a covariance that depends on x": (
        lambda x: numpyro.sample("y", dist.MultivariateNormal(x[:1], jnp.exp(x[:1, None])), obs=jnp.array([0.3])),
        False,
    ),
    "a mask that depends on x": (
        lambda x: numpyro.sample("y", dist.Normal(x[0], 0.5).mask(x[0] > 1.0), obs=0.3),
        False,
    ),
}


@pytest.mark.central
@pytest.mark.parametrize("name", GATED)
def test_a_mean_is_linear_only_where_noise_and_power_are_given(name):
    part, is_linear = GATED[name]
    roles = diffusion_site(lambda: part(numpyro.sample("x", MODEL.prior())), (), {}).roles
    assert bool(roles.direct or roles.linear) == is_linear and bool(roles.by_coordinate) == (not is_linear)
