r"""Two-sided bounds on log p(x_0) for data simulated from the model (bidirectional Monte Carlo).

A trajectory $x_0..x_T$ of the reverse chain is a datum together with an exact draw from its posterior $p(x_{1..T} | x_0)$. One such
trajectory beside K - 1 forward ones, with weights w, bounds log p(x_0) from the other side:

$$\mathrm{E} \log \frac1K \sum_{k=1}^{K} w_k \ \ge\ \log p(x_0) \quad\text{(one exact, K - 1 proposed)}, \qquad
  \mathrm{E} \log \frac1K \sum_{k=1}^{K} w_k \ \le\ \log p(x_0) \quad\text{(K proposed)}.$$

With the exact one put in a random place, the K trajectories have density $\prod_k q_k$ times $\frac1K \sum_k w_k / p(x_0)$: the
upper bound exceeds log p(x_0) by the divergence of that law from K proposals. At K = 1 the two are the expected log weight under
the model and under the forward chain, and their difference is the work dissipated there and back.

The gap certifies the importance-sampled likelihood on data *of the model*: in expectation neither side is farther from log p(x_0)
than the gap. What it says of real data it says as far as the model's own data resemble them.

Source: Grosse, Ghahramani and Adams, Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax import Array

from nedm_ppl.arguments import Count, as_count, check_concrete, check_key, check_kind
from nedm_ppl.inference._named_arrays import container, dataset, described, per_unit
from nedm_ppl.inference.likelihood._likelihood import DEFAULT_MEMORY, marginal_log_likelihood
from nedm_ppl.inference.likelihood._weights import plan, trajectory_log_weight
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.numbers import Estimate, log_mean_exp

__all__ = ["Sandwich", "sandwich"]


class Sandwich(NamedTuple):
    """Stochastic bounds on log p(x_0) of data simulated from the model. Arrays are float64 NumPy.

    Attributes:
        x0: The data, shape (num_data, *event).
        lower: At most log p(x_0) in expectation, nats, shape (num_data,).
        upper: At least log p(x_0) in expectation over trajectories, nats, shape (num_data,). For one datum and one draw the
            two may cross.
        num_trajectories: Trajectories on either side, K.
    """

    x0: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    num_trajectories: int

    def __repr__(self) -> str:
        return f"Sandwich of {len(self.lower)} simulated data: {self.lower_mean} to {self.upper_mean} nats a datum"

    @property
    def lower_mean(self) -> Estimate:
        """Mean of the lower bounds with its standard error over data and trajectories, nats."""
        return Estimate.of(self.lower)

    @property
    def upper_mean(self) -> Estimate:
        """Mean of the upper bounds with its standard error, nats."""
        return Estimate.of(self.upper)

    @property
    def gap(self) -> Estimate:
        """Mean of upper - lower, paired by datum, with its standard error, nats: the expected error of either side is below it."""
        return Estimate.of(self.upper - self.lower)

    def summary(self) -> dict[str, float | int]:
        """The numbers to report, nats."""
        parts = {"lower": self.lower_mean, "upper": self.upper_mean, "gap": self.gap}
        entries = {f"{name}_{field}": getattr(part, field) for name, part in parts.items() for field in ("mean", "se")}
        return {"num_data": len(self.lower), "num_trajectories": self.num_trajectories} | entries

    def to_arviz(self, *, units: str = "nats") -> Any:
        """Bounds from both sides on simulated data, in the group `sandwich`, and the data themselves in `simulated`.

        Args:
            units: `nats` or `bits`.

        Raises:
            ValueError: units other than these.
        """
        factor = per_unit(units)
        data = ("datum",)
        count = f"{self.num_trajectories} trajectories"
        lower = described("lower bound on log p(x_0)", f"in expectation, {count}", units)
        upper = described("upper bound on log p(x_0)", f"in expectation, {count}, one of them exact", units)
        bounds = {"lower": (data, self.lower * factor, lower), "upper": (data, self.upper * factor, upper)}
        names = tuple(f"x0_dim_{i}" for i in range(self.x0.ndim - 1))
        x0 = described("x_0 drawn from the model", "exact draws from the model, independent")
        return container({"sandwich": dataset(bounds), "simulated": dataset({"x0": (("datum", *names), self.x0, x0)})})


def sandwich(
    rng_key: Array,
    diffusion: Diffusion,
    num_data: Count,
    *,
    num_trajectories: Count = 64,
    memory_limit: int | None = None,
    batch_size: Count = 4096,
    progress: bool = False,
) -> Sandwich:
    """Simulate data from the model, and bound log p(x_0) of each from below and from above.

    K - 1 of the proposed trajectories serve both sides, so that the gap costs one set of them.

    Args:
        rng_key: Random key.
        diffusion: The model.
        num_data: Data to simulate.
        num_trajectories: Trajectories on either side, K.
        memory_limit: Bytes of working memory, as in `marginal_log_likelihood`; here whole trajectories of the simulated data
            have to fit as well, and are drawn in batches.
        batch_size: Trajectories drawn at a time, at most.
        progress: Whether to show a bar.

    Raises:
        ValueError: num_data < 1, num_trajectories < 1, an argument traced by JAX, or what `marginal_log_likelihood` raises.

    Examples:
        >>> import jax
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> result = inference.sandwich(jax.random.key(0), diffusion, 20, num_trajectories=8)
        >>> result.x0.shape, result.lower.shape
        ((20, 2), (20,))
    """
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    check_concrete("sandwich", "inference.likelihood.trajectory_log_weight", rng_key, diffusion)
    num_data, num_trajectories = as_count("num_data", num_data), as_count("num_trajectories", num_trajectories)
    batch_size = as_count("batch_size", batch_size)
    key_exact, key_proposed = jax.random.split(rng_key)
    limit = DEFAULT_MEMORY if memory_limit is None else memory_limit
    # A scan holds its path twice while it is turned into an array.
    path_bytes = 4 * 3 * (diffusion.num_steps + 1) * max(1, int(np.prod(diffusion.event_shape)))
    rows, chunk = plan(diffusion, max(1, min(num_data, batch_size, limit // (2 * path_bytes))), limit // 2)

    x0, exact = [], []
    for i, start in enumerate(range(0, num_data, rows)):
        # The last batch is drawn whole and cut, so that one compiled program serves all.
        drawn, log_weight = _exact(jax.random.fold_in(key_exact, i), diffusion.with_units(None), rows, chunk)
        x0.append(np.asarray(diffusion.to_data(np.asarray(drawn)))[: num_data - start])
        exact.append(np.asarray(log_weight, np.float64)[: num_data - start] + diffusion.log_jacobian)
    data = np.concatenate(x0)
    proposed = marginal_log_likelihood(
        key_proposed,
        diffusion,
        data,
        num_trajectories=num_trajectories,
        memory_limit=memory_limit,
        batch_size=batch_size,
        progress=progress,
    )
    mixed = np.concatenate([np.concatenate(exact)[None], proposed.log_weights[1:].astype(np.float64)])
    upper = log_mean_exp(mixed)
    return Sandwich(data, proposed.log_prob, upper, num_trajectories)


@eqx.filter_jit
def _exact(rng_key: Array, diffusion: Diffusion, num_data: int, chunk_size: int) -> tuple[Array, Array]:
    """Data with the log weight of the trajectory they came from."""
    path = diffusion.sample_trajectory(rng_key, (num_data,))
    x0 = path[:, 0]
    return x0, trajectory_log_weight(diffusion, x0, path[:, 1:], chunk_size=chunk_size)
