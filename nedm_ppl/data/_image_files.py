"""Images from a folder of files."""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nedm_ppl.files import printable, shortened

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SkippedFilesWarning", "read_images"]

GRAY, GRAY_16 = ("1", "L", "LA"), ("I;16", "I;16B", "I;16L", "I")


class SkippedFilesWarning(UserWarning):
    """Some files of a folder were no images, and were left out."""


def read_images(folder: str | os.PathLike, *, strict: bool = False) -> np.ndarray:
    """All images of a folder, in the order of their names.

    Gray images stay gray, of 16 bits too; with one in color among them all are read in color. A palette is looked up, and an alpha
    channel is dropped.

    Args:
        folder: A folder of .png, .jpg or whatever Pillow reads, all of one size; folders inside are not looked into.
        strict: Whether a file that is no image is an error, and not left out with a warning.

    Returns:
        Gray levels from 0 to 255 (65,535 of 16 bits), float64, shape (N, height, width) or (N, height, width, 3).

    Raises:
        ValueError: no such folder, no images, images of several sizes, or with `strict` a file that is none.

    Warns:
        SkippedFilesWarning: files that are no images, with their count.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"data must be a folder of images; there is none at {printable(path)}.")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    images, skipped = {}, []
    for file in files:
        try:
            images[file.name] = _read(file)
        except ValueError as error:
            if strict:
                raise ValueError(f"{printable(file)} must be an image; {error}.") from None
            skipped.append(file.name)
    if not images:
        raise ValueError(f"{printable(path)} must hold images; it holds {len(files)} other files.")
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(files)} files of {printable(path)} are no images and were left out, "
            f"{shortened(skipped[0])} among them.",
            SkippedFilesWarning,
            stacklevel=2,
        )
    _check_sizes(images)
    read = list(images.values())
    if any(image.ndim == 3 for image in read):
        read = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1) for image in read]
    return np.stack(read).astype(np.float64)


def _read(file: Path) -> np.ndarray:
    """The pixels of a file; a ValueError with the reason where it is no image, or one too large to be opened unasked."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return _pixels(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(shortened(str(error).rstrip("."), 200)) from None


def _check_sizes(images: dict[str, np.ndarray]) -> None:
    sizes = Counter(image.shape[:2] for image in images.values())
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        name, other = next((name, image) for name, image in images.items() if image.shape[:2] != usual)
        raise ValueError(
            f"images must have one size; {sizes[usual]} are {usual[0]} x {usual[1]}, and {shortened(name)} is "
            f"{other.shape[0]} x {other.shape[1]}. Crop or resize them."
        )


def _pixels(image: "Image.Image") -> np.ndarray:
    """Gray levels of an image in a mode of Pillow's: shape (height, width), or with three colors."""
    if image.mode in GRAY_16:
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in GRAY else "RGB"))
