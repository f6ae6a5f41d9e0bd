"""Integrals on a line by composite Gauss-Legendre quadrature, for many points at a time."""

from collections.abc import Callable

import numpy as np

__all__ = ["by_rows", "panels"]

# Entries of the (points, nodes) table that a quadrature holds at a time.
CHUNK_ENTRIES = 4_000_000


def panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ten points for every panel between two edges."""
    unit, weight = np.polynomial.legendre.leggauss(10)
    center, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    return (center[:, None] + half[:, None] * unit).ravel(), (half[:, None] * weight).ravel()


def by_rows(integral: Callable[[np.ndarray], np.ndarray], x: np.ndarray, num_nodes: int) -> np.ndarray:
    """The integral at every point of x, shape (n, ...), for so many points at a time that their table of nodes stays small."""
    rows = max(1, CHUNK_ENTRIES // num_nodes)
    return np.concatenate([integral(x[i : i + rows]) for i in range(0, max(1, len(x)), rows)])
