"""Rows laid over devices, by JAX's own sharding; everything else is on all of them."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

__all__ = ["fetched", "gathered", "laid_out", "on_all", "rows_over", "wait_for_all"]

T = TypeVar("T")


def rows_over(sharding: Sharding | None, name: str, num_rows: int) -> Sharding | None:
    """The sharding, where it can lay out so many rows.

    Raises:
        ValueError: another kind of sharding, or a number of rows that its devices do not divide.
    """
    if sharding is None:
        return None
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) != 1:
        raise ValueError(
            "sharding must be a NamedSharding of the first axis, such as NamedSharding(jax.make_mesh((n,), ('rows',)), "
            f"PartitionSpec('rows')); got {sharding}."
        )
    count = sharding.num_devices
    if num_rows % count:
        raise ValueError(f"{name} must be a multiple of the {count} devices that it is laid over; got {num_rows}.")
    return sharding


def laid_out(tree: T, sharding: Sharding | None, axis: int = 0) -> T:
    """Arrays with their rows, on this axis, over the devices; as they are without a sharding."""
    if sharding is None:
        return tree
    assert isinstance(sharding, NamedSharding)
    spec = PartitionSpec(*(None,) * axis, *sharding.spec)
    return _put(tree, NamedSharding(sharding.mesh, spec))


def on_all(tree: T, sharding: Sharding | None) -> T:
    """Arrays of a tree, each on all devices of a sharding."""
    if sharding is None:
        return tree
    assert isinstance(sharding, NamedSharding)
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(_put(arrays, NamedSharding(sharding.mesh, PartitionSpec())), static)


def _put(tree: T, sharding: NamedSharding) -> T:
    """Arrays, which every process has, as a sharding lays them out; over the devices of other processes too."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def wait_for_all(what: str) -> None:
    """Wait until every process is here; nothing where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def fetched(array: jax.Array) -> np.ndarray:
    """An array's values, from the devices of all processes."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def gathered(tree: T, sharding: Sharding | None) -> T:
    """Arrays that are on all devices, on the first of this process alone: what goes with others again."""
    if sharding is None:
        return tree

    def one(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, jax.local_devices()[0])
        return jax.device_put(np.asarray(leaf), jax.local_devices()[0])

    return jax.tree.map(one, tree)
