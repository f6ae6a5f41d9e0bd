"""Figures: what is drawn is what was given, on shared limits, on the axes given, and nothing is left open."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from nedm_ppl import plotting
from nedm_ppl.plotting._images import UNSEEN

pytestmark = pytest.mark.central

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left


@pytest.fixture
def new_axes():
    """Axes of a given layout on one figure, which is drawn once in full and closed at the end."""
    figures = []

    def make(*layout):
        fig, axes = plt.subplots(*layout, squeeze=False)
        figures.append(fig)
        return axes[0, 0] if layout in ((), (1, 1)) else axes[0] if layout[0] == 1 else axes

    yield make
    for fig in figures:
        fig.canvas.draw()
        assert plt.get_fignums() == [fig.number]  # the function opened no other
        plt.close(fig)


def image(ax):
    (drawn,) = ax.images
    return np.ma.filled(drawn.get_array().astype(float), np.nan)


def plane():
    forward, reverse = RNG.normal(size=(30, 11, 2)), RNG.normal(size=(40, 11, 2))
    points = plotting.drift_points(num=5)
    return forward, reverse, RNG.normal(size=(3, 25, 2)), points


def test_swiss_roll_figure(new_axes):
    forward, reverse, drift, points = plane()
    given = new_axes(3, 3)
    axes = plotting.swiss_roll_figure(forward, reverse, drift, points, given, limit=2.0)
    assert axes is given or np.array_equal(axes, given)
    for column, t in enumerate((0, 5, 10)):
        (blue,) = axes[0, column].collections
        truth, orange = axes[1, column].collections
        np.testing.assert_array_equal(blue.get_offsets(), forward[:, t])
        np.testing.assert_array_equal(truth.get_offsets(), forward[:, t])
        np.testing.assert_array_equal(orange.get_offsets(), reverse[:, t])
        assert to_hex(blue.get_facecolor()[0]).upper() == plotting.FORWARD
        assert to_hex(orange.get_facecolor()[0]).upper() == plotting.REVERSE
        behind, arrows = axes[2, column].collections
        np.testing.assert_array_equal(behind.get_offsets(), forward[:, max(t, 1)])
        np.testing.assert_array_equal(arrows.get_offsets(), points)
        np.testing.assert_array_equal(np.stack([arrows.U, arrows.V], -1), drift[column])
    assert {(ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) for ax in axes.flat} == {((-2.0, 2.0), (-2.0, 2.0), 1.0)}
    assert [ax.get_title() for ax in axes[0]] == ["t = 0", "t = T/2 = 5", "t = T = 10"]
    assert axes[2, 0].get_title() == "t = 1"
    assert all("sd of the data" in ax.get_xlabel() for ax in axes[2])
    assert [label in ax.get_ylabel() for ax, label in zip(axes[:, 0], ("forward", "reverse", "drift"), strict=True)]


def test_swiss_roll_figure_of_no_drift(new_axes):
    forward, reverse, drift, points = plane()
    axes = plotting.swiss_roll_figure(forward, reverse, 0.0 * drift, points, new_axes(3, 3))
    assert axes[2, 2].get_xlim() == axes[0, 0].get_xlim()


def test_plane_figure(new_axes):
    samples, data = RNG.normal(size=(50, 2)), np.array([[-2.0, 1.0], [0.5, 1.5]])
    axes = plotting.plane_figure(samples, data, new_axes(1, 2))
    for ax, points, color in zip(axes, (samples, data), (plotting.REVERSE, plotting.TRUTH), strict=True):
        (drawn,) = ax.collections
        np.testing.assert_array_equal(drawn.get_offsets(), points)
        assert to_hex(drawn.get_facecolor()[0]).upper() == color
    assert {(ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) for ax in axes} == {((-2.2, 2.2), (-2.2, 2.2), 1.0)}
    assert [ax.get_title() for ax in axes] == ["model, 50 points", "data, 2 points"]


def test_heartbeat_figure(new_axes):
    reverse = (RNG.random(size=(12, 9, 20)) < 0.2).astype(np.float32)
    reverse[3, 8] = 0.0
    truth = np.tile((np.arange(20) % 5 == 2).astype(np.float32), (15, 1))
    axes = plotting.heartbeat_figure(reverse, truth, new_axes(1, 4))
    for ax, t in zip(axes, (0, 4, 8), strict=False):
        rows = [np.roll(row, -int(np.argmax(row))) for row in reverse[:, t]]
        np.testing.assert_array_equal(image(ax), rows)
        assert np.all(image(ax)[reverse[:, t].any(axis=1), 0] == 1.0)
    assert not image(axes[2])[3].any()
    np.testing.assert_array_equal(image(axes[3]), np.tile(np.arange(20) % 5 == 0, (12, 1)))
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    assert [ax.get_xlabel() for ax in axes] == ["bin"] * 4 and axes[0].get_ylabel() == "sequence"


def test_image_grid(new_axes):
    images = RNG.normal(size=(5, 3, 4))
    ax = new_axes()
    assert plotting.image_grid(images, ax, num_columns=3, title="five") is ax
    drawn = image(ax)
    assert drawn.shape == (6, 12)
    for i, row, column in ((0, 0, 0), (2, 0, 2), (4, 1, 1)):
        np.testing.assert_array_equal(drawn[3 * row : 3 * row + 3, 4 * column : 4 * column + 4], images[i])
    assert np.isnan(drawn[3:, 8:]).all()
    assert ax.images[0].get_clim() == (images.min(), images.max())
    assert ax.get_title() == "five" and not ax.get_xticks().size


def test_digits_figure(new_axes):
    samples, holdout = RNG.normal(size=(6, 8, 8)), RNG.normal(size=(9, 8, 8))
    axes = plotting.digits_figure(samples, holdout, new_axes(1, 2), num_columns=3)
    np.testing.assert_array_equal(image(axes[0])[:8, 8:16], samples[1])
    np.testing.assert_array_equal(image(axes[1])[8:, :8], holdout[3])
    assert image(axes[0]).shape == image(axes[1]).shape == (16, 24)
    assert {ax.images[0].get_clim() for ax in axes} == {(holdout.min(), holdout.max())}
    assert [ax.get_title() for ax in axes] == ["samples", "holdout"]


def test_reverse_chain_figure(new_axes):
    path = RNG.normal(size=(2, 17, 4, 4))
    ax = plotting.reverse_chain_figure(path, new_axes())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "14", "12", "10", "8", "6", "4", "2", "0"]
    np.testing.assert_array_equal(image(ax)[:4, :4], path[0, 16])
    np.testing.assert_array_equal(image(ax)[4:, -4:], path[1, 0])
    assert ax.images[0].get_clim() == (path[:, 0].min(), path[:, 0].max())
    assert "time t" in ax.get_xlabel() and ax.get_ylabel() == "sample"


def test_reverse_chain_figure_of_few_steps(new_axes):
    ax = plotting.reverse_chain_figure(RNG.normal(size=(1, 3, 4, 4)), new_axes())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "1", "0"]


@pytest.mark.parametrize("event", [(3, 4), (6,)], ids=["images", "sequences"])
def test_restoration_figure(new_axes, event):
    x0, draws = RNG.normal(size=(5, *event)), RNG.normal(size=(5, 2, *event))
    y, mean, sd, paper = np.where(x0 > 0.5, np.nan, x0), x0 + 1.0, np.abs(x0), x0 - 1.0
    axes = plotting.restoration_figure(x0, y, draws, mean, sd, new_axes(1, 7), paper=paper)
    shown = (x0, y, draws[:, 0], draws[:, 1], mean, sd, paper)
    for ax, values in zip(axes, shown, strict=True):
        np.testing.assert_array_equal(image(ax), values.reshape(-1, event[-1]))
    assert to_hex(axes[1].get_facecolor()).upper() == UNSEEN
    limits = [ax.images[0].get_clim() for ax in axes]
    assert {limits[i] for i in (0, 1, 2, 3, 4, 6)} == {(x0.min(), x0.max())} and limits[5] == (0.0, sd.max())


def test_denoising_is_drawn_on_shared_limits(new_axes):
    parts = RNG.uniform(size=(4, 4, 3, 5))
    axes = plotting.denoising_figure(*parts, new_axes(1, 4), limits=(0.0, 2.0))
    for ax, images in zip(axes, parts, strict=True):
        np.testing.assert_array_equal(image(ax)[:3, :5], images[0])
        np.testing.assert_array_equal(image(ax)[3:, 5:], images[3])
        assert ax.images[0].get_clim() == (0.0, 2.0)


def test_neighbors_are_drawn_below_their_samples(new_axes):
    parts = RNG.uniform(size=(2, 4, 3, 5))
    axes = plotting.neighbors_figure(parts[0], parts[1], new_axes(2, 1))
    for ax, images in zip(axes[:, 0], parts, strict=False):
        np.testing.assert_array_equal(image(ax), np.concatenate(images, axis=1))
        assert ax.images[0].get_clim() == (parts[1].min(), parts[1].max())


def test_spectrum_figure(new_axes):
    ax = plotting.spectrum_figure({"samples": [3.0, 1.0], "holdout": [4.0, 2.0]}, new_axes())
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3.0, 1.0], [4.0, 2.0]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["samples", "holdout"]


def test_network_figure(new_axes):
    bumps = RNG.uniform(size=(6, 3))
    axes = plotting.network_figure([["a", "b"], ["c"]], ["d"], bumps, new_axes(1, 2))
    labels = [text.get_text() for text in axes[0].texts if text.get_text()]
    assert labels == ["image", "a", "b", "c", "d"]
    assert sum(not text.get_text() for text in axes[0].texts) == 5  # arrows
    np.testing.assert_array_equal([line.get_ydata() for line in axes[1].lines], bumps.T)


def test_loss_curve(new_axes):
    steps = np.arange(0, 1000, 10)
    bound = -2.4 - 500.0 * np.exp(-steps / 10.0)
    at, mean, error = np.array([100, 500]), np.array([-2.6, -2.5]), np.array([0.05, 0.1])
    ax = new_axes()
    drawn = plotting.loss_curve(
        steps, bound, ax, null_bits=-8.4, truth_bits=-1.9243, validation=(at, mean, error), per="sequence"
    )
    assert drawn is ax
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["training minibatch"].get_xydata(), np.stack([steps, bound], -1))
    assert list(lines["truth = -1.924 bits"].get_ydata()) == [-1.9243] * 2
    assert list(lines[r"null, $L_\mathrm{null}$ = -8.4 bits"].get_ydata()) == [-8.4] * 2
    (bars,) = ax.containers
    np.testing.assert_array_equal(bars.lines[0].get_xydata(), np.stack([at, mean], -1))
    np.testing.assert_allclose([s[:, 1] for s in bars.lines[2][0].get_segments()], [[-2.7, -2.5], [-2.7, -2.3]])
    # The lines and the bars are inside; the first steps, far below, do not set the scale.
    assert -10.0 < ax.get_ylim()[0] < -8.4 and -1.9243 < ax.get_ylim()[1] < -1.0
    assert ax.get_xlabel() == "training step" and ax.get_ylabel() == "bound $K$ (bits per sequence)"


def test_loss_curve_alone_and_not_finite(new_axes):
    ax = plotting.loss_curve([1, 2], [np.nan, -1.0], new_axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training minibatch"]
    plotting.loss_curve([1], [np.nan], ax)


def test_bound_by_step(new_axes):
    # Steps drawn at random, as a subsample's are: the mean at each t of whatever data it got.
    times = RNG.integers(2, 6, size=(3, 40))
    divergences = RNG.gamma(2.0, size=(3, 40)) / times
    ax = new_axes()
    assert plotting.bound_by_step(times, divergences, ax) is ax
    at, mean = ax.lines[0].get_xydata().T
    np.testing.assert_array_equal(at, np.unique(times))
    bits = [divergences[times == t] / np.log(2.0) for t in at]
    np.testing.assert_allclose(mean, [b.mean() for b in bits])
    top = [b.mean() + 2.0 * b.std(ddof=1) / np.sqrt(b.size) for b in bits]
    (band,) = ax.collections
    vertices = band.get_paths()[0].vertices
    for t, value in zip(at, top, strict=True):
        assert vertices[vertices[:, 0] == t, 1].max() == pytest.approx(value)
    assert "step t" in ax.get_xlabel() and "bits per datum and step" in ax.get_ylabel()


def test_bound_by_step_of_one_datum(new_axes):
    ax = plotting.bound_by_step(np.arange(2, 90), np.ones(88), new_axes())
    np.testing.assert_allclose(ax.lines[0].get_ydata()[:88], 1.0 / np.log(2.0))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plotting.swiss_roll_figure(*plane())[0, 0],
        lambda: plotting.plane_figure(np.ones((2, 2)), np.ones((3, 2)))[0],
        lambda: plotting.heartbeat_figure(np.ones((2, 3, 20)), np.ones((2, 20)))[0],
        lambda: plotting.image_grid(np.ones((2, 3, 3))),
        lambda: plotting.digits_figure(np.ones((2, 3, 3)), np.ones((2, 3, 3)))[0],
        lambda: plotting.reverse_chain_figure(np.ones((2, 3, 3, 3))),
        lambda: plotting.restoration_figure(*(np.ones((2, 3)),) * 2, np.ones((2, 1, 3)), *(np.ones((2, 3)),) * 2)[0],
        lambda: plotting.denoising_figure(*(np.ones((2, 3, 3)),) * 4)[0],
        lambda: plotting.neighbors_figure(*(np.ones((2, 3, 3)),) * 2)[0, 0],
        lambda: plotting.spectrum_figure({"samples": [3.0, 1.0]}),
        lambda: plotting.network_figure([["convolution"], ["dense"]], ["readout"], np.ones((5, 2)))[0],
        lambda: plotting.loss_curve([1, 2], [3.0, 4.0]),
        lambda: plotting.bound_by_step([2, 3], [0.1, 0.2]),
    ],
)
def test_without_axes_one_new_figure_is_made(draw, tmp_path):
    figure = draw().figure
    assert plt.get_fignums() == [figure.number]
    figure.savefig(tmp_path / "figure.png", dpi=40)
    plt.close(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda f, r, d, p: plotting.swiss_roll_figure(f[..., :1], r, d, p),
            r"forward must have shape \(N, T \+ 1, 2\)",
        ),
        (lambda f, r, d, p: plotting.swiss_roll_figure(f, r[:, :5], d, p), "equally many times; got 11 and 5"),
        (lambda f, r, d, p: plotting.swiss_roll_figure(f, r, d[:2], p), r"drift \(3, num_points, 2\)"),
        (lambda f, r, d, p: plotting.swiss_roll_figure(f, r, d, p, np.array([])), r"axes must have shape \(3, 3\)"),
        (lambda f, r, d, p: plotting.plane_figure(f, p), r"samples must be points of the plane, shape \(N, 2\)"),
        (lambda f, r, d, p: plotting.plane_figure(p, p[:0]), r"data must be points.*got \(0, 2\)"),
        (lambda f, r, d, p: plotting.heartbeat_figure(f, np.ones((3, 5))), r"data must have shape \(M, 2\)"),
        (lambda f, r, d, p: plotting.image_grid(f[0]), r"images must have shape \(N, height, width\)"),
        (lambda f, r, d, p: plotting.image_grid(f, num_columns=0), "num_columns must be at least 1; got 0"),
        (
            lambda f, r, d, p: plotting.reverse_chain_figure(f),
            r"trajectory must have shape \(N, T \+ 1, height, width\)",
        ),
        (lambda f, r, d, p: plotting.reverse_chain_figure(f[..., None], times=[11]), r"times must lie in 0\.\.10"),
        (
            lambda f, r, d, p: plotting.restoration_figure(d[0, 0], *(d,) * 4),
            r"x0 must have shape \(N, height, width\)",
        ),
        (lambda f, r, d, p: plotting.restoration_figure(d, d, d, d, d), r"draws must have shape \(N, S, \*event\)"),
        (lambda f, r, d, p: plotting.restoration_figure(d, d, d[:, None], d[:1], d), "mean must have the shape of x0"),
        (
            lambda f, r, d, p: plotting.denoising_figure(*(d[:, 0],) * 4),
            r"holdout must have shape \(N, height, width\)",
        ),
        (lambda f, r, d, p: plotting.neighbors_figure(f, f[:3]), r"nearest must have the shape of samples"),
        (lambda f, r, d, p: plotting.spectrum_figure({}), "spectra must be 1 to 4; got 0"),
        (lambda f, r, d, p: plotting.network_figure([], ["readout"], np.ones((5, 2))), "rows must hold at least one"),
        (lambda f, r, d, p: plotting.loss_curve([1, 2], [1.0]), "steps, bound_bits must be 1-D, equally long"),
        (lambda f, r, d, p: plotting.bound_by_step([], []), "times and divergences_nats must have one shape"),
    ],
)
def test_refusals(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(*plane())


def test_a_chain_of_one_step_has_its_figures(new_axes):
    ax = plotting.bound_by_step(np.zeros((0, 5)), np.zeros((0, 5)), new_axes())
    assert "no step t > 1" in ax.texts[0].get_text()


def test_a_chain_of_one_or_two_steps_has_its_thermodynamics():
    work = RNG.gamma(2.0, size=(4, 3)), np.ones(3)
    axes = plotting.thermodynamics_figure([1.0], ([0.0], [1.0]), ([], [], []), work)
    assert [bool(ax.texts) for ax in axes] == [True, True, False]
    plt.close(axes[0].figure)
    # Of two steps whose second erases everything, the loss has no place on an axis of signal.
    axes = plotting.thermodynamics_figure([1.0, -np.inf], ([0.0, 0.0], [1.0, 1.0]), ([2], [0.5], [0.1]), work)
    assert [bool(ax.texts) for ax in axes] == [True, False, False]
    plt.close(axes[0].figure)
    with pytest.raises(ValueError, match="times, losses, standard_errors must be 1-D, equally long and not empty"):
        plotting.thermodynamics_figure([1.0, 0.5], ([0.0] * 2, [1.0] * 2), ([], [], []), work)
