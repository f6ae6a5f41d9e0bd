"""Schedules against their closed forms, and their digits at t = 1 and T = 4000."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nedm_ppl import models
from nedm_ppl.models.chain.schedules import (
    FixedSchedule,
    LearnedSchedule,
    cosine,
    erasing,
    from_alpha_bar,
    from_losses,
    log_snr_linear,
    log_snr_logistic,
)

FIXED = {
    "erasing": erasing,
    "erasing, first rate": lambda n: erasing(n, first_rate=1e-3),
    "erasing, last rate": lambda n: erasing(n, last_rate=0.5),
    "log_snr_linear": log_snr_linear,
    "cosine": cosine,
    "log_snr_logistic": log_snr_logistic,
    "from_alpha_bar": lambda n: from_alpha_bar(1.0 - np.arange(1, n + 1) / (n + 1)),
}
LONG = 4000


def noise_by_recursion(rates) -> np.ndarray:
    """1 - abar_t in float64 as a sum of positive terms, n_t = n_{t-1} (1 - beta_t) + beta_t: no digit is lost."""
    noise = [0.0]
    for beta in np.asarray(rates, np.float64):
        noise.append(noise[-1] * (1.0 - beta) + beta)
    return np.array(noise)


@pytest.mark.parametrize("name", FIXED)
def test_one_minus_alpha_bar_keeps_its_digits(name):
    schedule = FIXED[name](LONG)
    noise = schedule.one_minus_alpha_bar
    assert noise.dtype == jnp.float32
    np.testing.assert_allclose(noise, noise_by_recursion(schedule.betas), rtol=1e-6)
    assert noise[0] == 0.0
    np.testing.assert_allclose(noise[1], schedule.betas[0], rtol=1e-7)


@pytest.mark.parametrize("name", FIXED)
def test_one_minus_learned_alpha_bar_keeps_its_digits(name):
    schedule = LearnedSchedule(FIXED[name](LONG))
    assert schedule.logits.dtype == jnp.float32
    later = 1.0 / (1.0 + np.exp(-np.asarray(schedule.logits, np.float64)))
    noise = jax.jit(lambda s: s.one_minus_alpha_bar)(schedule)
    np.testing.assert_allclose(noise, noise_by_recursion([schedule.first_rate, *later]), rtol=1e-6)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("num_steps", [2, 3, 40, LONG])
def test_shapes_ranges_and_complements(name, num_steps):
    schedule = FIXED[name](num_steps)
    assert schedule.num_steps == num_steps
    assert schedule.rates.shape == (num_steps,)
    assert schedule.alpha_bar.shape == schedule.one_minus_alpha_bar.shape == (num_steps + 1,)
    assert np.all((schedule.rates > 0.0) & (schedule.rates <= 1.0))
    assert np.all(np.diff(schedule.alpha_bar) < 0.0)
    np.testing.assert_allclose(schedule.alpha_bar + schedule.one_minus_alpha_bar, 1.0, atol=2e-7)


@pytest.mark.central
@given(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=12))
def test_alpha_bar_is_the_product_of_what_each_step_leaves(betas):
    schedule = FixedSchedule(betas)
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1.0 - np.array(betas)), rtol=1e-5)
    np.testing.assert_allclose(schedule.one_minus_alpha_bar, noise_by_recursion(betas), rtol=1e-6)
    np.testing.assert_allclose(schedule.rates, betas, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 40, LONG])
def test_erasing_erases_the_same_share_at_every_step(num_steps):
    schedule = erasing(num_steps)
    np.testing.assert_allclose(schedule.betas, [1.0 / (num_steps - t + 1) for t in range(1, num_steps + 1)], rtol=1e-12)
    np.testing.assert_allclose(schedule.one_minus_alpha_bar, np.arange(num_steps + 1) / num_steps, rtol=1e-6)
    assert schedule.rates[-1] == 1.0
    assert schedule.alpha_bar[-1] == 0.0


def test_a_chosen_first_rate_leaves_the_other_rates():
    assert erasing(7, first_rate=1e-3).betas == (1e-3, *erasing(7).betas[1:])


def test_last_rate_half_is_the_released_code():
    schedule = erasing(100, last_rate=0.5)
    np.testing.assert_allclose(schedule.betas, 1.0 / np.linspace(100.0, 2.0, 100), rtol=1e-12)
    assert 0.5 / 100 < schedule.alpha_bar[-1] < 2.0 / 100


def test_one_step_erasing_takes_the_last_rate():
    assert erasing(1, last_rate=0.3).betas == (0.3,)


@pytest.mark.parametrize("num_steps", [2, 40, LONG])
def test_log_snr_falls_linearly(num_steps):
    schedule = log_snr_linear(num_steps)
    np.testing.assert_allclose(schedule.log_snr, np.linspace(np.log(999.0), -6.0, num_steps), atol=2e-5)
    np.testing.assert_allclose(schedule.betas[0], 1e-3, rtol=1e-9)


def test_log_snr_linear_of_one_step_ends_where_it_should():
    np.testing.assert_allclose(log_snr_linear(1, end=-2.0).log_snr, [-2.0], rtol=1e-6)


def test_log_snr_logistic_is_a_quantile_function(x64):
    schedule = log_snr_logistic(9, start=5.0, end=-4.0, center=2.0, scale=1.5)
    share = 1.0 / (1.0 + np.exp(-(np.asarray(schedule.log_snr) - 2.0) / 1.5))
    np.testing.assert_allclose(np.diff(share), (share[-1] - share[0]) / 8, rtol=1e-9)
    np.testing.assert_allclose(schedule.log_snr[jnp.array([0, -1])], [5.0, -4.0], rtol=1e-9)


def test_steps_from_losses_lose_equally_much(x64):
    """Losses are spread over the log-SNR they were lost on; what is below zero counts as nothing."""
    old = log_snr_linear(5, start=4.0, end=-4.0)  # at log-SNR 4, 2, 0, -2, -4
    new = from_losses(old, np.array([1.0, 6.0, -5.0, 1.0]), num_steps=6)
    lost = 8.0 / 5.0 * np.arange(1, 5)  # before every new step; all between the first unit and the seventh
    np.testing.assert_allclose(new.log_snr, [4.0, *(2.0 - (lost - 1.0) / 3.0), -4.0], atol=1e-6)
    np.testing.assert_allclose(new.rates[0], old.rates[0], rtol=1e-12)
    np.testing.assert_allclose(new.alpha_bar[-1], old.alpha_bar[-1], rtol=1e-9)


def test_steps_from_losses_where_nothing_is_left(x64):
    """Even losses over an erasing chain: the signal left is spread as it was."""
    new = from_losses(erasing(5), np.array([2.0, 2.0, 2.0, 2.0]), num_steps=3)
    np.testing.assert_allclose(new.alpha_bar, [1.0, 0.8, 0.4, 0.0], atol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 40, LONG])
def test_log_snr_logistic_is_the_logistic_quantile_function(num_steps):
    """The shares of the steps above a ratio are those of a logistic law, cut at the two ends."""
    schedule = log_snr_logistic(num_steps, start=5.0, end=-3.0, center=2.0, scale=1.2)
    law = stats.logistic(2.0, 1.2)
    shares = law.cdf(np.asarray(schedule.log_snr, np.float64))
    np.testing.assert_allclose(shares, np.linspace(law.cdf(5.0), law.cdf(-3.0), num_steps), atol=2e-5)
    np.testing.assert_allclose(log_snr_logistic(1, end=-3.0).log_snr, [-3.0], rtol=1e-5)


@pytest.mark.parametrize("start", [log_snr_linear(40), cosine(40), erasing(40)], ids=["log_snr", "cosine", "erasing"])
def test_from_losses_gives_every_step_the_same_loss(start):
    """Losses of a known density over the ratios (over the signal, where it vanishes): the new steps are its equal quantiles."""
    signal = np.asarray(start.alpha_bar, np.float64)[1:]
    noise = np.asarray(start.one_minus_alpha_bar, np.float64)[1:]
    axis = -np.log(signal / noise) if signal[-1] > 0 else -signal
    lost = stats.norm(np.median(axis), np.ptp(axis) / 4).cdf(axis)  # what is lost up to each ratio
    new = from_losses(start, np.diff(lost), num_steps=9)
    signal, noise = np.asarray(new.alpha_bar, np.float64)[1:], np.asarray(new.one_minus_alpha_bar, np.float64)[1:]
    at = -np.log(signal / noise) if signal[-1] > 0 else -signal
    shares = np.diff(np.interp(at, axis, lost))
    np.testing.assert_allclose(shares, np.ptp(lost) / 8, rtol=2e-3)
    np.testing.assert_allclose(new.one_minus_alpha_bar[1], start.one_minus_alpha_bar[1], rtol=1e-6)
    np.testing.assert_allclose(new.alpha_bar[-1], start.alpha_bar[-1], rtol=1e-5)
    # Noise below zero counts as nothing, and the unit is of no account.
    again = from_losses(start, np.where(np.arange(39) < 5, -1.0, 3.0), num_steps=9)
    flat = from_losses(start, np.where(np.arange(39) < 5, 0.0, 1.0), num_steps=9)
    np.testing.assert_allclose(again.betas, flat.betas, rtol=1e-12)


@pytest.mark.parametrize(
    ("losses", "num_steps", "message"),
    [
        (np.ones(3), 4, "losses must have shape (4,), those of steps 2..5; got (3,)."),
        (np.ones(4), 1, "from_losses needs at least 2 steps, old and new; got 5 and 1."),
        (np.zeros(4), 4, "losses must be finite and some of them above 0"),
        (np.array([1.0, np.nan, 1.0, 1.0]), 4, "losses must be finite and some of them above 0"),
    ],
)
def test_bad_losses_are_named(losses, num_steps, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_losses(erasing(5), losses, num_steps=num_steps)


def test_cosine_is_its_formula_until_the_rate_is_capped():
    num_steps, offset = 50, 0.008
    schedule = cosine(num_steps)
    angle = np.pi / 2.0 * (np.arange(num_steps + 1) / num_steps + offset) / (1.0 + offset)
    expected = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[:-1], expected[:-1], rtol=1e-5)
    assert schedule.betas[-1] == 0.999


@given(st.lists(st.floats(0.01, 0.9), min_size=1, max_size=8))
def test_from_alpha_bar_inverts_alpha_bar(betas):
    schedule = from_alpha_bar(np.cumprod(1.0 - np.array(betas)))
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-6)


def test_fixed_schedules_are_no_parameters():
    process = models.GaussianDiffusion((2,), erasing(5))
    assert jax.tree.leaves(eqx.filter(process, eqx.is_inexact_array)) == []


def test_a_learned_schedule_starts_where_it_is_told_and_holds_its_first_rate():
    start = erasing(10, first_rate=1e-3)
    learned = LearnedSchedule(start)
    np.testing.assert_allclose(learned.rates[:-1], start.rates[:-1], rtol=1e-6)
    np.testing.assert_allclose(1.0 - learned.rates[-1], 1e-5, rtol=0.02)
    assert len(jax.tree.leaves(learned)) == 1
    moved = eqx.tree_at(lambda s: s.logits, learned, learned.logits + 1.0)
    assert moved.rates[0] == np.float32(1e-3)
    assert np.all(moved.rates[1:-1] > learned.rates[1:-1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: erasing(0), "num_steps must be an integer of at least 1; got 0."),
        (lambda: log_snr_linear(-1), "num_steps must be an integer of at least 1; got -1."),
        (lambda: cosine(0), "num_steps must be an integer of at least 1; got 0."),
        (lambda: FixedSchedule([]), "num_steps must be at least 1: a chain without a step diffuses nothing."),
        (lambda: erasing(3, last_rate=1.5), "last_rate must lie in (0, 1]; got 1.5."),
        (lambda: erasing(3, last_rate=0.0), "last_rate must lie in (0, 1]; got 0."),
        (lambda: log_snr_linear(3, start=-1.0, end=2.0), "needs end < start; got start -1 and end 2."),
        (lambda: FixedSchedule([0.1, 1.2]), "got 1.2 at step 2 of 2. Use fewer steps, or a smaller rate there."),
        (
            lambda: FixedSchedule([0.1, 0.0, 0.3]),
            "beta must lie in (0, 1), or be 1 at the last step alone; got 0 at step 2",
        ),
        (lambda: FixedSchedule([1.0, 0.5]), "got 1 at step 1 of 2"),
        (lambda: FixedSchedule([0.5, float("nan")]), "got nan at step 2 of 2"),
        (lambda: erasing(3, first_rate=-0.1), "got -0.1 at step 1 of 3"),
        (lambda: from_alpha_bar(np.array([0.5, 0.7])), "got -0.4 at step 2 of 2"),
    ],
)
def test_bad_rates_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_rates_used_in_float32_are_float64_again_under_x64():
    schedule = log_snr_linear(37)
    at = jax.jit(lambda t: schedule.rates[t])
    assert at(3).dtype == jax.vmap(at)(jnp.arange(3)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert schedule.rates.dtype == jnp.float64
        np.testing.assert_array_equal(schedule.rates, np.asarray(schedule.betas))
