"""The verdict on given particles: every reason by itself, in the repeat and at the step that has it."""

import numpy as np
import pytest
from scipy import stats

from nedm_ppl.inference.posterior import Particles
from nedm_ppl.inference.posterior._particle_verdict import doubts

REPEATS, NUM, TIMES = 3, 1000, 5


def good() -> Particles:
    log_weights = 0.3 * np.random.default_rng(0).standard_normal((REPEATS, NUM))
    log_weights -= np.log(np.exp(log_weights).sum(axis=1, keepdims=True))
    return Particles(
        np.zeros((REPEATS, NUM, 1)),
        log_weights,
        np.array([0.0, 0.1, -0.1]),
        np.full((REPEATS, TIMES), 900.0),
        np.full((REPEATS, TIMES), 500),
        np.zeros((REPEATS, TIMES)),
    )


def heavy() -> np.ndarray:
    """Log weights of which one repeat alone has a tail without a mean."""
    log_weights = good().log_weights.copy()
    log_weights[1] = np.log(stats.pareto(1.0).ppf((np.arange(NUM) + 0.5) / NUM))
    return log_weights


def changed(value, *places) -> np.ndarray:
    array = np.full((REPEATS, TIMES), 900.0)
    for place in places:
        array[place] = value
    return array


BAD = {
    "evidence": ({"log_evidence": np.array([0.0, 0.0, 2.0])}, "the repeats disagree about the evidence, by 2.0 nats"),
    "on the way": ({"ess": changed(4.0, (1, 3))}, "all but 4.0 of 1000 particles were lost at t = 3 of one repeat"),
    "at the end": ({"ess": changed(8.0, (2, 0))}, "the last weights of one repeat are those of 8.0 particles of 1000"),
    "tail": ({"log_weights": heavy(), "ess": changed(50.0, (1, 0))}, "the last weights have a heavy tail, k-hat"),
    "ancestors": ({"num_ancestors": np.ones((REPEATS, TIMES), int)}, "descend from one particle at t = T"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_reason_by_itself(name):
    change, message = BAD[name]
    (found,) = doubts(good()._replace(**change))
    assert message in found


FINE = {
    "nothing": {},
    "repeats that differ a little": {"log_evidence": np.array([0.0, 0.3, -0.3])},
    "a tail of many particles": {"log_weights": heavy(), "ess": changed(400.0, (1, 0))},
    "one run with one ancestor": {"num_ancestors": np.array([[1] * TIMES, [9] * TIMES, [9] * TIMES])},
}


@pytest.mark.parametrize("name", FINE)
def test_no_reason(name):
    assert doubts(good()._replace(**FINE[name])) == ()
