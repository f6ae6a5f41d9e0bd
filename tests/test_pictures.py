"""The image experiments: their crops and noise, and each of them in small."""

import gzip
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from test_archives import contents
from test_cli import nedm

from nedm_ppl import data, experiments, inference, models
from nedm_ppl.cli._arguments import holdout_of
from nedm_ppl.data import _pictures as packaged
from nedm_ppl.experiments import _picture_numbers as numbers
from nedm_ppl.experiments import _pictures as pictures

RNG = np.random.default_rng(0)
NAMES = ("faces", "dead-leaves", "texture", "photographs", "mnist", "fashion", "cifar10")


@pytest.fixture(autouse=True)
def packages(tmp_path_factory, monkeypatch):
    """Pictures that are drawn here in the place of those inside packages."""
    folder = tmp_path_factory.mktemp("packages")
    places = {"skimage": folder / "skimage" / "data", "sklearn": folder / "sklearn" / "datasets" / "images"}
    for place in places.values():
        place.mkdir(parents=True)
    for name in ("grass.png", "brick.png"):
        Image.fromarray(RNG.integers(0, 256, (512, 64), np.uint8)).save(places["skimage"] / name)
    for name in (*packaged.TRAIN_PHOTOGRAPHS, *packaged.HOLDOUT_PHOTOGRAPHS):
        place = places["sklearn" if name in ("flower.jpg", "china.jpg") else "skimage"]
        Image.fromarray(RNG.integers(0, 256, (40, 70, 3), np.uint8)).save(place / name)
    np.save(places["skimage"] / "lfw_subset.npy", RNG.uniform(size=(200, 25, 25)))

    class Found:
        def __init__(self, package):
            self.origin = str(folder / package / "__init__.py")

    monkeypatch.setattr(packaged, "find_spec", Found)
    return folder


def test_crops_are_parts_of_the_image_in_their_order():
    image = np.arange(30.0).reshape(5, 6)
    np.testing.assert_array_equal(data.crops(image, 2)[4], image[2:4, 2:4])
    assert data.crops(image, 2, 1).shape == (20, 2, 2)
    with pytest.raises(ValueError, match="at least 6 x 6"):
        data.crops(image, 6)


def test_what_packages_bring_is_read_and_what_is_missing_is_named(packages, monkeypatch):
    train, holdout = data.photographs()
    assert list(train) == ["astronaut", "chelsea", "coffee", "rocket", "flower"] and set(holdout) == {
        "china",
        "motorcycle_left",
    }
    assert data.faces().shape == (100, 25, 25) and data.texture("brick")[0].shape == (512, 64)
    with pytest.raises(ValueError, match="texture must be one of brick, grass, gravel"):
        data.texture("bark")
    monkeypatch.setattr(packaged, "find_spec", lambda package: None)
    for read in (data.photographs, data.faces, data.texture):
        with pytest.raises(ValueError, match=r"nedm-ppl\[images\]"):
            read()


def test_dead_leaves_have_variance_one_and_the_noise_of_their_protocol(tmp_path):
    clean = {part: RNG.integers(0, 256, (n, 64, 64), np.uint8) for part, n in (("train", 5), ("test", 2))}
    np.savez(tmp_path / "leaves.npz", **clean)
    split = experiments.choose("dead-leaves", path=tmp_path / "leaves.npz").data(0)
    assert split.holdout.shape == (8, 32, 32) and split.validation.shape == (8, 32, 32)
    u = clean["train"] / 255.0
    mean, sd = u.mean(), u.std()
    noise = [np.random.default_rng([20120731, 0, i, 2]).standard_normal((64, 64)) for i in range(5)]
    x = (u - mean) / sd + 0.05 * np.stack(noise)
    x = (x - x.mean()) / x.std()
    np.testing.assert_allclose(split.train[0], x[0, :32, :32], rtol=1e-4, atol=1e-5)
    (tmp_path / "other.npz").write_text("none")
    with pytest.raises(ValueError, match="train and test images"):
        experiments.choose("dead-leaves", path=tmp_path / "other.npz").data(0)


def test_the_holdout_of_a_run_is_that_of_the_files_it_read(tmp_path):
    clean = {part: RNG.integers(0, 256, (n, 64, 64), np.uint8) for part, n in (("train", 3), ("test", 1))}
    np.savez(tmp_path / "leaves.npz", **clean)
    experiment = experiments.choose("dead-leaves", path=tmp_path / "leaves.npz")
    (tmp_path / "run" / "model").mkdir(parents=True)
    metrics = {"experiment": "dead-leaves", "seed": 0} | experiment.of_options.__self__.options()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    holdout, _ = holdout_of(tmp_path / "run" / "model")
    np.testing.assert_array_equal(holdout, experiment.data(0).holdout)


def test_photographs_are_held_out_as_wholes_and_a_texture_by_rows():
    split = experiments.choose("photographs").data(0)
    assert split.train.shape[1:] == (32, 32, 3) and len(split.holdout) == 4
    _, holdout = data.photographs()
    crops = np.stack([crop for image in holdout.values() for crop in data.crops(image, 32)])
    np.testing.assert_array_equal(np.sort(split.holdout, axis=0), np.sort(crops, axis=0))
    split = experiments.choose("texture").data(0)
    rows = data.texture()[0][384:]
    crops = data.crops(rows, 32).astype(np.float32)
    noise = np.abs(split.holdout[:, None] - crops).max(axis=(-2, -1))  # half a level at most from one crop each
    np.testing.assert_array_equal(np.sort(np.argmin(noise, axis=1)), np.arange(len(crops)))
    assert np.min(noise, axis=1).max() <= 0.5


def test_noise_and_mirrors_are_fresh_for_every_minibatch():
    texture = experiments.choose("texture")
    augment = texture.training(10)["augment"]
    scale = models.Standardize.of(texture.data(0).train).scale[0]
    images = np.tile(np.arange(4.0), (500, 4, 1)).astype(np.float32)
    one, other = (np.asarray(augment(jax.random.key(i), images)) for i in (0, 1))
    assert not np.array_equal(one, other)
    mirrored = one[:, 0, 0] > 1.5
    assert 200 < mirrored.sum() < 300
    away = np.where(mirrored[:, None, None], one[:, :, ::-1], one) - images
    assert np.abs(away).max() <= 0.5 / scale + 1e-5 and np.abs(away).max() > 0.45 / scale
    assert experiments.choose("mnist").training(10)["augment"] is None


@pytest.mark.parametrize("network", ["unet", "paper"])
def test_gray_levels_have_probabilities_whatever_the_network(network, monkeypatch):
    """K of a model of gray levels is never above 0."""
    monkeypatch.setattr(pictures, "WIDTH", 8)
    monkeypatch.setattr("nedm_ppl.experiments._picture_networks.scales", lambda shape: (1,))
    split = experiments.Split(RNG.integers(0, 256, (20, 8, 8)).astype(float), None, np.full((2, 8, 8), 128.0))
    experiment = experiments.choose("mnist", network=network)
    diffusion = experiment.build(jax.random.key(0), split, 4, "quantized")
    diffusion = jax.tree.map(lambda leaf: leaf + 0.3 if isinstance(leaf, jax.Array) else leaf, diffusion)
    terms = inference.evaluate(jax.random.key(1), diffusion, split.holdout)
    assert np.all(np.asarray(terms.total) < 0.0) and np.all(np.asarray(terms.first_step) <= 0.0)


@pytest.fixture
def official(tmp_path, packages, monkeypatch):
    """Folders of files in the official formats, with a few images each."""
    for name in ("mnist", "fashion"):
        (tmp_path / name).mkdir()
        for file, content in contents().items():
            (tmp_path / name / f"{file}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(data._archives, "CIFAR_IMAGES", 12)
    (tmp_path / "cifar10").mkdir()
    for file in data._archives.CIFAR_FILES:
        records = RNG.integers(0, 256, (12, 3073), np.uint8)
        records[:, 0] %= 10
        (tmp_path / "cifar10" / file).write_bytes(records.tobytes())
    return tmp_path


def in_small(of_pictures):
    """The experiment on ten of its images, whatever its options."""

    def few(path, seed):
        split = of_pictures.load(path, seed)
        parts = {part: getattr(split, part) for part in ("train", "validation", "holdout")}
        return experiments.Split(**{part: values[:10] for part, values in parts.items()})

    def with_options(path=None, network=None, width=None, full=False):
        sizes = {"network": "paper", "num_samples": 6}  # the quicker to compile
        small = replace(of_pictures, load=few, path=path, **sizes).experiment()
        return replace(small, likelihood_size=2, num_times=2, of_options=with_options)

    return with_options()


@pytest.mark.filterwarnings("ignore:.*is not the published file")
@pytest.mark.cases(1)
@pytest.mark.parametrize("name", NAMES)
def test_every_image_experiment_runs_in_small(name, official, monkeypatch):
    monkeypatch.setattr(pictures, "WIDTH", 8)
    monkeypatch.setattr("nedm_ppl.experiments._picture_networks.scales", lambda shape: (1,))
    monkeypatch.setattr("nedm_ppl.experiments._picture_data.NUM_LEAVES", (3, 1))
    monkeypatch.setitem(experiments.EXPERIMENTS, name, in_small(experiments.EXPERIMENTS[name].of_options.__self__))
    options = ["--data", official / name] if name in ("mnist", "fashion", "cifar10") else []
    out = official / "run"
    assert nedm("run", name, "--updates", "2", "--num-steps", "3", "--out", out, *options)[0] == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["unit"] == "bits per dimension" and (out / "samples.png").stat().st_size > 2000
    assert ("bits_per_dim_discrete" in metrics) == (name in ("photographs", "mnist", "fashion", "cifar10"))
    lost = sum(band["mean"] for band in metrics["bound_by_log_snr"])
    assert lost == pytest.approx(metrics["terms"]["diffusion"]["mean"], rel=1e-4)
    about = json.loads((out / "samples.json").read_text())
    assert about["num_samples"] == 6 and about["holdout"]["nearest_training_image"] > 0.0
    assert ("parzen_bits_per_image" in about, "inpainted" in about) == (name == "mnist", name == "texture")
    also = {"texture": "inpainted.png", "photographs": "denoised.png", "cifar10": "denoised.png"}.get(
        name, "samples.png"
    )
    for file in ("neighbors.png", "spectrum.png", "network.png", also):
        assert (out / file).stat().st_size > 2000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cifar10"], "--data must name the folder with the official files"),
        (["photographs", "--data", "x"], "--data must be left out for photographs"),
        (["faces", "--data", "x"], "--data must be left out for faces"),
        (["faces", "--network", "resnet"], "--network must be one of unet, paper; got 'resnet'"),
        (["digits", "--full"], "--data, --width and --full must be left out for digits"),
        (
            ["fashion", "--network", "paper", "--width", "8"],
            "--width is of the U-Net; leave it out with --network paper",
        ),
        (["faces", "--width", "12"], "width must be divisible by 8"),
        (["faces", "--width", "0"], "width must be an integer of at least 1; got 0"),
        (["digits", "--network", "paper"], "--network must be one of unet, transformer; got 'paper'"),
        (["swiss-roll", "--full"], "--data, --network, --width and --full must be left out for swiss-roll"),
        (["cifar10", "--data", "nowhere"], "must be a file of CIFAR-10's binary version"),
    ],
)
def test_what_an_image_experiment_cannot_run_on_is_one_sentence(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, got = nedm("run", *arguments, "--out", "run", capsys=capsys)
    assert code == 2 and said in got


@pytest.mark.parametrize(("name", "network"), [("cifar10", "paper"), ("dead-leaves", "unet")])
def test_a_full_size_model_is_built_and_traced(name, network):
    experiment = experiments.choose(name, network=network, full=True)
    shape = (32, 32, 3) if name == "cifar10" else (32, 32)
    split = experiments.Split(RNG.integers(0, 256, (4, *shape)).astype(float), None, np.zeros((1, *shape)))
    assert experiment.num_steps == 1000

    def traced(key):
        diffusion = experiment.build(key, split, 1000, experiment.first_step)
        return inference.bound_terms(key, diffusion, split.train, num_times=1).total

    assert jax.eval_shape(traced, jax.random.key(0)).shape == (4,)


def test_the_width_of_the_unet_is_what_is_asked_for():
    for options, width in (({}, 16), ({"full": True}, 64), ({"full": True, "width": 24}, 24)):
        faces = experiments.choose("faces", **options)
        split = faces.data(0)
        made = jax.eval_shape(
            lambda key, of=faces, split=split: of.build(key, split, 4, "fixed").reverse.network.stem.weight,
            jax.random.key(0),
        )
        assert made.shape == (3, 3, 1, width)


@pytest.mark.parametrize(
    ("name", "full", "depth", "dense"),
    [
        ("mnist", False, 0, 500),
        ("mnist", True, 0, 500),
        ("cifar10", False, 4, 500),
        ("cifar10", True, 6, 1000),
        ("dead-leaves", True, 4, 0),
    ],
)
def test_the_paper_s_network_has_the_paper_s_pathways(name, full, depth, dense):
    """Dense alone for MNIST, both for CIFAR-10, convolutions alone for dead leaves (Appendix D.2)."""
    experiment = experiments.choose(name, network="paper", full=full)
    shape = (32, 32, 3) if name == "cifar10" else (28, 28)
    split = experiments.Split(RNG.integers(0, 256, (4, *shape)).astype(float), None, np.zeros((1, *shape)))
    found = []

    def traced(key):
        network = experiment.build(key, split, 10, experiment.first_step).reverse.network
        found.append((len(network.layers), network.dense[0].out_features if network.dense else 0))
        return jax.numpy.zeros(())

    jax.eval_shape(traced, jax.random.key(0))
    assert found == [(depth, dense)]


@pytest.mark.long
def test_digits_take_a_transformer_of_the_same_laws():
    digits = experiments.choose("digits", network="transformer")
    split = digits.data(0)
    diffusion = digits.build(jax.random.key(0), split, 5, "quantized")
    assert isinstance(diffusion.reverse.network, models.networks.PatchTransformer)
    plain = experiments.choose("digits").build(jax.random.key(0), split, 5, "quantized")
    terms = [
        inference.evaluate(jax.random.key(1), of, split.holdout[:4], num_times=2).total for of in (diffusion, plain)
    ]
    np.testing.assert_allclose(*terms, rtol=1e-5)  # both are silent at the start


def test_statistics_of_images_are_those_of_known_ones():
    rows = np.arange(16)[:, None] + np.zeros(16)
    waves = np.stack([np.sin(2 * np.pi * 3 * rows / 16), np.sin(2 * np.pi * 3 * rows.T / 16)])
    power = numbers.spectrum(waves)
    assert power.shape == (8,) and np.argmax(power) == 2 and power[2] > 1e9 * np.delete(power, 2).max()
    colored = numbers.spectrum(np.repeat(waves[..., None], 3, axis=-1))
    np.testing.assert_allclose(colored, power, rtol=1e-10, atol=1e-20)
    white = numbers.spectrum(RNG.normal(size=(400, 16, 16)))
    np.testing.assert_allclose(white, 1.0, atol=0.1)  # of variance 1 at every frequency
    assert numbers.kurtosis(RNG.normal(size=(400, 16, 16))) == pytest.approx(3.0, abs=0.1)
    assert numbers.kurtosis(RNG.laplace(size=(400, 16, 16))) == pytest.approx(4.5, abs=0.3)
    train = RNG.normal(size=(20, 4, 4))
    found, distance = numbers.nearest(train[[7, 3]] + 0.01, train)
    np.testing.assert_array_equal(found, train[[7, 3]])
    np.testing.assert_allclose(distance, 0.01, rtol=1e-9)
