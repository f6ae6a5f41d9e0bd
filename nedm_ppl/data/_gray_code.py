r"""Points of the plane as words of 32 bits, in Gray code.

A coordinate x becomes a sign bit, 1 where x < 0, and the 15-bit reflected Gray code $n \oplus \lfloor n/2 \rfloor$ of
$n = \lfloor |x|\, s \rfloor$, most significant bit first; the word of the first coordinate stands before that of the second.
Neighboring integers differ in one bit, those on either side of zero in the sign alone. Every cell has the area $1/s^2$, so
that the probability of a word is $p(x) / s^2$ up to the curvature of the density over a cell, and the entropy is
$h + 2 \log s$ with h the differential entropy.

The scale is $s = 2^{15} / (\max |x| + 2)$, the maximum taken over both coordinates of 5,000 draws by `RandomState(1)`.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from nedm_ppl.data._plane import plane, plane_entropy, plane_log_density

__all__ = [
    "WORD_BITS",
    "gray_code_entropy",
    "gray_code_log_prob",
    "gray_decode",
    "gray_encode",
    "gray_word_log_prob",
    "int_scale",
]

WORD_BITS: int = 16
"""Bits of one coordinate: the sign, then the Gray code of the magnitude."""


@cache
def int_scale(name: str) -> float:
    """Cells per unit of length, s, for one of `PLANE_DENSITIES`."""
    largest = float(np.abs(plane(np.random.RandomState(1), name, 5_000)).max())
    return 2 ** (WORD_BITS - 1) / (largest + 2.0)


def gray_encode(x: ArrayLike, scale: float) -> np.ndarray:
    """Bits of points.

    Args:
        x: Points, shape (*batch, d), below 2^15 / scale in magnitude.
        scale: Cells per unit of length, s.

    Returns:
        0 or 1, uint8, shape (*batch, 16 d).

    Raises:
        ValueError: a coordinate that 15 bits do not hold.
    """
    x = np.asarray(x, np.float64)
    if not np.all(np.abs(x) * scale < 2 ** (WORD_BITS - 1)):
        raise ValueError(
            f"x must be below {2 ** (WORD_BITS - 1) / scale:g} in magnitude, 2^15 cells of scale {scale:g}; "
            f"got {np.abs(x).max():g}. Use a smaller scale."
        )
    n = np.floor(np.abs(x) * scale).astype(np.int64)
    gray = n ^ (n >> 1)
    bits = (gray[..., None] >> np.arange(WORD_BITS - 2, -1, -1)) & 1
    words = np.concatenate([(x < 0.0)[..., None], bits], axis=-1)
    return words.reshape(*x.shape[:-1], -1).astype(np.uint8)


def gray_decode(bits: ArrayLike, scale: float) -> np.ndarray:
    """The centers of the cells that bits name: the inverse of `gray_encode`, to half a cell.

    Args:
        bits: 0 or 1, shape (*batch, 16 d).
        scale: Cells per unit of length, s.

    Returns:
        Points, float64, shape (*batch, d).

    Raises:
        ValueError: bits that are no words of 16, or other than 0 and 1.
    """
    bits = np.asarray(bits)
    if bits.ndim == 0 or bits.shape[-1] == 0 or bits.shape[-1] % WORD_BITS:
        raise ValueError(f"bits must have a last axis of words of {WORD_BITS}; got shape {bits.shape}.")
    if not np.all((bits == 0) | (bits == 1)):
        raise ValueError("bits must be 0 or 1; got other values. Threshold them.")
    words = bits.astype(np.int64).reshape(*bits.shape[:-1], -1, WORD_BITS)
    # Bit k of the integer is the parity of the Gray bits down to k.
    binary = np.cumsum(words[..., 1:], axis=-1) % 2
    n = binary @ (1 << np.arange(WORD_BITS - 2, -1, -1))
    return np.where(words[..., 0] == 1, -1.0, 1.0) * (n + 0.5) / scale


def gray_code_log_prob(x: ArrayLike, name: str) -> np.ndarray:
    r"""Log probability of the 32-bit word of a draw x, $\log p(x) - 2 \log s$.

    The density is taken at the draw itself, not averaged over its cell. That differs from the word's exact log probability
    by the density's change over a cell, of order $1/(s\sigma)$, a thousandth or two for a draw; the mean over draws
    by its square, 1e-6 nats, and it is the mean that is $-(h + 2 \log s)$.

    Args:
        x: Draws before the coding, shape (*batch, 2).
        name: One of `PLANE_DENSITIES`.

    Returns:
        Nats, float64, shape (*batch,).
    """
    return plane_log_density(x, name) - 2.0 * math.log(int_scale(name))


def gray_word_log_prob(bits: ArrayLike, name: str) -> np.ndarray:
    r"""Log probability of 32-bit words, $\log p(x) - 2 \log s$ with x the center of the word's cell.

    The density at the center is its average over the cell up to its curvature there, 1e-6 nats. Where the center lies off the
    checkerboard, the largest value at a corner: a cell that an edge cuts counts as whole.

    Args:
        bits: 0 or 1, shape (*batch, 32).
        name: One of `PLANE_DENSITIES`.

    Returns:
        Nats, float64, shape (*batch,).
    """
    scale = int_scale(name)
    center = gray_decode(bits, scale)
    log_prob = gray_code_log_prob(center, name)
    outside = np.isneginf(log_prob)
    corners = np.array([(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]) * 0.499 / scale
    at_corners = gray_code_log_prob(center[outside][..., None, :] + corners, name)
    log_prob[outside] = at_corners.max(axis=-1)
    return log_prob


def gray_code_entropy(name: str) -> float:
    """Entropy of the 32-bit words, h + 2 log s, nats: what no model's expected negative log likelihood can be below."""
    return plane_entropy(name) + 2.0 * math.log(int_scale(name))
