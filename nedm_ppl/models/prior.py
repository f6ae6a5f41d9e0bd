r"""A trained diffusion as one site of a larger NumPyro program.

$$x \sim p(x_0), \qquad p(x_0) = \int \pi(x_T) \prod_t p(x_{t-1} | x_t)\, dx_{1..T}.$$

Sampling is exact. The density is an integral over trajectories that no inference algorithm here needs and none can have in closed
form, so it is left out of the program: `log_prob` is zero, which scores everything *else* in the program right. A derivative of it
would be silently wrong, and raises instead: with respect to the value, and to arrays of the model that depend on other latents.
What may be done with such a site, the particle methods of `nedm_ppl.inference` do; they find it by its type.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints

if TYPE_CHECKING:
    from nedm_ppl.models.diffusion import Diffusion

__all__ = ["DiffusionPrior"]

NO_GRADIENT = (
    "diffusion.prior() has no density to differentiate, so NUTS, HMC and SVI can move neither its site nor what its model depends "
    "on; use inference.ParticlePosterior where it is the only latent, beside others inference.PathGibbs in a block of numpyro's "
    "Gibbs, or inference.ParticleMetropolis"
)
FLOW = ", or diffusion.flow(), whose density has gradients."


class DiffusionPrior(Distribution):
    r"""The marginal $p(x_0)$ of a diffusion, as `diffusion.prior()` makes it; event shape that of one datum.

    `sample` is exact. `log_prob` is 0 for every value: **not** the log density, which `inference.log_likelihood` estimates. So
    `numpyro.infer.util.log_density` of a program with such a site is the log density of its other sites given this one. Whatever
    takes densities without derivatives sees that zero silently, and would sample the site, or what its model depends on, as if the
    prior were flat: SA, the ensemble kernels AIES and ESS, importance sampling, an ELBO by score functions.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static",)
    has_rsample = False
    has_enumerate_support = False

    def __init__(self, diffusion: "Diffusion", *, batch_shape: tuple[int, ...] = (), validate_args: bool | None = None):
        self._arrays, self._static = eqx.partition(
            diffusion, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, np.ndarray)
        )
        super().__init__(batch_shape=batch_shape, event_shape=diffusion.event_shape, validate_args=validate_args)

    @property
    def diffusion(self) -> "Diffusion":
        """The model whose $x_0$ this is."""
        return eqx.combine(self._arrays, self._static)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _support(self.diffusion, (*self.batch_shape, *self.event_shape))

    @property
    def is_discrete(self) -> bool:
        return self.support.is_discrete

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Ancestral samples, exact, shape (*sample_shape, *batch, *event)."""
        return self.diffusion.sample(key, (*sample_shape, *self.batch_shape))

    def log_prob(self, value: ArrayLike) -> Array:
        """Zero: the site's density is left out of the program. Its derivative raises a NotImplementedError."""
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(value.shape[: value.ndim - self.event_dim], self.batch_shape)
        # Given the value and the model, so that a derivative with respect to either is noticed.
        seen = value, eqx.filter((self._arrays, self._captured()), eqx.is_inexact_array)
        return _no_density(shape, self.is_discrete)(seen)

    def expand(self, batch_shape: tuple[int, ...]) -> "DiffusionPrior":
        """Independent data over a larger batch shape."""
        return DiffusionPrior(self.diffusion, batch_shape=tuple(batch_shape))

    def _captured(self) -> list[Any]:
        """Arrays that plain functions inside the model hold in their closures, and no pytree shows."""
        if not any(getattr(leaf, "__closure__", None) for leaf in jax.tree.leaves(self._static)):
            return []
        diffusion = self.diffusion

        def step(x: Array) -> Array:
            return diffusion.kernel(diffusion.num_steps, x).log_prob(x)

        return jax.make_jaxpr(step)(jnp.zeros(self.event_shape)).consts


@eqx.filter_jit
def _support(diffusion: "Diffusion", shape: tuple[int, ...]) -> constraints.Constraint:
    """Of the first step; compiled, what of the network it does not depend on is not evaluated."""
    return diffusion.first_kernel(jnp.zeros(shape)).support


def _no_density(shape: tuple[int, ...], is_discrete: bool) -> Callable[[Any], Array]:
    """Zeros of a shape, whatever the argument; differentiating them raises."""
    zeros = jax.custom_jvp(lambda argument: jnp.zeros(shape))

    @zeros.defjvp
    def raise_(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(NO_GRADIENT + ("." if is_discrete else FLOW))

    return zeros
