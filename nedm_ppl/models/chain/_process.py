r"""What the two diffusion processes share: the interface, and what follows from reversibility alone.

A process knows the forward chain $q$ analytically. Every law is a NumPyro distribution whose event shape is the
process's; `t` is a scalar integer in 1..T (use `jax.vmap` for several), and `x` may carry batch axes on the left.

Both forward kernels are reversible about the stationary law $\pi$:
$\pi(x_{t-1})\, q(x_t | x_{t-1}) = \pi(x_t)\, q(x_{t-1} | x_t)$. Hence the forward kernel is also the reverse chain of
data that are already noise, and the fixed first step $p(x_0 | x_1)$ of Section 2.4 is the forward kernel at t = 1.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl._compat import Tracer
from nedm_ppl.models.chain._chain import MarkovChain
from nedm_ppl.models.chain.schedules import Schedule

__all__ = ["DiffusionProcess"]


class DiffusionProcess(eqx.Module):
    r"""A forward Markov chain that turns data into noise (Section 2.1), with everything about it in closed form."""

    event_shape: eqx.AbstractVar[tuple[int, ...]]
    schedule: eqx.AbstractVar[Schedule]

    @property
    def num_steps(self) -> int:
        """Number of steps, T."""
        return self.schedule.num_steps

    @property
    def event_dim(self) -> int:
        """Number of axes of one datum."""
        return len(self.event_shape)

    @abstractmethod
    def stationary(self) -> Distribution:
        r"""The noise law $\pi(x_T)$."""

    @abstractmethod
    def step(self, t: ArrayLike, x: Array) -> Distribution:
        r"""One forward step $q(x_t | x_{t-1} = x)$."""

    @abstractmethod
    def marginal(self, t: ArrayLike, x0: Array) -> Distribution:
        r"""The t-step law $q(x_t | x_0)$."""

    @abstractmethod
    def posterior(self, t: ArrayLike, x_t: Array, x0: Array) -> Distribution:
        r"""The reverse step of one datum, $q(x_{t-1} | x_t, x_0)$, for t >= 2 (at t = 1 it is a point mass)."""

    @abstractmethod
    def reverse_step(self, t: ArrayLike, x: Array, data_law: Distribution) -> Distribution:
        r"""The step $p(x_{t-1} | x_t = x)$ that a law of $x_0$ given $x_t$ implies: the posterior averaged over it.

        Args:
            t: Time, in 1..T; at t = 1 the step is the law itself (for a Gaussian chain, its first two moments).
            x: State $x_t$, shape (*batch, *event).
            data_law: $\hat p(x_0 | x_t)$, independent over coordinates, batch shape (*batch,).
        """

    @abstractmethod
    def implied_data_law(self, t: ArrayLike, x: Array, step: Distribution) -> Distribution:
        r"""The law of $x_0$ given $x_t$ from which `reverse_step` makes `step`, for a kernel that predicts no $x_0$.

        Where there is none (a step narrower than any prediction allows) the nearest that keeps some uncertainty."""

    @abstractmethod
    def step_entropy(self, t: ArrayLike, x: Array) -> Array:
        r"""$H_q(X_t | X_{t-1} = x)$ in nats, exact, shape (*batch,)."""

    @abstractmethod
    def marginal_entropy(self, t: ArrayLike, x0: Array) -> Array:
        r"""$H_q(X_t | X_0 = x_0)$ in nats, exact, shape (*batch,)."""

    @abstractmethod
    def posterior_entropy(self, t: ArrayLike, x0: Array) -> Array:
        r"""$H_q(X_{t-1} | X_t, X_0 = x_0)$ in nats, exact, shape (*batch,); at t = 1 that of a point mass."""

    @abstractmethod
    def cross_entropy(self, t: ArrayLike, x0: Array) -> Array:
        r"""$-\mathrm{E}_{q(x_t | x_0)} \log \pi(x_t)$ in nats, exact, shape (*batch,); t = 0 gives $-\log \pi(x_0)$."""

    @abstractmethod
    def check_data(self, x0: ArrayLike) -> None:
        """Raise a ValueError of one sentence where `x0` cannot be data of this process."""

    def prior_divergence(self, x0: Array) -> Array:
        r"""$\mathrm{KL}(q(x_T | x_0) \| \pi)$ in nats, exact, shape (*batch,): what the chain fails to erase."""
        return self.cross_entropy(self.num_steps, x0) - self.marginal_entropy(self.num_steps, x0)

    def null_log_prob(self, x0: ArrayLike) -> Array:
        r"""Log likelihood under the noise law, $\log \pi(x_0)$, whose mean is $L_\text{null}$; nats, shape (*batch,)."""
        return self.stationary().log_prob(x0)

    def forward(self, x0: Array) -> MarkovChain:
        r"""The forward trajectory $q(x_{1..T} | x_0)$; event shape (T, *event), time ascending."""
        return MarkovChain(self.step(1, x0), self.step, first=1, last=self.num_steps)

    def check_time(self, t: ArrayLike, first: int = 1) -> None:
        """Raise a ValueError where `t` is not one time in first..T; a traced t has its shape checked, not its value."""
        if jnp.ndim(t) != 0:
            raise ValueError(
                f"t must be a scalar, one time for all data; got shape {jnp.shape(t)}. Use jax.vmap over times."
            )
        if not isinstance(t, Tracer) and not first <= np.asarray(t) <= self.num_steps:
            raise ValueError(f"t must lie in {first}..{self.num_steps}; got {t}.")

    def check_shape(self, x0: ArrayLike) -> None:
        """Raise a ValueError where `x0` is empty or its trailing axes are not one datum's."""
        shape = jnp.shape(x0)
        if shape[len(shape) - self.event_dim :] != self.event_shape or len(shape) < self.event_dim:
            raise ValueError(
                f"x0 must have trailing shape {self.event_shape}, one datum of this process; got shape {shape}. "
                "Reshape the data, or build the process with another event_shape."
            )
        if 0 in shape:
            raise ValueError(f"x0 must hold at least one datum; got the empty shape {shape}.")
