r"""Gaussian diffusion (Section 2.1, Table App.1, left column).

$$\pi = \mathcal N(0, I), \qquad q(x_t | x_{t-1}) = \mathcal N(\sqrt{1 - \beta_t}\, x_{t-1},\ \beta_t I),$$
$$q(x_t | x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0,\ (1 - \bar\alpha_t) I), \qquad
  q(x_{t-1} | x_t, x_0) = \mathcal N(c_t x_0 + d_t x_t,\ \tilde\beta_t I),$$
$$c_t = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1 - \bar\alpha_t}, \quad
  d_t = \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}, \quad
  \tilde\beta_t = \frac{\beta_t (1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}.$$
"""

import dataclasses
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, MultivariateNormal

from nedm_ppl.arguments import Shape, as_shape, check_kind
from nedm_ppl.laws._low_rank import LowRankNormal, as_correlated, from_covariance
from nedm_ppl.laws._mixtures import beside, components, mixture, stack_of
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.chain.schedules import Schedule

__all__ = ["GaussianDiffusion"]


class GaussianDiffusion(DiffusionProcess):
    r"""The Gaussian process: data are real vectors, shifted and scaled to pooled mean 0 and variance 1.

    Args:
        event_shape: Shape of one datum; 3 is (3,).
        schedule: The diffusion rates; a learned schedule is allowed here.

    Raises:
        ValueError: what is no shape, or no schedule.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion((8, 8), models.schedules.log_snr_linear(40))
        >>> process.marginal(20, jnp.zeros((100, 8, 8))).batch_shape  # q(x_20 | x_0) of 100 data
        (100,)
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    schedule: Schedule

    def __init__(self, event_shape: Shape, schedule: Schedule):
        check_kind("schedule", schedule, Schedule)
        self.event_shape = as_shape("event_shape", event_shape, least=1)
        self.schedule = schedule

    def stationary(self) -> Distribution:
        return dist.Normal(jnp.zeros(self.event_shape), 1.0).to_event(self.event_dim)

    def step(self, t: ArrayLike, x: Array) -> Distribution:
        self.check_time(t)
        return self._normal(jnp.sqrt(self.schedule.keep[t - 1]) * x, self.schedule.rates[t - 1])

    def marginal(self, t: ArrayLike, x0: Array) -> Distribution:
        self.check_time(t, first=0)
        alpha_bar, noise = self.schedule.alpha_bar[t], self.schedule.one_minus_alpha_bar[t]
        return self._normal(jnp.sqrt(alpha_bar) * x0, noise)

    def posterior(self, t: ArrayLike, x_t: Array, x0: Array) -> Distribution:
        self.check_time(t, first=2)
        c, d, var = self.posterior_coefficients(t)
        return self._normal(c * x0 + d * x_t, var)

    def posterior_coefficients(self, t: ArrayLike) -> tuple[Array, Array, Array]:
        r"""$c_t$, $d_t$ and $\tilde\beta_t$: the posterior's weight on $x_0$, on $x_t$, and its variance. At t = 1: 1, 0, 0."""
        beta, schedule = self.schedule.rates[t - 1], self.schedule
        before, now = schedule.one_minus_alpha_bar[t - 1], schedule.one_minus_alpha_bar[t]
        # At t = 1 both ends of beta / now are the first rate; the ratio is 1 exactly.
        return (
            jnp.sqrt(schedule.alpha_bar[t - 1]) * (beta / now),
            jnp.sqrt(schedule.keep[t - 1]) * (before / now),
            beta * (before / now),
        )

    def covariance_ratio(self, t: ArrayLike) -> tuple[Array, Array]:
        r"""$(1 - \bar\alpha_t) / \sqrt{\bar\alpha_t}$, by which the derivative of the mean of $x_0$ given $x_t$ is its covariance.

        And whether anything of $x_0$ is left in $x_t$: where nothing is, the ratio means nothing."""
        is_left = self.schedule.alpha_bar[t] > 0.0
        ratio = self.schedule.one_minus_alpha_bar[t] / jnp.sqrt(jnp.where(is_left, self.schedule.alpha_bar[t], 1.0))
        return ratio, is_left

    def reverse_step(self, t: ArrayLike, x: Array, data_law: Distribution) -> Distribution:
        r"""$\mathcal N(c_t m + d_t x_t,\ \tilde\beta_t I + c_t^2 V)$, m the mean and V the covariance of `data_law`.

        It is $\mathrm{E}\, q(x_{t-1} | x_t, x_0)$ itself for any Gaussian law, and for a mixture of them, component
        by component. For any other law, of independent coordinates, it has that average's mean and variances."""
        stacked = stack_of(data_law)
        if stacked is not None:
            one = dataclasses.replace(self, event_shape=self.event_shape[-stacked.event_dim :])
            return one.reverse_step(t, x, stacked).to_event(self.event_dim - stacked.event_dim)
        parts = components(data_law)
        if parts is not None:
            log_weights, law = parts
            return mixture(log_weights, self.reverse_step(t, beside(x, self.event_dim), law))
        c, d, var = self.posterior_coefficients(t)
        correlated = as_correlated(data_law)
        if correlated is not None:
            return correlated.moved(d * x, c, jnp.maximum(var, 1e-10 * (t == 1)))
        # A certain prediction has variance 0; at t = 1 nothing else is left, and a density needs some.
        var = var + jnp.square(c) * jnp.maximum(data_law.variance, 1e-10)
        return self._normal(c * data_law.mean + d * x, var)

    def implied_data_law(self, t: ArrayLike, x: Array, step: Distribution) -> Distribution:
        stacked = stack_of(step)
        if stacked is not None:
            one = dataclasses.replace(self, event_shape=self.event_shape[-stacked.event_dim :])
            return one.implied_data_law(t, x, stacked).to_event(self.event_dim - stacked.event_dim)
        parts = components(step)
        if parts is not None:
            log_weights, law = parts
            return mixture(log_weights, self.implied_data_law(t, beside(x, self.event_dim), law))
        c, d, var = self.posterior_coefficients(t)
        correlated = as_correlated(step)
        if isinstance(step, MultivariateNormal):  # split anew: its own diagonal may be below the noise
            covariance = (step.covariance_matrix - var * jnp.eye(self.event_shape[0])) / jnp.square(c)
            return from_covariance((step.mean - d * x) / c, covariance)
        if correlated is not None:
            own = jnp.maximum(correlated.diagonal - var, 1e-4 * correlated.diagonal) / jnp.square(c)
            mean = (correlated.loc - d * x) / c
            return LowRankNormal(mean, own, correlated.factor / c, event_dim=self.event_dim)
        spread = jnp.maximum(step.variance - var, 1e-4 * step.variance)
        return self._normal((step.mean - d * x) / c, spread / jnp.square(c))

    def step_entropy(self, t: ArrayLike, x: Array) -> Array:
        return self._entropy(self.schedule.rates[t - 1], x)

    def marginal_entropy(self, t: ArrayLike, x0: Array) -> Array:
        return self._entropy(self.schedule.one_minus_alpha_bar[t], x0)

    def posterior_entropy(self, t: ArrayLike, x0: Array) -> Array:
        r"""$H_q(X_{t-1} | X_t, X_0 = x_0)$ in nats, exact, shape (*batch,); minus infinity at t = 1."""
        return self._entropy(self.posterior_coefficients(t)[2], x0)

    def cross_entropy(self, t: ArrayLike, x0: Array) -> Array:
        alpha_bar, noise = self.schedule.alpha_bar[t], self.schedule.one_minus_alpha_bar[t]
        second_moment = alpha_bar * jnp.square(x0) + noise
        return 0.5 * jnp.sum(math.log(2.0 * math.pi) + second_moment, axis=self._event_axes)

    def evidence(self, t: ArrayLike, x_t: Array, levels: Array) -> Array:
        r"""What a coordinate says about itself: $\log \mathcal N(x_t; \sqrt{\bar\alpha_t}\, \ell, 1 - \bar\alpha_t)$ up to a
        constant, for every gray level $\ell$; shape (*batch, *event, levels)."""
        alpha_bar, noise = self.schedule.alpha_bar[t], self.schedule.one_minus_alpha_bar[t]
        return -0.5 * jnp.square(x_t[..., None] - jnp.sqrt(alpha_bar) * levels) / noise

    def check_data(self, x0: ArrayLike) -> None:
        self.check_shape(x0)
        if not np.all(np.isfinite(np.asarray(x0))):
            raise ValueError("x0 must be finite; got NaN or infinite values. Drop or impute those data.")

    def _normal(self, loc: Array, var: Array) -> Distribution:
        return dist.Normal(loc, jnp.sqrt(var)).to_event(self.event_dim)

    def _entropy(self, var: Array, x: Array) -> Array:
        batch_shape = jnp.shape(x)[: jnp.ndim(x) - self.event_dim]
        per_coordinate = 0.5 * jnp.log(2.0 * math.pi * math.e * var)
        return jnp.broadcast_to(math.prod(self.event_shape) * per_coordinate, batch_shape)

    @property
    def _event_axes(self) -> tuple[int, ...]:
        return tuple(range(-self.event_dim, 0))
