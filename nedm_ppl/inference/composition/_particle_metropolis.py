r"""Particle marginal Metropolis-Hastings: other latents beside a diffusion prior's site, by a random walk on them alone.

With $\theta$ the other latents and $\hat Z(\theta)$ the particle filter's unbiased estimate of
$Z(\theta) = \int p(x_0 | \theta)\, r(x_0, \theta)\, dx_0$, a proposal $\theta'$ is accepted with probability

$$\min\left(1, \frac{p(\theta')\, \hat Z(\theta')}{p(\theta)\, \hat Z(\theta)}\right),$$

where $\hat Z(\theta)$ is the number that $\theta$ was accepted with, kept and never estimated anew. One particle drawn by weight
goes with it. The chain leaves the joint posterior of $\theta$ and $x_0$ invariant, **exactly**, for any number of particles; it
moves where the standard deviation of $\log \hat Z$ is about 1. Source: Andrieu, Doucet, Holenstein, Particle Markov Chain Monte
Carlo, 2010.

Since $p(x_0 | \theta)$ enters through particles only, the prior's parameters may depend on $\theta$ here, as in particle Gibbs they
may not.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.mcmc import MCMCKernel

from nedm_ppl._compat import Tracer, init_to_sample
from nedm_ppl.inference.composition._composition import Composition, compose, is_several, target_of
from nedm_ppl.inference.posterior._along import as_along
from nedm_ppl.inference.posterior._downstream import log_density
from nedm_ppl.inference.posterior._multiplied import Along
from nedm_ppl.inference.posterior._particles import particle_filter

__all__ = ["ParticleMetropolis", "ParticleMetropolisState"]


class Adaptation(NamedTuple):
    """What warm-up learns of the random walk.

    Attributes:
        log_step: Log of the step, a multiple of the posterior's spread.
        mean, cov: Of the unconstrained other latents so far, shapes (dim,) and (dim, dim).
    """

    log_step: Array
    mean: Array
    cov: Array


class ParticleMetropolisState(NamedTuple):
    """A state of the chain.

    Attributes:
        i: Number of steps taken.
        z: The other latents, unconstrained, and the diffusion's site.
        log_density: log of $p(\\theta)\\, \\hat Z(\\theta)$ as it was accepted, by unconstrained $\\theta$; nats.
        accept_prob: Acceptance probability of the last proposal.
        mean_accept_prob: Its mean since the start, or since the end of warm-up.
        adapt_state: What warm-up has learnt.
        rng_key: Key of the next step.
    """

    i: Array
    z: dict[str, Array]
    log_density: Array
    accept_prob: Array
    mean_accept_prob: Array
    adapt_state: Adaptation
    rng_key: Array


class ParticleMetropolis(MCMCKernel):
    """A kernel for numpyro's `MCMC` of a program with one diffusion site and other, continuous latents.

    Warm-up adapts the random walk's covariance to the chain's own and its step to the acceptance probability; then both are fixed.
    It cannot be a block of `Gibbs`: the accepted evidence holds for one value of all other latents.

    Args:
        model: The NumPyro program; the prior's parameters may depend on the other latents.
        num_particles: N of the filter; in a plate that everything downstream shares, of the filter of every draw.
        along: How r continues along the chain, as in `multiply`.
        step_size: First step of the random walk, as a multiple of 2.4 / sqrt(dim) standard deviations.
        target_accept_prob: What warm-up aims at.

    Raises:
        ValueError: no particle, a step or a target that is not positive. When MCMC starts: no diffusion site or several, no other
            latents, discrete ones, a site in a subsampled plate, or no start of positive density.

    Examples:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> import numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> def program(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     x = numpyro.sample("x", diffusion.prior())
        ...     numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)
        >>> kernel = inference.ParticleMetropolis(program, num_particles=10)
        >>> mcmc = MCMC(kernel, num_warmup=5, num_samples=5, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.ones(2))
        >>> mcmc.get_samples()["x"].shape
        (5, 2)
    """

    sample_field = "z"

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_particles: int = 100,
        along: Along | str | Callable[[ArrayLike, Array], Array] = "lookahead",
        step_size: float = 1.0,
        target_accept_prob: float = 0.25,
    ):
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1; got {num_particles}.")
        if not step_size > 0.0 or not 0.0 < target_accept_prob < 1.0:
            raise ValueError(
                "step_size must be positive and target_accept_prob lie in (0, 1); got "
                f"{step_size:g} and {target_accept_prob:g}."
            )
        self._model, self.num_particles = model, num_particles
        self.step_size, self.target_accept_prob = step_size, target_accept_prob
        self._along = as_along(along)
        self._found: Composition | None = None
        self._num_warmup = 0

    @property
    def model(self) -> Callable[..., Any]:
        """The program."""
        return self._model

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any, model_args: tuple[Any, ...], model_kwargs: Any
    ) -> ParticleMetropolisState:
        """The first other latents, from `init_params` (unconstrained) or the prior, with their evidence."""
        if is_several(rng_key):
            one = partial(self.init, num_warmup=num_warmup, model_args=model_args, model_kwargs=model_kwargs)
            return jax.vmap(lambda key, first: one(key, init_params=first))(rng_key, init_params)
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        found = compose(
            self._model,
            model_args,
            kwargs,
            given=frozenset(),
            prior_may_depend=True,
            kernel="ParticleMetropolis",
        )
        self._found, self._num_warmup = found, num_warmup
        key_start, key_filter, rng_key = jax.random.split(rng_key, 3)
        drawn = handlers.substitute(handlers.seed(self._model, key_start), substitute_fn=init_to_sample)
        trace = handlers.trace(drawn).get_trace(*model_args, **kwargs)
        _check_others(found, trace)
        others = {name: biject_to(trace[name]["fn"].support).inv(trace[name]["value"]) for name in found.others}
        others |= {name: jnp.asarray(value) for name, value in (init_params or {}).items() if name in others}
        estimate = jax.jit(lambda key, others: self._estimate(key, others, model_args, kwargs))
        x, log_density = estimate(key_filter, others)
        if not isinstance(log_density, Tracer) and not jnp.isfinite(log_density):
            raise ValueError(
                f"the first values of {', '.join(found.others)} have density zero, or NaN, with every one of {self.num_particles} "
                "particles. Give others by init_params (unconstrained), or use more particles."
            )
        flat, _ = ravel_pytree(others)
        adaptation = Adaptation(jnp.log(jnp.asarray(self.step_size, flat.dtype)), flat, jnp.eye(flat.size))
        zero = jnp.zeros(())
        z = {**others, found.name: x}
        return ParticleMetropolisState(jnp.zeros((), int), z, log_density, zero, zero, adaptation, rng_key)

    def sample(
        self, state: ParticleMetropolisState, model_args: tuple[Any, ...], model_kwargs: Any
    ) -> ParticleMetropolisState:
        """One proposal of all other latents together."""
        if is_several(state.rng_key):
            return jax.vmap(lambda state: self.sample(state, model_args, model_kwargs))(state)
        found = self._found
        assert found is not None, "init must be called before sample"
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        key_move, key_filter, key_accept, rng_key = jax.random.split(state.rng_key, 4)
        others = {name: state.z[name] for name in found.others}
        flat, unravel = ravel_pytree(others)
        step = jnp.exp(state.adapt_state.log_step) * 2.4 / math.sqrt(flat.size)
        noise = jnp.linalg.cholesky(state.adapt_state.cov) @ jax.random.normal(key_move, flat.shape, flat.dtype)
        proposed = unravel(flat + step * noise)
        x, log_density = self._estimate(key_filter, proposed, model_args, kwargs)
        log_ratio = jnp.where(jnp.isnan(log_density), -jnp.inf, log_density - state.log_density)
        accept_prob = jnp.exp(jnp.minimum(log_ratio, 0.0))
        accepted = jax.random.uniform(key_accept) < accept_prob
        new = {**proposed, found.name: x}
        z = {name: jnp.where(accepted, new[name], state.z[name]) for name in state.z}
        i = state.i + 1
        count = jnp.where(i > self._num_warmup, i - self._num_warmup, i)
        adaptation = self._adapted(state.adapt_state, i, accept_prob, ravel_pytree({n: z[n] for n in others})[0])
        return ParticleMetropolisState(
            i,
            z,
            jnp.where(accepted, log_density, state.log_density),
            accept_prob,
            state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / count,
            adaptation,
            rng_key,
        )

    def postprocess_fn(self, model_args: tuple[Any, ...], model_kwargs: Any) -> Callable[[Any], Any]:
        """The latents as the program has them, with its deterministic sites."""
        kwargs = {} if model_kwargs is None else dict(model_kwargs)

        def constrain(z: dict[str, Array]) -> dict[str, Array]:
            assert self._found is not None
            name = self._found.name
            others = {other: z[other] for other in self._found.others}
            trace, _ = self._constrained(others, z[name], model_args, kwargs)
            wanted = {n: s["value"] for n, s in trace.items() if n in others or s["type"] == "deterministic"}
            return {**wanted, name: z[name]}

        return constrain

    def get_diagnostics_str(self, state: ParticleMetropolisState) -> str:
        """Step and acceptance probability."""
        step = math.exp(float(np.mean(np.asarray(state.adapt_state.log_step))))
        return f"step size {step:.2e}. acc. prob={float(np.mean(np.asarray(state.mean_accept_prob))):.2f}"

    def _estimate(
        self, key: Array, others: dict[str, Array], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Array, Array]:
        r"""A draw of $x_0$ by weight, and log of $p(\theta)\, \hat Z(\theta)$ by unconstrained $\theta$."""
        found = self._found
        assert found is not None
        anything = jnp.zeros((*found.batch_shape, *found.event_shape))
        trace, log_det = self._constrained(others, anything, args, kwargs)
        program = handlers.condition(self._model, {name: trace[name]["value"] for name in others})
        apart = sum((jnp.sum(log_density(trace[name])) for name in found.roles.apart), log_det)

        def filtered(member: Array | None, key: Array) -> tuple[Array, Array]:
            target = target_of(program, found, args, kwargs, self._along, member)
            key_filter, key_choose = jax.random.split(key)
            particles = particle_filter(key_filter, target, self.num_particles)
            index = jax.random.categorical(key_choose, particles.log_weights)
            return particles.x[index], particles.log_evidence

        num = found.num_members
        if num is None:
            x, log_evidence = filtered(None, key)
        else:
            x, log_evidence = jax.vmap(filtered)(jnp.arange(num), jax.random.split(key, num))
        return x.reshape(anything.shape).astype(anything.dtype), jnp.sum(log_evidence) + apart

    def _constrained(
        self, others: dict[str, Array], x: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], Array]:
        """The program's trace at unconstrained values, and the log determinant of constraining them."""
        assert self._found is not None
        log_dets = [jnp.zeros(())]

        def constrain(site: dict[str, Any]) -> Array | None:
            if site["type"] != "sample" or site["name"] not in others:
                return None
            transform, value = biject_to(site["fn"].support), others[site["name"]]
            constrained = transform(value)
            log_dets.append(jnp.sum(transform.log_abs_det_jacobian(value, constrained)))
            return constrained

        given = handlers.condition(handlers.seed(self._model, 0), {self._found.name: x})
        trace = handlers.trace(handlers.substitute(given, substitute_fn=constrain)).get_trace(*args, **kwargs)
        return trace, sum(log_dets, jnp.zeros(()))

    def _adapted(self, adaptation: Adaptation, i: Array, accept_prob: Array, flat: Array) -> Adaptation:
        rate = 1.0 / (i + 1.0)
        log_step = adaptation.log_step + jnp.power(i.astype(flat.dtype), -0.6) * (accept_prob - self.target_accept_prob)
        residual = flat - adaptation.mean
        mean = adaptation.mean + rate * residual
        # Twenty steps' worth of the first guess, lest the first few steps make it singular.
        rate = 1.0 / (i + 20.0)
        cov = (1.0 - rate) * adaptation.cov + rate * jnp.outer(residual, residual)
        new = Adaptation(log_step, mean, cov)
        return jax.tree.map(lambda a, b: jnp.where(i <= self._num_warmup, a, b), new, adaptation)


def _check_others(found: Composition, trace: dict[str, Any]) -> None:
    if not found.others:
        raise ValueError(
            f"the program must have latents beside the diffusion {found.name!r}; it has none. Use "
            "ParticlePosterior, which needs no chain."
        )
    discrete = [name for name in found.others if trace[name]["fn"].support.is_discrete]
    if discrete:
        raise ValueError(
            f"ParticleMetropolis walks over continuous latents; got the discrete {', '.join(discrete)}. Use "
            "Gibbs([(PathGibbs(model), ['x']), (DiscreteGibbs(model), [...]), (NUTS(model), None)])."
        )
