"""Sources and affinity read from jaxprs: against derivatives at many points, and cases with a known answer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl.inference.program._structure import Mark, structure

X = jnp.zeros(4)


def sources(mark: Mark) -> list:
    """Per element: None, a group, or `many`."""
    pairs = zip(mark.low.ravel().tolist(), mark.high.ravel().tolist(), strict=True)
    return [None if high < 0 else low if low == high else "many" for low, high in pairs]


CASES = {
    "scaled": (lambda x: 2.0 * x + 1.0, [0, 1, 2, 3], True),
    "clipped": (lambda x: jnp.clip(x, -0.5, 0.5), [0, 1, 2, 3], False),
    "least": (lambda x: jnp.minimum(x, 1.0), [0, 1, 2, 3], False),
    "absolute": (lambda x: jnp.abs(x + 1.0) - 1.0, [0, 1, 2, 3], False),
    "gated": (lambda x: jnp.where(x > 1.0, -x, x), [0, 1, 2, 3], False),
    "cubic beyond every tolerance": (lambda x: x + 1e-30 * x**3, [0, 1, 2, 3], False),
    "chosen by what is known": (lambda x: jnp.where(jnp.arange(4) < 2, x, 0.0), [0, 1, None, None], True),
    "summed": (jnp.sum, ["many"], True),
    "largest": (jnp.max, ["many"], False),
    "picked": (lambda x: x[jnp.array([2, 0])], [2, 0], True),
    "picked by x": (lambda x: x[jnp.argmax(x)], ["many"], False),
    "rolled": (lambda x: jnp.roll(x, 1), [3, 0, 1, 2], True),
    "constant": (lambda x: jnp.ones(2) * x.size, [None, None], True),
    "padded": (lambda x: jnp.pad(x, 1), [None, 0, 1, 2, 3, None], True),
    "written": (lambda x: jnp.zeros(3).at[jnp.array([2, 0])].set(x[:2]), [1, None, 0], True),
    "added": (lambda x: jnp.zeros(2).at[jnp.array([0, 0, 1])].add(x[:3]), ["many", 2], True),
    "summed along": (jnp.cumsum, [0, "many", "many", "many"], True),
    "mixed": (lambda x: jnp.ones((2, 4)) @ x, ["many", "many"], True),
    "multiplied by itself": (lambda x: x * x, [0, 1, 2, 3], False),
    "per row": (jax.vmap(lambda x: jax.nn.softplus(x)), [0, 1, 2, 3], False),
    "scanned": (lambda x: jax.lax.scan(lambda carry, x: (carry, 2.0 * x + carry), 1.0, x)[1], [0, 1, 2, 3], True),
    "held": (lambda x: jax.lax.stop_gradient(jnp.exp(x)), [0, 1, 2, 3], False),
    "compiled": (jax.jit(lambda x: x[1:] - 1.0), [1, 2, 3], True),
    "convolved": (lambda x: jnp.convolve(x, jnp.ones(2), "valid"), ["many"] * 3, True),
    "by a loop": (lambda x: jax.lax.while_loop(lambda c: c.sum() < 3.0, lambda c: c + 1.0, x), ["many"] * 4, False),
    "sorted": (jnp.sort, ["many"] * 4, False),
    "divided by x": (lambda x: 1.0 / x, [0, 1, 2, 3], False),
    "multiplied up": (jnp.cumprod, [0, "many", "many", "many"], False),
    "summed back": (lambda x: jax.lax.cumsum(x, reverse=True), ["many", "many", "many", 3], True),
    "scanned back": (
        lambda x: jax.lax.scan(lambda c, x: (c + x, c + x), 0.0, x, reverse=True)[1],
        ["many", "many", "many", 3],
        True,
    ),
    "a branch of x, both its own": (lambda x: jax.lax.cond(x[0] > 0, lambda: x[0], lambda: 2.0 * x[0]), [0], False),
    "by a branch of x": (lambda x: jax.lax.cond(x[0] > 0, lambda: x[1], lambda: 2.0 * x[1]), ["many"], False),
}


@pytest.mark.central
@pytest.mark.parametrize("name", CASES)
def test_known_answers(name):
    function, expected, affine = CASES[name]
    mark = structure(function, X)
    assert sources(mark) == expected
    assert np.all(mark.affine == affine)


@pytest.mark.cases(10)
@pytest.mark.parametrize("name", CASES)
def test_no_derivative_where_no_source_is_and_no_curvature_where_it_is_affine(name):
    """A mark may say too much, and never too little."""
    function, _, _ = CASES[name]
    mark = structure(function, X)
    for x in np.random.default_rng(0).normal(size=(5, 4)):
        jacobian = np.asarray(jax.jacfwd(function)(jnp.asarray(x))).reshape(-1, 4)
        curved = np.asarray(jax.jacfwd(jax.jacfwd(function))(jnp.asarray(x))).reshape(-1, 4, 4).any((1, 2))
        seen = zip(mark.low.ravel()[:, None], mark.high.ravel()[:, None], strict=True)
        allowed = np.stack([(np.arange(4) >= low) & (np.arange(4) <= high) for low, high in seen])
        assert not np.any(jacobian[~allowed])
        assert not np.any(curved & mark.affine.ravel())


def test_what_is_not_known_holds_for_every_value():
    def function(x, which, scale):
        return scale * x[which], jnp.where(scale > 0.0, x, 0.0)

    picked, gated = structure(function, X, jnp.array([1]), jnp.array(2.0))
    assert sources(picked) == ["many"] and picked.affine.all()
    assert sources(gated) == [0, 1, 2, 3] and gated.affine.all()
    whole = structure(partial(function, which=jnp.array([1]), scale=2.0), X)
    assert sources(whole[0]) == [1]


SUMS = {
    "of functions of one coordinate": (lambda x: jnp.sum(jnp.cosh(x)) + 2.0 * x[0] ** 3, True),
    "weighted": (lambda x: jnp.arange(4.0) @ jnp.exp(x), True),
    "of pairs": (lambda x: jnp.sum(x[1:] * x[:-1]), False),
    "squared": (lambda x: jnp.square(jnp.sum(x)), False),
    "times a function": (lambda x: jnp.sum(x) * x[0], False),
}


@pytest.mark.central
@pytest.mark.parametrize("name", SUMS)
def test_sums(name):
    function, expected = SUMS[name]
    assert bool(structure(function, X).is_sum) is expected
    hessian = np.asarray(jax.hessian(function)(jnp.array([0.3, -1.0, 0.7, 2.0])))
    assert bool(np.abs(hessian - np.diag(np.diagonal(hessian))).max() == 0.0) is expected


def test_groups():
    rows = np.repeat(np.arange(3)[:, None], 2, axis=1)
    apart = structure(lambda x: x.sum(-1), jnp.zeros((3, 2)), groups=rows)
    assert sources(apart) == [0, 1, 2]
    met = structure(lambda x: (x[:, 1] - jnp.roll(x[:, 1], 1)) ** 2, jnp.zeros((3, 2)), groups=rows)
    assert sources(met) == ["many"] * 3


def test_under_a_transformation():
    """Arrays that an outer `vmap` or `jit` has traced are not known, and no error."""
    found = []

    @jax.jit
    def outer(scale, which):
        found.append(structure(lambda x: scale * x[which], X))
        return scale

    outer(1.0, jnp.array([0, 1]))
    assert sources(found[0]) == ["many", "many"] and found[0].affine.all()
