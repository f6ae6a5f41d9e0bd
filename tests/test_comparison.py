"""Models are compared on the same data in the same scale, or not at all."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl import inference, models
from tests.zoo import noise_of, white

KEY = jax.random.key(0)
WHITE = white(2, 2)
PROCESS = WHITE.process
BITS = models.BernoulliDiffusion((2,), models.schedules.erasing(2))
X = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)


def of(x, diffusion=WHITE):
    return inference.marginal_log_likelihood(KEY, diffusion, x, num_trajectories=2)


@pytest.fixture(scope="module")
def results():
    """N(0, I) on the data, and on the data in units a hundred times as large."""
    return {"as they are": of(X), "scaled": of(X / 100.0)}


def test_data_of_another_scale_are_refused_and_a_jacobian_makes_them_comparable(results):
    """log N(x; 0, 1) against log N(x / 100; 0, 1) - 2 log 100: the second is the worse, and looked better by its numbers alone."""
    assert results["scaled"].mean.mean > results["as they are"].mean.mean
    with pytest.raises(
        ValueError, match="the same data in the same order and scale; those of 'as they are' and 'scaled' differ"
    ):
        inference.compare(results)
    table = inference.compare(results, log_jacobian={"scaled": -2.0 * math.log(100.0)})
    assert list(table) == ["as they are", "scaled"]
    own = -0.5 * np.sum(X.astype(float) ** 2, axis=1) - math.log(2 * math.pi)
    other = own + 0.5 * np.sum(X.astype(float) ** 2, axis=1) * (1 - 1e-4) - 2 * math.log(100.0)
    assert table["as they are"].log_prob.mean == pytest.approx(own.mean(), abs=1e-3)
    assert table["as they are"].below_best == (0.0, 0.0)
    assert table["scaled"].below_best.mean == pytest.approx((own - other).mean(), abs=1e-3)
    assert table["scaled"].below_best.se == pytest.approx((own - other).std(ddof=1) / math.sqrt(20), rel=1e-3)


@pytest.mark.central
def test_a_result_and_its_elpd_say_what_they_are_of(results):
    result = results["as they are"]
    assert result.unit == "log density" and result.data == of(X.astype(np.float64)).data
    assert result.data != of(X[::-1]).data != of(X[:19]).data
    bits = of(jnp.zeros((3, 2)), noise_of(BITS))
    assert bits.unit == "log probability"
    elpd = result.to_elpd()
    found = elpd.elpd_i if hasattr(elpd, "elpd_i") else elpd.loo_i
    assert found.attrs["data"] == result.data and found.attrs["quantity"] == "log density"


def test_models_from_elsewhere_are_compared_by_their_own_weights(results):
    """N(x; 0, I) in closed form against the chain, which is N(0, I): equal on every datum."""
    exact = (-0.5 * np.sum(X.astype(float) ** 2, axis=1) - math.log(2 * math.pi))[None]
    other = inference.LogLikelihood.from_log_weights(exact, data=X, unit="log density")
    table = inference.compare({"chain": results["as they are"], "closed form": other})
    assert {name: of.below_best.mean for name, of in table.items()} == pytest.approx(
        {"chain": 0, "closed form": 0}, abs=1e-5
    )
    with pytest.raises(ValueError, match=r"unit must be one of log density, log probability; got 'bits'\."):
        inference.LogLikelihood.from_log_weights(exact, data=X, unit="bits")
    with pytest.raises(ValueError, match="the same data in the same order and scale"):
        shifted = inference.LogLikelihood.from_log_weights(exact, data=X + 1.0, unit="log density")
        inference.compare({"chain": results["as they are"], "shifted": shifted})


def test_what_cannot_be_compared_is_named(results):
    first = results["as they are"]
    bits = of(np.zeros((20, 2)), noise_of(BITS))
    bare = inference.LogLikelihood.from_log_weights(first.log_weights)
    for others, options, message in (
        ({}, {}, "results must hold at least two models"),
        ({"b": first}, {"log_jacobian": {"c": 0.0}}, "and those of log_jacobian; got ['a', 'b'] and ['c']."),
        (
            {"b": bare},
            {},
            "results['b'] must say what it is of; got log weights alone. Give data and unit to from_log_weights.",
        ),
        ({"b": bits}, {}, "got 20 of log probability for 'b' and 20 of log density for 'a'."),
        ({"b": of(X[:19])}, {}, "got 19 of log density for 'b' and 20 of log density for 'a'."),
        ({"b": of(X[::-1])}, {}, "those of 'a' and 'b' differ"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            inference.compare({"a": first} | others, **options)
