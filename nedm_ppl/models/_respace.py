r"""The same model with fewer steps: the times $1 = \tau_1 < \dots < \tau_K = T$ of a trained chain as a chain of their own.

A coarse step erases what its fine steps erase together,

$$1 - \beta'_k = \prod_{\tau_{k-1} < s \le \tau_k} (1 - \beta_s), \qquad \bar\alpha'_k = \bar\alpha_{\tau_k},$$

so that state k of the coarse chain has the law of state $\tau_k$ of the fine one, and a prediction of $x_0$ made for $\tau_k$
holds there. The step follows from it as ever (`process.reverse_step`). A kernel that names $x_{t-1}$ itself (`DriftVariance`,
`FlipRate`) knows nothing of other steps and cannot be respaced.

Every moment-matched step costs some of the bound, and a longer step more: fewer steps are another, slightly worse model.
Source: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, section 4.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, as_count, check_kind
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain.schedules import FixedSchedule
from nedm_ppl.models.networks import TimedNetwork
from nedm_ppl.models.reverse._reverse import Network, Prediction

__all__ = ["AtTimes", "respace"]

SPACINGS = ("index", "log_snr")


class AtTimes(TimedNetwork):
    r"""A network called at chosen times: `(k, x) -> network(times[k - 1], x)`.

    Attributes:
        network: The network.
        times: $\tau_1..\tau_K$.
    """

    network: Network
    times: tuple[int, ...] = eqx.field(static=True)

    @property
    def num_steps(self) -> int:
        """K."""
        return len(self.times)

    def __call__(self, t: ArrayLike, x: Array) -> Array:
        return self.network(jnp.asarray(self.times)[jnp.asarray(t) - 1], x)


def respace(diffusion: Diffusion, num_steps: Count, *, spacing: str = "index") -> Diffusion:
    r"""A trained model with fewer steps, its first and last among them.

    Args:
        diffusion: The model; its reverse kernel must predict $x_0$. A learned schedule is frozen where it stands.
        num_steps: Steps of the new chain, in 2..T.
        spacing: `index` keeps every so manieth step, and with it the density of steps the schedule was designed with;
            `log_snr` spreads them evenly in the log signal-to-noise ratio.

    Raises:
        ValueError: a kernel that predicts no $x_0$, a number of steps outside 2..T, or an unknown spacing.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(40))
        >>> diffusion = models.Diffusion(process, models.VelocityPrediction(lambda t, x: jnp.zeros((2, 2))))
        >>> models.respace(diffusion, 10).num_steps
        10
    """
    check_kind("diffusion", diffusion, Diffusion)
    num_steps = as_count("num_steps", num_steps)
    reverse, process = diffusion.reverse, diffusion.process
    if not isinstance(reverse, Prediction):
        raise ValueError(
            f"reverse must predict x_0 to be respaced; a {type(reverse).__name__} knows the steps it was trained on alone. "
            "Use BitPrediction, LevelPrediction, VelocityPrediction or another Prediction."
        )
    if not 2 <= num_steps <= diffusion.num_steps:
        raise ValueError(
            f"num_steps must lie in 2..{diffusion.num_steps}, the steps this model was trained on; got {num_steps}."
        )
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}; got {spacing!r}.")
    with jax.enable_x64(True):  # a schedule gives its rates in the precision of the moment
        rates = np.asarray(process.schedule.rates, np.float64)
    times = _times(rates, num_steps, spacing)
    with np.errstate(divide="ignore"):  # the last rate may be 1
        log_keep = np.add.reduceat(np.log1p(-rates), np.append(0, times[:-1]))
    network = AtTimes(reverse.network, tuple(times.tolist()))
    return Diffusion(
        _with(process, "schedule", FixedSchedule(-np.expm1(log_keep))),
        _with(reverse, "network", network),
        first_step=diffusion.first_step,
        levels=diffusion.levels,
        units=diffusion.units,
        columns=diffusion.columns,
    )


def _times(rates: np.ndarray, num_steps: int, spacing: str) -> np.ndarray:
    r"""$\tau_1..\tau_K$: the nearest integers to an even spread, moved apart where two would coincide."""
    last, order = len(rates), np.arange(num_steps)
    if spacing == "index":
        place = np.linspace(1.0, last, num_steps)
    else:
        with np.errstate(divide="ignore"):  # the last rate may be 1
            log_alpha_bar = np.cumsum(np.log1p(-rates))
        snr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
        # A last fine step that is longer than an even one (infinitely, where nothing is left at T) is a coarse step of its own.
        fits = np.isfinite(snr[-1]) and snr[-2] - snr[-1] <= (snr[0] - snr[-1]) / (num_steps - 1)
        spread = last if fits else last - 1
        even = np.linspace(snr[0], snr[spread - 1], num_steps - (last - spread))
        place = np.append(np.interp(-even, -snr[:spread], np.arange(1.0, spread + 1)), np.full(last - spread, last))
    times = np.maximum.accumulate(place.round().astype(int) - order) + order
    return np.minimum(times, last - num_steps + 1 + order)


def _with(module: Any, name: str, value: object) -> Any:
    """A module with one field replaced."""
    old = getattr(module, name)
    return eqx.tree_at(lambda m: getattr(m, name), module, value, is_leaf=lambda node: node is old)
