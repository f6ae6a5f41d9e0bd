"""Models compared by their log likelihoods of the same held-out data, pair by pair.

A log density is in the units of the data: of data divided by s it is larger by log s a coordinate, whatever the model. So numbers
are comparable only where they are of the same data in the same scale, or after the log of the Jacobian of what was done to the data
is added. ArviZ's own comparison is handed numbers alone and cannot know. Here every result says what it is of.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from nedm_ppl.inference.likelihood._likelihood import LogLikelihood
from nedm_ppl.numbers import Estimate

__all__ = ["Compared", "compare"]


class Compared(NamedTuple):
    """One model in a comparison, nats per datum.

    Attributes:
        log_prob: Mean log likelihood, with its standard error over data.
        below_best: How far it lies below the best model's, datum by datum, with the standard error of that difference.
        num_flagged: Data whose estimate is flagged.
    """

    log_prob: Estimate
    below_best: Estimate
    num_flagged: int


def compare(
    results: Mapping[str, LogLikelihood], *, log_jacobian: Mapping[str, ArrayLike] | None = None
) -> dict[str, Compared]:
    r"""Compare models by `marginal_log_likelihood`'s results on the same data; to be used in place of `az.compare`.

    Args:
        results: By the model's name.
        log_jacobian: By name, $\log |\det dz/dx|$ in nats, a scalar or shape (*batch,), for a model of transformed data z, whose
            log density of x is that of z plus this: -D log s for z = (x - m) / s of D coordinates. That z are the same data is then
            taken on trust.

    Returns:
        The models, best first.

    Raises:
        ValueError: fewer than two results; results of other data or data scaled otherwise, of densities beside probabilities, that
            do not say what they are of, or are not finite; a Jacobian of no result, or of probabilities.

    Examples:
        >>> import jax
        >>> from nedm_ppl import data, inference, models
        >>> x0, results = data.swiss_roll(0, 20), {}
        >>> for num_steps in (5, 10):
        ...     process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(num_steps))
        ...     diffusion = models.Diffusion(process, process.step)
        ...     results[f"T = {num_steps}"] = inference.marginal_log_likelihood(jax.random.key(0), diffusion, x0)
        >>> sorted(inference.compare(results))
        ['T = 10', 'T = 5']
    """
    log_jacobian = {} if log_jacobian is None else log_jacobian
    if len(results) < 2 or not set(log_jacobian) <= set(results):
        raise ValueError(
            f"results must hold at least two models, and those of log_jacobian; got {sorted(results)} and "
            f"{sorted(log_jacobian)}."
        )
    first, reference = next(iter(results.items()))
    values = {}
    for name, result in results.items():
        if result.data is None or result.unit is None:
            raise ValueError(
                f"results[{name!r}] must say what it is of; got log weights alone. Give data and unit to from_log_weights."
            )
        if result.log_prob.shape != reference.log_prob.shape or result.unit != reference.unit:
            raise ValueError(
                f"results must be of the same data in one unit; got {result.log_prob.size} of {result.unit} for {name!r} and "
                f"{reference.log_prob.size} of {reference.unit} for {first!r}."
            )
        if not np.all(np.isfinite(result.log_prob)):
            raise ValueError(
                f"results[{name!r}] must be finite; got {int((~np.isfinite(result.log_prob)).sum())} that are not."
            )
        if name in log_jacobian and result.unit != "log density":
            raise ValueError(f"log_jacobian is of densities; got one for {name!r}, a {result.unit}, which has none.")
        values[name] = result.log_prob + np.asarray(log_jacobian.get(name, 0.0), np.float64)
    data = {name: result.data for name, result in results.items() if name not in log_jacobian}
    if len(set(data.values())) > 1:
        other = next(name for name in data if data[name] != next(iter(data.values())))
        raise ValueError(
            f"results must be of the same data in the same order and scale; those of {next(iter(data))!r} and {other!r} differ. "
            "Where one model's data are scaled otherwise, give its log_jacobian."
        )
    best = max(values, key=lambda name: values[name].mean())
    return {
        name: Compared(
            Estimate.of(values[name]), Estimate.of(values[best] - values[name]), int(results[name].flagged.sum())
        )
        for name in sorted(values, key=lambda name: -values[name].mean())
    }
