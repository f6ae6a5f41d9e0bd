"""Rows laid over devices: the same numbers as on one. In processes of their own, because JAX counts its devices once."""

import os
import socket
import subprocess
import sys

import pytest

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


ROWS = """
import sys
import equinox as eqx, jax, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from nedm_ppl import inference, models

folder, counts, key = sys.argv[1], [int(count) for count in sys.argv[2:]], jax.random.key(0)
x = np.random.default_rng(0).normal(50.0, 9.0, (200, 2))
labels = np.arange(200) % 3
network = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=key)
embedded = models.networks.Embedded(network, eqx.nn.Embedding(4, 8, key=key))
process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
reverse = models.VelocityPrediction(models.Conditional(embedded, 3))
diffusion = models.Diffusion(process, reverse, first_step="learned", units=models.Standardize.of(x))
options = dict(context=labels, num_updates=24, batch_size=16, optimizer=optax.sgd(0.01), log_every=6, checkpoint_every=12,
               validation=x[:32], validation_context=labels[:32], evaluate_every=12, average_decay=0.9, progress=False)


def over(count):
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("rows",)), PartitionSpec("rows"))


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def arrays(diffusion):
    return jax.tree.map(np.asarray, eqx.filter(diffusion, eqx.is_array))


assert len(jax.devices()) == 8
alone = inference.fit(key, diffusion, x, **options)
likelihood = inference.marginal_log_likelihood(key, alone.diffusion, x[:5], context=labels[:5], num_trajectories=8)
for count in counts:
    together = inference.fit(key, diffusion, x, sharding=over(count), checkpoint=f"{folder}/{count}", **options)
    close(alone.history, together.history)
    close(arrays(alone.diffusion), arrays(together.diffusion))
    terms = inference.evaluate(key, together.diffusion, x, context=labels, batch_size=64, sharding=over(count))
    close(terms, inference.evaluate(key, together.diffusion, x, context=labels, batch_size=64))
    found = inference.marginal_log_likelihood(
        key, alone.diffusion, x[:5], context=labels[:5], num_trajectories=8, sharding=over(count)
    )
    close(likelihood.log_weights, found.log_weights)

# A run over two devices that ended half way goes on over one, and over eight.
import shutil
for count in [1, *counts[1:]]:
    shutil.copytree(f"{folder}/2", f"{folder}/2on{count}")
    shutil.rmtree(f"{folder}/2on{count}/steps/24")
    resumed = inference.fit(key, diffusion, x, sharding=over(count), checkpoint=f"{folder}/2on{count}", resume=True, **options)
    close(arrays(alone.diffusion), arrays(resumed.diffusion))

draws = jax.jit(lambda key: diffusion.given(0).sample(key, 16), out_shardings=over(8))(key)
assert len(draws.sharding.device_set) == 8
close(np.asarray(draws), np.asarray(jax.jit(lambda key: diffusion.given(0).sample(key, 16))(key)))

for wrong, said in ((over(3), "multiple of the 3 devices"), (jax.sharding.SingleDeviceSharding(jax.devices()[0]), "NamedSharding")):
    try:
        inference.fit(key, diffusion, x, sharding=wrong, **options)
    except ValueError as error:
        assert said in str(error), error
    else:
        raise AssertionError(said)
"""


TOGETHER = """
import sys
import jax

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
import equinox as eqx, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from nedm_ppl import data, inference, models

assert jax.process_count() == 2 and len(jax.devices()) == 2 and len(jax.local_devices()) == 1
x, key = data.swiss_roll(0, 300), jax.random.key(0)
network = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=key)
process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
both = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
options = dict(num_updates=20, batch_size=16, log_every=5, checkpoint_every=10, progress=False)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


alone = inference.fit(key, diffusion, x, **options)
together = inference.fit(key, diffusion, x, sharding=both, checkpoint=folder, **options)
again = inference.fit(key, diffusion, x, sharding=both, checkpoint=folder, resume=True, **options)
for found in (together, again):
    close(alone.history, found.history)
    close(*(jax.tree.map(np.asarray, eqx.filter(f.diffusion, eqx.is_array)) for f in (alone, found)))
of = [inference.evaluate(key, alone.diffusion, x, num_times=2, batch_size=64, sharding=on) for on in (None, both)]
close(*of)
of = [inference.marginal_log_likelihood(key, alone.diffusion, x[:5], num_trajectories=4, sharding=on) for on in (None, both)]
close(of[0].log_weights, of[1].log_weights)
"""


def devices(count: int) -> str:
    """The suite's own flags, under which it compiles faster, and so many devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one_and_write_one_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TOGETHER]
    running = [
        subprocess.Popen([*command, str(rank), port, tmp_path / "run"], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert sorted(path.name for path in (tmp_path / "run" / "steps").iterdir()) == ["10", "20"]


@pytest.mark.long
def test_particles_over_two_devices_are_those_of_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", devices(2))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("counts", [("2",), pytest.param(("2", "8"), marks=pytest.mark.long)])
def test_training_bounds_and_likelihoods_over_devices_are_those_of_one(counts, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", devices(8))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-c", ROWS, tmp_path, *counts], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
