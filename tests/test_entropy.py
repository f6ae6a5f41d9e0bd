"""Entropy bounds of the reverse steps against enumeration and linear-Gaussian chains; where the paper's bound fails."""

import numpy as np
import pytest
from exact import erasure, forward_matrices, linear_reverse, states

from nedm_ppl import inference, models

DIM, STEPS = 3, 4
SPARSE = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], float)  # mean activity 4 / 15


def entropy(law: np.ndarray) -> float:
    return float(-np.sum(law * np.log(np.where(law > 0.0, law, 1.0))))


def enumerated(x0: np.ndarray, betas, rate: float) -> np.ndarray:
    """Rows H(X_{t-1} | X_t, X_0), H(X_{t-1} | X_t), H(X_t | X_{t-1}) for t = 1..T, with the law of x_0 that of the rows of x0."""
    all_states = states(x0.shape[1])
    data = np.array([np.mean(np.all(x0 == state, axis=1)) for state in all_states])
    marginal, rows = np.eye(len(all_states)), []
    for step in forward_matrices(betas, rate, x0.shape[1]):
        triple = data[:, None, None] * marginal[:, :, None] * step  # x_0, x_{t-1}, x_t
        pair = triple.sum(axis=0)
        known = entropy(triple) - entropy(triple.sum(axis=1))
        rows.append((known, entropy(pair) - entropy(pair.sum(axis=0)), entropy(pair) - entropy(pair.sum(axis=1))))
        marginal = marginal @ step
    return np.array(rows).T


@pytest.mark.central
@pytest.mark.parametrize("rate", [0.5, 4 / 15, 0.1])
def test_bounds_of_bits_are_those_of_enumeration(x64, rate):
    schedule = models.schedules.erasing(STEPS)
    bounds = inference.entropy_bounds(models.BernoulliDiffusion((DIM,), schedule, rate=rate), SPARSE)
    lower, exact, upper = enumerated(SPARSE, schedule.betas, rate)
    np.testing.assert_allclose(bounds.lower, lower, atol=1e-12)
    np.testing.assert_allclose(bounds.upper, upper, atol=1e-12)
    assert bounds.lower[0] == 0.0 and np.all(lower <= exact + 1e-12) and np.all(exact <= bounds.upper_any_data + 1e-12)
    if rate != 0.1:  # the paper's conditions: rate 1/2, or the data's own mean activity
        assert bounds.upper_holds and bounds.excess.mean == pytest.approx(0.0, abs=1e-12)
        np.testing.assert_allclose(bounds.upper_any_data, upper, atol=1e-12)
        assert np.all(exact <= upper + 1e-12)
    assert np.all(bounds.lower_se == 0.0) == (rate == 0.5)


def test_the_papers_upper_bound_fails_on_data_unlike_the_noise_and_is_said_to(x64):
    # One bit, half of the data 1, noise rate 0.2: H(x_0 | x_1) = 0.2744 > H(x_1 | x_0) = 0.2718 bits.
    x0 = np.repeat([[0.0], [1.0]], 500, axis=0)
    process = models.BernoulliDiffusion((1,), models.schedules.FixedSchedule([0.1]), rate=0.2)
    bounds = inference.entropy_bounds(process, x0)
    _, exact, upper = enumerated(x0, [0.1], 0.2)
    np.testing.assert_allclose([exact[0] / np.log(2), upper[0] / np.log(2)], [0.2744, 0.2718], atol=5e-5)
    assert bounds.upper[0] == pytest.approx(upper[0]) and exact[0] > bounds.upper[0] and not bounds.upper_holds
    assert bounds.upper_any_data[0] >= exact[0]
    # The bound for any data is the cross-entropy of the forward kernel run in reverse.
    joint = np.array([[0.5], [0.5]]) * erasure(0.1, 0.2, 1)
    assert bounds.upper_any_data[0] == pytest.approx(-np.sum(joint * np.log(erasure(0.1, 0.2, 1).T)))


def test_standard_errors_are_those_of_per_datum_entropies(x64):
    process = models.BernoulliDiffusion((DIM,), models.schedules.erasing(STEPS), rate=0.1)
    bounds = inference.entropy_bounds(process, SPARSE)
    for t in (1, 3):
        lower = process.posterior_entropy(t, SPARSE)
        assert bounds.lower[t - 1] == pytest.approx(float(lower.mean()), abs=1e-12)
        each = [inference.entropy_bounds(process, row[None]) for row in SPARSE]
        for name in ("lower", "upper", "upper_any_data"):
            values = np.array([getattr(bound, name)[t - 1] for bound in each])
            assert getattr(bounds, f"{name}_se")[t - 1] == pytest.approx(values.std(ddof=1) / np.sqrt(5), abs=1e-12)


@pytest.mark.parametrize("variance", [1.0, 2.0])
def test_bounds_of_a_gaussian_chain_hold_the_exact_reversal(x64, variance):
    cov = variance * np.array([[1.4, 0.5], [0.5, 0.6]])
    axes = np.sqrt(2.0) * np.linalg.cholesky(cov).T
    x0 = np.concatenate([axes, -axes])  # four points with these moments
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(6))
    bounds = inference.entropy_bounds(process, x0)
    _, _, steps = linear_reverse(np.zeros(2), cov, process.schedule.betas)
    exact = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.e * steps)[1]
    assert bounds.lower[0] == -np.inf and np.all(bounds.lower_se == 0.0) and np.all(bounds.upper_se == 0.0)
    assert np.all(bounds.lower <= exact) and np.all(exact <= bounds.upper_any_data + 1e-12)
    assert bounds.excess.mean == pytest.approx(variance - 1.0)
    # Equation 24 as the paper writes it.
    for t in range(2, 7):
        terms = process.step_entropy(t, x0), process.marginal_entropy(t - 1, x0), process.marginal_entropy(t, x0)
        assert bounds.lower[t - 1] == pytest.approx(float((terms[0] + terms[1] - terms[2]).mean()), abs=1e-9)
        assert bounds.upper[t - 1] == pytest.approx(float(terms[0].mean()), abs=1e-9)
    assert np.all(exact <= bounds.upper + 1e-12) == (variance == 1.0)


def test_data_of_another_process_are_refused():
    process = models.BernoulliDiffusion((DIM,), models.schedules.erasing(STEPS), rate=0.2)
    with pytest.raises(ValueError, match="x0 must be binary"):
        inference.entropy_bounds(process, np.full((2, DIM), 0.5))
