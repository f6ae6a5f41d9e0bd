r"""The units of the data, and those of the chain.

A chain works on numbers near its noise law: reals of mean 0 and variance 1, bits that are 0 or 1. Data come in units of their own.
The map between the two is part of a model:

$$x = \text{loc} + \text{scale} \cdot u,$$

x in the data's units, u in the chain's. Its constants are kept and applied in float64; only what the chain sees is rounded. A
density of the data is that of u over |scale|, a factor for every coordinate; probabilities of bits and gray levels stay as they
are.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

from nedm_ppl._compat import Tracer, validate_sample
from nedm_ppl.arguments import check_unmasked
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._levels import OneOf

__all__ = ["GrayLevels", "Labels", "Standardize", "Units", "in_units"]


class Units(eqx.Module):
    """An affine map from the chain's units to the data's.

    Attributes:
        loc: What u = 0 is in the data's units, of the first coordinate, the second, and so on; or one number for all.
        scale: What a difference of 1 in u is in the data's units, likewise; positive, or not 0 for labels.
        shape: Shape of both: () for one number for all coordinates, else that of a datum.
        has_density: Whether data in these units have densities, and not probabilities.
    """

    has_density: ClassVar[bool] = True
    loc: tuple[float, ...] = eqx.field(static=True)
    scale: tuple[float, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if not len(self.loc) == len(self.scale) == math.prod(self.shape):
            raise ValueError(
                f"loc and scale must have {math.prod(self.shape)} numbers; got {len(self.loc)}, {len(self.scale)}."
            )
        if not (all(map(math.isfinite, self.loc + self.scale)) and all(self.scale)):
            raise ValueError("loc and scale must be finite, and scale not 0; some of theirs are not.")

    def __repr__(self) -> str:
        """In a line, whatever the number of coordinates."""
        if self.shape:
            return f"{type(self).__name__} of each of {self.shape} coordinates"
        return f"{type(self).__name__}(loc={self.loc[0]:.6g}, scale={self.scale[0]:.6g})"

    def to_chain(self, x: Any) -> Any:
        """u of data x, shape (*batch, *event): a NumPy array in the chain's dtype, or JAX's own where x is traced."""
        if isinstance(x, Tracer):
            dtype = jnp.result_type(float)
            return self._snapped((x.astype(dtype) - self._loc(dtype)) / self._scale(dtype), to_data=False)
        u = (np.asarray(x, np.float64) - self._loc()) / self._scale()
        return np.asarray(self._snapped(u, to_data=False), jnp.result_type(float))

    def to_data(self, u: Any) -> Any:
        """Data of u, shape (*batch, *event): a NumPy array in float64, or JAX's own where u is traced."""
        if isinstance(u, Tracer):
            dtype = jnp.result_type(float)
            return self._snapped(self._loc(dtype) + self._scale(dtype) * u.astype(dtype), to_data=True)
        return np.asarray(self._snapped(self._loc() + self._scale() * np.asarray(u, np.float64), to_data=True))

    def log_jacobian(self, event_shape: tuple[int, ...]) -> float:
        r"""$\log |du / dx|$ of one datum, nats, exact: what a log density of u needs to be one of x; 0 for probabilities."""
        return -float(np.sum(self.log_scale(event_shape))) if self.has_density else 0.0

    def log_scale(self, event_shape: tuple[int, ...]) -> np.ndarray:
        """log |scale| of every coordinate, nats, shape (*event,)."""
        return np.broadcast_to(np.log(np.abs(self._scale())), event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        """Raise a ValueError where these cannot be the units of data of this process."""
        if self.shape and self.shape != process.event_shape[-len(self.shape) :]:
            raise ValueError(
                f"units must be one number for all coordinates or of the event shape {process.event_shape}; got {self.shape}."
            )

    def unsnapped(self, u: Array) -> Array:
        """loc + scale u in JAX, between values too: what a function of x is a function of."""
        dtype = jnp.result_type(float)
        return self._loc(dtype) + self._scale(dtype) * u

    def shifted(self, x: Array) -> Array:
        """(x - loc) / scale in JAX, likewise."""
        dtype = jnp.result_type(float)
        return (x - self._loc(dtype)) / self._scale(dtype)

    def scales(self) -> Array:
        """scale as a JAX array, a scalar or of the event shape."""
        return jnp.asarray(self._scale(), jnp.result_type(float))

    def _snapped(self, value: Any, *, to_data: bool) -> Any:
        """The value as it is, or the nearest of those that there are."""
        return value

    def _loc(self, dtype: Any = np.float64) -> np.ndarray:
        return np.reshape(np.asarray(self.loc, dtype), self.shape)

    def _scale(self, dtype: Any = np.float64) -> np.ndarray:
        return np.reshape(np.asarray(self.scale, dtype), self.shape)


class Standardize(Units):
    r"""Reals with their mean and standard deviation taken out: the data's densities are those of x.

    Args:
        loc: Mean, one number for all coordinates or shape (*event,).
        scale: Standard deviation, likewise; positive.

    Raises:
        ValueError: shapes that differ, or numbers that are not finite or not positive.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl import models
        >>> heights = np.random.default_rng(0).normal([170.0, 70.0], [9.0, 12.0], (1000, 2))
        >>> units = models.Standardize.of(heights, by_coordinate=True)
        >>> units.to_chain(heights).std(axis=0).round(3)
        array([1., 1.], dtype=float32)
    """

    def __init__(self, loc: ArrayLike, scale: ArrayLike):
        loc, scale = np.asarray(loc, np.float64), np.asarray(scale, np.float64)
        if loc.shape != scale.shape:
            raise ValueError(f"loc and scale must have one shape; got {loc.shape} and {scale.shape}.")
        if not np.all(scale > 0.0):
            raise ValueError("scale must be positive, a standard deviation; some are not.")
        self.loc, self.scale, self.shape = _floats(loc), _floats(scale), loc.shape

    @classmethod
    def of(cls, data: ArrayLike, *, by_coordinate: bool = False) -> "Standardize":
        """The constants of data of shape (N, *event): of all coordinates together, or of each by itself.

        A coordinate that never varies keeps its size: it is divided by its absolute value, or by 1 where that is 0.

        Raises:
            ValueError: data that are masked, not finite or empty.
        """
        check_unmasked("data", data)
        values = np.asarray(data, np.float64)
        if not values.size or not np.all(np.isfinite(values)):
            raise ValueError("data must be finite, and at least one number, to be standardized; got others.")
        axes = 0 if by_coordinate else None
        loc, scale = np.mean(values, axis=axes), np.std(values, axis=axes)
        # A standard deviation below the rounding of the mean is none.
        constant = scale <= 16.0 * np.finfo(np.float64).eps * np.abs(loc)
        return cls(loc, np.where(constant, np.where(loc == 0.0, 1.0, np.abs(loc)), scale))


class _Snapping(Units):
    """Values that there are only a few of: what lies beside one of them is it, up to rounding."""

    has_density = False

    def values(self) -> np.ndarray:
        """The data's values, increasing with those of the chain."""
        raise NotImplementedError

    def chain_values(self) -> np.ndarray:
        """The chain's values in their order, in its dtype."""
        values = (self.values() - self._loc()) / self._scale()
        return values.astype(jnp.result_type(float))

    def _snapped(self, value: Any, *, to_data: bool) -> Any:
        to = self.values() if to_data else self.chain_values().astype(np.float64)
        order = np.argsort(to)
        to, middles = to[order], 0.5 * (to[order][1:] + to[order][:-1])
        tolerance = 1e-4 * float(np.min(np.diff(to)))
        lib = jnp if isinstance(value, Tracer) else np
        nearest = lib.asarray(to, value.dtype)[lib.searchsorted(lib.asarray(middles, value.dtype), value)]
        near = lib.abs(nearest - value) <= max(tolerance, 4.0 * float(jnp.finfo(value.dtype).eps) * np.abs(to).max())
        return nearest if to_data else lib.where(near, nearest, value)  # what is no value stays one that can be refused


class GrayLevels(_Snapping):
    """Gray levels or counts, a few values: their probabilities are those of the values themselves.

    Args:
        values: The data's values, increasing: 0..255.
        loc: The value, or what lies between values, that is 0 in the chain.
        scale: The difference that is 1 in the chain; positive.

    Raises:
        ValueError: fewer than two values, values that do not increase, or a scale that is not positive.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl import models
        >>> images = np.random.default_rng(0).integers(0, 256, (10, 4, 4))
        >>> units = models.GrayLevels.of(images)
        >>> bool((units.to_data(units.to_chain(images)) == images).all()), len(units.levels)
        (True, 256)
    """

    grays: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, values: ArrayLike, loc: float, scale: float):
        self.grays = _floats(np.asarray(values, np.float64))
        self.loc, self.scale, self.shape = (float(loc),), (float(scale),), ()

    def __check_init__(self):
        if len(self.grays) < 2 or not all(a < b for a, b in zip(self.grays, self.grays[1:], strict=False)):
            raise ValueError(f"values must be two or more that increase; got {len(self.grays)}.")
        if not self.scale[0] > 0.0:
            raise ValueError(f"scale must be positive; got {self.scale[0]:g}.")

    @classmethod
    def of(cls, data: ArrayLike) -> "GrayLevels":
        """Whole numbers from the least to the largest there is, or the values that occur; standardized by the pooled constants.

        Raises:
            ValueError: data that are masked or not finite, that have one value, or more than 4,096.
        """
        units, values = Standardize.of(data), np.unique(np.asarray(data, np.float64))
        if np.all(values == np.round(values)) and np.ptp(values) < 4096:
            values = np.arange(values[0], values[-1] + 1.0)
        if not 2 <= len(values) <= 4096:
            raise ValueError(f"data must have from 2 to 4,096 values to be gray levels; got {len(values)}.")
        return cls(values, units.loc[0], units.scale[0])

    def __repr__(self) -> str:
        return f"GrayLevels({len(self.grays)} from {self.grays[0]:g} to {self.grays[-1]:g})"

    @property
    def levels(self) -> tuple[float, ...]:
        """The chain's levels, as `LevelPrediction` and a quantized first step take them."""
        return _floats(self.chain_values())

    def values(self) -> np.ndarray:
        return np.asarray(self.grays)


class Labels(_Snapping):
    """Two labels of the user's own in place of the bits 0 and 1.

    Args:
        zero: What the bit 0 is called: -1, for one.
        one: What the bit 1 is called.

    Raises:
        ValueError: labels that are the same, or not finite.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl import models
        >>> models.Labels(-1, 1).to_chain(np.array([-1, 1, 1]))
        array([0., 1., 1.], dtype=float32)
    """

    def __init__(self, zero: float, one: float):
        self.loc, self.scale, self.shape = (float(zero),), (float(one) - float(zero),), ()

    def __repr__(self) -> str:
        return f"Labels({self.loc[0]:g}, {self.loc[0] + self.scale[0]:g})"

    def values(self) -> np.ndarray:
        return np.asarray([self.loc[0], self.loc[0] + self.scale[0]])

    def check_process(self, process: DiffusionProcess) -> None:
        if not process.stationary().is_discrete:
            raise ValueError("units must be Standardize or GrayLevels for a Gaussian chain; Labels are for bits.")


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.ravel().tolist())


class InUnits(Distribution):
    """A law of what the chain has at time 0, in the data's units.

    Args:
        law: In the chain's units.
        units: The data's.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("law",)
    pytree_aux_fields = ("units",)
    has_rsample = False

    def __init__(self, law: Distribution, units: Units, *, validate_args: bool | None = None):
        self.law, self.units = law, units
        super().__init__(law.batch_shape, law.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(OneOf() if self.law.support.is_discrete else constraints.real, self.event_dim)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return jnp.asarray(self.units.to_data(self.law.sample(key, sample_shape)))

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log density or log mass in the data's units, nats; as exact as the law's."""
        u = jnp.asarray(self.units.to_chain(value))
        return self.law.log_prob(u) + self.units.log_jacobian(self.event_shape)


def in_units(law: Distribution, units: Units | None) -> Distribution:
    """A law of $x_0$ as the chain has it, in the data's units."""
    return law if units is None else InUnits(law, units)
