"""What prints is short, whatever the number of steps and the size of a network, and prints no array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl import inference, models
from tests.zoo import noise_of

T = 2000
PROCESS = models.GaussianDiffusion((4,), models.schedules.log_snr_linear(T))
NETWORK = models.networks.ResidualMLP((4,), (2, 4), T, width=16, depth=1, key=jax.random.key(0))
MODEL = models.Diffusion(PROCESS, models.VelocityPrediction(NETWORK), first_step="learned")
WEIGHTS = np.random.default_rng(0).normal(size=(64, 300))
LIKELIHOOD = inference.LogLikelihood.from_log_weights(WEIGHTS)
TERMS = inference.BoundTerms(*jnp.zeros((3, 300)), jnp.ones((5, 300), int), jnp.zeros((5, 300)))
PRINTED = {
    "diffusion": (MODEL, "VelocityPrediction of ResidualMLP"),
    "of a kernel": (noise_of(PROCESS), "T = 2000"),
    "prior": (MODEL.prior(), "event shape (4,)"),
    "chain": (MODEL.reverse_chain(), "times 1..2000"),
    "likelihood": (LIKELIHOOD, "300 data"),
    "sandwich": (inference.Sandwich(np.zeros((3, 4)), np.arange(3.0), np.arange(3.0), 8), "3 simulated data"),
    "bound": (TERMS, "batch shape (300,)"),
    "thermodynamics": (
        inference.Thermodynamics.of(MODEL, np.ones((300, 4)), TERMS, LIKELIHOOD),
        "T = 2000",
    ),
    "posterior": (inference.ParticlePosterior(MODEL, lambda x: 0.0), "particles"),
    "fitted": (inference.Fitted(MODEL, {"step": np.arange(1000)}, None, 3.0, 1000, MODEL), "1,000 updates"),
}


@pytest.mark.central
@pytest.mark.parametrize("name", PRINTED)
def test_what_prints_is_short_and_has_no_array(name):
    value, holds = PRINTED[name]
    lines = repr(value).splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 100, repr(value)
    assert holds in repr(value) and "array(" not in repr(value) and "[[" not in repr(value)
