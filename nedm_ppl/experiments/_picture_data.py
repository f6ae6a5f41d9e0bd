"""Where the images of the image experiments come from, and how they are split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nedm_ppl import data
from nedm_ppl.experiments._spec import Split

__all__ = ["SIZE", "larger_places", "leaves", "of_faces", "of_labeled", "of_photographs", "of_texture"]

SIZE = 32
LEAVES_SEED, LEAVES_NOISE, NUM_LEAVES = 20120731, 0.05, (50, 20)


def leaves(path: Path | None, seed: int) -> Split:
    """Dead leaves with sensor noise, scaled by the training images' pooled constants: new ones, or those of a .npz file.

    Such a file has `train` and `test` of gray levels 0..255, shape (N, height, width); noise of image i of part k is drawn by
    `numpy.random.default_rng([20120731, k, i, 2])`.
    """
    if path is None:
        clean = [
            data.dead_leaves(np.random.default_rng([seed, part]), count, 256) for part, count in enumerate(NUM_LEAVES)
        ]
    else:
        try:
            with np.load(path, allow_pickle=False) as file:
                clean = [file[part].astype(np.float64) / 255.0 for part in ("train", "test")]
        except (OSError, ValueError, KeyError):
            raise ValueError(f"--data must be a .npz file with train and test images; {path} is none.") from None
    mean, sd = clean[0].mean(), clean[0].std()
    noisy = [
        np.stack([(image - mean) / sd + LEAVES_NOISE * sensor(part, i, image.shape) for i, image in enumerate(images)])
        for part, images in enumerate(clean)
    ]
    mean, sd = noisy[0].mean(), noisy[0].std()
    train, test = ([(image - mean) / sd for image in images] for images in noisy)
    held = [crop for image in train[-2:] for crop in data.crops(image, SIZE)]
    return Split(stacked(train[:-2], 8), np.stack(held), stacked(test, SIZE))


def sensor(part: int, image: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of an image."""
    return np.random.default_rng([LEAVES_SEED, part, image, 2]).standard_normal(shape)


def stacked(images: list[np.ndarray], stride: int) -> np.ndarray:
    """All crops of images, float32."""
    return np.concatenate([data.crops(image, SIZE, stride).astype(np.float32) for image in images])


def of_texture(path: Path | None, seed: int) -> Split:
    """A texture's upper three quarters to train on, of which the last eighth is looked at, and the rest held out; with noise.

    Uniform noise of one gray level makes densities of what are levels; training draws it anew."""
    images = data.texture("grass" if path is None else path)
    rng = np.random.default_rng([seed, 8])
    parts: list[list[np.ndarray]] = [[], [], []]
    for image in images:
        cut = [int(0.65 * len(image)), int(0.75 * len(image))]
        upper, middle, lower = np.split(image, cut)
        parts[0].append(data.crops(upper, SIZE, 4))
        parts[1].append(data.crops(middle, SIZE))
        parts[2].append(data.crops(lower, SIZE))
    train, validation, holdout = (np.concatenate(part).astype(np.float32) for part in parts)
    noise = (rng.uniform(-0.5, 0.5, part.shape).astype(np.float32) for part in (validation, holdout))
    return Split(train, validation + next(noise), holdout + next(noise))


def larger_places(path: Path | None, size: int) -> np.ndarray:
    """Places of that size in the rows of a texture that are held out, overlapping; gray levels."""
    images = data.texture("grass" if path is None else path)
    lower = [image[int(0.75 * len(image)) :] for image in images]
    return np.concatenate([data.crops(part, min(size, *part.shape), size // 4) for part in lower]).astype(np.float32)


def of_photographs(path: Path | None, seed: int) -> Split:
    """Crops of photographs, which are held out as wholes."""
    if path is not None:
        raise ValueError(
            "--data must be left out for photographs, which come with packages; use nedm train for a folder."
        )
    train, holdout = data.photographs()
    last = train.pop("flower")
    return Split(stacked(list(train.values()), 8), stacked([last], SIZE), stacked(list(holdout.values()), SIZE))


def of_faces(path: Path | None, seed: int) -> Split:
    """A hundred faces without their last row and column, four fifths to train on."""
    if path is not None:
        raise ValueError(
            "--data must be left out for faces, which come with scikit-image; use nedm train for a folder."
        )
    faces = data.faces()[:, :24, :24].astype(np.float32)
    order = np.random.default_rng([seed, 9]).permutation(len(faces))
    return Split(faces[order[30:]], faces[order[20:30]], faces[order[:20]])


def of_labeled(read: Callable[..., data.LabeledImages], needs_folder: bool, path: Path | None, seed: int) -> Split:
    """The official files of a data set; the last tenth of its training part is looked at."""
    if path is None and needs_folder:
        raise ValueError("--data must name the folder with the official files; nothing is downloaded.")
    found = read() if path is None else read(path)
    cut = len(found.train) - max(1, len(found.train) // 10)
    train, test = (part.astype(np.float32) for part in (found.train, found.holdout))
    return Split(train[:cut], train[cut:], test)
