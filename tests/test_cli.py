"""The command line and the experiments behind it, in small: what a run leaves, and one sentence for every mistake."""

import errno
import fcntl
import gc
import inspect
import json
import math
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import xarray as xr

from nedm_ppl import cli
from nedm_ppl.experiments import EXPERIMENTS, IMAGES, Split, choose
from nedm_ppl.inference.training._state_arrays import write_arrays
from nedm_ppl.models import Diffusion
from nedm_ppl.models.networks import PatchTransformer, ResidualMLP, UNet

COMMON = {"experiment", "seed", "num_steps", "train_seconds", "holdout_size", "unit", "bound", "null", "truth"}
SMALL = {
    "swiss-roll": ["--updates", "20", "--num-steps", "4"],
    "swiss-roll-rbf": ["--updates", "20", "--num-steps", "4", "--first-step", "learned"],
    "heartbeat": ["--updates", "20", "--num-steps", "6"],
    "digits": ["--updates", "4", "--num-steps", "5"],
    "digits-conditional": ["--updates", "4", "--num-steps", "3"],
    "plane": ["--updates", "20", "--num-steps", "4"],
    "gray-code": ["--updates", "4", "--num-steps", "4"],
}


def nedm(*arguments, capsys=None) -> tuple[int, str]:
    """Run the command line in this process: exit code, and what it said on standard error in one line."""
    with patch.object(sys, "argv", ["nedm", *map(str, arguments)]), pytest.raises(SystemExit) as stop:
        cli.main()
        raise SystemExit(0)
    said = capsys.readouterr().err if capsys else ""
    return stop.value.code or 0, " ".join(said.split())


@pytest.fixture(scope="module", autouse=True)
def few_data():
    """The experiments on a few hundred of their data, with the smallest of their networks."""

    def smaller(experiment):
        def data(seed):
            sizes = {"train": 300, "validation": 20, "holdout": 100}
            parts = {name: part for name, part in vars(experiment.data(seed)).items() if part is not None}
            return Split(**({"validation": None} | {k: v[: sizes[k.split("_")[0]]] for k, v in parts.items()}))

        return replace(experiment, data=data, likelihood_size=6, likelihood_trajectories=24)

    with pytest.MonkeyPatch.context() as patch:
        for name, experiment in EXPERIMENTS.items():
            patch.setitem(EXPERIMENTS, name, smaller(experiment))
        small_networks = {
            ResidualMLP: {"width": 16, "depth": 1},
            PatchTransformer: {"width": 16, "depth": 1},
            UNet: {"width": 8, "multipliers": (1, 1), "num_heads": 2},
        }
        for network, small in small_networks.items():
            initial = inspect.unwrap(network.__init__)
            patch.setattr(initial, "__kwdefaults__", initial.__kwdefaults__ | small)
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, worker_id, few_data):
    """run_folder / name: one small finished run of an experiment, run by the worker that asks first; each has a copy."""

    class Runs:
        def __init__(self):
            self.root = tmp_path_factory.mktemp("runs")
            base = tmp_path_factory.getbasetemp()
            self.shared = (base if worker_id == "master" else base.parent) / "shared"
            self.shared.mkdir(exist_ok=True)

        def __truediv__(self, name):
            if not (self.root / name).exists():
                with open(self.shared / f"{name}.lock", "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not (self.shared / name).exists():
                        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                            code, _ = nedm("run", name, "--out", self.shared / name, *SMALL[name])
                        assert code == 0
                shutil.copytree(self.shared / name, self.root / name)
            return self.root / name

    return Runs()


def test_every_experiment_is_run_here_in_small():
    assert set(SMALL) == set(EXPERIMENTS) - {experiment.name for experiment in IMAGES}  # those: test_pictures


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", SMALL)
def test_a_run_leaves_model_metrics_figures_and_arviz_files(run_folder, name):
    folder = run_folder / name
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) >= COMMON and metrics["experiment"] == name and metrics["seed"] == 0
    assert metrics["num_steps"] == int(SMALL[name][3]) == Diffusion.load(folder / "model").num_steps
    assert metrics["bound"]["se"] > 0 and metrics["null"]["mean"] < 0
    gain = metrics["bound"]["mean"] - metrics["null"]["mean"]
    assert metrics["bound_above_null"]["mean"] == pytest.approx(gain, abs=1e-4)
    assert sum(term["mean"] for term in metrics["terms"].values()) == pytest.approx(metrics["bound"]["mean"], abs=1e-4)
    likelihood = metrics["log_likelihood"]
    assert likelihood["num_data"] == 6 and likelihood["num_trajectories"] == 24 and likelihood["se"] > 0
    # In pairs: K on the same data, and the difference, whose error is smaller than either's.
    assert likelihood["above_bound"]["mean"] == pytest.approx(
        likelihood["mean"] - likelihood["bound"]["mean"], abs=1e-4
    )
    unit = EXPERIMENTS[name].nats_per_unit
    with xr.open_dataset(folder / "bound.nc", group="bound", engine="h5netcdf") as terms:
        same = terms["bound"].to_numpy()[:6] / unit
        assert likelihood["bound"]["mean"] == pytest.approx(same.mean(), rel=1e-5)
    with xr.open_dataset(folder / "likelihood.nc", group="likelihood", engine="h5netcdf") as per_datum:
        assert float(per_datum["log_prob"].mean()) / unit == pytest.approx(likelihood["mean"], rel=1e-6)
        assert float(per_datum["k_hat"].max()) == likelihood["k_hat_max"]
        above = per_datum["log_prob"].to_numpy() / unit - same
    assert likelihood["above_bound"]["se"] == pytest.approx(above.std(ddof=1) / math.sqrt(6), rel=1e-4)
    assert {path.suffix for path in folder.iterdir()} >= {".png", ".nc", ".json"}
    for figure in folder.glob("*.png"):
        assert figure.read_bytes()[:4] == b"\x89PNG" and figure.stat().st_size > 5_000


@pytest.mark.long
@pytest.mark.parametrize(("name", "num_steps"), [("swiss-roll", 1), ("heartbeat", 2)])
def test_a_chain_of_one_or_two_steps_is_a_model(name, num_steps, tmp_path, capsys):
    arguments = ["run", name, "--updates", 4, "--num-steps", num_steps, "--out", tmp_path / "out"]
    code, said = nedm(*arguments, capsys=capsys)
    assert code == 0 and said == ""
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["num_steps"] == num_steps
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"bound.nc", "likelihood.nc", "loss.png", "bound_by_step.png", "thermodynamics.png", "model"}


def test_truth_is_exact_where_it_is_known(run_folder):
    heartbeat = json.loads((run_folder / "heartbeat" / "metrics.json").read_text())
    assert heartbeat["truth"]["mean"] == pytest.approx(-math.log2(5), rel=1e-9) and heartbeat["truth"]["se"] is None
    roll = json.loads((run_folder / "swiss-roll" / "metrics.json").read_text())
    assert abs(roll["truth"]["mean"] + 1.9243) < 4 * roll["truth"]["se"]


@pytest.mark.long
def test_grey_levels_have_no_truth_and_bits_per_pixel(run_folder):
    digits = json.loads((run_folder / "digits" / "metrics.json").read_text())
    assert digits["truth"] == {"mean": None, "se": None}
    assert digits["bits_per_dim_discrete"]["mean"] == -digits["bound"]["mean"]


@pytest.mark.long
def test_a_conditional_model_is_a_classifier_and_samples_a_label(run_folder, tmp_path, capsys):
    folder = run_folder / "digits-conditional"
    found = json.loads((folder / "metrics.json").read_text())["classification"]
    assert 0.0 <= found["accuracy"]["mean"] <= 1.0 and 0.0 < found["tempered"]["calibration_error"] < 1.0
    assert found["tempered"]["temperature"] > 0.0 and found["bayes"]["cross_entropy_nats"] > 0.0
    draws = []
    for i, options in enumerate(([], ["--context", 10], ["--context", 3])):
        assert nedm("sample", folder, "--num", 100, "--out", tmp_path / f"{i}.npy", *options)[0] == 0
        draws.append(np.load(tmp_path / f"{i}.npy"))
    np.testing.assert_array_equal(draws[0], draws[1])  # no label is the null label
    assert np.any(draws[0] != draws[2])
    code, _ = nedm("loglik", folder, "--num", 2, "--trajectories", 2, "--out", tmp_path / "of_holdout.nc")
    assert code == 0


def test_a_finished_run_can_be_resumed_and_says_the_same(run_folder):
    folder = run_folder / "heartbeat"
    before = json.loads((folder / "metrics.json").read_text())
    code, _ = nedm("run", "heartbeat", "--out", folder, "--resume", *SMALL["heartbeat"])
    after = json.loads((folder / "metrics.json").read_text())
    assert code == 0 and after["bound"] == before["bound"]


def test_a_folder_in_use_is_refused_and_force_starts_again(run_folder, capsys):
    folder = run_folder / "swiss-roll"
    before = (folder / "metrics.json").read_bytes()
    code, said = nedm("run", "swiss-roll", "--out", folder, *SMALL["swiss-roll"], capsys=capsys)
    assert code == 2 and "is not empty; use --resume to go on with it, --force to start again." in said
    assert (folder / "metrics.json").read_bytes() == before
    code, _ = nedm("run", "swiss-roll", "--out", folder, "--force", "--seed", 1, *SMALL["swiss-roll"])
    assert code == 0 and json.loads((folder / "metrics.json").read_text())["seed"] == 1


def test_a_folder_of_other_origin_is_not_touched_even_by_force(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("work of years")
    code, said = nedm("run", "heartbeat", "--out", tmp_path, "--force", *SMALL["heartbeat"], capsys=capsys)
    assert code == 2 and "is not empty; use another folder: it holds no earlier run." in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.central
def test_samples_are_the_models_and_nothing_is_overwritten(run_folder, tmp_path, capsys):
    code, said = nedm("sample", run_folder / "heartbeat", "--context", 3, "--out", tmp_path / "x.npy", capsys=capsys)
    assert code == 2 and "context is for a network that takes one" in said
    out = tmp_path / "samples.npy"
    code, _ = nedm("sample", run_folder / "heartbeat", "--num", 7, "--out", out)
    samples = np.load(out)
    assert code == 0 and samples.shape == (7, 20) and set(np.unique(samples)) <= {0, 1}
    code, said = nedm("sample", run_folder / "heartbeat", "--out", out, capsys=capsys)
    assert code == 2 and "exists; name another file." in said
    code, said = nedm("sample", run_folder / "heartbeat", "--out", tmp_path / "samples", capsys=capsys)
    assert code == 2 and "--out must end in .npy" in said
    code, said = nedm("sample", run_folder / "heartbeat", "--num", 0, "--out", tmp_path / "x.npy", capsys=capsys)
    assert code == 2 and "--num must be at least 1; got 0." in said


@pytest.mark.central
def test_loglik_writes_every_datum_and_a_table(run_folder, tmp_path, capsys):
    out = tmp_path / "heartbeat.nc"
    code, _ = nedm("loglik", run_folder / "heartbeat", "--trajectories", 32, "--num", 20, "--out", out)
    shown = capsys.readouterr().out
    assert code == 0 and "mean over the data" in shown and "unbiased" in " ".join(shown.split())
    with xr.open_dataset(out, group="likelihood", engine="h5netcdf") as result:
        mean = float(result["log_prob"].mean())
        assert result["log_prob"].dims == ("datum",) and result["se"].size == 20
    assert f"{mean:.4f}" in shown and f"{mean / math.log(2):.4f}" in shown
    data = tmp_path / "data.npy"
    np.save(data, EXPERIMENTS["heartbeat"].data(0).holdout[:20])
    code, _ = nedm(
        "loglik", run_folder / "heartbeat" / "model", data, "--target-se", 1e-6, "--trajectories", 32,
        "--max-trajectories", 40, "--out", tmp_path / "adaptive.nc",
    )  # fmt: skip
    adaptive = " ".join(capsys.readouterr().out.split())
    assert code == 0 and "neither unbiased nor a bound" in adaptive
    assert re.search(r"above the target standard error \W+ 20 ", adaptive)
    with xr.open_dataset(tmp_path / "adaptive.nc", group="sample_stats", engine="h5netcdf") as stats:
        assert stats["log_weight"].dims == ("trajectory", "datum") and stats["log_weight"].shape == (40, 20)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["plane", "gray-code"])
def test_an_experiment_of_a_density_says_what_it_loses_on_the_truth(run_folder, name, tmp_path, capsys):
    metrics = json.loads((run_folder / name / "metrics.json").read_text())
    assert metrics["density"] == "checkerboard" and metrics["unit"] == "nats"
    assert metrics["excess"]["se"] > 0 and metrics["nll"]["se"] > 0
    assert metrics["truth"]["mean"] == pytest.approx(
        -metrics["floor"] + (name == "plane") * 2 * math.log(2.31435), abs=1e-4
    )
    if name == "gray-code":  # in the words' own units, and the same truth for every word
        assert metrics["nll"]["mean"] == pytest.approx(metrics["floor"] + metrics["excess"]["mean"], abs=1e-4)
        assert metrics["nll"]["mean"] == pytest.approx(-metrics["log_likelihood"]["mean"], rel=1e-6)
    assert nedm("show", run_folder / name)[0] == 0
    assert f"{name}, checkerboard, T = 4" in " ".join(capsys.readouterr().out.split())
    assert nedm("loglik", run_folder / name, "--trajectories", 4, "--num", 3, "--out", tmp_path / "x.nc")[0] == 0
    capsys.readouterr()
    code, said = nedm(
        "run", name, "--density", "moons", "--resume", "--out", run_folder / name, "--updates", 0, capsys=capsys
    )
    assert code == 2 and "--updates must be at least 1" in said
    # The density beside a model is the one whose holdout is taken.
    (run_folder / name / "metrics.json").write_text(json.dumps(metrics | {"density": "rings"}))
    code, said = nedm("loglik", run_folder / name, "--out", tmp_path / "y.nc", capsys=capsys)
    assert code == 2 and "names no experiment of" in said


def test_choose_gives_an_experiment_of_its_density():
    for name in ("plane", "gray-code"):
        assert choose(name).density == "checkerboard"
        chosen = choose(name, "moons")
        assert (chosen.name, chosen.density) == (name, "moons") and chosen.of_density("circles").density == "circles"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trajectories", "0"], "num_trajectories must be an integer of at least 1; got 0."),
        (["--num", "0"], "--num must be at least 1; got 0."),
        (["--target-se", "-1"], "target_se must be positive, in nats; got -1."),
        (["--out", "{tmp}/x.txt"], "--out must end in .nc or .csv; got"),
        (["--out", "{tmp}/taken.nc"], "exists; name another file."),
        (["--out", "{tmp}/nowhere/x.nc"], "--out must lie in a folder that is there; got"),
        (["{tmp}/nowhere.npy"], "DATA must be a .npy file; there is nothing at"),
        (["{tmp}/taken.nc"], "DATA must be a .npy file that holds an array of numbers"),
        (["{tmp}/gray.npy"], "x0 must be binary, 0 or 1"),
        (["{tmp}/claims.npy"], "DATA must be a .npy file that holds an array of numbers; "),
        (["{tmp}/header.npy"], "DATA must be a .npy file that holds an array of numbers; "),
        (["{tmp}/great.npy"], "DATA must hold numbers of at most 1e+15 in size; "),
        (["{tmp}/n\udcffwhere.npy"], "DATA must be a .npy file; there is nothing at"),
        (["{tmp}/no\nwhere.npy"], "no\\nwhere.npy."),
        (["--out", "{tmp}/link.nc"], "link.nc exists; name another file."),
    ],
)
def test_loglik_refuses_in_one_sentence(run_folder, tmp_path, capsys, arguments, message):
    (tmp_path / "taken.nc").write_text("mine")
    np.save(tmp_path / "gray.npy", np.full((3, 20), 0.5))
    with (tmp_path / "claims.npy").open("wb") as file:  # 2 x 10^13 rows, and holds one
        about = {"descr": "<f4", "fortran_order": False, "shape": (2 * 10**13, 20)}
        np.lib.format.write_array_header_1_0(file, about)
        file.write(bytes(80))
    (tmp_path / "header.npy").write_bytes((tmp_path / "gray.npy").read_bytes().replace(b"(3, 20)", b"(2**9, "))
    np.save(tmp_path / "great.npy", np.full((3, 20), 1e300))
    (tmp_path / "link.nc").symlink_to("nowhere")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    out = [] if "--out" in arguments else ["--out", tmp_path / "loglik.nc"]
    code, said = nedm("loglik", run_folder / "heartbeat", *arguments, *out, capsys=capsys)
    assert code == 2 and message in said and said.startswith("nedm: ")


def test_loglik_of_a_model_alone_asks_for_data(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder / "heartbeat" / "model", tmp_path / "alone" / "model")
    arguments = ["loglik", tmp_path / "alone", "--out", tmp_path / "x.nc"]
    code, said = nedm(*arguments, capsys=capsys)
    assert code == 2 and "DATA must be given: there is no" in said
    (tmp_path / "alone" / "metrics.json").write_text('{"experiment": "mnist"}')
    code, said = nedm(*arguments, capsys=capsys)
    assert code == 2 and "names no experiment of" in said


@pytest.mark.parametrize(
    ("task", "name", "options", "shape"),
    [
        pytest.param(
            "inpaint", "heartbeat", ["--mask", "{tmp}/mask.npy", "--num-steps", 3], (20,), marks=pytest.mark.long
        ),
        ("denoise", "heartbeat", ["--scale", 0.3], (20,)),
        pytest.param("inpaint", "digits", ["--num-steps", 3], (8, 8), marks=pytest.mark.long),
    ],
)
def test_restoring_leaves_a_picture_draws_and_numbers(task, name, options, shape, run_folder, tmp_path, capsys):
    np.save(tmp_path / "mask.npy", np.arange(20) < 5)
    options, out = [str(option).format(tmp=tmp_path) for option in options], tmp_path / "out"
    code, _ = nedm(task, run_folder / name, "--num", 2, "--particles", 8, "--repeats", 2, "--out", out, *options)
    shown = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert code == 0 and f"{metrics['rmse']:.4f}" in shown and "90 %" in shown
    assert 0 <= metrics["num_doubtful"] <= 2 and f"{metrics['num_doubtful']} of 2" in shown
    assert metrics["task"] == task and metrics["num_data"] == 2
    assert metrics["num_particles"] == 8 and metrics["num_repeats"] == 2
    assert (out / "restored.png").read_bytes()[:4] == b"\x89PNG"
    with xr.open_dataset(out / "posterior.nc", group="posterior", engine="h5netcdf") as draws:
        assert draws["x"].shape == (1, 16, 2, *shape)
        if name == "digits":
            seen = EXPERIMENTS["digits"].data(0).holdout[:2, :4]
            np.testing.assert_array_equal(draws["x"].values[0, :, :, :4], np.broadcast_to(seen, (16, 2, 4, 8)))
    code, said = nedm("denoise", run_folder / "heartbeat", "--out", out, capsys=capsys)
    assert code == 2 and "exists; name another folder." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint", "--num", "0"], "--num must be at least 1; got 0."),
        (["inpaint", "--mask", "top"], "--mask must be one of lower, upper, left, right, or a .npy file; got 'top'."),
        (["inpaint", "--mask", "{tmp}/nowhere.npy"], "--mask must be a .npy file; there is nothing at"),
        (["inpaint", "--mask", "{tmp}/short.npy"], "mask must be boolean and of shape (20,), one datum of this model"),
        (["inpaint", "--data", "{tmp}/nowhere.npy"], "--data must be a .npy file; there is nothing at"),
        (["inpaint", "--data", "{tmp}/short.npy"], "x0 must have trailing shape (20,)"),
        (["denoise", "--scale", "nan"], "--scale must be a number of at most 1e+15; got nan."),
        (["denoise", "--scale", "1e300"], "--scale must be a number of at most 1e+15; got 1e+300."),
        (["denoise", "--scale", "-1"], "scale must be positive, a standard deviation; got -1."),
        (["denoise", "--num-steps", "7"], "num_steps must lie in 2..6"),
        (["denoise", "--particles", "0"], "must be at least 1; got 0"),
        (["inpaint", "--repeats", "0"], "must be at least 1; got 32 and 0"),
    ],
)
def test_restoring_refuses_in_one_sentence(run_folder, tmp_path, capsys, arguments, message):
    np.save(tmp_path / "short.npy", np.ones((3, 4)))
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    task, *options = arguments
    code, said = nedm(task, run_folder / "heartbeat", *options, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2 and message in said and not (tmp_path / "out").exists()


def test_show_reads_metrics_under_earlier_names(tmp_path, capsys):
    saved = Path(__file__).parent / "saved_before"
    shutil.copytree(saved / "bits", tmp_path / "run" / "model")
    shutil.copy(saved / "metrics.json", tmp_path / "run")
    assert nedm("show", tmp_path / "run")[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 updates" in shown and "500 data x 24 trajectories" in shown


def test_show_says_what_a_model_is(run_folder, capsys):
    assert nedm("show", run_folder / "heartbeat")[0] == 0
    shown = capsys.readouterr().out
    assert "ResidualMLP" in shown and "fixed" in shown and "bits per sequence" in shown
    assert "20 updates" in shown and "6 data x 24 trajectories" in " ".join(shown.split())
    assert nedm("list")[0] == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{tmp}/nowhere"], "must be a folder; there is nothing"),
        (["sample", "{tmp}/nowhere"], "must be a folder; there is nothing"),
        (
            ["run", "imagenet", "--out", "{tmp}/x"],
            "experiment must be one of swiss-roll, swiss-roll-rbf, heartbeat, digits, digits-conditional",
        ),
        (["run", "gray-code", "--density", "rings"], "density must be one of 2spirals, 8gaussians, circles, moons"),
        (["run", "digits", "--density", "moons"], "--density must be left out for digits, which has one density; got"),
        (["run", "digits", "--first-step", "fixed", "--out", "{tmp}/x"], "must be one of quantized; got 'fixed'"),
        (
            ["run", "heartbeat", "--num-steps", "0", "--out", "{tmp}/x"],
            "num_steps must be an integer of at least 1; got 0",
        ),
        (["run", "heartbeat", "--updates", "0", "--out", "{tmp}/x"], "--updates must be at least 1; got 0"),
        (["run", "heartbeat", "--resume", "--force", "--out", "{tmp}/x"], "--force starts again; give one of them"),
        (["run", "heartbeat", "--seed", "-1", "--out", "{tmp}/x"], "seed must be at least 0; got -1"),
        (
            ["run", "heartbeat", "--seed", f"{2**63}", "--out", "{tmp}/x"],
            "--seed must be at most 9223372036854775807 in",
        ),
        (
            ["run", "heartbeat", "--num-steps", "1" + "0" * 20, "--out", "{tmp}/x"],
            "--num-steps must be at most 2147483647",
        ),
        (["run", "heartbeat", "--updates", "1" + "0" * 20, "--out", "{tmp}/x"], "--updates must be at most 2147483647"),
        (["sample", "{tmp}/x", "--num", "1" + "0" * 11], "--num must be at most 2147483647 in size; got 100000000000."),
        (["sample", "{tmp}/x", "--seed", f"{2**63}"], "--seed must be at most"),
        (["sample", "{tmp}/x", "--context", "9" * 12], "--context must be at most"),
        (["loglik", "{tmp}/x", "--trajectories", "1" + "0" * 12], "--trajectories must be at most 2147483647"),
        (["loglik", "{tmp}/x", "--max-trajectories", "1" + "0" * 12], "--max-trajectories must be at most 2147483647"),
        (["inpaint", "{tmp}/x", "--particles", "1" + "0" * 12], "--particles must be at most 2147483647"),
        (["denoise", "{tmp}/x", "--repeats", "1" + "0" * 12], "--repeats must be at most 2147483647"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, capsys):
    code, said = nedm(*(argument.format(tmp=tmp_path) for argument in arguments), capsys=capsys)
    assert code == 2 and message in said and "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_a_link_to_nothing_is_no_folder_for_outputs(run_folder, tmp_path, capsys):
    out = tmp_path / "link"
    out.symlink_to("nowhere")
    code, said = nedm("run", "heartbeat", "--out", out, capsys=capsys)
    assert code == 2 and said.endswith("link is no folder; name one.")
    code, said = nedm("denoise", run_folder / "heartbeat", "--out", out, capsys=capsys)
    assert code == 2 and said.endswith("link exists; name another folder.")


def test_a_mistake_is_one_line_whatever_the_path(tmp_path):
    arguments = ["show", str(tmp_path / "no\nwhere\x1b[31m")]
    with (
        patch.object(sys, "argv", ["nedm", *arguments]),
        redirect_stderr(StringIO()) as said,
        pytest.raises(SystemExit),
    ):
        cli.main()
    assert said.getvalue().count("\n") == 1 and "\x1b" not in said.getvalue()


def test_a_mistake_under_force_or_resume_costs_nothing(run_folder, tmp_path, capsys):
    folder = run_folder / "heartbeat"
    before = sorted(str(path) for path in folder.rglob("*"))
    code, _ = nedm("run", "heartbeat", "--out", folder, "--force", "--updates", 0, capsys=capsys)
    assert code == 2 and sorted(str(path) for path in folder.rglob("*")) == before
    code, said = nedm("run", "heartbeat", "--out", folder, "--resume", "--updates", 20, "--num-steps", 7, capsys=capsys)
    assert code == 2 and "holds a run with another model; resume with the same arguments." in said
    (tmp_path / "metrics.json").write_text("{}")
    code, said = nedm("run", "heartbeat", "--out", tmp_path, "--resume", *SMALL["heartbeat"], capsys=capsys)
    assert code == 2 and "it holds no earlier run" in said


def test_damaged_metrics_beside_a_model_are_one_sentence(run_folder, tmp_path, capsys):
    folder = shutil.copytree(run_folder / "heartbeat", tmp_path / "run")
    (folder / "metrics.json").write_text("{")
    code, said = nedm("show", folder, capsys=capsys)
    assert code == 2 and "metrics.json is damaged; remove it, or run the experiment again." in said


def broken(*_, **__):
    raise ModuleNotFoundError("No module named 'h5py'")


@pytest.mark.cases(2)
@pytest.mark.parametrize(
    ("where", "lost"),
    [
        ("xarray.DataTree.to_netcdf", ["training.nc", "bound.nc", "likelihood.nc", "thermodynamics.nc"]),
        ("nedm_ppl.plotting.loss_curve", ["loss.png"]),
        ("nedm_ppl.experiments._run.thermodynamics_figure", ["thermodynamics.png"]),
        ("nedm_ppl.experiments._run.inference.marginal_log_likelihood", ["metrics.json"]),
    ],
)
def test_what_was_trained_is_kept_whatever_else_cannot_be_written(where, lost, tmp_path, capsys, monkeypatch):
    out, arguments = tmp_path / "out", ["run", "swiss-roll", "--out", tmp_path / "out", *SMALL["swiss-roll"]]
    monkeypatch.setattr(where, broken)
    code, said = nedm(*arguments, capsys=capsys)
    assert code == 1 and "No module named 'h5py'" in said and "Traceback" not in said and str(out) in said
    assert Diffusion.load(out / "model").num_steps == 4
    present = {path.name for path in out.iterdir()}
    assert not present & set(lost) and not any(name.endswith(".new") for name in present)
    if lost != ["metrics.json"]:
        assert json.loads((out / "metrics.json").read_text())["num_updates"] == 20
        assert present >= {"figure1.png", "bound.nc", "thermodynamics.png"} - set(lost)
    monkeypatch.undo()


@contextmanager
def no_file_greater_than(size):
    """A disk on which every greater file meets an error amid a write, as it meets a full one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.long
def test_a_full_disk_is_one_sentence_and_the_run_resumes(run_folder, tmp_path, capsys):
    name, out = "swiss-roll-rbf", tmp_path / "out"
    sound = run_folder / name
    files = ("checkpoint/steps/20/arrays.npz", "likelihood.nc", "thermodynamics.nc")
    state, smaller, arviz = ((sound / file).stat().st_size for file in files)
    assert state < smaller < arviz
    arguments = ["run", name, "--out", out, *SMALL[name]]
    with no_file_greater_than(state - 1):
        code, said = nedm(*arguments, capsys=capsys)
    assert code == 1 and re.fullmatch(r"nedm: the state of step 20 could not be written to .* resumed from it\.", said)
    assert [path.name for path in out.iterdir()] == ["checkpoint"]
    with no_file_greater_than((smaller + arviz) // 2):
        code, said = nedm(*arguments, "--resume", capsys=capsys)
    assert code == 1 and re.fullmatch(r"nedm: thermodynamics\.nc, .* --resume writes the rest\.", said)
    assert (out / "likelihood.nc").exists() and not any(path.suffix in (".new", ".png") for path in out.iterdir())
    code, said = nedm(*arguments, "--resume", capsys=capsys)
    assert (code, said) == (0, "") and {path.name for path in sound.iterdir()} == {path.name for path in out.iterdir()}
    assert (out / "model" / "arrays.npz").read_bytes() == (sound / "model" / "arrays.npz").read_bytes()


@pytest.mark.cases(1)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_nothing_is_left_to_say_of_arrays_that_met_a_full_disk(share, run_folder, tmp_path, monkeypatch):
    saved, arrays = run_folder / "heartbeat" / "model", {f"{i}": np.zeros(5000) for i in range(3)}
    model = Diffusion.load(saved)
    write_arrays(tmp_path / "state", arrays)
    sizes = [(folder / "arrays.npz").stat().st_size for folder in (saved, tmp_path / "state")]
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for size, write in zip(sizes, (model.save, lambda folder: write_arrays(folder, arrays)), strict=True):
        with no_file_greater_than(int(share * size)), pytest.raises(OSError, match="File too large"):
            write(tmp_path / "full")
        assert not (tmp_path / "full").exists()
    gc.collect()
    assert not said


WRITE = """
import resource, sys, xarray
from pathlib import Path
from nedm_ppl.files import write_netcdf
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_netcdf(Path(sys.argv[1]), xarray.DataTree.from_dict({"/a": xarray.Dataset({"x": ("i", list(range(9999)))})}))
except OSError as error:
    print(error.errno)
"""


@pytest.mark.cases(1)
@pytest.mark.parametrize("size", [0, 800, 30_000])
def test_a_process_that_met_a_full_disk_ends_like_any_other(size, tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path / "x.nc"), str(size)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{errno.EFBIG}\n", "")
    assert not any(tmp_path.iterdir())


def test_numbers_are_kept_where_the_draws_cannot_be_written(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("xarray.DataTree.to_netcdf", broken)
    few = ["--num", 2]
    code, said = nedm(
        "denoise", run_folder / "heartbeat", *few, "--particles", 4, "--out", tmp_path / "denoised", capsys=capsys
    )
    assert code == 1 and "posterior.nc could not be written" in said
    assert sorted(path.name for path in (tmp_path / "denoised").iterdir()) == ["metrics.json", "restored.png"]
    code, _ = nedm("loglik", run_folder / "heartbeat", *few, "--trajectories", 4, "--out", tmp_path / "x.nc")
    shown = capsys.readouterr()
    assert code == 1 and "mean over the data" in shown.out and "h5py" in shown.err and not (tmp_path / "x.nc").exists()


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 3.55 PiB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_more_memory_than_there_is_is_one_sentence(error, run_folder, tmp_path, capsys, monkeypatch):
    def exhausted(*_, **__):
        raise error

    monkeypatch.setattr(Diffusion, "sample", exhausted)
    code, said = nedm("sample", run_folder / "heartbeat", "--num", 10**6, "--out", tmp_path / "x.npy", capsys=capsys)
    assert code == 1 and "this takes more memory than there is: " in said and not (tmp_path / "x.npy").exists()


def test_deeply_nested_metrics_are_one_sentence(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder / "heartbeat" / "model", tmp_path / "model")
    (tmp_path / "metrics.json").write_text("[" * 100_000)
    code, said = nedm("show", tmp_path, capsys=capsys)
    assert code == 2 and "metrics.json is damaged" in said
    code, said = nedm("loglik", tmp_path, "--out", tmp_path / "x.nc", capsys=capsys)
    assert code == 2 and "DATA must be given" in said


@pytest.mark.long
def test_a_folder_whose_name_is_not_utf8_is_a_folder(run_folder, tmp_path, capsys):
    out = tmp_path / "n\udcffme"
    assert nedm("run", "heartbeat", "--out", out, *SMALL["heartbeat"])[0] == 0
    assert nedm("sample", out, "--num", 2, "--out", out / "x.npy")[0] == 0
    assert nedm("show", out)[0] == 0 and "n\\udcffme" in capsys.readouterr().out.replace("\n", "")
    assert np.load(out / "x.npy").shape == (2, 20)
