"""What the package relies on of NumPyro and JAX beyond their documented interfaces."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO, TraceGraph_ELBO
from numpyro.infer.elbo import get_importance_log_probs
from numpyro.infer.util import log_density

from nedm_ppl import _compat

pytestmark = pytest.mark.central


def test_a_value_inside_jit_is_a_tracer_and_outside_none():
    seen = []
    jax.jit(lambda x: seen.append(isinstance(x, _compat.Tracer)) or x)(1.0)
    assert seen == [True] and not isinstance(jnp.ones(()), _compat.Tracer)


def test_a_jaxpr_has_equations_whose_constants_are_literals():
    closed = jax.make_jaxpr(lambda x: x * 2.0)(1.0)
    assert isinstance(closed, _compat.ClosedJaxpr)
    (equation,) = closed.jaxpr.eqns
    assert equation.primitive.name == "mul"
    (literal,) = [var for var in equation.invars if isinstance(var, _compat.Literal)]
    assert literal.val == 2.0


def test_provenance_says_which_names_an_output_depends_on():
    found = _compat.eval_provenance(lambda x, y, z: {"sum": x + y, "z": z}, x=1.0, y=2.0, z=3.0)
    assert found["sum"] == frozenset({"x", "y"}) and found["z"] == frozenset({"z"})


def test_sums_over_the_last_axes_and_none():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(_compat.sum_rightmost(x, 2), x.sum(axis=(1, 2)))
    np.testing.assert_array_equal(_compat.sum_rightmost(x, 0), x)


def test_a_scale_of_one_is_told_from_another():
    assert _compat.is_identically_one(1) and _compat.is_identically_one(1.0) and not _compat.is_identically_one(2.0)


def test_a_mask_is_an_array_or_says_all_or_none():
    mask = jnp.array([True, False])
    np.testing.assert_array_equal(_compat.mask_of(dist.Normal(jnp.zeros(2), 1.0).mask(mask)), mask)
    assert _compat.mask_of(dist.Normal(0.0, 1.0).mask(False)) is False


def test_values_outside_the_support_are_reported_where_arguments_are_validated():
    class Half(dist.Distribution):
        support = dist.constraints.positive

        @_compat.validate_sample
        def log_prob(self, value):
            return -value

    with pytest.warns(UserWarning, match="Out-of-support"):
        Half(validate_args=True).log_prob(-1.0)
    assert Half(validate_args=False).log_prob(-1.0) == 1.0


def test_a_first_value_is_a_draw_of_the_site():
    def program():
        numpyro.sample("x", dist.Normal(100.0, 0.1))

    filled = handlers.substitute(handlers.seed(program, jax.random.key(0)), substitute_fn=_compat.init_to_sample)
    assert abs(handlers.trace(filled).get_trace()["x"]["value"] - 100.0) < 1.0


def test_a_module_of_equinox_is_one_parameter_of_a_program():
    def program():
        return _compat.eqx_module("linear", eqx.nn.Linear(2, 1, key=jax.random.key(0)))

    trace = handlers.trace(program).get_trace()
    assert set(trace) == {"linear$params"} and trace["linear$params"]["type"] == "param"


def test_a_messenger_sees_every_site():
    seen = []

    class Watch(_compat.Messenger):
        def process_message(self, msg):
            seen.append(msg["name"])

    with handlers.seed(rng_seed=0), Watch():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0))
    assert seen == ["x", "y"]


def test_a_density_knows_the_site_that_numpyro_asks_it_for():
    """`log_density`, importance sampling and the bounds of SVI score sites in loops over a variable of that name."""
    asked = []

    class Asked(dist.Normal):
        def log_prob(self, value):
            asked.append(_compat.density_asked_by())
            return super().log_prob(value)

    def program():
        numpyro.sample("latent", Asked(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("seen", Asked(0.0, 1.0).mask(True), obs=1.0)

    def guide():
        numpyro.sample("latent", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    values, key = {"latent": jnp.zeros(2)}, jax.random.key(0)
    seeded = handlers.seed(program, 0), handlers.seed(guide, 1)
    for ask in (
        lambda: log_density(program, (), {}, values),
        lambda: get_importance_log_probs(*seeded, (), {}, {}),
        lambda: Trace_ELBO().loss(key, {}, *seeded),
        lambda: TraceGraph_ELBO().loss(key, {}, *seeded),
    ):
        asked.clear()
        ask()
        found = {site["name"]: (module.split(".")[0], site["is_observed"]) for module, site in asked}
        assert found == {"latent": ("numpyro", False), "seen": ("numpyro", True)}
    asked.clear()
    Asked(0.0, 1.0).log_prob(0.0)
    assert asked == [(__name__, None)]
