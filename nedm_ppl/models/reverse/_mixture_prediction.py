r"""Predictions of $x_0$ that are mixtures: what one product of coordinates cannot say, several can.

$$\hat p(x_0 | x_t) = \sum_k w_k(x_t)\, \hat p_k(x_0 | x_t), \qquad
  p(x_{t-1} | x_t) = \sum_k w_k(x_t)\, \mathrm{E}_{\hat p_k}\, q(x_{t-1} | x_t, x_0).$$

The step is the mixture of the components' steps, with the same weights: exactly for bits and for Gaussians, and for gray levels by
the moments of every component. Data that are a mixture are then reversed exactly, at any T.

For bits and gray levels a component has a prior r, and Bayes' rule does the rest, as in a `BitPrediction`: with a the log weight of
a component, $w_k \propto e^{a_k} \prod_i \sum_b r_{ki}(b)\, q(x_{ti} | b)$. A network that returns constants is the exact posterior
under a mixture of products, at every t.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.laws._mixtures import beside, mixture
from nedm_ppl.models.chain._bernoulli import BernoulliDiffusion
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._discrete import BitPrediction, LevelPrediction, bits_given, require_bernoulli
from nedm_ppl.models.reverse._mixture import BitMixture
from nedm_ppl.models.reverse._reverse import Network, Prediction, _MomentPrediction, map_network

__all__ = ["BitMixturePrediction", "MixturePrediction"]

DISTINCT = 0.2  # how far apart components start, in the units of a network's output


class MixturePrediction(Prediction):
    r"""A mixture of K predictions of one kind, all from one network.

    Equal components have equal gradients and never part, so they start apart by a little, each in a direction of its own. A silent
    network is near one component, and not at it.

    The network's output for a component is what `prediction` asks for with one more channel, whose mean over the datum is the log
    weight: channels come first for Gaussian and bit components, (K, channels, *event), and last for gray levels.

    Args:
        prediction: A `DataPrediction`, `NoisePrediction` or `VelocityPrediction` (with directions or without), a `BitPrediction`
            without a base or a `LevelPrediction`, around a network with `MixturePrediction.shape_for`'s output shape.
        num_components: K, at least 1.

    Raises:
        ValueError: a prediction of another kind, or a base of bits, for which there is `BitMixturePrediction`.
    """

    prediction: _MomentPrediction | BitPrediction | LevelPrediction
    num_components: int = eqx.field(static=True)

    def __init__(self, prediction: _MomentPrediction | BitPrediction | LevelPrediction, num_components: int):
        self.prediction, self.num_components = prediction, num_components

    def __check_init__(self):
        if not isinstance(self.prediction, _MomentPrediction | BitPrediction | LevelPrediction):
            raise ValueError(
                "prediction must be a DataPrediction, NoisePrediction, VelocityPrediction, BitPrediction or LevelPrediction to be "
                f"a component of a mixture; got a {type(self.prediction).__name__}."
            )
        if isinstance(self.prediction, BitPrediction) and self.prediction.base is not None:
            raise ValueError("prediction must have no base to be a component; for one see BitMixturePrediction.")
        if self.num_components < 1:
            raise ValueError(f"num_components must be at least 1; got {self.num_components}.")

    @property  # type: ignore[misc]
    def network(self) -> Network:  # type: ignore[override]
        """The network of all components."""
        return self.prediction.network

    @property
    def data_levels(self) -> tuple[float, ...] | None:
        return self.prediction.data_levels

    def data_law(self, process: Any, t: ArrayLike, x: Array) -> Distribution:
        output, event_dim = self._output(process, t, x), process.event_dim
        if self._channels_last:
            output, weights = output[..., :-1], output[..., -1]
        else:
            channels = jnp.moveaxis(output, -1 - event_dim, 0)
            output, weights = jnp.moveaxis(channels[:-1], 0, -1 - event_dim), channels[-1]
        log_weights = jnp.mean(weights, axis=tuple(range(-event_dim, 0)))
        apart = DISTINCT * np.random.default_rng(0).normal(
            size=(self.num_components, *output.shape[x.ndim + 1 - event_dim :])
        )
        if isinstance(self.prediction, _MomentPrediction):
            apart[:, 1:] = 0.0  # the means alone
        elif isinstance(self.prediction, BitPrediction):
            output, apart = jnp.squeeze(output, -1 - event_dim), apart[:, 0]
        law, evidence = self.prediction.component(process, t, beside(x, event_dim), output + apart)
        return mixture(log_weights + evidence, law)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape_for(self.prediction, self.num_components, event_shape)

    @staticmethod
    def shape_for(prediction: Prediction, num_components: int, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The output shape of a network for this many components of a prediction's kind."""
        shape = prediction.output_shape(event_shape)
        if isinstance(prediction, LevelPrediction):
            return (num_components, *shape[:-1], shape[-1] + 1)
        if isinstance(prediction, BitPrediction):
            return (num_components, 2, *shape)
        return (num_components, shape[0] + 1, *shape[1:])

    def check_process(self, process: DiffusionProcess) -> None:
        self.prediction.check_process(process)

    def check_data(self, x0: ArrayLike) -> None:
        self.prediction.check_data(x0)

    @property
    def _channels_last(self) -> bool:
        return isinstance(self.prediction, LevelPrediction)


class BitMixturePrediction(Prediction):
    r"""Prediction of bits by a mixture of products that is fitted beforehand, moved by a network.

    Without the network it is the exact posterior of the mixture at every t, as a joint law of all bits: the chain then loses
    nothing against the mixture, at any T. The network, shown the probability of a 1 that the mixture believes in beside $x_t$,
    moves the log odds of every bit in all components by its first output, and tilts their weights, $a_k + \sum_i u_i r_{ki}$, by
    its second.

    Args:
        network: `(t, x) -> (2, *event)`, its x of shape (*event, 2): beliefs, then $x_t$. None leaves the mixture as it is.
        base: A law of the data, roughly (`fit_bit_mixture`), trained with the network.
    """

    network: Network | None  # type: ignore[assignment]
    base: BitMixture

    def data_law(self, process: BernoulliDiffusion, t: ArrayLike, x: Array) -> Distribution:
        event_dim, shape = process.event_dim, process.event_shape
        log_weights, logits = self.base.log_weights, self.base.logits
        if self.network is None:
            law, evidence = bits_given(process, t, beside(x, event_dim), logits)
            return mixture(log_weights + evidence, law)
        known = process.evidence(t, x) + self.base.context(process, t, x)
        seen = jnp.stack([jax.nn.sigmoid(known), jnp.broadcast_to(x, known.shape)], axis=-1)
        output = map_network(self.network, t, seen, (*shape, 2), (2, *shape))
        shift, tilt = jnp.moveaxis(output, -1 - event_dim, 0)
        flat = tilt.reshape(*tilt.shape[: tilt.ndim - event_dim], -1)
        log_weights = log_weights + flat @ jax.nn.sigmoid(logits).reshape(len(logits), -1).T
        law, evidence = bits_given(process, t, beside(x, event_dim), logits + beside(shift, event_dim))
        return mixture(log_weights + evidence, law)

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        require_bernoulli(self, process)
        if self.base.logits.shape[1:] != process.event_shape:
            raise ValueError(
                f"base must be a mixture of bits of shape {process.event_shape}; got {self.base.logits.shape[1:]}."
            )
