"""The estimator in scikit-learn's own tools."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from nedm_ppl.sklearn import DiffusionDensity

RNG = np.random.default_rng(0)
X = RNG.normal([100.0, -3.0], [20.0, 5.0], (240, 2))
SMALL = DiffusionDensity(num_updates=10, num_trajectories=4)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::nedm_ppl.models.DataWarning")
def test_it_passes_the_checks_of_scikit_learn():
    check_estimator(SMALL)


@pytest.fixture(scope="module")
def fitted():
    return clone(SMALL).fit(X)


def test_a_row_has_one_score_wherever_it_stands(fitted):
    scores = fitted.score_samples(X)
    assert scores.shape == (240,) and scores.dtype == np.float64
    np.testing.assert_allclose(fitted.score_samples(X[100:101]), scores[100:101], rtol=1e-6)
    np.testing.assert_allclose(fitted.score_samples(X[::-1]), scores[::-1], rtol=1e-6)
    assert fitted.score(X) == pytest.approx(scores.mean())


def test_scores_are_densities_of_the_data_in_their_units(fitted):
    """Ten updates learn next to nothing: about N(mean, sd^2) by column pooled, not in units of standard deviations."""
    again = clone(SMALL).fit(1000.0 * X)
    np.testing.assert_allclose(
        again.score_samples(1000.0 * X), fitted.score_samples(X) - 2.0 * np.log(1000.0), atol=1e-3
    )


def test_equal_fits_are_equal_and_samples_are_in_the_units(fitted):
    again = clone(SMALL).fit(X)
    np.testing.assert_array_equal(again.score_samples(X[:5]), fitted.score_samples(X[:5]))
    draws = fitted.sample(400)
    np.testing.assert_array_equal(draws, fitted.sample(400))
    assert abs(draws.mean() - X.mean()) < 20.0 and 10.0 < draws.std() < 100.0
    other = clone(SMALL).set_params(random_state=1).fit(X)
    assert not np.array_equal(other.score_samples(X[:5]), fitted.score_samples(X[:5]))


def test_it_works_in_a_pipeline_and_a_grid_search():
    pipeline = make_pipeline(StandardScaler(), clone(SMALL))
    search = GridSearchCV(pipeline, {"diffusiondensity__num_trajectories": [2, 4]}, cv=2, refit=False).fit(X)
    assert np.all(np.isfinite(search.cv_results_["mean_test_score"]))


def test_bad_input_is_refused(fitted):
    with pytest.raises(NotFittedError):
        clone(SMALL).score_samples(X)
    with pytest.raises(ValueError, match="NaN"):
        clone(SMALL).fit(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="expecting 2 features"):
        fitted.score_samples(X[:, :1])
