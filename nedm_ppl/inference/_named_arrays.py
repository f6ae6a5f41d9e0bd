"""Named arrays in the type that the installed ArviZ works with: `InferenceData` before its version 1, `DataTree` since.

What every conversion shares: names of axes, what a number is and in which unit, and the container. Every variable carries the
attributes `long_name`, `units` where it has one, and `estimate`: whether it is exact, unbiased, or a bound.

ArviZ reads some group names as a promise. `posterior` and `log_likelihood` promise draws of latent variables given data, and
`az.loo` and `az.compare` reweight across them. Draws of a `ParticlePosterior` are of that kind; log weights of trajectories are
not: passed as posterior draws they would give a harmonic mean, far from the likelihood and silently so.
"""

import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "UNBIASED",
    "by_draw",
    "container",
    "data_dims",
    "dataset",
    "described",
    "import_arviz",
    "is_arviz_1",
    "per_unit",
]

UNBIASED = "unbiased over the draws of x_t"
PER_UNIT = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}


def per_unit(units: str) -> float:
    """Units in a nat; a ValueError for others than nats and bits."""
    if units not in PER_UNIT:
        raise ValueError(f"units must be nats or bits; got {units!r}.")
    return PER_UNIT[units]


def by_draw(name: str, value: ArrayLike, attrs: Mapping[str, str]) -> tuple:
    value = np.asarray(value)
    return ("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.ndim - 2))), value, dict(attrs)


def described(long_name: str, estimate: str, units: str | None = None) -> dict[str, str]:
    return {"long_name": long_name, "estimate": estimate} | ({} if units is None else {"units": units})


def data_dims(num_axes: int) -> tuple[str, ...]:
    return ("datum",) if num_axes == 1 else tuple(f"datum_{i}" for i in range(num_axes))


def dataset(variables: Mapping[str, tuple], coords: Mapping[str, np.ndarray] | None = None) -> "xr.Dataset":
    import xarray as xr

    coords = dict(coords or {})
    for dims, value, _ in variables.values():
        for dim, size in zip(dims, value.shape, strict=True):
            coords.setdefault(dim, np.arange(size))
    return xr.Dataset(variables, coords, _attributes())


def _attributes() -> dict[str, str]:
    return {"inference_library": "nedm_ppl", "inference_library_version": version("nedm-ppl")}


def is_arviz_1() -> bool:
    return int(version("arviz").split(".")[0]) >= 1


def container(groups: Mapping[str, "xr.Dataset"]) -> Any:
    """The groups in the type that the installed ArviZ works with."""
    if is_arviz_1():
        import xarray as xr

        root = xr.Dataset(attrs=_attributes())
        return xr.DataTree.from_dict({"/": root, **{f"/{name}": group for name, group in groups.items()}})
    return import_arviz().InferenceData(attrs=_attributes(), warn_on_custom_groups=False, **groups)


def import_arviz() -> Any:
    with warnings.catch_warnings():
        # ArviZ 0.23 announces 1.0 with a FutureWarning at import; this file is ready for it.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
