r"""A law multiplied by r: exactly where the factors allow it, and near it where they do not (Section 2.5, equations 60, 61).

| | normal law | bits | gray levels |
|---|---|---|---|
| `Known`, `NormalObservation` | exact | exact | exact |
| `LinearObservation` | exact, coordinates tied together | | |
| `Tabulated` | exact, a mixture for every coordinate | | |
| `BernoulliObservation` | | exact | |
| `ByCoordinate` | tabulated first | exact | exact |
| `Function`, `Downstream` | modes, or moved | ratio | ratio |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import BernoulliLogits, Distribution

from nedm_ppl.inference.posterior._local import MOST_COORDINATES, Tilted, modes, moved
from nedm_ppl.inference.posterior._multiplier import NEVER, Multiplier, Product, over_batch
from nedm_ppl.inference.posterior._proposals import independent, is_normal
from nedm_ppl.laws._low_rank import LowRankNormal
from nedm_ppl.laws._mixtures import components
from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models.reverse._levels import Levels
from nedm_ppl.numbers import log_mean_exp

__all__ = ["Tilted", "closes", "tilt"]

# A floor, lest a datum that every draw happened to miss be given up for lost.
FLOOR = -1e3


def closes(law: Distribution, r: Product) -> bool:
    """Whether the product with r has a closed form that leaves nothing to guess."""
    parts = components(law)
    if parts is not None:
        return closes(parts[1], r)
    if not is_normal(law) and not isinstance(law, LowRankNormal):
        return all(factor.times(law) is not None for factor in r.factors)
    return all(factor.closes for factor in r.factors)


def tilt(
    law: Distribution, r: Product, at: Array | None = None, power: ArrayLike = 1.0, *, num_draws: int = 16
) -> Tilted:
    r"""$p\, r^\lambda$ and, for $\lambda = 1$, $\log \int p\, r$.

    Args:
        law: p, independent over coordinates, batch shape (*batch,).
        r: The multiplier.
        at: For bits and gray levels, the state at which the other coordinates are held while the values of one are compared, shape
            (*batch, *event); by default the likeliest.
        power: $\lambda$: multiply by $r^\lambda$.
        num_draws: Draws by which an r is averaged that has neither a closed form nor a gradient.
    """
    total, rest, shaped = jnp.zeros(law.batch_shape), [], []
    for factor in r.factors:
        product, part = factor.times(law, power), factor.log_mean(law)
        if product is None or part is None:
            rest.append(factor)
        elif is_normal(law) and not is_normal(product):
            shaped.append(factor)
        else:
            law, total = product, total + part
    if not is_normal(law):
        return _ratio(law, total, rest, at, power, num_draws) if rest else Tilted(law, total)
    rough = [factor for factor in rest if not getattr(factor, "differentiable", True)]
    smooth = [factor for factor in rest if getattr(factor, "differentiable", True)]
    if not smooth and len(shaped) == 1:
        product, part = shaped[0].times(law, power), shaped[0].log_mean(law)
        assert product is not None and part is not None
        law, total = product, total + part
    elif smooth or shaped:
        log_r = Product((*smooth, *shaped)).log_r
        _check_gradient(log_r, law.event_shape)
        climb = modes if np.prod(law.event_shape) <= MOST_COORDINATES else moved
        law, part = climb(law, log_r, power)
        total = total + part
    return Tilted(law, total + _by_draws(law, Product(rough), num_draws) if rough else total)


def _ratio(
    law: Distribution, total: Array, rest: list[Multiplier], at: Array | None, power: ArrayLike, num_draws: int
) -> Tilted:
    """The odds of every bit or level by r at its values, the other coordinates held; r averaged by draws."""
    base, event_dim, log_r = coordinates(law), law.event_dim, Product(rest).log_r
    if not isinstance(base, BernoulliLogits | Levels):
        raise ValueError(
            f"r has no closed form with a {type(base).__name__} and cannot move it; kernels must end in Normal or BernoulliLogits "
            "under .to_event()."
        )
    total = total + _by_draws(law, Product(rest), num_draws)
    values = jnp.array([0.0, 1.0]) if isinstance(base, BernoulliLogits) else jnp.asarray(base.levels)
    if at is None:
        at = jnp.round(law.mean) if isinstance(base, BernoulliLogits) else values[jnp.argmax(base.logits, axis=-1)]
    at = jnp.broadcast_to(at, (*law.batch_shape, *law.event_shape))
    by_value = jnp.maximum(over_batch(lambda x: _at_values(log_r, x, values), at, event_dim), NEVER)
    if isinstance(base, BernoulliLogits):
        ratio = _finite_or_zero(by_value[..., 1] - by_value[..., 0])
        return Tilted(BernoulliLogits(base.logits + power * ratio).to_event(event_dim), total)
    return Tilted(Levels(base.logits + power * _finite_or_zero(by_value), base.levels).to_event(event_dim), total)


def _by_draws(law: Distribution, r: Product, num_draws: int) -> Array:
    """log of the mean of r over draws, from the same noise for every law of a batch: a function of the law."""
    near, _ = independent(law)
    assert near is not None
    base, key, shape = coordinates(near), jax.random.key(0), (num_draws, *law.event_shape)
    lead = (num_draws, *(1,) * len(law.batch_shape), *law.event_shape)
    if is_normal(near):
        draws = near.mean + jnp.sqrt(near.variance) * jax.random.normal(key, shape).reshape(lead)
    elif isinstance(base, Levels):
        noise = jax.random.gumbel(key, (*shape, len(base.levels))).reshape(*lead, -1)
        draws = jnp.asarray(base.levels)[jnp.argmax(base.logits + noise, axis=-1)]
    else:
        draws = (jax.random.uniform(key, shape).reshape(lead) < near.mean).astype(float)
    draws = jnp.broadcast_to(draws, (num_draws, *law.batch_shape, *law.event_shape))
    values = over_batch(r.log_r, draws, law.event_dim)
    return jnp.maximum(log_mean_exp(jnp.where(jnp.isnan(values), -jnp.inf, values)), FLOOR)


def _check_gradient(log_r: Callable[[Array], Array], shape: tuple[int, ...]) -> None:
    try:
        jax.eval_shape(jax.grad(log_r), jnp.zeros(shape))
    except (TypeError, NotImplementedError, jax.errors.JAXTypeError, ValueError) as error:
        raise ValueError(
            "r must be differentiable to move a Gaussian kernel, and its gradient failed "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Write log r with jax.numpy, or pass "
            "Function(log_r, differentiable=False) to weigh by it alone."
        ) from error


def _at_values(log_r: Callable[[Array], Array], x: Array, values: Array) -> Array:
    """log r with every coordinate in turn set to every value, the others as in x; shape (*event, len(values))."""

    def changed(i: Array, value: Array) -> Array:
        return log_r(x.reshape(-1).at[i].set(value).reshape(x.shape))

    by_value = jax.vmap(jax.vmap(changed, (None, 0)), (0, None))(jnp.arange(x.size), values.astype(x.dtype))
    return by_value.reshape(*x.shape, len(values))


def _finite_or_zero(values: Array) -> Array:
    return jnp.where(jnp.isfinite(values), values, 0.0)
