"""Saved models: what comes back is what was saved, and every way to damage a folder has its sentence."""

import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO

from nedm_ppl import files, models
from nedm_ppl.models import _saving as checkpoint
from nedm_ppl.models import networks, schedules
from nedm_ppl.models._saving import ModelFolderError

T, SHAPE = 3, (4,)
KEY = jax.random.key(0)
GAUSSIAN = models.GaussianDiffusion(SHAPE, schedules.log_snr_linear(T))
LEARNED = models.GaussianDiffusion(SHAPE, schedules.LearnedSchedule(schedules.cosine(T)))
BITS = models.BernoulliDiffusion(SHAPE, schedules.erasing(T), rate=0.3)
LEVELS = (-1.0, 0.0, 2.0)


def noisy(tree):
    """Networks start silent; this one says something, so that every array matters to the samples."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(0.0, 0.1, x.shape).astype(x.dtype) if eqx.is_array(x) else x, tree)


def network(cls=networks.RBF, output=(2, *SHAPE), **options):
    return cls(SHAPE, output, T, width=6, key=KEY, **options)


DIFFUSIONS = {
    "rbf": lambda: models.Diffusion(GAUSSIAN, models.DriftVariance(network())),
    "sigmoid": lambda: models.Diffusion(GAUSSIAN, models.DataPrediction(network(networks.SigmoidMLP, depth=2))),
    "residual": lambda: models.Diffusion(
        GAUSSIAN, models.NoisePrediction(network(networks.ResidualMLP, depth=2)), first_step="learned"
    ),
    "conditional": lambda: models.Diffusion(
        GAUSSIAN,
        models.DataPrediction(
            models.Conditional(
                networks.Embedded(network(networks.ResidualMLP, depth=2), eqx.nn.Embedding(4, 6, key=KEY)), 3
            )
        ),
    ),
    "learned schedule": lambda: models.Diffusion(LEARNED, models.DriftVariance(network())),
    "quantized": lambda: models.Diffusion(
        GAUSSIAN, models.DataPrediction(network()), first_step="quantized", levels=LEVELS
    ),
    "levels": lambda: models.Diffusion(
        GAUSSIAN, models.LevelPrediction(network(output=(*SHAPE, 3)), LEVELS, evidence=False), first_step="quantized"
    ),
    "flip": lambda: models.Diffusion(BITS, models.FlipRate(network(output=SHAPE))),
    "bits": lambda: models.Diffusion(BITS, models.BitPrediction(network(output=SHAPE)), first_step="learned"),
}


class Own(eqx.Module):
    """A user's network: arrays, a number and a function as leaves, a static field, and a part from Equinox."""

    linear: eqx.nn.Linear
    table: np.ndarray
    gain: float
    activation: object
    power: int = eqx.field(static=True)

    def __init__(self, key=KEY, *, width=4, gain=0.5, activation=jnp.tanh, power=1):
        self.linear, self.table = eqx.nn.Linear(width, 8, key=key), np.arange(2.0)
        self.gain, self.activation, self.power = gain, activation, power

    def __call__(self, t, x):
        return self.gain * self.activation(self.linear(x)).reshape(2, -1) ** self.power + self.table[:, None].astype(
            "f4"
        )


class OwnKernel(eqx.Module):
    log_scale: jax.Array

    def __call__(self, t, x):
        return dist.Normal(x, jnp.exp(self.log_scale)).to_event(1)


def own(**options):
    return models.Diffusion(GAUSSIAN, models.DriftVariance(Own(**options)))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if eqx.is_array(x) or isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@eqx.filter_jit
def draw(diffusion):
    return diffusion.sample(KEY, (3,))


@pytest.mark.central
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_round_trip_is_bit_identical(name, tmp_path):
    diffusion = noisy(DIFFUSIONS[name]())
    diffusion.save(tmp_path / "made" / "on the way")
    loaded = models.Diffusion.load(tmp_path / "made" / "on the way")
    assert_same(diffusion, loaded)
    np.testing.assert_array_equal(draw(diffusion), draw(loaded))
    assert_same(diffusion, models.Diffusion.load(tmp_path / "made" / "on the way", like=DIFFUSIONS[name]()))
    assert sorted(os.listdir(tmp_path / "made")) == ["on the way"]


SAVED_BEFORE = (
    Path(__file__).parent / "saved_before"
)  # by the commit before names became today's, with three draws of each; a quantized Gaussian draws otherwise since 2026-11-29


@pytest.mark.parametrize("name", sorted(path.name for path in SAVED_BEFORE.iterdir() if path.is_dir()))
def test_folders_saved_under_earlier_names_load_and_sample_the_same(name, tmp_path):
    loaded = models.Diffusion.load(SAVED_BEFORE / name)
    with np.load(SAVED_BEFORE / "draws.npz") as draws:
        np.testing.assert_allclose(draw(loaded), draws[name], rtol=1e-4, atol=1e-5)
    loaded.save(tmp_path / "model")
    assert_same(models.Diffusion.load(tmp_path / "model"), loaded)


def test_every_class_that_is_saved_has_a_folder_of_before():
    kept = {
        node["type"]
        for path in SAVED_BEFORE.glob("*/model.json")
        for node in nodes_of(json.loads(path.read_text())["model"])
        if "type" in node
    }
    ours = {name for name, cls in checkpoint._types().items() if cls.__module__.startswith("nedm_ppl.")}
    kernels = {"BitMixturePrediction", "JacobianCovariance", "MixturePrediction"}
    images = {
        "Convolution",
        "ImageAttention",
        "ImageBlock",
        "ImageOutput",
        "MultiScaleConvolution",
        "MultiScaleNetwork",
        "UNet",
    }
    since = kernels | images | {"BFloat16", "GrayLevels", "Labels", "Standardize"}  # there was none of these before
    missing = (
        {name for name in ours - kept if not name.startswith("_")} - since - {"VelocityField"}
    )  # of a flow, in no model
    assert not missing


def test_a_field_that_is_no_more_loads_where_it_said_what_is_done_now(tmp_path):
    network = models.networks.UNet((4, 4), (2, 4, 4), 3, width=8, multipliers=(1,), num_heads=2, key=jax.random.key(0))
    process = models.GaussianDiffusion((4, 4), models.schedules.log_snr_linear(3))
    diffusion, folder = models.Diffusion(process, models.VelocityPrediction(network)), tmp_path / "model"
    diffusion.save(folder)
    saved = json.loads((folder / "model.json").read_text())
    unet = next(node for node in nodes_of(saved) if node.get("type") == "UNet")
    for value in (False, True):
        unet["fields"]["bfloat16"] = value
        saved["json_sha256"] = checkpoint._json_sha256(saved)
        (folder / "model.json").write_text(json.dumps(saved))
        if value:
            with pytest.raises(ModelFolderError, match=r"must have the fields of a UNet.* it has 'bfloat16'"):
                models.Diffusion.load(folder)
        else:
            assert_same(diffusion, models.Diffusion.load(folder))


def nodes_of(node):
    """A tree's dictionaries."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return ([node] if isinstance(node, dict) else []) + [found for part in inner for found in nodes_of(part)]


def test_a_loaded_model_is_a_program(tmp_path):
    diffusion = noisy(DIFFUSIONS["rbf"]())
    diffusion.save(tmp_path / "model")
    loaded = models.Diffusion.load(tmp_path / "model")
    svi = SVI(loaded.model, loaded.guide, optax.sgd(1e-2), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, jnp.ones((2, *SHAPE))))["diffusion$params"]
    for a, b in zip(jax.tree.leaves(diffusion), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_odd_numbers_and_dtypes_come_back(tmp_path):
    values = np.array([np.nan, -0.0, np.inf, 1e-42, 0.1, 7], np.float32)
    kernel = {"bfloat16": jnp.asarray(values, jnp.bfloat16), "float16": jnp.asarray(values, jnp.float16)}
    kernel |= {
        "empty": jnp.zeros((0, 2)),
        "scalar": jnp.asarray(3),
        "bool": jnp.asarray([True]),
        "float64": np.float64(values) * 1e300,
    }
    kernel = jax.tree_util.Partial(lambda odd, numbers, t, x: OwnKernel(jnp.zeros(4))(t, x), kernel, (-np.inf, np.nan))
    diffusion = models.Diffusion(GAUSSIAN, kernel)
    diffusion.save(tmp_path / "model")
    like = models.Diffusion(
        GAUSSIAN, jax.tree.map(lambda x: 0.0 if isinstance(x, float) else (x == 2).astype(x.dtype), kernel)
    )
    arrays, numbers = models.Diffusion.load(tmp_path / "model", like=like).reverse.args
    for name, array in kernel.args[0].items():
        assert arrays[name].dtype == array.dtype and np.asarray(arrays[name]).tobytes() == np.asarray(array).tobytes()
    assert numbers[0] == -np.inf and np.isnan(numbers[1])


def test_float64_needs_its_session(tmp_path):
    with jax.enable_x64(True):
        diffusion = DIFFUSIONS["rbf"]()
        diffusion.save(tmp_path / "model")
        assert_same(diffusion, models.Diffusion.load(tmp_path / "model"))
    with pytest.raises(ModelFolderError, match=r"centers is float64, .* round to float32. Call jax.config.update"):
        models.Diffusion.load(tmp_path / "model")


@pytest.mark.parametrize("build", [own, lambda **o: models.Diffusion(GAUSSIAN, OwnKernel(jnp.full(4, len(o) - 1.0)))])
def test_a_part_of_the_users_own_needs_like(build, tmp_path):
    diffusion = noisy(build(gain=0.7))
    diffusion.save(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=r"model.reverse\S* is \S*Own\w*, whose code cannot be saved. Use load"):
        models.Diffusion.load(tmp_path / "model")
    assert_same(diffusion, models.Diffusion.load(tmp_path / "model", like=build()))


def test_like_may_be_abstract(tmp_path):
    diffusion = models.Diffusion(LEARNED, OwnKernel(jnp.ones(4)))
    diffusion.save(tmp_path / "model")
    like = eqx.filter_eval_shape(lambda: diffusion)
    assert_same(diffusion, models.Diffusion.load(tmp_path / "model", like=like))


def test_a_function_is_taken_from_like(tmp_path):
    diffusion = models.Diffusion(GAUSSIAN, models.DriftVariance(lambda t, x: jnp.stack([x, x])))
    diffusion.save(tmp_path / "model")
    assert models.Diffusion.load(tmp_path / "model", like=diffusion).reverse.network is diffusion.reverse.network


def unlike(where, leaf) -> models.Diffusion:
    return eqx.tree_at(lambda d: where(d.reverse.network), own(), leaf)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            lambda: unlike(lambda n: n.linear.weight, jnp.zeros((8, 5))),
            r"network.0 is float32 \(8, 4\); in `like` it is float32 \(8, 5\). Build `like` as",
        ),
        (lambda: own(gain=1), r"network.3 is builtins.float; in `like` it is builtins.int"),
        (lambda: unlike(lambda n: n.activation, 1.0), r"network.4 is code; in `like` it is builtins.float"),
        (lambda: DIFFUSIONS["rbf"](), r"reverse.network is \S+Own with 5 leaves; in `like` it is \S+RBF with 4"),
        (lambda: DIFFUSIONS["sigmoid"](), r"model.reverse is a DriftVariance; in `like` it is \S+DataPrediction"),
        (
            lambda: models.Diffusion(LEARNED, own().reverse),
            r"model.process.schedule is a FixedSchedule; in `like` it is",
        ),
    ],
)
def test_like_must_be_alike(like, message, tmp_path):
    own().save(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=message):
        models.Diffusion.load(tmp_path / "model", like=like())


def test_like_and_diffusion_must_be_diffusions(tmp_path):
    with pytest.raises(ValueError, match=r"like must be a models.Diffusion; got a int"):
        models.Diffusion.load(tmp_path, like=3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: models.Diffusion(GAUSSIAN, OwnKernel(KEY)),
            r"model.reverse.0 must hold numbers to be saved; got dtype key",
        ),
        (lambda: eqx.filter_eval_shape(own), r"network.0 must be a whole array on this host; got ShapeDtypeStruct"),
    ],
)
def test_what_cannot_be_saved_says_where(build, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build().save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_types_have_names_of_their_own():
    types = checkpoint._types()
    assert {"Diffusion", "RBF", "ResidualBlock", "FixedSchedule", "StepReadout", "LevelPrediction"} <= types.keys()
    assert not {"Schedule", "Parameterization", "DiffusionProcess", "Module"} & types.keys()
    classes, queue = set(), [eqx.Module]
    while queue:
        queue += (below := queue.pop().__subclasses__())
        classes |= {c for c in below if c.__module__.startswith("nedm_ppl.models.") and not c.__subclasses__()}
    assert sorted(c.__name__ for c in classes) == sorted(n for n, c in types.items() if c in classes)


# Damage: each entry takes a good folder apart in one way; the message is what the user reads.


def edit(change, signed=True):
    """Rewrite model.json by a function of the document, and give it the hash that it then has."""

    def damage(folder):
        document = json.loads((folder / "model.json").read_text())
        change(document)
        if signed and "json_sha256" in document:
            document["json_sha256"] = checkpoint._json_sha256(document)
        (folder / "model.json").write_text(json.dumps(document))

    return damage


def at(*path, value):
    """Set one entry of the document, or delete it where the value is `...`."""

    def change(document):
        for step in path[:-1]:
            document = document[step]
        if value is ...:
            del document[path[-1]]
        else:
            document[path[-1]] = value

    return edit(change)


def repack(name="model.reverse.network.centers.npy", data=None, **options):
    """Rewrite arrays.npz with one member replaced, and give it the sha256 that it then has."""

    def damage(folder):
        with zipfile.ZipFile(folder / "arrays.npz") as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        members[name] = members.get(name, b"") if data is None else data
        with zipfile.ZipFile(folder / "arrays.npz", "w", **options) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        digest = hashlib.sha256((folder / "arrays.npz").read_bytes()).hexdigest()
        at("sha256", value=digest)(folder)

    return damage


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def flip_byte(folder):
    content = bytearray((folder / "arrays.npz").read_bytes())
    content[200] ^= 1
    (folder / "arrays.npz").write_bytes(content)


def truncate(folder):
    os.truncate(folder / "arrays.npz", 300)


def link_away(folder):
    os.replace(folder / "arrays.npz", folder.parent / "elsewhere.npz")
    os.symlink(folder.parent / "elsewhere.npz", folder / "arrays.npz")


def deep(levels):
    node = 1
    for _ in range(levels):
        node = {"tuple": [node]}
    return node


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


MODEL = ("model", "fields")
NETWORK = (*MODEL, "reverse", "fields", "network", "fields")
PROCESS = (*MODEL, "process", "fields")
SCHEDULE = (*PROCESS, "schedule", "fields")
CENTRES = ("arrays", "model.reverse.network.centers")
DAMAGE = {
    "no model.json": (lambda folder: os.remove(folder / "model.json"), r"model.json: must be a file; there is nothing"),
    "no arrays.npz": (lambda folder: os.remove(folder / "arrays.npz"), r"arrays.npz: must be a file; there is nothing"),
    "link": (link_away, r"arrays.npz: must be a file; there is a link"),
    "empty json": (write("model.json", b""), r"model.json: must be JSON; Expecting value"),
    "half json": (write("model.json", b'{"format": "nedm_pp'), r"model.json: must be JSON; Unterminated string"),
    "not text": (write("model.json", b"\xff\xfe\x00"), r"model.json: must be JSON; 'utf-8' codec"),
    "deep json": (write("model.json", b"[" * 10**6), r"model.json: must be JSON; maximum recursion"),
    "foreign json": (
        write("model.json", b'{"a": 1}'),
        r"must be of the format nedm_ppl.model; this is something else. Check",
    ),
    "list": (write("model.json", b"[1]"), r"must be of the format nedm_ppl.model"),
    "version 99": (at("version", value=99), r"version 2 to be read here; got 99, of nedm_ppl \S+\. Upgrade nedm_ppl"),
    "version 0": (at("version", value=0), r"must be of a version from 1 to 2, .*; got 0"),
    "no hash": (at("json_sha256", value=...), r"must be of a version from 1 to 2, and of version 2 with its own hash"),
    "odd hash": (edit(lambda d: d.update(json_sha256=3), signed=False), r"when it was saved, with json_sha256 3; got"),
    "a digit": (
        edit(lambda d: d["model"]["fields"]["process"]["fields"]["event_shape"].update(tuple=[5]), signed=False),
        r"model.json: must say what it said when it was saved, with json_sha256 [0-9a-f.]{16}; got \w{16}\. Restore",
    ),
    "a downgrade": (edit(lambda d: d.update(version=1), signed=False), r"must say what it said when it was saved"),
    "not finite": (repack(data=npy(np.full((6, 4), np.nan, "f4"))), r"network.centers was finite and is no longer"),
    "great count": (at(*PROCESS, "event_shape", value={"tuple": [10**300]}), r"shape.0 must be below 2\^63 in size"),
    "great shape": (at(*CENTRES, "shape", value=[10**300] * 20), r"centers must have a shape and a dtype; got"),
    "long shape": (at(*CENTRES, "shape", value=[2**62] * 64), r"arrays.npz: must hold \d{21}\.\.\. bytes of arrays"),
    "long number": (
        write("model.json", b'{"a": ' + b"1" * 5000 + b"}"),
        r"model.json: must be JSON; Exceeds the limit",
    ),
    "version word": (at("version", value="1"), r"must have a int for its version; got 1"),
    "no tree": (at("model", value=...), r"must have a dict for its model; got None"),
    "no sha256": (at("sha256", value=...), r"must have a str for its sha256; got None"),
    "empty npz": (write("arrays.npz", b""), r"arrays.npz: must hold \d+ bytes of arrays and little else; got 0 bytes"),
    "truncated npz": (truncate, r"arrays.npz: must hold \d+ bytes of arrays and little else; got 300 bytes"),
    "flipped byte": (
        flip_byte,
        r"arrays.npz: must be the file that was saved, with sha256 \w{16}; got \w{16}\. Restore",
    ),
    "huge manifest": (at(*CENTRES, "shape", value=[10**12, 4]), r"must hold 16000000000\d+ bytes of arrays"),
    "wrong shape": (at(*CENTRES, "shape", value=[4, 6]), r"centers is float32 \(6, 4\) and not float32 \(4, 6\)"),
    "wrong dtype": (at(*CENTRES, "dtype", value="int32"), r"centers is float32 \(6, 4\) and not int32 \(6, 4\)"),
    "object dtype": (
        at(*CENTRES, "dtype", value="object"),
        r"centers must have a shape and a dtype; got",
    ),
    "negative shape": (at(*CENTRES, "shape", value=[-6, -4]), r"centers must have a shape and a dtype; got"),
    "no manifest": (at("arrays", value={}), r"must hold 0 bytes of arrays and little else"),
    "array twice": (at(*NETWORK, "centers", "array", value="model.reverse.network.log_scales"), r"array of its own"),
    "array unused": (at(*NETWORK, "centers", value=None), r"network.centers must be Array; got None"),
    "array unknown": (at(*NETWORK, "centers", "array", value="../x"), r"centers must be an array of its own; got ../x"),
    "pickle": (repack(data=pickle.dumps(Bomb())), r"arrays.npz: must hold the arrays that model.json declares; "),
    "object array": (
        repack(data=npy(np.array([Bomb()], object))),
        r"centers is object \(1,\) and not float32 \(6, 4\)",
    ),
    "short array": (repack(data=npy(np.zeros((6, 4), "f4"))[:-8]), r"reading array data, expected 96 bytes got 88"),
    "one array more": (repack("extra.npy", b""), r"its 5 arrays are not those 4"),
    "compressed": (
        repack(compression=zipfile.ZIP_DEFLATED),
        r"they are compressed, which no saved model's are",
    ),
    "unknown type": (
        at(*MODEL, "reverse", "type", value="os.system"),
        r"model.reverse must be of a type .*; got 'os.system'",
    ),
    "abstract type": (at(*SCHEDULE[:-1], "type", value="Schedule"), r"type that this library knows; got 'Schedule'"),
    "missing field": (at(*PROCESS, "schedule", value=...), r"fields of a GaussianDiffusion, .*; it lacks 'schedule'"),
    "extra field": (
        at(*PROCESS, "rate", value=1),
        r"fields of a GaussianDiffusion, event_shape, schedule; it has 'rate'",
    ),
    "wrong module": (
        at(*PROCESS, "schedule", value={"type": "Dropout", "fields": {"p": 0.1, "inference": True}}),
        "Schedule",
    ),
    "static text": (at(*PROCESS, "event_shape", value="four"), r"event_shape must be tuple\[int, ...\]; got four"),
    "static bool": (at(*PROCESS, "event_shape", value={"tuple": [True]}), r"event_shape must be tuple\[int, ...\]"),
    "nonsense": (
        at(*SCHEDULE, "betas", value={"tuple": [0.1, 1.5]}),
        r"valid FixedSchedule; beta must lie in \(0, 1\).* got 1.5",
    ),
    "infinite": (
        at(*SCHEDULE, "betas", value={"tuple": [{"float": "nan"}]}),
        r"valid FixedSchedule; .* got nan at step 1",
    ),
    "first step": (
        at(*MODEL, "first_step", value="last"),
        r"model must be a valid Diffusion; first_step must be one of",
    ),
    "misfit": (
        at(*PROCESS, "event_shape", value={"tuple": [5]}),
        r"model must be a valid Diffusion; network must be a function \(t, x\) -> array of one datum, from shape \(5,\)",
    ),
    "deep tree": (at(*PROCESS, "event_shape", value=deep(100)), r"a model may be nested 64 deep; this one is deeper"),
    "odd node": (at(*PROCESS, "event_shape", value={"eval": "1"}), r"event_shape must be a value, an array or a part"),
    "odd number": (
        at(*SCHEDULE, "betas", value={"float": "1_0"}),
        r"betas must be a value, an array or a part of a model",
    ),
    "no diffusion": (edit(lambda d: d.update(model={"tuple": []})), r"model must be a Diffusion; got a tuple"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "model"
    DIFFUSIONS["rbf"]().save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.central
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_has_its_sentence(name, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, (damage, message) = tmp_path / "model", DAMAGE[name]
    folder.mkdir()
    for file, content in good.items():
        (folder / file).write_bytes(content)
    damage(folder)
    with pytest.raises(ModelFolderError, match=message) as caught:
        models.Diffusion.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not os.path.exists("exploded")


def test_the_order_of_keys_does_not_matter(tmp_path):
    DIFFUSIONS["rbf"]().save(tmp_path / "model")
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(document, sort_keys=True))
    assert_same(DIFFUSIONS["rbf"](), models.Diffusion.load(tmp_path / "model"))


def test_missing_folder(tmp_path):
    with pytest.raises(ModelFolderError, match=r"nowhere: must be a folder; there is nothing. Check the path."):
        models.Diffusion.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ModelFolderError, match=r"must be a folder; there is a file"):
        models.Diffusion.load(tmp_path / "file")


def test_overwriting(tmp_path):
    folder, first, second = tmp_path / "model", DIFFUSIONS["flip"](), noisy(DIFFUSIONS["flip"]())
    folder.mkdir()
    first.save(folder)  # empty folders are free
    with pytest.raises(
        ModelFolderError, match=r"must be a new or empty folder; it holds arrays.npz. Choose another, or"
    ):
        second.save(folder)
    assert_same(first, models.Diffusion.load(folder))
    second.save(folder, overwrite=True)
    assert_same(second, models.Diffusion.load(folder))
    (folder / "notes.txt").write_text("dear")
    with pytest.raises(ModelFolderError, match=r"a saved model and nothing else to be replaced; it holds notes.txt"):
        first.save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "dear"
    os.remove(folder / "notes.txt")
    (folder / "model.json").write_text("{}")
    with pytest.raises(
        ModelFolderError, match=r"it holds arrays.npz. Choose another folder, or empty this one yourself"
    ):
        first.save(folder, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ModelFolderError, match=r"must be a folder, new or empty; this is a file"):
        first.save(tmp_path / "file", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


@pytest.mark.parametrize("broken", ["savez", "fsync", "first rename", "second rename"])
def test_a_failed_save_leaves_the_old_model(broken, tmp_path, monkeypatch):
    first, replace = DIFFUSIONS["flip"](), os.replace
    first.save(tmp_path / "model")

    def fail(*_, **__):
        raise OSError("disk full")

    def fail_into_place(source, target):
        return fail() if str(source).endswith(".new") else replace(source, target)

    patches = {"savez": (np, "savez", fail), "fsync": (os, "fsync", fail), "first rename": (os, "replace", fail)}
    monkeypatch.setattr(*patches.get(broken, (os, "replace", fail_into_place)))
    with pytest.raises(OSError, match="disk full"):
        noisy(first).save(tmp_path / "model", overwrite=True)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model"]
    assert_same(first, models.Diffusion.load(tmp_path / "model"))


def test_a_crash_between_the_renames_says_where_the_old_model_is(tmp_path, monkeypatch):
    first, replace, renames = DIFFUSIONS["flip"](), os.replace, []
    first.save(tmp_path / "model")

    def crash(source, target):
        renames.append(source)
        if len(renames) > 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        noisy(first).save(tmp_path / "model", overwrite=True)
    with pytest.raises(ModelFolderError, match="An interrupted save left the old model in") as caught:
        models.Diffusion.load(tmp_path / "model")
    old = re.search(r"model in (\S+): rename it", str(caught.value))[1]
    assert_same(first, models.Diffusion.load(old))


def test_no_changed_digit_loads_as_another_model(tmp_path):
    """Of model.json, of a residual network: its schedule's rates, its layers' sizes, its arrays' names and shapes."""
    DIFFUSIONS["residual"]().save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    text = file.read_text()
    digits = [i for i, character in enumerate(text) if character.isdigit()]
    assert len(digits) > 200
    for i in digits:
        file.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        with pytest.raises(ModelFolderError):
            models.Diffusion.load(tmp_path / "model")
    file.write_text(text)
    assert_same(DIFFUSIONS["residual"](), models.Diffusion.load(tmp_path / "model"))


def test_a_folder_of_version_1_still_loads(tmp_path):
    DIFFUSIONS["rbf"]().save(tmp_path / "model")

    def older(document):
        document["version"] = 1
        del document["json_sha256"]
        for entry in document["arrays"].values():
            del entry["finite"]

    edit(older)(tmp_path / "model")
    assert_same(DIFFUSIONS["rbf"](), models.Diffusion.load(tmp_path / "model"))
    DIFFUSIONS["rbf"]().save(tmp_path / "model", overwrite=True)
    assert json.loads((tmp_path / "model" / "model.json").read_text())["version"] == 2


def test_the_next_save_clears_what_a_killed_one_left_and_not_what_a_living_one_writes(tmp_path):
    left = [tmp_path / f".model.{digit * 32}.{what}" for digit, what in (("a", "new"), ("b", "new"), ("c", "old"))]
    for path in (*left, tmp_path / ".model.notes.new", tmp_path / f".model2.{'a' * 32}.new"):
        path.mkdir()
    with files.locked(left[1]):
        DIFFUSIONS["flip"]().save(tmp_path / "model", overwrite=True)
    kept = {left[1].name, ".model.notes.new", f".model2.{'a' * 32}.new", "model"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    DIFFUSIONS["flip"]().save(tmp_path / "model", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == kept - {left[1].name}


def test_a_number_too_great_to_load_is_not_saved(tmp_path):
    kernel = jax.tree_util.Partial(lambda number, t, x: OwnKernel(jnp.zeros(4))(t, x), 10**300)
    with pytest.raises(
        ValueError, match=r"model\.reverse\.0 must be below 2\^63 in size to be saved; got 1\.000e\+300"
    ):
        models.Diffusion(GAUSSIAN, kernel).save(tmp_path / "model")
