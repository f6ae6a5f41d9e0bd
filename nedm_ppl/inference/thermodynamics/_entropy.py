r"""Bounds on the entropy of the exact reverse chain, step by step (Section 2.6, Appendix A, equation 24).

$$\underbrace{H_q(X_t | X_{t-1}) + H_q(X_{t-1} | X_0) - H_q(X_t | X_0)}_{=\, H_q(X_{t-1} | X_t, X_0)}
  \;\le\; H_q(X_{t-1} | X_t) \;\le\; H_q(X_t | X_{t-1}).$$

The lower bound is what is left to say about $x_{t-1}$ when the datum is known too. The upper one needs entropy to grow along
the chain. Gibbs' inequality, with the forward kernel run in reverse in place of the true one, holds for any data:

$$H_q(X_{t-1} | X_t) \;\le\; H_q(X_t | X_{t-1}) + \bar\alpha_{t-1} \beta_t \,\epsilon, \qquad
  \epsilon = -\mathrm{E} \log \pi(x_0) - H(\pi),$$

because $-\mathrm{E} \log \pi(x_t)$ falls from its value on data to $H(\pi)$ in proportion to $\bar\alpha_t$. So the paper's
upper bound holds where $\epsilon \le 0$: for Gaussian chains where the second moment, averaged over coordinates, is at most
1; for bits where the mean activity is the stationary rate, and always at rate 1/2.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nedm_ppl.arguments import check_concrete, check_kind, whole
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.numbers import Estimate

__all__ = ["EntropyBounds", "entropy_bounds"]


class EntropyBounds(NamedTuple):
    r"""Bounds on $H_q(X_{t-1} | X_t)$ in nats for t = 1..T. Arrays are float64 NumPy, shape (T,).

    Attributes:
        times: The steps t.
        lower: $H_q(X_{t-1} | X_t, X_0)$; at t = 1 minus infinity for a Gaussian chain, 0 for bits.
        lower_se: Its standard error over the data; 0 where it is the same for all data, and exact.
        upper: $H_q(X_t | X_{t-1})$, the paper's upper bound; see `upper_holds`.
        upper_se: As `lower_se`.
        upper_any_data: $H_q(X_t | X_{t-1}) + \bar\alpha_{t-1} \beta_t \epsilon$, an upper bound whatever the data.
        upper_any_data_se: As `lower_se`.
        excess: $\epsilon$ in nats, with its standard error over the data; 0 where the paper's condition is met.
    """

    times: np.ndarray
    lower: np.ndarray
    lower_se: np.ndarray
    upper: np.ndarray
    upper_se: np.ndarray
    upper_any_data: np.ndarray
    upper_any_data_se: np.ndarray
    excess: Estimate

    @property
    def upper_holds(self) -> bool:
        r"""Whether the data allow the paper's upper bound: $\epsilon$ at most 0, within four standard errors and rounding."""
        rounding = 1e-5 * (1.0 + abs(float(self.upper[-1])))
        return self.excess.mean <= 4.0 * self.excess.se + rounding


def entropy_bounds(process: DiffusionProcess, x0: ArrayLike) -> EntropyBounds:
    r"""Bounds on the entropy of every step of the exact reverse chain; no network and no sampling.

    Entropies are those of the chain from the law of the data, of which `x0` are draws. For a Gaussian chain, and for bits at
    rate 1/2, `lower` and `upper` do not depend on the data and are exact; at other rates they are averages over them.

    Args:
        process: The forward chain.
        x0: Data $x_0$, shape (N, *event), scaled as in training.

    Returns:
        Bounds in nats, for t = 1..T.

    Raises:
        ValueError: data of another shape, or that this process cannot have.

    Examples:
        >>> from nedm_ppl import data, inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> bounds = inference.entropy_bounds(process, data.swiss_roll(0, 100))
        >>> bounds.lower.shape, bool((bounds.lower <= bounds.upper).all())
        ((10,), True)
    """
    check_kind("process", process, DiffusionProcess)
    check_concrete("entropy_bounds", "the process's step_entropy and posterior_entropy", process, x0)
    x0 = whole("x0", x0)
    process.check_data(x0)
    flat = jnp.reshape(jnp.asarray(x0, float), (-1, *process.event_shape))
    active = np.asarray(jnp.mean(flat.reshape(len(flat), -1), axis=-1), np.float64)
    excess = np.asarray(-process.null_log_prob(flat) - process.stationary().entropy(), np.float64)
    lower, upper, weight = (np.asarray(value, np.float64) for value in _at_zeros_and_ones(process))

    # A datum's entropies are affine in its mean activity, because each coordinate's are affine in its bit; a Gaussian
    # chain's do not depend on the datum at all.
    def over_data(at: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = np.where(at[0] == at[1], 0.0, at[1] - np.where(np.isfinite(at[0]), at[0], 0.0))
        covariance = np.atleast_2d(np.cov([active, excess])) if len(flat) > 1 else np.full((2, 2), np.nan)
        variance = slope**2 * covariance[0, 0] + 2.0 * slope * weight * covariance[0, 1] + weight**2 * covariance[1, 1]
        fixed = (slope == 0.0) & (weight == 0.0)
        se = np.where(fixed, 0.0, np.sqrt(np.maximum(variance, 0.0) / len(flat)))
        return at[0] + slope * active.mean() + weight * excess.mean(), se

    return EntropyBounds(
        np.arange(1, process.num_steps + 1),
        *over_data(lower, np.zeros(process.num_steps)),
        *over_data(upper, np.zeros(process.num_steps)),
        *over_data(upper, weight),
        Estimate.of(excess),
    )


@eqx.filter_jit
def _at_zeros_and_ones(process: DiffusionProcess) -> tuple[Array, Array, Array]:
    r"""$H_q(X_{t-1} | X_t, X_0)$ and $H_q(X_t | X_{t-1})$ of the data 0 and 1, each of shape (2, T); $\bar\alpha_{t-1} \beta_t$."""
    schedule, (zero, one) = process.schedule, (jnp.zeros(process.event_shape), jnp.ones(process.event_shape))

    def step(t: Array) -> tuple[Array, Array]:
        ends = process.step_entropy(t, zero), process.step_entropy(t, one)

        def mean_step_entropy(x0: Array) -> Array:
            return ends[0] + (ends[1] - ends[0]) * jnp.mean(process.marginal(t - 1, x0).mean)

        lower = jnp.stack([process.posterior_entropy(t, x0) for x0 in (zero, one)])
        return lower, jnp.stack([mean_step_entropy(x0) for x0 in (zero, one)])

    lower, upper = jax.vmap(step, out_axes=1)(jnp.arange(1, process.num_steps + 1))
    return lower, upper, schedule.alpha_bar[:-1] * schedule.rates
