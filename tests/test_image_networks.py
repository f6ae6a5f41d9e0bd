"""Networks on images: layers against slow direct constructions, what a pixel sees, and images of other sizes."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from test_networks import awake

from nedm_ppl import inference, models
from nedm_ppl.experiments._picture_networks import FULL_OF_COLORS
from nedm_ppl.inference.training import _loop
from nedm_ppl.inference.training._loop import convolves
from nedm_ppl.models import networks
from nedm_ppl.models.networks._multiscale import MultiScaleConvolution
from nedm_ppl.models.networks._unet import gathered, spread

T = 6


def multiscale(event=(8, 8), output=(2, 8, 8), **options):
    small = {"depth": 2, "width": 3, "upper_width": 4, "num_bumps": 3, "key": jax.random.key(0)}
    return networks.MultiScaleNetwork(event, output, T, **small | options)


def unet(event=(8, 8), output=(2, 8, 8), **options):
    small = {"width": 8, "multipliers": (1, 2), "num_heads": 2, "key": jax.random.key(0)}
    return networks.UNet(event, output, T, **small | options)


def transformer():
    return networks.PatchTransformer((8, 8), (2, 8, 8), T, width=8, depth=2, num_heads=2, key=jax.random.key(0))


def residual():
    return networks.ResidualMLP((8, 8), (2, 8, 8), T, width=8, depth=2, key=jax.random.key(0))


def products(jaxpr):
    """Every convolution and matrix product of a program, those of the functions that it calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def direct(layer, image):
    """The multi-scale layer by loops over scales, pixels and taps."""
    total = 0.0
    for s, convolution in enumerate(layer.convolutions):
        weight, bias, scale = np.asarray(convolution.weight, float), np.asarray(convolution.bias, float), 2**s
        rows, columns, margin = image.shape[0] // scale, image.shape[1] // scale, weight.shape[0] // 2
        small = np.array(
            [
                [
                    image[scale * i : scale * (i + 1), scale * j : scale * (j + 1)].mean(axis=(0, 1))
                    for j in range(columns)
                ]
                for i in range(rows)
            ]
        )
        out = np.zeros((*image.shape[:2], weight.shape[-1])) + bias
        for i in range(image.shape[0]):
            for j in range(image.shape[1]):
                for a in range(-margin, margin + 1):
                    for b in range(-margin, margin + 1):
                        row, column = i // scale + a, j // scale + b
                        if 0 <= row < rows and 0 <= column < columns:
                            out[i, j] += small[row, column] @ weight[a + margin, b + margin]
        total = total + out
    return total / len(layer.convolutions) if layer.average else total


@pytest.mark.central
@pytest.mark.parametrize(("side", "num_scales", "average"), [(3, 3, False), (5, 2, True), (1, 1, False)])
def test_the_multiscale_layer_against_a_direct_construction(side, num_scales, average):
    layer = awake(MultiScaleConvolution(2, 3, side, num_scales, average=average, key=jax.random.key(0)))
    image = np.random.default_rng(0).normal(size=(8, 12, 2))
    np.testing.assert_allclose(layer(jnp.asarray(image, jnp.float32)), direct(layer, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_bumps", "width"), [(1, 1.0), (10, 1.0), (10, 0.5)])
def test_bumps_are_a_partition_of_unity_about_their_centers(num_bumps, width):
    bumps = np.asarray(jax.vmap(lambda t: networks.time_bumps(t, 90, num_bumps, width))(jnp.arange(91)))
    np.testing.assert_allclose(bumps.sum(axis=1), 1.0, rtol=1e-6)
    assert np.all(bumps >= 0.0)
    if num_bumps > 1:
        at = np.arange(num_bumps) * 90 // (num_bumps - 1)
        np.testing.assert_array_equal(bumps[at].argmax(axis=1), np.arange(num_bumps))
        # One spacing away a bump is lower by exp(-1 / (2 width^2)) than the one centered there.
        np.testing.assert_allclose(bumps[at[0], 1] / bumps[at[0], 0], math.exp(-0.5 / width**2), rtol=1e-4)


def test_a_shift_by_the_coarsest_scale_shifts_the_output_and_no_smaller_one_does():
    network = eqx.filter_jit(awake(multiscale((16, 16), (2, 16, 16), depth=1, num_scales=3)))
    image = np.zeros((16, 16), np.float32)
    image[6:9, 5:9] = np.random.default_rng(0).normal(size=(3, 4))
    image = jnp.pad(jnp.asarray(image), 12)  # far from the borders, where zeros are seen
    out = network(2, image)
    for shift in (4, 2):
        moved = jnp.roll(out, (shift, shift), (1, 2))
        difference = jnp.abs(network(2, jnp.roll(image, (shift, shift), (0, 1))) - moved).max()
        assert (difference < 1e-5) == (shift == 4)


@pytest.mark.cases(2)
@pytest.mark.parametrize(("depth", "num_scales"), [(1, 1), (3, 1), (2, 2)])
def test_the_receptive_field(depth, num_scales):
    network = awake(multiscale((24, 24), (24, 24), depth=depth, num_scales=num_scales, slope=0.05))
    seen = np.abs(jax.grad(lambda x: network(2, x)[8, 8])(jax.random.normal(jax.random.key(3), (24, 24)))) > 0.0
    # A layer sees one coarse pixel to each side of the one that a pixel lies in.
    scale = 2 ** (num_scales - 1)
    expected = np.zeros((24, 24), bool)
    expected[8 - scale * depth : 8 + scale * (depth + 1), 8 - scale * depth : 8 + scale * (depth + 1)] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.cases(2)
@pytest.mark.parametrize("build", [multiscale, unet])
@pytest.mark.parametrize(("event", "output"), [((8, 8), (8, 8)), ((4, 8, 3), (2, 4, 8, 3)), ((8, 8), (8, 8, 5))])
def test_silent_at_the_start_not_after_and_told_the_time(build, event, output):
    network, x = build(event, output), jax.random.normal(jax.random.key(1), event)
    np.testing.assert_array_equal(network(1, x), np.zeros(output))
    moved = eqx.filter_jit(awake(network))
    out = moved(jnp.asarray(2), x)
    assert out.shape == output and np.all(out != 0.0) and np.all(moved(jnp.asarray(3), x) != out)


def test_outputs_lie_on_the_axes_that_a_kernel_asks_for():
    first, last = awake(multiscale((4, 8, 3), (2, 4, 8, 3))), awake(multiscale((4, 8, 3), (4, 8, 2, 3)))
    x = jax.random.normal(jax.random.key(1), (4, 8, 3))
    np.testing.assert_allclose(first(2, x), jnp.moveaxis(last(2, x), 2, 0), rtol=1e-5)


def test_the_dense_pathway_sees_the_whole_image():
    network = awake(multiscale(depth=0, dense_width=5))
    seen = jax.jacobian(lambda x: network(2, x)[0, 1, 2])(jnp.full((8, 8), 0.01))
    assert np.all(seen != 0.0)
    with pytest.raises(
        ValueError, match=re.escape("x must have shape (8, 8), that of the dense pathway; got (16, 8).")
    ):
        network(2, jnp.ones((16, 8)))


def test_a_slope_takes_the_place_of_softplus_and_tanh():
    network = awake(multiscale(slope=0.05))
    silent = eqx.tree_at(lambda n: [m.bias for m in (*n.upper, n.readout)], network, replace_fn=jnp.zeros_like)
    silent = eqx.tree_at(
        lambda n: [c.bias for m in n.layers for c in m.convolutions], silent, replace_fn=jnp.zeros_like
    )
    x = jax.random.normal(jax.random.key(1), (8, 8))
    np.testing.assert_allclose(
        silent(2, 3.0 * x), 3.0 * silent(2, x), rtol=1e-4, atol=1e-3
    )  # homogeneous, as only these are


@pytest.mark.central
@pytest.mark.parametrize("build", [multiscale, unet])
def test_a_model_at_another_size_has_the_same_middle(build):
    schedule = models.schedules.log_snr_linear(T)
    reverse = models.VelocityPrediction(awake(build()))
    large = models.Diffusion(models.GaussianDiffusion((16, 12), schedule), reverse, first_step="learned")
    assert large.sample(jax.random.key(0), 2).shape == (2, 16, 12)
    if build is multiscale:  # the U-Net normalizes over the image and attends to all of it
        x = jax.random.normal(jax.random.key(1), (16, 12))
        whole, part = large.kernel(2, x).mean, reverse.network(2, x[2:10, 2:10])
        assert part.shape == (2, 8, 8)
        small = models.Diffusion(models.GaussianDiffusion((8, 8), schedule), reverse, first_step="learned")
        np.testing.assert_allclose(small.kernel(2, x[2:10, 2:10]).mean[3:5, 3:5], whole[5:7, 5:7], rtol=1e-4)


def test_a_context_modulates_the_unet():
    network, x = eqx.filter_jit(awake(unet())), jax.random.normal(jax.random.key(1), (8, 8))
    assert np.all(network(2, x, jnp.ones(8)) != network(2, x))
    np.testing.assert_array_equal(network(2, x, jnp.zeros(8)), network(2, x))


@pytest.mark.parametrize("build", [unet, multiscale, transformer, residual])
def test_bfloat16_rounds_and_no_more(build):
    wide = awake(build())
    narrow = models.networks.BFloat16(wide)
    x = jax.random.normal(jax.random.key(1), (8, 8))
    exact, rounded = (eqx.filter_jit(network)(2, x) for network in (wide, narrow))
    assert rounded.dtype == jnp.float32 and np.any(exact != rounded)
    assert np.abs(exact - rounded).max() < 0.2 * np.abs(exact).max()
    shorter = [
        all(given.aval.dtype == jnp.bfloat16 for given in product.invars)
        for product in products(jax.make_jaxpr(narrow)(2, x).jaxpr)
    ]
    assert np.mean(shorter) >= 0.5, shorter  # all but those of the time, and the U-Net's readout


def test_squares_are_gathered_and_spread_again():
    image = jnp.arange(48.0).reshape(4, 6, 2)
    np.testing.assert_array_equal(gathered(image)[0, 1], jnp.ravel(image[:2, 2:4]))
    np.testing.assert_array_equal(spread(gathered(image)), image)


def test_the_paper_s_network_for_cifar_10_is_traced_at_full_size():
    shape = (32, 32, 3)

    def build(key):
        return networks.MultiScaleNetwork(shape, (2, *shape), 1000, **FULL_OF_COLORS, key=key)

    network = jax.eval_shape(build, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(network))
    convolutions = (9 * 3 + 5 * 9 * 100) * 100 + 6 * 100
    dense = (3072 + 1) * 1000 + (1000 + 1) * 5 * 1024
    assert parameters == convolutions + dense + (105 + 1) * 100 + 3 * (100 + 1) * 100 + (100 + 1) * 2 * 3 * 10
    schedule = models.schedules.erasing(1000, first_rate=1e-3, last_rate=0.5)
    images = jax.ShapeDtypeStruct((200, *shape), jnp.float32)

    def step(network, x):
        kernel = models.DriftVariance(network, released=True)
        return models.Diffusion(models.GaussianDiffusion(shape, schedule), kernel).kernel(7, x).mean

    assert jax.eval_shape(step, network, images).shape == images.shape


def test_the_released_mean_and_variance():
    process = models.GaussianDiffusion(2, models.schedules.erasing(4, last_rate=0.5))
    z = jnp.array([[0.3, -0.2], [0.4, 1.0]])
    law = models.DriftVariance(lambda t, x: z, released=True)(process, 2, jnp.array([1.0, -1.0]))
    beta = float(process.schedule.rates[1])
    mean = np.array([1.0, -1.0]) * math.sqrt(1.0 - beta) + np.array([0.3, -0.2]) * math.sqrt(beta)
    odds = np.exp(np.array([0.4, 1.0]) / 2.0) * beta / (1.0 - beta)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(law.variance, odds / (1.0 + odds), rtol=1e-5)


@pytest.mark.parametrize("build", [multiscale, unet])
def test_a_network_on_images_is_saved_and_read(build, tmp_path):
    process = models.GaussianDiffusion((8, 8), models.schedules.log_snr_linear(T))
    diffusion = models.Diffusion(process, models.DriftVariance(awake(build())))
    diffusion.save(tmp_path / "model")
    read, x = models.Diffusion.load(tmp_path / "model"), jax.random.normal(jax.random.key(1), (8, 8))
    np.testing.assert_array_equal(read.kernel(2, x).mean, diffusion.kernel(2, x).mean)


DIVISIBLE = "height and width of an image must be divisible by {}, the coarsest scale; got {}. Crop the image, or use fewer scales."


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: multiscale((8, 6), (2, 8, 6), num_scales=3), DIVISIBLE.format(4, "8 x 6")),
        (lambda: multiscale(num_scales=3)(1, jnp.ones((6, 8))), DIVISIBLE.format(4, "6 x 8")),
        (lambda: unet((9, 8), (9, 8)), DIVISIBLE.format(2, "9 x 8")),
        (lambda: unet()(1, jnp.ones((8, 5))), DIVISIBLE.format(2, "8 x 5")),
        (lambda: multiscale((8,), (8,)), "event_shape must be (height, width) or (height, width, channels); got (8,)."),
        (lambda: multiscale((8, 8), (2, 4, 8)), "output_shape must have the image's (8, 8) as its first two axes"),
        (lambda: multiscale(side=4), "side must be odd, so that a convolution has a middle; got 4."),
        (lambda: multiscale(depth=0), "depth or dense_width must be at least 1"),
        (lambda: multiscale(bump_width=0.0), "bump_width must be above 0; got 0."),
        (lambda: unet(width=12), "width must be divisible by 8"),
        (lambda: unet(num_heads=3), "16 channels there and num_heads 3."),
    ],
)
def test_bad_sizes_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def model_of(network):
    return models.Diffusion(
        models.GaussianDiffusion((8, 8), models.schedules.log_snr_linear(T)), models.DriftVariance(network)
    )


def test_a_convolution_is_found_wherever_it_is_and_nothing_else_is_taken_for_one():
    def own(t, x):
        blurred = jax.lax.cond(
            t > 2, lambda x: jnp.convolve(x.ravel(), jnp.ones(3), "same").reshape(8, 8), lambda x: x, x
        )
        return jnp.stack([blurred, x])

    assert convolves(model_of(multiscale())) and convolves(model_of(unet())) and convolves(model_of(own))
    mlp = networks.ResidualMLP((8, 8), (2, 8, 8), T, width=4, depth=1, key=jax.random.key(0))
    assert not convolves(model_of(mlp))


@pytest.mark.long
def test_updates_one_by_one_are_those_of_a_loop(monkeypatch):
    """On a CPU a convolution's gradient is slow inside a loop, and updates are made one by one."""
    x = np.random.default_rng(0).normal(size=(40, 8, 8))
    options = {"num_updates": 6, "batch_size": 8, "log_every": 3, "progress": False}
    calls = []
    alone = inference.fit(jax.random.key(1), model_of(multiscale()), x, **options)
    monkeypatch.setattr(_loop, "convolves", lambda diffusion: calls.append(diffusion))
    together = inference.fit(jax.random.key(1), model_of(multiscale()), x, **options)
    assert calls
    np.testing.assert_allclose(alone.history["bound"], together.history["bound"], rtol=1e-4)
    for one, other in zip(
        *(jax.tree.leaves(eqx.filter(f.diffusion, eqx.is_array)) for f in (alone, together)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
