r"""Training: stochastic variational inference on the bound K (Section 2.4).

`fit` is NumPyro's `SVI` with what a long run needs around it: shuffled minibatches, an average of the weights, a
validation part, and checkpoints. Everything random is a function of the key and the step's number, so a run that was
killed and resumed ends where it would have ended.
"""

import time
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpyro.handlers import scale
from numpyro.infer import ELBO, SVI
from tqdm.auto import tqdm

from nedm_ppl.arguments import as_count, check_concrete, check_key, check_kind, check_unmasked, whole
from nedm_ppl.inference.bound._bound import TrajectoryBound, unsampled_trajectories
from nedm_ppl.inference.bound._evaluation import Estimate, estimate, evaluate
from nedm_ppl.inference.training._resume import TrainingRecord
from nedm_ppl.models._diffusion import Diffusion
from nedm_ppl.models.chain._gaussian import GaussianDiffusion
from nedm_ppl.models.reverse._context import rows_of_context

__all__ = ["Augmentation", "Fitted", "NonFiniteLossError", "dequantize", "drop_context", "fit"]

Augmentation = Callable[..., Any]
Batch = tuple[Array, Array | None]
BITS = 1.0 / np.log(2.0)


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
    """

    diffusion: Diffusion
    history: dict[str, np.ndarray]
    holdout: Estimate | None
    seconds: float
    num_updates: int


class _State(NamedTuple):
    """What a run carries from one step to the next."""

    svi: Any
    average: Any
    best: Any


def fit(
    rng_key: Array,
    diffusion: Diffusion,
    data: ArrayLike,
    *,
    context: ArrayLike | None = None,
    num_updates: int,
    batch_size: int = 128,
    optimizer: optax.GradientTransformation | None = None,
    objective: ELBO | None = None,
    average_decay: float = 0.999,
    augment: Augmentation | None = None,
    validation: ArrayLike | None = None,
    validation_context: ArrayLike | None = None,
    evaluate_every: int = 1000,
    patience: int | None = None,
    holdout: ArrayLike | None = None,
    holdout_context: ArrayLike | None = None,
    num_times: int | None = 16,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    log_every: int = 50,
    progress: bool = True,
) -> Fitted:
    """Train a diffusion model on data.

    Args:
        rng_key: Random key; it and the arguments determine the result.
        diffusion: The model to start from.
        data: Training data, shape (N, *event), scaled as the process expects.
        context: The context of every datum, shape (N, *context_shape), for a network that takes one; minibatches are of pairs.
            By default the model is trained with the context it is given.
        num_updates: Optimizer updates.
        batch_size: Data per step; at most N are used.
        optimizer: Any optax transformation; by default Adam with a cosine decay from 1e-3 and gradients clipped at norm 1.
        objective: A NumPyro objective; by default `TrajectoryBound()`, one step of the chain per datum.
        average_decay: Decay of the exponential moving average of the weights, which is what is returned; 0 returns the last.
        augment: `(key, batch) -> batch`, applied to every minibatch with a fresh key: dequantization noise, shifts. With contexts
            `(key, batch, contexts) -> (batch, contexts)`; `drop_context` is for these.
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
        log_every: Steps between two entries of the history; they run as one compiled loop.
        progress: Whether to show a bar.

    Raises:
        ValueError: data that are empty, masked, not finite, of the wrong shape or outside the process's support; num_updates < 1; a
            checkpoint folder in use without `resume`, or of another run.
        NonFiniteLossError: the loss or the weights stopped being finite; the last checkpoint is intact.
    """
    check_key(rng_key)
    check_kind("diffusion", diffusion, Diffusion)
    check_concrete("fit", "numpyro's SVI with inference.TrajectoryBound", rng_key, diffusion, data, context)
    data = _checked(diffusion, data, "data")
    validation = None if validation is None else _checked(diffusion, validation, "validation")
    holdout = None if holdout is None else _checked(diffusion, holdout, "holdout")
    parts = {
        "": (data, context),
        "validation_": (validation, validation_context),
        "holdout_": (holdout, holdout_context),
    }
    contexts = {name: _checked_context(diffusion, name, *part, context) for name, part in parts.items()}
    num_updates, batch_size = as_count("num_updates", num_updates), as_count("batch_size", batch_size)
    log_every, evaluate_every = as_count("log_every", log_every), as_count("evaluate_every", evaluate_every)
    checkpoint_every = as_count("checkpoint_every", checkpoint_every)
    num_times = None if num_times is None else as_count("num_times", num_times)
    patience = None if patience is None else as_count("patience", patience, least=0)
    if not 0.0 <= average_decay < 1.0:
        raise ValueError(f"average_decay must lie in [0, 1); got {average_decay:g}.")
    if resume and checkpoint is None:
        raise ValueError("checkpoint must name the folder to resume from where resume is True; got None.")
    if checkpoint is not None and checkpoint_every % log_every:
        raise ValueError(f"checkpoint_every must be a multiple of log_every = {log_every}; got {checkpoint_every}.")
    if patience is not None and validation is None:
        raise ValueError("validation must be given where patience is: early stopping needs data to stop on.")
    _warn_of_scale(diffusion, data)

    batch_size = min(batch_size, len(data))
    key_init, key_data, key_eval, key_holdout = jax.random.split(rng_key, 4)
    svi = SVI(
        scale(diffusion.model, 1.0 / batch_size),  # nats per datum, whatever the size of the minibatch
        scale(diffusion.guide, 1.0 / batch_size),
        default_optimizer(num_updates) if optimizer is None else optimizer,
        TrajectoryBound() if objective is None else objective,
    )
    with unsampled_trajectories():
        svi_state = svi.init(key_init, *_rows((jnp.asarray(data), contexts[""]), jnp.arange(batch_size)))
    parameters = svi.get_params(svi_state)
    if not parameters:
        raise ValueError("diffusion must have parameters to train; its reverse kernel has no floating-point arrays.")
    state = _State(svi_state, parameters, parameters)
    record = TrainingRecord(
        diffusion=diffusion,
        data=data,
        validation=validation,
        rng_key=rng_key,
        average_decay=average_decay,
        num_times=num_times,
        patience=patience,
        objective=_described(svi.loss),
        contexts=[values for values in (contexts[""], contexts["validation_"]) if values is not None],
        num_updates=num_updates,
        batch_size=batch_size,
        log_every=log_every,
        evaluate_every=evaluate_every,
    )
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        state = record.open(folder, state, resume=resume)

    seed = int(jax.random.randint(key_data, (), 0, np.iinfo(np.int32).max))
    run = _compiled(svi, augment, average_decay, jax.random.fold_in(key_data, 1))
    on_device = jnp.asarray(data)
    null = estimate(diffusion.null_log_prob(on_device)).mean

    with tqdm(total=num_updates, initial=record.step, desc="fit", unit="update", disable=not progress) as bar:
        while record.step < num_updates and not record.stopped(patience):
            count = min(log_every, num_updates - record.step)
            start = time.perf_counter()
            indices = _minibatches(seed, len(data), batch_size, record.step, count)
            new_state, losses, finite = run(state, (on_device, contexts[""]), jnp.asarray(indices), record.step)
            losses = np.asarray(losses)
            if not (finite and np.all(np.isfinite(losses))):
                bad = ~np.isfinite(losses)
                at = int(np.argmax(bad)) if bad.any() else count - 1
                what = f"the loss was {losses[at]}" if bad.any() else "the weights were no longer finite"
                kept = "" if folder is None else f" The last checkpoint in {folder} is intact."
                raise NonFiniteLossError(
                    f"{what} at step {record.step + at + 1}. Lower the learning rate, or clip the gradient.{kept}"
                )
            state = new_state
            record.add_steps(count, -losses.mean(), time.perf_counter() - start)
            bar.update(count)
            bar.set_postfix_str(f"bound {-losses.mean() * BITS:.3f} bits, null {null * BITS:.3f}")
            if validation is not None and (record.step % evaluate_every < count or record.step == num_updates):
                average = with_parameters(diffusion, state.average)
                terms = evaluate(key_eval, average, validation, context=contexts["validation_"], num_times=num_times)
                value = estimate(terms.total)
                if record.add_validation(value):
                    state = state._replace(best=state.average)
            ended = record.step == num_updates or record.stopped(patience)
            if folder is not None and (record.step % checkpoint_every == 0 or ended):
                record.write(folder, state)

    chosen = state.average if validation is None else state.best
    trained = with_parameters(diffusion, chosen)
    result = None
    if holdout is not None:
        terms = evaluate(
            key_holdout, trained, holdout, context=contexts["holdout_"], num_times=num_times, progress=progress
        )
        result = estimate(terms.total)
    return Fitted(trained, record.history(), result, record.seconds, record.step)


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


def _compiled(svi: SVI, augment: Augmentation | None, decay: float, key_augment: Array) -> Callable:
    """Several optimizer steps as one compiled loop.

    (state, data, indices (steps, batch), first step) -> (state, losses (steps,), whether the weights are finite)."""

    def step(carry: tuple[_State, Array], index: Array, data: Batch) -> tuple[tuple[_State, Array], Array]:
        state, number = carry
        batch = _rows(data, index)
        if augment is not None:
            key = jax.random.fold_in(key_augment, number)
            batch = (augment(key, batch[0]), None) if batch[1] is None else augment(key, *batch)
        svi_state, loss = svi.update(state.svi, *batch)
        rate = 1.0 - jnp.minimum(decay, (1.0 + number) / (10.0 + number)) if decay else 1.0
        average = jax.tree.map(lambda a, p: a + rate * (p - a), state.average, svi.get_params(svi_state))
        return (_State(svi_state, average, state.best), number + 1), loss

    @jax.jit
    def run(state: _State, data: Batch, indices: Array, first: ArrayLike) -> tuple[_State, Array, Array]:
        (state, _), losses = jax.lax.scan(lambda c, i: step(c, i, data), (state, jnp.asarray(first)), indices)
        finite = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(svi.get_params(state.svi))]
        return state, losses, jnp.all(jnp.stack(finite))

    return run


def _rows(data: Batch, index: Array) -> Batch:
    return data[0][index], None if data[1] is None else data[1][index]


def _minibatches(seed: int, num_data: int, batch_size: int, first: int, count: int) -> np.ndarray:
    """Row numbers of minibatches first..first + count - 1: epochs of one permutation each, the remainder left out."""
    per_epoch = num_data // batch_size
    rows = np.empty((count, batch_size), np.int32)
    for epoch in range(first // per_epoch, (first + count - 1) // per_epoch + 1):
        permutation = np.random.default_rng([seed, epoch]).permutation(num_data)
        for batch in range(max(first, epoch * per_epoch), min(first + count, (epoch + 1) * per_epoch)):
            start = (batch - epoch * per_epoch) * batch_size
            rows[batch - first] = permutation[start : start + batch_size]
    return rows


def _described(objective: ELBO) -> str:
    """An objective's name and options, so that a resumed run can be told from another."""
    options = ", ".join(f"{name}={value}" for name, value in sorted(vars(objective).items()) if not callable(value))
    return f"{type(objective).__name__}({options})"


def _checked(diffusion: Diffusion, x0: ArrayLike, name: str) -> np.ndarray:
    x0 = whole(name, x0)
    try:
        diffusion.check_data(x0)
    except ValueError as error:
        raise ValueError(str(error).replace("x0", name, 1)) from None
    return np.asarray(x0, jnp.result_type(float))


def _checked_context(
    diffusion: Diffusion, part: str, x0: np.ndarray | None, context: ArrayLike | None, trained: ArrayLike | None
) -> Array | None:
    """The context of every datum of a part of the data; None where training has none."""
    if (context is None) != (x0 is None or trained is None):
        raise ValueError(
            f"{part}context must be given where its data and the training data's context are, and not elsewhere; got "
            f"{'none' if context is None else 'some'}."
        )
    check_unmasked(f"{part}context", context)
    return None if x0 is None else rows_of_context(diffusion, context, (len(x0),))


def _warn_of_scale(diffusion: Diffusion, data: np.ndarray) -> None:
    mean, sd = float(data.mean()), float(data.std())
    if isinstance(diffusion.process, GaussianDiffusion) and not (0.5 < sd**2 < 2.0 and abs(mean) < 0.5):
        warnings.warn(
            f"data should have pooled mean 0 and variance 1 for a GaussianDiffusion; they have mean {mean:.4g} and variance "
            f"{sd**2:.4g}. Subtract {mean:.6g} and divide by {sd:.6g}.",
            stacklevel=3,
        )
