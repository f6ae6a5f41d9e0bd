r"""The first step $p(x_0 | x_1)$, by which the reverse chain ends in data (Section 2.2). It is one of

- `fixed`, the paper's: the forward kernel reversed about $\pi$, which learns nothing and avoids an edge effect;
- `learned`: the reverse kernel at t = 1;
- `quantized`: a categorical over known gray levels, so that $p(x_0)$ is a probability and not a density. Coordinates are
  independent in it: a correlated Gaussian kernel is integrated over the levels' bins by its marginal variances.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, Normal

from nedm_ppl.laws._low_rank import as_correlated
from nedm_ppl.laws._mixtures import components, mixture, stack_of
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._levels import Levels, QuantizedNormal, check_levels
from nedm_ppl.models.reverse._reverse import first_law, step_of

__all__ = ["FirstStep", "first_step_of"]


@dataclass(frozen=True)
class FirstStep:
    """How a reverse chain ends in data.

    Attributes:
        is_trained: Whether a network decides it.
        is_categorical: Whether it ends a Gaussian chain in probabilities of gray levels.
    """

    is_trained: ClassVar[bool] = True
    is_categorical: ClassVar[bool] = False

    @abstractmethod
    def kernel(self, process: DiffusionProcess, reverse: Any, x1: Array) -> Distribution:
        r"""The law $p(x_0 | x_1)$."""

    def expected_log_prob(self, process: DiffusionProcess, x0: Array) -> Array | None:
        r"""$\mathrm{E}_{q(x_1 | x_0)} \log p(x_0 | x_1)$, nats, exact; None where that has no closed form."""
        return None

    def null_log_prob(self, process: DiffusionProcess, x0: ArrayLike) -> Array:
        r"""$\log \pi(x_0)$, nats, exact, in the unit of the model's own probabilities."""
        return process.null_log_prob(x0)

    def check_process(self, process: DiffusionProcess) -> None:
        """Raise a ValueError where this step cannot end the chain of `process`."""

    def check_data(self, process: DiffusionProcess, x0: ArrayLike) -> None:
        """Raise a ValueError where this step cannot end in the data x0."""


class Fixed(FirstStep):
    r"""$p(x_0 | x_1) = q(x_1 | x_0)\, \pi(x_0) / \pi(x_1)$."""

    is_trained = False

    def kernel(self, process: DiffusionProcess, reverse: Any, x1: Array) -> Distribution:
        return process.step(1, x1)

    def expected_log_prob(self, process: DiffusionProcess, x0: Array) -> Array:
        # Reversibility: log p(x_0 | x_1) = log q(x_1 | x_0) + log pi(x_0) - log pi(x_1), and each has its expectation.
        return process.null_log_prob(x0) - process.step_entropy(1, x0) + process.cross_entropy(1, x0)


class Learned(FirstStep):
    """The reverse kernel at t = 1."""

    def kernel(self, process: DiffusionProcess, reverse: Any, x1: Array) -> Distribution:
        return step_of(reverse, process, 1, x1)


@dataclass(frozen=True)
class Quantized(FirstStep):
    """A categorical over gray levels, independent over coordinates."""

    levels: tuple[float, ...]

    is_categorical = True

    def kernel(self, process: DiffusionProcess, reverse: Any, x1: Array) -> Distribution:
        return self._of(first_law(reverse, process, x1))

    def _of(self, law: Distribution) -> Distribution:
        """A law of gray levels as it is, or a Gaussian integrated over the levels' bins; a mixture by component."""
        stacked = stack_of(law)
        if stacked is not None:
            return self._of(stacked).to_event(law.event_dim - stacked.event_dim)
        parts = components(law)
        if parts is not None:
            return mixture(parts[0], self._of(parts[1]))
        if as_correlated(law) is not None:  # by coordinate: correlated levels have no closed form
            law = Normal(law.mean, jnp.sqrt(law.variance)).to_event(law.event_dim)
        normal = coordinates(law)
        if isinstance(normal, Levels):
            return law
        if not isinstance(normal, Normal):
            raise ValueError(
                f"first_step 'quantized' integrates a Gaussian kernel at t = 1; got a {type(normal).__name__}. "
                "Use 'learned', or a kernel that ends in Normal(...).to_event()."
            )
        return QuantizedNormal(normal.loc, normal.scale, self.levels).to_event(law.event_dim)

    def null_log_prob(self, process: DiffusionProcess, x0: ArrayLike) -> Array:
        noise = QuantizedNormal(jnp.zeros(process.event_shape), 1.0, self.levels)
        return noise.to_event(process.event_dim).log_prob(jnp.asarray(x0))

    def check_process(self, process: DiffusionProcess) -> None:
        if process.stationary().is_discrete:
            raise ValueError("first_step 'quantized' is for Gaussian chains; bits are discrete already: use 'learned'.")

    def check_data(self, process: DiffusionProcess, x0: ArrayLike) -> None:
        log_prob = np.asarray(self.null_log_prob(process, x0))
        if not np.all(np.isfinite(log_prob)):
            raise ValueError(
                f"x0 must take the {len(self.levels)} gray levels of the quantized first step; datum "
                f"{int(np.argmin(np.isfinite(log_prob)))} has other values. Scale the data as the levels were."
            )


def first_step_of(name: str, levels: tuple[float, ...] | None) -> FirstStep:
    """The first step of this name.

    Raises:
        ValueError: another name, or a quantized step without levels.
    """
    if levels is not None:
        check_levels(levels)
    if name == "fixed":
        return Fixed()
    if name == "learned":
        return Learned()
    if name == "quantized":
        if levels is None:
            raise ValueError(
                "levels must be given for a quantized first step: the values a coordinate of x_0 can take."
            )
        return Quantized(levels)
    raise ValueError(f"first_step must be one of fixed, learned, quantized; got {name!r}.")
