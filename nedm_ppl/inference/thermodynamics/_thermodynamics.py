r"""Where a trained chain loses its bits: work, its Jarzynski average, and the loss of every step (Sections 2.3, 2.6).

A forward trajectory does the work $W = -\log w = \log q(x_{1..T} | x_0) - \log p(x_{0..T})$ on the model. Whatever the model
is,

$$\mathrm{E}_q\, e^{-W} = p(x_0) \quad \text{(Jarzynski's equality)}, \qquad
  \mathrm{E}_q W = -K \ge -\log p(x_0) \quad \text{(the second law)}.$$

$-\log p(x_0)$ is the free energy; what work exceeds it by is dissipated, and its mean is the gap between likelihood and
bound. A chain so slow, or a kernel so good, that forward and reverse trajectories have one law dissipates nothing: every
trajectory does the same work.

Step t adds $\mathrm{E}\, \mathrm{KL}(q(x_{t-1} | x_t, x_0) \| p(x_{t-1} | x_t))$ to the mean work. This loss is the kernel's
cross-entropy less the lower bound of equation 24. So `lower + loss` is an upper bound on the entropy $H_q(X_{t-1} | X_t)$
too, the model's own, and a kernel that has learned nothing pays the whole width of the corridor.
"""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from nedm_ppl.arguments import Values
from nedm_ppl.inference._named_arrays import UNBIASED, container, data_dims, dataset, described, per_unit
from nedm_ppl.inference.bound._bound import BoundTerms
from nedm_ppl.inference.likelihood._likelihood import LogLikelihood
from nedm_ppl.inference.thermodynamics._entropy import EntropyBounds, entropy_bounds
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.numbers import Estimate

__all__ = ["LossBands", "StepLosses", "Thermodynamics", "Work", "loss_bands", "step_losses", "work"]


class StepLosses(NamedTuple):
    r"""The bound's loss at every step, in nats. Arrays are float64 NumPy, shape (n,).

    Attributes:
        times: The steps t that were evaluated, ascending: all of 2..T, unless steps were drawn and some were not.
        mean: $\mathrm{E}\, \mathrm{KL}(q(x_{t-1} | x_t, x_0) \| p(x_{t-1} | x_t))$ over data and $x_t$, unbiased.
        se: Its standard error over both; NaN where a step was evaluated once.
    """

    times: np.ndarray
    mean: np.ndarray
    se: np.ndarray


class LossBands(NamedTuple):
    r"""The bound's loss by bands of log-SNR, nats per datum. Arrays are float64 NumPy, shape (n,).

    Attributes:
        edges: Log-SNR between bands, ascending, shape (n - 1,): the first band is below all of them, the last above.
        mean: Sum of the losses of steps t = 2..T whose $x_t$ has a log-SNR in the band, mean over the data, unbiased.
        se: Its standard error over data and draws of $x_t$.
    """

    edges: np.ndarray
    mean: np.ndarray
    se: np.ndarray


class Work(NamedTuple):
    r"""Work of forward trajectories and the free energy it estimates, in nats. Arrays are float64 NumPy.

    Attributes:
        work: $W = -\log w$ of every trajectory, exact for its trajectory, shape (S, *batch); infinite where the model cannot
            have made it, NaN beyond a datum's own number.
        free_energy: The Jarzynski average $-\log \tfrac1S \sum_s e^{-W_s} = -\log \hat p(x_0)$, shape (*batch,): in
            expectation an upper bound on $-\log p(x_0)$.
        free_energy_se: Its standard error by the delta method, shape (*batch,).
    """

    work: np.ndarray
    free_energy: np.ndarray
    free_energy_se: np.ndarray

    @property
    def dissipated(self) -> np.ndarray:
        r"""Dissipated work $W + \log \hat p(x_0)$, nats, shape (S, *batch). Single trajectories may have less than none."""
        return self.work - self.free_energy

    @property
    def mean(self) -> Estimate:
        """Mean work, -K on these data, nats; its standard error holds the spread of data and trajectories together."""
        return _estimate(np.nanmean(self.work, axis=0))

    @property
    def jarzynski(self) -> Estimate:
        """Mean of the Jarzynski averages over the data, nats; its standard error likewise."""
        return _estimate(self.free_energy)

    @property
    def gap(self) -> Estimate:
        r"""Mean dissipated work, $\log \hat p - K$ paired by datum, nats: at most the bound's gap, in expectation."""
        return _estimate(np.nanmean(self.dissipated, axis=0))


class Thermodynamics(NamedTuple):
    r"""The thermodynamics of a trained model on data.

    Attributes:
        log_snr: $\log \bar\alpha_t / (1 - \bar\alpha_t)$ of t = 1..T, nats, shape (T,).
        entropy: Bounds on the entropy of the exact reverse steps.
        losses: The bound's loss per step.
        work: Work of forward trajectories.
    """

    log_snr: np.ndarray
    entropy: EntropyBounds
    losses: StepLosses
    work: Work

    def __repr__(self) -> str:
        return f"Thermodynamics of T = {len(self.log_snr)} steps: {self.losses.times.size} losses, work of {self.work.work.shape}"

    @classmethod
    def of(cls, diffusion: Diffusion, x0: ArrayLike, terms: BoundTerms, likelihood: LogLikelihood) -> "Thermodynamics":
        """Entropy bounds, losses per step and work, from what `evaluate` and `marginal_log_likelihood` have drawn already.

        Args:
            diffusion: The model.
            x0: The data that `terms` were evaluated on, shape (N, *event).
            terms: As `evaluate` returns them.
            likelihood: As `marginal_log_likelihood` returns it, for the same data or some of them.

        Raises:
            ValueError: data that this process cannot have.
        """
        log_snr = np.asarray(diffusion.process.schedule.log_snr, np.float64)
        return cls(
            log_snr,
            entropy_bounds(diffusion.process, np.asarray(diffusion.to_chain(x0))),
            step_losses(terms),
            work(likelihood),
        )

    def to_arviz(self, *, units: str = "nats") -> Any:
        """Entropy bounds and losses per step, and the work of forward trajectories.

        Args:
            units: `nats` or `bits`, of entropies, losses and work; `log_snr` is a natural logarithm.

        Returns:
            `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups

            - `thermodynamics`: `log_snr`, `entropy_lower`, `entropy_upper`, `entropy_upper_any_data` and their `_se`, dimensions
              (time,), t = 1..T; `loss` and `loss_se`, dimensions (loss_time,), the steps that were evaluated;
            - `work`: `work`, dimensions (trajectory, *datum), `free_energy` and `free_energy_se`, dimensions (*datum,).

        Raises:
            ValueError: units other than these.
        """
        factor = per_unit(units)
        entropy, losses, work = self.entropy, self.losses, self.work
        by_step = {"log_snr": (("time",), self.log_snr, described("log signal-to-noise ratio of x_t", "exact", "nats"))}
        for name, long_name in (
            ("lower", "lower bound on H(X_{t-1} | X_t)"),
            ("upper", "upper bound on H(X_{t-1} | X_t), equation 24"),
            ("upper_any_data", "upper bound on H(X_{t-1} | X_t), any data"),
        ):
            value, se = getattr(entropy, name), getattr(entropy, f"{name}_se")
            label = "exact" if not np.any(se) else "mean over the data"
            by_step[f"entropy_{name}"] = (("time",), value * factor, described(long_name, label, units))
            by_step[f"entropy_{name}_se"] = (("time",), se * factor, described("its standard error", label, units))
        loss = described("E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))", UNBIASED, units)
        loss_se = described("its standard error", "over data and draws of x_t", units)
        by_step |= {
            "loss": (("loss_time",), losses.mean * factor, loss),
            "loss_se": (("loss_time",), losses.se * factor, loss_se),
        }
        data = data_dims(work.free_energy.ndim)
        by_trajectory = {
            "work": (
                ("trajectory", *data),
                work.work * factor,
                described("work -log w", "exact for its trajectory", units),
            ),
            "free_energy": (data, work.free_energy * factor, described("-log p(x_0)", "Jarzynski average", units)),
            "free_energy_se": (
                data,
                work.free_energy_se * factor,
                described("standard error of free_energy", "delta method", units),
            ),
        }
        coords = {"time": entropy.times, "loss_time": losses.times}
        return container({"thermodynamics": dataset(by_step, coords), "work": dataset(by_trajectory)})


def step_losses(terms: BoundTerms) -> StepLosses:
    """Mean loss of every step over the data, with its standard error, from the bound's divergences."""
    times, divergences = np.asarray(terms.times).ravel(), np.asarray(terms.divergences, np.float64).ravel()
    at, inverse, count = np.unique(times, return_inverse=True, return_counts=True)
    mean = np.bincount(inverse, divergences, minlength=len(at)) / count
    squares = np.bincount(inverse, np.square(divergences - mean[inverse]), minlength=len(at))
    se = np.sqrt(squares / np.maximum(count - 1, 1) / count)
    return StepLosses(at, mean, np.where(count > 1, se, np.nan))


def loss_bands(
    terms: BoundTerms, process: DiffusionProcess, edges: Values = (-4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
) -> LossBands:
    """What the bound loses in every band of log-SNR, whose sum is the bound's diffusion term: comparable across T and schedules.

    Args:
        terms: As `evaluate` returns them.
        process: The chain they are of.
        edges: Log-SNR between two bands, ascending, shape (n - 1,).

    Raises:
        ValueError: edges that do not ascend.
    """
    edges = np.asarray(edges, np.float64).ravel()
    if np.any(np.diff(edges) <= 0.0):
        raise ValueError(f"edges must ascend; got {edges.tolist()}.")
    times = np.asarray(terms.times)
    divergences = np.asarray(terms.divergences, np.float64) * ((process.num_steps - 1) / max(len(times), 1))
    log_snr = np.asarray(process.schedule.log_snr, np.float64)
    band = np.searchsorted(edges, log_snr[times - 1])
    losses = [Estimate.of(np.where(band == i, divergences, 0.0).sum(axis=0)) for i in range(len(edges) + 1)]
    return LossBands(edges, np.array([loss.mean for loss in losses]), np.array([loss.se for loss in losses]))


def work(likelihood: LogLikelihood) -> Work:
    """The work of the trajectories behind a likelihood, and their Jarzynski average."""
    return Work(-likelihood.log_weights.astype(np.float64), -likelihood.log_prob, likelihood.se)


def _estimate(values: np.ndarray) -> Estimate:
    with np.errstate(invalid="ignore"):  # infinite work has a mean and no error
        return Estimate.of(values)
