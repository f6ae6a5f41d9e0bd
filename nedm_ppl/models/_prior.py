r"""A trained diffusion as one site of a larger NumPyro program.

$$x \sim p(x_0), \qquad p(x_0) = \int \pi(x_T) \prod_t p(x_{t-1} | x_t)\, dx_{1..T}.$$

Sampling is exact. The density is an integral over trajectories that no inference algorithm here needs and none can have in closed
form, so it is left out of the program: `log_prob` is zero, which scores everything *else* in the program right. A derivative of it
would be silently wrong, and raises instead: with respect to the value, and to arrays of the model that depend on other latents.
What may be done with such a site, the particle methods of `nedm_ppl.inference` do; they find it by its type.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

from nedm_ppl.arguments import as_shape, check_key
from nedm_ppl.models._model import Model
from nedm_ppl.models.chain._captured import combine, partition
from nedm_ppl.models.chain._mapped import Mapped, check_expansion

__all__ = ["DiffusionPrior"]

NO_GRADIENT = (
    "diffusion.prior() has no density to differentiate, so NUTS, HMC and SVI can move neither its site nor what its model depends "
    "on; use inference.ParticlePosterior where it is the only latent, beside others inference.PathGibbs in a block of numpyro's "
    "Gibbs, or inference.ParticleMetropolis"
)
FLOW = ", or diffusion.flow(), whose density has gradients."


class DiffusionPrior(Mapped):
    r"""The marginal $p(x_0)$ of a diffusion, as `diffusion.prior()` makes it; event shape that of one datum.

    `sample` is exact. `log_prob` is 0 for every value: **not** the log density, which `inference.marginal_log_likelihood`
    estimates. So `numpyro.infer.util.log_density` of a program with such a site is the log density of its other sites given this
    one. Whatever takes densities without derivatives sees that zero silently, and would sample the site, or what its model depends
    on, as if the prior were flat: SA, the ensemble kernels AIES and ESS, importance sampling, an ELBO by score functions.
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

    def sample(self, key: Array, sample_shape: int | tuple[int, ...] = ()) -> Array:
        """Ancestral samples, exact, shape (*sample_shape, *batch, *event)."""
        check_key(key, "key")
        sample_shape = as_shape("sample_shape", sample_shape)
        if self.mapped_shape:
            return self.draw_each(lambda prior, key: prior.sample(key, sample_shape), key, sample_shape)
        return self.diffusion.sample(key, (*sample_shape, *self.batch_shape))

    def log_prob(self, value: ArrayLike) -> Array:
        """Zero: the site's density is left out of the program. Its derivative raises a NotImplementedError.

        Raises:
            ValueError: a value whose trailing shape is not one datum's, or whose batch axes do not broadcast with the site's.
        """
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(self._batch_of(value), self.batch_shape)
        # Given the value and the model, so that a derivative with respect to either is noticed.
        seen = value, eqx.filter(self._arrays, eqx.is_inexact_array)
        return _no_density(shape, self.is_discrete)(seen)

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
    return diffusion.first_kernel(jnp.zeros(shape)).support


def _no_density(shape: tuple[int, ...], is_discrete: bool) -> Callable[[Any], Array]:
    """Zeros of a shape, whatever the argument; differentiating them raises."""
    zeros = jax.custom_jvp(lambda argument: jnp.zeros(shape))

    @zeros.defjvp
    def raise_(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(NO_GRADIENT + ("." if is_discrete else FLOW))

    return zeros
