r"""Saved models: a folder of JSON and arrays. Nothing is pickled, and loading runs nothing that the folder names.

    model.json    the format's name and version, the library's version, the sha256 of `arrays.npz` and of all else that
                  `model.json` says, the shape and dtype of every array and whether it is finite, and the model as data
    arrays.npz    the arrays, uncompressed, each under its place in the model: `model.reverse.network.centers`

The model is a tree whose nodes are

    null, true, 3, 0.1, "fixed"                   themselves; {"float": "inf"} where JSON has no number
    {"tuple": [...]}, {"list": [...]}             their items
    {"array": "model.reverse.network.centers"}    an array
    {"type": "RBF", "fields": {...}}              a module of this library or of `equinox.nn`
    {"external": "place.Name", "leaves": [...]}   a part of the user's own: its arrays and numbers in tree order

A type is looked up among the final classes of `nedm_ppl.models` (a class is abstract or final) and a few of
`equinox.nn`, must have exactly its fields, and is judged by its `__check_init__` like any new module. Code is not data:
a part of the user's own is named and not described, and `load` takes it from a model `like` the saved one.

A model is written beside its folder and renamed into place, so a save that fails leaves the old model whole. Version 1 had
no hash of `model.json` itself, and is still read.
"""

import dataclasses
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import stat
import sys
import types
import typing
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nedm_ppl._compat import Tracer
from nedm_ppl.files import locked, npz, printable, shortened, sync

__all__ = ["ModelFolderError", "load", "save"]

FORMAT, VERSION = "nedm_ppl.model", 2
TREE, ARRAYS = "model.json", "arrays.npz"
# Fields that classes were given later, with what folders without them mean.
ADDED: dict[str, dict[str, Any]] = {
    "DataPrediction": {"rank": 0},
    "Diffusion": {"columns": None, "units": None},
    "DriftVariance": {"released": False},
    "NoisePrediction": {"bound": None, "rank": 0},
    "ResidualMLP": {"directions": {"tuple": []}},
    "VelocityPrediction": {"rank": 0},
}
# Names that folders of earlier commits have for what is called otherwise now: fields by class, and values by class and field.
OLD_FIELDS = {"RBF": {"centres": "centers"}}
OLD_VALUES = {"Diffusion": {"first_step": {"quantised": "quantized"}}}
# Fields that folders of earlier commits have and classes have no more, with the value that says what classes do now.
REMOVED: dict[str, dict[str, Any]] = {"UNet": {"bfloat16": False}}
MAX_DEPTH, MAX_JSON_BYTES, MAX_INT = 64, 2**26, 2**63 - 1
FROM_EQUINOX = ("Dropout", "Embedding", "LayerNorm", "Linear", "MultiheadAttention", "RMSNorm")
NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 bfloat16 float16 float32 float64 complex64 complex128"
DTYPES = {name: jnp.dtype(name) for name in NAMES.split()}
AGAIN = "Restore the folder from a copy, or save the model again."
ARRAY = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
ABSENT: Any = object()  # where no `like` was given: None is a value

M = TypeVar("M", bound=eqx.Module)
Manifest = dict[str, tuple[tuple[int, ...], np.dtype]]


class ModelFolderError(ValueError):
    """A folder that holds no model which can be read here, or that must not be written over."""


def save(diffusion: eqx.Module, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write a model to `folder`, which appears whole or not at all.

    Args:
        diffusion: The model. Of parts of the user's own (a network, a kernel) the arrays and numbers are saved; to load
            them takes a model `like` this one.
        folder: A new or empty folder; missing parents are made.
        overwrite: Replace the model that `folder` holds. A folder with anything else in it is never replaced.

    Raises:
        ModelFolderError: `folder` is taken.
        ValueError: `diffusion` holds what cannot be saved; the message says where.
    """
    writer, folder = _Writer(), Path(os.path.realpath(folder))
    tree = writer.encode(diffusion, "model")
    _check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{uuid4().hex}.new")
    new.mkdir()
    try:
        with locked(new):
            _clear(folder, "new")  # what saves left that were killed
            _write(new, writer.arrays, tree)
        _move_into_place(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if overwrite:
        _clear(folder, "old")


def _write(new: Path, arrays: dict[str, np.ndarray], tree: Any) -> None:
    # NumPy's files know no bfloat16: its bits are stored.
    (new / ARRAYS).write_bytes(npz({name: array.view(_stored(array.dtype)) for name, array in arrays.items()}))
    document = {
        "format": FORMAT,
        "version": VERSION,
        "library": version("nedm-ppl"),
        "sha256": _sha256(new / ARRAYS),
        "arrays": {
            name: {"shape": list(array.shape), "dtype": array.dtype.name, "finite": _is_finite(array)}
            for name, array in arrays.items()
        },
        "model": tree,
    }
    document["json_sha256"] = _json_sha256(document)
    (new / TREE).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    for path in (new / ARRAYS, new / TREE, new):
        sync(path)


def load(folder: str | os.PathLike, kind: type[M], step: Callable[[M], Any], *, like: M | None = None) -> M:
    """Read a model that `save` wrote: the same types, the same numbers, the same arrays bit for bit.

    Args:
        folder: The folder.
        kind: The class that the model must be of.
        step: One reverse step of a model, which must not fail.
        like: A model built as the saved one was, needed where that has parts of the user's own: their code, and whatever
            they keep in static fields, is taken from here. Types, shapes and dtypes must agree with the folder's;
            every other value comes from the folder.

    Raises:
        ModelFolderError: the folder is missing, damaged, foreign, newer than this library, or not like `like`.
        ValueError: `like` is of another kind.
    """
    if like is not None and not isinstance(like, kind):
        raise ValueError(f"like must be a models.{kind.__name__}; got a {type(like).__name__}.")
    document = _read_document(Path(folder))
    reader = _Reader(Path(folder) / TREE, _read_arrays(Path(folder), document))
    model = reader.decode(document["model"], ABSENT if like is None else like, "model")
    if not isinstance(model, kind):
        raise reader.error(f"the model must be a {kind.__name__}; got a {type(model).__name__}")
    if unused := reader.arrays.keys() - reader.used:
        raise reader.error(f"every array must have a place in the model; {min(unused)} has none")
    try:  # arrays that do not suit each other fail here, and not in a user's program
        step(model)
    except Exception as error:
        raise reader.error(
            f"the model must be able to take a reverse step; it fails with {shortened(str(error))}"
        ) from error
    return model


class _Writer:
    """A model as data; the arrays met on the way are kept by their place."""

    def __init__(self) -> None:
        self.types, self.arrays = _types(), dict[str, np.ndarray]()

    def encode(self, value: Any, path: str) -> Any:
        kind = type(value)
        if path.count(".") > MAX_DEPTH:
            raise ValueError(f"A model may be nested {MAX_DEPTH} deep to be saved; {path} is deeper. Flatten it.")
        if isinstance(value, ARRAY):
            return self.array(value, path)
        if kind is tuple or kind is list:
            return {kind.__name__: [self.encode(item, f"{path}.{i}") for i, item in enumerate(value)]}
        if self.types.get(kind.__name__) is kind:
            return {"type": kind.__name__, "fields": self.fields(value, path)}
        value = value.item() if isinstance(value, np.generic) else value
        if _is_plain(value):
            if type(value) is int and abs(value) > MAX_INT:
                raise ValueError(f"{path} must be below 2^63 in size to be saved; got {value:.3e}.")
            return value if not isinstance(value, float) or math.isfinite(value) else {"float": str(value)}
        leaves = [np.asarray(leaf) if isinstance(leaf, np.generic) else leaf for leaf in jax.tree.leaves(value)]
        nodes = [self.encode(leaf, f"{path}.{i}") if _is_data(leaf) else None for i, leaf in enumerate(leaves)]
        return {"external": _name(value), "leaves": nodes}

    def fields(self, module: eqx.Module, path: str) -> dict[str, Any]:
        encoded = {}
        for field in dataclasses.fields(module):
            value, inner = getattr(module, field.name), f"{path}.{field.name}"
            encoded[field.name] = self.encode(value, inner)
            if not _fits(value, field.type, self.types):
                raise ValueError(f"{inner} must be {_spell(field.type)} to be saved; got {shortened(value)}.")
        return encoded

    def array(self, array: Any, path: str) -> dict[str, str]:
        if isinstance(array, Tracer | jax.ShapeDtypeStruct) or not getattr(array, "is_fully_addressable", True):
            raise ValueError(
                f"{path} must be a whole array on this host; got {array}. Save outside of jit, and gather."
            )
        if str(array.dtype) not in DTYPES:
            raise ValueError(
                f"{path} must hold numbers to be saved; got dtype {array.dtype}. Keep it out of the model."
            )
        self.arrays[path] = np.asarray(array)
        return {"array": path}


class _Reader:
    """The way back. `like` is walked beside the tree, and lends the parts that the tree only names."""

    def __init__(self, file: Path, arrays: dict[str, np.ndarray]) -> None:
        self.file, self.arrays, self.types, self.used = file, arrays, _types(), set[str]()

    def error(self, sentence: str, repair: str = AGAIN) -> ModelFolderError:
        return _error(self.file, sentence, repair)

    def unlike(self, path: str, saved: str, got: str) -> ModelFolderError:
        return self.error(f"{path} is {saved}; in `like` it is {got}", "Build `like` as the saved model was built.")

    def decode(self, node: Any, like: Any, path: str) -> Any:
        if path.count(".") > MAX_DEPTH:
            raise self.error(f"a model may be nested {MAX_DEPTH} deep; this one is deeper")
        match sorted(node.items()) if isinstance(node, dict) else node:
            case int() if abs(node) > MAX_INT:
                raise self.error(f"{path} must be below 2^63 in size; got {shortened(node)}")
            case None | bool() | int() | float() | str():
                return node
            case [("float", "inf" | "-inf" | "nan" as text)]:
                return float(text)
            case [("array", str(name))]:
                return self.array(name, like, path)
            case [("tuple" | "list" as kind, list(items))]:
                if like is not ABSENT and (type(like).__name__ != kind or len(like) != len(items)):
                    raise self.unlike(path, f"a {kind} of {len(items)}", _describe(like))
                likes = [ABSENT] * len(items) if like is ABSENT else like
                decoded = [self.decode(*pair, f"{path}.{i}") for i, pair in enumerate(zip(items, likes, strict=True))]
                return tuple(decoded) if kind == "tuple" else decoded
            case [("fields", dict(fields)), ("type", str(name))]:
                return self.module(name, fields, like, path)
            case [("external", str(name)), ("leaves", list(leaves))]:
                return self.external(name, leaves, like, path)
        raise self.error(f"{path} must be a value, an array or a part of a model; got {shortened(node)}")

    def module(self, name: str, nodes: dict[str, Any], like: Any, path: str) -> eqx.Module:
        if (cls := self.types.get(name)) is None:
            newer = "Load it with the version of nedm_ppl that saved it, or a newer one."
            raise self.error(f"{path} must be of a type that this library knows; got {name!r}", newer)
        if like is not ABSENT and type(like) is not cls:
            raise self.unlike(path, f"a {name}", _describe(like))
        fields, values = OLD_FIELDS.get(name, {}), OLD_VALUES.get(name, {})
        nodes = {fields.get(field, field): node for field, node in nodes.items()}
        nodes = {f: values.get(f, {}).get(n, n) if isinstance(n, str) else n for f, n in nodes.items()}
        removed = REMOVED.get(name, {})
        nodes = ADDED.get(name, {}) | {f: n for f, n in nodes.items() if f not in removed or n is not removed[f]}
        expected = {field.name: field.type for field in dataclasses.fields(cast(Any, cls))}
        if differing := nodes.keys() ^ expected.keys():
            verb = "lacks" if min(differing) in expected else "has"
            raise self.error(
                f"{path} must have the fields of a {name}, {', '.join(expected)}; it {verb} {min(differing)!r}"
            )
        module = object.__new__(cls)
        for field, node in nodes.items():
            inner = f"{path}.{field}"
            value = self.decode(node, ABSENT if like is ABSENT else getattr(like, field), inner)
            if not _fits(value, expected[field], self.types):
                raise self.error(f"{inner} must be {_spell(expected[field])}; got {shortened(node)}")
            object.__setattr__(module, field, value)
        try:
            for check in [vars(base)["__check_init__"] for base in cls.__mro__ if "__check_init__" in vars(base)]:
                check(module)
        except Exception as error:  # whatever the check trips over, this is no such module
            raise self.error(f"{path} must be a valid {name}; {str(error).rstrip('.')}") from None
        return module

    def external(self, name: str, nodes: list[Any], like: Any, path: str) -> Any:
        if like is ABSENT:
            how = "Use load(folder, like=diffusion), with a diffusion built as the saved one was."
            raise self.error(f"{path} is {name}, whose code cannot be saved", how)
        leaves, structure = jax.tree.flatten(like)
        # Where a part is defined may change, as from a notebook to a module; what it is called may not.
        if _name(like).split(".")[-1] != name.split(".")[-1] or len(leaves) != len(nodes):
            raise self.unlike(path, f"{name} with {len(nodes)} leaves", f"{_describe(like)} with {len(leaves)}")
        for i, (node, leaf) in enumerate(zip(nodes, leaves, strict=True)):
            value = leaf if node is None else self.decode(node, leaf, f"{path}.{i}")
            if _is_data(leaf) != (node is not None) or (_is_plain(value) and type(value) is not type(leaf)):
                raise self.unlike(f"{path}.{i}", "code" if node is None else _describe(value), _describe(leaf))
            leaves[i] = value
        return jax.tree.unflatten(structure, leaves)

    def array(self, name: str, like: Any, path: str) -> Any:
        if name not in self.arrays or name in self.used:
            raise self.error(f"{path} must be an array of its own; got {shortened(name)}")
        self.used.add(name)
        array = self.arrays[name]
        if like is not ABSENT and _describe(like) != _describe(array):
            raise self.unlike(path, _describe(array), _describe(like))
        if isinstance(like, np.ndarray | np.generic):
            return array if isinstance(like, np.ndarray) else array[()]
        if (kept := jax.dtypes.canonicalize_dtype(array.dtype)) != array.dtype:
            how = 'Call jax.config.update("jax_enable_x64", True) before loading.'
            raise self.error(f"{path} is {array.dtype}, which this session would round to {kept}", how)
        return jnp.asarray(array)


def _types() -> dict[str, type[eqx.Module]]:
    """The classes a folder may name: what the modules of `nedm_ppl.models` define and do not subclass, and `FROM_EQUINOX`."""
    modules = [module for name, module in list(sys.modules.items()) if f"{name}.".startswith("nedm_ppl.models.")]
    defined = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, eqx.Module) and value.__module__ == module.__name__
    ]
    final = [
        cls for cls in defined if not inspect.isabstract(cls) and not any(cls in other.__mro__[1:] for other in defined)
    ]
    return {name: getattr(eqx.nn, name) for name in FROM_EQUINOX} | {cls.__name__: cls for cls in final}


def _fits(value: Any, annotation: Any, ours: dict[str, type[eqx.Module]]) -> bool:
    """An isinstance that looks into unions and tuples, takes an int for a float, and lets a user's part stand anywhere."""
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    value = value.item() if isinstance(value, np.generic) else value
    plain = isinstance(value, jax.Array | tuple | list) or _is_plain(value)
    if not plain and ours.get(type(value).__name__) is not type(value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument, ours) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple and isinstance(value, tuple) and arguments:
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(each) and all(_fits(a, b, ours) for a, b in zip(value, each, strict=True))
    if origin is Callable:
        return callable(value)
    if origin is int or origin is float:
        return isinstance(value, int | origin) and not isinstance(value, bool)
    return value is None if origin is None else not isinstance(origin, type) or isinstance(value, origin)


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _is_data(leaf: Any) -> bool:
    return isinstance(leaf, (*ARRAY, np.generic)) or _is_plain(leaf)


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__ or 'builtins'}.{named.__qualname__}"


def _describe(value: Any) -> str:
    if isinstance(value, (*ARRAY, np.generic)):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else _name(value)


def _spell(annotation: Any) -> str:
    return annotation.__name__.split(".")[-1] if isinstance(annotation, type) else shortened(annotation)


def _error(path: Path, sentence: str, repair: str = AGAIN) -> ModelFolderError:
    return ModelFolderError(printable(f"{path}: {sentence}. {repair}"))


def _stored(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if dtype == jnp.bfloat16 else dtype


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sha256(document: dict[str, Any]) -> str:
    """Of all that a document says but this hash, whatever the order of its keys and its white space."""
    said = {name: value for name, value in document.items() if name != "json_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_finite(array: np.ndarray) -> bool:
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(np.all(np.isfinite(array)))


def _read_document(folder: Path) -> dict[str, Any]:
    """`model.json`, of this format and a version that is known, with all its entries."""
    if not folder.is_dir():
        kept = _aside(folder, "old")
        hint = f"An interrupted save left the old model in {kept[-1]}: rename it." if kept else "Check the path."
        raise _error(folder, f"must be a folder; there is {'a file' if folder.exists() else 'nothing'}", hint)
    path = folder / TREE
    if (size := _file_size(path)) > MAX_JSON_BYTES:
        raise _error(path, f"must be at most {MAX_JSON_BYTES} bytes; got {size}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _error(path, f"must be JSON; {shortened(str(error))}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _error(path, f"must be of the format {FORMAT}; this is something else", "Check the path.")
    written, library = document.get("version"), document.get("library")
    if type(written) is int and written > VERSION:
        sentence = f"must be of version {VERSION} to be read here; got {written}, of nedm_ppl {shortened(library)}"
        raise _error(path, sentence, "Upgrade nedm_ppl.")
    for entry, kind in {"version": int, "sha256": str, "arrays": dict, "model": dict}.items():
        if type(document.get(entry)) is not kind:
            raise _error(path, f"must have a {kind.__name__} for its {entry}; got {shortened(document.get(entry))}")
    if document["version"] < 1 or (document["version"] > 1 and "json_sha256" not in document):
        raise _error(
            path, f"must be of a version from 1 to {VERSION}, and of version 2 with its own hash; got {written}"
        )
    if "json_sha256" in document and document["json_sha256"] != (digest := _json_sha256(document)):
        sentence = f"must say what it said when it was saved, with json_sha256 {shortened(document['json_sha256'], 16)}"
        raise _error(path, f"{sentence}; got {digest:.16}")
    return document


def _read_arrays(folder: Path, document: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that the manifest declares; none is allocated before the file is known to hold it, and nothing else."""
    path, manifest = folder / ARRAYS, _manifest(folder / TREE, document["arrays"])
    declared = sum(math.prod(shape) * dtype.itemsize for shape, dtype in manifest.values())
    size, headers = _file_size(path), 1024 + sum(1024 + 8 * len(name) for name in manifest)
    if not declared <= size <= declared + headers:
        raise _error(path, f"must hold {shortened(declared, 24)} bytes of arrays and little else; got {size} bytes")
    if (digest := _sha256(path)) != document["sha256"]:
        raise _error(path, f"must be the file that was saved, with sha256 {document['sha256']:.16}; got {digest:.16}")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in manifest):
                raise ValueError(f"its {len(members)} arrays are not those {len(manifest)}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("they are compressed, which no saved model's are")
            for name, (shape, dtype) in manifest.items():
                with archive.open(f"{name}.npy") as member:
                    np.lib.format.read_magic(member)
                    got, _, stored = np.lib.format.read_array_header_1_0(member)
                    if (got, stored) != (shape, _stored(dtype)):
                        raise ValueError(f"{name} is {stored} {got} and not {dtype} {shape}")
                    member.seek(0)
                    arrays[name] = np.load(member, allow_pickle=False).view(dtype)
                if document["arrays"][name].get("finite") is True and not _is_finite(arrays[name]):
                    raise ValueError(f"{name} was finite and is no longer")
    except Exception as error:  # zip and NumPy raise a dozen kinds for a file made to mislead
        raise _error(path, f"must hold the arrays that {TREE} declares; {shortened(str(error))}") from None
    return arrays


def _manifest(path: Path, entries: dict[str, Any]) -> Manifest:
    manifest = {}
    for name, entry in entries.items():
        shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
        counts = shape if isinstance(shape, list) and len(shape) <= MAX_DEPTH else [None]
        if dtype not in [*DTYPES] or not all(type(n) is int and 0 <= n <= MAX_INT for n in counts):
            raise _error(path, f"{shortened(name)} must have a shape and a dtype; got {shortened(entry)}")
        manifest[name] = tuple(counts), DTYPES[str(dtype)]
    return manifest


def _file_size(path: Path) -> int:
    status = path.lstat() if os.path.lexists(path) else None
    if status is None or not stat.S_ISREG(status.st_mode):
        came = "nothing" if status is None else "a link" if stat.S_ISLNK(status.st_mode) else "something else"
        raise _error(path, f"must be a file; there is {came}")
    return status.st_size


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise _error(folder, "must be a folder, new or empty; this is a file", "Choose another name.")
    names = sorted(os.listdir(folder)) if folder.exists() else []
    if names and not overwrite:
        repair = "Choose another, or replace a saved model with overwrite=True."
        raise _error(folder, f"must be a new or empty folder; it holds {names[0]}", repair)
    if names:
        foreign = sorted(set(names) - {TREE, ARRAYS})
        try:
            _read_document(folder)
        except ModelFolderError:
            foreign = foreign or names
        if foreign:
            sentence = f"must hold a saved model and nothing else to be replaced; it holds {foreign[0]}"
            raise _error(folder, sentence, "Choose another folder, or empty this one yourself.")


def _aside(folder: Path, what: str) -> list[Path]:
    """What saves have put beside a folder: `new` models before they take its place, `old` ones after they left it."""
    if not folder.parent.is_dir():
        return []
    name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{32}}\.{what}")
    return sorted(path for path in folder.parent.iterdir() if name.fullmatch(path.name))


def _clear(folder: Path, what: str) -> None:
    """Remove what killed saves have left beside a folder; what a living one writes is locked, and stays."""
    for path in _aside(folder, what):
        with suppress(OSError), locked(path):
            shutil.rmtree(path)


def _move_into_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. What was there steps aside first and goes last: at every moment one model is whole."""
    if not folder.exists():
        os.replace(new, folder)
        sync(folder.parent)
        return
    old = folder.with_name(f".{folder.name}.{uuid4().hex}.old")
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    sync(folder.parent)
    for name in (TREE, ARRAYS):
        (old / name).unlink(missing_ok=True)
    old.rmdir()
