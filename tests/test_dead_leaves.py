"""Dead leaves against the law of their radii and the probability that two points lie on one leaf."""

import numpy as np
import pytest
from conftest import assert_mean, standard_error
from scipy import stats

from nedm_ppl import data

SMALLEST, LARGEST = 2.0, 16.0


def test_radii_have_the_cubic_law(significance):
    radii = data.leaf_radii(0, 20_000, SMALLEST, LARGEST)

    def distribution(r, power=2):
        return (SMALLEST**-power - r**-power) / (SMALLEST**-power - LARGEST**-power)

    assert radii.min() >= SMALLEST and radii.max() <= LARGEST
    assert stats.kstest(radii, distribution).pvalue > significance
    assert stats.kstest(radii, lambda r: distribution(r, 3)).pvalue < significance  # the control


@pytest.fixture(scope="module")
def scenes():
    return data.dead_leaves(1, 150, 32, smallest=SMALLEST, largest=LARGEST, supersample=1)


@pytest.mark.central
@pytest.mark.parametrize("distance", [1, 4, 12])
def test_two_points_lie_on_one_leaf_as_often_as_the_integral_says(scenes, distance):
    """Leaves have levels of their own, so that equal levels are one leaf."""
    for other in scenes, np.swapaxes(scenes, 1, 2):
        same = (other[:, distance:] == other[:, :-distance]).mean(axis=(1, 2))
        assert_mean(same, data.same_leaf_probability(distance, SMALLEST, LARGEST))
        # The control: leaves whose largest is twice as large.
        wrong = data.same_leaf_probability(distance, SMALLEST, 2.0 * LARGEST)
        assert distance == 1 or abs(same.mean() - wrong) > 4.0 * standard_error(same)


def test_every_pixel_has_the_uniform_law(scenes, significance):
    assert stats.kstest(scenes[:, 3, 20], "uniform").pvalue > significance


def test_edges_are_averaged_and_noise_is_added_to_the_same_scene():
    options = {"smallest": SMALLEST, "largest": LARGEST}
    fine = data.dead_leaves(2, 1, 32, smallest=4 * SMALLEST, largest=4 * LARGEST, supersample=1)
    averaged = data.dead_leaves(2, 1, 8, supersample=4, **options)
    np.testing.assert_allclose(averaged, fine.reshape(1, 8, 4, 8, 4).mean(axis=(2, 4)), rtol=1e-6)
    difference = data.dead_leaves(2, 4, 32, noise=0.1, **options) - data.dead_leaves(2, 4, 32, **options)
    assert abs(difference.std() - 0.1) < 4.0 * 0.1 / np.sqrt(2.0 * difference.size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": 8.0, "largest": 8.0}, "0 < smallest < largest"),
        ({"noise": -1.0}, "noise must be finite and at least 0"),
        ({"supersample": 0}, "supersample must be"),
    ],
)
def test_what_makes_no_scene_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.dead_leaves(0, 1, 8, **options)
