"""Factors of small matrices against LAPACK, and what is done with matrices that are not positive definite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl.laws._small_matrices import (
    LARGEST_UNROLLED,
    cholesky,
    compressed,
    inverse_factor,
    positive_part,
    solve,
    whiten,
)


def definite(size: int, batch: tuple[int, ...] = (3, 2)) -> np.ndarray:
    rng = np.random.default_rng(size)
    root = rng.normal(size=(*batch, size, size)).astype(np.float32)
    scale = 10.0 ** rng.uniform(-3, 3, size=size).astype(np.float32)
    return scale[:, None] * (root @ np.swapaxes(root, -1, -2) + size * np.eye(size, dtype=np.float32)) * scale


@pytest.mark.central
@pytest.mark.cases(2)
@pytest.mark.parametrize("size", [1, 2, 6, LARGEST_UNROLLED + 1])
def test_against_lapack(size):
    matrix, vectors = definite(size), np.random.default_rng(1).normal(size=(3, 2, size, 2)).astype(np.float32)
    factor = cholesky(jnp.asarray(matrix))
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix), rtol=1e-3, atol=1e-6)
    exact = np.linalg.solve(matrix.astype(np.float64), vectors)
    unit = np.sqrt(np.diagonal(matrix, axis1=-2, axis2=-1))[..., None]
    np.testing.assert_allclose(whiten(factor, factor), np.broadcast_to(np.eye(size), factor.shape), atol=1e-4)
    solved = unit * solve(factor, jnp.asarray(vectors))
    np.testing.assert_allclose(solved, unit * exact, rtol=1e-3, atol=1e-3 * np.abs(unit * exact).max())


@pytest.mark.parametrize("size", [4, LARGEST_UNROLLED + 1])
def test_positive_part_leaves_a_semidefinite_matrix_alone(size):
    low_rank = np.random.default_rng(0).normal(size=(5, size, 2)).astype(np.float32)
    matrix = low_rank @ np.swapaxes(low_rank, -1, -2)
    np.testing.assert_allclose(positive_part(jnp.asarray(matrix)), matrix, atol=1e-4)
    np.testing.assert_array_equal(positive_part(jnp.zeros((2, 3, 3))), np.zeros((2, 3, 3)))


def test_positive_part_of_an_indefinite_matrix_is_semidefinite():
    matrix = np.random.default_rng(0).normal(size=(50, 4, 4)).astype(np.float32)
    part = np.asarray(positive_part(jnp.asarray(matrix)), np.float64)
    assert np.all(np.linalg.eigvalsh(0.5 * (matrix + np.swapaxes(matrix, -1, -2)))[:, 0] < 0.0)
    assert np.all(np.linalg.eigvalsh(part)[:, 0] >= -1e-5 * np.abs(part).max(axis=(-1, -2)))
    np.testing.assert_array_equal(positive_part(jnp.array([[-2.0]])), [[0.0]])


def test_gradient_is_finite_where_a_pivot_is_lost():
    gradient = jax.grad(lambda matrix: jnp.sum(positive_part(matrix)))(jnp.ones((2, 2)))
    assert np.all(np.isfinite(gradient))


def test_a_pivot_lost_to_rounding_is_raised_so_that_solutions_stay_finite():
    factor = cholesky(jnp.ones((2, 2)))
    np.testing.assert_allclose(factor @ factor.T, np.ones((2, 2)), atol=1e-5)
    assert np.all(np.diagonal(factor) > 0.0) and np.all(np.isfinite(solve(factor, jnp.ones((2, 1)))))


@pytest.mark.parametrize("size", [3, LARGEST_UNROLLED + 1])
def test_inverse_factor(size):
    matrix = np.eye(size) + 0.5 * np.ones((2, size, size))
    factor = np.asarray(inverse_factor(jnp.asarray(matrix)))
    np.testing.assert_allclose(factor @ np.swapaxes(factor, -1, -2), np.linalg.inv(matrix), atol=1e-5)
    np.testing.assert_array_equal(factor, np.triu(factor))


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (3, 3), (50, 3), (20, 12)])
def test_compressed_rows_say_the_same(rows, columns):
    rng = np.random.default_rng(rows)
    matrix, value = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    matrix[:, 0] = 0.0  # a coordinate that nothing looks at
    small, seen = compressed(jnp.asarray(matrix), jnp.asarray(value))
    assert len(seen) == min(rows, columns)
    np.testing.assert_allclose(small.T @ small, matrix.T @ matrix, atol=1e-4)
    np.testing.assert_allclose(small.T @ seen, matrix.T @ value, atol=1e-4)


def test_no_program_calls_lapack():
    def program(matrix, vectors):
        return solve(cholesky(matrix), vectors), positive_part(matrix), inverse_factor(matrix)

    text = jax.jit(jax.vmap(program)).lower(jnp.zeros((5, 20, 20)), jnp.zeros((5, 20, 2))).as_text()
    assert "lapack" not in text and "custom_call" not in text
