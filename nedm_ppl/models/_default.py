"""A model for data of which nothing is known but themselves: `diffusion_for`.

Every choice is one that `docs/choose.md` gives first. What data look like decides which: it is asked of all of them, and said.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, DataWarning, as_count, check_key, check_unmasked
from nedm_ppl.models import networks
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models._units import GrayLevels, Labels, Standardize, Units
from nedm_ppl.models.chain import BernoulliDiffusion, DiffusionProcess, GaussianDiffusion, schedules
from nedm_ppl.models.reverse import (
    BitPrediction,
    Conditional,
    LevelPrediction,
    VelocityPrediction,
    fit_bit_mixture,
    log_frequencies,
)

__all__ = ["IMAGE_STEPS", "KINDS", "TABLE_STEPS", "checked_values", "diffusion_for", "kind_of"]

KINDS = ("real", "levels", "bits")
TABLE_STEPS, IMAGE_STEPS = 40, 200
FULL_RANK, SOME_RANK, MANY_COLUMNS = 16, 8, 32
IMAGE_WIDTH = 32
FEW_LEVELS, MOST_LEVELS, TENFOLD = 64, 256, 10.0
FEW_ROWS, HEAVY, TIED_SHARE = 100, 20.0, 0.02


class Suited(NamedTuple):
    """The parts that were chosen, and what to say of them."""

    process: DiffusionProcess
    reverse: Any
    first_step: str
    said: str


def diffusion_for(
    rng_key: Array,
    data: ArrayLike,
    *,
    kind: str | None = None,
    levels: ArrayLike | None = None,
    num_steps: Count | None = None,
    num_labels: Count = 0,
    columns: Sequence[str] | None = None,
    verbose: bool = True,
) -> Diffusion:
    """A diffusion that suits data: process, units, T, parameterization, first step, network and its size. It is not trained yet.

    `inference.fit(key, diffusion, data)` trains it with nothing else said.

    Args:
        rng_key: Initializes the weights.
        data: As they are, in units of their own; shape (N, columns) for a table, (N, height, width) or (N, height, width, channels)
            for images. Of a data frame its `to_numpy()`.
        kind: `real`, `levels` (gray levels, or counts with few values), `bits` (two values), or None to find out: two values are
            bits; at most 256 whole numbers, and values of which all occur often, are levels; all else is real.
        levels: All values that levels or bits can have; by default those of the data, and whole numbers between them.
        num_steps: T; by default 40 for a table and 200 for images.
        num_labels: Number of labels 0, 1, ... that the model is to be given as contexts; 0 is a model without.
        columns: Names of a table's columns, for messages and for the model to keep.
        verbose: Whether to print what was chosen and why.

    Returns:
        A model in the data's units. Of real data it has densities, of levels and bits probabilities.

    Raises:
        ValueError: missing or infinite values (with the columns and how many), no rows or columns, data of one value, or a kind
            that these data are not.

    Warns:
        DataWarning: constant columns, values or rows that occur again in real data, heavy tails, few rows.

    Examples:
        >>> import jax, numpy as np
        >>> from nedm_ppl import models
        >>> heights = np.random.default_rng(0).normal([170.0, 70.0], [9.0, 12.0], (500, 2))
        >>> diffusion = models.diffusion_for(jax.random.key(0), heights)
        data: 500 rows of 2 real numbers, in units of their pooled mean 120 and standard deviation 50.7
        chain: Gaussian, T = 40, log-SNR falls evenly; last step learned
        kernel: predicts the velocity, with the full covariance
        network: residual, width 128, depth 3; 113,544 parameters
    """
    check_key(rng_key)
    num_labels = as_count("num_labels", num_labels, 0)
    values = checked_values(data, columns)
    steps = (
        (TABLE_STEPS if values.ndim == 2 else IMAGE_STEPS) if num_steps is None else as_count("num_steps", num_steps)
    )
    kind = kind_of(values) if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    _warn(values, kind, columns)
    units, about = _units(values, kind, values if levels is None else np.asarray(levels, np.float64))
    key_network, key_base = jax.random.split(rng_key)
    build = {"real": _real, "levels": _levels, "bits": _bits}[kind]
    chosen = build(key_network, key_base, values, units, steps, num_labels)
    diffusion = Diffusion(
        chosen.process,
        chosen.reverse,
        first_step=chosen.first_step,
        units=units,
        columns=columns if values.ndim == 2 else None,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(diffusion, eqx.is_inexact_array)))
    if verbose:
        print(f"data: {about}\n{chosen.said}; {size:,} parameters")
    return diffusion


def _real(key: Array, _: Array, values: np.ndarray, units: Units, steps: int, num_labels: int) -> Suited:
    shape = values.shape[1:]
    size, is_table = math.prod(shape), len(shape) == 1
    rank = size if size <= FULL_RANK else SOME_RANK if is_table else 0
    schedule = schedules.log_snr_linear(steps) if is_table else schedules.log_snr_logistic(steps)
    network, named = _network(key, shape, (2 + rank, *shape), shape, steps, num_labels)
    together = (
        "the full covariance" if rank == size else f"{rank} directions that go together" if rank else "a variance"
    )
    falls = "evenly" if is_table else "slowest half way"
    said = (
        f"chain: Gaussian, T = {steps}, log-SNR falls {falls}; last step learned\n"
        f"kernel: predicts the velocity, with {together}\nnetwork: {named}"
    )
    return Suited(GaussianDiffusion(shape, schedule), VelocityPrediction(network, rank), "learned", said)


def _levels(key: Array, _: Array, values: np.ndarray, units: Units, steps: int, num_labels: int) -> Suited:
    assert isinstance(units, GrayLevels)
    shape, levels = values.shape[1:], units.levels
    process = GaussianDiffusion(shape, schedules.log_snr_logistic(steps))
    if len(levels) <= FEW_LEVELS:
        base = log_frequencies(np.asarray(units.to_chain(values)), levels)
        inside, outside = (*shape, len(levels) + 1), (*shape, len(levels))
        network, named = _network(key, inside, outside, shape, steps, num_labels)
        reverse: Any = LevelPrediction(network, levels, base=base)
        predicts = f"predicts {len(levels)} probabilities a coordinate, from their frequencies on"
    else:
        network, named = _network(key, shape, (2, *shape), shape, steps, num_labels)
        reverse = VelocityPrediction(network)
        predicts = "predicts the velocity, with a variance"
    said = (
        f"chain: Gaussian, T = {steps}, log-SNR falls slowest half way; last step a categorical over {len(levels)} levels\n"
        f"kernel: {predicts}\nnetwork: {named}"
    )
    return Suited(process, reverse, "quantized", said)


def _bits(key: Array, key_base: Array, values: np.ndarray, units: Units, steps: int, num_labels: int) -> Suited:
    shape = values.shape[1:]
    components = max(1, min(16, len(values) // 20))
    base = fit_bit_mixture(key_base, np.asarray(units.to_chain(values)), components)
    network, named = _network(key, (*shape, 2), shape, shape, steps, num_labels)
    process = BernoulliDiffusion(shape, schedules.erasing(steps))
    said = (
        f"chain: binomial, T = {steps}, erasing; last step learned\n"
        f"kernel: predicts the bits, from a mixture of {components} on\nnetwork: {named}"
    )
    return Suited(process, BitPrediction(network, base=base), "learned", said)


def _network(
    key: Array,
    inside: tuple[int, ...],
    outside: tuple[int, ...],
    shape: tuple[int, ...],
    steps: int,
    num_labels: int,
) -> tuple[Any, str]:
    """A network for data of this shape, and what it is; given labels where there are some, and one for none."""
    key_network, key_embed = jax.random.split(key)
    if len(shape) == 1:
        width, depth = 128 if shape[0] <= MANY_COLUMNS else 256, 3
        network: Any = networks.ResidualMLP(inside, outside, steps, width=width, depth=depth, key=key_network)
        said = f"residual, width {width}, depth {depth}"
    else:
        height, breadth = shape[:2]
        even, fourfold = height % 2 == breadth % 2 == 0, height % 4 == breadth % 4 == 0
        scales = 3 if fourfold and min(height, breadth) >= 16 else 2 if even else 1
        width, multipliers, heads = IMAGE_WIDTH, (1, 2, 2)[:scales], 4 if scales > 1 else 0
        network = networks.UNet(
            inside, outside, steps, width=width, multipliers=multipliers, num_heads=heads, key=key_network
        )
        said = f"U-Net, width {width}, {scales} scales"
    if num_labels:
        embedded = networks.Embedded(network, eqx.nn.Embedding(num_labels + 1, width, key=key_embed))
        return Conditional(embedded, num_labels), f"{said}, given one of {num_labels} labels or none"
    return network, said


def checked_values(data: ArrayLike, columns: Sequence[str] | None) -> np.ndarray:
    """The data in float64, which a model can be made of; a ValueError of one sentence where none can."""
    check_unmasked("data", data)
    try:
        values = np.asarray(data, np.float64)
    except (TypeError, ValueError):
        raise ValueError("data must be numbers; got others. Code them, or leave their columns out.") from None
    if values.ndim < 2:
        raise ValueError(f"data must have shape (N, *event), a row for every datum; got shape {values.shape}.")
    if 0 in values.shape or len(values) < 2:
        raise ValueError(f"data must be at least two rows, and not empty; got shape {values.shape}.")
    bad = ~np.isfinite(values)
    if bad.any():
        counts = bad.reshape(len(values), -1).sum(axis=0)
        names = [_name(int(i), columns) for i in np.flatnonzero(counts)]
        where = ", ".join(f"{count} in {name}" for name, count in zip(names, counts[counts > 0], strict=True))
        raise ValueError(
            f"data must be finite; got {bad.sum()} missing or infinite values, {where[:400]}. Drop or impute them."
        )
    if np.ptp(values) == 0.0:
        raise ValueError(f"data must vary; got {values.flat[0]:g} everywhere.")
    return values


def kind_of(values: np.ndarray) -> str:
    """What the data look like."""
    some = np.unique(values.reshape(-1)[: 2**20])
    distinct = np.unique(values) if len(some) <= MOST_LEVELS else some
    if len(distinct) == 2:
        return "bits"
    whole = bool(np.all(values == np.round(values)))
    if whole and np.ptp(values) < MOST_LEVELS and len(distinct) <= MOST_LEVELS:
        return "levels"
    return "levels" if len(distinct) <= FEW_LEVELS and values.size >= 20 * len(distinct) else "real"


def _units(values: np.ndarray, kind: str, possible: np.ndarray) -> tuple[Units, str]:
    """Units for data of a kind, and what the data are in words."""
    shape = values.shape[1:]
    size = " x ".join(map(str, shape))
    many = f"{len(values):,} rows of {size}" if len(shape) == 1 else f"{len(values):,} images of {size}"
    if kind == "bits":
        two = np.unique(possible)
        if len(two) != 2:
            raise ValueError(f"data must have two values to be bits; got {len(two)}.")
        return Labels(two[0], two[1]), f"{many} bits, called {two[0]:g} and {two[1]:g}"
    if kind == "levels":
        of = Standardize.of(values)
        levels = GrayLevels(GrayLevels.of(possible).values(), of.loc[0], of.scale[0])
        grays = levels.values()
        return levels, f"{many} levels, {len(grays)} of them from {grays[0]:g} to {grays[-1]:g}"
    spread = values.std(axis=0)
    varies = spread[spread > 1e-12 * np.abs(values.mean(axis=0))]
    by_column = bool(len(shape) == 1 and varies.size > 0 and values.std() > TENFOLD * varies.min())
    units = Standardize.of(values, by_coordinate=by_column)
    numbers = f"{many} real numbers" if len(shape) == 1 else f"{many}, real numbers"
    if by_column:
        return units, f"{numbers}, each column in units of its own mean and standard deviation"
    return units, (
        f"{numbers}, in units of their pooled mean {units.loc[0]:.3g} and standard deviation {units.scale[0]:.3g}"
    )


def _warn(values: np.ndarray, kind: str, columns: Sequence[str] | None) -> None:
    """Say what will hurt."""
    rows = values.reshape(len(values), -1)
    said = []
    constant = np.flatnonzero(np.ptp(rows, axis=0) == 0.0)
    if len(constant) and values.ndim == 2:
        said.append(f"{_names(constant, columns)} never vary, and their density is unbounded; leave them out")
    if len(values) < FEW_ROWS:
        said.append(f"{len(values)} rows are few for a network; compare with a simple model")
    if kind == "real":
        varies = np.ptp(rows, axis=0) > 0.0
        some = rows[:10_000]
        most = np.array([np.unique(column, return_counts=True)[1].max() for column in some.T[:64]])
        tied = np.flatnonzero((most > max(TIED_SHARE * len(some), 5)) & varies[:64])
        if len(tied) and values.ndim == 2:
            said.append(
                f"one value of {_names(tied, columns)} occurs in more than {TIED_SHARE:.0%} of the rows, and a density is "
                "unbounded there; add noise of its rounding, or take kind='levels'"
            )
        copies = len(rows) - len(np.unique(rows, axis=0)) if values.size <= 10**7 else 0
        if copies:
            said.append(f"{copies} rows are copies of others; a split may put one of a pair on either side")
        spread = rows.std(axis=0)
        far = np.abs(rows - rows.mean(axis=0)).max(axis=0) / np.where(spread > 0.0, spread, 1.0)
        heavy = np.flatnonzero(far > HEAVY)
        if len(heavy) and values.ndim == 2:
            said.append(
                f"{_names(heavy, columns)} reach more than {HEAVY:g} standard deviations; take their logarithms, or cut them"
            )
    for sentence in said:
        warnings.warn(f"{sentence}.", DataWarning, stacklevel=3)


def _names(places: np.ndarray, columns: Sequence[str] | None) -> str:
    named = [_name(int(i), columns) for i in places[:5]]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return f"{'columns' if len(places) > 1 else 'column'} {', '.join(named)}{more}"


def _name(place: int, columns: Sequence[str] | None) -> str:
    return str(columns[place]) if columns is not None and place < len(columns) else str(place)
