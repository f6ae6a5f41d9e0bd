r"""r under the model's own prediction, $r_t(x_t) = \mathrm{E}_{\hat p(x_0 | x_t)}\, r(x_0)$ (Section 2.5).

It is near the exact $\mathrm{E}[r(x_0) | x_t]$, under which all weights of a filter would be equal, and costs no network more:
the step and the prediction come from one evaluation.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, Distribution, MixtureSameFamily, Normal

from nedm_ppl.inference.posterior._multiplied import Along, Look, MultipliedDiffusion
from nedm_ppl.inference.posterior._multiplier import LinearObservation, Product, over_batch
from nedm_ppl.inference.posterior._proposals import NormalModes, independent, is_normal
from nedm_ppl.inference.posterior._tilted import closes, tilt
from nedm_ppl.laws._conditioned import LinearGaussian, normal_log_prob
from nedm_ppl.laws._low_rank import as_low_rank
from nedm_ppl.laws._mixtures import beside, components, mixture, together
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.laws._small_matrices import positive_part
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models.reverse._reverse import Prediction

__all__ = ["Lookahead"]


class Lookahead(Along):
    r"""$r_t(x_t) = \mathrm{E}_{\hat p(x_0 | x_t)}\, r(x_0)$, and the steps of that prediction multiplied by r.

    With $\hat p$ the model's prediction (`Diffusion.data_law`), the perturbed step is $\mathrm{E}\, q(x_{t-1} | x_t, x_0)$ over
    $\hat p(x_0 | x_t)\, r(x_0)$. Known and observed coordinates, bits and gray levels are exact under $\hat p$. A linear
    observation takes the mean m and covariance C of $x_0$ given $x_t$: $r_t = \mathcal N(y; A m, A C A^\top + R)$. A product over
    coordinates is tabulated, and its product with $\hat p$ is a mixture at every coordinate. Any other r is approximated near
    the modes of its product with $\hat p$ (`local`), or averaged over `num_draws` draws where it has no gradient, from noise
    that is the same for every $x_t$, so that $r_t$ is one fixed function.

    Attributes:
        covariance: For linear observations: `diagonal`, the variances of $\hat p$, or `jacobian`,
            $C = (1 - \bar\alpha_t) / \sqrt{\bar\alpha_t} \cdot \partial m / \partial x_t$, which is the covariance itself where m
            is the exact mean, at the price of one backward pass per observation.
        num_draws: Number of draws for an r without a closed form or a gradient.
    """

    covariance: str = eqx.field(static=True, default="diagonal")
    num_draws: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.covariance not in ("diagonal", "jacobian"):
            raise ValueError(f"covariance must be diagonal or jacobian; got {self.covariance!r}.")
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1; got {self.num_draws}.")

    @property
    def ties_rows(self) -> bool:
        return self.covariance == "jacobian"

    def check(self, guide: Product) -> None:
        if self.covariance == "jacobian" and _parted(guide)[0] is None:
            raise ValueError("covariance 'jacobian' is for a LinearObservation; r has none. Leave it at 'diagonal'.")

    def look(self, chain: MultipliedDiffusion, t: ArrayLike, x: Array) -> Look:
        process: Any = chain.diffusion.process
        try:
            law, data_law = chain.diffusion.laws(t, x)
        except NotImplementedError:  # a kernel without moments: nothing to look ahead from
            law = chain.diffusion.kernel(t, x)
            return Look(jnp.zeros(law.batch_shape), law, law)
        if not chain.guide.factors:
            return Look(jnp.zeros(law.batch_shape), law, law)
        whole = together(data_law)
        if whole is not None and closes(whole, chain.guide):
            log_r, proposal = _together(chain, t, x, whole)
            # Of a prediction the kernel is its step; of another kernel only nearly.
            return Look(log_r, law, proposal, None if isinstance(chain.diffusion.reverse, Prediction) else law)
        step, same = independent(law)
        near, _ = independent(data_law)
        assert step is not None and near is not None
        data_law = near
        free = None if same and closes(data_law, chain.guide) else law
        linear, others = _parted(chain.guide)
        if linear is None or not (is_normal(data_law) and closes(data_law, others)):
            tilted = tilt(data_law, chain.guide, num_draws=self.num_draws)
            return Look(tilted.log_mean, law, _carried(step, process, t, x, data_law, tilted.law), free)
        tilted = tilt(data_law, others)
        if others.factors:
            step = _carried(step, process, t, x, data_law, tilted.law)
        residual, cross = self._moments(chain, t, x, tilted.law, linear)
        c, _, _ = process.posterior_coefficients(t)
        matrix = c * cross / jnp.expand_dims(step.variance, -1 - process.event_dim)
        log_r, proposal = _seen_before(step, c * cross, matrix, residual, cross, linear)
        return Look(tilted.log_mean + log_r, law, proposal, free)

    def _moments(
        self, chain: MultipliedDiffusion, t: ArrayLike, x: Array, law: Distribution, linear: LinearObservation
    ) -> tuple[Array, Array]:
        """Residual y - A m, and A C; shapes (*batch, dim) and (*batch, dim, *event)."""
        event_dim = len(chain.event_shape)
        residual = linear.y - _image(linear.matrix, law.mean, event_dim)
        cross = linear.matrix * jnp.expand_dims(law.variance, -1 - event_dim)
        if self.covariance == "jacobian":
            process: Any = chain.diffusion.process
            # Where nothing of x_0 is left in x_t, the mean does not move with it: the variances are all there is.
            ratio, is_left = process.covariance_ratio(t)

            def image_of_mean(x: Array) -> Array:
                return jnp.tensordot(linear.matrix, chain.diffusion.data_law(t, x).mean, event_dim)

            cross = jnp.where(is_left, ratio * over_batch(jax.jacrev(image_of_mean), x, event_dim), cross)
        return residual, cross


def _parted(guide: Product) -> tuple[LinearObservation | None, Product]:
    """The linear observation among a guide's factors, and the others."""
    linear = next((factor for factor in guide.factors if isinstance(factor, LinearObservation)), None)
    return linear, Product(factor for factor in guide.factors if not isinstance(factor, LinearObservation))


def _together(chain: MultipliedDiffusion, t: ArrayLike, x: Array, data_law: Distribution) -> tuple[Array, Distribution]:
    r"""$r_t$ and the perturbed step of a prediction whose coordinates go together, exact under it; a mixture by component."""
    process: Any = chain.diffusion.process
    parts = components(data_law)
    if parts is not None:
        log_weights, law = parts
        log_r, steps = _together(chain, t, beside(x, process.event_dim), law)
        return logsumexp(log_weights + log_r, axis=-1), mixture(log_weights + log_r, steps)
    linear, others = _parted(chain.guide)
    tilted = tilt(data_law, others)
    if linear is None:
        return tilted.log_mean, process.reverse_step(t, x, tilted.law)
    law = as_low_rank(tilted.law)
    assert law is not None
    step = process.reverse_step(t, x, law)
    residual = linear.y - _image(linear.matrix, law.mean, process.event_dim)
    cross = law.covariance_times(linear.matrix)
    c, _, _ = process.posterior_coefficients(t)
    log_r, proposal = _seen_before(step, c * cross, step.precision_times(c * cross), residual, cross, linear)
    return tilted.log_mean + log_r, proposal


def _carried(
    step: Distribution, process: Any, t: ArrayLike, x: Array, data_law: Distribution, tilted: Distribution
) -> Distribution:
    """A kernel changed as the step of its own prediction changes; where it is that step, the changed step itself."""
    before, event_dim = process.reverse_step(t, x, data_law), step.event_dim
    if step.is_discrete:
        change = coordinates(process.reverse_step(t, x, tilted)).logits - coordinates(before).logits
        return BernoulliLogits(coordinates(step).logits + change).to_event(event_dim)
    ratio = jnp.sqrt(step.variance / before.variance)
    mixture = coordinates(tilted)
    if isinstance(tilted, NormalModes):
        c, _, var = process.posterior_coefficients(t)
        # In units of the step: x_{t-1} = c x_0 + d x_t + noise, x_0 in units of the prediction.
        size = tilted.loc.shape[-1]
        sd, unit = (
            jnp.broadcast_to(part, (*step.batch_shape, *step.event_shape)).reshape(*step.batch_shape, 1, size)
            for part in (c * jnp.sqrt(tilted.prior.variance), jnp.sqrt(before.variance))
        )
        noise = var / jnp.square(unit)[..., None] * jnp.eye(size)
        spread = sd / unit
        covariance = noise + spread[..., :, None] * tilted.covariance * spread[..., None, :]
        scale = jnp.sqrt(jnp.broadcast_to(step.variance, (*step.batch_shape, *step.event_shape)))
        loc = tilted.loc * sd / scale.reshape(*step.batch_shape, 1, size)
        shift = c * (tilted.prior.mean - data_law.mean)
        moved = Normal(step.mean + shift, scale).to_event(event_dim)
        return NormalModes(moved, tilted.log_weights, loc, covariance)
    if isinstance(mixture, MixtureSameFamily):
        c, d, var = process.posterior_coefficients(t)
        parts = mixture.component_distribution
        shift = step.mean - before.mean + d * x
        scale = ratio[..., None] * jnp.sqrt(var + jnp.square(c) * jnp.maximum(parts.variance, 1e-10))
        normals = PointNormal(c * parts.mean + shift[..., None], scale)
        return MixtureSameFamily(mixture.mixing_distribution, normals).to_event(event_dim)
    after = process.reverse_step(t, x, tilted)
    return Normal(step.mean + after.mean - before.mean, jnp.sqrt(after.variance) * ratio).to_event(event_dim)


def _seen_before(
    step: Distribution, shared: Array, matrix: Array, residual: Array, cross: Array, linear: LinearObservation
) -> tuple[Array, LinearGaussian]:
    r"""$\log \mathcal N(y; A m, A C A^\top + R)$, and the step given y.

    y and $x_{t-1}$ are jointly Gaussian given $x_t$, with covariance c A C: an observation of $x_{t-1}$, whose noise is what
    $x_{t-1}$ does not explain of y.

    Args:
        step: The law of $x_{t-1}$, covariance S.
        shared: c A C, shape (*batch, dim, *event).
        matrix: $c A C S^{-1}$, of the same shape.
        residual: y - A m, shape (*batch, dim).
        cross: A C.
        linear: A and R.
    """
    event_dim = step.event_dim
    image = positive_part(_outer(cross, linear.matrix, event_dim))
    explained = _outer(shared, matrix, event_dim)
    value = residual + _image(matrix, step.mean, event_dim)
    noise = linear.covariance + positive_part(image - explained)
    return normal_log_prob(residual, image + linear.covariance), LinearGaussian(step, matrix, value, noise)


def _image(matrix: Array, x: Array, event_dim: int) -> Array:
    """A x for x of shape (*batch, *event); (*batch, dim)."""
    return _outer(x[..., None, *[slice(None)] * event_dim], matrix, event_dim)[..., 0, :]


def _outer(first: Array, second: Array, event_dim: int) -> Array:
    """Products of rows over the event axes: (*batch, m, *event) and (*batch, n, *event) -> (*batch, m, n)."""
    flat = [part.reshape(*part.shape[: part.ndim - event_dim], -1) for part in (first, second)]
    return flat[0] @ jnp.swapaxes(flat[1], -1, -2)
