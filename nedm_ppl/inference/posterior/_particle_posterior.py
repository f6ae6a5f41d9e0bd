r"""The posterior of a diffusion as an object that feels like NumPyro's `MCMC`: run, samples, evidence, summary."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding
from jax.tree_util import keystr, tree_leaves_with_path
from jax.typing import ArrayLike
from numpyro import handlers
from scipy.special import logsumexp
from tqdm.auto import tqdm

from nedm_ppl._compat import eval_provenance
from nedm_ppl.arguments import check_concrete, check_key
from nedm_ppl.inference._named_arrays import container, dataset, described
from nedm_ppl.inference.posterior._along import as_along
from nedm_ppl.inference.posterior._downstream import Downstream, Site, diffusion_site, guide, prior_of
from nedm_ppl.inference.posterior._multiplied import Along, MultipliedDiffusion
from nedm_ppl.inference.posterior._multiplier import Known, Multiplier, Product, as_multiplier
from nedm_ppl.inference.posterior._multiply import multiply
from nedm_ppl.inference.posterior._particle_verdict import DoubtfulPosterior, doubts
from nedm_ppl.inference.posterior._particles import Particles, Resampling, filtered, systematic
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.numbers import log_mean_exp, relative_weights

__all__ = ["AllWeightLostError", "Estimates", "ParticlePosterior"]


class Estimates(NamedTuple):
    """Estimates with their standard errors, of one shape; a standard error is NaN where there was one repeat."""

    mean: np.ndarray
    se: np.ndarray


class AllWeightLostError(ValueError):
    """At some step every particle had weight zero or NaN."""


class ParticlePosterior:
    r"""The posterior $\tilde p(x_0) \propto p(x_0)\, r(x_0)$ by particles, exact as their number grows (Section 2.5).

        posterior = ParticlePosterior(diffusion, NormalObservation(y, 0.5), num_particles=1000)
        posterior.run(rng_key)
        posterior.get_samples()["x"], posterior.log_evidence

    or with a NumPyro program whose only latent site is the diffusion's, everything downstream of which is r:

        posterior = ParticlePosterior(program, num_particles=1000)
        posterior.run(rng_key, y)

    Args:
        model: A `Diffusion`, or a NumPyro program with one site `numpyro.sample(name, diffusion.prior())`.
        r: With a `Diffusion`: a multiplier, a function log r(x) of one datum, or a function of `run`'s arguments that returns a
            multiplier.
        num_particles: N, per repeat.
        num_repeats: Independent filters. Their spread is the standard error of everything; one alone has none.
        along: How r continues along the chain, as in `multiply`.
        resampling: `(key, weights) -> indices`; `posterior.systematic` or `posterior.multinomial`.
        threshold: Resample where the effective sample size falls below this share of N.
        sharding: How particles are laid over devices, for their first axis.

    Raises:
        ValueError: fewer than one particle or repeat, a threshold outside [0, 1], r missing or given beside a program, or known
            coordinates along a chain that would hold them fixed at every t (they are known at 0 alone: use `forward` or
            `lookahead`).

    Warns:
        DoubtfulPosterior: `doubts` holds reasons to doubt the result of a run.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)  # of data that are N(0, I)
        >>> observation = inference.NormalObservation(jnp.ones(2), 1.0)
        >>> posterior = inference.ParticlePosterior(diffusion, observation, num_particles=100)
        >>> posterior.run(jax.random.key(0))
        >>> posterior.get_samples()["x"].shape, posterior.mean.mean.round(1)
        ((400, 2), array([0.5, 0.5]))
    """

    def __init__(
        self,
        model: Diffusion | Callable[..., Any],
        r: Multiplier | Callable[..., Any] | None = None,
        *,
        num_particles: int = 1000,
        num_repeats: int = 4,
        along: Along | str | Callable[[ArrayLike, Array], Array] = "lookahead",
        resampling: Resampling = systematic,
        threshold: float = 0.5,
        sharding: Sharding | None = None,
    ):
        if num_particles < 1 or num_repeats < 1:
            raise ValueError(
                f"num_particles and num_repeats must be at least 1; got {num_particles} and {num_repeats}."
            )
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must lie in [0, 1], a share of the particles; got {threshold:g}.")
        if isinstance(model, Diffusion) == (r is None):
            raise ValueError(
                "r must be given with a Diffusion, and left out with a program, whose observed sites are r."
            )
        self.model, self.r = model, r
        self.num_particles, self.num_repeats = num_particles, num_repeats
        self._along = as_along(along)
        self._filter: dict[str, Any] = {"resampling": resampling, "threshold": threshold, "sharding": sharding}
        self._site = "x"
        self._found: Site | None = None
        self._particles: Particles | None = None
        self._key: Array | None = None
        self._batch_shape: tuple[int, ...] = ()

    def run(self, rng_key: Array, *args: Any, **kwargs: Any) -> None:
        """Run the filters.

        Args:
            rng_key: Random key.
            args, kwargs: The program's arguments, or those of r where it is a function of them.

        Raises:
            AllWeightLostError: r is zero or NaN at every particle; the message says at which step.
            ValueError: a program this cannot infer, an r that does not suit the model, or anything traced by JAX, where
                `particle_filter` serves.
        """
        self._check(rng_key, args, kwargs)
        target = self._target(args, kwargs)
        keys = jax.random.split(rng_key, self.num_repeats)
        particles = _run(keys, target, self.num_particles, **self._filter)
        self._finish(rng_key, particles, ())

    def run_batch(self, rng_key: Array, *args: Any, batch_size: int | None = None, progress: bool = False) -> None:
        """Run the filters of many observations side by side; every result then has a leading axis of observations.

        Args:
            rng_key: Random key.
            args: Arguments as of `run`, each with a leading axis of observations.
            batch_size: How many to run at a time; by default all. Does not change the result.
            progress: Whether to show a bar.

        Raises:
            ValueError: no arguments, or leading axes that differ; else as `run`.
        """
        self._check(rng_key, args)
        if isinstance(self.model, Diffusion) and not callable(self.r):
            raise ValueError(
                f"r must be a function of run_batch's arguments that returns a multiplier; got one {type(self.r).__name__} for all "
                "observations. Use ParticlePosterior(diffusion, lambda y: NormalObservation(y, scale)), and pass a batch of y."
            )
        shapes = {keystr(path): jnp.shape(leaf) for path, leaf in tree_leaves_with_path(args)}
        sizes = {shape[:1] for shape in shapes.values()}
        if len(sizes) != 1 or sizes == {()}:
            got = ", ".join(f"args{place} of shape {shape}" for place, shape in shapes.items()) or "no arguments"
            raise ValueError(f"args must all have one leading axis, that of the observations; got {got}.")
        ((num,),) = sizes
        first = jax.tree.map(lambda leaf: leaf[0], args)
        target = self._target(first, {})  # what can be wrong is said of one, before any is run
        if self._found is not None and self._depends_on(first):
            raise ValueError(
                f"the diffusion of site {self._site!r} must be the same for all observations of a batch; it depends on run_batch's "
                "arguments. Call run for each."
            )
        keys = jax.random.split(rng_key, (num, self.num_repeats))
        size = num if batch_size is None else min(batch_size, num)
        parts = []
        with tqdm(desc="observations", total=num, disable=not progress) as bar:
            for start in range(0, num, size):
                # All batches have one length, and the last is filled up: one compiled program serves all.
                rows = np.minimum(np.arange(start, start + size), num - 1)
                chosen = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf)[rows], args)
                part = _run_batch(keys[rows], self._batch_of(target, chosen), self.num_particles, **self._filter)
                stop = min(size, num - start)
                parts.append(jax.tree.map(lambda leaf, stop=stop: np.asarray(leaf[:stop]), part))
                bar.update(stop)
        self._finish(rng_key, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), (num,))

    def get_samples(self, *, group_by_repeat: bool = False) -> dict[str, np.ndarray]:
        """Equally weighted draws, by resampling the particles with their weights; some occur more than once.

        Args:
            group_by_repeat: Keep each repeat's particles apart, by its own weights alone. Otherwise the repeats are pooled with
                their evidences as weights, which is what the filter's unbiasedness asks for.

        Returns:
            The site's name to draws of shape (*batch, num_repeats * num_particles, *event); grouped,
            (*batch, num_repeats, num_particles, *event).
        """
        particles, key = self._result(), self._key
        assert key is not None
        key = jax.random.fold_in(key, 1)
        weights = np.exp(self.log_weights if not group_by_repeat else np.asarray(particles.log_weights, np.float64))
        x = np.asarray(particles.x)
        lead = len(self._batch_shape) + (1 if group_by_repeat else 0)
        num_axes = len(self._batch_shape) + 2
        flat_x = x.reshape(-1, *_merged(x.shape[lead:num_axes]), *x.shape[num_axes:])
        flat_w = weights.reshape(-1, *_merged(weights.shape[lead:]))
        draws = np.empty_like(flat_x)
        for i, (row_x, row_w) in enumerate(zip(flat_x, flat_w, strict=True)):
            row_key = jax.random.fold_in(key, i)
            index = systematic(row_key, jnp.asarray(row_w / row_w.sum()))
            draws[i] = row_x[np.asarray(jax.random.permutation(jax.random.fold_in(row_key, 1), index))]
        return {self._site: draws.reshape(*x.shape[:lead], *draws.shape[1:])}

    @property
    def doubts(self) -> tuple[Any, ...]:
        """The verdict: reasons to doubt these numbers, `()` where nothing speaks against them; of a batch one tuple for each.

        No reason is no proof: a mode that no particle of any repeat came near leaves no trace. See `particle_verdict`."""
        found = self._doubts()
        return tuple(found) if self._batch_shape else found[0]

    @property
    def particles(self) -> Particles:
        """What the filters left, a leading axis (*batch, num_repeats) on everything."""
        return self._result()

    @property
    def log_weights(self) -> np.ndarray:
        """Normalized log weights of all particles of all repeats together, shape (*batch, num_repeats, num_particles)."""
        particles = self._result()
        evidence = np.asarray(particles.log_evidence, np.float64)
        evidence = evidence - logsumexp(evidence, axis=-1, keepdims=True)
        return np.asarray(particles.log_weights, np.float64) + evidence[..., None]

    @property
    def log_evidence(self) -> Estimates:
        r"""log Z, with its standard error over repeats (NaN for one), nats, shape (*batch,).

        The log of the mean of the repeats' estimates of Z, each unbiased: low in expectation by half its squared error."""
        logs = np.asarray(self._result().log_evidence, np.float64)
        num = logs.shape[-1]
        mean = np.asarray(log_mean_exp(logs, -1))
        spread = relative_weights(logs, -1).std(axis=-1, ddof=1) if num > 1 else np.full(mean.shape, np.nan)
        return Estimates(mean[()], (spread / math.sqrt(num))[()])

    @property
    def mean(self) -> Estimates:
        """Posterior mean of every coordinate, with its standard error over repeats (NaN for one); shape (*batch, *event)."""
        return self._moment(lambda x: x)

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation of every coordinate, shape (*batch, *event)."""
        mean, square = self.mean.mean, self._moment(np.square).mean
        return np.sqrt(np.maximum(square - np.square(mean), 0.0))

    def __repr__(self) -> str:
        return f"ParticlePosterior({self.num_particles} particles in {self.num_repeats} repeats)"

    def print_summary(self, *, prob: float = 0.9, max_rows: int = 20) -> None:
        """Print mean, its standard error, sd and a central interval of every coordinate, then how the filters fared.

        Args:
            prob: Mass of the interval.
            max_rows: Print the first so many coordinates.

        Raises:
            ValueError: a batch of observations, or prob outside (0, 1).
        """
        print(self._summary(prob, max_rows))

    def to_arviz(self) -> Any:
        """Draws of a particle posterior, and how its filters fared.

        Returns:
            `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on, with the groups

            - `posterior`: equally weighted draws under the site's name, dimensions (chain, draw, ...), one chain. The repeats are
              pooled by their evidences, so they are no chains, and r-hat means nothing here;
            - `particles`: `log_weight` (repeat, particle), `ess` and `num_ancestors` (repeat, time), `log_evidence` (repeat,), and
              `doubts`, a text, empty where nothing speaks against the numbers.

            Of a batch everything has a dimension `observation`, after (chain, draw) and before all others.
        """
        particles = self.particles
        ((site, draws),) = self.get_samples().items()
        lead = ("observation",) * (particles.log_evidence.ndim - 1)
        if lead:
            draws = np.moveaxis(draws, 0, 1)  # ArviZ has draws first
        names = tuple(f"{site}_dim_{i}" for i in range(draws.ndim - 1 - len(lead)))
        drawn = described(
            "draws from the posterior", f"by particles, {self.num_particles} in {self.num_repeats} repeats"
        )
        sample = {site: (("chain", "draw", *lead, *names), draws[None], drawn)}
        unbiased = "its exponential is unbiased for the evidence"
        by_repeat = {
            "log_weight": (
                ("repeat", "particle"),
                self.log_weights,
                described("normalized log weight", "all repeats", "nats"),
            ),
            "ess": (("repeat", "time"), particles.ess, described("effective sample size", "(sum w)^2 / sum w^2")),
            "num_ancestors": (
                ("repeat", "time"),
                particles.num_ancestors,
                described("particles at T with descendants", "exact"),
            ),
            "log_evidence": (("repeat",), particles.log_evidence, described("log Z of one repeat", unbiased, "nats")),
        }
        values = {name: ((*lead, *dims), np.asarray(value), attrs) for name, (dims, value, attrs) in by_repeat.items()}
        verdicts = self.doubts if lead else (self.doubts,)
        said = np.asarray(["; ".join(reasons) for reasons in verdicts])
        said_of = described("reasons to doubt these numbers", "a verdict; no reason is no proof")
        values["doubts"] = (lead, said.reshape(np.shape(particles.log_evidence)[:-1]), said_of)
        return container({"posterior": dataset(sample), "particles": dataset(values)})

    @property
    def site(self) -> str:
        """Name of the diffusion's site: the program's own, else `x`."""
        return self._site

    def _summary(self, prob: float, max_rows: int) -> str:
        particles = self.particles
        if particles.log_evidence.ndim != 1:
            raise ValueError(
                "print_summary takes the posterior of one observation; got a batch. Read mean, sd and log_evidence."
            )
        if not 0.0 < prob < 1.0:
            raise ValueError(f"prob must lie in (0, 1); got {prob:g}.")
        ((site, draws),) = self.get_samples().items()
        mean, error, sd = self.mean.mean, self.mean.se, self.sd
        tails = (1.0 - prob) / 2.0
        low, high = np.quantile(draws, [tails, 1.0 - tails], axis=0)
        bounds = [f"{100.0 * tails:.1f}%", f"{100.0 * (1.0 - tails):.1f}%"]
        lines = [f"{'':>12} {'mean':>9} {'se':>9} {'sd':>9} {bounds[0]:>9} {bounds[1]:>9}"]
        indices = list(np.ndindex(mean.shape))
        for index in indices[:max_rows]:
            name = f"{site}[{','.join(map(str, index))}]" if index else site
            numbers = (mean[index], error[index], sd[index], low[index], high[index])
            lines.append(f"{name:>12} " + " ".join(f"{number:9.3f}" for number in numbers))
        if len(indices) > max_rows:
            lines.append(f"{'...':>12} {len(indices) - max_rows} more coordinates")
        evidence = self.log_evidence
        lines += [
            "",
            f"log evidence {float(evidence.mean):.3f} ± {float(evidence.se):.3f} nats",
            f"{self.num_repeats} x {self.num_particles} particles; effective sample size at least "
            f"{float(particles.ess.min()):.1f} on the way, {float(particles.ess[:, 0].min()):.1f} at t = 0",
            f"ancestors at t = T: at least {int(particles.num_ancestors[:, 0].min())} per repeat",
            "; ".join(["doubtful"] * bool(self.doubts) + list(self.doubts)) or "nothing speaks against these numbers",
        ]
        return "\n".join(lines)

    def _moment(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimates:
        particles = self._result()
        axis = len(self._batch_shape)
        x = function(np.asarray(particles.x, np.float64))
        spread = (1,) * (x.ndim - axis - 2)
        own = np.exp(np.asarray(particles.log_weights, np.float64)).reshape(*x.shape[: axis + 2], *spread)
        by_repeat = np.sum(own * x, axis=axis + 1)
        share = np.exp(logsumexp(self.log_weights, axis=-1)).reshape(*x.shape[: axis + 1], *spread)
        mean = np.sum(share * by_repeat, axis=axis)
        num = self.num_repeats
        if num == 1:
            return Estimates(mean, np.full(mean.shape, np.nan))
        # A ratio of sums over repeats: the delta method.
        error = np.square(share * (by_repeat - np.expand_dims(mean, axis)))
        return Estimates(mean, np.sqrt(np.sum(error, axis=axis) * num / (num - 1)))

    def _check(self, rng_key: Any, *values: Any) -> None:
        check_concrete(
            "ParticlePosterior",
            "inference.posterior.particle_filter on inference.multiply(diffusion, r)",
            rng_key,
            self.model,
            *values,
        )
        check_key(rng_key)

    def _target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> MultipliedDiffusion:
        if isinstance(self.model, Diffusion):
            diffusion, r = self.model, self.r
            if (args or kwargs) and not callable(r):
                raise ValueError("run takes no arguments where r is a Multiplier; make r a function of them.")
            product = as_multiplier(r(*args, **kwargs) if callable(r) and (args or kwargs) else r)
        else:
            self._found = diffusion_site(self.model, args, kwargs)
            self._site, diffusion = self._found.name, self._found.diffusion
            r = Downstream(self.model, self._site, args, kwargs, self._found.roles.apart)
            return multiply(diffusion, r, self._guide(r, self._found), along=self._along)
        _check_support(product, self._along)
        return multiply(diffusion, product, along=self._along)

    def _guide(self, r: Downstream, found: Site) -> Product:
        tied = self._along.ties_rows
        return guide(r, found.roles, found.diffusion.event_shape, rows=tied)

    def _batch_of(self, target: MultipliedDiffusion, args: tuple[Any, ...]) -> MultipliedDiffusion:
        """The targets of a batch of observations, as one with a leading axis on the arrays of what multiplies it."""
        model, found = self.model, self._found

        def one(*args: Any) -> tuple[Product, Product]:
            if isinstance(model, Diffusion):
                assert callable(self.r)
                own = multiply(model, as_multiplier(self.r(*args)), along=self._along)
            else:
                assert found is not None
                r = Downstream(model, found.name, args, {}, found.roles.apart)
                own = multiply(found.diffusion, r, self._guide(r, found), along=self._along)
            return own.r, own.guide

        return eqx.tree_at(_multiplied, target, eqx.filter_vmap(one)(*args))

    def _depends_on(self, args: tuple[Any, ...]) -> bool:
        """Whether the program's diffusion depends on its arguments, by the program's arithmetic."""
        model, site = self.model, self._site
        assert not isinstance(model, Diffusion)

        def draw(args: tuple[Any, ...]) -> Array:
            prior = prior_of(handlers.trace(handlers.seed(model, 0)).get_trace(*args)[site]["fn"])
            assert prior is not None
            return prior.sample(jax.random.key(0))

        return bool(eval_provenance(draw, args=args))

    def _finish(self, rng_key: Array, particles: Particles, batch_shape: tuple[int, ...]) -> None:
        self._check(rng_key, particles)  # what a program holds may be traced too
        particles = jax.tree.map(np.asarray, particles)
        lost = ~np.isfinite(particles.log_evidence_steps)
        # Lost at t means lost at every earlier time of the chain too: the first loss is at the largest t.
        if lost.any():
            per_run = lost.reshape(-1, lost.shape[-1])
            run = int(np.argmax(per_run.any(axis=-1)))
            t = int(np.flatnonzero(per_run[run])[-1])
            everywhere = (
                "" if per_run.any(axis=-1).all() else f" in {int(per_run.any(axis=-1).sum())} of {len(per_run)} runs"
            )
            raise AllWeightLostError(
                f"all weight was lost at t = {t}{everywhere}: r is zero or NaN at every one of {self.num_particles} particles. "
                "Use more particles, a wider r (a larger noise scale), along='lookahead', or look for NaN in log r."
            )
        source = self.model if isinstance(self.model, Diffusion) else self._found
        assert source is not None
        diffusion = source if isinstance(source, Diffusion) else source.diffusion
        particles = particles._replace(x=diffusion.to_data(particles.x))  # in float64, and not under jit
        self._key, self._particles, self._batch_shape = rng_key, particles, batch_shape
        doubtful = [reasons for reasons in self._doubts() if reasons]
        if doubtful:
            where = (
                "" if not batch_shape else f" (in {len(doubtful)} of {math.prod(batch_shape)} posteriors; the first)"
            )
            warnings.warn(
                f"doubt this posterior{where}: {'; '.join(doubtful[0])}. Use more particles or repeats, or another `along`.",
                DoubtfulPosterior,
                stacklevel=3,
            )

    def _doubts(self) -> list[tuple[str, ...]]:
        """The doubts of every posterior of a batch, in a flat list; of one posterior a list of one."""
        particles, lead = self._result(), len(self._batch_shape)
        flat = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *np.shape(leaf)[lead:]), particles)
        return [doubts(jax.tree.map(lambda leaf, i=i: leaf[i], flat)) for i in range(math.prod(self._batch_shape))]

    def _result(self) -> Particles:
        if self._particles is None:
            raise RuntimeError("there is no posterior yet: call run(rng_key, ...) first.")
        return self._particles


@eqx.filter_jit
def _run(keys: Array, target: MultipliedDiffusion, num_particles: int, **options: Any) -> Particles:
    return jax.vmap(lambda key: filtered(key, target, num_particles, **options))(keys)


@eqx.filter_jit
def _run_batch(keys: Array, targets: MultipliedDiffusion, num_particles: int, **options: Any) -> Particles:
    def one(keys: Array, own: tuple[Product, Product]) -> Particles:
        target = eqx.tree_at(_multiplied, targets, own)
        return jax.vmap(lambda key: filtered(key, target, num_particles, **options))(keys)

    return eqx.filter_vmap(one)(keys, _multiplied(targets))


def _multiplied(target: MultipliedDiffusion) -> tuple[Product, Product]:
    return target.r, target.guide


def _check_support(r: Product, along: Along) -> None:
    if along.holds_known and any(isinstance(factor, Known) for factor in r.factors):
        raise ValueError(
            f"known coordinates with along={type(along).__name__.lower()!r} would be held at their values at every t, while the "
            "model only has them so at t = 0: no weight repairs that. Use along='forward' or 'lookahead', or `multiply` for the "
            "paper's approximate inpainting."
        )


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (math.prod(shape),)
