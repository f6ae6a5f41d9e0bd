r"""Cholesky factors of many small symmetric matrices, one per particle, and what is computed with them.

Written as loops over columns, elementwise over the batch: unrolled where matrices are small, else a loop of the compiled program.
LAPACK is called once for every matrix of a batch, which takes longer, and where a program runs several such batches at once jaxlib
can wait for ever on two cores; so no matrix of a batch is given to it, whatever its size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["cholesky", "compressed", "inverse_factor", "positive_part", "solve", "whiten"]

# Unrolled loops of larger matrices compile slowly.
LARGEST_UNROLLED = 8


def cholesky(matrix: Array) -> Array:
    r"""Lower triangular L with $L L^\top = A$, shape (*batch, n, n).

    A pivot that is not positive beyond rounding is raised to it, and the rest of its column is 0: the product is A where A is
    positive definite, and is always positive semidefinite.
    """
    size = matrix.shape[-1]
    rows = jnp.arange(size)
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)

    def column(j: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = state
        pivot = rest[..., j, j]
        least = jnp.maximum(8.0 * jnp.finfo(matrix.dtype).eps * diagonal[..., j], 0.0)
        usable = pivot > least
        below = rest[..., :, j] / jnp.sqrt(jnp.where(usable, pivot, 1.0))[..., None]
        alone = jnp.where(rows == j, jnp.sqrt(least)[..., None], 0.0)
        now = jnp.where(rows >= j, jnp.where(usable[..., None], below, alone), 0.0)
        return rest - now[..., :, None] * now[..., None, :], factor.at[..., :, j].set(now)

    return _loop(size, column, (matrix, jnp.zeros_like(matrix)))[1]


def positive_part(matrix: Array) -> Array:
    r"""A symmetric positive semidefinite matrix: that of the batch where it is one already, else one near it."""
    factor = cholesky(0.5 * (matrix + jnp.swapaxes(matrix, -1, -2)))
    if matrix.shape[-1] <= LARGEST_UNROLLED:  # a call for every matrix of the batch takes longer
        return jnp.sum(factor[..., :, None, :] * factor[..., None, :, :], axis=-1)
    return jnp.matmul(factor, jnp.swapaxes(factor, -1, -2), precision="highest")


def whiten(factor: Array, vectors: Array) -> Array:
    r"""$L^{-1} B$ for lower triangular L of shape (*batch, n, n) and B of shape (*batch, n, m)."""
    batch = jnp.broadcast_shapes(factor.shape[:-2], vectors.shape[:-2])
    factor = jnp.broadcast_to(factor, (*batch, *factor.shape[-2:]))
    rest = jnp.broadcast_to(vectors, (*batch, *vectors.shape[-2:])).astype(jnp.result_type(factor, vectors))

    def row(j: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, solved = state
        now = rest[..., j, :] / factor[..., j, j, None]
        return rest - factor[..., :, j, None] * now[..., None, :], solved.at[..., j, :].set(now)

    return _loop(factor.shape[-1], row, (rest, jnp.zeros_like(rest)))[1]


def solve(factor: Array, vectors: Array) -> Array:
    r"""$(L L^\top)^{-1} B$, shapes as in `whiten`."""
    # The transpose read backwards is lower triangular again.
    backwards = jnp.swapaxes(factor, -1, -2)[..., ::-1, ::-1]
    return whiten(backwards, whiten(factor, vectors)[..., ::-1, :])[..., ::-1, :]


def inverse_factor(matrix: Array) -> Array:
    r"""M with $M M^\top = A^{-1}$ for positive definite A of shape (*batch, n, n): upper triangular."""
    factor = cholesky(matrix)
    return jnp.swapaxes(whiten(factor, jnp.eye(matrix.shape[-1], dtype=matrix.dtype)), -1, -2)


def compressed(matrix: Array, value: Array) -> tuple[Array, Array]:
    r"""$R$ and $Q^\top y$ for $A = Q R$, A of shape (m, n): as many rows as A has columns, $|A x - y|$ the same up to a constant.

    By Householder reflections, column by column. With no more rows than columns, A and y as they are."""
    rows, columns = matrix.shape
    if rows <= columns:
        return matrix, value
    index = jnp.arange(rows)

    def reflect(j: Any, table: Array) -> Array:
        below = jnp.where(index >= j, table[:, j], 0.0)
        length = jnp.linalg.norm(below)
        vector = below.at[j].add(jnp.where(below[j] < 0.0, -length, length))
        square = jnp.sum(jnp.square(vector))
        return table - jnp.where(square > 0.0, 2.0 / jnp.where(square > 0.0, square, 1.0), 0.0) * jnp.outer(
            vector, vector @ table
        )

    table = jax.lax.fori_loop(0, columns, reflect, jnp.concatenate([matrix, value[:, None]], axis=1))
    return jnp.triu(table[:columns, :columns]), table[:columns, columns]


def _loop(size: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
    if size > LARGEST_UNROLLED:
        return jax.lax.fori_loop(0, size, body, state)
    for j in range(size):
        state = body(j, state)
    return state
