r"""A diffusion probabilistic model: a process, a reverse kernel, and the NumPyro programs they make (Section 2.2).

$$p(x_{0..T}) = \pi(x_T) \prod_{t=1}^{T} p(x_{t-1} | x_t).$$

The first step $p(x_0 | x_1)$ is the forward kernel reversed, the reverse kernel at t = 1, or a categorical over gray levels:
`_first_step` says what each is.

What is about data, $x_0$, is in the data's own units: samples, densities, the programs, priors and flows. What is about the chain,
$x_1..x_T$, its kernels, laws and trajectories, is in the chain's, in which its noise is N(0, I) and bits are 0 and 1. Both are the
same where a model has no `units`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from nedm_ppl._compat import eqx_module
from nedm_ppl.arguments import Count, Shape, as_count, as_shape, check_key, check_kind
from nedm_ppl.models._first_step import FirstStep, first_step_of
from nedm_ppl.models._flow import DiffusionFlow, probability_flow
from nedm_ppl.models._prior import DiffusionPrior
from nedm_ppl.models._saving import load, save
from nedm_ppl.models._units import GrayLevels, Units, in_units
from nedm_ppl.models.chain._chain import MarkovChain
from nedm_ppl.models.chain._process import DiffusionProcess
from nedm_ppl.models.reverse._context import bind, checked, conditionals, known, num_contexts
from nedm_ppl.models.reverse._reverse import Parameterization, Prediction, step_of

__all__ = ["Diffusion"]

TRAJECTORY = {"diffusion_trajectory": True}


class Diffusion(eqx.Module):
    r"""A process with a reverse kernel.

    Args:
        process: The forward chain, in closed form.
        reverse: A parameterization of a network, or any callable `(t, x) -> Distribution` for $p(x_{t-1} | x_t)$ with the
            process's event shape, given t in 1..T (a traced integer scalar) and x with batch axes on the left.
        first_step: `fixed`, `learned` or `quantized`.
        levels: Gray levels of the quantized first step, in the chain's units; `GrayLevels` and a `LevelPrediction` bring their own.
        units: The data's units, `Standardize`, `GrayLevels` or `Labels`; None where data are given as the chain has them.
        columns: Names of a table's columns, for `sample_frame` and the command line.

    Raises:
        ValueError: an unknown first step, levels missing or misplaced, or units, columns or a reverse kernel that do not suit the
            process.

    Examples:
        >>> import jax
        >>> from nedm_ppl import models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(40))
        >>> network = models.networks.ResidualMLP((2,), (2, 2), 40, width=16, key=jax.random.key(0))
        >>> diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
        >>> diffusion.sample(jax.random.key(1), 10).shape
        (10, 2)
    """

    process: DiffusionProcess
    reverse: Parameterization | Callable[[ArrayLike, Array], Distribution]
    first_step: str = eqx.field(static=True)
    levels: tuple[float, ...] | None = eqx.field(static=True)
    units: Units | None
    columns: tuple[str, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        process: DiffusionProcess,
        reverse: Parameterization | Callable[[ArrayLike, Array], Distribution],
        *,
        first_step: str = "fixed",
        levels: Sequence[float] | ArrayLike | None = None,
        units: Units | None = None,
        columns: Sequence[str] | None = None,
    ):
        self.process, self.reverse, self.first_step, self.units = process, reverse, first_step, units
        self.columns = None if columns is None else tuple(map(str, columns))
        if levels is None:
            own, quantized = self._own_levels, first_step == "quantized"
            self.levels = units.levels if own is None and quantized and isinstance(units, GrayLevels) else own
        else:
            self.levels = tuple(np.asarray(levels, float).tolist())

    def __check_init__(self):
        check_kind("process", self.process, DiffusionProcess)
        if not callable(self.reverse):
            raise ValueError(
                f"reverse must be a parameterization of a network, or a callable (t, x) -> Distribution; got a "
                f"{type(self.reverse).__name__}."
            )
        if isinstance(self.reverse, Parameterization):
            self.reverse.check_process(self.process)
            self.reverse.check_num_steps(self.num_steps)
            self.reverse.check_network(self.process)
        if self._own_levels not in (None, self.levels):
            raise ValueError("levels must be left to a LevelPrediction, which brings its own; got others beside it.")
        self.ending.check_process(self.process)
        if self.columns is not None and (len(self.columns),) != self.event_shape:
            raise ValueError(
                f"columns must name the {self.event_shape} coordinates of a datum; got {len(self.columns)} names."
            )
        if self.units is not None:
            check_kind("units", self.units, Units)
            self.units.check_process(self.process)
            if isinstance(self.units, GrayLevels) and self.levels != self.units.levels:
                raise ValueError(
                    "units must be Standardize for a model of densities; GrayLevels are for a model of the same gray levels, by "
                    "first_step='quantized' or a LevelPrediction of units.levels."
                )

    def __repr__(self) -> str:
        """Short at any T and with any network."""
        network = getattr(self.reverse, "network", None)
        kernel = getattr(self.reverse, "__name__", type(self.reverse).__name__)
        size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array)))
        of = "" if network is None else f" of {getattr(network, '__name__', type(network).__name__)}"
        return (
            f"Diffusion(\n  {type(self.process).__name__} of event shape {self.event_shape}, T = {self.num_steps}, "
            f"{type(self.process.schedule).__name__}\n  reverse: {kernel}{of}, {size:,} parameters\n"
            f"  first step: {self.first_step}\n{'' if self.units is None else f'  data: {self.units!r}' + chr(10)})"
        )

    @property
    def ending(self) -> FirstStep:
        """The first step that `first_step` names, as what decides."""
        return first_step_of(self.first_step, self.levels)

    @property
    def is_discrete(self) -> bool:
        """Whether the data have probabilities, bits and gray levels, and not densities."""
        return self.process.stationary().is_discrete or self.ending.is_categorical

    @property
    def _own_levels(self) -> tuple[float, ...] | None:
        return self.reverse.data_levels if isinstance(self.reverse, Parameterization) else None

    @property
    def num_steps(self) -> int:
        """Number of steps, T."""
        return self.process.num_steps

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.process.event_shape

    @property
    def context(self) -> Array | None:
        """The context, or batch of contexts, that the model is given; None where its network takes none."""
        return next((node.context for node in conditionals(self.reverse)), None)

    def with_units(self, units: Units | None) -> "Diffusion":
        """The same model of data in these units; with None, of data as the chain has them.

        Raises:
            ValueError: units that do not suit the process.
        """
        if units == self.units:
            return self
        same = eqx.tree_at(lambda d: d.units, self, units, is_leaf=lambda node: node is None)
        same.__check_init__()
        return same

    def to_chain(self, x0: Any) -> Any:
        """Data as the chain has them, shape (*batch, *event)."""
        return x0 if self.units is None else self.units.to_chain(x0)

    def to_data(self, x0: Any) -> Any:
        """What the chain has at time 0, in the data's units, shape (*batch, *event)."""
        return x0 if self.units is None else self.units.to_data(x0)

    @property
    def log_jacobian(self) -> float:
        """What a log density of a datum as the chain has it lacks to be one in the data's units; nats, exact."""
        return 0.0 if self.units is None else self.units.log_jacobian(self.event_shape)

    def given(self, context: ArrayLike | None) -> "Diffusion":
        r"""The model $p(x_0 | c)$: the same one, with its network given this context; see `models.Conditional`.

        Args:
            context: One context, or a batch that broadcasts against the batch axes of x, from the right:
                `diffusion.given(labels).sample(key, labels.shape)`. None leaves the model as it is.

        Raises:
            ValueError: a model whose network takes no context, contexts of another shape or kind, or a label beyond those of a
                network with `num_labels`; under `jit` such a label ends the program when it runs.

        Examples:
            >>> import jax, jax.numpy as jnp
            >>> from nedm_ppl import models
            >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
            >>> network = models.Conditional(lambda t, x, label: jnp.stack([x + label, x]), 0)
            >>> diffusion = models.Diffusion(process, models.DataPrediction(network))
            >>> diffusion.given(jnp.array([0, 1, 2])).sample(jax.random.key(0), 3).shape  # one label each
            (3, 2)
        """
        return self if context is None else bind(self, known(self.reverse, context))

    def kernel(self, t: ArrayLike, x: Array) -> Distribution:
        r"""The reverse kernel $p(x_{t-1} | x_t = x)$, for t = 2..T (and t = 1 where the first step is learned)."""
        self.process.check_time(t)
        return step_of(self.reverse, self.process, t, x)

    def first_kernel(self, x1: Array) -> Distribution:
        r"""The first step $p(x_0 | x_1)$."""
        return self.ending.kernel(self.process, self.reverse, x1)

    def data_law(self, t: ArrayLike, x: Array) -> Distribution:
        r"""What the model expects of $x_0$ given $x_t = x$, independent over coordinates: the kernel's own prediction,
        or for a kernel that predicts no $x_0$ the law its step implies. An approximation, not the model's posterior."""
        return self.laws(t, x)[1]

    def laws(self, t: ArrayLike, x: Array) -> tuple[Distribution, Distribution]:
        r"""The reverse kernel $p(x_{t-1} | x_t = x)$ and `data_law` together, from one evaluation of the network."""
        if isinstance(self.reverse, Prediction):
            self.process.check_time(t)
            data_law = self.reverse.data_law(self.process, t, x)
            return self.process.reverse_step(t, x, data_law), data_law
        step = self.kernel(t, x)
        return step, self.process.implied_data_law(t, x, step)

    def reverse_chain(self) -> MarkovChain:
        r"""The reverse trajectory $p(x_{1..T})$; event shape (T, *event), time ascending."""
        return MarkovChain(self.process.stationary(), self.kernel, first=1, last=self.num_steps, reverse=True)

    def null_log_prob(self, x0: ArrayLike) -> Array:
        r"""Log likelihood of data under the noise law, whose mean is $L_\text{null}$; nats, exact, shape (*batch,).

        A density $\log \pi(x_0)$ or a probability of bits; with a quantized first step the noise law integrated over the
        gray levels' bins, in the unit of the model's own probabilities."""
        return self.ending.null_log_prob(self.process, self.to_chain(x0)) + self.log_jacobian

    def check_data(self, x0: ArrayLike) -> None:
        """Raise a ValueError of one sentence where `x0`, shape (N, *event), cannot be data of this model."""
        if self.units is not None:
            self.process.check_shape(x0)
            x0 = self.units.to_chain(x0)
        self.process.check_data(x0)
        if jnp.ndim(x0) != self.process.event_dim + 1:
            raise ValueError(
                f"x0 must have one batch axis before its event shape {self.event_shape}; got shape {jnp.shape(x0)}."
            )
        if isinstance(self.reverse, Parameterization):
            self.reverse.check_data(x0)
        self.ending.check_data(self.process, x0)

    def sample(self, rng_key: Array, sample_shape: Shape = ()) -> Array:
        r"""Ancestral samples of $x_0$, exact draws from the model; shape (*sample_shape, *event), memory independent of T.

        In the data's units; where a model has some, and not under `jit`, a NumPy array in float64, which rounds nothing."""
        check_key(rng_key)
        sample_shape = as_shape("sample_shape", sample_shape)
        key_chain, key_first = jax.random.split(rng_key)
        x1 = self.reverse_chain().sample_end(key_chain, sample_shape)
        return self.to_data(_sample_first(self, key_first, x1))

    def sample_frame(self, rng_key: Array, num_samples: Count) -> Any:
        """Samples as a pandas data frame with the training table's columns, in the data's units.

        Raises:
            ValueError: a model of data that are no table.
        """
        if len(self.event_shape) != 1:
            raise ValueError(f"sample_frame is for models of tables; got one of event shape {self.event_shape}.")
        import pandas as pd

        names = self.columns or tuple(f"x{i}" for i in range(self.event_shape[0]))
        return pd.DataFrame(np.asarray(self.sample(rng_key, as_count("num_samples", num_samples))), columns=list(names))

    def sample_trajectory(self, rng_key: Array, sample_shape: Shape = ()) -> Array:
        r"""Whole trajectories $x_0..x_T$ of the model; shape (*sample_shape, T + 1, *event), time ascending, in the chain's units.

        Under the same key, the state at time 0 is `sample`'s."""
        check_key(rng_key)
        sample_shape = as_shape("sample_shape", sample_shape)
        key_chain, key_first = jax.random.split(rng_key)
        chain = self.reverse_chain()
        path = chain.sample(key_chain, sample_shape)
        x0 = _sample_first(self, key_first, chain.at(path, 1))
        axis = len(sample_shape)
        return jnp.concatenate([jnp.expand_dims(x0, axis).astype(path.dtype), path], axis=axis)

    def prior(self) -> DiffusionPrior:
        r"""The marginal $p(x_0)$ as a site of other programs: `numpyro.sample("x", diffusion.prior())`.

        Examples:
            >>> import numpyro
            >>> import numpyro.distributions as dist
            >>> from nedm_ppl import models
            >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
            >>> diffusion = models.Diffusion(process, process.step)
            >>> def program(y=None):
            ...     x = numpyro.sample("x", diffusion.prior())
            ...     return numpyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)
            >>> numpyro.handlers.seed(program, 0)().shape
            (2,)
        """
        return DiffusionPrior(self)

    def flow(
        self, rng_key: Array | None = None, *, num_probes: Count = 16, rtol: float = 1e-5, atol: float = 1e-5
    ) -> DiffusionFlow:
        r"""The probability flow, a density of its own: `numpyro.sample("x", diffusion.flow())`; see `models.flow`.

        A normalizing flow by a deterministic ODE, Gaussian chains only. It is another model than the chain, and a cross-check
        of its likelihood. `log_prob` is that of a datum $x_0$, scaled as in training; with a quantized first step that of
        $x_0$ plus noise of variance $(1 - \bar\alpha_1) / \bar\alpha_1$.

        Args:
            rng_key: Key of Hutchinson's probes for the trace, fixed for good; None takes the exact trace, at a cost that grows
                with the size of a datum, 64 coordinates at most.
            num_probes: Number of probes, with a key. `log_prob` is then an estimate; `log_prob_and_se` says its error.
            rtol: Relative tolerance of the solver.
            atol: Absolute tolerance.

        Returns:
            A NumPyro `TransformedDistribution`, event shape that of one datum; differentiable in reverse mode.

        Raises:
            ValueError: a chain over bits; a schedule that leaves no signal at T; a fixed first step with T = 1; no key for
                more than 64 coordinates; no probes, or a tolerance that is not positive.

        Examples:
            >>> import jax.numpy as jnp
            >>> from nedm_ppl import models
            >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
            >>> flow = models.Diffusion(process, process.step).flow()  # of data that are N(0, I)
            >>> round(float(flow.log_prob(jnp.zeros(2))), 2)
            -1.84
        """
        return probability_flow(self, rng_key, num_probes, rtol, atol)

    def model(
        self,
        x0: Array | None = None,
        context: Array | None = None,
        *,
        num_data: Count | None = None,
        subsample_size: Count | None = None,
    ) -> Array:
        r"""The generative program: `trajectory` $x_{1..T}$ latent, `x0` observed, both inside the plate `data`.

        Args:
            x0: Data, shape (N, *event), or a minibatch of them; None samples.
            context: The context of every datum, shape (N, *context_shape), or one for all, for a network that takes one; by
                default what the model is given.
            num_data: Size of the plate; by default N. A larger one scales a minibatch up to the whole data set.
            subsample_size: Draw a minibatch of this size inside the program, from a full x0.

        Returns:
            $x_0$, shape (N, *event) or that of the subsample.
        """
        diffusion = self._registered()
        with self._plate(x0, context, num_data, subsample_size) as (rows, contexts):
            given = diffusion if contexts is None else bind(diffusion, checked(diffusion.reverse, contexts))
            chain = given.reverse_chain()
            path = numpyro.sample("trajectory", chain, infer=TRAJECTORY)
            first = in_units(given.first_kernel(chain.at(path, 1)), self.units)
            # An analytic bound needs the model and not just this one draw of it; `infer` is NumPyro's place to say so.
            return numpyro.sample("x0", first, obs=rows, infer={"diffusion": diffusion, "context": contexts})

    def guide(
        self,
        x0: Array,
        context: Array | None = None,
        *,
        num_data: Count | None = None,
        subsample_size: Count | None = None,
    ) -> None:
        r"""The forward chain as a guide: `trajectory` given $x_0$, whatever the context.

        Same arguments as `model`; x0 is required."""
        if x0 is None:
            raise ValueError("x0 must be given to the guide: the forward chain starts from data.")
        diffusion = self._registered()
        with self._plate(x0, context, num_data, subsample_size) as (rows, _):
            numpyro.sample(
                "trajectory", diffusion.process.forward(jnp.asarray(diffusion.to_chain(rows))), infer=TRAJECTORY
            )

    def save(self, folder: str | PathLike, *, overwrite: bool = False) -> None:
        """Write the model as a folder of JSON and arrays, which appears whole or not at all.

        Args:
            folder: A new or empty folder; missing parents are made.
            overwrite: Replace the model that `folder` holds. A folder with anything else in it is never replaced.

        Raises:
            ModelFolderError: `folder` is taken.
            ValueError: the model holds what cannot be saved; the message says where.

        Examples:
            >>> import os, tempfile
            >>> import jax
            >>> from nedm_ppl import models
            >>> network = models.networks.ResidualMLP((2,), (2, 2), 10, width=4, key=jax.random.key(0))
            >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
            >>> diffusion = models.Diffusion(process, models.DataPrediction(network))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     diffusion.save(folder)
            ...     sorted(os.listdir(folder))
            ['arrays.npz', 'model.json']
        """
        save(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | PathLike, *, like: "Diffusion | None" = None) -> "Diffusion":
        """Read a model that `save` wrote: the same types, the same numbers, the same arrays bit for bit.

        Args:
            folder: The folder.
            like: A model built as the saved one was, needed where that has parts of the user's own: their code is taken from here.

        Raises:
            ModelFolderError: the folder is missing, damaged, foreign, newer than this library, or not like `like`.
            ValueError: `like` is no Diffusion.

        Examples:
            >>> import tempfile
            >>> import jax
            >>> from nedm_ppl import models
            >>> network = models.networks.ResidualMLP((2,), (2, 2), 10, width=4, key=jax.random.key(0))
            >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     models.Diffusion(process, models.DataPrediction(network)).save(folder)
            ...     models.Diffusion.load(folder).num_steps
            10
        """
        return load(folder, cls, cls._trace_one_step, like=like)

    def _trace_one_step(self) -> None:
        t, x = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(self.event_shape, jnp.float32)
        jax.eval_shape(lambda t, x: self.kernel(t, x).log_prob(x), t, x)

    def _registered(self) -> "Diffusion":
        """This model with its arrays declared as NumPyro parameters, under the one name `diffusion$params`; a context is none."""
        bare = bind(self, None)
        if not jax.tree.leaves(eqx.filter(bare, eqx.is_inexact_array)):
            return self
        return bind(eqx_module("diffusion", bare), self.context)

    @contextmanager
    def _plate(
        self, x0: Array | None, context: Array | None, num_data: Count | None, subsample_size: Count | None
    ) -> Iterator[tuple[Any, Any]]:
        """The plate `data`; yields the rows of x0 inside it, and their contexts: all of them (a minibatch, where num_data is
        larger), or a draw."""
        number = num_contexts(self.reverse, context)
        rows = number or 1 if x0 is None else self._num_rows(x0)
        if number not in (None, rows):
            raise ValueError(f"context must be one for all data or one for each of {rows}; got {number} of them.")
        num_data = rows if num_data is None else as_count("num_data", num_data)
        subsample_size = None if subsample_size is None else as_count("subsample_size", subsample_size)
        if subsample_size is None:
            subsample_size = num_data if x0 is None else rows
        if (x0 is not None or number is not None) and rows not in (num_data, subsample_size):
            raise ValueError(
                f"{'context' if x0 is None else 'x0'} must hold all num_data = {num_data} data or one minibatch of "
                f"{subsample_size}; got {rows} of them."
            )
        with numpyro.plate("data", num_data, subsample_size=subsample_size) as index:
            if rows != subsample_size:
                x0 = None if x0 is None else x0[index]
                context = context if number is None or context is None else context[index]
            yield x0, context

    def _num_rows(self, x0: Array) -> int:
        self.process.check_shape(x0)
        if jnp.ndim(x0) != self.process.event_dim + 1:
            raise ValueError(
                f"x0 must have one batch axis before its event shape {self.event_shape}; got shape {jnp.shape(x0)}."
            )
        return jnp.shape(x0)[0]


@eqx.filter_jit
def _sample_first(diffusion: Diffusion, rng_key: Array, x1: Array) -> Array:
    """Compiled once for a model's code, as a chain's steps are."""
    return diffusion.first_kernel(x1).sample(rng_key)
