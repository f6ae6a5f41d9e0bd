r"""The probability flow of a Gaussian chain: a deterministic ODE between noise and data, with an evaluable density.

Written with the angle $\varphi$ of the noise, $\cos\varphi = \sqrt{\bar\alpha}$ and $\sin\varphi = \sqrt{1 - \bar\alpha}$,
a noised datum is $x = \cos\varphi\, x_0 + \sin\varphi\, \epsilon$. The laws of x at all angles are also those of a point
that moves by

$$\frac{dx}{d\varphi} = \mathrm{E}[\cos\varphi\, \epsilon - \sin\varphi\, x_0 \mid x] = -\sin\varphi\; g(x, \varphi), \qquad
  g = \frac{m - \cos\varphi\, x}{\sin^2\varphi}, \quad m = \mathrm{E}[x_0 | x],$$
$$\log p(x_0) = \log \mathcal N(x_T; 0, I)
  + \int_0^{\varphi_T} \mathrm{tr}\, \frac{\partial}{\partial x} \frac{dx}{d\varphi}\, d\varphi.$$

By Tweedie's formula the score is $\nabla \log p_t(x) = (\sqrt{\bar\alpha_t}\, m - x) / (1 - \bar\alpha_t)$, so that
$g = (x + \nabla \log p_t) / \sqrt{\bar\alpha_t}$ and the same ODE reads $dx/d\varphi = -\tan\varphi\,(x + \nabla \log p)$.

**From the reverse kernel.** With $\mu_t$ the mean of $p(x_{t-1} | x_t = x)$, put $\mu_t = c_t m + d_t x$ and solve for m
(`Diffusion.data_law`; a kernel that predicts $x_0$ brings m itself). Because

$$\sqrt{1 - \beta_t}\, c_t = \frac{\beta_t \sqrt{\bar\alpha_t}}{1 - \bar\alpha_t}, \qquad
  \sqrt{1 - \beta_t}\, d_t = 1 - \frac{\beta_t}{1 - \bar\alpha_t}, \qquad\text{we have}\qquad
  \frac{\sqrt{1 - \beta_t}\, \mu_t - x}{\beta_t} = \frac{\sqrt{\bar\alpha_t}\, m - x}{1 - \bar\alpha_t}:$$

the step's drift over its rate and Tweedie's score are one number for every kernel and every $\beta_t$, and are the score of
the noised data exactly when $\mu_t = \mathrm{E}[x_{t-1} | x_t]$. The right side is used: the left one divides rounding
by $\beta_t$.

**Between the steps** g is linear in the log signal-to-noise ratio $\lambda = -2 \log\tan\varphi$ at the same x. It tends to
m in pure noise and to $x + \nabla \log p$ in clean data, so it is smooth at both ends. The error is of second order in the
spacing of $\lambda$. The field has a kink at every step of the chain, and the solver stops there: it then meets smooth pieces
alone, and takes at least T steps. A solver that steps across kinks accepts or rejects by rounding; its backward pass, which
computes the steps anew, could then take other steps than those whose gradient it is.

**End points.** The flow starts at T from N(0, I), as the chain does. Below the noise of the first step it uses, g is held at
its value there, down to $\varphi = 0$: x is then $x_0$ itself, with an error of second order in that noise's variance.
The first step used is t = 1 where the kernel at 1 is trained, and t = 2 with a fixed first step, which leaves it untrained.
Gray levels have no density at $\varphi = 0$: with a quantized first step the flow stops at t = 1 and is the density of
$x_1 / \sqrt{\bar\alpha_1}$, a level plus noise of variance $(1 - \bar\alpha_1) / \bar\alpha_1$.

The flow is another model than the chain: they agree where the kernel is the exact reversal and T is large.

Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021, Section 4.3 and D.2.
"""

import math
import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from nedm_ppl._compat import Tracer, validate_sample
from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key
from nedm_ppl.models._model import Model
from nedm_ppl.models._units import Units
from nedm_ppl.models.chain._captured import combine, partition
from nedm_ppl.models.chain._mapped import Mapped

__all__ = ["DiffusionFlow", "ProbabilityFlow"]

EXACT_SIZE = 64
MAX_STEPS = 4096
LARGE = 30.0


class VelocityField(eqx.Module):
    r"""$dx/d\varphi$ of one datum, from the reverse kernels at t = first..T."""

    diffusion: Model
    first: int = eqx.field(static=True)

    def __init__(self, diffusion: Model):
        self.diffusion = diffusion
        self.first = 1 if diffusion.ending.is_trained else 2

    def __call__(self, angle: Array, x: Array) -> Array:
        schedule = self.diffusion.process.schedule
        log_snr = schedule.log_snr[self.first - 1 :]
        here = -2.0 * jnp.log(jnp.tan(jnp.maximum(angle, jnp.finfo(angle.dtype).tiny ** 0.5)))
        last = log_snr.shape[0] - 1
        i = jnp.clip(jnp.searchsorted(-log_snr, -here, side="right") - 1, 0, max(last - 1, 0))
        j = jnp.minimum(i + 1, last)
        # Held constant outside the steps: jnp.clip's derivative is 0 there, as it should be.
        gap = log_snr[i] - log_snr[j]
        weight = jnp.clip((log_snr[i] - here) / jnp.where(gap > 0.0, gap, 1.0), 0.0, 1.0)
        g = jax.vmap(self._pull, in_axes=(0, None))(jnp.stack([i, j]) + self.first, x)
        return -jnp.sin(angle) * ((1.0 - weight) * g[0] + weight * g[1])

    def _pull(self, t: Array, x: Array) -> Array:
        """g at time t."""
        schedule = self.diffusion.process.schedule
        mean = self.diffusion.data_law(t, x).mean
        return (mean - jnp.sqrt(schedule.alpha_bar[t]) * x) / schedule.one_minus_alpha_bar[t]

    def ends(self) -> tuple[Array, Array]:
        r"""$\varphi$ of the data's end and of the noise's."""
        schedule = self.diffusion.process.schedule
        angles = jnp.arctan2(jnp.sqrt(schedule.one_minus_alpha_bar), jnp.sqrt(schedule.alpha_bar))
        return angles[1] if self.diffusion.ending.is_categorical else jnp.zeros_like(angles[0]), angles[-1]

    def kinks(self) -> Array:
        r"""$\varphi$ of the steps between which the field is interpolated, shape (num_kinks,)."""
        schedule = self.diffusion.process.schedule
        angles = jnp.arctan2(jnp.sqrt(schedule.one_minus_alpha_bar), jnp.sqrt(schedule.alpha_bar))
        starts_at_first = self.diffusion.ending.is_categorical
        return jax.lax.stop_gradient(angles[self.first + starts_at_first : -1])


class ProbabilityFlow(Transform):
    r"""The flow as a bijection, from noise $x_T$ to data $x_0$; a pytree whose leaves are the model's arrays.

    Args:
        diffusion: The model, of a Gaussian chain.
        probes: Hutchinson's probes, shape (num_probes, *event), with $\mathrm{E}\, v v^\top = I$; None takes the exact trace.
        rtol: Relative tolerance of the solver.
        atol: Absolute tolerance.
    """

    def __init__(self, diffusion: Model, *, probes: Array | None, rtol: float, atol: float):
        # As in MarkovChain: arrays are leaves, and the code around them is static.
        self._arrays, self._static = partition(VelocityField(diffusion))
        self.probes, self.rtol, self.atol = probes, rtol, atol
        self.event_shape, self.units = diffusion.event_shape, diffusion.units

    def tree_flatten(self):
        static = {key: getattr(self, key) for key in ("_static", "rtol", "atol", "event_shape", "units")}
        return (self._arrays, self.probes), (("_arrays", "probes"), static)

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def codomain(self) -> constraints.Constraint:
        return self.domain

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        return isinstance(other, ProbabilityFlow) and eqx.tree_equal(self.tree_flatten(), other.tree_flatten())

    def __call__(self, x: Array) -> Array:
        """Data from noise, shape (*batch, *event)."""
        return self._solve(x, to_data=True, trace=False)[0]

    def _inverse(self, y: Array) -> Array:
        return self._solve(y, to_data=False, trace=False)[0]

    def call_with_intermediates(self, x: Array) -> tuple[Array, Array]:
        """Data from noise, and the log determinant of that, from one solve."""
        y, log_dets = self._solve(x, to_data=True, trace=True)
        return y, jnp.mean(log_dets, axis=-1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Array | None = None) -> Array:
        """log |det dy/dx| in nats, shape (*batch,); solved anew from y unless given as intermediates."""
        return jnp.mean(self.inverse_and_log_dets(y)[1], axis=-1) if intermediates is None else intermediates

    def inverse_and_log_dets(self, y: ArrayLike) -> tuple[Array, Array]:
        """Noise from data, and log |det dy/dx| by each probe, shape (*batch, num_probes): one exact number without probes."""
        x, traces = self._solve(y, to_data=False, trace=True)
        return x, -traces

    def _solve(self, x: ArrayLike, *, to_data: bool, trace: bool) -> tuple[Array, Array]:
        x = jnp.asarray(x, jnp.result_type(float))
        cut = x.ndim - len(self.event_shape)
        if cut < 0 or x.shape[cut:] != self.event_shape:
            raise ValueError(
                f"value must have trailing shape {self.event_shape}, one datum of this flow; got shape {x.shape}. "
                "Reshape the data, or build the process with another event_shape."
            )
        field, units, log_scale = combine(self._arrays, self._static), self.units, 0.0
        if units is not None:
            log_scale = float(np.sum(units.log_scale(self.event_shape)))
            x = x if to_data else units.shifted(x)
        rows = x.reshape(-1, *self.event_shape)
        out = integrate(field, self.probes, rows, to_data=to_data, trace=trace, rtol=self.rtol, atol=self.atol)
        end, traces = jax.tree.map(lambda leaf: leaf.reshape(x.shape[:cut] + leaf.shape[1:]), out)
        if units is not None and to_data:
            end = units.unsnapped(end)
        return end, traces + (log_scale if to_data else -log_scale)


@eqx.filter_jit
def integrate(
    field: VelocityField, probes: Array | None, x: Array, *, to_data: bool, trace: bool, rtol: float, atol: float
) -> tuple[Array, Array]:
    """The other end of every row's path, and the integral of the trace along it, shape (N, num_probes), or (N, 0) without.

    Every datum has solver steps of its own, so that its density does not depend on its neighbors."""
    data_end, noise_end = field.ends()
    scale = jnp.cos(data_end)  # 1, but with a quantized first step
    event_shape = x.shape[1:]
    size = math.prod(event_shape)
    basis = jnp.eye(size).reshape(size, *event_shape) if probes is None else probes
    kinks = field.kinks()
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    if len(kinks):
        controller = diffrax.ClipStepSizeController(controller, jump_ts=kinks)

    def derivative(angle: Any, state: Any, field: Any) -> tuple[Array, Array]:
        if not trace:
            return field(angle, state[0]), state[1]

        def push(v: Array) -> tuple[Array, Array]:
            velocity, pushed = jax.jvp(lambda row: field(angle, row), (state[0],), (v,))
            return velocity, jnp.sum(v * pushed)

        velocity, by_probe = jax.vmap(push, out_axes=(None, 0))(basis)
        return velocity, jnp.sum(by_probe, keepdims=True) if probes is None else by_probe

    def solve(row: Array) -> tuple[Array, Array]:
        num_traces = (1 if probes is None else len(probes)) if trace else 0
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(derivative),
            diffrax.Tsit5(),
            t0=noise_end if to_data else data_end,
            t1=data_end if to_data else noise_end,
            dt0=None,
            y0=(row if to_data else row * scale, jnp.zeros(num_traces, row.dtype)),
            args=field,
            stepsize_controller=controller,
            max_steps=MAX_STEPS + 2 * len(kinks),
            throw=False,
        )
        failed = solution.result != diffrax.RESULTS.successful
        return jax.tree.map(lambda leaf: jnp.where(failed, jnp.nan, leaf[0]), solution.ys)

    end, traces = jax.vmap(solve)(x)
    rescaled = size * jnp.log(scale)
    return (end / scale, traces - rescaled) if to_data else (end, traces + rescaled)


class DiffusionFlow(Mapped, dist.TransformedDistribution):
    r"""N(0, I) carried to the data by the probability flow, as `diffusion.flow()` makes it; event shape that of one datum.

    `log_prob` has gradients with respect to the value, the model's arrays and whatever they depend on, by reverse mode. It
    is a fixed function of the value: Hutchinson's probes are drawn once. NaN says that the solver gave up.
    """

    def __init__(self, base_distribution: dist.Distribution, transforms: Any, *, validate_args: bool | None = None):
        super().__init__(base_distribution, transforms, validate_args=validate_args)
        self.count_axes()

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """The flow's image of standard normal draws, shape (*sample_shape, *batch, *event)."""
        check_key(key, "key")
        sample_shape = as_shape("sample_shape", sample_shape)
        if self.mapped_shape:
            return self.draw_each(lambda flow, key: flow.sample(key, sample_shape), key, sample_shape)
        return super().sample(key, sample_shape)

    rsample = sample

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        """log p(value) in nats, shape (*batch,); exact up to the solver's tolerance, or Hutchinson's estimate."""
        if intermediates is not None:
            return super().log_prob(value, intermediates)
        return jnp.mean(self._log_probs(value), axis=-1)

    def log_prob_and_se(self, value: ArrayLike) -> tuple[Array, Array]:
        """`log_prob` and the standard error that Hutchinson's probes give it, nats: 0 with the exact trace, NaN for one probe.

        All data share the probes, so their errors are dependent: that of a mean over data is not smaller by a square root."""
        log_probs = self._log_probs(value)
        num = log_probs.shape[-1]
        if self.transforms[0].probes is None:
            return log_probs[..., 0], jnp.zeros(log_probs.shape[:-1], log_probs.dtype)
        spread = jnp.std(log_probs, axis=-1, ddof=1) if num > 1 else jnp.full(log_probs.shape[:-1], jnp.nan)
        return jnp.mean(log_probs, axis=-1), spread / math.sqrt(num)

    def _log_probs(self, value: ArrayLike) -> Array:
        _check_values(value, self.transforms[0].units)
        if self.mapped_shape:
            return self.score_each(lambda flow, value: flow._log_probs(value), jnp.asarray(value))
        x, log_dets = self.transforms[0].inverse_and_log_dets(value)
        return self.base_dist.log_prob(x)[..., None] - log_dets


def probability_flow(
    diffusion: Model, rng_key: Array | None, num_probes: Count, rtol: float, atol: float
) -> DiffusionFlow:
    """What `Diffusion.flow` returns; see there."""
    schedule, size = diffusion.process.schedule, math.prod(diffusion.event_shape)
    if diffusion.process.stationary().is_discrete:
        raise ValueError(
            "diffusion.flow() needs a GaussianDiffusion; bits have no path to flow along. Use marginal_log_likelihood."
        )
    if not diffusion.ending.is_trained and diffusion.num_steps < 2:
        raise ValueError(
            "num_steps must be at least 2 for the flow of a fixed first step, which trains no kernel at t = 1."
        )
    last = schedule.alpha_bar[-1]
    if not isinstance(last, Tracer) and last == 0.0:
        raise ValueError(
            "schedule must leave some signal at T for diffusion.flow(), which interpolates log-SNR; got beta_T = 1. "
            "Use last_rate=0.5 in schedules.erasing, or schedules.log_snr_linear."
        )
    if rng_key is None and size > EXACT_SIZE:
        raise ValueError(
            f"rng_key must be given for data of more than {EXACT_SIZE} coordinates, whose trace is estimated; got none for "
            f"{size}. The key fixes the probes for good."
        )
    if rng_key is not None:
        check_key(rng_key)
    num_probes = as_count("num_probes", num_probes)
    if not (rtol > 0.0 and atol > 0.0):
        raise ValueError(f"rtol and atol must be positive; got {rtol:g} and {atol:g}.")
    probes = None if rng_key is None else jax.random.rademacher(rng_key, (num_probes, *diffusion.event_shape), float)
    flow = ProbabilityFlow(diffusion, probes=probes, rtol=rtol, atol=atol)
    return DiffusionFlow(diffusion.process.stationary(), flow)


def _check_values(value: ArrayLike, units: Units | None) -> None:
    """Raise or warn, in one sentence, where concrete values cannot be this flow's data; under `jit` they are not seen."""
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    if not np.all(np.isfinite(values)):
        raise ValueError("value must be finite; got NaN or infinite values. Drop or impute those data.")
    if units is not None:
        values = np.asarray(units.to_chain(values))
    rms = float(np.sqrt(np.mean(np.square(values, dtype=float)))) if values.size else 0.0
    if rms > LARGE:
        warnings.warn(
            f"value has a root mean square of {rms:.3g}, where data scaled as the chain expects have about 1; "
            "shift and scale them as the training data were.",
            stacklevel=4,
        )
