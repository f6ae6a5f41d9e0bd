r"""Particle Gibbs: a diffusion prior's site as one block of numpyro's Gibbs, beside NUTS for the rest.

    def denoise(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    kernel = Gibbs([(PathGibbs(denoise), ["x"]), (NUTS(denoise), None)])
    MCMC(kernel, num_warmup=500, num_samples=1000, num_chains=2).run(rng_key, y)

The block's state is a whole trajectory: the site is $x_0$, and $x_1..x_T$ go with it. Given the other latents a sweep moves it by
`conditional_filter` over all of it, and then at a random s: $x_{s+1..T}$ given $x_s$ by `conditional_importance`, and
$x_{0..s-1}$ given $x_s$ by the filter again. Together with the other blocks this leaves the joint posterior of all latents
invariant, **exactly**, for any number of particles from 2 on; more particles mix faster. No density of $x_0$ is needed.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.infer.mcmc import MCMCKernel

from nedm_ppl._compat import Tracer
from nedm_ppl.inference.composition._composition import Composition, compose, gibbs_interface, is_several, target_of
from nedm_ppl.inference.posterior._along import as_along
from nedm_ppl.inference.posterior._conditional_filter import conditional_filter, conditional_importance
from nedm_ppl.inference.posterior._multiplied import Along
from nedm_ppl.inference.posterior._multiplier import Multiplier

__all__ = ["PathGibbs", "PathGibbsState"]

NUM_TRIES = 64  # draws of the prior that are looked at before a program is called contradictory


class PathGibbsState(NamedTuple):
    """A trajectory, as one block of a Gibbs state.

    Attributes:
        z: The site's value, $x_0$, shape (*batch, *event).
        path: $x_1..x_T$, times ascending, shape (T, *batch, *event).
        moved: Whether the last sweep changed the state at t = 0..T, shape (T + 1,); in a plate, the share of draws it changed.
        rng_key: Key of the next sweep.
    """

    z: dict[str, Array]
    path: Array
    moved: Array
    rng_key: Array


class PathGibbs(MCMCKernel):
    """A block kernel of `numpyro.infer.Gibbs` for one site drawn from `diffusion.prior()`; alone, where it is the only latent.

    Only sites whose density depends on the diffusion's are evaluated, given the other blocks' values, and nothing that depends on
    those is kept between sweeps. In plates that everything downstream shares, every draw has its own filter. `init_params`
    may give the site's first value.

    Args:
        model: The NumPyro program, the one callable of all blocks.
        num_particles: N of every filter, and trajectories of every importance resampling; at least 2.
        along: How r continues along the chain, as in `multiply`: it decides how fast the chain mixes, not what it samples.

    Raises:
        ValueError: fewer than two particles. When MCMC starts: a block that is not one diffusion site, a prior that depends on
            other latents, a site in a subsampled plate, or a program that gives probability zero to all of many draws.
        ImportError: numpyro older than 0.22.

    Examples:
        >>> import jax, jax.numpy as jnp, numpyro
        >>> import numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> from numpyro.infer.gibbs import Gibbs
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(5))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> def program(y):
        ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        ...     x = numpyro.sample("x", diffusion.prior())
        ...     numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)
        >>> kernel = Gibbs([(inference.PathGibbs(program), ["x"]), (NUTS(program), None)])
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
        num_particles: int = 16,
        along: Along | str | Callable[[ArrayLike, Array], Array] = "lookahead",
    ):
        gibbs_interface("PathGibbs")
        if num_particles < 2:
            raise ValueError(
                f"num_particles must be at least 2, of which one is the trajectory of before; got {num_particles}."
            )
        self._model, self.num_particles = model, num_particles
        self._along = as_along(along)
        self._found: Composition | None = None

    @property
    def model(self) -> Callable[..., Any]:
        """The program."""
        return self._model

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any, model_args: tuple[Any, ...], model_kwargs: Any
    ) -> PathGibbsState:
        """The site's first value, from `init_params` or the prior, and the rest of its trajectory from the forward chain."""
        if is_several(rng_key):
            one = partial(self.init, num_warmup=num_warmup, model_args=model_args, model_kwargs=model_kwargs)
            return jax.vmap(lambda key, first: one(key, init_params=first))(rng_key, init_params)
        gibbs = gibbs_interface("PathGibbs")
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        given = kwargs.pop(gibbs.GIBBS_SITES_KWARG, {})
        self._found = compose(
            self._model, model_args, kwargs, given=frozenset(given), prior_may_depend=False, kernel="PathGibbs"
        )
        name, shape = self._found.name, (*self._found.batch_shape, *self._found.event_shape)
        key_x0, key_path, key_tries, rng_key = jax.random.split(rng_key, 4)
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        target = target_of(self._model, self._found._replace(plates=()), model_args, kwargs, self._along)
        first = jnp.asarray(init_params[name]) if init_params else None
        if first is not None and first.shape != shape:
            raise ValueError(f"init_params must give site {name!r} shape {shape}; got {first.shape}.")

        @jax.jit  # once, in place of an operation at a time
        def start(first: Array | None) -> tuple[Array, Array, Array]:
            x0 = jnp.asarray(target.diffusion.sample(key_x0) if first is None else first, float)
            u0 = jnp.asarray(target.diffusion.to_chain(x0))
            return x0, target.diffusion.process.forward(u0).sample(key_path).astype(u0.dtype), target.r.log_r(u0)

        x0, path, log_r = start(first)
        _check_possible(target.r, log_r, lambda: target.diffusion.with_units(None).sample(key_tries, (NUM_TRIES,)))
        return PathGibbsState({name: x0}, path, jnp.zeros(target.num_steps + 1), rng_key)

    def sample(self, state: PathGibbsState, model_args: tuple[Any, ...], model_kwargs: Any) -> PathGibbsState:
        """One sweep over the trajectory, given the other blocks' values."""
        if is_several(state.rng_key):
            return jax.vmap(lambda state: self.sample(state, model_args, model_kwargs))(state)
        found = self._found
        assert found is not None, "init must be called before sample"
        key, rng_key = jax.random.split(state.rng_key)
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        x0, units = state.z[found.name], found.units
        before = jnp.concatenate([x0[None] if units is None else jnp.asarray(units.to_chain(x0))[None], state.path])
        key_s, key_sweep = jax.random.split(key)
        # The whole trajectory, then at a random s: the same s for all draws of a plate, so that no lane waits for another.
        starts = jnp.stack([jnp.asarray(len(before)), jax.random.randint(key_s, (), 0, len(before))])

        def sweep(member: Array | None, key: Array, path: Array) -> Array:
            target = target_of(self._model, found, model_args, kwargs, self._along, member)

            def move(path: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
                (key_later, key_earlier), start = jax.random.split(step[0]), step[1]
                path = conditional_importance(key_later, target.diffusion, path, self.num_particles, start=start)
                return conditional_filter(key_earlier, target, path, self.num_particles, start=start), None

            return jax.lax.scan(move, path, (jax.random.split(key, len(starts)), starts))[0]

        num = found.num_members
        if num is None:
            after = sweep(None, key_sweep, before)
            moved = jnp.any(after != before, axis=tuple(range(1, before.ndim))).astype(float)
        else:
            keys = jax.random.split(key_sweep, num)
            by_member = before.reshape(len(before), num, *found.event_shape)
            after = jax.vmap(sweep, (0, 0, 1), 1)(jnp.arange(num), keys, by_member)
            moved = jnp.mean(jnp.any(after != by_member, axis=tuple(range(2, after.ndim))), axis=1)
        after = after.reshape(before.shape)
        # In units, what did not move is not rounded there and back.
        x0 = after[0] if units is None else jnp.where(after[0] == before[0], x0, jnp.asarray(units.to_data(after[0])))
        return PathGibbsState({found.name: x0}, after[1:], moved, rng_key)

    def refresh(self, state: PathGibbsState, model_args: tuple[Any, ...], model_kwargs: Any) -> PathGibbsState:
        """Identity: nothing in the state depends on the other blocks."""
        return state

    def wrap_model(self, wrapper: Callable[..., Any]) -> "PathGibbs":
        """A copy for the wrapped program."""
        kernel = copy.copy(self)
        kernel._model, kernel._found = wrapper(self._model), None
        return kernel

    def get_constrain_fn(self, model_args: tuple[Any, ...], model_kwargs: Any) -> Callable[[Any], Any]:
        """Identity: the site's value is as the program has it."""
        return lambda z: z

    def get_diagnostics_str(self, state: PathGibbsState) -> str:
        """Which share of the trajectory the last sweep changed."""
        return f"{float(np.mean(np.asarray(state.moved))):.2f} of the path moved"


def _check_possible(r: Multiplier, first: Array, draws: Callable[[], Array]) -> None:
    """Refuse a program that is zero at its first value and wherever else it is looked at; a traced one cannot be looked at."""
    if isinstance(first, Tracer) or np.isfinite(first):
        return
    if not np.any(np.isfinite(jax.vmap(r.log_r)(draws()))):
        raise ValueError(
            f"the observed sites have probability zero, or NaN, at the first value and at all of {NUM_TRIES} draws of the prior: "
            "observations and conditions contradict one another, or a first value that is possible must be given by init_params."
        )
