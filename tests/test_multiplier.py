"""Every multiplier against brute force: products normalized on grids and over states, and their normalizers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import assert_mean

from nedm_ppl import models
from nedm_ppl.inference import (
    BernoulliObservation,
    Function,
    Known,
    LinearObservation,
    NormalObservation,
    Product,
)
from nedm_ppl.inference.posterior._local import MOST_COORDINATES, WIDENED, _climb, moved
from nedm_ppl.inference.posterior._multiplier import as_multiplier
from nedm_ppl.inference.posterior._proposals import NormalModes, defended, log_density
from nedm_ppl.inference.posterior._tabulated import Tabulated, _merged, guide_of
from nedm_ppl.inference.posterior._tilted import tilt
from nedm_ppl.models import Levels
from tests.exact import states

LOC, SCALE = jnp.array([0.3, -0.5]), jnp.array([0.8, 1.2])
NORMAL = dist.Normal(LOC, SCALE).to_event(1)
BITS = dist.BernoulliLogits(jnp.array([0.4, -1.0, 2.0])).to_event(1)
GREYS = (-1.0, 0.0, 1.5)
LEVELS = Levels(jnp.array([[0.1, 0.5, -1.0], [1.0, 0.0, 0.3]]), GREYS).to_event(1)
MATRIX = jnp.array([[1.0, -2.0], [0.5, 0.7]])
FULL = jnp.array([[0.5, 0.2], [0.2, 0.4]])
AXIS = np.linspace(-9.0, 9.0, 361)
PLANE = jnp.asarray(np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2))
CELL = (AXIS[1] - AXIS[0]) ** 2

GAUSSIAN = {
    "masked": NormalObservation(jnp.array([1.0, jnp.nan]), 0.5),
    "diagonal": NormalObservation(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])),
    "linear": LinearObservation(jnp.array([0.5, 1.0]), MATRIX, scale=jnp.array([0.6, 0.9])),
    "full": LinearObservation(jnp.array([0.5, 1.0]), MATRIX, covariance=FULL),
    "product": NormalObservation(jnp.array([1.0, jnp.nan]), 0.5)
    * LinearObservation(jnp.array([0.5]), MATRIX[:1], scale=0.6)
    * LinearObservation(jnp.array([1.0]), MATRIX[1:], scale=0.9),
}


@pytest.mark.central
@pytest.mark.cases(4)
@pytest.mark.parametrize("power", [1.0, 0.3])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_normal_law_times_a_gaussian_observation(name, power):
    r = as_multiplier(GAUSSIAN[name])
    unnormalized = np.asarray(NORMAL.log_prob(PLANE) + power * jax.vmap(r.log_r)(PLANE), np.float64)
    law = np.exp(unnormalized) / np.exp(unnormalized).sum()
    product = tilt(NORMAL, r, LOC, power).law
    np.testing.assert_allclose(np.exp(product.log_prob(PLANE)) * CELL, law, atol=2e-6)
    np.testing.assert_allclose(product.mean, law @ np.asarray(PLANE), atol=1e-4)
    np.testing.assert_allclose(
        product.variance, law @ np.square(np.asarray(PLANE) - np.asarray(product.mean)), rtol=1e-4
    )
    if power == 1.0:
        np.testing.assert_allclose(r.log_mean(NORMAL), np.log(np.exp(unnormalized).sum() * CELL), atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 0.3])
def test_draws_of_a_linear_observation_have_its_moments(power):
    product = GAUSSIAN["full"].times(NORMAL, power)
    draws = np.asarray(product.sample(jax.random.key(0), (20_000,)), np.float64)
    gain = np.diag(SCALE**2) @ MATRIX.T @ np.linalg.inv(MATRIX @ np.diag(SCALE**2) @ MATRIX.T + FULL / power)
    cov = np.diag(SCALE**2) - gain @ MATRIX @ np.diag(SCALE**2)
    error = np.sqrt(np.diag(cov) / len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - product.mean) < 4.0 * error)
    squares = np.square(draws - np.asarray(product.mean))
    assert np.all(np.abs(squares.mean(axis=0) - np.diag(cov)) < 4.0 * squares.std(axis=0) / np.sqrt(len(draws)))
    products = (draws - draws.mean(axis=0))[:, 0] * (draws - draws.mean(axis=0))[:, 1]
    assert abs(products.mean() - cov[0, 1]) < 4.0 * products.std() / np.sqrt(len(draws))


DISCRETE = {
    "bits, channel": (BITS, BernoulliObservation(jnp.array([1.0, 0.0, jnp.nan]), 0.2), states(3)),
    "bits, known": (BITS, Known(jnp.array([1.0, 0.0, 0.0]), jnp.array([True, False, True])), states(3)),
    "bits, noise": (BITS, NormalObservation(jnp.array([0.7, 0.2, jnp.nan]), 0.5), states(3)),
    "levels, noise": (LEVELS, NormalObservation(jnp.array([0.4, -0.8]), 0.7), None),
    "levels, known": (LEVELS, Known(jnp.array([1.5, jnp.nan])), None),
    "both": (
        LEVELS,
        Known(jnp.array([1.5, jnp.nan])) * NormalObservation(jnp.array([0.4, -0.8]), 0.7),
        None,
    ),
}


@pytest.mark.parametrize("power", [1.0, 0.3])
@pytest.mark.parametrize("name", DISCRETE)
def test_a_discrete_law_times_what_factorizes(name, power):
    law, r, values = DISCRETE[name]
    values = np.array([[a, b] for a in GREYS for b in GREYS]) if values is None else values
    r = as_multiplier(r)
    joint = np.exp(np.asarray(law.log_prob(values) + power * jax.vmap(r.log_r)(jnp.asarray(values)), np.float64))
    product = tilt(law, r, jnp.asarray(values[0]), power).law
    np.testing.assert_allclose(np.exp(product.log_prob(values)), joint / joint.sum(), atol=1e-6)
    if power == 1.0:
        np.testing.assert_allclose(r.log_mean(law), np.log(joint.sum()), atol=1e-5)
        np.testing.assert_allclose(tilt(law, r, jnp.asarray(values[0])).log_mean, np.log(joint.sum()), atol=1e-5)


def test_known_coordinates_of_a_normal_law_are_points():
    known = Known(jnp.array([jnp.nan, 2.0]))
    product = known.times(NORMAL)
    draws = product.sample(jax.random.key(0), (5,))
    assert np.all(draws[:, 1] == 2.0)
    inside = jnp.array([0.1, 2.0])
    np.testing.assert_allclose(product.log_prob(inside), dist.Normal(LOC[0], SCALE[0]).log_prob(0.1), rtol=1e-6)
    assert product.log_prob(jnp.array([0.1, 2.1])) == -jnp.inf
    np.testing.assert_allclose(known.log_mean(NORMAL), dist.Normal(LOC[1], SCALE[1]).log_prob(2.0), rtol=1e-6)
    assert known.log_r(inside) == 0.0 and known.log_r(jnp.array([0.1, 0.0])) == -jnp.inf


def on_the_plane(log_r):
    """log of the mean of r under `NORMAL`, and the mean of the product, by quadrature."""
    joint = np.asarray(NORMAL.log_prob(PLANE) + jax.vmap(log_r)(PLANE), np.float64)
    weights = np.exp(joint - joint.max())
    return joint.max() + np.log(weights.sum() * CELL), weights @ np.asarray(PLANE) / weights.sum()


def coupled(x):
    return -0.5 * (x[0] - x[1] - 1.0) ** 2 / 0.3 - 0.5 * (x[0] + 2.0 * x[1]) ** 2


def test_modes_of_a_gaussian_function_are_exact():
    """One step of Newton's method: place, curvature and mass of a quadratic log r are those of the product."""
    truth, mean = on_the_plane(coupled)

    def moments(function):
        def tilted():
            product, log_mean = tilt(NORMAL, as_multiplier(function))
            return product.mean, product.variance, log_mean

        return jax.jit(tilted)()

    found, _, log_mean = moments(coupled)
    np.testing.assert_allclose(log_mean, truth, atol=1e-4)
    np.testing.assert_allclose(found, mean, atol=1e-4)
    exact = GAUSSIAN["full"].times(NORMAL)
    np.testing.assert_allclose(moments(GAUSSIAN["full"].log_r)[1], WIDENED * exact.variance, rtol=1e-4)


def test_a_climb_never_falls_where_newtons_steps_alone_would_diverge():
    def height(z):
        return -jnp.sqrt(1.0 + 25.0 * z[0] ** 2)

    start = jnp.array([2.0])
    tops = [float(_climb(height, start, steps)[1]) for steps in range(0, 40, 4)]
    assert np.all(np.diff(tops) >= 0.0) and tops[0] == pytest.approx(float(height(start)))
    assert tops[-1] == pytest.approx(-1.0, abs=1e-3)
    slope, curvature = jax.grad(height)(start), jax.hessian(height)(start)
    assert height(start - slope / curvature[0]) < height(start)  # one step undamped, the control


HARD = {
    "coupled": coupled,
    "two modes": lambda x: -0.5 * (x[0] * x[1] - 1.0) ** 2 / 0.2**2,
    "a ring": lambda x: -0.5 * (jnp.hypot(x[0], x[1]) - 1.5) ** 2 / 0.1**2,
    "flat sides": lambda x: -0.5 * (jnp.clip(x[0] + x[1], -0.5, 0.5) - 0.4) ** 2 / 0.05**2,
    "steep": lambda x: -jnp.sum(jnp.cosh(5.0 * (x[0] - x[1]))),
    "never": lambda x: jnp.nan * x[0] * x[1],
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", HARD)
def test_a_guess_is_a_law_whose_density_is_that_of_its_draws(name):
    product = jax.jit(lambda: tilt(NORMAL, as_multiplier(HARD[name])).law)()
    mass = np.exp(np.asarray(jax.jit(product.log_prob)(PLANE), np.float64)) * CELL
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-3)
    draws = np.asarray(jax.jit(lambda key: product.sample(key, (20_000,)))(jax.random.key(0)), np.float64)
    for moment in (np.asarray(PLANE), np.square(np.asarray(PLANE))):
        of_draws = draws if moment is not PLANE and np.any(moment < 0) else np.square(draws)
        error = of_draws.std(axis=0) / np.sqrt(len(draws))
        assert np.all(np.abs(of_draws.mean(axis=0) - mass @ moment) < 5.0 * error + 1e-3)
    np.testing.assert_allclose(product.mean, mass @ np.asarray(PLANE), atol=5e-3)


LINES = {
    "clip": lambda x: dist.Normal(jnp.clip(x, -0.5, 0.5), 0.3).log_prob(0.6),
    "coins": lambda x: 80 * jax.nn.log_sigmoid(2 * x) + 20 * jax.nn.log_sigmoid(-2 * x),
    "sharp": lambda x: dist.Normal(jnp.tanh(x), 0.01).log_prob(0.4),
    "sharper": lambda x: dist.Normal(x + 0.1 * x**3, 1e-3).log_prob(0.4),
    "heavy tails": lambda x: dist.StudentT(2.0, x, 0.05).log_prob(1.5),
    "two modes": lambda x: dist.Normal(x**2, 0.1).log_prob(1.0),
    "counts": lambda x: dist.Poisson(jnp.exp(x)).log_prob(3.0),
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", LINES)
def test_a_function_of_one_coordinate_is_tabulated_to_a_tenth_of_a_nat(name):
    axis = jnp.linspace(-8.0, 8.0, 400_001)
    for loc, scale in ((0.3, 1.0), (-0.5, 0.4), (1.0, 0.1)):
        law = dist.Normal(jnp.array([loc]), scale).to_event(1)
        joint = np.asarray(dist.Normal(loc, scale).log_prob(axis) + LINES[name](axis), np.float64)
        truth = joint.max() + np.log(np.exp(joint - joint.max()).sum() * float(axis[1] - axis[0]))
        guide = guide_of(as_multiplier(lambda x: LINES[name](x[0])), LINE)
        if truth < -100.0 and scale < 1.0:
            continue  # a particle that r rules out
        product, log_mean = eqx.filter_jit(tilt)(law, guide)
        assert abs(float(log_mean) - truth) < 0.1 + 0.02 * abs(truth)
        # The effective share of draws from the guess, a tenth of them unguided, as draws of the product.
        density = np.exp(joint - truth)
        drawn = jax.jit(lambda law, product: defended(law, product).log_prob(axis[:, None]))(law, product)
        drawn = np.exp(np.asarray(drawn, np.float64))
        square = np.where(density > 0.0, density**2 / np.maximum(drawn, 1e-300), 0.0).sum()
        assert 1.0 / (square * float(axis[1] - axis[0])) > 0.85


def test_merged_cells_have_the_mass_and_moments_of_what_is_flat_on_each():
    """Two cells of different width and height as one Gaussian, twice as wide: a law that is uniform on each has these."""
    low, high, value = jnp.array([0.0, 1.0]), jnp.array([1.0, 4.0]), jnp.log(jnp.array([2.0, 0.5]))
    (log_mass,), (loc,), (scale,) = _merged(low, high, value, 1)
    mass = np.array([2.0, 1.5])
    mean = mass @ [0.5, 2.5] / mass.sum()
    square = mass @ [1.0 / 3.0, (4.0**3 - 1.0) / 9.0] / mass.sum()
    np.testing.assert_allclose([log_mass, loc, (scale / 2.0) ** 2], [np.log(3.5), mean, square - mean**2], rtol=1e-5)


def test_a_coordinate_that_r_does_not_see_keeps_its_law():
    product = tilt(NORMAL, guide_of(as_multiplier(lambda x: jnp.cosh(x[0]) - x[0] ** 4), PROCESS)).law
    np.testing.assert_allclose(product.mean[1], LOC[1], rtol=1e-5)
    np.testing.assert_allclose(product.variance[1], SCALE[1] ** 2, rtol=1e-5)


def test_a_larger_datum_is_moved_along_the_gradient_and_never_too_far():
    size = MOST_COORDINATES + 1
    law = dist.Normal(jnp.zeros(size), 1.0).to_event(1)
    sharp = as_multiplier(lambda x: -0.5 * jnp.sum(jnp.square(jnp.diff(x, append=1.0) - 0.5)) / 0.01**2)
    product = jax.jit(lambda: tilt(law, sharp).law)()
    before, after = (law.log_prob(x) + sharp.log_r(x) for x in (law.mean, product.mean))
    assert after > before
    np.testing.assert_allclose(product.variance, jnp.ones(size), rtol=1e-6)


def test_along_its_gradient_a_gaussian_function_has_its_own_mass():
    """Where log r bends along the gradient alone, the integral over that line is that over all of x."""
    size = MOST_COORDINATES + 1
    law = dist.Normal(jnp.zeros(size), 2.0).to_event(1)
    found = moved(law, lambda x: -0.5 * jnp.square((x[3] - 1.0) / 0.3))
    exact = dist.Normal(0.0, jnp.hypot(2.0, 0.3)).log_prob(1.0) + jnp.log(0.3 * jnp.sqrt(2.0 * jnp.pi))
    np.testing.assert_allclose(found.log_mean, exact, atol=1e-4)
    np.testing.assert_allclose(found.law.mean[3], 4.0 / (4.0 + 0.09), atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 0.3])
def test_a_table_of_one_gaussian_is_that_gaussian_to_any_power(power):
    y, scale = jnp.array([1.0, -0.7]), jnp.array([0.5, 0.2])
    exact = NormalObservation(y, scale)
    table = Tabulated(exact, jnp.zeros((2, 1)), y[:, None], scale[:, None], jnp.ones(2, bool))
    product, same = table.times(NORMAL, power), exact.times(NORMAL, power)
    np.testing.assert_allclose(product.mean, same.mean, rtol=1e-5)
    np.testing.assert_allclose(product.variance, same.variance, rtol=1e-5)


def test_every_bit_is_moved_by_its_own_ratio():
    def log_r(x):
        return x[0] * x[1] - 2.0 * x[2]

    bits = tilt(BITS, as_multiplier(log_r), jnp.array([1.0, 0.0, 1.0])).law
    np.testing.assert_allclose(bits.base_dist.logits - BITS.base_dist.logits, [0.0, 1.0, -2.0], atol=1e-6)


@pytest.mark.cases(1)
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_compressed_rows_move_a_law_as_all_of_them_do(rows):
    rng = np.random.default_rng(rows)
    matrix, y, noise = rng.normal(size=(rows, 2)), rng.normal(size=rows), rng.uniform(0.5, 2.0, size=rows)
    whole = LinearObservation(y, matrix, scale=noise)
    few = whole.compressed()
    assert len(few.y) == min(rows, 2)
    first, second = whole.times(NORMAL), few.times(NORMAL)
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-4)
    np.testing.assert_allclose(first.log_prob(PLANE[:50]), second.log_prob(PLANE[:50]), atol=2e-3, rtol=1e-4)


def test_no_factor_is_one():
    law = tilt(NORMAL, Product(), LOC).law
    assert law is NORMAL
    assert Product().log_mean(NORMAL) == 0.0 and Product().log_r(LOC) == 0.0


PROCESS = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(3))
LINE = models.GaussianDiffusion((1,), models.schedules.log_snr_linear(3))
BINARY = models.BernoulliDiffusion((2,), models.schedules.erasing(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Known(jnp.zeros(2), jnp.zeros(3, bool)), "mask must be boolean and of the shape of values"),
        (lambda: Known(jnp.zeros(2), jnp.zeros(2, bool)), "mask must mark at least one"),
        (lambda: Known(jnp.array([jnp.nan, 1.0]), jnp.ones(2, bool)), "values must be finite"),
        (lambda: NormalObservation(jnp.zeros(2), -1.0), "scale must be positive"),
        (lambda: NormalObservation(jnp.zeros(2), jnp.ones(3)), "scale must be a scalar or of shape"),
        (lambda: BernoulliObservation(jnp.zeros(2), 1.0), "flip must lie in"),
        (lambda: BernoulliObservation(jnp.full(2, 0.5), 0.1), "y must be bits"),
        (lambda: LinearObservation(jnp.zeros(3), MATRIX, scale=1.0), "matrix must have shape"),
        (lambda: LinearObservation(jnp.zeros(2), MATRIX), "scale or covariance must be given"),
        (
            lambda: LinearObservation(jnp.zeros(2), MATRIX, scale=-0.1),
            "scale must be positive, a standard deviation; got -0.1",
        ),
        (lambda: LinearObservation(jnp.zeros(2), MATRIX, covariance=-FULL), "positive definite"),
        (lambda: Known(jnp.zeros(2)) * Known(jnp.ones(2)), "contradict one another at"),
        (lambda: as_multiplier(3.0), "r must be a Multiplier or a function"),
        (lambda: as_multiplier(Known(jnp.zeros(3))).check(PROCESS), "values must have shape"),
        (lambda: as_multiplier(Known(jnp.full(2, 0.5))).check(BINARY), "values must be bits"),
        (lambda: as_multiplier(BernoulliObservation(jnp.zeros(2), 0.1)).check(PROCESS), "observation of bits"),
        (lambda: as_multiplier(lambda x: x).check(PROCESS), "log r must be a scalar"),
        (
            lambda: tilt(NORMAL, as_multiplier(lambda x: float(x[0])), LOC),
            "r must be differentiable to move a Gaussian kernel",
        ),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_r_without_a_gradient_moves_nothing_and_is_averaged():
    def log_r(x):
        return jnp.log(
            jnp.sum(jax.pure_callback(lambda x: np.asarray(x > 0.0, np.float32), x, x, vmap_method="sequential")) + 1.0
        )

    r = as_multiplier(Function(log_r, differentiable=False))
    law, log_mean = tilt(NORMAL, guide_of(r, PROCESS), num_draws=2_000)
    np.testing.assert_array_equal(law.mean, LOC)
    wide = dist.Normal(jnp.array([1.0, 0.1]), jnp.array([3.0, 0.2])).to_event(1)
    of_wide = tilt(wide, guide_of(r, PROCESS), num_draws=2_000).log_mean
    for found, loc, scale in ((log_mean, LOC, SCALE), (of_wide, wide.base_dist.loc, wide.base_dist.scale)):
        chances = np.asarray(dist.Normal(0.0, 1.0).cdf(loc / scale), np.float64)
        mean, sd = 1.0 + chances.sum(), np.sqrt(np.sum(chances * (1.0 - chances)) / 2_000)
        assert abs(np.exp(float(found)) - mean) < 4.0 * sd


def test_modes_have_the_moments_and_the_density_of_their_draws():
    """Two correlated modes, unevenly weighted, over normals of several scales."""
    prior = dist.Normal(jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])).to_event(1)
    covariance = jnp.array([[[1.0, 0.6], [0.6, 0.8]], [[0.3, -0.1], [-0.1, 0.2]]])
    law = NormalModes(prior, jnp.log(jnp.array([0.3, 0.7])), jnp.array([[1.0, -1.0], [-2.0, 0.5]]), covariance)
    draws = np.asarray(law.sample(jax.random.key(0), (40_000,)), np.float64)
    assert_mean(draws, law.mean)
    assert_mean(np.square(draws - np.asarray(law.mean)), law.variance)
    plain = prior.sample(jax.random.key(1), (40_000,))
    relative = np.exp(np.asarray(law.log_prob(plain) - prior.log_prob(plain), np.float64))
    assert_mean(relative, 1.0)
    assert_mean(relative[:, None] * np.asarray(plain), law.mean)


def test_outside_its_support_a_law_has_no_density():
    """NumPyro gives a number there, which would weigh particles."""
    law = dist.Exponential(jnp.array([1.0, 2.0]), validate_args=False).to_event(1)
    inside, outside = jnp.array([0.5, 1.0]), jnp.array([0.5, -1.0])
    assert log_density(law, inside) == law.log_prob(inside) and log_density(law, outside) == -jnp.inf
    both = jnp.stack([inside, outside])
    np.testing.assert_array_equal(jnp.isfinite(log_density(law.expand((2,)), both)), [True, False])


@pytest.mark.parametrize(
    ("build", "good", "bad", "said"),
    [
        (lambda s: NormalObservation(jnp.zeros(2), s), 0.5, 0.0, "scale must be positive"),
        (lambda s: LinearObservation(jnp.zeros(1), jnp.ones((1, 2)), scale=s), 0.5, -1.0, "scale must be positive"),
        (lambda flip: BernoulliObservation(jnp.zeros(2), flip), 0.5, 1.0, "flip must lie in"),
        (lambda bit: BernoulliObservation(bit * jnp.ones(2), 0.1), 1.0, 0.5, "y must be bits"),
    ],
)
def test_values_that_mean_nothing_end_a_compiled_program(build, good, bad, said):
    """Without the check a scale of -1, or a flip of 1, gives numbers."""
    log_r = jax.jit(lambda value: build(value).log_r(jnp.zeros(2)))
    assert np.isfinite(log_r(good))
    with pytest.raises(Exception, match=said):
        log_r(bad).block_until_ready()
    many = jax.jit(jax.vmap(lambda value: build(value).log_r(jnp.zeros(2))))
    assert np.all(np.isfinite(many(jnp.array([good, good]))))
    with pytest.raises(Exception, match=said):
        many(jnp.array([good, bad])).block_until_ready()
