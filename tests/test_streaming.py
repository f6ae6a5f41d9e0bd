"""Training on data that are read when they are wanted, against the same data in memory."""

import equinox as eqx
import jax
import numpy as np
import pytest

from nedm_ppl import inference, models
from nedm_ppl.data import MappedRows
from nedm_ppl.models.chain.schedules import log_snr_linear

KEY = jax.random.key(0)


def same_leaves(one, other):
    """Whether two models have the same bits."""
    return bool(eqx.tree_equal(eqx.filter(one, eqx.is_array), eqx.filter(other, eqx.is_array)))


X = np.random.default_rng(0).normal(3.0, 2.0, (230, 2))
OPTIONS = {"num_updates": 12, "batch_size": 16, "log_every": 4, "progress": False}


def model():
    network = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=KEY)
    process = models.GaussianDiffusion(2, log_snr_linear(5))
    return models.Diffusion(process, models.VelocityPrediction(network), units=models.Standardize.of(X))


class Source:
    """A source of rows by their number, which counts how many were asked for at once."""

    def __init__(self, values):
        self.values, self.asked = values, 0

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        assert isinstance(place, int)
        self.asked += 1
        return self.values[place]


def mapped(folder):
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


def folder_of_files(folder):
    for i, part in enumerate(np.split(X, [100, 101])):
        np.save(folder / f"{i}.npy", part)
    return MappedRows(folder)


def grain(folder):
    from grain import MapDataset

    return MapDataset.source(list(X))


SOURCES = {"mapped": mapped, "folder": folder_of_files, "source": lambda folder: Source(X), "grain": grain}


@pytest.mark.central
@pytest.mark.parametrize("name", SOURCES)
def test_rows_that_are_read_are_trained_on_like_rows_in_memory(name, tmp_path):
    expected = inference.fit(KEY, model(), X, **OPTIONS)
    got = inference.fit(KEY, model(), SOURCES[name](tmp_path), **OPTIONS)
    assert same_leaves(got.diffusion, expected.diffusion)
    np.testing.assert_array_equal(got.history["bound"], expected.history["bound"])


@pytest.mark.parametrize("name", ["folder", "grain"])
def test_a_run_that_ends_early_goes_on_to_the_same_bits(name, tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    rows = SOURCES[name](tmp_path / "rows")
    options = OPTIONS | {"checkpoint_every": 4}
    whole = inference.fit(KEY, model(), rows, checkpoint=tmp_path / "whole", **options)
    from nedm_ppl.inference.training._resume import TrainingRecord

    write = TrainingRecord.write

    def killed(self, folder, state):
        write(self, folder, state)
        if self.step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRecord, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        inference.fit(KEY, model(), rows, checkpoint=tmp_path / "cut", **options)
    monkeypatch.setattr(TrainingRecord, "write", write)
    resumed = inference.fit(KEY, model(), rows, checkpoint=tmp_path / "cut", resume=True, **options)
    assert same_leaves(resumed.diffusion, whole.diffusion)
    with pytest.raises(inference.CheckpointError, match="other data"):
        inference.fit(KEY, model(), X + 1.0, checkpoint=tmp_path / "cut", resume=True, **options)


def test_no_more_rows_are_read_than_updates_take_where_nothing_is_kept():
    source = Source(np.random.default_rng(0).normal(3.0, 2.0, (100_000, 2)))
    inference.fit(KEY, model(), source, **OPTIONS)
    assert source.asked <= 12 * 16 + 16 + 3 * 1024


def test_a_part_is_kept_out_of_rows_that_are_read_too():
    train, stop_on, numbers = inference.training._fit._unsaid(
        KEY, inference.training._fit._part(model(), "", Source(X), None, None), None, None, False
    )
    assert len(train.x0) == 207 and len(stop_on.x0) == 23 and numbers[3] is not None
    rows = np.concatenate([train.x0[np.arange(207)], stop_on.x0])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(model().to_chain(X), axis=0))


def test_contexts_go_with_rows_that_are_read():
    network = models.networks.ResidualMLP((2,), (2, 2), 5, width=8, depth=1, key=KEY)
    embedded = models.networks.Embedded(network, eqx.nn.Embedding(3, 8, key=KEY))
    process = models.GaussianDiffusion(2, log_snr_linear(5))
    diffusion = models.Diffusion(process, models.VelocityPrediction(models.Conditional(embedded, 2)))
    u, labels = (X - 3.0) / 2.0, np.arange(230) % 2
    got, expected = (
        inference.fit(KEY, diffusion, rows, context=labels, **OPTIONS).diffusion for rows in (Source(u), u)
    )
    assert same_leaves(got, expected)


def test_bad_sources_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="has none"):
        MappedRows(tmp_path)
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :1])
    with pytest.raises(ValueError, match="rows of one shape"):
        MappedRows(tmp_path)
    (tmp_path / "c.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"c.npy must be a .npy file that holds rows of numbers"):
        MappedRows(tmp_path / "c.npy")
    with pytest.raises(ValueError, match="validation must be an array in memory"):
        inference.fit(KEY, model(), X, validation=Source(X), **OPTIONS)
    with pytest.raises(ValueError, match="finite"):
        inference.fit(KEY, model(), Source(np.full((5, 2), np.nan)), **OPTIONS)
    with pytest.raises(ValueError, match="at least one datum"):
        inference.fit(KEY, model(), Source(X[:0]), **OPTIONS)
