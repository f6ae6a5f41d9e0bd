r"""Mixtures of independent bits, and what they say about each bit of a noisy datum: basis functions in the space of words.

$$p(x_0) = \sum_k w_k \prod_i r_{ki}^{x_{0i}} (1 - r_{ki})^{1 - x_{0i}}.$$

A unit k is a soft word: its bits are near 0, near 1 or open. Noise acts on every bit alone, so that Bayes' rule under this
law is two matrix products with a softmax between them, a normalized radial basis function network that needs no learning
to know how noisy its input is: with $\ell_{ki} = r_{ki}\, q(x_{ti} | 1) + (1 - r_{ki})\, q(x_{ti} | 0)$,

$$\pi_k \propto w_k \prod_i \ell_{ki}, \qquad
  \log \frac{p(x_{0i} = 1 | x_{t, \ne i})}{p(x_{0i} = 0 | x_{t, \ne i})}
  = \log \frac{\sum_k \pi_k\, r_{ki} / \ell_{ki}}{\sum_k \pi_k\, (1 - r_{ki}) / \ell_{ki}}.$$
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid
from jax.typing import ArrayLike

from nedm_ppl.arguments import Count, as_count, check_key
from nedm_ppl.models.chain._bernoulli import BernoulliDiffusion

__all__ = ["BitMixture", "fit_bit_mixture"]


class BitMixture(eqx.Module):
    r"""A mixture of products of independent bits.

    Attributes:
        logits: Log odds of a 1 in every component, $\mathrm{logit}\, r$, shape (num_components, *event).
        log_weights: Unnormalized $\log w$, shape (num_components,).
    """

    logits: Array
    log_weights: Array

    def __check_init__(self):
        if jnp.ndim(self.logits) < 2 or jnp.shape(self.log_weights) != jnp.shape(self.logits)[:1]:
            raise ValueError(
                "logits must have shape (num_components, *event) and log_weights (num_components,); "
                f"got {jnp.shape(self.logits)} and {jnp.shape(self.log_weights)}."
            )

    def log_prob(self, x0: Array) -> Array:
        """Exact log probability in nats of bits x_0 of shape (*batch, *event), shape (*batch,)."""
        return jax.nn.logsumexp(self._joint(x0), axis=-1)

    def belief(self, x0: Array) -> Array:
        """Posterior probabilities of the components given bits of shape (*batch, *event), shape (*batch, num_components)."""
        return jax.nn.softmax(self._joint(x0), axis=-1)

    def context(self, process: BernoulliDiffusion, t: ArrayLike, x: Array) -> Array:
        r"""What the other bits say: $\log p(x_{0i} = 1 | x_{t, \ne i}) / p(x_{0i} = 0 | x_{t, \ne i})$, exact under the mixture.

        Args:
            process: Knows the noise.
            t: Time, in 1..T.
            x: State $x_t$, shape (*batch, *event).

        Returns:
            Nats, shape (*batch, *event). The bit's own evidence is not in it.
        """
        shape = jnp.shape(x)
        event, state = process.event_shape, self._rows(x)
        logits = self._flat(self.logits)
        scores, says = jax.nn.log_softmax(self.log_weights), []
        for bit in (1.0, 0.0):
            # l over q(x_t | 0): a factor that no component and neither side of the odds depends on.
            log_ratio = self._flat(process.evidence(t, jnp.full((1, *event), bit)))
            likelihood = jnp.exp(log_sigmoid(logits) + log_ratio) + jnp.exp(log_sigmoid(-logits))
            seen = state if bit else 1.0 - state
            scores = scores + seen @ jnp.log(likelihood).T
            says.append((jax.nn.sigmoid(logits) / likelihood, jax.nn.sigmoid(-logits) / likelihood))
        belief = jax.nn.softmax(scores, axis=1)
        (one_if_1, zero_if_1), (one_if_0, zero_if_0) = ((belief @ one, belief @ zero) for one, zero in says)
        odds = jnp.where(state > 0.5, jnp.log(one_if_1) - jnp.log(zero_if_1), jnp.log(one_if_0) - jnp.log(zero_if_0))
        return jnp.reshape(odds, shape)

    def _joint(self, x0: Array) -> Array:
        one, zero = self._flat(log_sigmoid(self.logits)), self._flat(log_sigmoid(-self.logits))
        scores = self._rows(x0) @ (one - zero).T + jnp.sum(zero, axis=1) + jax.nn.log_softmax(self.log_weights)
        return jnp.reshape(scores, (*jnp.shape(x0)[: jnp.ndim(x0) - self.logits.ndim + 1], -1))

    def _flat(self, values: Array) -> Array:
        return jnp.reshape(values, (values.shape[0], -1))

    def _rows(self, x: Array) -> Array:
        return jnp.reshape(x, (-1, math.prod(self.logits.shape[1:]))).astype(float)


def fit_bit_mixture(
    rng_key: Array,
    data: ArrayLike,
    num_components: Count,
    *,
    num_epochs: Count = 4,
    batch_size: Count = 4096,
    pseudo_count: float = 1.0,
) -> BitMixture:
    r"""Maximum likelihood by online expectation-maximization, from rows of the data.

    After minibatch n the expected counts move by $1/\sqrt n$ of the way to the minibatch's own; in the last pass the step
    falls as 1/n instead, so that the result averages over all of it. Source: Cappé and Moulines, On-line
    expectation-maximization algorithm for latent data models, 2009.

    Args:
        rng_key: Draws the rows and the order of the data.
        data: Bits, 0 or 1, shape (N, *event).
        num_components: K, at most N.
        num_epochs: Passes over the data.
        batch_size: Data per step; at most N are used.
        pseudo_count: Data that every component is taken to have seen with all bits open, which keeps rates off 0 and 1.

    Raises:
        ValueError: more components than data, a count below 1, a pseudo-count that is not positive, or data that are no bits.
    """
    check_key(rng_key)
    shape, rows = np.shape(data), np.asarray(data, jnp.result_type(float))
    if len(shape) < 2 or 0 in shape or not np.all((rows == 0.0) | (rows == 1.0)):
        raise ValueError(
            f"data must be bits, 0 or 1, of shape (N, *event) and not empty; got shape {shape}. Code them."
        )
    rows = np.reshape(rows, (shape[0], -1))
    num_epochs, batch_size = as_count("num_epochs", num_epochs), as_count("batch_size", batch_size)
    if as_count("num_components", num_components) > len(rows):
        raise ValueError(f"num_components must lie in 1..{len(rows)}, the number of data; got {num_components}.")
    if not pseudo_count > 0.0:
        raise ValueError(f"pseudo_count must be positive; got {pseudo_count:g}.")
    num_components, batch_size = int(num_components), min(batch_size, len(rows))
    num_batches = len(rows) // batch_size
    key_start, key_order = jax.random.split(rng_key)
    start = rows[np.asarray(jax.random.choice(key_start, len(rows), (num_components,), replace=False))]
    weight = jnp.full(num_components, 1.0 / num_components)
    counts = weight, weight[:, None] * (0.25 + 0.5 * start)
    rates = (2.0 + np.arange(num_epochs * num_batches)) ** -0.5
    last = rates[-num_batches:]
    last[:] = 1.0 / (1.0 / last[0] + np.arange(num_batches))
    for epoch in range(num_epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key_order, epoch), len(rows)))
        batches = rows[order[: num_batches * batch_size]].reshape(num_batches, batch_size, -1)
        counts = _epoch(counts, batches, rates[epoch * num_batches :][:num_batches], pseudo_count / len(rows))
    fitted = _mixture(*_smoothed(*counts, pseudo_count / len(rows)))
    return BitMixture(jnp.reshape(fitted.logits, (num_components, *shape[1:])), fitted.log_weights)


@jax.jit
def _epoch(counts: tuple[Array, Array], batches: Array, rates: Array, pseudo_count: float) -> tuple[Array, Array]:
    """One pass: expected share of the data of every component, shape (K,), and of its ones, shape (K, D)."""

    def step(counts: tuple[Array, Array], batch_rate: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        batch, rate = batch_rate
        share, ones = counts
        belief = _mixture(*_smoothed(share, ones, pseudo_count)).belief(batch) / len(batch)
        share = share + rate * (jnp.sum(belief, axis=0) - share)
        return (share, ones + rate * (belief.T @ batch - ones)), None

    return jax.lax.scan(step, counts, (batches, jnp.asarray(rates)))[0]


def _mixture(share: Array, ones: Array) -> BitMixture:
    return BitMixture(jnp.log(ones) - jnp.log(share[:, None] - ones), jnp.log(share))


def _smoothed(share: Array, ones: Array, pseudo_count: float) -> tuple[Array, Array]:
    return share + pseudo_count, ones + 0.5 * pseudo_count
