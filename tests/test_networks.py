"""Networks are silent at the start, know the time, and return the shape they were built for."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl import inference, models
from nedm_ppl.models import networks

NUM_STEPS = 6
BUILDERS = {
    "RBF": lambda event, output: networks.RBF(event, output, NUM_STEPS, key=jax.random.key(0)),
    "SigmoidMLP": lambda event, output: networks.SigmoidMLP(
        event, output, NUM_STEPS, width=8, depth=2, key=jax.random.key(0)
    ),
    "ResidualMLP": lambda event, output: networks.ResidualMLP(
        event, output, NUM_STEPS, width=8, depth=2, key=jax.random.key(0)
    ),
}
every_network = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def awake(network):
    """The network with every weight moved."""
    leaves, structure = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.cases(4)
@pytest.mark.central
@every_network
@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_silent_at_the_start_and_not_after(build, event):
    network = build(event, (2, *event))
    x = jnp.ones(event)
    for t in (1, NUM_STEPS):
        np.testing.assert_array_equal(network(t, x), np.zeros((2, *event)))
    assert np.all(awake(network)(1, x) != 0.0)


@pytest.mark.cases(1)
@every_network
def test_the_output_depends_on_time_and_on_every_coordinate(build):
    network = awake(build((3,), (4,)))
    x = jnp.array([0.2, -0.1, 0.3])
    outputs = jnp.stack([network(t, x) for t in range(1, NUM_STEPS + 1)])
    assert np.unique(np.round(outputs, 5), axis=0).shape[0] == NUM_STEPS
    assert np.all(jax.jacobian(lambda x: network(2, x))(x) != 0.0)


@every_network
def test_a_traced_time_is_a_time(build):
    network = awake(build((3,), (3,)))
    x = jnp.ones(3)
    traced = eqx.filter_jit(lambda n, t, x: n(t, x))
    for t in (1, NUM_STEPS):
        np.testing.assert_allclose(traced(network, jnp.asarray(t), x), network(t, x), rtol=1e-5)


def test_the_readout_of_step_t_is_row_t_minus_1():
    readout = awake(networks.StepReadout(3, 2, NUM_STEPS))
    h = jnp.array([1.0, -2.0, 0.5])
    for t in (1, NUM_STEPS):
        np.testing.assert_allclose(readout(t, h), readout.weight[t - 1] @ h + readout.bias[t - 1], rtol=1e-6)


def test_radial_basis_functions_are_normalized():
    network = awake(BUILDERS["RBF"]((2,), (1,)))
    weight = jnp.zeros_like(network.readout.weight).at[:].set(1.0)
    ones = eqx.tree_at(lambda n: (n.readout.weight, n.readout.bias), network, (weight, jnp.zeros((NUM_STEPS, 1))))
    np.testing.assert_allclose(ones(2, jnp.array([3.0, -1.0])), [1.0], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [2, 40, 4000])
def test_time_features_tell_all_steps_apart(num_steps):
    features = jax.vmap(lambda t: networks.time_features(t, num_steps))(jnp.arange(1, num_steps + 1))
    sines, cosines = features[:, :8], features[:, 8:]
    np.testing.assert_allclose(sines**2 + cosines**2, 1.0, rtol=1e-4)
    turn = 2.0 / np.pi * np.arctan2(sines[:, 0], cosines[:, 0])
    np.testing.assert_allclose(turn, np.arange(1, num_steps + 1) / num_steps, rtol=1e-4)
    assert np.all(np.linalg.norm(np.diff(features, axis=0), axis=1) > 0.05)


def transformer(event, output, patch=2):
    return networks.PatchTransformer(
        event, output, NUM_STEPS, patch=patch, width=8, depth=1, num_heads=2, key=jax.random.key(0)
    )


SHAPES = [((4, 6), (4, 6)), ((4, 4, 3), (4, 4, 2)), ((4, 4), (4, 4, 5)), ((4, 6), (2, 4, 6)), ((4, 4, 3), (2, 4, 4, 3))]


@pytest.mark.cases(2)
@pytest.mark.parametrize(("event", "output"), SHAPES)
def test_the_transformer_is_silent_at_the_start_and_not_after(event, output):
    network, x = transformer(event, output), jnp.ones(event)
    np.testing.assert_array_equal(network(1, x), np.zeros(output))
    moved = eqx.filter_jit(awake(network))
    out = moved(jnp.asarray(2), x)
    assert out.shape == output
    assert np.all(out != 0.0)
    assert np.any(moved(jnp.asarray(3), x) != out)


def test_patches_are_squares_of_the_image_and_back():
    network, image = transformer((4, 6), (4, 6)), jnp.arange(24.0).reshape(4, 6)
    patches = network._to_patches(image)
    np.testing.assert_array_equal(patches[0], [0.0, 1.0, 6.0, 7.0])
    np.testing.assert_array_equal(patches[4], [14.0, 15.0, 20.0, 21.0])
    np.testing.assert_array_equal(network._to_image(patches, (4, 6)), image)


def test_outputs_may_come_first_and_are_the_same_numbers():
    first, last = awake(transformer((4, 6), (2, 4, 6))), awake(transformer((4, 6), (4, 6, 2)))
    x = jnp.arange(24.0).reshape(4, 6)
    np.testing.assert_allclose(first(2, x), np.moveaxis(last(2, x), -1, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: transformer((4, 5), (4, 5)),
            "patch must divide the image and num_heads the width; got patch 2, image (4, 5)",
        ),
        (lambda: transformer((4, 4), (2, 4)), "output_shape must have the image's (4, 4) as its first two axes"),
    ],
)
def test_bad_sizes_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_directions_are_read_through_few_units_and_can_leave_zero():
    network = networks.ResidualMLP((3,), (5, 3), 4, width=16, depth=1, direction_width=2, key=jax.random.key(0))
    process = models.GaussianDiffusion(3, models.schedules.log_snr_linear(4))
    diffusion = models.Diffusion(process, models.VelocityPrediction(network, rank=3), first_step="learned")
    assert network.directions[1].weight.shape == (9, 2) and network.readout.weight.shape == (6, 16)
    assert not np.any(network(2, jnp.ones(3)))
    x0 = jax.random.normal(jax.random.key(1), (64, 3)) @ jnp.array([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 1.0]])
    moved = inference.fit(jax.random.key(2), diffusion, x0, num_updates=20, progress=False).diffusion.reverse.network
    rows = np.asarray(moved(2, jnp.ones(3)))
    assert np.all(np.any(rows != 0.0, axis=1)) and np.linalg.matrix_rank(rows[2:], tol=1e-6) == 3
    with pytest.raises(ValueError, match=r"direction_width must be 0 where .*; got 4 for \(2, 3\)"):
        networks.ResidualMLP((3,), (2, 3), 4, direction_width=4, key=jax.random.key(0))
