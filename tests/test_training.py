"""Training: what fit returns, what it refuses, and that a killed run ends where it would have ended."""

import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nedm_ppl import inference, models
from nedm_ppl.inference.training._loop import _kept, _minibatches
from nedm_ppl.inference.training._resume import TrainingRecord
from tests.zoo import noise_of

KEY = jax.random.key(0)


def correlated(num_data: int) -> np.ndarray:
    """Plane Gaussian data, pooled mean 0 and variance 1, correlation 0.8."""
    z = np.random.default_rng(0).standard_normal((num_data, 2))
    return z @ np.linalg.cholesky([[1.0, 0.8], [0.8, 1.0]]).T


def small_model(num_steps: int = 10, **options) -> models.Diffusion:
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(num_steps))
    network = models.networks.ResidualMLP((2,), (2, 2), num_steps, width=16, depth=1, key=KEY)
    return models.Diffusion(process, models.VelocityPrediction(network), first_step="learned", **options)


def other_process() -> models.GaussianDiffusion:
    return models.GaussianDiffusion((2,), models.schedules.cosine(10))


def fit(data, diffusion=None, **options) -> inference.Fitted:
    options = {"num_updates": 60, "log_every": 20, "batch_size": 32, "progress": False} | options
    return inference.fit(KEY, small_model() if diffusion is None else diffusion, data, **options)


def leaves(model) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))]


def assert_identical(first, second) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


@pytest.mark.central
def test_fit_raises_the_bound_above_independent_coordinates_and_below_the_truth():
    data = correlated(4000)
    fitted = fit(data[:3000], num_updates=1500, batch_size=256, log_every=100, holdout=data[3000:], num_times=None)
    truth = -0.5 * np.log((2 * np.pi * np.e) ** 2 * (1 - 0.8**2))
    independent = -np.log(2 * np.pi * np.e)
    assert independent + 0.15 < fitted.holdout.mean < truth + 4 * fitted.holdout.se
    assert fitted.num_updates == fitted.history["step"][-1] == 1500
    assert fitted.history["bound"][-1] > fitted.history["bound"][0]


def test_the_same_key_gives_the_same_weights_and_another_does_not():
    data = correlated(200)
    first = fit(data).diffusion
    typed = fit(data, num_updates=6e1, batch_size=32.0, log_every=np.float32(20))  # numbers as people type them
    assert_identical(first, typed.diffusion)
    assert typed.num_updates == 60 and isinstance(typed.num_updates, int)
    other = inference.fit(
        jax.random.key(1), small_model(), data, num_updates=60, log_every=20, batch_size=32, progress=False
    )
    assert not np.array_equal(leaves(first)[-1], leaves(other.diffusion)[-1])


def test_the_average_of_the_weights_is_returned_and_decay_zero_returns_the_last():
    data = correlated(200)
    fitted, last = fit(data), fit(data, average_decay=0.0).diffusion
    averaged = fitted.diffusion
    for a, b in zip(leaves(fitted.last), leaves(last), strict=True):  # two compilations
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(leaves(averaged)[-1], leaves(last)[-1])
    # By hand: one step's average is a + r (p - a) with 1 - r = min(decay, 1 / 10).
    start, one = small_model(), fit(data, num_updates=1, average_decay=0.0).diffusion
    mean = fit(data, num_updates=1).diffusion
    for a, p, m in zip(leaves(start), leaves(one), leaves(mean), strict=True):
        np.testing.assert_allclose(m, a + 0.9 * (p - a), rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_the_average_over_several_steps_forgets_by_its_own_rates():
    data = correlated(200)
    last = [
        fit(data, num_updates=n, average_decay=0.0, optimizer=optax.sgd(0.1), log_every=1).diffusion for n in (1, 2, 3)
    ]
    expected = leaves(small_model())
    for rate, model in zip((1.0 - 1.0 / 10.0, 1.0 - 2.0 / 11.0, 1.0 - 3.0 / 12.0), last, strict=True):
        expected = [a + rate * (p - a) for a, p in zip(expected, leaves(model), strict=True)]
    averaged = fit(data, num_updates=3, average_decay=0.999, optimizer=optax.sgd(0.1), log_every=1).diffusion
    for found, wanted in zip(leaves(averaged), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_every_minibatch_has_a_key_of_its_own_however_long_the_loops_are():
    def seen(log_every):
        drawn = []

        def augment(key, batch):
            jax.debug.callback(lambda value: drawn.append(float(value)), jax.random.uniform(key))
            return batch

        model = fit(correlated(64), num_updates=6, log_every=log_every, augment=augment).diffusion
        jax.effects_barrier()
        return sorted(drawn), model

    (few, first), (many, second) = seen(2), seen(6)
    assert len(set(few)) == 6 and few == many
    assert_identical(first, second)
    share = inference.drop_context(-1, 0.3)(KEY, jnp.arange(1000)) == -1
    assert 250 < int(share.sum()) < 350


def test_every_datum_is_seen_once_an_epoch_and_a_resumed_stream_is_the_same_stream():
    rows = _minibatches(3, 12, 4, 0, 6)
    assert sorted(rows[:3].ravel()) == sorted(rows[3:].ravel()) == list(range(12))
    assert not np.array_equal(rows[:3], rows[3:])
    np.testing.assert_array_equal(_minibatches(3, 12, 4, 2, 4), rows[2:])
    few = _minibatches(3, 5, 8, 0, 6)
    assert few.shape == (6, 8) and all(np.bincount(row, minlength=5).tolist().count(2) == 3 for row in few)
    assert len({row.tobytes() for row in few}) > 3
    np.testing.assert_array_equal(_minibatches(3, 5, 8, 2, 4), few[2:])


def test_augmentation_is_fresh_noise_for_every_minibatch():
    noise = inference.dequantize(0.5)
    batch = jnp.zeros((1000, 2))
    drawn = noise(KEY, batch)
    assert float(drawn.min()) >= -0.25 and float(drawn.max()) <= 0.25
    np.testing.assert_allclose(float(drawn.std()), 0.5 / np.sqrt(12), rtol=0.05)
    assert not np.array_equal(drawn, noise(jax.random.key(1), batch))
    data = np.zeros((64, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, noisy = fit(data), fit(data, augment=inference.dequantize(3.4))
    assert noisy.history["bound"][0] < plain.history["bound"][0] - 0.1


def test_early_stopping_returns_the_best_average_on_the_validation_part():
    data = correlated(300)
    rate = optax.adam(0.05)
    fitted = fit(
        data[:32],
        num_updates=4000,
        validation=data[32:],
        evaluate_every=20,
        patience=3,
        optimizer=rate,
        average_decay=0.5,
    )
    bounds = fitted.history["validation_bound"]
    assert fitted.num_updates < 4000 and len(bounds) - 1 - np.argmax(bounds) == 3
    key_eval = jax.random.split(KEY, 4)[2]
    again = inference.Estimate.of(inference.evaluate(key_eval, fitted.diffusion, data[32:], num_times=16).total)
    np.testing.assert_allclose(again.mean, bounds.max(), rtol=1e-5)


def test_a_learned_schedule_ends_better_than_a_start_that_is_not_the_best():
    # Equations 64 and 65 with a silent network contract by 1 - beta and not sqrt(1 - beta): small rates cost less.
    data = correlated(2000)
    start = models.schedules.erasing(8, first_rate=0.05, last_rate=0.5)
    learned = models.GaussianDiffusion((2,), models.schedules.LearnedSchedule(start))
    diffusion = models.Diffusion(learned, models.DriftVariance(lambda t, x: jnp.zeros((2, 2))))
    fitted = fit(data, diffusion, num_updates=400, batch_size=256, optimizer=optax.adam(0.02), log_every=100)
    before, after = (inference.evaluate(KEY, d, data).total for d in (diffusion, fitted.diffusion))
    gain = inference.Estimate.of(after - before)
    assert gain.mean > 4 * gain.se
    np.testing.assert_allclose(fitted.diffusion.process.schedule.rates[0], 0.05, rtol=1e-6)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "options",
    [
        {"num_updates": 120, "evaluate_every": 40},
        {"num_updates": 110, "evaluate_every": 30, "patience": 1, "optimizer": optax.adam(0.05)},
    ],
    ids=["whole chunks", "early stop, a last chunk in part"],
)
def test_a_run_that_was_stopped_and_resumed_ends_bit_identical(options, tmp_path, monkeypatch):
    data = correlated(300)
    options = {"validation": data[250:], "checkpoint_every": 40} | options
    whole = fit(data[:250], **options)
    write = TrainingRecord.write

    def stop_after_first(self, folder, state):
        write(self, folder, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRecord, "write", stop_after_first)
    with pytest.raises(KeyboardInterrupt):
        fit(data[:250], checkpoint=tmp_path / "run", **options)
    monkeypatch.setattr(TrainingRecord, "write", write)
    resumed = fit(data[:250], checkpoint=tmp_path / "run", resume=True, **options)
    assert_identical(whole.diffusion, resumed.diffusion)
    for name in ("step", "bound", "validation_bound"):
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])
    # What ended, early or not, stays ended.
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "steps").glob("[0-9]*"))
    assert steps[-1] == whole.num_updates


SCRIPT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_training import correlated, fit
    from nedm_ppl.inference.training._resume import TrainingRecord
    add = TrainingRecord.add_steps
    def slowly(self, *arguments):
        time.sleep(0.05)
        add(self, *arguments)
    TrainingRecord.add_steps = slowly
    fit(correlated(300), num_updates=2000, checkpoint={folder!r}, checkpoint_every=20)
"""


def test_a_run_killed_at_any_moment_and_resumed_ends_bit_identical(tmp_path):
    folder, data = tmp_path / "run", correlated(300)
    script = textwrap.dedent(SCRIPT).format(folder=str(folder), tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(list(folder.glob("steps/[0-9]*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    resumed = fit(data, num_updates=2000, checkpoint=folder, checkpoint_every=20, resume=True)
    assert_identical(resumed.diffusion, fit(data, num_updates=2000).diffusion)


def test_a_run_killed_while_it_was_described_starts_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.tmp").write_text("{")
    assert (
        fit(correlated(100), num_updates=20, checkpoint=tmp_path / "run", checkpoint_every=20, resume=True).num_updates
        == 20
    )


def test_weights_that_are_not_finite_are_neither_written_nor_returned(tmp_path):
    """The last loss of a chunk is finite, and its update is not."""
    rate = optax.sgd(lambda step: jnp.where(step < 39, 1e-3, jnp.nan))
    with pytest.raises(inference.NonFiniteLossError, match="the weights were no longer finite at step 40"):
        fit(correlated(100), num_updates=40, optimizer=rate, checkpoint=tmp_path / "run", checkpoint_every=20)
    assert [path.name for path in (tmp_path / "run" / "steps").glob("[0-9]*")] == ["20"]


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path):
    data = correlated(200)

    rate = optax.sgd(lambda step: jnp.where(step < 50, 1e-3, jnp.nan))
    with pytest.raises(inference.NonFiniteLossError, match=r"loss was nan at step 52.*last checkpoint in .* is intact"):
        fit(data, num_updates=2000, optimizer=rate, checkpoint=tmp_path / "run", checkpoint_every=20)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "steps").glob("[0-9]*"))
    assert kept == [20, 40]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((10, 2), np.nan), "data must be finite; got NaN or infinite values"),
        (np.zeros((0, 2)), r"data must hold at least one datum; got the empty shape \(0, 2\)"),
        (np.zeros((10, 3)), r"data must have trailing shape \(2,\), one datum of this process; got shape \(10, 3\)"),
        (np.zeros(2), r"data must have one batch axis before its event shape \(2,\); got shape \(2,\)"),
    ],
)
def test_bad_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        fit(data)


def test_non_binary_data_are_refused_for_bits():
    process = models.BernoulliDiffusion((2,), models.schedules.erasing(5))
    network = models.networks.ResidualMLP((2,), (2,), 5, width=8, depth=1, key=KEY)
    with pytest.raises(ValueError, match=r"data must be binary, 0 or 1, for a BernoulliDiffusion; got 0\.5"):
        fit(np.full((10, 2), 0.5), models.Diffusion(process, models.BitPrediction(network)))


def test_data_far_from_unit_variance_draw_a_warning_with_the_constants():
    data = 3.0 + 5.0 * correlated(500)
    with pytest.warns(UserWarning, match=rf"mean {data.mean():.4g} and variance.*Standardize"):
        fit(data, num_updates=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_updates": 0}, "num_updates must be an integer of at least 1; got 0"),
        ({"log_every": 0}, "log_every must be an integer of at least 1; got 0"),
        ({"batch_size": 2.5}, r"batch_size must be an integer of at least 1; got 2\.5"),
        ({"average_decay": 1.5}, r"average_decay must lie in \[0, 1\); got 1\.5"),
        ({"resume": True}, "checkpoint must name the folder to resume from where resume is True"),
        ({"patience": 2}, "validation must be given where patience is"),
        ({"checkpoint": "x", "checkpoint_every": 30}, "checkpoint_every must be a multiple of log_every = 20; got 30"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(correlated(50), **options)


def test_a_kernel_without_parameters_has_nothing_to_train():
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(5))
    with pytest.raises(ValueError, match="diffusion must have parameters to train"):
        fit(correlated(50), noise_of(process))


def test_checkpoints_in_use_damaged_or_foreign_are_refused(tmp_path):
    data, options = correlated(100), {"num_updates": 40, "checkpoint_every": 20}
    folder = tmp_path / "run"
    fit(data, checkpoint=folder, **options)
    with pytest.raises(inference.CheckpointError, match=r"is not empty; pass resume=True, or name another folder"):
        fit(data, checkpoint=folder, **options)
    with pytest.raises(inference.CheckpointError, match="holds a run with other data; resume with the same arguments"):
        fit(data[:50], checkpoint=folder, resume=True, **options)
    for other in (small_model(num_steps=12), eqx.tree_at(lambda d: d.process, small_model(), other_process())):
        with pytest.raises(inference.CheckpointError, match="holds a run with another model"):
            fit(data, other, checkpoint=folder, resume=True, **options)
    with pytest.raises(inference.CheckpointError, match=r"average_decay 0\.999 and not 0\.5"):
        fit(data, average_decay=0.5, checkpoint=folder, resume=True, **options)
    with pytest.raises(
        inference.CheckpointError, match=r"objective 'TrajectoryBound\(.*num_times=1.*and not .*num_times=2"
    ):
        fit(data, objective=inference.TrajectoryBound(2), checkpoint=folder, resume=True, **options)
    with pytest.raises(inference.CheckpointError, match="another model or optimizer"):
        fit(data, small_model(), checkpoint=folder, resume=True, optimizer=optax.sgd(0.1), **options)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("work of years")
    with pytest.raises(inference.CheckpointError, match=r"holds no training run: run\.json is missing"):
        fit(data, checkpoint=foreign, resume=True, **options)
    assert (foreign / "thesis.tex").read_text() == "work of years"

    file = folder / "steps" / "40" / "arrays.npz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(inference.CheckpointError, match=r"checkpoint .*40 is damaged .*Remove that folder"):
        fit(data, checkpoint=folder, resume=True, **options)
    (folder / "run.json").write_text("{ not json")
    with pytest.raises(inference.CheckpointError, match=r"run.json is damaged: it is not the JSON of a training run"):
        fit(data, checkpoint=folder, resume=True, **options)


# --- the compiled loop --------------------------------------------------------------------------------------------------


def compiled_by(function) -> int:
    """How many loops a function compiles anew."""
    before = _kept.cache_info().misses
    function()
    return _kept.cache_info().misses - before


def test_equal_fits_share_a_compiled_loop_and_others_do_not():
    x0, optimizer = correlated(50), optax.adam(1e-2)
    options = {"num_updates": 3, "log_every": 3, "optimizer": optimizer}
    first, again, other = fit(x0, **options), [], []
    assert compiled_by(lambda: again.append(fit(x0, **options))) == 0
    assert_identical(first.diffusion, again[0].diffusion)
    # Other weights and other data of the same shapes are arguments of the loop.
    assert compiled_by(lambda: other.append(fit(-x0, first.diffusion, **options))) == 0
    assert not np.array_equal(leaves(other[0].diffusion)[0], leaves(first.diffusion)[0])
    for changed in (
        {"optimizer": optax.adam(1e-2)},
        {"batch_size": 16},
        {"average_decay": 0.5},
        {"objective": inference.TrajectoryBound(2)},
    ):
        assert compiled_by(lambda changed=changed: fit(x0, **(options | changed))) == 1, changed


def test_a_compiled_loop_holds_nothing_that_may_change():
    """What an augmentation reads, and the options of an objective."""
    x0, optimizer, objective, width = correlated(50), optax.adam(1e-2), inference.TrajectoryBound(1), [0.0]

    def trained(**options):
        options = {"num_updates": 2, "optimizer": optimizer} | options
        return leaves(fit(x0, **options).diffusion)[0]

    def widened(key, batch):
        return batch + width[0]

    plain = trained(augment=widened)
    width[0] = 1.0
    assert not np.array_equal(trained(augment=widened), plain)
    before = trained(objective=objective)
    objective.num_times = 3
    assert not np.array_equal(trained(objective=objective), before)
