"""What functions ask of their arguments, in a sentence each: whole numbers, random keys, values that are all there.

Nothing here knows of models or inference, so that both may use it.
"""

from collections.abc import Sequence
from typing import Any, SupportsInt

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl._compat import Tracer

__all__ = [
    "Count",
    "DataWarning",
    "Shape",
    "Values",
    "as_count",
    "as_shape",
    "check_concrete",
    "check_key",
    "check_kind",
    "check_unmasked",
    "require",
    "whole",
]

# However they are typed, a whole number: 1000, 1e3, an array of shape (); a shape: (2, 3), [2, 3], or 3 for (3,); and values: an
# array, or lists of numbers.
Count = SupportsInt
Shape = SupportsInt | Sequence[SupportsInt]
Values = ArrayLike | Sequence[Any]


class DataWarning(UserWarning):
    """Something about the data that will hurt a model of them, or about a model that these data are not for."""


def as_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, however it was typed: 1000, 1e3, an array of shape ().

    Raises:
        ValueError: anything else.
    """
    try:
        count = None if isinstance(value, bool) or np.ndim(value) else int(value)
    except (TypeError, ValueError, OverflowError):
        count = None
    if count is None or isinstance(value, str) or count != value or count < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    return count


def as_shape(name: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """A shape, however it was typed: (2, 3), [2, 3], or 3 for the one axis (3,).

    Raises:
        ValueError: anything else, or an axis shorter than `least`.
    """
    try:
        return tuple(as_count(name, axis, least) for axis in (value if np.ndim(value) else (value,)))
    except (TypeError, ValueError):
        got = repr(value) if isinstance(value, str | int | float | tuple | list) else f"a {type(value).__name__}"
        raise ValueError(f"{name} must be a shape, a tuple of integers of at least {least}; got {got}.") from None


def check_key(rng_key: Any, name: str = "rng_key") -> None:
    """Raise a ValueError where `rng_key` is not one random key of JAX, typed or of the old kind."""
    dtype, shape = getattr(rng_key, "dtype", None), getattr(rng_key, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == np.uint32 and shape is not None and len(shape) == 1):
        return
    if typed:
        got = f"keys of shape {shape}. Take one of them, or jax.vmap"
    elif np.ndim(rng_key) == 0 and isinstance(rng_key, int | np.integer):
        got = f"the integer {rng_key}. Use jax.random.key({rng_key})"
    else:
        got = f"a {type(rng_key).__name__}. The key comes first" if name == "rng_key" else f"a {type(rng_key).__name__}"
    raise ValueError(f"{name} must be one random key, such as jax.random.key(0); got {got}.")


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise a ValueError where `value` is no `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}; got a {type(value).__name__}.")


def check_concrete(function: str, pure: str, *values: Any) -> None:
    """Raise a ValueError where any of `values` is traced by JAX, for a function that collects what it computes in NumPy.

    Args:
        function: Its name.
        pure: What to use in its place, a function that can be traced.
        values: What it was called with.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise ValueError(
            f"{function} cannot be traced: it collects results in NumPy, batch by batch. Under jit, vmap or grad use {pure}."
        )


def check_unmasked(name: str, value: Any) -> None:
    """Raise a ValueError where `value`, an array or a nest of lists, has masked entries, which JAX and NumPy would read as data."""
    masks = [np.ma.getmaskarray(leaf) for leaf in jax.tree.leaves(value) if np.ma.isMaskedArray(leaf)]
    if masked := sum(int(mask.sum()) for mask in masks):
        raise ValueError(
            f"{name} must hold no masked values; got {masked} of {sum(mask.size for mask in masks)} masked, and what lies "
            "under a mask is no datum. Drop or impute those data."
        )


def require(value: Array, holds: Array, said: str) -> Array:
    """`value`, of which `holds` must be true everywhere: where JAX traces it, when the program runs.

    To be called where an object is built and not in a loop: under `jit` it is a branch, and on a GPU the device waits for it.

    Raises:
        ValueError: it is not, with the sentence `said`; under `jit` JAX's or Equinox's own error with that sentence in it.
    """
    if isinstance(holds, Tracer):
        return eqx.error_if(value, ~holds, said)
    if not np.all(holds):
        raise ValueError(said)
    return value


def whole(name: str, value: ArrayLike) -> np.ndarray:
    """Data as an array of which nothing is masked and everything can be squared, divided by a rate and added up.

    Raises:
        ValueError: masked values, or finite ones beyond the 0.4th power of the largest number (3e15 in float32).
    """
    check_unmasked(name, value)
    values = np.asarray(value)
    if values.dtype.kind in "fiu":
        most = float(jnp.finfo(jnp.result_type(float)).max) ** 0.4
        size = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0.0)
        if size > most:
            raise ValueError(
                f"{name} must be at most {most:.1g} in size, beyond which its squares overflow; got {size:.3g}. Scale the data."
            )
    return values
