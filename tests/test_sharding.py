"""Particles laid over two devices: the same numbers as on one. In a process of its own, because JAX counts its devices once."""

import subprocess
import sys

PROGRAM = """
import equinox as eqx, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from nedm_ppl import inference, models

process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(3))
diffusion = models.Diffusion(process, process.step)
r = inference.NormalObservation([0.5, -1.0], 0.7)
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("particles",)), PartitionSpec("particles"))

assert len(jax.devices()) == 2
target = inference.multiply(diffusion, r, along="lookahead")
x = eqx.filter_jit(inference.posterior.particle_filter)(jax.random.key(1), target, 64, sharding=sharding).x
assert len(x.sharding.device_set) == 2

one, two = (
    inference.ParticlePosterior(diffusion, r, num_particles=64, num_repeats=2, sharding=layout) for layout in (None, sharding)
)
for posterior in (one, two):
    posterior.run(jax.random.key(0))
np.testing.assert_allclose(one.particles.x, two.particles.x, atol=1e-5)
np.testing.assert_allclose(one.log_evidence.mean, two.log_evidence.mean, atol=1e-5)
"""


def test_particles_over_two_devices_are_those_of_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
