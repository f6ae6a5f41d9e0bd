r"""Independent draws of a model as one datum.

$$p(x^{(1)}, \dots, x^{(n)}) = \prod_i p(x^{(i)}), \qquad x \text{ of shape } (*\text{batch}, *\text{event}).$$

Every kernel takes batch axes on the left, so that the kernel of a stack is the kernel of one datum with the stack's axes, which
it knows as batch axes, declared to be axes of the event. What a network returns for one datum is of no consequence here.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.laws._unwrap import coordinates
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._reverse import Network, Parameterization, Prediction

__all__ = ["stacked"]


def stacked(diffusion: Diffusion, batch_shape: tuple[int, ...]) -> Diffusion:
    """Independent draws of a model as one datum of shape (*batch, *event)."""
    if not batch_shape:
        return diffusion
    process = dataclasses.replace(diffusion.process, event_shape=(*batch_shape, *diffusion.event_shape))
    one, reverse = _Apart(diffusion.reverse), diffusion.reverse
    if isinstance(reverse, Parameterization):
        kind: Any = _StackedPrediction if isinstance(reverse, Prediction) else _StackedParameterization
        stack = kind(one, diffusion.event_shape)
    else:
        stack = _StackedKernel(one, len(batch_shape))
    return Diffusion(process, stack, first_step=diffusion.first_step, levels=diffusion.levels, units=diffusion.units)


class _Apart(eqx.Module):
    """A reverse kernel of one datum, taken apart: a batch of contexts in it is the stack's, and no other batch's."""

    leaves: list[Any]
    structure: Any = eqx.field(static=True)

    def __init__(self, reverse: Any):
        self.leaves, self.structure = jax.tree.flatten(reverse)

    def whole(self) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)


class _StackedKernel(eqx.Module):
    """A kernel of the user's own."""

    one: _Apart
    num_axes: int = eqx.field(static=True)

    def __call__(self, t: ArrayLike, x: Array) -> Distribution:
        return _of_stack(self.one.whole()(t, x), x, self.num_axes)


class _Stacked(Parameterization):
    """What parameterizations share: each is called with the process of one datum."""

    one: _Apart
    event_shape: tuple[int, ...] = eqx.field(static=True)

    @property  # type: ignore[misc]  # a field of every other parameterization
    def network(self) -> Network:  # type: ignore[override]
        return self.one.whole().network

    def __call__(self, process: DiffusionProcess, t: ArrayLike, x: Array) -> Distribution:
        law = self.one.whole()(self._of_one(process), t, x)
        return _of_stack(law, x, process.event_dim - len(self.event_shape))

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network returns for one draw of the stack."""
        return self.one.whole().output_shape(self.event_shape)

    def check_process(self, process: DiffusionProcess) -> None:
        self.one.whole().check_process(self._of_one(process))

    def _of_one(self, process: DiffusionProcess) -> DiffusionProcess:
        return dataclasses.replace(process, event_shape=self.event_shape)


class _StackedParameterization(_Stacked):
    """A parameterization that names the step itself."""


class _StackedPrediction(_Stacked, Prediction):
    """A parameterization that predicts $x_0$."""

    def data_law(self, process: DiffusionProcess, t: ArrayLike, x: Array) -> Distribution:
        law = self.one.whole().data_law(self._of_one(process), t, x)
        return _of_stack(law, x, process.event_dim - len(self.event_shape))


def _of_stack(law: Distribution, x: Array, num_axes: int) -> Distribution:
    """A law for every draw in x, the last `num_axes` of its batch axes declared to be axes of the event."""
    batch_shape = x.shape[: x.ndim - law.event_dim]
    law = law if law.batch_shape == batch_shape else law.expand(batch_shape)  # one that does not look at x
    base = coordinates(law)
    return base.to_event(law.event_dim - base.event_dim + num_axes)
