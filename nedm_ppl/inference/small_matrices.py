r"""Cholesky factors of many small symmetric matrices, one per particle, and what is computed with them.

Written as unrolled loops over columns, elementwise over the batch. LAPACK is called once for every matrix of a batch, which takes
longer while they are small, and where a program runs several such batches at once jaxlib 0.10.2 can wait for ever on two cores.
"""

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["cholesky", "positive_part", "solve", "whiten"]

# Unrolled loops of larger matrices compile slowly; those are left to LAPACK.
LARGEST = 8


def cholesky(matrix: Array) -> Array:
    r"""Lower triangular L with $L L^\top = A$, shape (*batch, n, n).

    A pivot that is not positive beyond rounding is raised to it, and the rest of its column is 0: the product is A where A is
    positive definite, and is always positive semidefinite. Of more than `LARGEST` rows LAPACK's, NaN where A is not definite.
    """
    size = matrix.shape[-1]
    if size > LARGEST:
        return jnp.linalg.cholesky(matrix)
    rows, columns, rest = jnp.arange(size), [], matrix
    for j in range(size):
        pivot = rest[..., j, j]
        least = jnp.maximum(8.0 * jnp.finfo(matrix.dtype).eps * matrix[..., j, j], 0.0)
        usable = pivot > least
        below = rest[..., :, j] / jnp.sqrt(jnp.where(usable, pivot, 1.0))[..., None]
        alone = jnp.where(rows == j, jnp.sqrt(least)[..., None], 0.0)
        column = jnp.where(rows >= j, jnp.where(usable[..., None], below, alone), 0.0)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return jnp.stack(columns, axis=-1)


def positive_part(matrix: Array) -> Array:
    r"""A symmetric positive semidefinite matrix: that of the batch where it is one already, else one near it."""
    symmetric = 0.5 * (matrix + jnp.swapaxes(matrix, -1, -2))
    if matrix.shape[-1] > LARGEST:
        values, vectors = jnp.linalg.eigh(symmetric)
        return (vectors * jnp.maximum(values, 0.0)[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)
    factor = cholesky(symmetric)
    return jnp.sum(factor[..., :, None, :] * factor[..., None, :, :], axis=-1)


def whiten(factor: Array, vectors: Array) -> Array:
    r"""$L^{-1} B$ for lower triangular L of shape (*batch, n, n) and B of shape (*batch, n, m)."""
    batch = jnp.broadcast_shapes(factor.shape[:-2], vectors.shape[:-2])
    rest, solved = jnp.broadcast_to(vectors, (*batch, *vectors.shape[-2:])), []
    if factor.shape[-1] > LARGEST:
        factor = jnp.broadcast_to(factor, (*batch, *factor.shape[-2:]))
        return jax.scipy.linalg.solve_triangular(factor, rest, lower=True)
    for j in range(factor.shape[-1]):
        row = rest[..., j, :] / factor[..., j, j, None]
        rest = rest - factor[..., :, j, None] * row[..., None, :]
        solved.append(row)
    return jnp.stack(solved, axis=-2)


def solve(factor: Array, vectors: Array) -> Array:
    r"""$(L L^\top)^{-1} B$, shapes as in `whiten`."""
    # The transpose read backwards is lower triangular again.
    backwards = jnp.swapaxes(factor, -1, -2)[..., ::-1, ::-1]
    return whiten(backwards, whiten(factor, vectors)[..., ::-1, :])[..., ::-1, :]
