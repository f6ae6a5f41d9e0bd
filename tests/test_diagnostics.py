"""Conversion to ArviZ: groups, names, units and values, in both of its containers, and through netCDF."""

import math
import warnings
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from nedm_ppl import inference
from nedm_ppl.inference import _named_arrays as named_arrays
from tests.zoo import white

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

pytestmark = pytest.mark.central

RNG = np.random.default_rng(0)


@pytest.fixture(params=["installed", "1.0"])
def container(request, monkeypatch):
    """The type that conversions return: that of the installed ArviZ, then that of ArviZ 1."""
    if request.param == "1.0":
        real = named_arrays.version
        monkeypatch.setattr(named_arrays, "version", lambda name: "1.0.0" if name == "arviz" else real(name))
        return xr.DataTree
    return xr.DataTree if int(az.__version__.split(".")[0]) >= 1 else az.InferenceData


@pytest.fixture(scope="module")
def terms():
    diffusion = white(2, 5)
    x0 = jnp.asarray(RNG.normal(size=(7, 2)), jnp.float32)
    return inference.bound_terms(jax.random.key(0), diffusion, x0)


@pytest.fixture(scope="module")
def drawn(terms):
    """The same, with three steps per datum drawn at random."""
    return terms._replace(times=jnp.asarray(RNG.integers(2, 6, size=(3, 7))), divergences=terms.divergences[:3])


def test_samples(container):
    samples, observed = RNG.normal(size=(10, 3, 4)), RNG.normal(size=(6, 3, 4))
    tree = inference.samples_to_arviz(samples, dims=("row", "column"), observed=observed)
    assert isinstance(tree, container)
    x0 = tree["prior"]["x0"]
    assert x0.dims == ("chain", "draw", "row", "column") and x0.attrs["estimate"].startswith("exact draws")
    np.testing.assert_array_equal(x0.values[0], samples)
    assert tree["observed_data"]["x0"].dims == ("datum", "row", "column")
    np.testing.assert_array_equal(tree["observed_data"]["x0"].values, observed)
    assert tree["prior"].attrs["inference_library"] == "nedm_ppl"
    assert tree["prior"].attrs["inference_library_version"] == version("nedm-ppl")


def test_samples_under_another_name():
    tree = inference.samples_to_arviz(RNG.normal(size=(5, 2)), group="posterior_predictive", name="x")
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "x_dim_0")
    scalar = inference.samples_to_arviz(RNG.normal(size=5))
    assert scalar["prior"]["x0"].shape == (1, 5)


def test_arviz_summarizes_the_samples():
    samples = RNG.normal(size=(500, 2))
    table = az.summary(inference.samples_to_arviz(samples), group="prior", kind="stats", round_to=6)
    np.testing.assert_allclose(table["mean"].to_numpy(float), samples.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("group", ["posterior", "log_likelihood", "x"])
def test_samples_do_not_pass_for_a_posterior(group):
    with pytest.raises(ValueError, match="group must be one of prior, posterior_predictive"):
        inference.samples_to_arviz(RNG.normal(size=(5, 2)), group=group)


def test_samples_refusals():
    with pytest.raises(ValueError, match="num_draws at least 1"):
        inference.samples_to_arviz(np.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"dims must name the 1 event axes \(2,\); got \('a', 'b'\)"):
        inference.samples_to_arviz(np.zeros((3, 2)), dims=("a", "b"))
    with pytest.raises(ValueError, match="observed must have shape"):
        inference.samples_to_arviz(np.zeros((3, 2)), observed=np.zeros((3, 4)))


@pytest.mark.parametrize(("units", "per_nat"), [("nats", 1.0), ("bits", 1.0 / math.log(2.0))])
def test_bound(container, terms, units, per_nat):
    tree = terms.to_arviz(units=units)
    assert isinstance(tree, container)
    group = tree["bound"]
    np.testing.assert_allclose(group["bound"].values, per_nat * np.asarray(terms.total), rtol=1e-5)
    for name in ("prior", "diffusion", "first_step"):
        np.testing.assert_allclose(group[name].values, per_nat * np.asarray(getattr(terms, name), np.float64))
        assert group[name].dims == ("datum",)
    divergence = group["divergence"]
    assert divergence.dims == ("time", "datum")
    np.testing.assert_array_equal(divergence["time"].values, [2, 3, 4, 5])
    np.testing.assert_allclose(divergence.sum("time").values, group["diffusion"].values, rtol=1e-5)
    assert {group[name].attrs["units"] for name in ("bound", "prior", "diffusion", "first_step", "divergence")} == {
        units
    }
    assert group["bound"].attrs["estimate"] == "lower bound on log p(x_0), unbiased over the draws of x_t"
    assert group["prior"].attrs["estimate"] == "exact"
    assert not {"chain", "draw"} & set(divergence.dims)


def test_bound_over_drawn_steps(drawn):
    group = drawn.to_arviz()["bound"]
    assert group["divergence"].dims == group["time"].dims == ("drawn_step", "datum")
    np.testing.assert_array_equal(group["time"].values, drawn.times)
    assert "units" not in group["time"].attrs


def test_bound_over_a_batch_of_two_axes(terms):
    twice = inference.BoundTerms(*(jnp.stack([term, 2 * term], axis=-1) for term in terms))
    twice = twice._replace(times=jnp.stack([terms.times] * 2, axis=-1))
    group = twice.to_arviz()["bound"]
    assert group["bound"].dims == ("datum_0", "datum_1")
    assert group["divergence"].dims == ("time", "datum_0", "datum_1")


def test_bound_of_a_chain_of_one_step(terms):
    one = terms._replace(times=terms.times[:0], divergences=terms.divergences[:0])
    assert one.to_arviz()["bound"]["divergence"].shape == (0, 7)


def test_bound_refuses_other_units(terms):
    with pytest.raises(ValueError, match="units must be nats or bits; got 'dits'"):
        terms.to_arviz(units="dits")


def test_trace(container):
    history = {
        "step": np.array([10, 20, 30]),
        "bound": np.array([-3.0, -2.0, -1.5]),
        "rate": np.array([0.1, 0.1, 0.05]),
        "bound_bits_per_dim": np.array([-2.0, -1.0, -0.5]),
        "validation_step": np.array([15, 30]),
        "validation_bound": np.array([-2.5, -1.7]),
        "validation_se": np.array([0.1, 0.2]),
    }
    tree = inference.trace_to_arviz(history, units={"rate": "1"})
    assert isinstance(tree, container)
    group = tree["training"]
    for name in ("bound", "rate", "bound_bits_per_dim"):
        np.testing.assert_array_equal(group[name]["step"].values, history["step"])
    for name in ("validation_bound", "validation_se"):
        np.testing.assert_array_equal(group[name]["validation_step"].values, history["validation_step"])
        np.testing.assert_array_equal(group[name].values, history[name])
    units = {name: group[name].attrs.get("units") for name in ("bound", "rate", "bound_bits_per_dim", "validation_se")}
    assert units == {"bound": "nats", "rate": "1", "bound_bits_per_dim": "bits per dim", "validation_se": "nats"}
    assert group["validation_bound"].attrs["estimate"].startswith("lower bound")
    assert group["validation_se"].attrs["estimate"].startswith("standard error")
    assert "estimate" not in group["rate"].attrs


def test_trace_without_steps_and_refusals():
    group = inference.trace_to_arviz({"loss_nats": [3.0, 2.0]})["training"]
    np.testing.assert_array_equal(group["step"].values, [1, 2])
    with pytest.raises(ValueError, match=r"history\['b'\] must be 1-D, one entry per step; got \(3,\) and \(2,\)"):
        inference.trace_to_arviz({"step": [1, 2], "b": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="must hold an array besides its steps; got nothing"):
        inference.trace_to_arviz({})


@pytest.mark.parametrize("kind", ["samples", "bound", "drawn", "trace"])
def test_round_trip_through_netcdf(kind, container, terms, drawn, tmp_path):
    trees = {
        "samples": lambda: inference.samples_to_arviz(RNG.normal(size=(4, 2)), observed=np.ones((3, 2))),
        "bound": lambda: terms.to_arviz(units="bits"),
        "drawn": lambda: drawn.to_arviz(),
        "trace": lambda: inference.trace_to_arviz({"step": [1, 5], "bound": [-2.0, -1.0]}),
    }
    tree, path = trees[kind](), tmp_path / "result.nc"
    if container is xr.DataTree:
        tree.to_netcdf(path, engine="h5netcdf")
        back = xr.open_datatree(path, engine="h5netcdf")
        groups = {name: (node.to_dataset(), back[name].to_dataset()) for name, node in tree.children.items()}
    else:
        tree.to_netcdf(str(path))
        back = az.from_netcdf(str(path))
        groups = {name: (tree[name], back[name]) for name in tree.groups()}
    assert groups
    for written, read in groups.values():
        xr.testing.assert_identical(written, read)
    back.close()
