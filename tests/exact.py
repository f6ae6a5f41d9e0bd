r"""Truths the tests compare with, in numpy and float64, sharing no formula with the package.

Bits: laws over all $2^D$ states as vectors, kernels as $2^D \times 2^D$ matrices, row = the state conditioned on.
Gaussians: every expectation of a chain of linear kernels $p(x_{t-1} | x_t) = \mathcal N(A_t x_t + b_t, C_t)$ in closed form.
"""

from functools import reduce
from itertools import product
from math import comb

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logit
from scipy.special import logsumexp, xlogy

# --- bits ---------------------------------------------------------------------------------------------------------------


def states(dim: int) -> np.ndarray:
    """All 2^dim bit patterns, shape (2^dim, dim), the last bit fastest."""
    return np.array(list(product((0.0, 1.0), repeat=dim)))


def product_law(probs: np.ndarray) -> np.ndarray:
    """The law of independent bits with P(1) = probs, over `states`."""
    return reduce(np.kron, [np.array([1.0 - p, p]) for p in probs])


def erasure(noise: float, rate: float, dim: int) -> np.ndarray:
    """Matrix of "each bit survives with 1 - noise, else is redrawn with `rate`"."""
    one = (1.0 - noise) * np.eye(2) + noise * np.array([[1.0 - rate, rate]] * 2)
    return reduce(np.kron, [one] * dim)


def forward_matrices(betas, rate: float, dim: int) -> list[np.ndarray]:
    """q(x_t | x_{t-1}) for t = 1..T."""
    return [erasure(float(beta), rate, dim) for beta in betas]


def law_matrix(conditional, dim: int) -> np.ndarray:
    """Matrix of any conditional law `x -> Distribution` over bits."""
    x = jnp.asarray(states(dim))
    rows = jax.jit(jax.vmap(lambda row: conditional(row).log_prob(x)))
    return np.exp(np.asarray(rows(x), np.float64))


def reverse_matrices(diffusion) -> list[np.ndarray]:
    """p(x_{t-1} | x_t) for t = 1..T of a model over bits, whatever its kernels are."""
    (dim,) = diffusion.event_shape
    x, times = jnp.asarray(states(dim)), jnp.arange(2, diffusion.num_steps + 1)
    rows = jax.vmap(lambda t, row: diffusion.kernel(t, row).log_prob(x), in_axes=(None, 0))
    kernels = np.exp(np.asarray(jax.jit(jax.vmap(rows, in_axes=(0, None)))(times, x), np.float64))
    return [law_matrix(diffusion.first_kernel, dim), *kernels]


def bits_log_prob(diffusion) -> np.ndarray:
    """Exact log p(x_0) of every state, by T products of matrices."""
    law = product_law([diffusion.process.rate] * diffusion.event_shape[0])
    for matrix in reversed(reverse_matrices(diffusion)):
        law = law @ matrix
    return np.log(law)


def bits_bound(diffusion) -> np.ndarray:
    """Exact K of every state, E_q log p(x_{0..T}) - E_q log q(x_{1..T} | x_0) from the pairs (x_{t-1}, x_t)."""
    rate, (dim,) = diffusion.process.rate, diffusion.event_shape
    forward = forward_matrices(diffusion.process.schedule.betas, rate, dim)
    marginal, bound = np.eye(2**dim), np.zeros(2**dim)
    for f, r in zip(forward, reverse_matrices(diffusion), strict=True):
        # pairs[x_0, x_{t-1}, x_t]
        pairs = marginal[:, :, None] * f[None]
        bound += np.sum(xlogy(pairs, r.T[None]) - xlogy(pairs, f[None]), axis=(1, 2))
        marginal = marginal @ f
    return bound + marginal @ np.log(product_law([rate] * dim))


def exact_reverse(data_law: np.ndarray, betas, rate: float, dim: int) -> list[np.ndarray]:
    """q(x_{t-1} | x_t) for t = 1..T when x_0 has law `data_law`, by Bayes."""
    law, reversed_ = data_law, []
    for f in forward_matrices(betas, rate, dim):
        joint = law[:, None] * f
        law = joint.sum(axis=0)
        reversed_.append((joint / law).T)
    return reversed_


# --- the heartbeat ------------------------------------------------------------------------------------------------------

PHASES, BEATS, RATE = 5, 4, 0.2


def heartbeats() -> np.ndarray:
    """The five data: 20 bins, a 1 in every fifth."""
    return np.array([[float(i % PHASES == phase) for i in range(PHASES * BEATS)] for phase in range(PHASES)])


def _bit_posteriors(t: int, num_steps: int) -> np.ndarray:
    """q(x_{t-1} = 1 | x_t, x_0) for the erasing schedule, indexed [x_t, x_0]; abar_t = 1 - t/T."""
    before, beta = 1.0 - (t - 1) / num_steps, 1.0 / (num_steps - t + 1)
    prior = before * np.array([0.0, 1.0]) + (1.0 - before) * RATE
    step = np.array([[1.0 - beta * RATE, beta * RATE], [beta * (1.0 - RATE), 1.0 - beta * (1.0 - RATE)]])
    one = step[1][:, None] * prior[None]
    return one / (one + step[0][:, None] * (1.0 - prior)[None])


def heartbeat_best_bound(num_steps: int) -> float:
    """The best K of any per-bit reverse kernel, fixed first step, in bits: a sum over the 5^5 counts of ones per phase."""
    counts = np.array(list(product(range(BEATS + 1), repeat=PHASES)))
    ways = np.array([comb(BEATS, n) for n in range(BEATS + 1)])
    total = 0.0
    for t in range(2, num_steps + 1):
        signal = 1.0 - t / num_steps
        on, off = signal + (1.0 - signal) * RATE, (1.0 - signal) * RATE
        beat = ways * on ** np.arange(BEATS + 1) * (1.0 - on) ** np.arange(BEATS, -1, -1)
        rest = ways * off ** np.arange(BEATS + 1) * (1.0 - off) ** np.arange(BEATS, -1, -1)
        log_ratio = np.log(beat[counts]) - np.log(rest[counts])
        weight = np.exp(log_ratio - logsumexp(log_ratio, axis=1, keepdims=True))
        chance = beat[counts[:, 0]] * np.prod(rest[counts[:, 1:]], axis=1)  # the truth is phase 0
        q = _bit_posteriors(t, num_steps)
        for phase in range(PHASES):
            for bit, number in ((0, BEATS - counts[:, phase]), (1, counts[:, phase])):
                kernel = weight[:, phase] * q[bit, 1] + (1.0 - weight[:, phase]) * q[bit, 0]
                truth = q[bit, int(phase == 0)]
                divergence = xlogy(truth, truth / kernel) + xlogy(1.0 - truth, (1.0 - truth) / (1.0 - kernel))
                total += np.sum(chance * number * divergence)
    # First step: E log p(x_0 | x_1) for p the forward kernel, bit by bit.
    beta = 1.0 / num_steps
    one, zero = 1.0 - beta + beta * RATE, beta * RATE
    beat = one * np.log(one) + (1.0 - one) * np.log(beta * RATE)
    rest = zero * np.log(beta * (1.0 - RATE)) + (1.0 - zero) * np.log(1.0 - beta * RATE)
    return (BEATS * beat + (PHASES - 1) * BEATS * rest - total) / np.log(2.0)


def heartbeat_kernel(process):
    """The kernel that reaches it: every bit's own marginal given the phase's posterior."""

    def kernel(t, x):
        grouped = jnp.reshape(x, (*x.shape[:-1], BEATS, PHASES))
        evidence = jnp.sum(jnp.reshape(process.evidence(t, x), grouped.shape), axis=-2)
        # Evidence is log q(x | 1) / q(x | 0) per bit: summed over a phase's bits, the log weight of that phase.
        weight = jnp.tile(jax.nn.softmax(evidence, axis=-1), BEATS)
        log_weight, log_rest = jnp.log(weight), jnp.log1p(-jnp.minimum(weight, 1.0 - 1e-7))
        if_one, if_zero = process.posterior_logits(t, x, 1.0), process.posterior_logits(t, x, 0.0)
        one = jnp.logaddexp(
            log_weight + jax.nn.log_sigmoid(if_one),
            log_rest + jax.nn.log_sigmoid(if_zero),
        )
        zero = jnp.logaddexp(
            log_weight + jax.nn.log_sigmoid(-if_one),
            log_rest + jax.nn.log_sigmoid(-if_zero),
        )
        return dist.BernoulliLogits(one - zero).to_event(1)

    return kernel


# --- linear-Gaussian chains ---------------------------------------------------------------------------------------------


class Linear(eqx.Module):
    """Reverse kernels N(A_t x_t + b_t, C_t), t = 1..T, as a callable (t, x) -> Distribution."""

    weight: jax.Array
    bias: jax.Array
    cov: jax.Array

    def __init__(self, weight, bias, cov):
        self.weight, self.bias, self.cov = jnp.asarray(weight), jnp.asarray(bias), jnp.asarray(cov)

    def __call__(self, t, x):
        loc = jnp.einsum("ij,...j->...i", self.weight[t - 1], x) + self.bias[t - 1]
        return dist.MultivariateNormal(loc, covariance_matrix=self.cov[t - 1])


class DiagonalLinear(Linear):
    """The same, with the covariance's diagonal alone: independent Gaussians, whose divergences are in closed form."""

    def __call__(self, t, x):
        loc = jnp.einsum("ij,...j->...i", self.weight[t - 1], x) + self.bias[t - 1]
        return dist.Normal(loc, jnp.sqrt(jnp.diagonal(self.cov[t - 1]))).to_event(1)


class ConditionalLinear(eqx.Module):
    """Reverse kernels N(A_t x_t + b_t + G_t c, C_t), as a callable (t, x, c) -> Distribution, any batch axes of both."""

    linear: Linear
    gain: jax.Array

    def __call__(self, t, x, context):
        law = self.linear(t, x)
        loc = law.loc + jnp.einsum("ij,...j->...i", self.gain[t - 1], context)
        return dist.MultivariateNormal(loc, scale_tril=law.scale_tril)


def conditional_linear(mean, slope, cov, betas) -> ConditionalLinear:
    """The exact reversal of data N(mean + slope c, cov): its kernels' means are linear in the data's."""
    weight, bias, covs = linear_reverse(np.asarray(mean, float), np.asarray(cov, float), betas)
    columns = [linear_reverse(column, np.asarray(cov, float), betas)[1] for column in np.asarray(slope, float).T]
    return ConditionalLinear(Linear(weight, bias, covs), jnp.asarray(np.stack(columns, axis=-1)))


def linear_reverse(mean: np.ndarray, cov: np.ndarray, betas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A_t, b_t, C_t of the exact reversal of data N(mean, cov): conditioning of the joint Gaussian of (x_{t-1}, x_t)."""
    eye, weights, biases, covs = np.eye(len(mean)), [], [], []
    for beta in np.asarray(betas, np.float64):
        later_mean, later_cov = np.sqrt(1.0 - beta) * mean, (1.0 - beta) * cov + beta * eye
        weight = np.sqrt(1.0 - beta) * cov @ np.linalg.inv(later_cov)
        weights.append(weight)
        biases.append(mean - weight @ later_mean)
        covs.append(cov - weight @ later_cov @ weight.T)
        mean, cov = later_mean, later_cov
    return np.stack(weights), np.stack(biases), np.stack(covs)


def linear_data_law(weight, bias, cov) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of p(x_0), from x_T ~ N(0, I) down."""
    mean, var = np.zeros(bias.shape[1]), np.eye(bias.shape[1])
    for a, b, c in zip(weight[::-1], bias[::-1], cov[::-1], strict=True):
        mean, var = a @ mean + b, a @ var @ a.T + c
    return mean, var


def linear_bound(x0: np.ndarray, betas, weight, bias, cov) -> np.ndarray:
    """Exact K of each row of x0 when every step, the first one too, is N(A_t x_t + b_t, C_t)."""
    dim, log_2pi = x0.shape[-1], np.log(2.0 * np.pi)
    eye, bound, signal, var = np.eye(dim), np.zeros(len(x0)), 1.0, 0.0
    for beta, a, b, c in zip(np.asarray(betas, np.float64), weight, bias, cov, strict=True):
        # x_{t-1} has mean sqrt(signal) x_0 and covariance var I; its residual under the kernel has these moments.
        gain = eye - np.sqrt(1.0 - beta) * a
        residual = np.sqrt(signal) * x0 @ gain.T - b
        spread = var * gain @ gain.T + beta * a @ a.T
        precision = np.linalg.inv(c)
        quadratic = np.einsum("ni,ij,nj->n", residual, precision, residual) + np.trace(precision @ spread)
        bound += -0.5 * (dim * log_2pi + np.linalg.slogdet(c)[1] + quadratic)
        bound += 0.5 * dim * (log_2pi + 1.0 + np.log(beta))
        signal, var = signal * (1.0 - beta), var * (1.0 - beta) + beta
    return bound - 0.5 * (dim * log_2pi + signal * np.sum(x0**2, axis=-1) + dim * var)


# --- trajectories -------------------------------------------------------------------------------------------------------


def log_weights(key, diffusion, x0, num: int):
    """log p(x_{0..T}) - log q(x_{1..T} | x_0) of `num` forward trajectories per datum, shape (num, *batch)."""
    chain = diffusion.process.forward(x0)
    path = chain.sample(key, (num,))
    first = diffusion.first_kernel(chain.at(path, 1)).log_prob(x0)
    return diffusion.reverse_chain().log_prob(path) + first - chain.log_prob(path)


def clipped_logit(probs):
    """logit, away from its poles."""
    return logit(jnp.clip(jnp.asarray(probs), 1e-6, 1.0 - 1e-6))
