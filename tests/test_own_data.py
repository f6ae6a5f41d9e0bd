"""`nedm train` on a person's own files, in small, and what is done with the model."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_cli import nedm

from nedm_ppl.models import Diffusion

RNG = np.random.default_rng(0)
SMALL = ("--updates", "4", "--num-steps", "4")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A file of 120 people, of two kinds, in units of their own."""
    file = tmp_path_factory.mktemp("own") / "people.csv"
    kind = np.where(np.arange(120) % 3, "adult", "child")
    height = np.where(kind == "adult", 170.0, 120.0) + RNG.normal(0.0, 8.0, 120)
    frame = pd.DataFrame({"height": height, "kind": kind, "mass": 0.4 * height + RNG.normal(0.0, 4.0, 120)})
    frame.to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def trained(table):
    out = table.parent / "run"
    assert nedm("train", table, "--label", "kind", "--out", out, *SMALL)[0] == 0
    return out


def test_a_run_on_ones_own_table_leaves_all_that_others_leave(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model", "metrics.json", "samples.png", "loss.png", "bound_by_step.png", "likelihood.nc"} <= names
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["unit"] == "nats per row" and metrics["holdout_size"] == 24
    assert metrics["columns"] == ["height", "mass"] and metrics["labels"] == ["adult", "child"]
    assert "Standardize" in metrics["units"]
    diffusion = Diffusion.load(trained / "model")
    assert diffusion.columns == ("height", "mass") and 100.0 < diffusion.units.loc[0] < 200.0


def test_samples_have_the_columns_and_units_of_the_table(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert nedm("sample", trained, "--num", "50", "--label", "child")[0] == 0
    frame = pd.read_csv("samples.csv")
    assert list(frame.columns) == ["height", "mass"] and len(frame) == 50
    assert 50.0 < frame["height"].mean() < 250.0
    assert nedm("sample", trained, "--num", "5", "--out", "five.npy")[0] == 0
    assert np.load("five.npy").shape == (5, 2)
    code, said = nedm("sample", trained, "--label", "cat", "--out", "cats.csv", capsys=capsys)
    assert code == 2 and "--label must be one of adult, child; got 'cat'" in said


def test_a_table_is_scored_by_the_names_of_its_columns(trained, table, tmp_path, capsys):
    scores = []
    for i, columns in enumerate((["height", "kind", "mass"], ["mass", "kind", "height"])):
        file = tmp_path / f"{i}.csv"
        pd.read_csv(table)[columns].head(6).to_csv(file, index=False)
        assert nedm("loglik", trained, file, "--trajectories", "8", "--out", tmp_path / f"scores{i}.csv")[0] == 0
        scores.append(pd.read_csv(tmp_path / f"scores{i}.csv"))
    assert len(scores[0]) == 6
    np.testing.assert_array_equal(scores[0]["log_prob"], scores[1]["log_prob"])
    short = tmp_path / "short.csv"
    pd.read_csv(table)[["height"]].to_csv(short, index=False)
    code, said = nedm("loglik", trained, short, "--out", tmp_path / "c.csv", capsys=capsys)
    assert code == 2 and "lacks mass" in said
    other = tmp_path / "other.csv"
    other.write_text("height,mass,kind\n1,2,dog\n")
    code, said = nedm("loglik", trained, other, "--out", tmp_path / "d.csv", capsys=capsys)
    assert code == 2 and "got 'dog'" in said


def test_a_table_is_restored_into_a_table(trained, table, tmp_path):
    people = pd.read_csv(table)
    people[["mass", "kind", "height"]].head(3).to_csv(tmp_path / "few.csv", index=False)
    few = ("--data", tmp_path / "few.csv", "--particles", "8", "--repeats", "2")
    assert nedm("inpaint", trained, "--mask", "right", *few, "--out", tmp_path / "out")[0] == 0
    draws = pd.read_csv(tmp_path / "out" / "draws.csv")
    assert list(draws.columns) == ["datum", "draw", "height", "mass"] and len(draws) == 3 * 16
    seen = people["height"].to_numpy()[draws["datum"]]  # the first column, which was not hidden
    np.testing.assert_allclose(draws["height"], seen, rtol=1e-6)
    assert draws.groupby("datum")["mass"].std().gt(0.0).all() and draws["mass"].between(-100.0, 300.0).all()


def test_a_run_goes_on_where_it_was_stopped_and_another_is_refused(trained, table, capsys):
    again = ("train", table, "--label", "kind", "--out", trained, *SMALL)
    assert nedm(*again, "--resume")[0] == 0
    code, said = nedm(*again, capsys=capsys)
    assert code == 2 and "--resume" in said


@pytest.mark.long
def test_a_folder_of_images_is_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nedm_ppl.models._default.IMAGE_WIDTH", 8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(RNG.integers(0, 4, (5, 5), np.uint8) * 60).save(folder / f"{i:02}.png")
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "run"
    assert nedm("train", folder, "--out", out, *SMALL)[0] == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["unit"] == "bits per dimension" and metrics["kind"] == "levels"
    assert nedm("sample", out, "--num", "3", "--out", tmp_path / "three.npy")[0] == 0
    images = np.load(tmp_path / "three.npy")
    assert images.shape == (3, 5, 5) and set(np.unique(images)) <= set(range(181))
    code, said = nedm("train", folder, "--strict", "--out", tmp_path / "strict", *SMALL, capsys=capsys)
    assert code == 2 and "notes.txt must be an image" in said


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n1,2\n", (), "at least ten rows"),
        ("a,b\n" + "1,\n" * 20, (), "20 missing or infinite values, 20 in b"),
        ("a,b\n" + "1,x\n" * 20, (), "column 'b'"),
        ("a,b\n" + "1,2\n3,4\n" * 20, ("--holdout", "1.5"), "--holdout must lie in (0, 1)"),
        ("a,b\n" + "1,2\n3,4\n" * 20, ("--kind", "ordinal"), "kind must be one of real, levels, bits"),
        ("a,b\n" + "1,2\n3,4\n" * 20, ("--label", "c"), "label must be one of the columns a, b"),
    ],
)
def test_data_that_cannot_be_trained_on_are_one_sentence(text, options, said, tmp_path, capsys):
    file = tmp_path / "a.csv"
    file.write_text(text)
    code, got = nedm("train", file, "--out", tmp_path / "run", *options, capsys=capsys)
    assert code == 2 and said in got
    assert not (tmp_path / "run" / "model").exists()


def test_a_file_that_is_not_there_is_one_sentence(tmp_path, capsys):
    code, said = nedm("train", tmp_path / "none.csv", capsys=capsys)
    assert code == 2 and "data must be a file; there is none at" in said
