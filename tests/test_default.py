"""The model that is chosen for data of which nothing is known, and `fit` with nothing else said."""

import warnings

import jax
import numpy as np
import pytest

from nedm_ppl import inference, models

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TABLE = RNG.normal(50.0, 20.0, (500, 3))
DATA = {
    "real": TABLE,
    "levels": RNG.integers(0, 17, (200, 4)),
    "bits": np.where(RNG.uniform(size=(200, 5)) < 0.3, 1, -1),
    "gray images": RNG.integers(0, 256, (120, 8, 8)),
    "color images": RNG.uniform(size=(120, 8, 8, 3)),
}
FIRST_STEPS = {
    "real": "learned",
    "levels": "quantized",
    "bits": "learned",
    "gray images": "quantized",
    "color images": "learned",
}


@pytest.mark.parametrize("name", DATA)
def test_a_model_is_chosen_for_data_of_every_kind(name, capsys):
    diffusion = models.diffusion_for(KEY, DATA[name])
    said = capsys.readouterr().out
    assert diffusion.event_shape == DATA[name].shape[1:]
    assert diffusion.first_step == FIRST_STEPS[name]
    assert said.count("\n") == 4 and f"T = {diffusion.num_steps}" in said
    diffusion.check_data(DATA[name])
    bound = jax.eval_shape(lambda: inference.bound_terms(KEY, diffusion, DATA[name][:3].astype(float), num_times=2))
    assert bound.prior.shape == (3,)
    assert diffusion.is_discrete == (diffusion.units.has_density is False)


def test_columns_of_other_spreads_are_standardized_each_and_others_together():
    together = models.diffusion_for(KEY, TABLE, verbose=False)
    apart = models.diffusion_for(KEY, TABLE * [1.0, 100.0, 1e-3], verbose=False)
    assert together.units.shape == () and apart.units.shape == (3,)


def test_a_kind_may_be_told_and_labels_and_steps():
    diffusion = models.diffusion_for(
        KEY, TABLE[:, :2], kind="real", num_labels=3, num_steps=7, columns=["a", "b"], verbose=False
    )
    assert not diffusion.is_discrete and diffusion.num_steps == 7
    assert diffusion.given(2).sample(KEY, 4).shape == (4, 2)
    assert list(diffusion.sample_frame(KEY, 3).columns) == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(5), "must have shape"),
        (np.ones((5, 2)), "must vary; got 1 everywhere"),
        (np.ones((1, 2)), "at least two rows"),
        (np.array([["a", "b"], ["c", "d"]]), "must be numbers"),
        (np.array([[1.0, np.nan], [np.inf, 2.0], [3.0, np.nan]]), "3 missing or infinite values, 1 in a, 2 in b"),
    ],
)
def test_data_of_which_no_model_can_be_made_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        models.diffusion_for(KEY, values, columns=["a", "b"], verbose=False)


@pytest.mark.parametrize(("kind", "said"), [("bits", "two values to be bits"), ("ordinal", "kind must be one of")])
def test_a_kind_that_data_are_not_is_refused(kind, said):
    with pytest.raises(ValueError, match=said):
        models.diffusion_for(KEY, TABLE, kind=kind, verbose=False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.hstack([TABLE, np.full((500, 1), 2.0)]), "column 3 never vary"),
        (np.round(TABLE / 10.0) + 0.5 * (np.arange(500) % 2)[:, None] + 1e-3 * TABLE[:, :1], None),
        (np.hstack([TABLE, np.round(TABLE[:, :1] / 30.0)]), "one value of column 3 occurs in more than 2% of the rows"),
        (np.vstack([TABLE, TABLE[:3]]), "3 rows are copies"),
        (np.vstack([TABLE, [[1e5, 0.0, 0.0]]]), "column 0 reach more than 20"),
        (TABLE[:50], "50 rows are few"),
    ],
)
def test_what_will_hurt_is_warned_of(values, said):
    if said is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models.diffusion_for(KEY, values, kind="real", verbose=False)
        return
    with pytest.warns(models.DataWarning, match=said):
        models.diffusion_for(KEY, values, verbose=False)


@pytest.mark.long
def test_fit_with_nothing_else_said_keeps_a_part_out_and_stops():
    diffusion = models.diffusion_for(KEY, TABLE, num_steps=5, verbose=False)
    fitted = inference.fit(KEY, diffusion, TABLE, progress=False)
    assert fitted.num_updates <= 2_000
    assert fitted.history["validation_step"].size > 1
    mean = inference.Estimate.of(inference.evaluate(KEY, fitted.diffusion, TABLE).total)
    gaussian = -3.0 * (0.5 * np.log(2.0 * np.pi) + np.log(20.0) + 0.5)  # N(50, 20^2) in three columns
    assert mean.mean == pytest.approx(gaussian, abs=0.3)


def test_rows_kept_out_are_not_trained_on_and_too_few_are_none():
    assert inference.training.updates_for(100)[:2] == (2_000, 128)
    assert inference.training.updates_for(10**6)[:2] == (10_000, 512)
