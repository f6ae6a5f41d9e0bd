"""Means of weights, from their logarithms: those of NumPy in float64, those of JAX in their own dtype."""

import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl.numbers import effective_sample_size, log_mean_exp, relative_weights

WEIGHTS = [[1.0, 2.0, 5.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]]


@pytest.mark.parametrize(("of", "dtype"), [(np.array, np.float64), (jnp.array, np.float32)])
@pytest.mark.parametrize("shift", [0.0, 500.0])
def test_by_hand(of, dtype, shift):
    with np.errstate(divide="ignore"):
        logs = of(np.log(WEIGHTS) + shift)
    size, mean = effective_sample_size(logs, axis=1), log_mean_exp(logs, axis=1)
    assert size.dtype == mean.dtype == dtype and isinstance(size, type(logs)) and isinstance(mean, type(logs))
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(size, [64.0 / 30.0, 0.0, 1.0], rtol=rtol)
    np.testing.assert_allclose(mean, np.array([np.log(8.0 / 3.0), -np.inf, 0.0]) + shift, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(effective_sample_size(logs.T), size, rtol=rtol)
    np.testing.assert_allclose(log_mean_exp(logs.T), mean, rtol=rtol, atol=rtol)


def test_relative_weights_are_over_their_mean():
    with np.errstate(divide="ignore"):
        relative = relative_weights(np.log(WEIGHTS) + 500.0, axis=1)
    np.testing.assert_allclose(relative, [[3 / 8, 6 / 8, 15 / 8], [np.nan] * 3, [0.0, 3.0, 0.0]], rtol=1e-12)
