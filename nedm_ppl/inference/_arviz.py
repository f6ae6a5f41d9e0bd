"""Samples, bounds and training traces as ArviZ data: labelled, with units, ready for netCDF.

ArviZ before 1.0 holds groups in its own `InferenceData`, from 1.0 on in xarray's `DataTree`. The groups are built here as
xarray data sets, the same for both, and only `_container` and `likelihood_to_elpd` know the difference. Every variable carries
the attributes `long_name`, `units` where it has one, and `estimate`: whether it is exact, unbiased, or a bound.

ArviZ reads some group names as a promise. `posterior` and `log_likelihood` promise draws of latent variables given data,
and `az.loo` or `az.compare` reweight across them. Draws of a `ParticlePosterior` are of that kind; nothing else here is, so nothing
else goes by those names: log weights of trajectories passed as posterior draws give a harmonic mean, far from the likelihood and
silently so.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from nedm_ppl.inference.bound._bound import BoundTerms
from nedm_ppl.inference.likelihood._likelihood import LogLikelihood
from nedm_ppl.inference.likelihood._pareto import k_threshold
from nedm_ppl.inference.likelihood._sandwich import Sandwich
from nedm_ppl.inference.posterior._particle_posterior import ParticlePosterior
from nedm_ppl.inference.thermodynamics._thermodynamics import Thermodynamics

if TYPE_CHECKING:
    import xarray as xr
    from numpyro.infer import MCMC

__all__ = [
    "bound_to_arviz",
    "likelihood_to_arviz",
    "likelihood_to_elpd",
    "mcmc_to_arviz",
    "posterior_to_arviz",
    "samples_to_arviz",
    "sandwich_to_arviz",
    "thermodynamics_to_arviz",
    "trace_to_arviz",
]

SAMPLE_GROUPS = ("prior", "posterior_predictive")
PER_UNIT = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}

ARVIZ_NAMES = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}

UNBIASED = "unbiased over the draws of x_t"


def samples_to_arviz(
    samples: ArrayLike,
    *,
    group: str = "prior",
    name: str = "x0",
    dims: Sequence[str] | None = None,
    observed: ArrayLike | None = None,
) -> Any:
    """Draws of x_0 from a model, as one chain of independent draws.

    They are conditioned on nothing, so they belong in `prior`: the law that a larger program's `posterior` for the same site
    is compared with. Where the question is instead whether a trained model's data look like the observed data, ArviZ's
    name is `posterior_predictive`: draws of the observed variable under fitted parameters, here a single fitted value.

    Args:
        samples: x_0, shape (num_draws, *event), in the units of the data the model was trained on.
        group: `prior` or `posterior_predictive`.
        name: Name of the variable.
        dims: Names of the event axes; by default `x0_dim_0`, `x0_dim_1`, and so on.
        observed: Data to compare with, shape (num_data, *event), for the group `observed_data`.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on: the variable has dimensions (chain, draw, *dims).

    Raises:
        ValueError: another group, no draws, names that do not match the axes, or data of another event shape.
    """
    if group not in SAMPLE_GROUPS:
        raise ValueError(
            f"group must be one of {', '.join(SAMPLE_GROUPS)}; got {group!r}. Draws from a model are conditioned on no "
            "data: for posterior draws use arviz.from_numpyro, or a posterior's own conversion."
        )
    samples = np.asarray(samples)
    if samples.ndim == 0 or samples.size == 0:
        raise ValueError(f"samples must have shape (num_draws, *event), num_draws at least 1; got {samples.shape}.")
    event_shape = samples.shape[1:]
    names = tuple(f"{name}_dim_{i}" for i in range(len(event_shape))) if dims is None else tuple(dims)
    if len(names) != len(event_shape):
        raise ValueError(f"dims must name the {len(event_shape)} event axes {event_shape}; got {names}.")
    attrs = {"long_name": "x_0 drawn from the model", "estimate": "exact draws from the model, independent"}
    groups = {group: _dataset({name: (("chain", "draw", *names), samples[None], attrs)})}
    if observed is not None:
        observed = np.asarray(observed)
        if observed.shape[1:] != event_shape or observed.ndim == 0:
            raise ValueError(f"observed must have shape (num_data, *{event_shape}); got {observed.shape}.")
        attrs = {"long_name": "observed x_0", "estimate": "data"}
        groups["observed_data"] = _dataset({name: (("datum", *names), observed, attrs)})
    return _container(groups)


def bound_to_arviz(terms: BoundTerms, *, units: str = "nats") -> Any:
    """The bound of every datum, term by term and step by step, in a group of its own named `bound`.

    The group has no `chain` and no `draw`: a datum's bound is one number with Monte Carlo noise, not a draw of a posterior.

    Args:
        terms: As `bound_terms` returns them; a batch of one axis is called `datum`, of several `datum_0`, `datum_1`, ...
        units: `nats` or `bits`.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the variables

        - `bound`, the lower bound K, and its terms `prior`, `diffusion`, `first_step`: dimensions (*datum,);
        - `divergence`: dimensions (time, *datum) with t as coordinate where every step was taken, else (drawn_step, *datum)
          beside the variable `time` that says which step each was.

    Raises:
        ValueError: units other than these.
    """
    if units not in PER_UNIT:
        raise ValueError(f"units must be nats or bits; got {units!r}.")
    values = [np.asarray(term, np.float64) * PER_UNIT[units] for term in (*terms[:3], terms.divergences)]
    prior, diffusion, first_step, divergences = values
    times = np.asarray(terms.times)
    data = _data_dims(prior.ndim)

    def described(value: np.ndarray, long_name: str, estimate: str, dims: tuple[str, ...] = data) -> tuple:
        return dims, value, {"long_name": long_name, "units": units, "estimate": estimate}

    first_estimate = f"exact for the fixed first step, else {UNBIASED}"
    bound_estimate = f"lower bound on log p(x_0), {UNBIASED}"
    variables = {
        "bound": described(first_step - diffusion - prior, "bound K = first_step - diffusion - prior", bound_estimate),
        "prior": described(prior, "KL(q(x_T | x_0) || pi)", "exact"),
        "diffusion": described(diffusion, "sum over steps t >= 2 of E KL(q || p)", UNBIASED),
        "first_step": described(first_step, "E log p(x_0 | x_1)", first_estimate),
    }
    coords = {name: np.arange(size) for name, size in zip(data, prior.shape, strict=True)}
    by_step = times.reshape(len(times), math.prod(times.shape[1:]))
    shared = bool(np.all(by_step == by_step[:, :1])) and len(np.unique(by_step[:, :1])) == len(times)
    step_dim = "time" if shared else "drawn_step"
    variables["divergence"] = described(
        divergences, "KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))", UNBIASED, (step_dim, *data)
    )
    if shared:
        coords["time"] = by_step[:, 0]
    else:
        variables["time"] = ((step_dim, *data), times, {"long_name": "step t", "estimate": "exact"})
    return _container({"bound": _dataset(variables, coords)})


def likelihood_to_arviz(result: LogLikelihood, *, units: str = "nats") -> Any:
    """Importance-sampled log likelihoods, per datum, and the log weights they came from.

    Args:
        result: As `log_likelihood` returns it; a batch of one axis is called `datum`, of several `datum_0`, `datum_1`, ...
        units: `nats` or `bits`, of log probabilities and their errors.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups

        - `likelihood`: `log_prob`, `se`, `ess`, `k_hat`, `spread` (nats), `num_particles`, `flagged`, `reached`;
          dimensions (*datum,);
        - `sample_stats`: `log_weight`, dimensions (trajectory, *datum), NaN beyond a datum's own number. Trajectories are no
          posterior draws, so there is no `chain`, no `draw` and no `posterior` for ArviZ to reweight across.

    Raises:
        ValueError: units other than these.
    """
    if units not in PER_UNIT:
        raise ValueError(f"units must be nats or bits; got {units!r}.")
    data, factor = _data_dims(result.log_prob.ndim), PER_UNIT[units]
    variables = {
        "log_prob": (data, result.log_prob * factor, _described("log p(x_0)", result.label, units)),
        "se": (data, result.se * factor, _described("standard error of log_prob", "delta method", units)),
        "ess": (data, result.ess, _described("effective sample size", "(sum w)^2 / sum w^2")),
        "k_hat": (data, result.k_hat, _described("Pareto k-hat", "empirical Bayes fit to the largest weights")),
        "num_particles": (data, result.num_particles, _described("number of trajectories", "exact")),
        "spread": (data, result.spread, _described("upper half of the log weights above their median", "mean", "nats")),
        "flagged": (data, result.flagged, _described("spread or k-hat too high to trust log_prob", "exact")),
        "reached": (data, result.reached, _described("whether the standard error asked for was reached", "exact")),
    }
    weight = _described("log p(x_0..x_T) - log q(x_1..x_T | x_0)", "exact for its trajectory", units)
    weights = {"log_weight": (("trajectory", *data), result.log_weights * factor, weight)}
    return _container({"likelihood": _dataset(variables), "sample_stats": _dataset(weights)})


def likelihood_to_elpd(result: LogLikelihood) -> Any:
    """Pointwise log likelihood of held-out data as ArviZ's `ELPDData`.

    To compare models use `inference.compare` in place of `az.compare`, which cannot know whether two numbers are of the same data
    in the same scale; the attributes `data` and `quantity` of the pointwise values say it.

    The data must not have been trained on, and be the same in the same order for every model compared: differences are
    paired by datum. ArviZ before 1 knows leave-one-out estimates alone, so there `elpd_loo` is the holdout's sum;
    nothing is left out or reweighted, and there is no effective number of parameters (NaN). `se` is over data and
    trajectories; the differences' `dse` likewise. `az.compare` prints "warning" where any datum is flagged.

    Of ArviZ's model weights prefer `method="pseudo-BMA"`: stacking exponentiates every datum's log density, which underflows
    below -745 nats.

    Args:
        result: As `log_likelihood` returns it.

    Raises:
        ValueError: fewer than two data, or an estimate that is not finite.
    """
    log_prob = result.log_prob.ravel()
    if log_prob.size < 2 or not np.all(np.isfinite(log_prob)):
        raise ValueError(
            f"an ELPD needs finite log likelihoods of at least two data; got {int(np.isfinite(log_prob).sum())} of "
            f"{log_prob.size}."
        )
    import xarray as xr

    pointwise = xr.DataArray(log_prob, dims=("datum",), coords={"datum": np.arange(log_prob.size)})
    pointwise.attrs = {"data": result.data or "unknown", "quantity": result.unit or "unknown"}
    parts = {
        "elpd": float(log_prob.sum()),
        "se": float(np.sqrt(log_prob.size * log_prob.var())),
        "p": math.nan,
        "n_samples": int(result.num_particles.max()),
        "n_data_points": log_prob.size,
        "warning": bool(result.flagged.any()),
        "scale": "log",
        "good_k": float(k_threshold(result.num_particles.max())),
        "elpd_i": pointwise,
        "pareto_k": pointwise.copy(data=result.k_hat.ravel()),
    }
    az = _arviz()
    if _arviz_1():
        # ArviZ 1.0 must be told one of its own criteria; 1.3 has a class for a criterion that is none of them.
        kind = {} if "kind" not in az.ELPDData.__dataclass_fields__ else {"kind": "loo"}
        return az.ELPDData(**kind, **parts)
    names = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    # The first entry's name says which criterion it is; printing reads the first three in this order.
    return az.ELPDData(data=list(parts.values()), index=[names.get(name, name) for name in parts])


def sandwich_to_arviz(result: Sandwich, *, units: str = "nats") -> Any:
    """Bounds from both sides on simulated data, in the group `sandwich`, and the data themselves in `simulated`.

    Args:
        result: As `sandwich` returns it.
        units: `nats` or `bits`.

    Raises:
        ValueError: units other than these.
    """
    if units not in PER_UNIT:
        raise ValueError(f"units must be nats or bits; got {units!r}.")
    data, factor = ("datum",), PER_UNIT[units]
    count = f"{result.num_particles} trajectories"
    lower = _described("lower bound on log p(x_0)", f"in expectation, {count}", units)
    upper = _described("upper bound on log p(x_0)", f"in expectation, {count}, one of them exact", units)
    bounds = {"lower": (data, result.lower * factor, lower), "upper": (data, result.upper * factor, upper)}
    names = tuple(f"x0_dim_{i}" for i in range(result.x0.ndim - 1))
    x0 = _described("x_0 drawn from the model", "exact draws from the model, independent")
    return _container({"sandwich": _dataset(bounds), "simulated": _dataset({"x0": (("datum", *names), result.x0, x0)})})


def mcmc_to_arviz(mcmc: "MCMC") -> Any:
    """Draws of a numpyro `MCMC`, with the extra fields of its blocks under the names ArviZ knows.

    `extra_fields=("block_states.1.diverging",)` of a `Gibbs` becomes `diverging`, which ArviZ plots and counts; of several blocks a
    draw diverges where any of them did. Any other field that two blocks share keeps the block's number, as in `moved_0`.

    Args:
        mcmc: A run that is done.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups `posterior`, dimensions (chain, draw, ...),
        and `sample_stats` where extra fields were collected.
    """
    values = mcmc.get_samples(group_by_chain=True)
    drawn = _described("draws from the posterior", "by MCMC, correlated within a chain")
    groups = {"posterior": _dataset({name: _by_draw(name, value, drawn) for name, value in values.items()})}
    by_name: dict[str, dict[str, np.ndarray]] = {}
    for field, value in mcmc.get_extra_fields(group_by_chain=True).items():
        block, _, own = field.removeprefix("block_states.").partition(".")
        inside = field.startswith("block_states.")
        name = own if inside else field
        by_name.setdefault(ARVIZ_NAMES.get(name, name), {})[block if inside else ""] = np.asarray(value)
    stats: dict[str, np.ndarray] = {}
    for name, of_block in by_name.items():
        if name == "diverging":
            stats[name] = np.any(list(of_block.values()), axis=0)
        else:
            single = len(of_block) == 1
            stats |= {name if single else f"{name}_{block}": value for block, value in of_block.items()}
    if stats:
        kept = _described("of the sampler", "exact")
        groups["sample_stats"] = _dataset({name: _by_draw(name, value, kept) for name, value in stats.items()})
    return _container(groups)


def posterior_to_arviz(posterior: ParticlePosterior) -> Any:
    """Draws of a particle posterior, and how its filters fared.

    Args:
        posterior: A `ParticlePosterior` that has been run, on one observation or a batch of them.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups

        - `posterior`: equally weighted draws under the site's name, dimensions (chain, draw, ...), one chain. The repeats are
          pooled by their evidences, so they are no chains, and r-hat means nothing here;
        - `particles`: `log_weight` (repeat, particle), `ess` and `num_ancestors` (repeat, time), `log_evidence` (repeat,), and
          `doubts`, a text, empty where nothing speaks against the numbers.

        Of a batch everything has a dimension `observation`, after (chain, draw) and before all others.
    """
    particles = posterior.particles
    ((site, draws),) = posterior.get_samples().items()
    lead = ("observation",) * (particles.log_evidence.ndim - 1)
    if lead:
        draws = np.moveaxis(draws, 0, 1)  # ArviZ has draws first
    names = tuple(f"{site}_dim_{i}" for i in range(draws.ndim - 1 - len(lead)))
    drawn = _described(
        "draws from the posterior", f"by particles, {posterior.num_particles} in {posterior.num_repeats} repeats"
    )
    sample = {site: (("chain", "draw", *lead, *names), draws[None], drawn)}
    unbiased = "its exponential is unbiased for the evidence"
    by_repeat = {
        "log_weight": (
            ("repeat", "particle"),
            posterior.log_weights,
            _described("normalised log weight", "all repeats", "nats"),
        ),
        "ess": (("repeat", "time"), particles.ess, _described("effective sample size", "(sum w)^2 / sum w^2")),
        "num_ancestors": (
            ("repeat", "time"),
            particles.num_ancestors,
            _described("particles at T with descendants", "exact"),
        ),
        "log_evidence": (("repeat",), particles.log_evidence, _described("log Z of one repeat", unbiased, "nats")),
    }
    values = {name: ((*lead, *dims), np.asarray(value), attrs) for name, (dims, value, attrs) in by_repeat.items()}
    verdicts = posterior.doubts if lead else (posterior.doubts,)
    said = np.asarray(["; ".join(reasons) for reasons in verdicts])
    said_of = _described("reasons to doubt these numbers", "a verdict; no reason is no proof")
    values["doubts"] = (lead, said.reshape(np.shape(particles.log_evidence)[:-1]), said_of)
    return _container({"posterior": _dataset(sample), "particles": _dataset(values)})


def thermodynamics_to_arviz(result: Thermodynamics, *, units: str = "nats") -> Any:
    """Entropy bounds and losses per step, and the work of forward trajectories.

    Args:
        result: As `thermodynamics` returns it; a batch of one axis is called `datum`, of several `datum_0`, `datum_1`, ...
        units: `nats` or `bits`, of entropies, losses and work; `log_snr` is a natural logarithm.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups

        - `thermodynamics`: `log_snr`, `entropy_lower`, `entropy_upper`, `entropy_upper_any_data` and their `_se`, dimensions
          (time,), t = 1..T; `loss` and `loss_se`, dimensions (loss_time,), the steps that were evaluated;
        - `work`: `work`, dimensions (trajectory, *datum), `free_energy` and `free_energy_se`, dimensions (*datum,).

    Raises:
        ValueError: units other than these.
    """
    if units not in PER_UNIT:
        raise ValueError(f"units must be nats or bits; got {units!r}.")
    factor, entropy, losses, work = PER_UNIT[units], result.entropy, result.losses, result.work
    by_step = {"log_snr": (("time",), result.log_snr, _described("log signal-to-noise ratio of x_t", "exact", "nats"))}
    for name, long_name in (
        ("lower", "lower bound on H(X_{t-1} | X_t)"),
        ("upper", "upper bound on H(X_{t-1} | X_t), equation 24"),
        ("upper_any_data", "upper bound on H(X_{t-1} | X_t), any data"),
    ):
        value, se = getattr(entropy, name), getattr(entropy, f"{name}_se")
        label = "exact" if not np.any(se) else "mean over the data"
        by_step[f"entropy_{name}"] = (("time",), value * factor, _described(long_name, label, units))
        by_step[f"entropy_{name}_se"] = (("time",), se * factor, _described("its standard error", label, units))
    loss = _described("E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))", UNBIASED, units)
    loss_se = _described("its standard error", "over data and draws of x_t", units)
    by_step |= {
        "loss": (("loss_time",), losses.mean * factor, loss),
        "loss_se": (("loss_time",), losses.se * factor, loss_se),
    }
    data = _data_dims(work.free_energy.ndim)
    by_trajectory = {
        "work": (
            ("trajectory", *data),
            work.work * factor,
            _described("work -log w", "exact for its trajectory", units),
        ),
        "free_energy": (data, work.free_energy * factor, _described("-log p(x_0)", "Jarzynski average", units)),
        "free_energy_se": (
            data,
            work.free_energy_se * factor,
            _described("standard error of free_energy", "delta method", units),
        ),
    }
    coords = {"time": entropy.times, "loss_time": losses.times}
    return _container({"thermodynamics": _dataset(by_step, coords), "work": _dataset(by_trajectory)})


def trace_to_arviz(history: Mapping[str, ArrayLike], *, units: Mapping[str, str] | None = None) -> Any:
    """A training trace, in a group of its own named `training`.

    Args:
        history: 1-D arrays by name, as `Fitted.history` has them. `step` is the coordinate of all of them, except that
            `validation_step` is that of every name that begins with `validation_`, and so on for any other prefix. Without
            `step`, entries are counted from 1.
        units: Unit by name. A name that ends in `_nats`, `_bits` or `_bits_per_dim` says its own; what `fit` calls
            `bound` and `se` is in nats.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on.

    Raises:
        ValueError: an array that is not 1-D or not as long as its steps, or no arrays besides steps.
    """
    arrays = {name: np.asarray(value) for name, value in history.items()}
    prefixes = [name.removesuffix("step") for name in arrays if name == "step" or name.endswith("_step")]
    coords: dict[str, np.ndarray] = {f"{prefix}step": arrays.pop(f"{prefix}step") for prefix in prefixes}
    if not arrays:
        raise ValueError(f"history must hold an array besides its steps; got {sorted(history) or 'nothing'}.")
    variables = {}
    for name, value in arrays.items():
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default="")
        dim = f"{prefix}step"
        steps = coords.setdefault(dim, np.arange(1, value.size + 1))
        if value.ndim != 1 or value.shape != steps.shape:
            raise ValueError(
                f"history[{name!r}] must be 1-D, one entry per {dim}; got {value.shape} and {steps.shape}."
            )
        attrs = {"long_name": name.replace("_", " "), **_units_of(name), **_estimate_of(name)}
        if units is not None and name in units:
            attrs["units"] = units[name]
        variables[name] = ((dim,), value, attrs)
    return _container({"training": _dataset(variables, coords)})


def _by_draw(name: str, value: ArrayLike, attrs: Mapping[str, str]) -> tuple:
    value = np.asarray(value)
    return ("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.ndim - 2))), value, dict(attrs)


def _described(long_name: str, estimate: str, units: str | None = None) -> dict[str, str]:
    return {"long_name": long_name, "estimate": estimate} | ({} if units is None else {"units": units})


def _units_of(name: str) -> dict[str, str]:
    for suffix in ("bits_per_dim", "bits", "nats"):
        if name.endswith(f"_{suffix}"):
            return {"units": suffix.replace("_", " ")}
    return {"units": "nats"} if name.endswith(("bound", "se")) else {}


def _estimate_of(name: str) -> dict[str, str]:
    stem = name.removesuffix("_per_dim").removesuffix("_bits").removesuffix("_nats")
    if stem.endswith("bound"):
        return {"estimate": "lower bound on the mean of log p(x_0), unbiased over data, steps and noise"}
    return {"estimate": "standard error of the mean over data"} if stem == "se" or stem.endswith("_se") else {}


def _data_dims(num_axes: int) -> tuple[str, ...]:
    return ("datum",) if num_axes == 1 else tuple(f"datum_{i}" for i in range(num_axes))


def _dataset(variables: Mapping[str, tuple], coords: Mapping[str, np.ndarray] | None = None) -> "xr.Dataset":
    import xarray as xr

    coords = dict(coords or {})
    for dims, value, _ in variables.values():
        for dim, size in zip(dims, value.shape, strict=True):
            coords.setdefault(dim, np.arange(size))
    return xr.Dataset(variables, coords, _attributes())


def _attributes() -> dict[str, str]:
    return {"inference_library": "nedm_ppl", "inference_library_version": version("nedm-ppl")}


def _arviz_1() -> bool:
    return int(version("arviz").split(".")[0]) >= 1


def _container(groups: Mapping[str, "xr.Dataset"]) -> Any:
    """The groups in the type that the installed ArviZ works with."""
    if _arviz_1():
        import xarray as xr

        root = xr.Dataset(attrs=_attributes())
        return xr.DataTree.from_dict({"/": root, **{f"/{name}": group for name, group in groups.items()}})
    return _arviz().InferenceData(attrs=_attributes(), warn_on_custom_groups=False, **groups)


def _arviz() -> Any:
    with warnings.catch_warnings():
        # ArviZ 0.23 announces 1.0 with a FutureWarning at import; this file is ready for it.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
