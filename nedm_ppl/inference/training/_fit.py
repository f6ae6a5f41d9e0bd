r"""Training: stochastic variational inference on the bound K (Section 2.4).

`fit` is NumPyro's `SVI` with what a long run needs around it: shuffled minibatches, an average of the weights, a
validation part, and checkpoints. Everything random is a function of the key and the step's number, so a run that was
killed and resumed ends where it would have ended.
"""

import functools
import inspect
import time
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Sharding
from jax.typing import ArrayLike
from numpyro.infer import ELBO, SVI
from tqdm.auto import tqdm

from nedm_ppl.arguments import Count, as_count, check_concrete, check_key, check_kind, check_unmasked, whole
from nedm_ppl.inference._devices import gathered, rows_over
from nedm_ppl.inference._far import FAR
from nedm_ppl.inference.bound._bound import TrajectoryBound
from nedm_ppl.inference.bound._evaluation import evaluate
from nedm_ppl.inference.training._loop import Augmentation, Part, Program, State, advancing, described
from nedm_ppl.inference.training._resume import TrainingRecord
from nedm_ppl.inference.training._rows import Streamed, is_streamed
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._gaussian import GaussianDiffusion
from nedm_ppl.models.reverse._context import conditionals, rows_of_context
from nedm_ppl.numbers import Estimate

__all__ = ["Augmentation", "Fitted", "NonFiniteLossError", "dequantize", "drop_context", "fit", "updates_for"]

# What `fit` chooses by where it is not told: data too few to keep any out, passes over them, and looks without a better bound.
FEWEST, EPOCHS, LEAST_UPDATES, MOST_UPDATES, PATIENCE = 20, 200, 2_000, 10_000, 6
MOST_KEPT_OUT = 10_000
BITS = 1.0 / np.log(2.0)
# One object, as is the default optimizer of a number of updates: fits by default share a compiled loop.
DEFAULT_OBJECTIVE = TrajectoryBound()


class NonFiniteLossError(FloatingPointError):
    """The training loss, or a weight, became NaN or infinite."""


class Fitted(NamedTuple):
    """A trained model and how it was trained.

    Attributes:
        diffusion: The model, with the average of its weights (the best on the validation part, where there is one).
        history: Training trace, arrays by name: `step` and `bound` (mean training bound per datum over the steps since the
            last entry, nats), and `validation_step`, `validation_bound`, `validation_se` (nats per datum).
        holdout: Mean bound per datum on the holdout with its standard error, nats; None without a holdout.
        seconds: Time spent in training steps, s, over all resumed parts.
        num_updates: Optimizer updates made.
        last: The model with the weights of the last update, not averaged.
    """

    diffusion: Diffusion
    history: dict[str, np.ndarray]
    holdout: Estimate | None
    seconds: float
    num_updates: int
    last: Diffusion

    def __repr__(self) -> str:
        return f"Fitted by {self.num_updates:,} updates in {self.seconds:.0f} s: {self.diffusion!r}"


class _Plan(NamedTuple):
    """The numbers of a run, as `fit` takes them."""

    num_updates: int
    batch_size: int
    average_decay: float
    num_times: int | None
    patience: int | None
    log_every: int
    evaluate_every: int
    checkpoint_every: int

    def checked(self, is_kept: bool, resume: bool, is_validated: bool) -> "_Plan":
        """Whole numbers; a ValueError where they do not suit each other."""
        least = {"num_updates": 1, "batch_size": 1, "log_every": 1, "evaluate_every": 1, "checkpoint_every": 1}
        values: dict[str, Any] = {n: as_count(n, getattr(self, n), least=of) for n, of in least.items()}
        for name, of in (("num_times", 1), ("patience", 0)):
            values[name] = None if getattr(self, name) is None else as_count(name, getattr(self, name), least=of)
        plan = self._replace(**values)
        if not 0.0 <= plan.average_decay < 1.0:
            raise ValueError(f"average_decay must lie in [0, 1); got {plan.average_decay:g}.")
        if resume and not is_kept:
            raise ValueError("checkpoint must name the folder to resume from where resume is True; got None.")
        if is_kept and plan.checkpoint_every % plan.log_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of log_every = {plan.log_every}; got {plan.checkpoint_every}."
            )
        if plan.patience is not None and not is_validated:
            raise ValueError("validation must be given where patience is: early stopping needs data to stop on.")
        return plan


def fit(
    rng_key: Array,
    diffusion: Diffusion,
    data: ArrayLike,
    *,
    context: ArrayLike | None = None,
    num_updates: Count | None = None,
    batch_size: Count | None = None,
    optimizer: optax.GradientTransformation | None = None,
    objective: ELBO | None = None,
    average_decay: float = 0.999,
    augment: Augmentation | None = None,
    validation: ArrayLike | None = None,
    validation_context: ArrayLike | None = None,
    evaluate_every: Count = 1000,
    patience: Count | None = None,
    holdout: ArrayLike | None = None,
    holdout_context: ArrayLike | None = None,
    num_times: Count | None = 16,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: Count = 1000,
    resume: bool = False,
    log_every: Count = 50,
    sharding: Sharding | None = None,
    progress: bool = True,
) -> Fitted:
    """Train a diffusion model on data.

    Args:
        rng_key: Random key; it and the arguments determine the result.
        diffusion: The model to start from.
        data: Training data, shape (N, *event), in the model's units of data: without `units`, scaled as the process expects. A
            memory-mapped array, `data.MappedRows`, a Grain `MapDataset` and any other source with a length and items are read as
            rows are wanted: no more than minibatches of it are in memory.
        context: The context of every datum, shape (N, *context_shape), for a network that takes one; minibatches are of pairs.
            By default the model is trained with the context it is given.
        num_updates: Optimizer updates. None chooses them by N, keeps a tenth of the data out where no validation is given, and
            stops where that part's bound no longer rises; what was chosen is printed with the bar.
        batch_size: Data per step, at most N. By default 128, and 512 where more than 5,000 data choose the updates; fewer data than
            that come several times in a step, so that runs on few data share a compiled loop.
        optimizer: Any optax transformation; by default Adam with a cosine decay from 1e-3 and gradients clipped at norm 1.
        objective: A NumPyro objective; by default `TrajectoryBound()`, one step of the chain per datum.
        average_decay: Decay of the exponential moving average of the weights, which is what is returned; 0 returns the last.
        augment: `(key, batch) -> batch`, applied to every minibatch with a fresh key: dequantization noise, shifts. With contexts
            `(key, batch, contexts) -> (batch, contexts)`; `drop_context` is for these. Batches are in the chain's units.
        validation: A part of the training set kept out, for early stopping; the best average on it is returned.
        validation_context: Its contexts, required where the data have them.
        evaluate_every: Optimizer steps between evaluations on it.
        patience: Stop after this many evaluations without a better one; None never stops early.
        holdout: Data evaluated once, at the end; nothing is chosen on it.
        holdout_context: Its contexts, required where the data have them.
        num_times: Steps of the chain per datum in evaluations, stratified; None takes all.
        checkpoint: Folder for the run's state; written every `checkpoint_every` steps and at the end.
        checkpoint_every: Optimizer steps between two writes; a multiple of `log_every`.
        resume: Go on from the folder's last complete state, with the same arguments, to bit-identical weights. Another
            model, data, key or option is refused; the optimizer's settings and `augment` cannot be compared and are trusted.
        log_every: Steps between two entries of the history; they run as one compiled loop. A fit that is equal but for arrays and
            the key, with the same optimizer object and no `augment`, finds the loop compiled.
        sharding: How a minibatch is laid over devices, for its first axis; the numbers are the same up to rounding. A run may go on
            with another.
        progress: Whether to show a bar.

    Warns:
        UserWarning: data whose pooled mean and variance do not suit the chain, or a function in the model that hides arrays from
            training.

    Raises:
        ValueError: data that are empty, masked, not finite, of the wrong shape or outside the process's support; a diffusion
            that was given a batch of contexts; num_updates < 1; a checkpoint folder in use without `resume`, or of another run.
        NonFiniteLossError: the loss or the weights stopped being finite; the last checkpoint is intact.

    Examples:
        >>> import jax
        >>> from nedm_ppl import data, inference, models
        >>> network = models.networks.ResidualMLP((2,), (2, 2), 10, width=8, depth=1, key=jax.random.key(0))
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> diffusion = models.Diffusion(process, models.VelocityPrediction(network))
        >>> x0 = data.swiss_roll(0, 100)
        >>> inference.fit(jax.random.key(1), diffusion, x0, num_updates=5, progress=False).num_updates
        5
    """
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    check_concrete("fit", "numpyro's SVI with inference.TrajectoryBound", rng_key, diffusion, data, context)
    train = cast(Part, _part(diffusion, "", data, context, context))
    stop_on = _part(diffusion, "validation", validation, validation_context, context)
    usual: Count = 128
    if num_updates is None:
        train, stop_on, unsaid = _unsaid(rng_key, train, stop_on, batch_size, progress)
        num_updates, usual, evaluate_every, patience = unsaid
    report_on = _part(diffusion, "holdout", holdout, holdout_context, context)
    every = log_every, evaluate_every, checkpoint_every
    batch_size = usual if batch_size is None else min(as_count("batch_size", batch_size), len(train.x0))
    numbers: Any = num_updates, batch_size, average_decay, num_times, patience, *every
    plan = _Plan(*numbers).checked(checkpoint is not None, resume, stop_on is not None)
    chain, jacobian = diffusion.with_units(None), diffusion.log_jacobian

    key_init, key_data, key_eval, key_holdout = jax.random.split(rng_key, 4)
    optimizer = optimizer or default_optimizer(plan.num_updates)
    program = Program(chain, optimizer, objective or DEFAULT_OBJECTIVE, plan.batch_size, average_decay, augment)
    record, folder = _record(rng_key, program, train, stop_on, plan), None if checkpoint is None else Path(checkpoint)
    svi = program.svi()
    state = record.open(folder, _first_state(program, svi, key_init, train), resume=resume)
    sharding = rows_over(sharding, "batch_size", plan.batch_size)
    advance = advancing(program, key_data, train, sharding)

    def look(state: State) -> Estimate:
        averaged = with_parameters(chain, gathered(state.average, sharding))
        return _bound(key_eval, averaged, cast(Part, stop_on), plan.num_times, jacobian)

    unit = _unit(chain, train, jacobian)
    state = _updated(state, advance, record, plan, look if stop_on else None, folder, unit, progress)
    trained = with_parameters(chain, gathered(state.average if stop_on is None else state.best, sharding))
    found = _bound(key_holdout, trained, report_on, plan.num_times, jacobian, progress) if report_on else None
    last = with_parameters(chain, gathered(svi.get_params(state.svi), sharding))
    trained, last = (model.with_units(diffusion.units) for model in (trained, last))
    return Fitted(trained, record.history(), found, record.seconds, record.step, last)


class _Unit(NamedTuple):
    """What bounds lack to be of data in their units, and the noise law's mean log likelihood there, nats; what may repair a loss
    that is not finite."""

    jacobian: float
    null: float
    repair: str = "Lower the learning rate, or clip the gradient."


def _updated(
    state: State,
    advance: Callable[[State, int, int], tuple[State, Array, Array]],
    record: TrainingRecord,
    plan: _Plan,
    look: Callable[[State], Estimate] | None,
    folder: Path | None,
    unit: _Unit,
    progress: bool,
) -> State:
    """The state after all updates, or those until no look at the validation part is better; what is due is noted and written."""
    with tqdm(total=plan.num_updates, initial=record.step, desc="fit", unit="update", disable=not progress) as bar:
        while record.step < plan.num_updates and not record.stopped(plan.patience):
            count, start = min(plan.log_every, plan.num_updates - record.step), time.perf_counter()
            state, bound = _finite(advance(state, record.step, count), record.step, folder, unit)
            record.add_steps(count, bound, time.perf_counter() - start)
            bar.update(count)
            bar.set_postfix_str(f"bound {bound * BITS:.3f} bits, null {unit.null * BITS:.3f}")
            is_time = record.step % plan.evaluate_every < count or record.step == plan.num_updates
            if look is not None and is_time and record.add_validation(look(state)):
                state = state._replace(best=state.average)
            if folder is not None and record.is_due(plan.num_updates, plan.patience, plan.checkpoint_every):
                record.write(folder, state)
    return state


@functools.lru_cache(8)
def default_optimizer(num_updates: int, learning_rate: float = 1e-3) -> optax.GradientTransformation:
    """Adam, gradients clipped at norm 1, a short warm-up and a cosine decay to a hundredth of the rate."""
    warmup = min(200, max(1, num_updates // 20))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(num_updates, warmup + 1), 0.01 * learning_rate
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def dequantize(width: float) -> Augmentation:
    """Uniform noise over one gray level of the given width (in the units of the data), fresh for every minibatch."""
    return lambda key, batch: batch + width * (jax.random.uniform(key, batch.shape) - 0.5)


def drop_context(null: ArrayLike, share: float) -> Callable[[Array, Array], Array]:
    """A function (key, contexts) -> contexts that puts `null` in place of a random share of them, for use in an augmentation.

    A model trained so is p(x_0) where it is given the null context, and p(x_0 | c) where it is given another.

    Args:
        null: The context that stands for none, as `models.Conditional` was built with: `diffusion.context` of a fresh model.
        share: Probability with which a context is dropped, in [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in [0, 1]; got {share:g}.")
    null = jnp.asarray(null)

    def drop(key: Array, contexts: Array) -> Array:
        dropped = jax.random.bernoulli(key, share, (len(contexts),) + (1,) * null.ndim)
        return jnp.where(dropped, null, contexts)

    return drop


def with_parameters(diffusion: Diffusion, parameters: dict[str, Any]) -> Diffusion:
    """The model with the parameters that SVI holds for it (`svi.get_params(state)`) in place of its own."""
    return eqx.combine(parameters["diffusion$params"], diffusion)


def _first_state(program: Program, svi: SVI, rng_key: Array, data: Part) -> State:
    state = program.first_state(svi, rng_key, data.rows(np.arange(program.batch_size) % len(data.x0)))
    parameters = svi.get_params(state)
    hidden = hidden_arrays(program.diffusion)
    if not parameters:
        held = f" {hidden}" if hidden else ""
        raise ValueError(
            f"diffusion must have parameters to train; its reverse kernel has no floating-point arrays.{held}"
        )
    if hidden:
        warnings.warn(hidden, stacklevel=3)
    return State(state, parameters, parameters)


def hidden_arrays(diffusion: Diffusion) -> str:
    """A sentence that names a function inside the model which holds arrays where nothing finds them; empty where there is none."""
    for function in filter(inspect.isfunction, jax.tree.leaves(diffusion)):
        held = inspect.getclosurevars(function)
        for name, value in (*held.nonlocals.items(), *held.globals.items()):
            if any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(value) if not inspect.ismodule(value)):
                return (
                    f"the function {function.__qualname__} holds the arrays of {name}, which are not trained: a function hides "
                    "what it holds. Make it an equinox.Module with that as a field."
                )
    return ""


def updates_for(num_data: int) -> tuple[int, int, int, int]:
    """What `fit` chooses for so many data: most updates, data per update, updates between looks, looks without a better bound."""
    batch_size = 512 if num_data > 5_000 else 128
    updates = int(np.clip(EPOCHS * num_data // batch_size, LEAST_UPDATES, MOST_UPDATES))
    return updates, batch_size, max(50, updates // 40), PATIENCE


def _unsaid(
    rng_key: Array, train: Part, stop_on: Part | None, batch_size: Count | None, progress: bool
) -> tuple[Part, Part | None, tuple[int, Count, int, int | None]]:
    """The data trained and stopped on, and the updates, batch size, updates between looks, and looks to wait for a better one."""
    num_data = len(train.x0)
    if stop_on is None and num_data >= FEWEST:
        seed = np.asarray(jax.random.key_data(jax.random.fold_in(rng_key, 1))).tolist()
        order = np.random.default_rng(seed).permutation(num_data)
        kept, trained = np.split(order, [min(max(1, num_data // 10), MOST_KEPT_OUT)])
        train, stop_on = _rows(train, np.sort(trained)), train.rows(np.sort(kept))
    updates, usual, every, patience = updates_for(num_data)
    if batch_size is None:
        batch_size = usual
    else:
        updates = int(np.clip(updates * usual // as_count("batch_size", batch_size), LEAST_UPDATES, MOST_UPDATES))
    if progress:
        out = "" if stop_on is None else f"; stops where {len(stop_on.x0):,} data that are kept out say so"
        tqdm.write(f"training: at most {updates:,} updates of {int(batch_size)} of {len(train.x0):,} data{out}")
    return train, stop_on, (updates, batch_size, every, None if stop_on is None else patience)


def _rows(part: Part, order: np.ndarray) -> Part:
    """Some rows of a part; still read when they are wanted, where they are."""
    if not isinstance(part.x0, Streamed):
        return part.rows(order)
    return Part(part.x0.part(order), None if part.context is None else part.context[order])


def _unit(chain: Diffusion, train: Part, jacobian: float) -> _Unit:
    """The unit of a run, from some of the data where they are not in memory; and a warning where their scale does not suit it."""
    some = np.asarray(train.x0.some() if isinstance(train.x0, Streamed) else train.x0, np.float64)
    unit = _Unit(jacobian, float(np.mean(chain.null_log_prob(some))) + jacobian)
    mean, sd = float(some.mean()), float(some.std())
    if not isinstance(chain.process, GaussianDiffusion) or (0.5 < sd**2 < 2.0 and abs(mean) < 0.5):
        return unit
    said = f"mean {mean:.4g} and variance {sd**2:.4g}. Give the model units=models.Standardize.of(data)."
    warnings.warn(
        f"data should have pooled mean 0 and variance 1 for a GaussianDiffusion; they have {said}", stacklevel=3
    )
    large = max(abs(mean), sd) > FAR
    return unit._replace(repair=f"The data's scale may be the cause: they have {said}") if large else unit


def _record(rng_key: Array, program: Program, train: Part, validation: Part | None, plan: _Plan) -> TrainingRecord:
    options = plan._asdict()
    del options["checkpoint_every"]  # may change
    return TrainingRecord(
        diffusion=program.diffusion,
        rng_key=rng_key,
        data=train.x0,
        validation=None if validation is None else validation.x0,
        contexts=[part.context for part in (train, validation) if part is not None and part.context is not None],
        objective=described(program.objective),
        **options,
    )


def _finite(after: tuple[State, Array, Array], first: int, folder: Path | None, unit: _Unit) -> tuple[State, float]:
    """The state and the mean bound of its last updates, nats, in the data's units; a NonFiniteLossError where either is lost."""
    state, losses, bad = after[0], np.asarray(after[1]), ~np.isfinite(np.asarray(after[1]))
    if not after[2] or bad.any():
        at = int(np.argmax(bad)) if bad.any() else len(losses) - 1
        what = f"the loss was {losses[at]}" if bad.any() else "the weights were no longer finite"
        kept = "" if folder is None else f" The last checkpoint in {folder} is intact."
        raise NonFiniteLossError(f"{what} at step {first + at + 1}. {unit.repair}{kept}")
    return state, unit.jacobian - float(losses.mean())


def _bound(
    rng_key: Array, chain: Diffusion, part: Part, num_times: int | None, jacobian: float, progress: bool = False
) -> Estimate:
    """Mean K of a part of the data, nats per datum, in their units."""
    terms = evaluate(rng_key, chain, part.x0, context=part.context, num_times=num_times, progress=progress)
    return Estimate.of(terms.total) + Estimate(jacobian, 0.0)


def _part(
    diffusion: Diffusion, name: str, x0: ArrayLike | None, context: ArrayLike | None, trained: ArrayLike | None
) -> Part | None:
    """A part of the data, checked, with the context of every datum, or None where training has none; None for no part."""
    prefix = f"{name}_" if name else ""
    if (context is None) != (x0 is None or trained is None):
        raise ValueError(
            f"{prefix}context must be given where its data and the training data's context are, and not elsewhere; got "
            f"{'none' if context is None else 'some'}."
        )
    if x0 is None:
        return None
    if context is None and any(jnp.ndim(node.context) > node.context_dim for node in conditionals(diffusion)):
        raise ValueError(
            "diffusion must hold one context, or none, to be trained; it was given a batch of them. Pass them to fit as `context`, "
            "one for every datum."
        )
    if is_streamed(x0):
        return _streamed_part(diffusion, name, x0, context)
    values = whole(name or "data", x0)
    try:
        diffusion.check_data(values)
    except ValueError as error:
        raise ValueError(str(error).replace("x0", name or "data", 1)) from None
    check_unmasked(f"{prefix}context", context)
    contexts = rows_of_context(diffusion, context, (len(values),))
    x0 = np.asarray(diffusion.to_chain(values), jnp.result_type(float))
    return Part(x0, contexts)


def _streamed_part(diffusion: Diffusion, name: str, source: Any, context: ArrayLike | None) -> Part:
    """Rows that are read when they are wanted. Some are checked; of the others a loss that is not finite tells."""
    if name:
        raise ValueError(f"{name} must be an array in memory; only training data are read as they are wanted.")
    if len(source) < 1:
        raise ValueError("data must hold at least one datum; got none.")
    rows = Streamed(source, lambda x: np.asarray(diffusion.to_chain(x), jnp.result_type(float)))
    diffusion.with_units(None).check_data(rows.some())
    contexts = rows_of_context(diffusion, context, (len(rows),))
    return Part(rows, contexts)
