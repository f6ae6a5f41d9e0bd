"""A diffusion as a scikit-learn density estimator, for pipelines, cross-validation and grid searches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from nedm_ppl import inference, models
from nedm_ppl.inference.likelihood._weights import draw_log_weights
from nedm_ppl.numbers import log_mean_exp

__all__ = ["DiffusionDensity"]

ROWS = 64  # scored at a time, whatever their number: one compiled program, and no row knows its neighbors
CHUNK = 8  # steps evaluated at a time


class DiffusionDensity(DensityMixin, BaseEstimator):
    r"""A diffusion model of the rows of a table, chosen by `models.diffusion_for` and trained by `inference.fit`.

    Args:
        num_updates: Optimizer updates; None chooses them by the number of rows, and stops where a tenth that is kept out says so.
        num_trajectories: Trajectories per row by which `score_samples` estimates log p.
        kind: `real`, `levels`, `bits`, or None to find out.
        random_state: Seeds weights, training, and the noise of samples and scores; None is fixed too, so that equal fits are equal.
        progress: Whether to show bars and what was chosen.

    Attributes:
        diffusion_: The trained model, in the data's units.
        n_features_in_: Number of columns.

    `score_samples` is a function of the fitted model and the row alone: all rows are scored along the same noise, wherever they
    stand. Errors of rows are then dependent, and the error of `score`, their mean, is not smaller by a square root.

    Examples:
        >>> import numpy as np
        >>> from nedm_ppl.sklearn import DiffusionDensity
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> density = DiffusionDensity(num_updates=5, num_trajectories=4).fit(X)
        >>> density.score_samples(X[:3]).shape, density.sample(2).shape
        ((3,), (2, 2))
    """

    def __init__(
        self,
        num_updates: int | None = None,
        *,
        num_trajectories: int = 32,
        kind: str | None = None,
        random_state: Any = None,
        progress: bool = False,
    ):
        self.num_updates = num_updates
        self.num_trajectories = num_trajectories
        self.kind = kind
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> "DiffusionDensity":
        """Choose a model for the rows of X and train it.

        Args:
            X: Numbers, shape (n_samples, n_features).
            y: Ignored.

        Raises:
            ValueError: data that are not finite, no table, or fewer than two rows.
        """
        values = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        key_build, key_fit, self._key = jax.random.split(self._seed(), 3)
        names = getattr(self, "feature_names_in_", None)
        diffusion = models.diffusion_for(key_build, values, kind=self.kind, columns=names, verbose=self.progress)
        fitted = inference.fit(key_fit, diffusion, values, num_updates=self.num_updates, progress=self.progress)
        self.diffusion_ = fitted.diffusion
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of every row, estimated along forward trajectories, nats, shape (n_samples,): in expectation a lower bound.

        Raises:
            NotFittedError: before `fit`.
            ValueError: rows of another length, not finite, or no data of this model.
        """
        check_is_fitted(self, "diffusion_")
        values = validate_data(self, X, dtype=np.float64, reset=False)
        self.diffusion_.check_data(values)
        chain, rows = self.diffusion_.with_units(None), np.asarray(self.diffusion_.to_chain(values))
        keys = jax.random.split(self._key, self.num_trajectories)
        scores = []
        for start in range(0, len(rows), ROWS):
            part = rows[np.minimum(np.arange(start, start + ROWS), len(rows) - 1)]
            scores.append(np.asarray(_scores(keys, chain, jnp.asarray(part)), np.float64)[: len(rows) - start])
        return np.concatenate(scores) + self.diffusion_.log_jacobian

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`, nats a row."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """Draws from the model, exact, in the data's units, shape (n_samples, n_features); the same ones at every call."""
        check_is_fitted(self, "diffusion_")
        return np.asarray(self.diffusion_.sample(jax.random.fold_in(self._key, 1), n_samples), np.float64)

    def _seed(self) -> jax.Array:
        seed = 0 if self.random_state is None else int(check_random_state(self.random_state).randint(2**31 - 1))
        return jax.random.key(seed)


@eqx.filter_jit
def _scores(keys: jax.Array, diffusion: models.Diffusion, rows: jax.Array) -> jax.Array:
    """Log of the mean weight of every row, the same keys for all."""
    log_weights = jax.lax.map(
        lambda key: draw_log_weights(jnp.broadcast_to(key, (len(rows),)), diffusion, rows, chunk_size=CHUNK), keys
    )
    return log_mean_exp(log_weights)
