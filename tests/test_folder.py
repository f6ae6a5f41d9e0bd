"""A run's folder: one process at a time; what an earlier run left comes back whole or goes for good, whenever a kill comes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from nedm_ppl import files, interrupts
from nedm_ppl.experiments import EXPERIMENTS
from nedm_ppl.experiments import _folder as folder
from nedm_ppl.experiments._folder import opened
from nedm_ppl.files import OutputFolderError

EARLIER = ("checkpoint/run.json", "checkpoint/steps/20/arrays.npz", "model/model.json", "metrics.json", "loss.png")
FOREIGN = ("thesis.tex", "samples of mine/x.npy")


class Killed(BaseException):
    pass


def write(out, names, content):
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)


def contents(out):
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}


def kill_after(monkeypatch, count):
    """Let the process die at the `count`-th change of the disk from now."""
    left = [count]

    def dying(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return call

    for module, name in ((os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    return left


def killed(monkeypatch, count, function, *arguments) -> bool:
    with monkeypatch.context() as patch:
        left = kill_after(patch, count)
        with suppress(Killed):
            function(*arguments)
        return left[0] < 0


def test_an_earlier_run_comes_back_whole_where_the_new_one_has_not_begun(tmp_path, monkeypatch):
    before, count, going = None, 0, True
    while going:  # killed at every change of the disk, going aside and then coming back
        out = tmp_path / f"{count}"
        write(out, EARLIER, "earlier")
        write(out, FOREIGN, "mine")
        before = contents(out)
        going = killed(monkeypatch, count, folder._put_aside, out)
        again = 0
        (out / "checkpoint").mkdir(exist_ok=True)
        while killed(monkeypatch, again, folder._settle, out):
            again += 1
        folder._settle(out)
        assert contents(out) == before and not (out / folder.ASIDE).exists()
        count += 1
    assert count > len(EARLIER) - 1


@pytest.mark.central
def test_an_earlier_run_goes_for_good_where_the_new_one_has_begun(tmp_path, monkeypatch):
    count, going = 0, True
    while going:
        out = tmp_path / f"{count}"
        write(out, EARLIER, "earlier")
        write(out, FOREIGN, "mine")
        folder._put_aside(out)
        write(out, ["checkpoint/run.json"], "new")
        going = killed(monkeypatch, count, folder._settle, out)
        folder._settle(out)
        assert contents(out) == {"checkpoint/run.json": "new"} | dict.fromkeys(FOREIGN, "mine")
        count += 1
    assert count > len(EARLIER)


def test_a_forced_run_that_fails_before_it_begins_gives_the_earlier_one_back(tmp_path):
    write(tmp_path, EARLIER, "earlier")
    before = contents(tmp_path)
    with pytest.raises(MemoryError), opened(tmp_path, resume=False, force=True):
        assert contents(tmp_path).keys() == {f"{folder.ASIDE}/{name}" for name in before}
        raise MemoryError
    assert contents(tmp_path) == before
    with pytest.raises(MemoryError), opened(tmp_path, resume=False, force=True):
        write(tmp_path, ["checkpoint/run.json"], "new")
        raise MemoryError
    assert contents(tmp_path) == {"checkpoint/run.json": "new"}


def test_a_run_killed_as_it_began_is_no_run(tmp_path):
    write(tmp_path, ["checkpoint/.run.json.new"], "{")
    for options in (
        {"resume": True, "force": False},
        {"resume": False, "force": True},
        {"resume": False, "force": False},
    ):
        with opened(tmp_path, **options):
            pass
    write(tmp_path, ["model/model.json"], "{}")
    with pytest.raises(OutputFolderError, match="is not empty; use another folder: it holds no earlier run"):
        opened(tmp_path, resume=True, force=False).__enter__()


@pytest.mark.parametrize("option", ["resume", "force"])
def test_a_second_process_is_refused(option, tmp_path):
    write(tmp_path, EARLIER, "earlier")
    before = contents(tmp_path)
    options = {"resume": False, "force": False} | {option: True}
    with files.locked(tmp_path), pytest.raises(OutputFolderError, match="is in use by another process; wait until it"):
        opened(tmp_path, **options).__enter__()
    assert contents(tmp_path) == before
    with opened(tmp_path, **options):
        pass


def test_all_that_an_experiment_writes_is_known():
    import inspect
    import re

    from nedm_ppl.experiments import _figures, _picture_figures, _run

    others = {_figures, _picture_figures, _run}
    modules = {inspect.getmodule(experiment.figures) for experiment in EXPERIMENTS.values()} | others
    named = {name for module in modules for name in re.findall(r'"(\w+\.(?:png|nc|json))"', inspect.getsource(module))}
    assert len(named) > 10 and named <= set(folder.OUTPUTS)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_request_to_end_is_a_keyboard_interrupt(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # nohup has SIGHUP ignored, and so it would stay
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.stoppable():
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert interrupts.received == [number] and signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_request_waits_for_imports_and_is_not_lost_where_python_drops_it(monkeypatch):
    monkeypatch.setattr(interrupts, "AGAIN", 0.05)
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.stoppable(), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("imported")
    assert done == ["imported"]

    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("never")

    with pytest.raises(KeyboardInterrupt), interrupts.stoppable():
        Dropping()  # an exception in a finaliser is reported and dropped
        done.append("went on")
        time.sleep(5)
    assert done == ["imported", "went on"]


def test_what_is_to_be_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupts.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


COMMAND = [sys.executable, "-c", "from nedm_ppl.cli import main; main()", "run", "swiss-roll", "--num-steps", "2"]


def test_a_run_is_stopped_by_sigterm_and_killed_under_force(tmp_path):
    """Of one folder: begun and stopped, then forced and killed as it begins."""
    out, arguments = tmp_path / "out", [*COMMAND, "--updates", "100000", "--out", str(tmp_path / "out")]

    def begin(*options):
        return subprocess.Popen([*arguments, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(condition, process):
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None and condition()

    process = begin()
    wait_for((out / "checkpoint" / "run.json").exists, process)
    with pytest.raises(OutputFolderError, match="is in use by another process"):
        opened(out, resume=True, force=False).__enter__()
    process.terminate()
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and errors == ""
    assert "Stopped. The same command with --resume goes on from the last checkpoint." in " ".join(said.split())

    earlier = (out / "checkpoint" / "run.json").read_bytes()
    (out / "model").mkdir()
    (out / "model" / "mark").write_text("earlier")
    process = begin("--force", "--seed", "1")
    wait_for((out / folder.ASIDE).exists, process)
    process.kill()
    process.communicate()
    with opened(out, resume=True, force=False):  # either all of the earlier run or nothing of it
        assert (out / "model").exists() == ((out / "checkpoint" / "run.json").read_bytes() == earlier)
        assert not (out / folder.ASIDE).exists()
