r"""Bayes' rule with a conditional diffusion as the likelihood: which context is a datum's?

$$p(c | x_0) = \frac{p(c)\, p(x_0 | c)}{\sum_{c'} p(c')\, p(x_0 | c')}.$$

Nothing is trained for it: the classifier is the density model. Its log likelihoods are estimates, and under one key every class
weighs the *same* forward trajectories, so that what they have in common cancels in the differences that matter here.

A model that is wrong about many coordinates is surer of itself than it is right: small errors add up as if each were
evidence. A temperature $\tau$, one number fitted on data of their own, makes the probabilities mean what they say,

$$p_\tau(c | x_0) \propto \big(p(c)\, p(x_0 | c)\big)^{1 / \tau},$$

and leaves their order alone. Source of the temperature and of the calibration error: Guo et al., On Calibration of Modern Neural
Networks, 2017.
"""

from typing import NamedTuple

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from nedm_ppl.arguments import Count, as_count, check_concrete, check_unmasked
from nedm_ppl.inference.likelihood._likelihood import marginal_log_likelihood
from nedm_ppl.models._diffusion import Diffusion

__all__ = ["Classification", "calibration_error", "classify", "fit_temperature"]

NUM_BINS = 15
# Temperatures looked at, as logarithms: from a thousandth to a thousand.
LOG_RANGE = 7.0


class Classification(NamedTuple):
    """What Bayes' rule says of every datum. Arrays are float64 NumPy.

    Attributes:
        log_likelihood: Estimated log p(x_0 | c), nats, shape (N, num_classes); under common trajectories.
        se: Standard error of each by itself, nats, shape (N, num_classes); that of a difference is smaller.
        log_prior: log p(c), nats, shape (num_classes,).
        temperature: By which log p(c) + log p(x_0 | c) is divided; 1 is Bayes' rule.
    """

    log_likelihood: np.ndarray
    se: np.ndarray
    log_prior: np.ndarray
    temperature: float = 1.0

    @property
    def log_prob(self) -> np.ndarray:
        """log p(c | x_0) at the temperature, nats, shape (N, num_classes). As good as the likelihood estimates, and no bound."""
        return log_softmax((self.log_likelihood + self.log_prior) / self.temperature, axis=-1)

    @property
    def label(self) -> np.ndarray:
        """The likeliest class of every datum, shape (N,), whatever the temperature."""
        return np.argmax(self.log_likelihood + self.log_prior, axis=-1)

    def accuracy(self, labels: ArrayLike) -> float:
        """Share of the data whose likeliest class is theirs."""
        return float(np.mean(self.label == _checked(labels, self.log_prob)))

    def cross_entropy(self, labels: ArrayLike) -> float:
        """Mean of -log p(label | x_0), nats."""
        labels = _checked(labels, self.log_prob)
        return float(-np.mean(self.log_prob[np.arange(len(labels)), labels]))

    def calibration_error(self, labels: ArrayLike, *, num_bins: Count = NUM_BINS) -> float:
        """Expected calibration error of the probabilities; see `calibration_error`."""
        return calibration_error(np.exp(self.log_prob), labels, num_bins=num_bins)

    def calibrated(self, temperature: float) -> "Classification":
        """The same at another temperature."""
        if not temperature > 0.0:
            raise ValueError(f"temperature must be positive; got {temperature:g}.")
        return self._replace(temperature=float(temperature))


def classify(
    rng_key: Array,
    diffusion: Diffusion,
    x0: ArrayLike,
    contexts: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    num_trajectories: Count = 1,
    progress: bool = False,
) -> Classification:
    """Classify data by the likelihood of each under each context: num_classes times the cost of `marginal_log_likelihood`.

    Args:
        rng_key: Draws the trajectories, the same ones for every class.
        diffusion: A conditional model. `models.respace` makes one with fewer steps, and this cheaper in proportion.
        x0: Data $x_0$, shape (N, *event), scaled as in training.
        contexts: The classes, shape (num_classes, *context_shape): `jnp.arange(10)` for ten labels.
        log_prior: log p(c), nats, shape (num_classes,), up to a constant; uniform by default.
        num_trajectories: Trajectories per datum and class. With one, the log weight itself stands for log p(x_0 | c): in
            expectation the bound K.
        progress: Whether to show a bar.

    Raises:
        ValueError: a model that takes no context, one class or none, or a prior of another length.
    """
    check_concrete(
        "classify", "inference.likelihood.trajectory_log_weight", rng_key, diffusion, x0, contexts, log_prior
    )
    check_unmasked("contexts", contexts)
    check_unmasked("log_prior", log_prior)
    contexts = np.asarray(contexts)
    prior = np.zeros(len(contexts)) if log_prior is None else np.asarray(log_prior, np.float64)
    if len(contexts) < 2 or prior.shape != (len(contexts),):
        raise ValueError(
            f"contexts must be two or more classes, with a log_prior of each; got {len(contexts)} with {prior.shape}."
        )
    by_class = [
        marginal_log_likelihood(
            rng_key, diffusion, x0, context=context, num_trajectories=num_trajectories, progress=progress
        )
        for context in contexts
    ]
    log_prob, se = (np.stack([getattr(one, name) for one in by_class], axis=-1) for name in ("log_prob", "se"))
    return Classification(log_prob, se, log_softmax(prior))


def fit_temperature(classification: Classification, labels: ArrayLike) -> float:
    """The temperature of least cross-entropy on labeled data, which must not be those it is reported on.

    One number between a thousandth and a thousand. Where every datum is classified rightly there is no least but the lower end, and
    nothing to calibrate on: give data that are hard enough to contain errors."""
    labels = _checked(labels, classification.log_prob)

    def loss(log_temperature: float) -> float:
        return classification.calibrated(np.exp(log_temperature)).cross_entropy(labels)

    return float(np.exp(minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded").x))


def calibration_error(probs: ArrayLike, labels: ArrayLike, *, num_bins: Count = NUM_BINS) -> float:
    r"""Expected calibration error: $\sum_b (n_b / N)\, |\text{accuracy}_b - \text{confidence}_b|$ over even bins of confidence.

    Confidence is the largest probability. Biased up: with n data in a bin chance alone makes about $\sqrt{a (1 - a) / n}$ of it.

    Args:
        probs: Probabilities, shape (N, num_classes).
        labels: The truth, integers, shape (N,).
        num_bins: Number of bins of equal width.
    """
    check_unmasked("probs", probs)
    probs = np.asarray(probs, np.float64)
    labels = _checked(labels, probs)
    num_bins = as_count("num_bins", num_bins)
    confidence, right = probs.max(axis=-1), np.argmax(probs, axis=-1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gap = np.bincount(bins, right - confidence, minlength=num_bins)
    return float(np.sum(np.abs(gap)) / len(labels))


def _checked(labels: ArrayLike, probs: np.ndarray) -> np.ndarray:
    check_unmasked("labels", labels)
    values = np.asarray(labels)
    num, num_classes = probs.shape
    if values.shape != (num,) or values.dtype.kind not in "iu" or np.any((values < 0) | (values >= num_classes)):
        raise ValueError(
            f"labels must be {num} integers in 0..{num_classes - 1}, the classes by their place; got {values}."
        )
    return values
