r"""$\mathrm{KL}(q \| p)$ between one step of the posterior and one step of the reverse chain.

In closed form wherever NumPyro or this file has one; for any other kernel a user brings, one draw of
$\log q(x) - \log p(x)$ under q, which is unbiased.
"""

import jax.numpy as jnp
from jax import Array
from jax.nn import log_sigmoid, sigmoid
from numpyro.distributions import BernoulliLogits, Distribution, kl_divergence

from nedm_ppl._compat import sum_rightmost
from nedm_ppl.laws._unwrap import unwrap

__all__ = ["divergence"]


def divergence(rng_key: Array, q: Distribution, p: Distribution) -> Array:
    r"""$\mathrm{KL}(q \| p)$ in nats, shape that of the broadcast batch shapes: exact in closed form, else unbiased.

    Args:
        rng_key: Used only where no closed form exists.
        q: The law the expectation is under.
        p: The law compared with it, same event shape.
    """
    q_base, q_dims = unwrap(q)
    p_base, p_dims = unwrap(p)
    if isinstance(q_base, BernoulliLogits) and isinstance(p_base, BernoulliLogits) and q_dims == p_dims:
        return sum_rightmost(_bernoulli(q_base.logits, p_base.logits), q_dims)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        x = q.sample(rng_key)
        return q.log_prob(x) - p.log_prob(x)


def _bernoulli(q: Array, p: Array) -> Array:
    # Both halves from log-sigmoids: a probability of 1e-4 and its complement keep their digits alike.
    one = sigmoid(q) * (log_sigmoid(q) - log_sigmoid(p))
    zero = sigmoid(-q) * (log_sigmoid(-q) - log_sigmoid(-p))
    return jnp.where(jnp.isinf(q), jnp.where(q > 0, -log_sigmoid(p), -log_sigmoid(-p)), one + zero)
