r"""Multiplying a diffusion by r(x): the perturbed reverse chain (Section 2.5, Appendix C).

The target is $\tilde p(x_0) \propto p(x_0)\, r(x_0)$. Every intermediate law is multiplied by an $r_t(x_t)$, with $r_0 = r$,
and every step becomes

$$\tilde p(x_{t-1} | x_t) \propto p(x_{t-1} | x_t)\, r_{t-1}(x_{t-1}),$$

normalized. Running these steps is the paper's method. It is **approximate**: the normalizer of each step depends on $x_t$ and
is dropped. `particles` keeps it as a weight, and is exact.

How r continues along the chain is a choice:

- `constant`, $r_t = r$: the paper's experiments;
- `power`, $r_t = r^{(T-t)/T}$: the paper's other choice, which leaves $x_T \sim \pi$ untouched;
- `lookahead`, $r_t(x_t) = \mathrm{E}_{\hat p(x_0 | x_t)}\, r(x_0)$ with the model's own prediction of $x_0$: the nearest of the
  three to the exact $\mathrm{E}[r(x_0) | x_t]$, under which all weights would be equal;
- `forward`, for known coordinates alone, $r_t = 1$: they walk the forward chain backwards from their values, on one trajectory
  for all particles, and the others walk the model's chain;
- `unguided`, $r_t = 1$: the model's own chain, weighed by r at the end;
- a function $(t, x_t) \mapsto \log r_t(x_t)$ of one's own.

Two multipliers go with a chain. **r** is the truth, and weighs particles at time 0. The **guide** moves them: what r is taken
for on the way, recognized or tabulated, right or wrong.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, Delta, Distribution, MixtureSameFamily, Normal

from nedm_ppl.inference.posterior._multiplier import (
    Known,
    LinearObservation,
    Multiplier,
    Product,
    as_multiplier,
    over_batch,
)
from nedm_ppl.inference.posterior._proposals import NormalModes, defended, independent, is_normal
from nedm_ppl.inference.posterior._tabulated import guide_of
from nedm_ppl.inference.posterior._tilted import closes, tilt
from nedm_ppl.laws._conditioned import LinearGaussian, normal_log_prob
from nedm_ppl.laws._low_rank import as_low_rank
from nedm_ppl.laws._mixtures import beside, components, mixture, together
from nedm_ppl.laws._point_normal import PointNormal
from nedm_ppl.laws._small_matrices import positive_part
from nedm_ppl.laws._spliced import Spliced
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._chain import MarkovChain
from nedm_ppl.models.reverse._reverse import Prediction

__all__ = ["Constant", "Forward", "Lookahead", "MultipliedDiffusion", "Power", "Supplied", "Unguided", "multiply"]


class Look(NamedTuple):
    r"""What a multiplied chain makes of a state $x_t$.

    Attributes:
        log_r: $\log r_t(x_t)$, nats, shape (*batch,).
        law: The model's kernel $p(x_{t-1} | x_t)$.
        proposal: The perturbed kernel $\tilde p(x_{t-1} | x_t)$.
        free: The kernel by which a share of particles moves unguided; None where the perturbed one is exact for what guides.
    """

    log_r: Array
    law: Distribution
    proposal: Distribution
    free: Distribution | None = None


class MultipliedDiffusion(eqx.Module):
    r"""A diffusion whose every step is multiplied by $r_t$; made by `multiply`. Its samples are approximate.

    Attributes:
        diffusion: The model p.
        r: The multiplier at t = 0, a product of factors: what particles are weighed by.
        guide: What they are moved by on the way, up to a constant factor; r itself, or near it.
    """

    diffusion: eqx.AbstractVar[Diffusion]
    r: eqx.AbstractVar[Product]
    guide: eqx.AbstractVar[Product]

    @abstractmethod
    def look(self, t: ArrayLike, x: Array) -> Look:
        r"""$r_t(x_t)$ and both kernels, from one evaluation of the network; at t = 1 only `log_r` means anything."""

    @abstractmethod
    def initial(self) -> Distribution:
        r"""The law $x_T$ is drawn from: $\pi\, r_T$ where that has a closed form, or $\pi$."""

    def log_r(self, t: ArrayLike, x: Array) -> Array:
        r"""$\log r_t(x_t)$ for t in 1..T, nats, shape (*batch,)."""
        return self.look(t, x).log_r

    def kernel(self, t: ArrayLike, x: Array) -> Distribution:
        r"""The perturbed kernel $\tilde p(x_{t-1} | x_t = x)$, for t = 2..T."""
        return self.look(t, x).proposal

    def look_first(self, x1: Array) -> Look:
        r"""The same of $x_1$, with the first step $p(x_0 | x_1)$ as the law."""
        return self._multiplied(self.log_r(1, x1), self.diffusion.first_kernel(x1), x1)

    def first_kernel(self, x1: Array) -> Distribution:
        r"""The perturbed first step: $p(x_0 | x_1)\, r(x_0)$, normalized, exactly where r allows it."""
        law = self.diffusion.first_kernel(x1)
        return self._multiplied(jnp.zeros(law.batch_shape), law, x1).proposal

    def proposal(self, look: Look) -> Distribution:
        r"""The law particles are drawn from: the perturbed kernel, and for a share of them the model's own where r is guessed."""
        return look.proposal if look.free is None else defended(look.free, look.proposal)

    def _multiplied(self, log_r: Array, law: Distribution, at: Array, power: ArrayLike = 1.0) -> Look:
        """A look whose perturbed kernel is the law times the guide."""
        whole = together(law)
        if whole is not None and closes(whole, self.guide):
            return Look(log_r, law, tilt(whole, self.guide, at, power).law)
        near, same = independent(law)
        if near is None:
            return Look(log_r, law, law)
        proposal = tilt(near, self.guide, at, power).law
        if same and closes(near, self.guide):
            return Look(log_r, law, proposal)
        # What is known stays known for all particles: everything else is impossible.
        known = Product(factor for factor in self.guide.factors if isinstance(factor, Known))
        return Look(log_r, law, proposal, tilt(near, known, at).law if known.factors else law)

    @property
    def num_steps(self) -> int:
        """Number of steps, T."""
        return self.diffusion.num_steps

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.diffusion.event_shape

    def reverse_chain(self, start: Array | None = None) -> MarkovChain:
        r"""The perturbed trajectory $x_1..x_T$, from `initial` or from a given $x_T$ of shape (*batch, *event)."""
        initial = self.initial() if start is None else Delta(start, event_dim=len(self.event_shape))
        return MarkovChain(initial, self.kernel, first=1, last=self.num_steps, reverse=True)

    def sample(
        self, rng_key: Array, sample_shape: tuple[int, ...] = (), *, start: Array | None = None, last_step: bool = True
    ) -> Array:
        r"""Approximate samples of $p(x_0)\, r(x_0)$, the paper's method; shape (*sample_shape, *event).

        Args:
            rng_key: Random key.
            sample_shape: How many.
            start: $x_T$ to start from, of shape (*batch, *event): the noisy image itself in the paper's denoising, the image
                with noise in its missing region in its inpainting. By default drawn from `initial`.
            last_step: Whether to take the first step $p(x_0 | x_1)$ too; the paper's denoising stops at $x_1$.
        """
        key_chain, key_first = jax.random.split(rng_key)
        x1 = self.reverse_chain(start).sample_end(key_chain, sample_shape)
        return self.first_kernel(x1).sample(key_first) if last_step else x1

    def sample_trajectory(
        self, rng_key: Array, sample_shape: tuple[int, ...] = (), *, start: Array | None = None
    ) -> Array:
        """Whole perturbed trajectories $x_0..x_T$, shape (*sample_shape, T + 1, *event), time ascending."""
        key_chain, key_first = jax.random.split(rng_key)
        chain = self.reverse_chain(start)
        path = chain.sample(key_chain, sample_shape)
        x0 = self.first_kernel(chain.at(path, 1)).sample(key_first)
        return jnp.concatenate(
            [x0[..., None, *[slice(None)] * len(self.event_shape)].astype(path.dtype), path], -1 - len(self.event_shape)
        )


class Constant(MultipliedDiffusion):
    r"""$r_t = r$ at every t: the paper's denoising and inpainting."""

    diffusion: Diffusion
    r: Product
    guide: Product

    def look(self, t: ArrayLike, x: Array) -> Look:
        log_r = over_batch(self.r.log_r, x, len(self.event_shape))
        return self._multiplied(log_r, self.diffusion.kernel(t, x), x)

    def initial(self) -> Distribution:
        noise = self.diffusion.process.stationary()
        product = self.guide.times(noise) if closes(noise, self.guide) else None
        return noise if product is None else product


class Power(MultipliedDiffusion):
    r"""$r_t = r^{(T-t)/T}$: nothing at T, all of r at 0."""

    diffusion: Diffusion
    r: Product
    guide: Product

    def look(self, t: ArrayLike, x: Array) -> Look:
        log_r = over_batch(self.r.log_r, x, len(self.event_shape))
        log_r = jnp.where(t == self.num_steps, 0.0, self._power(t) * log_r)
        return self._multiplied(log_r, self.diffusion.kernel(t, x), x, self._power(t - 1))

    def initial(self) -> Distribution:
        return self.diffusion.process.stationary()

    def _power(self, t: ArrayLike) -> Array:
        return jnp.asarray((self.num_steps - t) / self.num_steps)


class Lookahead(MultipliedDiffusion):
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

    diffusion: Diffusion
    r: Product
    guide: Product
    covariance: str = eqx.field(static=True, default="diagonal")
    num_draws: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.covariance not in ("diagonal", "jacobian"):
            raise ValueError(f"covariance must be diagonal or jacobian; got {self.covariance!r}.")
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1; got {self.num_draws}.")
        if self.covariance == "jacobian" and self._linear is None:
            raise ValueError("covariance 'jacobian' is for a LinearObservation; r has none. Leave it at 'diagonal'.")

    def look(self, t: ArrayLike, x: Array) -> Look:
        process: Any = self.diffusion.process
        try:
            law, data_law = self.diffusion.laws(t, x)
        except NotImplementedError:  # a kernel without moments: nothing to look ahead from
            law = self.diffusion.kernel(t, x)
            return Look(jnp.zeros(law.batch_shape), law, law)
        if not self.guide.factors:
            return Look(jnp.zeros(law.batch_shape), law, law)
        whole = together(data_law)
        if whole is not None and closes(whole, self.guide):
            log_r, proposal = self._together(t, x, whole)
            # Of a prediction the kernel is its step; of another kernel only nearly.
            return Look(log_r, law, proposal, None if isinstance(self.diffusion.reverse, Prediction) else law)
        step, same = independent(law)
        near, _ = independent(data_law)
        assert step is not None and near is not None
        data_law = near
        free = None if same and closes(data_law, self.guide) else law
        linear, others = self._linear, self._others
        if linear is None or not (is_normal(data_law) and closes(data_law, others)):
            tilted = tilt(data_law, self.guide, num_draws=self.num_draws)
            return Look(tilted.log_mean, law, _carried(step, process, t, x, data_law, tilted.law), free)
        tilted = tilt(data_law, others)
        if others.factors:
            step = _carried(step, process, t, x, data_law, tilted.law)
        residual, cross = self._moments(t, x, tilted.law, linear)
        c, _, _ = process.posterior_coefficients(t)
        matrix = c * cross / jnp.expand_dims(step.variance, -1 - process.event_dim)
        log_r, proposal = _seen_before(step, c * cross, matrix, residual, cross, linear)
        return Look(tilted.log_mean + log_r, law, proposal, free)

    def _together(self, t: ArrayLike, x: Array, data_law: Distribution) -> tuple[Array, Distribution]:
        r"""$r_t$ and the perturbed step of a prediction whose coordinates go together, exact under it; a mixture by component."""
        process: Any = self.diffusion.process
        parts = components(data_law)
        if parts is not None:
            log_weights, law = parts
            log_r, steps = self._together(t, beside(x, process.event_dim), law)
            return logsumexp(log_weights + log_r, axis=-1), mixture(log_weights + log_r, steps)
        tilted = tilt(data_law, self._others)
        if self._linear is None:
            return tilted.log_mean, process.reverse_step(t, x, tilted.law)
        law = as_low_rank(tilted.law)
        assert law is not None
        step, linear = process.reverse_step(t, x, law), self._linear
        residual = linear.y - _image(linear.matrix, law.mean, process.event_dim)
        cross = law.covariance_times(linear.matrix)
        c, _, _ = process.posterior_coefficients(t)
        log_r, proposal = _seen_before(step, c * cross, step.precision_times(c * cross), residual, cross, linear)
        return tilted.log_mean + log_r, proposal

    def initial(self) -> Distribution:
        return self.diffusion.process.stationary()

    @property
    def _linear(self) -> LinearObservation | None:
        return next((factor for factor in self.guide.factors if isinstance(factor, LinearObservation)), None)

    @property
    def _others(self) -> Product:
        return Product(factor for factor in self.guide.factors if not isinstance(factor, LinearObservation))

    def _moments(self, t: ArrayLike, x: Array, law: Distribution, linear: LinearObservation) -> tuple[Array, Array]:
        """Residual y - A m, and A C; shapes (*batch, dim) and (*batch, dim, *event)."""
        event_dim = len(self.event_shape)
        residual = linear.y - _image(linear.matrix, law.mean, event_dim)
        cross = linear.matrix * jnp.expand_dims(law.variance, -1 - event_dim)
        if self.covariance == "jacobian":
            process: Any = self.diffusion.process
            # Where nothing of x_0 is left in x_t, the mean does not move with it: the variances are all there is.
            ratio, is_left = process.covariance_ratio(t)

            def image_of_mean(x: Array) -> Array:
                return jnp.tensordot(linear.matrix, self.diffusion.data_law(t, x).mean, event_dim)

            cross = jnp.where(is_left, ratio * over_batch(jax.jacrev(image_of_mean), x, event_dim), cross)
        return residual, cross


class Unguided(MultipliedDiffusion):
    r"""$r_t = 1$ at every t but 0: particles move by the model's own chain, and r weighs them at its end."""

    diffusion: Diffusion
    r: Product
    guide: Product

    def look(self, t: ArrayLike, x: Array) -> Look:
        law = self.diffusion.kernel(t, x)
        return Look(self.log_r(t, x), law, law)

    def log_r(self, t: ArrayLike, x: Array) -> Array:
        return jnp.zeros(x.shape[: x.ndim - len(self.event_shape)])

    def initial(self) -> Distribution:
        return self.diffusion.process.stationary()


class Forward(MultipliedDiffusion):
    r"""Known coordinates by the forward chain, $q(x_{t-1} | x_t, x_0)$, and the others by the model's; $r_t = 1$.

    All particles, and all samples of one call, share the trajectory of the known coordinates (`spliced.Spliced`), which is
    drawn anew by every filter. Their weights say how well each suits it. Z is unbiased over trajectories too, and filters are
    pooled by their evidences as ever; each alone has the posterior given its trajectory, so take many filters.

    Source: Trippe et al., Diffusion Probabilistic Modeling of Protein Backbones in 3D for the Motif-Scaffolding Problem, 2022.
    """

    diffusion: Diffusion
    r: Product
    guide: Product

    def __check_init__(self):
        if len(self.guide.factors) != 1 or not isinstance(self.guide.factors[0], Known):
            raise ValueError(
                "along='forward' is for known coordinates alone, one Known; use along='lookahead' for this r."
            )

    def look(self, t: ArrayLike, x: Array) -> Look:
        law = self.diffusion.kernel(t, x)
        known = self.diffusion.process.posterior(t, x, self._values)
        return Look(self.log_r(t, x), law, Spliced(law, known, self._known.mask))

    def log_r(self, t: ArrayLike, x: Array) -> Array:
        return jnp.zeros(x.shape[: x.ndim - len(self.event_shape)])

    def initial(self) -> Distribution:
        process = self.diffusion.process
        return Spliced(process.stationary(), process.marginal(self.num_steps, self._values), self._known.mask)

    @property
    def _known(self) -> Known:
        (factor,) = self.guide.factors
        assert isinstance(factor, Known)
        return factor

    @property
    def _values(self) -> Array:
        """The known values, and 0 at the others, where nothing looks."""
        return jnp.where(self._known.mask, self._known.values, 0.0)


class Supplied(MultipliedDiffusion):
    r"""$r_t$ as the user gives it, for t in 1..T; at 0 it is r."""

    diffusion: Diffusion
    r: Product
    guide: Product
    function: Callable[[ArrayLike, Array], Array]

    def look(self, t: ArrayLike, x: Array) -> Look:
        log_r = over_batch(lambda x: self.function(t, x), x, len(self.event_shape))
        law = self.diffusion.kernel(t, x)
        near, _ = independent(law)
        if near is None:
            return Look(log_r, law, law)
        return Look(log_r, law, tilt(near, as_multiplier(lambda x: self.function(t - 1, x)), x).law, law)

    def initial(self) -> Distribution:
        return self.diffusion.process.stationary()


def multiply(
    diffusion: Diffusion,
    r: Multiplier | Callable[[Array], Array] | None,
    guide: Multiplier | None = None,
    *,
    along: str | Callable[[ArrayLike, Array], Array] = "constant",
    covariance: str = "diagonal",
    num_draws: int = 16,
) -> MultipliedDiffusion:
    r"""The reverse chain multiplied by r, Section 2.5: kernel in, kernel out. **Approximate**; `ParticlePosterior` is exact.

    Args:
        diffusion: The model p.
        r: A multiplier, or a function log r(x) of one datum.
        guide: What moves particles in its place, where that is another; whatever it is, r weighs them.
        along: How r continues along the chain: `constant` (the paper's experiments), `power` (the paper's other choice),
            `lookahead`, `forward` (known coordinates alone), `unguided` (not at all), or a function $(t, x_t) \mapsto \log
            r_t(x_t)$ of one datum, for t in 1..T.
        covariance: With `lookahead` and linear observations, `diagonal` or `jacobian`; see `Lookahead`.
        num_draws: With `lookahead` and an r without a closed form, how many draws average it.

    Raises:
        ValueError: r of another shape or for other data, an unknown `along`, or an option that does not go with it.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from nedm_ppl import inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, process.step)
        >>> chain = inference.multiply(diffusion, inference.NormalObservation(jnp.ones(2), 0.5))
        >>> chain.sample(jax.random.key(0), (5,)).shape
        (5, 2)
    """
    product = as_multiplier(r)
    moving = product if guide is None else as_multiplier(guide)
    product.check(diffusion.process)
    moving.check(diffusion.process)
    if along != "lookahead" and (covariance, num_draws) != ("diagonal", 16):
        raise ValueError("covariance and num_draws belong to along='lookahead'; leave them out.")
    if along == "unguided":
        return Unguided(diffusion, product, moving)
    moving = guide_of(moving, diffusion.process)
    if callable(along):
        return Supplied(diffusion, product, moving, along)
    if along == "constant":
        return Constant(diffusion, product, moving)
    if along == "power":
        return Power(diffusion, product, moving)
    if along == "lookahead":
        return Lookahead(diffusion, product, moving, covariance, num_draws)
    if along == "forward":
        return Forward(diffusion, product, moving)
    raise ValueError(
        "along must be constant, power, lookahead, forward, unguided or a function (t, x) -> log r_t(x); "
        f"got {along!r}."
    )


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
