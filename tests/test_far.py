"""Warnings of data and observations in other units than the model, and of arrays that nothing trains."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nedm_ppl import inference, models

KEY = jax.random.key(0)
PROCESS = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
DATA = 50.0 + 20.0 * np.random.default_rng(0).normal(size=(64, 2))
UNITS = models.Standardize.of(DATA)
NOISE = models.Diffusion(PROCESS, PROCESS.step, units=UNITS)


def named(network: object, **options) -> models.Diffusion:
    return models.Diffusion(PROCESS, models.VelocityPrediction(network), first_step="learned", **options)


@pytest.mark.parametrize("of", ["evaluate", "marginal_log_likelihood"])
def test_data_a_hundred_times_too_large_draw_a_warning_and_the_models_own_do_not(of):
    options = {"num_trajectories": 2} if of == "marginal_log_likelihood" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(inference, of)(KEY, NOISE, DATA, **options)
    with pytest.warns(models.DataWarning, match=r"x0 should be in the units of the model.* there is 2\d\d"):
        getattr(inference, of)(KEY, NOISE, 100.0 * DATA, **options)


@pytest.mark.parametrize(
    ("far", "near"),
    [
        (inference.NormalObservation([300.0, jnp.nan], 1.0), inference.NormalObservation([100.0, jnp.nan], 1.0)),
        (inference.NormalObservation([300.0, 0.0], 1.0), inference.NormalObservation([300.0, 0.0], 40.0)),
        (inference.Known([jnp.nan, -200.0]), inference.Known([jnp.nan, -20.0])),
        (
            inference.LinearObservation([500.0], jnp.ones((1, 2)), scale=1.0),
            inference.LinearObservation([150.0], jnp.ones((1, 2)), scale=1.0),
        ),
    ],
)
def test_an_observation_far_from_all_data_draws_a_warning(far, near):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.multiply(NOISE, near)
    with pytest.warns(models.DataWarning, match="standard deviations of the data and its own noise away"):
        inference.multiply(NOISE, far)
    with warnings.catch_warnings():  # what nobody can know under a transformation, nobody says
        warnings.simplefilter("error")
        jax.jit(lambda r: inference.multiply(NOISE, r).sample(KEY))(far)


def test_a_loss_that_is_not_finite_names_the_scale_where_it_may_be_the_cause():
    network = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=KEY)
    options = {"num_updates": 3, "batch_size": 32, "optimizer": optax.sgd(1e30), "progress": False}
    scale = r"The data's scale may be the cause: they have mean 5.* and variance 3.*\. Give the model units"
    with pytest.warns(UserWarning, match="pooled mean 0"), pytest.raises(inference.NonFiniteLossError, match=scale):
        inference.fit(KEY, named(network), DATA, **options)
    with pytest.raises(inference.NonFiniteLossError, match="Lower the learning rate"):
        inference.fit(KEY, named(network, units=UNITS), DATA, **options)


NETWORK = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=KEY)


class Both(eqx.Module):
    scale: jax.Array
    function: object

    def __call__(self, t, x):
        return self.scale * self.function(t, x)


def test_a_function_that_hides_its_arrays_is_told_to_be_a_module():
    inner = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=KEY)
    options = {"num_updates": 1, "batch_size": 32, "progress": False}
    for function, name in ((lambda t, x: inner(t, x), "inner"), (lambda t, x: NETWORK(t, x), "NETWORK")):
        told = rf"holds the arrays of {name}, which are not trained.*equinox\.Module"
        with pytest.raises(ValueError, match=f"diffusion must have parameters to train.*{told}"):
            inference.fit(KEY, named(function, units=UNITS), DATA, **options)
        with pytest.warns(UserWarning, match=told):
            inference.fit(KEY, named(Both(jnp.ones(()), function), units=UNITS), DATA, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.fit(KEY, named(Both(jnp.ones(()), inner), units=UNITS), DATA, **options)
