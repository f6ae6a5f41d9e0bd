r"""Seven densities in the plane, and the exact log density of each.

They are the densities that generative models of two coordinates are usually shown on (the generators are those of Grathwohl
et al., FFJORD, 2019, appendix B; draws of one random state are the same draws), in their own units:

| name | definition |
|---|---|
| `2spirals` | $\pm\big((-k \cos k + u_1/2,\ k \sin k + u_2/2)/3\big) + 0.1\,\epsilon$, the sign even, $k = 3\pi\sqrt{u}$ |
| `8gaussians` | eight centers at radius 4 and standard deviation 0.5, over 1.414 |
| `circles` | radii 3 and 1.5, half each, $+\, 0.24\,\epsilon$ |
| `moons` | two half circles of radius 2, the second upside down and displaced by (2, 1), less (1, 0.2), $+\, 0.2\,\epsilon$ |
| `pinwheel` | $2 R_l f$, $f \sim \mathcal N((1, 0), \mathrm{diag}(0.3, 0.1)^2)$, $R_l$ a turn by $2\pi l/5 + e^{f_0}/4$, l = 0..4 |
| `swissroll` | a swiss roll of noise 1, over 5 |
| `checkerboard` | eight squares of side 2, alternating, in $[-4, 4]^2$ |

with $u \sim \mathrm U(0, 1)$ and $\epsilon \sim \mathcal N(0, I)$. A density that is an integral over a
curve is done by Gauss-Legendre quadrature on panels up to three times as long as the noise, to some ten digits; the
pinwheel is a change of variables with its roots found.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import i0e, ndtr
from sklearn.datasets import make_circles, make_moons, make_swiss_roll

from nedm_ppl.arguments import Count
from nedm_ppl.data._arguments import as_generator, check_num_data
from nedm_ppl.data._quadrature import by_rows, panels
from nedm_ppl.data._swiss_roll import swiss_roll_log_density, swiss_roll_moments

__all__ = ["PLANE_DENSITIES", "plane", "plane_entropy", "plane_log_density", "plane_moments"]

# scikit-learn spaces angles evenly over one call, and some generators come in equal parts: fewer draws than this, or an odd
# number, are taken at random from a call of this size.
LEAST_DRAWS = 5_000

# A grid over [-6, 6]^2, which holds all but 1e-12 of each density.
GRID_CELL, GRID_HALF = 0.08, 75

ARMS = 5


def plane(rng: np.random.Generator | np.random.RandomState | int, name: str, num_data: Count) -> np.ndarray:
    """Draws of a density in the plane, in its own units.

    Args:
        rng: A NumPy generator (or the older RandomState), which is advanced, or a seed.
        name: One of `PLANE_DENSITIES`.
        num_data: Number of draws, at least 1.

    Returns:
        float64, shape (num_data, 2), in random order. The circles' and moons' angles are evenly spaced, as scikit-learn has
        them, and random in order alone.

    Raises:
        ValueError: an argument outside what is said above.
    """
    check_plane(name)
    num_data = check_num_data(num_data)
    # The generators ask for the older interface; on the same bit generator the two share one stream.
    state = rng if isinstance(rng, np.random.RandomState) else np.random.RandomState(as_generator(rng).bit_generator)
    count = max(LEAST_DRAWS, 10 * math.ceil(num_data / 10))
    points = np.asarray(_DRAW[name](state, count), np.float64)
    return points[state.permutation(count)[:num_data]]


def plane_log_density(x: ArrayLike, name: str) -> np.ndarray:
    r"""Exact $\log p(x)$ of points in the plane.

    Args:
        x: Points in the units of `plane`, shape (*batch, 2).
        name: One of `PLANE_DENSITIES`.

    Returns:
        Nats, float64, shape (*batch,); minus infinity off the checkerboard's squares.

    Raises:
        ValueError: another name, or x not finite or not made of pairs.
    """
    check_plane(name)
    x = np.asarray(x, np.float64)
    if x.ndim == 0 or x.shape[-1] != 2:
        raise ValueError(f"x must have trailing shape (2,), one point of the plane; got shape {x.shape}.")
    if not np.all(np.isfinite(x)):
        raise ValueError("x must be finite; got NaN or infinite values. Drop those points.")
    points = x.reshape(-1, 2)
    parts = [_LOG_DENSITY[name](points[i : i + 2_000]) for i in range(0, len(points), 2_000)]
    return np.concatenate([*parts, np.zeros(0)]).reshape(x.shape[:-1])


@cache
def plane_entropy(name: str) -> float:
    r"""Differential entropy $-\int p \log p$, nats, by the midpoint rule: to some six digits, the checkerboard's to rounding."""
    check_plane(name)
    # Midpoints converge exponentially for a density blurred by noise of a standard deviation of a cell or more; edges of the
    # checkerboard are edges of cells.
    axis = GRID_CELL * (np.arange(-GRID_HALF, GRID_HALF) + 0.5)
    log_density = plane_log_density(np.stack(np.meshgrid(axis, axis), axis=-1), name)
    inside = np.isfinite(log_density)
    return float(-np.sum(np.exp(log_density[inside]) * log_density[inside]) * GRID_CELL**2)


def plane_moments(name: str) -> tuple[float, float]:
    """Mean and standard deviation over draws and both coordinates, of 5,000 draws by `RandomState(1)`: constants that scale."""
    points = plane(np.random.RandomState(1), name, LEAST_DRAWS)
    return float(points.mean()), float(points.std())


def check_plane(name: str) -> None:
    """Raise a ValueError where `name` is none of the seven."""
    if name not in PLANE_DENSITIES:
        raise ValueError(f"density must be one of {', '.join(PLANE_DENSITIES)}; got {name!r}.")


# Two spirals: a curve, a box of width 1/6 from u_1, u_2, and Gaussian noise.
SPIRAL_END, SPIRAL_BOX, SPIRAL_NOISE = 3.0 * math.pi, 1.0 / 6.0, 0.1


def _draw_two_spirals(state: np.random.RandomState, count: int) -> np.ndarray:
    k = SPIRAL_END * np.sqrt(state.rand(count // 2, 1))
    first = -np.cos(k) * k + 0.5 * state.rand(count // 2, 1)
    second = np.sin(k) * k + 0.5 * state.rand(count // 2, 1)
    arm = np.hstack([first, second]) / 3.0
    points = np.vstack([arm, -arm])
    return points + SPIRAL_NOISE * state.randn(*points.shape)


def _log_two_spirals(x: np.ndarray) -> np.ndarray:
    k, weight = panels(np.linspace(0.0, SPIRAL_END, 101))
    curve = np.stack([-k * np.cos(k), k * np.sin(k)]) / 3.0
    weight = weight * 2.0 * k / SPIRAL_END**2

    def blurred(distance: np.ndarray) -> np.ndarray:
        """A box from 0 to its width, convolved with the noise."""
        # In the upper tail Phi(b) - Phi(a) = Phi(-a) - Phi(-b), which keeps its digits.
        low, high = (distance - SPIRAL_BOX) / SPIRAL_NOISE, distance / SPIRAL_NOISE
        flip = low > 0.0
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        return (ndtr(high) - ndtr(low)) / SPIRAL_BOX

    def arm(x: np.ndarray) -> np.ndarray:
        return (blurred(x[:, :1] - curve[0]) * blurred(x[:, 1:] - curve[1])) @ weight

    return _log(0.5 * (by_rows(arm, x, k.size) + by_rows(arm, -x, k.size)))


# Eight Gaussians: the scale of the original is 1.414, not the root of two.
GAUSSIAN_SCALE = 1.0 / 1.414
_DIAGONAL = 1.0 / math.sqrt(2.0)
CENTRES = 4.0 * np.array(
    [
        (1.0, 0.0),
        (-1.0, 0.0),
        (0.0, 1.0),
        (0.0, -1.0),
        (_DIAGONAL, _DIAGONAL),
        (_DIAGONAL, -_DIAGONAL),
        (-_DIAGONAL, _DIAGONAL),
        (-_DIAGONAL, -_DIAGONAL),
    ]
)


def _draw_eight_gaussians(state: np.random.RandomState, count: int) -> np.ndarray:
    points = np.empty((count, 2))
    for row in points:
        row[:] = 0.5 * state.randn(2)
        row += CENTRES[state.randint(len(CENTRES))]
    return points * GAUSSIAN_SCALE


def _log_eight_gaussians(x: np.ndarray) -> np.ndarray:
    square = np.square(x[:, None] - GAUSSIAN_SCALE * CENTRES).sum(axis=-1)
    sd = 0.5 * GAUSSIAN_SCALE
    log_terms = -0.5 * square / sd**2
    return np.logaddexp.reduce(log_terms, axis=1) - math.log(len(CENTRES) * 2.0 * math.pi * sd**2)


def _draw_circles(state: np.random.RandomState, count: int) -> np.ndarray:
    return make_circles(count, factor=0.5, noise=0.08, random_state=state)[0] * 3.0


def _log_circles(x: np.ndarray) -> np.ndarray:
    sd, radius = 0.24, np.linalg.norm(x, axis=1)
    # The angle integrates to a Bessel function: exp(-(r^2 + R^2) / 2 sd^2) I_0(r R / sd^2), in its scaled form.
    rings = [np.exp(-0.5 * np.square((radius - r) / sd)) * i0e(radius * r / sd**2) for r in (3.0, 1.5)]
    return _log(0.5 * (rings[0] + rings[1])) - math.log(2.0 * math.pi * sd**2)


def _draw_moons(state: np.random.RandomState, count: int) -> np.ndarray:
    return make_moons(count, noise=0.1, random_state=state)[0] * 2.0 + np.array([-1.0, -0.2])


def _log_moons(x: np.ndarray) -> np.ndarray:
    sd = 0.2
    angle, weight = panels(np.linspace(0.0, math.pi, 25))
    upper = np.stack([2.0 * np.cos(angle) - 1.0, 2.0 * np.sin(angle) - 0.2])
    lower = np.stack([1.0 - 2.0 * np.cos(angle), 0.8 - 2.0 * np.sin(angle)])

    def moons(x: np.ndarray) -> np.ndarray:
        def of(curve: np.ndarray) -> np.ndarray:
            square = np.square(x[:, :1] - curve[0]) + np.square(x[:, 1:] - curve[1])
            return np.exp(-0.5 * square / sd**2) @ weight

        return 0.5 * (of(upper) + of(lower))

    return _log(by_rows(moons, x, angle.size)) - math.log(math.pi * 2.0 * math.pi * sd**2)


def _draw_pinwheel(state: np.random.RandomState, count: int) -> np.ndarray:
    f = state.randn(count, 2) * np.array([0.3, 0.1])
    f[:, 0] += 1.0
    angle = 2.0 * math.pi * np.repeat(np.arange(ARMS), count // ARMS) / ARMS + 0.25 * np.exp(f[:, 0])
    cos, sin = np.cos(angle), np.sin(angle)
    return 2.0 * np.stack([f[:, 0] * cos + f[:, 1] * sin, f[:, 1] * cos - f[:, 0] * sin], axis=1)


def _log_pinwheel(x: np.ndarray) -> np.ndarray:
    return _log(by_rows(_pinwheel, x, 2_000))


def _pinwheel(x: np.ndarray) -> np.ndarray:
    """Density: over arms, every f that the map takes to x, by the Gaussian density of f over the Jacobian."""
    radius, direction = 0.5 * np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0])
    density = np.zeros(len(x))
    for arm in range(ARMS):
        # x / 2 is f turned by minus the angle, so that f_0 = r cos(direction + angle(f_0)): all roots in [-r, r].
        turn = direction + 2.0 * math.pi * arm / ARMS

        def gap(f0: np.ndarray, turn: np.ndarray, radius: np.ndarray) -> np.ndarray:
            return f0 - radius * np.cos(turn + 0.25 * np.exp(f0))

        # Seven standard deviations of f_0 either side hold all that a float64 sum would keep.
        grid = np.linspace(np.maximum(-radius, -1.1), np.minimum(radius, 3.1), 400, axis=1)
        values = gap(grid, turn[:, None], radius[:, None])
        rows, cells = np.nonzero(np.signbit(values[:, 1:]) != np.signbit(values[:, :-1]))
        low, high = grid[rows, cells], grid[rows, cells + 1]
        falling = np.signbit(values[rows, cells + 1])
        for _ in range(50):
            middle = 0.5 * (low + high)
            below = np.signbit(gap(middle, turn[rows], radius[rows])) != falling
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        f0 = 0.5 * (low + high)
        f1 = radius[rows] * np.sin(turn[rows] + 0.25 * np.exp(f0))
        jacobian = 4.0 * np.abs(1.0 + 0.25 * np.exp(f0) * f1)
        gaussian = np.exp(-0.5 * (np.square((f0 - 1.0) / 0.3) + np.square(f1 / 0.1))) / (2.0 * math.pi * 0.3 * 0.1)
        np.add.at(density, rows, gaussian / jacobian / ARMS)
    return density


def _draw_swiss_roll(state: np.random.RandomState, count: int) -> np.ndarray:
    return make_swiss_roll(count, noise=1.0, random_state=state)[0][:, [0, 2]] / 5.0


def _log_swiss_roll(x: np.ndarray) -> np.ndarray:
    mean, scale = swiss_roll_moments(1.0)
    return swiss_roll_log_density((5.0 * x - mean) / scale, 1.0) + 2.0 * math.log(5.0 / scale)


def _draw_checkerboard(state: np.random.RandomState, count: int) -> np.ndarray:
    first = state.rand(count) * 4.0 - 2.0
    second = state.rand(count) - state.randint(0, 2, count) * 2 + np.floor(first) % 2
    return 2.0 * np.stack([first, second], axis=1)


def _log_checkerboard(x: np.ndarray) -> np.ndarray:
    square = np.floor(0.5 * x)
    inside = np.all((square >= -2) & (square < 2), axis=1) & (square.sum(axis=1) % 2 == 0)
    return np.where(inside, -math.log(32.0), -np.inf)


def _log(density: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(density)


_DRAW: dict[str, Callable[[np.random.RandomState, int], np.ndarray]] = {
    "2spirals": _draw_two_spirals,
    "8gaussians": _draw_eight_gaussians,
    "circles": _draw_circles,
    "moons": _draw_moons,
    "pinwheel": _draw_pinwheel,
    "swissroll": _draw_swiss_roll,
    "checkerboard": _draw_checkerboard,
}
_LOG_DENSITY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "2spirals": _log_two_spirals,
    "8gaussians": _log_eight_gaussians,
    "circles": _log_circles,
    "moons": _log_moons,
    "pinwheel": _log_pinwheel,
    "swissroll": _log_swiss_roll,
    "checkerboard": _log_checkerboard,
}
PLANE_DENSITIES: tuple[str, ...] = tuple(_DRAW)
"""Names of the seven densities."""
