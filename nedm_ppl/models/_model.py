"""What a prior and a flow ask of the diffusion that they are made of. They know no more of it, and it makes them."""

from typing import Protocol, runtime_checkable

from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl.models._first_step import FirstStep
from nedm_ppl.models._units import Units
from nedm_ppl.models.chain._process import DiffusionProcess

__all__ = ["Model"]


@runtime_checkable
class Model(Protocol):
    """A forward process, and a reverse chain that ends in x_0; `models.Diffusion` is one, and says what each is."""

    process: DiffusionProcess
    units: Units | None

    @property
    def ending(self) -> FirstStep: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def sample(self, rng_key: Array, sample_shape: tuple[int, ...] = ()) -> Array: ...

    def first_kernel(self, x1: Array) -> Distribution: ...

    def data_law(self, t: ArrayLike, x: Array) -> Distribution: ...
