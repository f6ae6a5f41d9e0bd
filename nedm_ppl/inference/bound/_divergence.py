r"""$\mathrm{KL}(q \| p)$ between one step of the posterior and one step of the reverse chain, and the ratio of their densities.

In closed form wherever NumPyro or the laws have one. A mixture $p = \sum_k w_k p_k$ has none, and is estimated: with any
weights $\rho$ that do not depend on x,

$$\mathrm{KL}(q \| p) = \sum_k \rho_k\, \mathrm{KL}(q \| p_k)
  - \mathrm{E}_q \Big[\log \frac{p(x)}{q(x)} - \sum_k \rho_k \log \frac{p_k(x)}{q(x)}\Big].$$

With $\rho_k \propto w_k \exp(-\mathrm{KL}(q \| p_k))$, near the posterior of the components in the middle of q, the gradient of the
bracket nearly vanishes there: what is left to average is of second order in the size of a step. It is averaged over two draws,
mirrored about the mean. For any other kernel a user brings, it is one draw of $\log q(x) - \log p(x)$ under q. Both are unbiased.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, sigmoid
from jax.scipy.special import logsumexp
from numpyro.distributions import BernoulliLogits, Distribution, Normal, kl_divergence

from nedm_ppl._compat import sum_rightmost
from nedm_ppl.laws._low_rank import as_correlated
from nedm_ppl.laws._mixtures import beside, components
from nedm_ppl.laws._unwrap import unwrap

__all__ = ["divergence", "log_ratio"]


def divergence(rng_key: Array, q: Distribution, p: Distribution) -> Array:
    r"""$\mathrm{KL}(q \| p)$ in nats, shape that of the broadcast batch shapes: exact in closed form, else unbiased.

    Args:
        rng_key: Used only where no closed form exists: for mixtures, and for kernels of other families.
        q: The law the expectation is under.
        p: The law compared with it, same event shape.
    """
    q_base, q_dims = unwrap(q)
    p_base, p_dims = unwrap(p)
    if isinstance(q_base, BernoulliLogits) and isinstance(p_base, BernoulliLogits) and q_dims == p_dims:
        return sum_rightmost(_bernoulli(q_base.logits, p_base.logits), q_dims)
    if components(p) is not None and isinstance(q_base, Normal | BernoulliLogits):
        return _from_mixture(rng_key, q, p)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        x = q.sample(rng_key)
        return q.log_prob(x) - p.log_prob(x)


def log_ratio(p: Distribution, q: Distribution, x: Array) -> Array:
    r"""$\log p(x) - \log q(x)$ in nats: differences by coordinate wherever q is a product, so that small ones keep their digits."""
    q_base, dims = unwrap(q)
    if q_base.event_shape:
        return p.log_prob(x) - q.log_prob(x)
    return _against(p, q_base.log_prob(x), x, dims)


def _against(p: Distribution, own: Array, x: Array, dims: int) -> Array:
    """log p(x) less the sum of `own`, what each coordinate's other density is."""
    parts = components(p)
    if parts is not None:
        log_weights, law = parts
        return logsumexp(log_weights + _against(law, beside(own, dims), beside(x, dims), dims), axis=-1)
    correlated = as_correlated(p)
    if correlated is not None:
        return sum_rightmost(correlated.independent.log_prob(x) - own, dims) + correlated.coupling(x)
    base, p_dims = unwrap(p)
    if p_dims == dims and not base.event_shape:
        return sum_rightmost(base.log_prob(x) - own, dims)
    return p.log_prob(x) - sum_rightmost(own, dims)


def _from_mixture(rng_key: Array, q: Distribution, p: Distribution) -> Array:
    """KL(q | p) of a mixture p from a product q of normals or bits; unbiased."""
    found, (base, dims) = components(p), unwrap(q)
    assert found is not None
    log_weights, parts = found
    own: Distribution
    if isinstance(base, Normal):
        own = Normal(beside(base.loc, dims), beside(base.scale, dims))
        noise = jax.random.normal(rng_key, jnp.shape(base.loc), base.loc.dtype)
        draws = base.loc + jnp.stack([noise, -noise]) * base.scale
    else:
        assert isinstance(base, BernoulliLogits)
        own = BernoulliLogits(beside(base.logits, dims))
        uniform = jax.random.uniform(rng_key, jnp.shape(base.logits), base.logits.dtype)
        draws = (jnp.stack([uniform, 1.0 - uniform]) < base.probs).astype(float)
    by_part = divergence(rng_key, own.to_event(dims), parts)
    # rho is any function of the state: no gradient goes through it, since none is missing.
    shares = jax.lax.stop_gradient(jax.nn.softmax(log_weights - by_part))
    ratios = _against(parts, beside(base.log_prob(draws), dims), beside(draws, dims), dims)
    gap = logsumexp(log_weights + ratios, axis=-1) - jnp.sum(shares * ratios, axis=-1)
    return jnp.sum(shares * by_part, axis=-1) - jnp.mean(gap, axis=0)


def _bernoulli(q: Array, p: Array) -> Array:
    # Both halves from log-sigmoids: a probability of 1e-4 and its complement keep their digits alike.
    one = sigmoid(q) * (log_sigmoid(q) - log_sigmoid(p))
    zero = sigmoid(-q) * (log_sigmoid(-q) - log_sigmoid(-p))
    return jnp.where(jnp.isinf(q), jnp.where(q > 0, -log_sigmoid(p), -log_sigmoid(-p)), one + zero)
