"""Seven densities of the plane and their Gray code: normalized, what is drawn, and the bits of neighbors."""

import math

import numpy as np
import pytest
from conftest import STANDARD_ERRORS, assert_mean, standard_error

from nedm_ppl import data

CELL = 0.1
AXIS = CELL * (np.arange(-60, 60) + 0.5)
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1)

# Published scales of the coding, and entropies of the words in nats. The pinwheel's was published as 19.5435, from draws;
# quadrature and 200,000 draws here agree on 19.547.
INT_SCALE = {
    "2spirals": (5978.486, 20.0373),
    "8gaussians": (5289.618, 19.9789),
    "circles": (5668.638, 20.5535),
    "moons": (5779.756, 19.7182),
    "pinwheel": (5510.877, 19.5467),
    "swissroll": (6222.632, 20.1416),
    "checkerboard": (5461.865, 20.6768),
}


@pytest.fixture(scope="module", params=data.PLANE_DENSITIES)
def density(request) -> tuple[str, float]:
    """A density's name and its entropy in nats from a grid of midpoints, on which its density sums to 1."""
    log_density = data.plane_log_density(GRID, request.param)
    p = np.exp(log_density)
    assert log_density.shape == (120, 120) and p.sum() * CELL**2 == pytest.approx(1.0, abs=1e-5)
    return request.param, -float(np.sum(p[p > 0] * log_density[p > 0])) * CELL**2


def test_entropies_of_the_words_are_the_published_ones(density):
    name, entropy = density
    scale, floor = INT_SCALE[name]
    assert data.int_scale(name) == pytest.approx(scale, rel=1e-6)
    assert entropy + 2.0 * math.log(scale) == pytest.approx(floor, abs=1e-4)


@pytest.mark.cases(2)
@pytest.mark.central
def test_draws_have_the_density(density):
    name, entropy = density
    draws = data.plane(3, name, 4_000)
    assert draws.shape == (4_000, 2) and draws.dtype == np.float64
    assert_mean(-data.plane_log_density(draws, name), entropy)
    # Control: the same draws a tenth further out fail the same comparison.
    with np.errstate(invalid="ignore"):
        further = -data.plane_log_density(1.1 * draws, name) - entropy
    assert np.isinf(further).any() or further.mean() > STANDARD_ERRORS * standard_error(further)


@pytest.mark.parametrize("name", ["moons", "checkerboard"])
def test_entropy_by_quadrature(name):
    assert data.gray_code_entropy(name) == pytest.approx(INT_SCALE[name][1], abs=1e-4)
    assert data.gray_code_entropy(name) == data.plane_entropy(name) + 2.0 * math.log(data.int_scale(name))
    assert data.plane_entropy("checkerboard") == pytest.approx(math.log(32.0), rel=1e-12)


def test_draws_are_deterministic_and_advance():
    rng = np.random.default_rng(5)
    first, second = data.plane(rng, "circles", 30), data.plane(rng, "circles", 30)
    np.testing.assert_array_equal(first, data.plane(5, "circles", 30))
    assert not np.array_equal(first, second)


def test_coding_is_a_round_trip_to_half_a_cell():
    scale, points = data.int_scale("8gaussians"), data.plane(0, "8gaussians", 500)
    bits = data.gray_encode(points, scale)
    assert bits.shape == (500, 32) and set(np.unique(bits)) == {0, 1}
    assert np.abs(data.gray_decode(bits, scale) - points).max() <= 0.5 / scale + 1e-12
    words = np.random.default_rng(0).integers(0, 2, (500, 32))
    np.testing.assert_array_equal(data.gray_encode(data.gray_decode(words, scale), scale), words)


def test_neighboring_cells_differ_in_one_bit_and_plain_binary_does_not():
    cells = np.arange(-(2**15), 2**15) + 0.5
    words = data.gray_encode(cells[:, None], 1.0).astype(int)
    np.testing.assert_array_equal(np.abs(np.diff(words, axis=0)).sum(axis=1), 1)
    assert np.flatnonzero(words[2**15] != words[2**15 - 1]).tolist() == [0]
    np.testing.assert_array_equal(words[-1, :4], [0, 1, 0, 0])
    # Control: binary numbers.
    binary = (np.arange(2**15)[:, None] >> np.arange(15)) & 1
    assert np.abs(np.diff(binary, axis=0)).sum(axis=1).max() == 15


def test_log_probability_of_a_word_is_the_densitys_times_its_cell():
    scale, points = data.int_scale("moons"), data.plane(1, "moons", 1_000)
    at_draws = data.gray_code_log_prob(points, "moons")
    np.testing.assert_allclose(at_draws, data.plane_log_density(points, "moons") - 2.0 * math.log(scale), rtol=1e-12)
    of_words = data.gray_word_log_prob(data.gray_encode(points, scale), "moons")
    np.testing.assert_allclose(of_words, at_draws, atol=0.01)
    assert abs(np.mean(of_words - at_draws)) < 2e-4


def test_a_cell_that_an_edge_cuts_has_the_density_of_its_part_inside():
    scale = data.int_scale("checkerboard")
    cut, beyond = [3.0, 4.0 - 1e-9], [3.0, 4.0 + 1.0 / scale]
    words = data.gray_encode([cut, beyond], scale)
    assert np.isneginf(data.gray_code_log_prob(data.gray_decode(words, scale), "checkerboard")).all()
    log_prob = data.gray_word_log_prob(words, "checkerboard")
    assert log_prob[0] == pytest.approx(-math.log(32.0) - 2.0 * math.log(scale)) and np.isneginf(log_prob[1])


def test_refusals():
    names = (
        "density must be one of 2spirals, 8gaussians, circles, moons, pinwheel, swissroll, checkerboard; got 'rings'"
    )
    for call in (
        lambda: data.plane(0, "rings", 3),
        lambda: data.plane_log_density(np.zeros((3, 2)), "rings"),
        lambda: data.plane_entropy("rings"),
        lambda: data.int_scale("rings"),
    ):
        with pytest.raises(ValueError, match=names):
            call()
    with pytest.raises(ValueError, match="num_data must be an integer of at least 1; got 0"):
        data.plane(0, "moons", 0)
    with pytest.raises(ValueError, match="rng must be a NumPy Generator or a seed"):
        data.plane(None, "moons", 3)
    with pytest.raises(ValueError, match=r"trailing shape \(2,\).*got shape \(3,\)"):
        data.plane_log_density(np.zeros(3), "moons")
    with pytest.raises(ValueError, match="x must be finite"):
        data.plane_log_density([np.nan, 0.0], "moons")
    assert data.plane_log_density(np.zeros((0, 2)), "moons").shape == (0,)
    with pytest.raises(ValueError, match=r"x must be below 32.768 in magnitude.*got 40. Use a smaller scale"):
        data.gray_encode([40.0], 1000.0)
    with pytest.raises(ValueError, match=r"words of 16; got shape \(3, 20\)"):
        data.gray_decode(np.zeros((3, 20)), 1.0)
    with pytest.raises(ValueError, match="bits must be 0 or 1"):
        data.gray_decode(np.full(16, 0.5), 1.0)
