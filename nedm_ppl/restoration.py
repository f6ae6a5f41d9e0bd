r"""Inpainting and denoising with a trained model (Section 2.5; Figures 3 and 5).

A datum $x_0$ is degraded to y by a known law $q(y | x_0)$, which as a function of $x_0$ is the multiplier r. The posterior
$p(x_0)\, r(x_0)$ is that of `inference.ParticlePosterior`; one draw of the paper's own method, `inference.multiply` from the
paper's starting points, stands beside it.

How well a posterior does is judged on the coordinates that were degraded, all of them data the model never saw:

- the root-mean-square error of its mean;
- its probability integral transform at the truth, $F(x_0^-) + u\, [F(x_0) - F(x_0^-)]$ with u uniform, which is uniform where
  the posterior is right. F is the distribution function of the weighted particles, whose atoms u smears.
"""

import os
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl.files import OutputFolderError, write_figure, write_json, write_netcdf, write_outputs
from nedm_ppl.inference.posterior._multiplier import Known, Multiplier, NormalObservation
from nedm_ppl.inference.posterior._multiply import multiply
from nedm_ppl.inference.posterior._particle_posterior import ParticlePosterior
from nedm_ppl.inference.posterior._particle_verdict import DoubtfulPosterior
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models._respace import respace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HIDDEN", "Degradation", "Hidden", "Noise", "Restoration", "hidden", "restore", "save"]

# Particles whose network is evaluated together; more gain no speed.
PARTICLES_AT_ONCE = 512

NUM_ROWS, NUM_DRAWN = 12, 4  # of the picture


class Degradation:
    """How data are degraded, and the multiplier that says so.

    Attributes:
        along: How that multiplier continues along the chain, as in `inference.multiply`.
    """

    along = "lookahead"

    @abstractmethod
    def apply(self, rng: np.random.Generator, x0: np.ndarray) -> np.ndarray:
        """Degraded data y, of x0's shape; NaN where nothing is seen."""

    @abstractmethod
    def multiplier(self, y: Array) -> Multiplier:
        """r of one datum."""

    @abstractmethod
    def degraded(self, event_shape: tuple[int, ...]) -> np.ndarray:
        """Which coordinates are not known any more, boolean, shape (*event,)."""

    def paper(self, rng_key: Array, diffusion: Diffusion, y: Array) -> Array:
        """A draw of the paper's method, approximate."""
        return multiply(diffusion, self.multiplier(y)).sample(rng_key)


@dataclass(frozen=True, eq=False)
class Hidden(Degradation):
    """Coordinates that are hidden, the others exactly known.

    Attributes:
        mask: True where hidden, shape (*event,); `hidden` makes the usual ones.

    Examples:
        >>> import jax
        >>> from nedm_ppl import data, models, restoration
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> right = restoration.Hidden(restoration.hidden("right", (2,)))
        >>> result = restoration.restore(jax.random.key(0), diffusion, data.swiss_roll(0, 3), right)
        >>> result.paper.shape
        (3, 2)
    """

    mask: np.ndarray
    along = "forward"

    def apply(self, rng: np.random.Generator, x0: np.ndarray) -> np.ndarray:
        return np.where(self.mask, np.nan, x0)

    def multiplier(self, y: Array) -> Multiplier:
        return Known(y, ~jnp.asarray(self.mask))

    def degraded(self, event_shape: tuple[int, ...]) -> np.ndarray:
        if self.mask.shape != event_shape or self.mask.dtype != bool:
            raise ValueError(
                f"mask must be boolean and of shape {event_shape}, one datum of this model; got {self.mask.dtype} of shape "
                f"{self.mask.shape}."
            )
        if self.mask.all() or not self.mask.any():
            raise ValueError("mask must hide some coordinates and leave others to be seen; got all of one kind.")
        return self.mask


@dataclass(frozen=True, eq=False)
class Noise(Degradation):
    """Gaussian noise on every coordinate.

    Attributes:
        scale: Its standard deviation, in the units of the data; that of the data makes the signal-to-noise ratio 1.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl import data, restoration
        >>> restoration.Noise(0.5).apply(np.random.default_rng(0), data.swiss_roll(0, 3)).shape
        (3, 2)
    """

    scale: float

    def apply(self, rng: np.random.Generator, x0: np.ndarray) -> np.ndarray:
        return (x0 + self.scale * rng.normal(size=x0.shape)).astype(np.float32)

    def multiplier(self, y: Array) -> Multiplier:
        return NormalObservation(y, self.scale)

    def degraded(self, event_shape: tuple[int, ...]) -> np.ndarray:
        return np.ones(event_shape, bool)

    def paper(self, rng_key: Array, diffusion: Diffusion, y: Array) -> Array:
        """From the noisy datum itself as $x_T$ to $x_1$, as in the paper; over bits, which noise is not, from noise to $x_0$."""
        target = multiply(diffusion, self.multiplier(y))
        if diffusion.process.stationary().is_discrete:
            return target.sample(rng_key)
        return target.sample(rng_key, start=y, last_step=False)


HIDDEN = ("lower", "upper", "left", "right")


def hidden(half: str, event_shape: tuple[int, ...]) -> np.ndarray:
    """The mask that hides one half of a datum, boolean, shape (*event,).

    Args:
        half: `upper` or `lower` along the first axis, `left` or `right` along the last.
        event_shape: Shape of one datum.

    Raises:
        ValueError: another half, or an axis of fewer than two coordinates.
    """
    if half not in HIDDEN:
        raise ValueError(f"half must be one of {', '.join(HIDDEN)}; got {half!r}.")
    axis = 0 if half in ("lower", "upper") else len(event_shape) - 1
    if not event_shape or event_shape[axis] < 2:
        raise ValueError(f"half {half!r} must leave something to see; got data of shape {event_shape}.")
    place = np.arange(event_shape[axis]) < event_shape[axis] // 2
    place = place if half in ("upper", "left") else np.arange(event_shape[axis]) >= event_shape[axis] // 2
    return np.broadcast_to(np.expand_dims(place, tuple(i for i in range(len(event_shape)) if i != axis)), event_shape)


class Restoration(NamedTuple):
    """Posteriors of N degraded data.

    Attributes:
        x0: The data, shape (N, *event).
        y: What was left of them, NaN where nothing, shape (N, *event).
        degraded: Which coordinates are judged, shape (*event,).
        posterior: The posteriors, run.
        paper: One draw each of the paper's method, shape (N, *event).
        pit: Probability integral transform of the degraded coordinates, shape (N, coordinates).
        rmse: Root-mean-square error of the posterior mean over the degraded coordinates, in the units of the data.
    """

    x0: np.ndarray
    y: np.ndarray
    degraded: np.ndarray
    posterior: ParticlePosterior
    paper: np.ndarray
    pit: np.ndarray
    rmse: float

    def coverage(self, mass: float = 0.9) -> float:
        """Share of the degraded coordinates whose truth lies in the central `mass` of its posterior; `mass` where that is right."""
        return float(np.mean(np.abs(self.pit - 0.5) < 0.5 * mass))


def restore(
    rng_key: Array,
    diffusion: Diffusion,
    x0: np.ndarray,
    degradation: Degradation,
    *,
    num_particles: int = 32,
    num_repeats: int = 8,
    num_steps: int | None = None,
    progress: bool = False,
) -> Restoration:
    """Degrade data, and infer them from what is left.

    Args:
        rng_key: Random key, of the degradation too.
        diffusion: A trained model.
        x0: Data it has not seen, shape (N, *event).
        degradation: `Hidden` or `Noise`.
        num_particles: Particles of a filter.
        num_repeats: Filters per datum, pooled by their evidences.
        num_steps: Respace the chain to so many steps; by default all.
        progress: Whether to show a bar.

    Raises:
        ValueError: data that are none of the model's, a mask of another shape or one that hides all or nothing, a scale that is
            not positive, or a chain that cannot be respaced.

    Examples:
        >>> import jax
        >>> from nedm_ppl import data, models, restoration
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> x0 = data.swiss_roll(0, 3)
        >>> result = restoration.restore(jax.random.key(0), diffusion, x0, restoration.Noise(0.5))
        >>> result.y.shape, result.posterior.mean.mean.shape
        ((3, 2), (3, 2))
    """
    diffusion.check_data(x0)
    degraded = degradation.degraded(diffusion.event_shape)
    diffusion = diffusion if num_steps is None else respace(diffusion, num_steps)
    key_data, key_filter, key_paper = jax.random.split(rng_key, 3)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key_data)))
    y = degradation.apply(rng, np.asarray(x0))
    posterior = ParticlePosterior(
        diffusion,
        degradation.multiplier,
        num_particles=num_particles,
        num_repeats=num_repeats,
        along=degradation.along,
    )
    batch_size = max(1, PARTICLES_AT_ONCE // (num_particles * num_repeats))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulPosterior)  # counted among the numbers
        posterior.run_batch(key_filter, jnp.asarray(y), batch_size=batch_size, progress=progress)
    keys = jax.random.split(key_paper, len(y))
    paper = eqx.filter_jit(jax.vmap(lambda key, y: degradation.paper(key, diffusion, y)))(keys, jnp.asarray(y))
    error = (posterior.mean.mean - x0)[:, degraded]
    return Restoration(
        np.asarray(x0),
        y,
        degraded,
        posterior,
        np.asarray(paper),
        _pit(rng, posterior, np.asarray(x0))[:, degraded],
        float(np.sqrt(np.mean(np.square(error)))),
    )


def save(result: Restoration, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write the picture, the draws for ArviZ and the numbers to a new folder, and draws.csv of a table; returns the numbers.

    Raises:
        OutputFolderError: the folder exists.
        OutputError: the picture or the draws could not be written; the numbers are kept.
    """
    from nedm_ppl import plotting

    check_out(out)
    out.mkdir(parents=True)
    posterior = result.posterior
    particles, draws = posterior.particles, posterior.get_samples()["x"]
    metrics = about | {
        "num_data": len(result.x0),
        "num_steps": particles.ess.shape[-1] - 1,
        "num_particles": posterior.num_particles,
        "num_repeats": posterior.num_repeats,
        "rmse": result.rmse,
        "rmse_paper_draw": _rmse(result.paper, result),
        "rmse_posterior_draw": _rmse(draws[:, 0], result),
        "coverage_90": result.coverage(),
        "log_evidence_nats": float(np.mean(posterior.log_evidence.mean)),
        "ess_min": float(particles.ess.min()),
        "num_ancestors_min": int(particles.num_ancestors[..., 0].min()),
        "num_doubtful": sum(bool(reasons) for reasons in posterior.doubts),
    }
    write_json(out / "metrics.json", metrics)

    def draw(file: Path) -> None:
        shown = (result.x0, result.y, draws[:, :NUM_DRAWN], posterior.mean.mean, posterior.sd)
        write_figure(
            plotting.restoration_figure(*(part[:NUM_ROWS] for part in shown), paper=result.paper[:NUM_ROWS]), file
        )

    outputs = {"posterior.nc": lambda file: write_netcdf(file, posterior.to_arviz())}
    if result.x0.ndim <= 3:  # sequences and gray images
        outputs["restored.png"] = draw
    model = posterior.model
    if isinstance(model, Diffusion) and model.columns is not None:
        outputs["draws.csv"] = _by_columns(draws, model.columns).to_csv
    write_outputs(out, outputs, "The numbers are in metrics.json.")
    return metrics


def check_out(out: Path) -> None:
    """Raise an OutputFolderError where the folder exists."""
    if os.path.lexists(out):
        raise OutputFolderError(f"--out {out} exists; name another folder.")


def _by_columns(draws: np.ndarray, columns: tuple[str, ...]) -> "pd.DataFrame":
    """Draws of every datum of a table, shape (N, draws, columns), as rows after the numbers of datum and draw."""
    import pandas as pd

    index = pd.MultiIndex.from_product([range(size) for size in draws.shape[:2]], names=["datum", "draw"])
    return pd.DataFrame(draws.reshape(len(index), -1), index=index, columns=list(columns))


def _rmse(x: np.ndarray, result: Restoration) -> float:
    return float(np.sqrt(np.mean(np.square((x - result.x0)[:, result.degraded]))))


def _pit(rng: np.random.Generator, posterior: ParticlePosterior, x0: np.ndarray) -> np.ndarray:
    """Randomized probability integral transform of every coordinate, shape (N, *event)."""
    x, spread = posterior.particles.x, (1,) * (x0.ndim - 1)
    weights = np.exp(posterior.log_weights).reshape(*x.shape[:3], *spread)
    truth = x0[:, None, None]
    below = np.sum(weights * (x < truth), axis=(1, 2))
    at = np.sum(weights * (x == truth), axis=(1, 2))
    return below + rng.uniform(size=x0.shape) * at
