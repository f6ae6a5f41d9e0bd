"""ArviZ data of what has no class here: draws, a NumPyro MCMC, a training history. Results convert themselves: `to_arviz`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import Unit
from numpyro.infer import Predictive, log_likelihood

from nedm_ppl.arguments import check_key
from nedm_ppl.inference._named_arrays import by_draw, container, dataset, described

if TYPE_CHECKING:
    from numpyro.infer import MCMC

__all__ = ["mcmc_to_arviz", "samples_to_arviz", "trace_to_arviz"]

SAMPLE_GROUPS = ("prior", "posterior_predictive")

ARVIZ_NAMES = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}


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
    groups = {group: dataset({name: (("chain", "draw", *names), samples[None], attrs)})}
    if observed is not None:
        observed = np.asarray(observed)
        if observed.shape[1:] != event_shape or observed.ndim == 0:
            raise ValueError(f"observed must have shape (num_data, *{event_shape}); got {observed.shape}.")
        attrs = {"long_name": "observed x_0", "estimate": "data"}
        groups["observed_data"] = dataset({name: (("datum", *names), observed, attrs)})
    return container(groups)


def mcmc_to_arviz(
    mcmc: "MCMC",
    program: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    predictive: Array | None = None,
) -> Any:
    """Draws of a numpyro `MCMC`, with the extra fields of its blocks under the names ArviZ knows.

    `extra_fields=("block_states.1.diverging",)` of a `Gibbs` becomes `diverging`, which ArviZ plots and counts; of several blocks a
    draw diverges where any of them did. Any other field that two blocks share keeps the block's number, as in `moved_0`.

    Args:
        mcmc: A run that is done.
        program: The program that it ran; with it the log likelihood of every observation and the observed data are there too.
        args, kwargs: The program's arguments, those of `mcmc.run`.
        predictive: A random key: observations drawn anew for every draw, from the posterior predictive law.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups `posterior`, dimensions (chain, draw, ...),
        and `sample_stats` where extra fields were collected. With the program also `log_likelihood`, nats, exact given the draw,
        and `observed_data`; with a key also `posterior_predictive`, exact draws given the draw.

    Raises:
        ValueError: a key or arguments without the program, a program without observations, or with a latent of which the run has no
            draws.

    Examples:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> from nedm_ppl import inference
        >>> def program(y=None):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)
        >>> mcmc = MCMC(NUTS(program), num_warmup=10, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array(0.3), extra_fields=("diverging",))
        >>> found = inference.mcmc_to_arviz(mcmc, program, (jnp.array(0.3),), predictive=jax.random.key(1))
        >>> found["posterior"]["mean"].shape, found["posterior_predictive"]["y"].shape
        ((1, 20), (1, 20))
    """
    if program is None and (args or kwargs or predictive is not None):
        raise ValueError("program must be given with its arguments or a key for predictive draws.")
    values = mcmc.get_samples(group_by_chain=True)
    drawn = described("draws from the posterior", "by MCMC, correlated within a chain")
    groups = {"posterior": dataset({name: by_draw(name, value, drawn) for name, value in values.items()})}
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
        kept = described("of the sampler", "exact")
        groups["sample_stats"] = dataset({name: by_draw(name, value, kept) for name, value in stats.items()})
    if program is not None:
        groups |= _of_observations(program, tuple(args), dict(kwargs or {}), values, predictive)
    return container(groups)


def _of_observations(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: dict[str, Any],
    key: Array | None,
) -> dict[str, Any]:
    """The groups that a program's observed sites give, from draws of its latents with the axes (chain, draw)."""
    trace = handlers.trace(handlers.seed(program, 0)).get_trace(*args, **kwargs)
    sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
    observed = {name: site for name, site in sites.items() if site["is_observed"] and not isinstance(site["fn"], Unit)}
    if not observed:
        raise ValueError("program must have an observed site; it has none. Give the observations by args or kwargs.")
    if absent := [name for name, site in sites.items() if not site["is_observed"] and name not in values]:
        raise ValueError(
            f"program must have the latents that mcmc has draws of; there are none of {', '.join(absent)}. Give the program that "
            "was run; a latent that was summed out has no draws."
        )
    latents = {name: values[name] for name, site in sites.items() if not site["is_observed"]}
    log_probs = log_likelihood(program, latents, *args, batch_ndims=2, **kwargs)
    exact = described("log p(observation | latents)", "exact given the draw", "nats")
    data = described("observations", "data")
    dims = {name: tuple(f"{name}_dim_{i}" for i in range(np.ndim(site["value"]))) for name, site in observed.items()}
    groups = {
        "log_likelihood": dataset({name: by_draw(name, log_probs[name], exact) for name in observed}),
        "observed_data": dataset(
            {name: (dims[name], np.asarray(site["value"]), dict(data)) for name, site in observed.items()}
        ),
    }
    if key is not None:
        check_key(key)
        anew = Predictive(handlers.uncondition(program), latents, return_sites=list(observed), batch_ndims=2)
        drawn = described("observations drawn anew", "exact draws given the draw of the latents")
        groups["posterior_predictive"] = dataset(
            {name: by_draw(name, value, drawn) for name, value in anew(key, *args, **kwargs).items()}
        )
    return groups


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
    return container({"training": dataset(variables, coords)})


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
