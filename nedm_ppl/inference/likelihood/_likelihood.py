r"""Importance-sampled log p(x_0), with its error and a verdict on it (Section 2.3, equation 9).

Forward trajectories are the proposal, and the mean of their weights is unbiased for p(x_0):

$$\hat p(x_0) = \frac1S \sum_{s=1}^{S} w_s, \qquad \log w = \log p(x_{0..T}) - \log q(x_{1..T} | x_0).$$

This is the Jarzynski, or annealed importance sampling, estimator; $-\log w$ is the work of a trajectory. The log of the mean
is biased low, by about $\mathrm{Var}(w / \mathrm{E} w) / (2 S)$, which is half its squared standard error. So in expectation it
is a lower bound that rises with S, from the bound K at S = 1 to log p(x_0).

How far to trust it is a question about the tail of the weights, and the weights answer it only in part: a standard error
says what the trajectories that were drawn say. k-hat (see `pareto`) looks at the tail itself, as far as it was drawn, and
`spread` at the bulk, which a few trajectories cannot miss. What no trajectory saw none of them can tell.
"""

import hashlib
import math
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding
from jax.typing import ArrayLike
from tqdm.auto import tqdm

from nedm_ppl.arguments import Count, as_count, check_concrete, check_key, check_kind, check_unmasked, whole
from nedm_ppl.inference._devices import fetched, laid_out, on_all, rows_over
from nedm_ppl.inference._far import warn_of_data
from nedm_ppl.inference._named_arrays import (
    container,
    data_dims,
    dataset,
    described,
    import_arviz,
    is_arviz_1,
    per_unit,
)
from nedm_ppl.inference.likelihood._pareto import (
    COARSE,
    RELIABLE,
    k_threshold,
    pareto_k,
    resolution,
    spread_threshold,
    upper_spread,
)
from nedm_ppl.inference.likelihood._weights import draw_log_weights, plan
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.reverse._context import holding, rows_of_context
from nedm_ppl.numbers import Estimate, effective_sample_size, log_mean_exp, relative_weights

__all__ = ["LogLikelihood", "TargetNotReachedWarning", "marginal_log_likelihood"]

BITS = 1.0 / math.log(2.0)
DEFAULT_MEMORY = 2**28
UNITS = ("log density", "log probability")


class TargetNotReachedWarning(UserWarning):
    """The standard error asked for was not reached by the trajectories allowed."""


class LogLikelihood(NamedTuple):
    r"""log p(x_0) of every datum, estimated, and how far to trust it. Arrays are float64 NumPy.

    Attributes:
        log_prob: Log of the mean weight, nats, shape (*batch,): a stochastic lower bound on log p(x_0). `label` says more.
        se: Its standard error by the delta method, sd(w) / (mean(w) sqrt(S)), nats, shape (*batch,): 0 where all weights are
            equal; NaN for one trajectory, whose error nothing tells; infinite where every weight is 0.
        ess: Effective sample size $(\sum w)^2 / \sum w^2$, between 1 and S, shape (*batch,): S where all weights are equal,
            0 where every weight is 0.
        k_hat: Pareto k-hat, shape (*batch,): minus infinity where all weights are equal, infinity where it cannot be told
            (S < 21 among others); see `pareto_k`.
        spread: How far the upper half of the log weights lies above their median, nats, shape (*batch,); see `upper_spread`.
        num_trajectories: Trajectories drawn, S, integers of shape (*batch,).
        log_weights: Log weight of every trajectory in nats, float32, shape (S, *batch); beyond a datum's own S, NaN.
        target_se: The standard error asked for, nats, or None where the number of trajectories was.
        unit: `log density`, in the units of the model's data, or `log probability`; None where nobody said.
        data: A hash of the data in their order, scaled as the model was given them; None where nobody said. `compare` asks both.
    """

    log_prob: np.ndarray
    se: np.ndarray
    ess: np.ndarray
    k_hat: np.ndarray
    spread: np.ndarray
    num_trajectories: np.ndarray
    log_weights: np.ndarray
    target_se: float | None = None
    unit: str | None = None
    data: str | None = None

    @classmethod
    def from_log_weights(
        cls,
        log_weights: ArrayLike,
        *,
        num_trajectories: ArrayLike | None = None,
        target_se: float | None = None,
        data: ArrayLike | None = None,
        unit: str | None = None,
    ) -> "LogLikelihood":
        """The estimate that log weights give, trajectories first, shape (S, *batch): those of any model with latents.

        Args:
            log_weights: In nats.
            num_trajectories: How many of each datum's were drawn, the first ones; by default all.
            target_se: Kept as the label of an adaptive estimate.
            data: The data that the weights are of, shape (*batch, *event), to be compared with other models on.
            unit: "log density" or "log probability", to be compared by.

        Raises:
            ValueError: a unit of another name, or masked weights or data.
        """
        check_unmasked("log_weights", log_weights)
        if unit not in (None, *UNITS):
            raise ValueError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}.")
        log_weights = np.asarray(log_weights)
        count = (
            np.full(log_weights.shape[1:], len(log_weights))
            if num_trajectories is None
            else np.asarray(num_trajectories)
        )
        parts = np.empty((5, *count.shape))
        for number in np.unique(count):
            chosen = count == number
            parts[:, chosen] = _statistics(log_weights[: int(number), chosen])
        log_prob, se, ess, k_hat, spread = parts
        named = None if data is None else _hash(data)
        return cls(log_prob, se, ess, k_hat, spread, count, log_weights, target_se, unit, named)

    def __repr__(self) -> str:
        return (
            f"LogLikelihood of {self.log_prob.size} data: {self.mean} nats a datum, {self.unit or 'unit not said'}\n"
            f"  at most {self.num_trajectories.max()} trajectories each, {self.flagged.sum()} data flagged"
        )

    @property
    def flagged(self) -> np.ndarray:
        """Whether `spread` exceeds sqrt(log(S) / 10) or `k_hat` 0.7, or either cannot be told: do not trust this datum's estimate.

        Not flagged means that the weights drawn look well behaved, and no more: what no trajectory met leaves no trace."""
        return ~((self.spread <= spread_threshold(self.num_trajectories)) & (self.k_hat <= RELIABLE))

    @property
    def reached(self) -> np.ndarray:
        """Whether the standard error asked for was reached; True where none was."""
        return np.full(self.se.shape, True) if self.target_se is None else self.se <= self.target_se

    @property
    def bias(self) -> np.ndarray:
        """Approximate bias of `log_prob`, -se^2 / 2, nats; not subtracted, because the bound would be lost."""
        return -0.5 * np.square(self.se)

    @property
    def label(self) -> str:
        """What kind of estimate this is."""
        if self.target_se is None:
            return "log of an unbiased estimate of p(x_0); in expectation a lower bound on log p(x_0)"
        return f"adaptive to a standard error of {self.target_se:g} nats: near log p(x_0), neither unbiased nor a bound"

    @property
    def mean(self) -> Estimate:
        """Mean over the data in nats; its standard error holds the spread of data and of trajectories together."""
        return Estimate.of(self.log_prob)

    @property
    def monte_carlo_se(self) -> float:
        """The part of the mean's standard error that more trajectories would remove, nats."""
        return float(np.sqrt(np.sum(np.square(self.se))) / self.se.size)

    def summary(self) -> dict[str, float | int | str]:
        """The numbers to report over all data: the mean in nats and bits, its errors, and the worst diagnostics."""
        mean = self.mean
        return {
            "num_data": self.log_prob.size,
            "num_trajectories": int(self.num_trajectories.max()),
            "mean_nats": mean.mean,
            "se_nats": mean.se,
            "mean_bits": mean.mean * BITS,
            "se_bits": mean.se * BITS,
            "monte_carlo_se_nats": self.monte_carlo_se,
            "bias_nats": float(self.bias.mean()),
            "ess_min": float(self.ess.min()),
            "k_hat_max": float(self.k_hat.max()),
            "spread_max": float(self.spread.max()),
            "num_flagged": int(self.flagged.sum()),
            "num_above_target": int((~self.reached).sum()),
            "estimate": self.label,
        }

    def to_arviz(self, *, units: str = "nats") -> Any:
        """Importance-sampled log likelihoods, per datum, and the log weights they came from.

        Args:
            units: `nats` or `bits`, of log probabilities and their errors.

        Returns:
            `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups

            - `likelihood`: `log_prob`, `se`, `ess`, `k_hat`, `spread` (nats), `num_trajectories`, `flagged`, `reached`;
              dimensions (*datum,);
            - `sample_stats`: `log_weight`, dimensions (trajectory, *datum), NaN beyond a datum's own number. Trajectories are no
              posterior draws, so there is no `chain`, no `draw` and no `posterior` for ArviZ to reweight across.

        Raises:
            ValueError: units other than these.
        """
        factor = per_unit(units)
        data = data_dims(self.log_prob.ndim)
        variables = {
            "log_prob": (data, self.log_prob * factor, described("log p(x_0)", self.label, units)),
            "se": (data, self.se * factor, described("standard error of log_prob", "delta method", units)),
            "ess": (data, self.ess, described("effective sample size", "(sum w)^2 / sum w^2")),
            "k_hat": (data, self.k_hat, described("Pareto k-hat", "empirical Bayes fit to the largest weights")),
            "num_trajectories": (data, self.num_trajectories, described("number of trajectories", "exact")),
            "spread": (
                data,
                self.spread,
                described("upper half of the log weights above their median", "mean", "nats"),
            ),
            "flagged": (data, self.flagged, described("spread or k-hat too high to trust log_prob", "exact")),
            "reached": (data, self.reached, described("whether the standard error asked for was reached", "exact")),
        }
        weight = described("log p(x_0..x_T) - log q(x_1..x_T | x_0)", "exact for its trajectory", units)
        weights = {"log_weight": (("trajectory", *data), self.log_weights * factor, weight)}
        return container({"likelihood": dataset(variables), "sample_stats": dataset(weights)})

    def to_elpd(self) -> Any:
        """Pointwise log likelihood of held-out data as ArviZ's `ELPDData`.

        To compare models use `inference.compare` in place of `az.compare`, which cannot know whether two numbers are of the
        same data in the same scale; the attributes `data` and `quantity` of the pointwise values say it.

        The data must not have been trained on, and be the same in the same order for every model compared: differences are
        paired by datum. ArviZ before 1 knows leave-one-out estimates alone, so there `elpd_loo` is the holdout's sum;
        nothing is left out or reweighted, and there is no effective number of parameters (NaN). `se` is over data and
        trajectories; the differences' `dse` likewise. `az.compare` prints "warning" where any datum is flagged.

        Of ArviZ's model weights prefer `method="pseudo-BMA"`: stacking exponentiates every datum's log density, which underflows
        below -745 nats.

        Raises:
            ValueError: fewer than two data, or an estimate that is not finite.
        """
        log_prob = self.log_prob.ravel()
        if log_prob.size < 2 or not np.all(np.isfinite(log_prob)):
            raise ValueError(
                f"an ELPD needs finite log likelihoods of at least two data; got {int(np.isfinite(log_prob).sum())} of "
                f"{log_prob.size}."
            )
        import xarray as xr

        pointwise = xr.DataArray(log_prob, dims=("datum",), coords={"datum": np.arange(log_prob.size)})
        pointwise.attrs = {"data": self.data or "unknown", "quantity": self.unit or "unknown"}
        parts = {
            "elpd": float(log_prob.sum()),
            "se": float(np.sqrt(log_prob.size * log_prob.var())),
            "p": math.nan,
            "n_samples": int(self.num_trajectories.max()),
            "n_data_points": log_prob.size,
            "warning": bool(self.flagged.any()),
            "scale": "log",
            "good_k": float(k_threshold(self.num_trajectories.max())),
            "elpd_i": pointwise,
            "pareto_k": pointwise.copy(data=self.k_hat.ravel()),
        }
        az = import_arviz()
        if is_arviz_1():
            # ArviZ 1.0 must be told one of its own criteria; 1.3 has a class for a criterion that is none of them.
            kind = {} if "kind" not in az.ELPDData.__dataclass_fields__ else {"kind": "loo"}
            return az.ELPDData(**kind, **parts)
        names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
        # The first entry's name says which criterion it is; printing reads the first three in this order.
        return az.ELPDData(data=list(parts.values()), index=[names.get(name, name) for name in parts])


def marginal_log_likelihood(
    rng_key: Array,
    diffusion: Diffusion,
    x0: ArrayLike,
    *,
    context: ArrayLike | None = None,
    num_trajectories: Count = 64,
    target_se: float | None = None,
    max_trajectories: Count = 4096,
    memory_limit: int | None = None,
    batch_size: Count = 4096,
    sharding: Sharding | None = None,
    progress: bool = False,
) -> LogLikelihood:
    r"""Importance-sampled log p(x_0) of every datum, Section 2.3, with forward trajectories as the proposal.

    Unbiased for p(x_0); its log is biased low by about $\mathrm{Var}(w / \mathrm{E} w) / (2 S)$. Where x_0 is a density's
    argument the result is a log density in the units of the model's data; for bits and gray levels a log probability.

    A datum's s-th trajectory depends on `rng_key`, the datum's place and s alone. Memory limits and batch sizes change the
    result by rounding only, and a run with more trajectories holds the one with fewer.

    Args:
        rng_key: Random key.
        diffusion: The model; any process, first step and reverse kernel.
        x0: Data $x_0$, shape (*batch, *event), in the model's units of data.
        context: The context of every datum, shape (*batch, *context_shape), or one for all; by default what the model is given. The
            result is then log p(x_0 | context). Under one key the trajectories are the same whatever the contexts, so that
            differences between contexts are precise.
        num_trajectories: Trajectories per datum, S; with `target_se`, the number to begin with.
        target_se: Standard error of the log to reach for *every datum*, nats. Trajectories are doubled for the data above it,
            up to `max_trajectories`. Stopping on the error makes the estimate biased for p(x_0) itself: a run of small weights
            stops early. `label` says so.
        max_trajectories: The cap in that mode. Data still above the target keep what they have; a warning and `reached` say which.
        memory_limit: Bytes of working memory on the device, beyond the model and the data; what is drawn and evaluated
            together is chosen to stay below, and the compiled program is asked whether it does. None plans for 256 MiB, unasked.
        batch_size: Trajectories drawn at a time, at most.
        sharding: How they are laid over devices, for their first axis.
        progress: Whether to show a bar.

    Returns:
        Estimates in nats with errors and diagnostics, shape (*batch,).

    Warns:
        DataWarning: data far too large for the model.
        TargetNotReachedWarning: data whose standard error is still above the target at the cap.

    Raises:
        ValueError: num_trajectories < 1, or < 2 with a target; a cap below it; a target or batch size that is not positive; data
            of another shape, masked, not finite, too large to square, or outside the model's support; a limit too small for one
            step of one trajectory; or an argument traced by JAX, where `trajectory_log_weight` serves.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)  # of data that are N(0, I)
        >>> result = inference.marginal_log_likelihood(jax.random.key(0), diffusion, jnp.zeros((1, 2)))
        >>> result.log_prob.round(2)  # -log(2 pi)
        array([-1.84])
    """
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    check_concrete(
        "marginal_log_likelihood", "inference.likelihood.trajectory_log_weight", rng_key, diffusion, x0, context
    )
    start, most = as_count("num_trajectories", num_trajectories), as_count("max_trajectories", max_trajectories)
    most, batch_size = start if target_se is None else most, as_count("batch_size", batch_size)
    _check_target(start, target_se, most)
    check_unmasked("context", context)
    values = whole("x0", x0)
    diffusion.process.check_shape(values)
    values = np.asarray(values, np.float64 if diffusion.units is not None else float)
    batch_shape = values.shape[: values.ndim - diffusion.process.event_dim]
    flat = values.reshape(-1, *diffusion.event_shape)
    diffusion.check_data(flat)
    contexts = rows_of_context(diffusion, context, batch_shape)
    rows = min(batch_size, _few_sizes(most * len(flat)))
    on_chain = np.asarray(diffusion.to_chain(flat))
    warn_of_data(diffusion.process, on_chain)
    sampler = _Sampler(rng_key, diffusion.with_units(None), on_chain, contexts, rows, memory_limit, sharding)
    log_weights, count = _draw_until(sampler, start, most, target_se, progress)
    log_weights = log_weights + np.float32(diffusion.log_jacobian)
    result = LogLikelihood.from_log_weights(
        log_weights.reshape(-1, *batch_shape),
        num_trajectories=count.reshape(batch_shape),
        target_se=target_se,
        data=values,
        unit=UNITS[diffusion.is_discrete],
    )
    if not result.reached.all():
        warnings.warn(
            f"target_se {target_se:g} was not reached for {int((~result.reached).sum())} of {count.size} data by {most} "
            f"trajectories; their largest standard error is {float(result.se.max()):.3g} nats. Raise max_trajectories, or train "
            "the model further.",
            TargetNotReachedWarning,
            stacklevel=2,
        )
    return result


def _draw_until(
    sampler: "_Sampler", start: int, most: int, target_se: float | None, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Log weights (S, N), and how many each datum has: `start`, or twice as many for those above the target, up to `most`."""
    num_data = len(sampler.x0)
    with tqdm(desc="trajectories", total=0, unit="", unit_scale=True, disable=not progress) as bar:
        log_weights = sampler.draw(np.arange(num_data), 0, start, bar)
        count = np.full(num_data, start)
        while target_se is not None:
            result = LogLikelihood.from_log_weights(log_weights, num_trajectories=count, target_se=target_se)
            active = np.flatnonzero(~result.reached & (count < most))
            if active.size == 0:
                break
            drawn = len(log_weights)
            more = min(drawn, most - drawn)
            fresh = np.full((more, num_data), np.nan, np.float32)
            fresh[:, active] = sampler.draw(active, drawn, more, bar)
            log_weights = np.concatenate([log_weights, fresh])
            count[active] += more
    return log_weights, count


def _hash(data: ArrayLike) -> str:
    """Of data in their order and scale, rounded to float32."""
    check_unmasked("data", data)
    values = np.ascontiguousarray(data, np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


class _Sampler:
    """Draws trajectories of chosen data, as many side by side as memory allows, and every one from its own key."""

    def __init__(
        self,
        rng_key: Array,
        diffusion: Diffusion,
        x0: np.ndarray,
        contexts: Array | None,
        rows: int,
        memory_limit: int | None,
        sharding: Sharding | None = None,
    ):
        self.rng_key, self.diffusion, self.x0, self.contexts, self.sharding = rng_key, diffusion, x0, contexts, None
        limit = DEFAULT_MEMORY if memory_limit is None else memory_limit
        # Planned with one context for all rows: what a context each adds is small beside a network's own numbers.
        self.rows, self.chunk = plan(holding(diffusion, None if contexts is None else contexts[0]), rows, limit)
        while memory_limit is not None and (taken := self._bytes()) > memory_limit:
            if self.chunk == self.rows == 1:
                raise ValueError(
                    f"memory_limit must be at least {taken} bytes, what one step of one trajectory of this model takes; "
                    f"got {memory_limit}."
                )
            self.chunk, self.rows = (self.chunk // 2, self.rows) if self.chunk > 1 else (1, self.rows // 2)
        self.count = 1 if sharding is None else sharding.num_devices
        self.sharding = rows_over(sharding, "rows", self.count)
        self.rng_key, self.diffusion = on_all((rng_key, diffusion), sharding)

    def draw(self, data: np.ndarray, first: int, num: int, bar: tqdm) -> np.ndarray:
        """Log weights of trajectories first..first + num - 1 of the data named by index, float32, shape (num, len(data))."""
        total = num * len(data)
        bar.total += total
        bar.refresh()
        log_weights = np.empty(total, np.float32)
        # All batches have one length, and the last is filled up: one compiled program serves all.
        rows = min(self.rows, _few_sizes(total))
        rows = -(-rows // self.count) * self.count
        for start in range(0, total, rows):
            stop = min(start + rows, total)
            place = np.minimum(np.arange(start, start + rows), total - 1)
            datum, particle = data[place % len(data)], first + place // len(data)
            drawn_from = laid_out((self.x0[datum], datum, particle), self.sharding)
            drawn = _draw(self.rng_key, self._given(datum), *drawn_from, self.chunk)
            log_weights[start:stop] = fetched(drawn)[: stop - start]
            bar.update(stop - start)
        return log_weights.reshape(num, len(data))

    def _given(self, datum: np.ndarray) -> Diffusion:
        contexts = None if self.contexts is None else laid_out(self.contexts[datum], self.sharding)
        return holding(self.diffusion, contexts)

    def _bytes(self) -> int:
        """Working memory of the compiled program by its own account; 0 where the device keeps none."""
        index = np.zeros(self.rows, int)
        lower = _draw.lower  # type: ignore[attr-defined]
        program = lower(self.rng_key, self._given(index), self.x0[index], index, index, self.chunk)
        memory = program.compile().compiled.memory_analysis()
        return 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes


def _few_sizes(num: int) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...: a few sizes serve all numbers, with a quarter more at most."""
    step = 2 ** max(num.bit_length() - 3, 0)
    return -(-num // step) * step


@eqx.filter_jit
def _draw(rng_key: Array, diffusion: Diffusion, x0: Array, datum: Any, particle: Any, chunk_size: int) -> Array:
    def key_of(datum: Array, particle: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(rng_key, datum), particle)

    return draw_log_weights(jax.vmap(key_of)(datum, particle), diffusion, jnp.asarray(x0), chunk_size=chunk_size)


def _statistics(log_weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """log of the mean, its standard error, effective sample size, k-hat and spread, for log weights of shape (S, n)."""
    num, k_hat, spacing = len(log_weights), pareto_k(log_weights), resolution(log_weights)
    log_weights = log_weights.astype(np.float64)
    log_prob, relative = log_mean_exp(log_weights), relative_weights(log_weights)
    zero = np.isneginf(log_prob)
    se = (
        np.sqrt(np.sum(np.square(relative - 1.0), axis=0) / (num - 1) / num) if num > 1 else np.full(zero.shape, np.nan)
    )
    # Log weights of digits so coarse that they look alike are not known any better than to a digit.
    se = np.where(spacing > COARSE, np.maximum(se, spacing), np.where(zero, np.inf, se))
    return log_prob, se, effective_sample_size(log_weights), k_hat, upper_spread(log_weights)


def _check_target(num_trajectories: int, target_se: float | None, max_trajectories: int) -> None:
    if target_se is None:
        return
    if not target_se > 0.0:
        raise ValueError(f"target_se must be positive, in nats; got {target_se:g}.")
    if num_trajectories < 2:
        raise ValueError(
            "num_trajectories must be at least 2 with a target_se: one trajectory does not tell its own error."
        )
    if max_trajectories < num_trajectories:
        raise ValueError(
            f"max_trajectories must be at least num_trajectories = {num_trajectories}; got {max_trajectories}."
        )
