"""A training run's checkpoints: what comes back is what was written, wherever it lies, and damage is never taken for a state."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nedm_ppl.files import OutputError
from nedm_ppl.inference.training._resume import CheckpointError, TrainingRecord
from nedm_ppl.numbers import Estimate

STATE = {
    "weights": jnp.arange(6.0).reshape(2, 3),
    "half": jnp.asarray([1.5, -0.0], jnp.bfloat16),
    "key": jax.random.key(7),
    "count": jnp.asarray(3),
}


def record(**options) -> TrainingRecord:
    data = np.zeros((3, 2))
    return TrainingRecord(diffusion=STATE, data=data, validation=None, rng_key=jax.random.key(0), **options)


def scaled(factor):
    return STATE | {"weights": STATE["weights"] * factor}


def written(folder: Path, steps=(20, 40, 60)) -> Path:
    """A run that has written its state after each of `steps`; the weights say after which."""
    run = record()
    run.open(folder, STATE, resume=False)
    for step in steps:
        run.add_steps(step - run.step, -float(step), 0.5)
        run.add_validation(Estimate(float(step), 0.1))
        run.write(folder, scaled(float(step)))
    return folder


def resumed(folder: Path) -> tuple[TrainingRecord, dict]:
    run = record()
    return run, run.open(folder, STATE, resume=True)


def assert_state_of(step: int, folder: Path) -> None:
    run, state = resumed(folder)
    assert run.step == step and run.seconds == 0.5 * step / 20
    np.testing.assert_array_equal(run.history()["bound"], -np.arange(20.0, step + 1, 20))
    np.testing.assert_array_equal(run.history()["validation_step"], np.arange(20, step + 1, 20))
    for name, value in scaled(float(step)).items():
        assert state[name].dtype == value.dtype and np.all(state[name] == value)


@pytest.mark.parametrize(
    "name", ["plain", "a[b]", "a[1-3]*", "a\\b", "a?{b}", "gs:/x", "a%20b#c", "é", "a\nb", "1", b"\xff\xfe"]
)
def test_a_run_goes_on_in_a_folder_of_any_name(name, tmp_path):
    folder = tmp_path / os.fsdecode(name)
    assert_state_of(60, written(folder))
    assert sorted(path.name for path in (folder / "steps").iterdir()) == ["40", "60"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.relative_to(tmp_path).parts[0]]


def rename(folder: Path) -> None:
    (folder / "steps" / "60").rename(folder / "steps" / "59")
    shutil.rmtree(folder / "steps" / "40")


def change(name: str, content: bytes | None = None):
    """Flip a bit in the middle of a file, or put something else in its place, or remove it where that is nothing."""

    def damage(folder: Path) -> None:
        file = folder / "steps" / "60" / name
        old = bytearray(file.read_bytes())
        old[len(old) // 2] ^= 1
        file.write_bytes(bytes(old) if content is None else content) if content != b"" else file.unlink()

    return damage


DAMAGE = {
    "a step's folder renamed": (rename, r"steps/59 is damaged \(it is the state of step 60\)\. Remove that folder"),
    "a bit of the arrays": (
        change("arrays.npz"),
        r"steps/60 is damaged \(arrays\.npz is not the file that was written\)",
    ),
    "no arrays": (change("arrays.npz", b""), r"steps/60 is damaged \(\[Errno 2\] No such file"),
    "a bit of the hash": (change("arrays.sha256"), r"steps/60 is damaged \(arrays\.npz is not the file"),
    "no hash": (change("arrays.sha256", b""), r"steps/60 is damaged \(\[Errno 2\] No such file"),
    "another run's arrays": (
        lambda folder: shutil.copytree(
            written(folder.parent / "other", (60, 80)) / "steps" / "80", folder / "steps" / "60", dirs_exist_ok=True
        ),
        r"steps/60 is damaged \(it is the state of step 80\)",
    ),
}


@pytest.mark.central
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_and_the_advice_can_be_followed(name, tmp_path):
    damage, message = DAMAGE[name]
    folder = written(tmp_path / "run")
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        resumed(folder)
    assert "\n" not in str(caught.value)
    named = Path(str(caught.value).removeprefix("checkpoint ").split(" is damaged")[0])
    assert named.is_dir()
    shutil.rmtree(named)
    left = [path.name for path in (folder / "steps").iterdir()]
    assert_state_of(40, folder) if left else None
    assert left in (["40"], [])


@pytest.mark.parametrize("content", ["[1]", "3", "{", "", "[" * 100_000, '{"item_handlers": 7}'])
def test_what_orbax_notes_of_a_step_is_not_trusted(content, tmp_path):
    folder = written(tmp_path / "run")
    for step in (40, 60):
        (folder / "steps" / str(step) / "_CHECKPOINT_METADATA").write_text(content)
    assert_state_of(60, folder)
    run, _ = resumed(folder)
    run.add_steps(20, -80.0, 0.5)
    run.add_validation(Estimate(80.0, 0.1))
    run.write(folder, scaled(80.0))
    assert_state_of(80, folder)


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, '{"version": [3]}', b"\xff", "1" * 5000])
def test_a_damaged_description_is_one_sentence(content, tmp_path):
    folder = written(tmp_path / "run", (20,))
    (folder / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"run\.json is damaged|holds a run with") as caught:
        resumed(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_description_may_not_differ_in_a_digit(tmp_path):
    folder = written(tmp_path / "run", (20,))
    described = json.loads((folder / "run.json").read_text())
    for name in described:
        (folder / "run.json").write_text(json.dumps(described | {name: 10**300}))
        with pytest.raises(CheckpointError, match="holds a run with"):
            resumed(folder)
    (folder / "run.json").write_text(json.dumps(described | {"version": 1}))
    with pytest.raises(CheckpointError, match="holds a run of an older version of nedm_ppl; resume it with that, or"):
        resumed(folder)


def test_what_a_killed_write_left_is_cleared_and_ignored(tmp_path):
    folder = written(tmp_path / "run")
    (folder / "steps" / "80.orbax-checkpoint-tmp-17").mkdir()
    (folder / "steps" / "notes").mkdir()
    assert_state_of(60, folder)
    assert sorted(path.name for path in (folder / "steps").iterdir()) == ["40", "60", "notes"]
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / ".run.json.new").write_text("{")
    assert resumed(begun)[0].step == 0 and (begun / "run.json").exists()


def test_a_full_disk_leaves_the_last_state(tmp_path, monkeypatch):
    folder = written(tmp_path / "run")
    run, _ = resumed(folder)
    run.add_steps(20, -80.0, 0.5)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(
        OutputError, match=r"step 80 could not be written to .*run: \[Errno 28\] No space left"
    ) as caught:
        run.write(folder, scaled(80.0))
    assert "\n" not in str(caught.value) and "resume=True" not in str(caught.value)
    monkeypatch.undo()
    assert_state_of(60, folder)
