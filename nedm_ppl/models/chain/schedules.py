r"""Schedules: the diffusion rates $\beta_1..\beta_T$ (Section 2.4.1).

Time 0 is data and time $T$ is noise; step $t$ joins $x_{t-1}$ and $x_t$ and erases a share $\beta_t$ of the signal
that is left, so that

$$\bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad \bar\alpha_0 = 1.$$

A fixed schedule is static: its rates are Python floats that never become parameters. Everything derived from them
is computed in float64 and only then cast, because $1 - \bar\alpha_t$ must keep its digits at $t = 1$ and $T = 4000$.
What a schedule does not fix is what the signal is: the same rates serve the Gaussian and the binomial process.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, as_count

__all__ = [
    "FixedSchedule",
    "LearnedSchedule",
    "Schedule",
    "cosine",
    "erasing",
    "from_alpha_bar",
    "from_losses",
    "log_snr_linear",
    "log_snr_logistic",
]


class Schedule(eqx.Module):
    r"""The rates of a diffusion process. `rates[t - 1]` is $\beta_t$; `alpha_bar[t]` is $\bar\alpha_t$, with t = 0..T."""

    @property
    def num_steps(self) -> int:
        """Number of steps of the chain, T."""
        raise NotImplementedError

    @property
    def rates(self) -> Array:
        r"""Diffusion rates $\beta_1..\beta_T$, in (0, 1], shape (T,)."""
        raise NotImplementedError

    @property
    def keep(self) -> Array:
        r"""Share of the signal a step leaves, $1 - \beta_1..1 - \beta_T$, to full relative precision, shape (T,)."""
        raise NotImplementedError

    @property
    def alpha_bar(self) -> Array:
        r"""Share of the signal left, $\bar\alpha_0..\bar\alpha_T$, shape (T + 1,)."""
        raise NotImplementedError

    @property
    def one_minus_alpha_bar(self) -> Array:
        r"""$1 - \bar\alpha_0..1 - \bar\alpha_T$, to full relative precision, shape (T + 1,)."""
        raise NotImplementedError

    @property
    def log_snr(self) -> Array:
        r"""Log signal-to-noise ratio $\log \bar\alpha_t / (1 - \bar\alpha_t)$ of t = 1..T, nats, shape (T,)."""
        return jnp.log(self.alpha_bar[1:]) - jnp.log(self.one_minus_alpha_bar[1:])


class FixedSchedule(Schedule):
    r"""Rates chosen in advance.

    Args:
        betas: $\beta_1..\beta_T$, each in (0, 1], equal to 1 at most at $t = T$.

    Raises:
        ValueError: no rates, or a rate outside its range (the message says at which step).
    """

    betas: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, betas: Iterable[float]):
        self.betas = tuple(float(beta) for beta in betas)

    def __check_init__(self):
        if not self.betas:
            raise ValueError("num_steps must be at least 1: a chain without a step diffuses nothing.")
        for t, beta in enumerate(self.betas, start=1):
            if not (0.0 < beta < 1.0 or (beta == 1.0 and t == len(self.betas))):
                raise ValueError(
                    f"beta must lie in (0, 1), or be 1 at the last step alone; got {beta:g} at step {t} of "
                    f"{len(self.betas)}. Use fewer steps, or a smaller rate there."
                )

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def rates(self) -> Array:
        return _cast(_derived(self.betas)[0])

    @property
    def keep(self) -> Array:
        return _cast(1.0 - np.asarray(self.betas))

    @property
    def alpha_bar(self) -> Array:
        return _cast(_derived(self.betas)[1])

    @property
    def one_minus_alpha_bar(self) -> Array:
        return _cast(_derived(self.betas)[2])

    def __repr__(self) -> str:
        return f"FixedSchedule(num_steps={self.num_steps}, betas={self.betas[0]:.3g}..{self.betas[-1]:.3g})"


@lru_cache(maxsize=64)
def _derived(betas: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rates = np.asarray(betas, np.float64)
    with np.errstate(divide="ignore"):  # beta_T = 1 erases everything: log alpha_bar_T = -inf, as it should be
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-rates))])
    return rates, np.exp(log_alpha_bar), -np.expm1(log_alpha_bar)


def _cast(values: np.ndarray) -> Array:
    """The default precision of the moment; a fresh array, because JAX may hand back an earlier cast of the same one."""
    return jnp.asarray(np.array(values, jnp.result_type(float)))


class LearnedSchedule(Schedule):
    r"""Rates learned by gradient ascent on the bound with frozen noise; Gaussian processes only (Section 2.4.1).

    $\beta_1$ stays where `start` has it (a free first rate overfits); $\beta_2..\beta_T$ are sigmoids of free logits,
    the array `logits` of shape (T - 1,), which SVI trains with the network.

    Args:
        start: The schedule to begin from; its last rate is kept below $1 - 10^{-5}$, so that its logit is finite.
    """

    logits: Array
    first_rate: float = eqx.field(static=True)

    def __init__(self, start: Schedule):
        rates = np.asarray(start.rates, np.float64)
        self.first_rate = float(rates[0])
        later = np.minimum(rates[1:], 1.0 - 1e-5)
        self.logits = jnp.asarray(np.log(later) - np.log1p(-later))

    def __check_init__(self):
        if not 0.0 < self.first_rate < 1.0:
            raise ValueError(f"first rate must lie in (0, 1); got {self.first_rate:g}.")

    @property
    def num_steps(self) -> int:
        return self.logits.shape[-1] + 1

    @property
    def rates(self) -> Array:
        return jnp.concatenate([jnp.full((1,), self.first_rate, self.logits.dtype), jax.nn.sigmoid(self.logits)])

    @property
    def keep(self) -> Array:
        first = jnp.full((1,), 1.0 - self.first_rate, self.logits.dtype)
        return jnp.concatenate([first, jax.nn.sigmoid(-self.logits)])

    @property
    def alpha_bar(self) -> Array:
        return jnp.exp(self._log_alpha_bar)

    @property
    def one_minus_alpha_bar(self) -> Array:
        return -jnp.expm1(self._log_alpha_bar)

    @property
    def _log_alpha_bar(self) -> Array:
        first = jnp.asarray([0.0, math.log1p(-self.first_rate)], self.logits.dtype)
        return jnp.cumsum(jnp.concatenate([first, jax.nn.log_sigmoid(-self.logits)]))


def erasing(num_steps: Count, *, first_rate: float | None = None, last_rate: float = 1.0) -> FixedSchedule:
    r"""The paper's schedule $\beta_t = 1/(T - t + 1)$: every step erases the same share $1/T$ of the original signal.

    Args:
        num_steps: T.
        first_rate: A chosen $\beta_1$ in place of $1/T$; the other rates stay.
        last_rate: $\beta_T$. With 1, the default, nothing of the signal is left at T. With 1/2 the rates are
            1/linspace(T, 2, T), which leaves about 1/T of the signal's variance to the Gaussian chain.

    Examples:
        >>> from nedm_ppl.models import schedules
        >>> schedules.erasing(4).betas
        (0.25, 0.3333333333333333, 0.5, 1.0)
    """
    num_steps = as_count("num_steps", num_steps)
    if not 0.0 < last_rate <= 1.0:
        raise ValueError(f"last_rate must lie in (0, 1]; got {last_rate:g}.")
    betas = 1.0 / np.linspace(num_steps, 1.0 / last_rate, num_steps)
    if num_steps == 1:
        betas = np.array([last_rate])
    if first_rate is not None:
        betas[0] = first_rate
    return FixedSchedule(betas)


def log_snr_linear(num_steps: Count, *, start: float = math.log(999.0), end: float = -6.0) -> FixedSchedule:
    r"""Log signal-to-noise ratio falling linearly from `start` at t = 1 to `end` at t = T, in nats.

    With the default start $\beta_1 = 10^{-3}$. A chain spends equal effort on every octave of noise, which for few
    steps is worth much more than the paper's schedule.

    Examples:
        >>> from nedm_ppl.models import schedules
        >>> schedule = schedules.log_snr_linear(40)
        >>> schedule.num_steps, round(float(schedule.log_snr[-1]), 3)
        (40, -6.0)
    """
    num_steps = as_count("num_steps", num_steps)
    if not end < start:
        raise ValueError(f"log_snr_linear needs end < start; got start {start:g} and end {end:g}.")
    log_snr = np.linspace(start, end, num_steps) if num_steps > 1 else np.array([end])
    return from_alpha_bar(1.0 / (1.0 + np.exp(-log_snr)), one_minus=1.0 / (1.0 + np.exp(log_snr)))


def log_snr_logistic(
    num_steps: Count, *, start: float = 5.5, end: float = -4.0, center: float = 2.5, scale: float = 1.5
) -> FixedSchedule:
    r"""Log signal-to-noise ratio falling from `start` at t = 1 to `end` at t = T along a logistic quantile function.

    The steps are densest around `center` with spread `scale` (nats): put them where the bound is lost.
    """
    num_steps = as_count("num_steps", num_steps)
    if not (end < start and scale > 0.0):
        raise ValueError(
            f"log_snr_logistic needs end < start and scale > 0; got start {start:g}, end {end:g}, scale {scale:g}."
        )
    first, last = (1.0 / (1.0 + np.exp(-(np.array([start, end]) - center) / scale))).tolist()
    quantile = np.linspace(first, last, num_steps) if num_steps > 1 else np.array([last])
    log_snr = center + scale * (np.log(quantile) - np.log1p(-quantile))
    return from_alpha_bar(1.0 / (1.0 + np.exp(-log_snr)), one_minus=1.0 / (1.0 + np.exp(log_snr)))


def cosine(num_steps: Count, *, offset: float = 0.008) -> FixedSchedule:
    r"""$\bar\alpha_t = \cos^2(\tfrac\pi2 \tfrac{t/T + o}{1 + o}) / \cos^2(\tfrac\pi2 \tfrac{o}{1 + o})$, rates at most 0.999.

    Source: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, equation 17.
    """
    num_steps = as_count("num_steps", num_steps)
    angle = 0.5 * np.pi * (np.arange(num_steps + 1) / num_steps + offset) / (1.0 + offset)
    log_cos = np.log(np.maximum(np.cos(angle), 1e-30))
    return FixedSchedule(np.minimum(-np.expm1(2.0 * np.diff(log_cos)), 0.999))


def from_losses(schedule: Schedule, losses: ArrayLike, *, num_steps: Count | None = None) -> FixedSchedule:
    r"""A schedule on which every step loses equally much, from the losses measured on another.

    A step's loss is spread evenly over the log signal-to-noise ratios it crosses; that gives a density, at whose equal
    quantiles the new steps 2..T end. $\beta_1$ and the signal left at T stay. To first order in the length of a step its loss
    is what the forward chain forgets there, whatever the schedule, so that a second measurement moves the steps little.

    Args:
        schedule: The schedule the losses were measured on.
        losses: Loss of its steps t = 2..T, in any unit, as `inference.step_losses` has them; negative noise counts as 0.
            Shape (T - 1,).
        num_steps: T of the new schedule; by default that of the old.

    Raises:
        ValueError: fewer than two steps, old or new; losses of another shape, not finite, or none above 0.
    """
    losses = np.asarray(losses, np.float64)
    last = schedule.num_steps
    num_steps = last if num_steps is None else as_count("num_steps", num_steps)
    if last < 2 or num_steps < 2:
        raise ValueError(f"from_losses needs at least 2 steps, old and new; got {last} and {num_steps}.")
    if losses.shape != (last - 1,):
        raise ValueError(f"losses must have shape ({last - 1},), those of steps 2..{last}; got {losses.shape}.")
    if not np.all(np.isfinite(losses)) or not np.any(losses > 0.0):
        raise ValueError("losses must be finite and some of them above 0; evaluate every step, on more data.")
    lost = np.append(0.0, np.cumsum(np.maximum(losses, 0.0)))
    quantiles = lost[-1] * np.linspace(0.0, 1.0, num_steps)

    with jax.enable_x64(True):  # a schedule gives its rates in the precision of the moment
        alpha_bar = np.asarray(schedule.alpha_bar, np.float64)[1:]
        one_minus = np.asarray(schedule.one_minus_alpha_bar, np.float64)[1:]
    if alpha_bar[-1] > 0.0:
        log_snr = np.interp(quantiles, lost, np.log(alpha_bar) - np.log(one_minus))
        # The ends are the old ones to the last digit.
        signal = np.concatenate([alpha_bar[:1], 1.0 / (1.0 + np.exp(-log_snr[1:-1])), alpha_bar[-1:]])
        noise = np.concatenate([one_minus[:1], 1.0 / (1.0 + np.exp(log_snr[1:-1])), one_minus[-1:]])
        return from_alpha_bar(signal, one_minus=noise)
    # A last step that erases everything crosses infinitely many octaves: spread losses over the signal left instead.
    return from_alpha_bar(np.interp(quantiles, lost, alpha_bar), one_minus=np.interp(quantiles, lost, one_minus))


def from_alpha_bar(alpha_bar: np.ndarray, *, one_minus: np.ndarray | None = None) -> FixedSchedule:
    r"""The schedule with a given $\bar\alpha_1..\bar\alpha_T$, strictly decreasing in [0, 1).

    Args:
        alpha_bar: Share of the signal left after t = 1..T.
        one_minus: $1 - \bar\alpha_t$, where it is known to more digits than the difference has.
    """
    alpha_bar = np.asarray(alpha_bar, np.float64)
    one_minus = 1.0 - alpha_bar if one_minus is None else np.asarray(one_minus, np.float64)
    before, one_minus_before = np.append(1.0, alpha_bar[:-1]), np.append(0.0, one_minus[:-1])
    # A step that erases everything does so exactly: the quotient would be 1 up to rounding, and a rate above 1 is none.
    return FixedSchedule(np.where(alpha_bar == 0.0, 1.0, (one_minus - one_minus_before) / before))
