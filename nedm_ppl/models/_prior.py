r"""A trained diffusion as one site of a larger NumPyro program.

$$x \sim p(x_0), \qquad p(x_0) = \int \pi(x_T) \prod_t p(x_{t-1} | x_t)\, dx_{1..T}.$$

Sampling is exact. The density is an integral over trajectories that no inference algorithm here needs and none can have in closed
form, so it is left out of the program: `log_prob` is zero, which scores everything *else* in the program right. A derivative of it
would be silently wrong, and raises instead: with respect to the value, and to arrays of the model that depend on other latents.
What may be done with such a site, the particle methods of `nedm_ppl.inference` do; they find it by its type.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

from nedm_ppl._compat import density_asked_by
from nedm_ppl.arguments import Shape, as_shape, check_key
from nedm_ppl.models._model import Model
from nedm_ppl.models._units import in_units
from nedm_ppl.models.chain._captured import combine, partition
from nedm_ppl.models.chain._mapped import Mapped, check_expansion

__all__ = ["DiffusionPrior", "NoDensityWarning"]

USE = (
    "use inference.ParticlePosterior where it is the only latent, beside others inference.PathGibbs in a block of numpyro's Gibbs, "
    "or inference.ParticleMetropolis"
)
NO_GRADIENT = (
    "diffusion.prior() has no density to differentiate, so NUTS, HMC and SVI can move neither its site nor what its model depends "
    f"on; {USE}"
)
FLAT = f"diffusion.prior() has no density, and what scores its latent site takes the zero in its place for a flat prior; {USE}"
FLOW = ", or diffusion.flow(), whose density has gradients."
SILENT = ("nedm_ppl.", "numpyro.infer.inspect")  # ours, and what only looks at which site depends on which
_warned = False


class NoDensityWarning(UserWarning):
    """A sampler, or a function of densities, takes the zero of a diffusion prior for its density; said once in a process."""


class DiffusionPrior(Mapped):
    r"""The marginal $p(x_0)$ of a diffusion, as `diffusion.prior()` makes it; event shape that of one datum.

    `sample` is exact. `log_prob` is 0 for every value: **not** the log density, which `inference.marginal_log_likelihood`
    estimates. So `numpyro.infer.util.log_density` of a program with such a site is the log density of its other sites given this
    one. Whatever takes densities without derivatives would sample the site, or what its model depends on, as if the prior were
    flat: SA, the ensemble kernels AIES and ESS, importance sampling, an ELBO by score functions. Where the site is latent there, a
    `NoDensityWarning` says so.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static",)
    has_rsample = False
    has_enumerate_support = False

    def __init__(self, diffusion: Model, *, batch_shape: tuple[int, ...] = (), validate_args: bool | None = None):
        # Values that plain functions in the model hold are arrays of it too, so that a dependence on them is noticed.
        self._arrays, self._static = partition(diffusion)
        super().__init__(batch_shape=batch_shape, event_shape=diffusion.event_shape, validate_args=validate_args)
        self.count_axes()

    @property
    def diffusion(self) -> Any:
        """The `Diffusion` whose $x_0$ this is; a ValueError where `jax.vmap` returned several."""
        self.check_one("prior")
        return combine(self._arrays, self._static)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        if self.mapped_shape:
            return jax.tree.map(lambda leaf: leaf[0], self).support
        return _support(self.diffusion, (*self.batch_shape, *self.event_shape))

    def __repr__(self) -> str:
        return f"DiffusionPrior(batch shape {self.batch_shape}, event shape {self.event_shape})"

    @property
    def is_discrete(self) -> bool:
        return self.support.is_discrete

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Ancestral samples, exact, shape (*sample_shape, *batch, *event)."""
        check_key(key, "key")
        sample_shape = as_shape("sample_shape", sample_shape)
        if self.mapped_shape:
            return self.draw_each(lambda prior, key: prior.sample(key, sample_shape), key, sample_shape)
        return jnp.asarray(self.diffusion.sample(key, (*sample_shape, *self.batch_shape)))

    def log_prob(self, value: ArrayLike) -> Array:
        """Zero: the site's density is left out of the program. Its derivative raises a NotImplementedError.

        Raises:
            ValueError: a value whose trailing shape is not one datum's, or whose batch axes do not broadcast with the site's.
        """
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(self._batch_of(value), self.batch_shape)
        # Given the value and the model, so that a derivative with respect to either is noticed.
        seen = value, eqx.filter(self._arrays, eqx.is_inexact_array)
        return _no_density(shape, "." if self.is_discrete else FLOW, _is_taken_for_flat(*density_asked_by()))(seen)

    def expand(self, batch_shape: tuple[int, ...]) -> Distribution:
        """Independent data over a larger batch shape.

        Raises:
            ValueError: a shape that the site's own does not broadcast to.
        """
        batch_shape = check_expansion(self.batch_shape, batch_shape)
        if self.mapped_shape:
            return super().expand(batch_shape)
        return DiffusionPrior(self.diffusion, batch_shape=batch_shape)

    def _batch_of(self, value: Array) -> tuple[int, ...]:
        """The batch axes of a value; a ValueError of one sentence where it is none of this site's."""
        cut = value.ndim - self.event_dim
        if cut >= 0 and value.shape[cut:] == self.event_shape:
            try:
                jnp.broadcast_shapes(value.shape[:cut], self.batch_shape)
            except ValueError:
                pass
            else:
                return value.shape[:cut]
        raise ValueError(
            f"value must have shape {(*self.batch_shape, *self.event_shape)}, with any batch axes that broadcast before the event "
            f"shape {self.event_shape}; got shape {value.shape}. Reshape the data, or expand the site by a plate."
        )


@eqx.filter_jit
def _support(diffusion: Model, shape: tuple[int, ...]) -> constraints.Constraint:
    """Of the first step; compiled, what of the network it does not depend on is not evaluated."""
    return in_units(diffusion.first_kernel(jnp.zeros(shape)), diffusion.units).support


def _no_density(shape: tuple[int, ...], or_flow: str, warn: bool) -> Callable[[Any], Array]:
    """Zeros of a shape, whatever the argument, with a warning; differentiating them raises in its place."""

    def zero(argument: Any) -> Array:
        if warn:
            _warn(FLAT + or_flow)
        return jnp.zeros(shape)

    zeros = jax.custom_jvp(zero)

    @zeros.defjvp
    def raise_(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(NO_GRADIENT + or_flow)

    return zeros


def _is_taken_for_flat(module: str, site: Any) -> bool:
    """Whether who asks for a density is none of ours, and asks for that of a latent: what is given has a constant one."""
    return not module.startswith(SILENT) and not (site and site["is_observed"])


def _warn(said: str) -> None:
    """Once in a process, whatever filters say of the same warning from another place."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(said, NoDensityWarning, stacklevel=2)
