"""Values that are not there: NaN, masked arrays and masked sites are unobserved, on every route to a posterior."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import assert_same_mean
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.gibbs import Gibbs
from numpyro.primitives import Messenger
from scipy import stats

from nedm_ppl import inference
from nedm_ppl.inference import BernoulliObservation, Known, LinearObservation, NormalObservation
from tests.zoo import white

KEY = jax.random.key(0)
WHITE = white(2, 4)
PROCESS = WHITE.process
Y, SEEN = np.array([0.9, np.nan]), np.array([True, False])
HIDDEN = np.ma.array([0.9, 7.0], mask=~SEEN)
MATRIX = np.array([[1.0, 1.0], [3.0, -1.0], [0.5, 2.0]])
COV = np.array([[0.5, 0.2, 0.1], [0.2, 0.4, 0.0], [0.1, 0.0, 0.3]])
ROWS = np.array([1.5, 8.0, -0.4])
X = jax.random.normal(KEY, (5, 2))

HONOURED = {
    "normal, masked": (lambda: NormalObservation(HIDDEN, 0.5), lambda: NormalObservation(Y, 0.5)),
    "normal, masked and a mask": (
        lambda: NormalObservation(np.ma.array([0.9, 7.0], mask=[False, True]), 0.5, np.array([True, True])),
        lambda: NormalObservation(Y, 0.5),
    ),
    "known, masked": (lambda: Known(HIDDEN), lambda: Known(Y)),
    "bits, masked": (
        lambda: BernoulliObservation(np.ma.array([1, 0], mask=~SEEN), 0.1),
        lambda: BernoulliObservation(np.array([1.0, np.nan]), 0.1),
    ),
    "linear, NaN": (
        lambda: LinearObservation(np.where([True, False, True], ROWS, np.nan), MATRIX, covariance=COV),
        lambda: LinearObservation(ROWS[[0, 2]], MATRIX[[0, 2]], covariance=COV[np.ix_([0, 2], [0, 2])]),
    ),
    "linear, NaN, own scales": (
        lambda: LinearObservation(np.where([True, False, True], ROWS, np.nan), MATRIX, scale=np.array([0.5, 9.0, 0.2])),
        lambda: LinearObservation(ROWS[[0, 2]], MATRIX[[0, 2]], scale=np.array([0.5, 0.2])),
    ),
    "linear, masked": (
        lambda: LinearObservation(np.ma.array(ROWS, mask=[0, 1, 0]), MATRIX, covariance=COV),
        lambda: LinearObservation(ROWS[[0, 2]], MATRIX[[0, 2]], covariance=COV[np.ix_([0, 2], [0, 2])]),
    ),
    "linear, a row of NaN that is not observed": (
        lambda: LinearObservation([1.5, np.nan], [[1.0, 1.0], [np.nan, np.nan]], scale=0.5),
        lambda: LinearObservation([1.5], [[1.0, 1.0]], scale=0.5),
    ),
}


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", HONOURED)
def test_a_multiplier_without_the_missing_values_is_the_same(name):
    missing, without = (build() for build in HONOURED[name])
    if not isinstance(missing, Known):  # whose density is a delta
        np.testing.assert_allclose(jax.vmap(missing.log_r)(X), jax.vmap(without.log_r)(X), rtol=1e-5, atol=1e-5)
    law = PROCESS.marginal(2, X)
    if isinstance(missing, BernoulliObservation):
        law = dist.BernoulliLogits(X).to_event(1)
    np.testing.assert_allclose(missing.log_mean(law), without.log_mean(law), rtol=1e-5, atol=1e-5)
    ours, theirs = missing.times(law), without.times(law)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.cases(1)
@pytest.mark.central
@pytest.mark.parametrize("name", ["normal, masked", "linear, NaN"])
def test_multiply_and_its_posterior_are_those_without_the_missing_values(name):
    missing, without = (build() for build in HONOURED[name])
    draws = [inference.multiply(WHITE, r).sample(KEY, (4000,)) for r in (missing, without)]
    assert_same_mean(*draws)
    posteriors = [inference.ParticlePosterior(WHITE, r, num_particles=500) for r in (missing, without)]
    for posterior in posteriors:
        posterior.run(KEY)
    for quantity in ("log_evidence", "mean"):
        first, second = (getattr(posterior, quantity) for posterior in posteriors)
        assert np.all(np.abs(first.mean - second.mean) <= 4.0 * np.hypot(first.se, second.se) + 1e-4)


def test_rows_that_are_missing_differ_within_a_batch():
    ys = np.array([[1.5, np.nan], [np.nan, 0.4], [1.5, 0.4]])
    posterior = inference.ParticlePosterior(
        WHITE, lambda y: LinearObservation(y, [[1.0, 1.0], [0.0, 2.0]], scale=0.5), num_particles=500
    )
    posterior.run_batch(KEY, jnp.asarray(ys))
    for y, log_z, se in zip(ys, *posterior.log_evidence, strict=True):
        seen = ~np.isnan(y)
        matrix = np.array([[1.0, 1.0], [0.0, 2.0]])[seen]
        truth = stats.multivariate_normal(np.zeros(seen.sum()), matrix @ matrix.T + 0.25 * np.eye(seen.sum())).logpdf(
            y[seen]
        )
        assert abs(log_z - truth) <= 4.0 * se + 1e-4


def masked_law():
    x = numpyro.sample("x", WHITE.prior())
    numpyro.sample("y", dist.Normal(x, 0.5).mask(SEEN).to_event(1), obs=jnp.asarray(Y))


def masked_elements():
    x = numpyro.sample("x", WHITE.prior())
    with numpyro.plate("elements", 2), handlers.mask(mask=jnp.asarray(SEEN)):
        numpyro.sample("y", dist.Normal(x, 0.5), obs=jnp.asarray(Y))


def masked_rows():
    """Two rows of a plate, of which the first has one value and the second both."""
    with numpyro.plate("rows", 2):
        x = numpyro.sample("x", WHITE.prior())
        seen = jnp.stack([jnp.asarray(SEEN), jnp.ones(2, bool)])
        numpyro.sample("y", dist.Normal(x, 0.5).mask(seen).to_event(1), obs=jnp.where(seen, 0.9, jnp.nan))


PROGRAMS = {
    "a masked law": (masked_law, [0.72, 0.0]),
    "masked elements": (masked_elements, [0.72, 0.0]),
    "rows of a plate": (masked_rows, [[0.72, 0.0], [0.72, 0.72]]),
}


@pytest.mark.cases(1)
@pytest.mark.central
@pytest.mark.parametrize("name", ["a masked law", "masked elements"])
def test_particle_posterior_of_missing_elements(name):
    program, mean = PROGRAMS[name]
    posterior = inference.ParticlePosterior(program, num_particles=1000)
    posterior.run(KEY)
    truth = stats.norm(0.0, np.sqrt(1.25)).logpdf(0.9)
    assert abs(posterior.log_evidence.mean - truth) <= 4.0 * posterior.log_evidence.se + 1e-4
    assert np.all(np.abs(posterior.mean.mean - mean) <= 4.0 * posterior.mean.se + 0.01)
    np.testing.assert_allclose(posterior.sd, np.sqrt([0.2, 1.0]), atol=0.05)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", PROGRAMS)
def test_path_gibbs_of_missing_elements(name):
    program, mean = PROGRAMS[name]
    mcmc = MCMC(
        Gibbs([(inference.PathGibbs(program, num_particles=8), None)]),
        num_warmup=50,
        num_samples=2000,
        progress_bar=False,
    )
    mcmc.run(KEY)
    draws = np.asarray(mcmc.get_samples()["x"])
    error = 4.0 * np.sqrt(np.where(np.array(mean) > 0, 0.2, 1.0) * 3.0 / 2000)  # an autocorrelation time of 3
    assert np.all(np.abs(draws.mean(axis=0) - mean) <= error)
    np.testing.assert_allclose(draws.std(axis=0), np.sqrt(np.where(np.array(mean) > 0, 0.2, 1.0)), atol=0.1)


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_particle_metropolis_of_missing_elements(name):
    """With an offset b ~ N(0, 1) beside: y = x + b + noise, so that E b = y / (1 + 1 + .25) where one value is seen."""
    inner = PROGRAMS[name][0]

    def program():
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        with Moved(offset):
            inner()

    mcmc = MCMC(
        inference.ParticleMetropolis(program, num_particles=32), num_warmup=300, num_samples=3000, progress_bar=False
    )
    mcmc.run(KEY)
    draws = np.asarray(mcmc.get_samples()["offset"])
    num = 3 if name == "rows of a plate" else 1
    mean, var = num * 0.9 / (num + 1.25), 1.25 / (num + 1.25)
    effective = numpyro.diagnostics.effective_sample_size(draws[None])
    assert effective > 100
    assert abs(draws.mean() - mean) <= 4.0 * np.sqrt(var / effective)


class Moved(Messenger):
    """Takes an offset from the observed values of a program, which are then of x + offset."""

    def __init__(self, offset):
        self.offset = offset
        super().__init__()

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] == "y":
            msg["value"] = msg["value"] - self.offset


REFUSED = {
    "scale": lambda m: NormalObservation([0.9, 0.1], m),
    "mask": lambda m: NormalObservation([0.9, 0.1], 0.5, np.ma.array([True, True], mask=m.mask)),
    "flip": lambda m: BernoulliObservation([1.0, 0.0], m / 10.0),
    "matrix": lambda m: LinearObservation([0.9], m[None], scale=0.5),
    "covariance": lambda m: LinearObservation(
        [0.9, 0.1], np.eye(2), covariance=np.ma.array(np.eye(2), mask=np.diag(m.mask))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_missing_is_named(name):
    with pytest.raises(ValueError, match=rf"{name} must hold no masked values; got 1 of [24] masked"):
        REFUSED[name](np.ma.array([0.5, 0.6], mask=[True, False]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LinearObservation([np.nan, np.nan], np.eye(2), scale=1.0),
            "y must be finite, or NaN where it is not observed, and somewhere observed; got 2 of 2 NaN, 0 infinite.",
        ),
        (lambda: LinearObservation([np.inf, 1.0], np.eye(2), scale=1.0), "got 0 of 2 NaN, 1 infinite."),
        (
            lambda: LinearObservation([1.0, np.nan], np.full((2, 2), np.nan), scale=1.0),
            "matrix must be finite in every row that is observed",
        ),
        (
            lambda: NormalObservation(np.ma.array([1.0, 2.0], mask=True), 1.0),
            "mask must mark at least one coordinate of y; got none.",
        ),
    ],
)
def test_what_holds_no_observation_is_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


@pytest.mark.parametrize("sampler", [inference.PathGibbs, inference.ParticleMetropolis, inference.ParticlePosterior])
def test_nan_that_no_mask_hides_is_named_on_every_route(sampler):
    def program():
        x = numpyro.sample("x", WHITE.prior())
        if sampler is inference.ParticleMetropolis:
            x = x + numpyro.sample("offset", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=jnp.asarray(Y))

    with pytest.raises(ValueError, match=r"site 'y' must observe numbers; 1 of its values are NaN"):
        if sampler is inference.ParticlePosterior:
            sampler(program).run(KEY)
        else:
            kernel = sampler(program)
            kernel = Gibbs([(kernel, None)]) if sampler is inference.PathGibbs else kernel
            MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(KEY)
