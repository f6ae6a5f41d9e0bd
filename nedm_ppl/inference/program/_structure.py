r"""What a function's outputs depend on, and whether they are affine in its input: read from its jaxpr, never from values.

Every element of every array on the way carries a mark. Its *source* says which groups of x the element depends on: none, one of
them, or several; a group is a coordinate of x by default, or a row of a plate. Its *form* says whether it is an affine function of
x, for every value of everything else, or at least a sum of functions of one group each. Where a primitive is not known here, its
outputs are taken to depend on all its inputs, in any way: a mark may say too much, never too little.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl._compat import ClosedJaxpr, Literal, Tracer

__all__ = ["Mark", "structure"]

SUM, AFFINE = np.int8(1), np.int8(2)
NOTHING = np.iinfo(np.int32).max  # the smallest group of an element that depends on none

LONGEST_SCAN = 1000  # rounds; what a longer one returns is taken to depend on all it is given

LINEAR = {"neg", "add", "sub", "add_any", "copy", "copy_p", "real", "imag", "sharding_constraint", "stop_gradient"}
# fmt: off
ELEMENTWISE = LINEAR | {
    "abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp",
    "convert_element_type", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge",
    "gt", "igamma", "igammac", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul",
    "ne", "nextafter", "not", "or", "polygamma", "pow", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "xor",
    "zeta",
}
CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
}
# fmt: on
# Of one operand, or of several of equal standing, and of places that are parameters: the same is done to the marks.
MOVES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "concatenate", "pad"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}


class Mark(NamedTuple):
    """What the elements of an array are to x; arrays of its shape.

    Attributes:
        low, high: The smallest and the largest group that an element depends on; equal where there is one. Where there is none
            `high` is -1.
        form: `AFFINE` where the element is an affine function of x, given everything else; `SUM` where it is a sum of functions of
            one group each; else 0.
        value: The array itself, where it is made of integers or booleans and of nothing that varies; else None.
    """

    low: np.ndarray
    high: np.ndarray
    form: np.ndarray
    value: Any = None

    @property
    def affine(self) -> np.ndarray:
        """Whether an element is an affine function of x, given everything else."""
        return self.form == AFFINE

    @property
    def is_sum(self) -> np.ndarray:
        """Whether an element is a sum of functions of one group each."""
        return self.form >= SUM

    @property
    def depends(self) -> np.ndarray:
        """Whether an element depends on x."""
        return self.high >= 0

    @property
    def is_single(self) -> np.ndarray:
        """Whether an element depends on one group at most."""
        return (self.low == self.high) | (self.high < 0)


def structure(function: Callable[..., Any], x: Array, *others: Any, groups: np.ndarray | None = None) -> Any:
    """The marks of a function's outputs.

    Args:
        function: Of x and `others`; returns a pytree of arrays.
        x: An array of the shape of x; its values do not matter.
        others: Pytrees of arrays whose values are not known: the answer holds for all of them.
        groups: The group of every coordinate of x, integers from 0 on, of its shape; by default each is its own.

    Returns:
        A pytree like the function's, of a `Mark` for every array.
    """
    closed, shapes = jax.make_jaxpr(lambda x, others: function(x, *others), return_shape=True)(x, others)
    size = int(np.size(x))
    groups = np.arange(size).reshape(np.shape(x)) if groups is None else np.asarray(groups)
    own = Mark(groups.astype(np.int32), groups.astype(np.int32), np.full(np.shape(x), AFFINE))
    rest = [_nothing(np.shape(leaf)) for leaf in jax.tree.leaves(others)]
    with jax.ensure_compile_time_eval():
        marks = _run(closed, [own, *rest])
    return jax.tree.unflatten(jax.tree.structure(shapes), marks)


def _nothing(shape: tuple[int, ...], value: Any = None) -> Mark:
    return Mark(np.full(shape, NOTHING, np.int32), np.full(shape, -1, np.int32), np.full(shape, AFFINE), value)


def _constant(value: Any) -> Mark:
    """The mark of a value that is there already; a tracer of an outer transformation is not known."""
    if isinstance(value, Tracer) or not hasattr(value, "dtype"):
        return _nothing(np.shape(value), None if isinstance(value, Tracer) else value)
    is_whole = jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool
    return _nothing(np.shape(value), np.asarray(value) if is_whole else None)


def _run(closed: ClosedJaxpr, arguments: list[Mark]) -> list[Mark]:
    known: dict[Any, Mark] = {}
    jaxpr = closed.jaxpr
    known.update(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Mark:
        return _constant(np.asarray(atom.val)) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        marks = _equation(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, marks, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(equation: Any, marks: list[Mark]) -> list[Mark]:
    name, params = equation.primitive.name, equation.params
    shapes = [out.aval.shape for out in equation.outvars]
    if name in CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        inner = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        return _run(inner, marks)
    if not any(mark.depends.any() for mark in marks):
        return _of_nothing(equation, marks, shapes)
    if name == "cond":
        return _cond(params["branches"], marks)
    if name == "scan" and params["length"] <= LONGEST_SCAN:
        return _scan(equation, marks)
    if name in ELEMENTWISE:
        return [_elementwise(name, params, marks, shapes[0])]
    if name in MOVES:
        return [_moved(equation, marks, shapes[0])]
    if name in REDUCTIONS:
        low, high = marks[0].low.min(params["axes"]), marks[0].high.max(params["axes"])
        return [_mark(low, high, marks[0].form.min(params["axes"]) if name == "reduce_sum" else 0)]
    if name in CUMULATIVE:
        return [_cumulative(name, params, marks[0])]
    if name == "dot_general":
        return [_dot(params["dimension_numbers"], marks[0], marks[1], shapes[0])]
    if name in ("gather", "dynamic_slice") and all(mark.value is not None for mark in marks[1:]):
        where = [jnp.asarray(mark.value) for mark in marks[1:]]
        filled = name == "gather" and params.get("fill_value") is None and "FILL" in str(params.get("mode"))
        parts = zip(marks[0][:3], (NOTHING, -1, AFFINE), strict=True)
        return [
            Mark(
                *(
                    np.asarray(equation.primitive.bind(jnp.asarray(part), *where, **_filled(params, fill, filled)))
                    for part, fill in parts
                )
            )
        ]
    if name in ("scatter", "scatter-add", "dynamic_update_slice"):
        return [_written(equation, marks)]
    if name in ("conv_general_dilated", "gather", "dynamic_slice", "fft"):
        places = marks[1:] if name != "conv_general_dilated" else []
        both = name == "conv_general_dilated" and all(mark.depends.any() for mark in marks)
        general = both or any(mark.depends.any() for mark in places)
        return [_all(marks, shape, 0 if general else _least(marks)) for shape in shapes]
    return [_all(marks, shape, 0) for shape in shapes]


def _mark(low: np.ndarray, high: np.ndarray, form: Any) -> Mark:
    """Of at least this form: what depends on nothing is affine, and what depends on one group is a sum of functions of it."""
    least = np.where(high < 0, AFFINE, np.where(low == high, SUM, 0))
    return Mark(low, high, np.maximum(form, least).astype(np.int8))


def _least(marks: list[Mark]) -> int:
    return min(int(mark.form.min(initial=AFFINE)) for mark in marks)


def _filled(params: dict[str, Any], fill: Any, needed: bool) -> dict[str, Any]:
    return {**params, "fill_value": fill} if needed else params


def _of_nothing(equation: Any, marks: list[Mark], shapes: list[tuple[int, ...]]) -> list[Mark]:
    """What depends on nothing depends on nothing; integers, of which places are made, are computed."""
    avals = [out.aval for out in equation.outvars]
    whole = all(getattr(aval, "dtype", None) is not None and _is_whole(aval.dtype) for aval in avals)
    if whole and all(mark.value is not None for mark in marks):
        values = equation.primitive.bind(*(jnp.asarray(mark.value) for mark in marks), **equation.params)
        values = values if equation.primitive.multiple_results else [values]
        return [_nothing(shape, np.asarray(value)) for shape, value in zip(shapes, values, strict=True)]
    return [_nothing(shape) for shape in shapes]


def _is_whole(dtype: Any) -> bool:
    return bool(
        not jnp.issubdtype(dtype, jax.dtypes.extended)
        and (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))
    )


def _all(marks: list[Mark], shape: tuple[int, ...], form: int) -> Mark:
    """Every element depends on all that any input depends on."""
    low = min(int(mark.low.min(initial=NOTHING)) for mark in marks)
    high = max(int(mark.high.max(initial=-1)) for mark in marks)
    return _mark(np.full(shape, low, np.int32), np.full(shape, high, np.int32), form)


def _elementwise(name: str, params: dict[str, Any], marks: list[Mark], shape: tuple[int, ...]) -> Mark:
    if name == "select_n" and marks[0].value is not None:
        which = np.broadcast_to(marks[0].value, shape).astype(int)
        return Mark(*(np.choose(which, [np.broadcast_to(mark[i], shape) for mark in marks[1:]]) for i in range(3)))
    low, high = np.full(shape, NOTHING, np.int32), np.full(shape, -1, np.int32)
    for mark in marks:
        low, high = np.minimum(low, mark.low), np.maximum(high, mark.high)
    form: Any = 0
    if name in LINEAR or (name == "integer_pow" and params["y"] == 1):
        form = np.minimum.reduce([np.broadcast_to(mark.form, shape) for mark in marks])
    elif name == "mul":
        form = _product(*marks)
    elif name == "div":
        form = np.where(marks[1].depends, 0, marks[0].form)
    elif name == "select_n":
        cases = np.minimum.reduce([np.broadcast_to(mark.form, shape) for mark in marks[1:]])
        form = np.where(marks[0].depends, 0, cases)
    elif name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.inexact):
        form = marks[0].form
    return _mark(low, high, form)


def _product(one: Mark, other: Mark) -> np.ndarray:
    return np.where(one.depends, np.where(other.depends, 0, one.form), other.form)


def _moved(equation: Any, marks: list[Mark], shape: tuple[int, ...]) -> Mark:
    name, params = equation.primitive.name, equation.params

    def move(parts: list[np.ndarray]) -> np.ndarray:
        first = parts[0]
        if name == "broadcast_in_dim":
            places = params["broadcast_dimensions"]
            wide = [first.shape[places.index(axis)] if axis in places else 1 for axis in range(len(shape))]
            return np.broadcast_to(first.reshape(wide), shape)
        if name in ("reshape", "squeeze", "expand_dims"):
            return first.reshape(shape)
        if name == "transpose":
            return np.transpose(first, params["permutation"])
        if name == "rev":
            return np.flip(first, params["dimensions"])
        if name == "slice":
            strides = params["strides"] or (1,) * first.ndim
            where = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return first[tuple(slice(*each) for each in where)]
        if name == "concatenate":
            return np.concatenate(parts, params["dimension"])
        return np.asarray(equation.primitive.bind(*map(jnp.asarray, parts), **params))

    low, high = move([mark.low for mark in marks]), move([mark.high for mark in marks])
    return Mark(low, high, move([mark.form.astype(np.int32) for mark in marks]).astype(np.int8))


def _cumulative(name: str, params: dict[str, Any], mark: Mark) -> Mark:
    axis = params["axis"]

    def along(function: Any, part: np.ndarray) -> np.ndarray:
        part = np.flip(part, axis) if params["reverse"] else part
        part = function.accumulate(part, axis)
        return np.flip(part, axis) if params["reverse"] else part

    low, high = along(np.minimum, mark.low), along(np.maximum, mark.high)
    return _mark(low, high, along(np.minimum, mark.form) if name == "cumsum" else 0)


REDUCED = (np.minimum, np.maximum, np.minimum)


def _dot(numbers: Any, one: Mark, other: Mark, shape: tuple[int, ...]) -> Mark:
    (contract_one, contract_other), (batch_one, batch_other) = numbers

    def rows(part: np.ndarray, contracted: Any, batched: Any, reduce: Any, lead: bool) -> np.ndarray:
        """Reduced over what is contracted, batch axes first, and made to broadcast over the other's free axes."""
        free = [axis for axis in range(part.ndim) if axis not in (*contracted, *batched)]
        part = np.asarray(
            reduce.reduce(
                np.transpose(part, (*batched, *free, *contracted)).reshape(
                    (*(part.shape[axis] for axis in (*batched, *free)), -1)
                ),
                axis=-1,
            )
        )
        num_others = len(shape) - len(batched) - len(free)
        extra = (1,) * num_others
        kept = part.shape[: len(batched)], part.shape[len(batched) :]
        return part.reshape((*kept[0], *kept[1], *extra) if lead else (*kept[0], *extra, *kept[1]))

    first, second = (
        Mark(*(rows(part, *way[:2], reduce, way[2]) for part, reduce in zip(mark[:3], REDUCED, strict=True)))
        for mark, way in ((one, (contract_one, batch_one, True)), (other, (contract_other, batch_other, False)))
    )
    whole = np.minimum(first.low, second.low), np.maximum(first.high, second.high), _product(first, second)
    return _mark(*(np.broadcast_to(part, shape) for part in whole))


def _written(equation: Any, marks: list[Mark]) -> Mark:
    """`x.at[i].set(y)` and `x.at[i].add(y)`; where i is not known, anywhere."""
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    if name == "dynamic_update_slice":
        operand, updates, places = marks[0], marks[1], marks[2:]
    else:
        operand, places, updates = marks[0], marks[1:2], marks[2]
    form = 0 if any(mark.depends.any() for mark in places) else _least([operand, updates])
    if any(mark.value is None for mark in places):
        return _all(marks, shape, form)
    where = [jnp.asarray(mark.value) for mark in places]
    if name == "dynamic_update_slice":
        parts = zip(operand[:3], updates[:3], strict=True)
        return Mark(*(np.asarray(equation.primitive.bind(jnp.asarray(a), jnp.asarray(b), *where)) for a, b in parts))
    params = equation.params
    ways = (jax.lax.scatter,) * 2 if name == "scatter" else (jax.lax.scatter_min, jax.lax.scatter_max)
    options = {k: params[k] for k in ("indices_are_sorted", "unique_indices", "mode")}
    low, high = (
        np.asarray(way(jnp.asarray(a), where[0], jnp.asarray(b), params["dimension_numbers"], **options))
        for way, a, b in zip(ways, (operand.low, operand.high), (updates.low, updates.high), strict=True)
    )
    return _mark(low, high, form)


def _cond(branches: Any, marks: list[Mark]) -> list[Mark]:
    which, arguments = marks[0], marks[1:]
    if which.value is not None:
        return _run(branches[int(np.clip(which.value, 0, len(branches) - 1))], arguments)
    ways = [_run(branch, arguments) for branch in branches]
    together = []
    for outs in zip(*ways, strict=True):
        low = np.minimum(np.minimum.reduce([out.low for out in outs]), which.low)
        high = np.maximum(np.maximum.reduce([out.high for out in outs]), which.high)
        form = 0 if which.depends.any() else np.minimum.reduce([out.form for out in outs])
        together.append(_mark(low, high, form))
    return together


def _scan(equation: Any, marks: list[Mark]) -> list[Mark]:
    """Round by round, as it runs."""
    params, length = equation.params, equation.params["length"]
    inner = params["jaxpr"].jaxpr

    def whole(outside: Any, inside: Any) -> int:
        """How many keep their shape inside, where a series has lost its first axis; JAX's names of these counts change."""
        return sum(a.aval.shape == b.aval.shape for a, b in zip(outside, inside, strict=True))

    num_carry = whole(equation.outvars, inner.outvars)
    num_consts = whole(equation.invars, inner.invars) - num_carry
    consts, carry, series = (
        marks[:num_consts],
        marks[num_consts : num_consts + num_carry],
        marks[num_consts + num_carry :],
    )
    order = range(length)[::-1] if params["reverse"] else range(length)
    rows: dict[int, list[Mark]] = {}
    for i in order:
        row = [Mark(mark.low[i], mark.high[i], mark.form[i]) for mark in series]
        outs = _run(params["jaxpr"], [*consts, *carry, *row])
        carry, rows[i] = outs[:num_carry], outs[num_carry:]
    stacked = [
        Mark(*(np.stack([getattr(rows[i][j], part) for i in range(length)]) for part in ("low", "high", "form")))
        for j in range(len(rows[0]) if rows else 0)
    ]
    return [*carry, *stacked]
