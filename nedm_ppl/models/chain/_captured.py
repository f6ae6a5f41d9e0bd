r"""A program's arrays, and what is left of it: wherever the code holds them.

A kernel, a network or a whole model is a pytree, whose arrays JAX sees. But a plain function in it may hold a value that JAX does
not see: in its closure, its defaults, its attributes, as a global, in `functools.partial`, in the object that a method belongs to.
Where that value is traced, that is where it depends on what is differentiated, mapped or compiled, whoever overlooks it takes it
for a constant. Here it is an array of the program like any other.

Values that are not traced stay where they are: they are constants, and the function that holds them is compiled with them.
"""

import copy
import copyreg
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import equinox as eqx
import jax
import numpy as np

from nedm_ppl._compat import Tracer

__all__ = ["combine", "is_array", "partition"]

ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, CodeType, np.ndarray, np.generic, jax.Array)
EMPTY = object()


@dataclass(frozen=True)
class Hole:
    """The place of an array that was taken out."""

    index: int


def partition(tree: Any) -> tuple[list[Any], Any]:
    """The arrays of a program, and the program with holes in their place.

    Args:
        tree: A pytree with any callables as leaves.

    Returns:
        Its array leaves, and after them the traced values that its code holds in any other way; and the rest, which `combine`
        fills. What cannot be taken apart (a compiled function, a class defined inside a function, a function that holds itself) is
        left as it is, and the traced values in it are in the list nevertheless.
    """
    arrays: list[Any] = []

    def take(value: Any) -> Hole:
        arrays.append(value)
        return Hole(len(arrays) - 1)

    static = jax.tree.map(lambda leaf: take(leaf) if is_array(leaf) else leaf, tree)
    return arrays, _Walk(Tracer, take)(static)


def combine(arrays: list[Any], static: Any) -> Any:
    """The program that `partition` took apart, with these arrays."""
    filled = []

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Hole):
            return leaf
        filled.append(leaf.index)
        return arrays[leaf.index]

    tree = jax.tree.map(fill, static)
    return tree if len(filled) == len(arrays) else _Walk(Hole, fill)(tree)


class _Walk:
    """Replaces values of a kind wherever they are held; whatever holds none is returned as it is, the same object."""

    def __init__(self, kind: type, new: Callable[[Any], Any]):
        self.kind, self.new = kind, new
        self.done: dict[int, tuple[Any, Any]] = {}  # with the value itself, whose id is then no other's

    def __call__(self, value: Any) -> Any:
        if isinstance(value, ATOMS) and not isinstance(value, self.kind):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = value, value  # what holds itself goes on holding the old one
            self.done[id(value)] = value, self.new(value) if isinstance(value, self.kind) else self._rebuilt(value)
        return self.done[id(value)][1]

    def _rebuilt(self, value: Any) -> Any:
        if issubclass(type(value), functools.partial):
            held, keys = (value.func, *value.args, *value.keywords.values()), list(value.keywords)
            cut, kind = len(held) - len(keys), type(value)
            return self._if_new(value, held, lambda new: kind(*new[:cut], **dict(zip(keys, new[cut:], strict=True))))
        match value:
            case FunctionType():
                return self._function(value)
            case MethodType():
                return self._if_new(value, (value.__func__, value.__self__), lambda parts: MethodType(*parts))
            case dict():
                return self._if_new(
                    value, tuple(value.values()), lambda new: _with_items(value, zip(value, new, strict=True))
                )
            case list():
                return self._if_new(value, tuple(value), lambda new: _with_items(value, enumerate(new)))
            case tuple() | set() | frozenset():
                make: Any = getattr(value, "_make", type(value))
                return self._if_new(value, tuple(value), make)
        state = dict(_state(value))
        for function in _local_methods(type(value)):
            self(function)
        return self._if_new(value, tuple(state.values()), lambda new: _with_state(value, zip(state, new, strict=True)))

    def _function(self, value: FunctionType) -> Any:
        cells = value.__closure__ or ()
        free = {name: value.__globals__[name] for name in self._globals_of(value)}
        parts = (
            *map(_contents, cells),
            *free.values(),
            value.__defaults__,
            value.__kwdefaults__,
            *vars(value).values(),
        )

        def build(new: tuple) -> FunctionType:
            contents, new = new[: len(cells)], new[len(cells) :]
            known = value.__globals__ | dict(zip(free, new, strict=False))
            defaults, keyword_defaults, *attributes = new[len(free) :]
            closure = tuple(
                cell if content is _contents(cell) else CellType(content)
                for cell, content in zip(cells, contents, strict=True)
            )
            function = FunctionType(value.__code__, known, value.__name__, defaults, closure)
            function.__kwdefaults__ = keyword_defaults
            vars(function).update(zip(vars(value), attributes, strict=True))
            return function

        return self._if_new(value, parts, build)

    def _globals_of(self, value: FunctionType) -> Iterator[str]:
        """Names that its code reads, of values that hold some of the kind, or may: functions and objects of the same module."""
        for name in sorted(_names(value.__code__) & value.__globals__.keys()):
            found = value.__globals__[name]
            own = getattr(found, "__module__", None) == value.__module__
            if own or any(isinstance(leaf, self.kind) for leaf in jax.tree.leaves(found)):
                yield name

    def _if_new(self, value: Any, parts: tuple, build: Callable[[tuple], Any]) -> Any:
        new = tuple(map(self, parts))
        if all(one is other for one, other in zip(parts, new, strict=True)):
            return value
        try:
            return build(new)
        except TypeError:  # what only its own constructor makes
            return value


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy."""
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return EMPTY


def _names(code: CodeType) -> set[str]:
    """Names that a function's code reads, and that of the functions inside it."""
    inner = [_names(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


def _state(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, by name."""
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _local_methods(kind: type) -> Iterator[Any]:
    """Functions of a class that was defined inside a function, whose values they may hold."""
    for base in kind.__mro__:
        if "<locals>" in base.__qualname__:
            yield from (value for value in vars(base).values() if not isinstance(value, ATOMS))


def _with_items(value: Any, items: Any) -> Any:
    new = copy.copy(value)
    for key, item in items:
        new[key] = item
    return new


def _with_state(value: Any, state: Any) -> Any:
    new = object.__new__(type(value))
    for name, part in state:
        object.__setattr__(new, name, part)
    return new


class _Example(eqx.Module):
    def method(self) -> None: ...


def _by_name(method: Any) -> tuple[Any, tuple[Any, str]]:
    return getattr, (method.__self__, method.__func__.__name__)


# Equinox's bound methods carry annotations, which do not pickle. A method's object and its name are all there is to it.
copyreg.pickle(type(_Example().method), _by_name)
