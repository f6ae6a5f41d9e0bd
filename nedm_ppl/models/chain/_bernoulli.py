r"""Binomial diffusion: one independent bit per coordinate (Section 2.1, Table App.1, right column).

With $\rho$ the stationary rate,

$$\pi = \mathrm{Bernoulli}(\rho), \quad q(x_t = 1 | x_{t-1}) = (1 - \beta_t) x_{t-1} + \beta_t \rho, \quad
  q(x_t = 1 | x_0) = \bar\alpha_t x_0 + (1 - \bar\alpha_t) \rho,$$

and $q(x_{t-1} | x_t, x_0)$ is Bayes' rule with the marginal at $t - 1$ as prior and step $t$ as likelihood. The
probabilities of 1 and of 0 are formed separately, without a difference, and only their log ratio is kept: at
T = 2000 a step flips a bit with probability 1e-4 and every digit of that matters.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, nn
from jax.nn import log_sigmoid
from jax.scipy.special import entr
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.arguments import Shape, as_shape, check_kind
from nedm_ppl.laws._mixtures import beside, components, mixture, stack_of
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.chain.schedules import LearnedSchedule, Schedule

__all__ = ["BernoulliDiffusion"]


class BernoulliDiffusion(DiffusionProcess):
    r"""The binomial process: data are bits, 0 or 1, held as floats.

    Args:
        event_shape: Shape of one datum; 3 is (3,).
        schedule: The diffusion rates, fixed: bits have no pathwise gradient from which rates could be learned.
        rate: $\rho$, the probability of a 1 under the stationary law, in (0, 1); the paper takes 0.5, or the data's
            mean activity.

    Raises:
        ValueError: what is no shape or no schedule, a learned schedule, or `rate` outside (0, 1).

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.BernoulliDiffusion(3, models.schedules.erasing(10))
        >>> process.marginal(10, jnp.array([0.0, 1.0, 1.0])).mean  # nothing of x_0 is left
        Array([0.5, 0.5, 0.5], dtype=float32)
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    schedule: Schedule
    rate: float = eqx.field(static=True)

    def __init__(self, event_shape: Shape, schedule: Schedule, *, rate: float = 0.5):
        check_kind("schedule", schedule, Schedule)
        self.event_shape = as_shape("event_shape", event_shape, least=1)
        self.schedule = schedule
        self.rate = float(rate)

    def __check_init__(self):
        if isinstance(self.schedule, LearnedSchedule):
            raise ValueError(
                "schedule must be fixed for a BernoulliDiffusion; got a LearnedSchedule, whose gradient through bits "
                "would be silently wrong. Use schedules.erasing, or any other fixed schedule."
            )
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"rate must lie in (0, 1); got {self.rate:g}. Use the data's mean activity, or 0.5.")

    def stationary(self) -> Distribution:
        logit = np.log(self.rate) - np.log1p(-self.rate)
        return dist.BernoulliLogits(jnp.full(self.event_shape, logit)).to_event(self.event_dim)

    def step(self, t: ArrayLike, x: Array) -> Distribution:
        return dist.BernoulliLogits(self.step_logits(t, x)).to_event(self.event_dim)

    def step_logits(self, t: ArrayLike, x: Array) -> Array:
        r"""$\log q(x_t = 1 | x_{t-1} = x) / q(x_t = 0 | x_{t-1} = x)$ per bit, shape (*batch, *event)."""
        self.check_time(t)
        one, zero = self._erase(x, self.schedule.rates[t - 1], self.schedule.keep[t - 1])
        return jnp.log(one) - jnp.log(zero)

    def marginal(self, t: ArrayLike, x0: Array) -> Distribution:
        self.check_time(t, first=0)
        return self._bits(*self._erase(x0, self.schedule.one_minus_alpha_bar[t], self.schedule.alpha_bar[t]))

    def posterior(self, t: ArrayLike, x_t: Array, x0: Array) -> Distribution:
        self.check_time(t, first=2)
        return dist.BernoulliLogits(self.posterior_logits(t, x_t, x0)).to_event(self.event_dim)

    def posterior_logits(self, t: ArrayLike, x_t: Array, x0: ArrayLike) -> Array:
        r"""$\log q(x_{t-1} = 1 | x_t, x_0) / q(x_{t-1} = 0 | x_t, x_0)$ per bit; infinite at t = 1."""
        prior_1, prior_0 = self._erase(
            jnp.asarray(x0), self.schedule.one_minus_alpha_bar[t - 1], self.schedule.alpha_bar[t - 1]
        )
        likelihood = self._log_likelihood_ratio(x_t, self.schedule.rates[t - 1], self.schedule.keep[t - 1])
        return jnp.log(prior_1) - jnp.log(prior_0) + likelihood

    def reverse_step(self, t: ArrayLike, x: Array, data_law: Distribution) -> Distribution:
        r"""$\sum_b \hat p(x_0 = b)\, q(x_{t-1} | x_t, x_0 = b)$ per bit, exact, in log space; of a mixture, by component."""
        stacked = stack_of(data_law)
        if stacked is not None:
            one = dataclasses.replace(self, event_shape=self.event_shape[-stacked.event_dim :])
            return one.reverse_step(t, x, stacked).to_event(self.event_dim - stacked.event_dim)
        parts = components(data_law)
        if parts is not None:
            log_weights, law = parts
            return mixture(log_weights, self.reverse_step(t, beside(x, self.event_dim), law))
        logits = bit_logits(data_law)
        if_one, if_zero = self.posterior_logits(t, x, 1.0), self.posterior_logits(t, x, 0.0)
        log_one = jnp.logaddexp(log_sigmoid(logits) + log_sigmoid(if_one), log_sigmoid(-logits) + log_sigmoid(if_zero))
        log_zero = jnp.logaddexp(
            log_sigmoid(logits) + log_sigmoid(-if_one), log_sigmoid(-logits) + log_sigmoid(-if_zero)
        )
        return dist.BernoulliLogits(log_one - log_zero).to_event(self.event_dim)

    def implied_data_law(self, t: ArrayLike, x: Array, step: Distribution) -> Distribution:
        stacked = stack_of(step)
        if stacked is not None:
            one = dataclasses.replace(self, event_shape=self.event_shape[-stacked.event_dim :])
            return one.implied_data_law(t, x, stacked).to_event(self.event_dim - stacked.event_dim)
        parts = components(step)
        if parts is not None:
            log_weights, law = parts
            return mixture(log_weights, self.implied_data_law(t, beside(x, self.event_dim), law))
        at_one, at_zero = nn.sigmoid(self.posterior_logits(t, x, 1.0)), nn.sigmoid(self.posterior_logits(t, x, 0.0))
        probs = jnp.clip((step.mean - at_zero) / (at_one - at_zero), 1e-4, 1.0 - 1e-4)
        return dist.BernoulliLogits(jnp.log(probs) - jnp.log1p(-probs)).to_event(self.event_dim)

    def evidence(self, t: ArrayLike, x_t: Array) -> Array:
        r"""What a bit says about itself: $\log q(x_t | x_0 = 1) / q(x_t | x_0 = 0)$, shape (*batch, *event)."""
        return self._log_likelihood_ratio(x_t, self.schedule.one_minus_alpha_bar[t], self.schedule.alpha_bar[t])

    def step_entropy(self, t: ArrayLike, x: Array) -> Array:
        return self._entropy(*self._erase(x, self.schedule.rates[t - 1], self.schedule.keep[t - 1]))

    def marginal_entropy(self, t: ArrayLike, x0: Array) -> Array:
        return self._entropy(*self._erase(x0, self.schedule.one_minus_alpha_bar[t], self.schedule.alpha_bar[t]))

    def posterior_entropy(self, t: ArrayLike, x0: Array) -> Array:
        r"""$H_q(X_{t-1} | X_t, X_0 = x_0)$ in nats, summed over both values of every $x_t$: exact, shape (*batch,); 0 at t = 1."""
        x0 = jnp.asarray(x0, float)
        one, zero = self._erase(x0, self.schedule.one_minus_alpha_bar[t], self.schedule.alpha_bar[t])
        total = jnp.zeros_like(x0)
        for chance, x_t in ((one, jnp.ones_like(x0)), (zero, jnp.zeros_like(x0))):
            logits = self.posterior_logits(t, x_t, x0)
            total = total + chance * (entr(nn.sigmoid(logits)) + entr(nn.sigmoid(-logits)))
        return jnp.sum(total, axis=self._event_axes)

    def cross_entropy(self, t: ArrayLike, x0: Array) -> Array:
        one, zero = self._erase(x0, self.schedule.one_minus_alpha_bar[t], self.schedule.alpha_bar[t])
        return -jnp.sum(one * np.log(self.rate) + zero * np.log1p(-self.rate), axis=self._event_axes)

    def check_data(self, x0: ArrayLike) -> None:
        self.check_shape(x0)
        values = np.unique(np.asarray(x0))
        if not np.all(np.isin(values, (0.0, 1.0))):
            other = values[~np.isin(values, (0.0, 1.0))][0]
            raise ValueError(
                f"x0 must be binary, 0 or 1, for a BernoulliDiffusion; got {other:g}. Threshold or code it."
            )

    def _erase(self, x: Array, noise: Array, signal: Array) -> tuple[Array, Array]:
        """Probabilities of 1 and of 0 for a bit that survives with `signal` and is redrawn with `noise`."""
        return signal * x + noise * self.rate, signal * (1.0 - x) + noise * (1.0 - self.rate)

    def _log_likelihood_ratio(self, x_t: Array, noise: Array, signal: Array) -> Array:
        """Log of P(x_t | bit = 1) / P(x_t | bit = 0), for the same erasure."""
        if_one = jnp.log(signal + noise * self.rate) - jnp.log(noise * self.rate)
        if_zero = jnp.log(noise * (1.0 - self.rate)) - jnp.log(signal + noise * (1.0 - self.rate))
        return jnp.where(x_t > 0.5, if_one, if_zero)

    def _bits(self, one: Array, zero: Array) -> Distribution:
        return dist.BernoulliLogits(jnp.log(one) - jnp.log(zero)).to_event(self.event_dim)

    def _entropy(self, one: Array, zero: Array) -> Array:
        return jnp.sum(entr(one) + entr(zero), axis=self._event_axes)

    @property
    def _event_axes(self) -> tuple[int, ...]:
        return tuple(range(-self.event_dim, 0))


def bit_logits(law: Distribution) -> Array:
    """Log odds of independent bits, `BernoulliLogits` or `BernoulliProbs`, with or without `to_event`."""
    bits = coordinates(law)
    if not isinstance(bits, dist.BernoulliLogits | dist.BernoulliProbs):
        raise ValueError(f"a law of bits must be a Bernoulli in the end; got a {type(bits).__name__}.")
    return bits.logits
