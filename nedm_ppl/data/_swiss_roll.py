r"""The swiss roll (Section 3.1.1): a noisy spiral in the plane, and its exact log density.

scikit-learn's generator, first and third coordinate, then shifted and scaled by one pair of constants:

$$\tau = \tfrac{3\pi}{2} (1 + 2 u),\ u \sim \mathrm U(0, 1), \qquad
  c(\tau) = (\tau \cos\tau,\ \tau \sin\tau), \qquad x = (c(\tau) + \sigma \epsilon - m) / s,\ \epsilon \sim \mathcal N(0, I).$$

The constants are the exact moments, pooled over both coordinates: $m = 1 + \tfrac{1}{3\pi} = 1.1061$ and
$s^2 = \tfrac{39}{8} \pi^2 + \sigma^2 - m^2$, so that $s = 6.8659$ at $\sigma = 0.5$. The roll's parameter is called
$\tau$ here, because t is diffusion time everywhere else.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from sklearn.datasets import make_swiss_roll

from nedm_ppl.arguments import Count
from nedm_ppl.data._arguments import as_generator, check_num_data
from nedm_ppl.data._quadrature import by_rows, panels

__all__ = ["swiss_roll", "swiss_roll_log_density"]

FIRST, LAST = 1.5 * math.pi, 4.5 * math.pi


def swiss_roll(rng: np.random.Generator | int, num_data: Count, *, noise: float = 0.5) -> np.ndarray:
    r"""Draws of the swiss roll, standardized.

    Args:
        rng: A NumPy generator, which is advanced, or a seed.
        num_data: Number of draws, at least 1.
        noise: $\sigma$, the standard deviation around the spiral before scaling, at least 0.

    Returns:
        float32, shape (num_data, 2), pooled mean 0 and variance 1 in expectation.

    Raises:
        ValueError: `rng`, `num_data` or `noise` outside what is said above.

    Examples:
        >>> from nedm_ppl import data
        >>> data.swiss_roll(0, 1000).shape
        (1000, 2)
    """
    num_data = check_num_data(num_data)
    if not 0.0 <= noise < math.inf:
        raise ValueError(f"noise must be finite and at least 0; got {noise:g}.")
    # scikit-learn asks for the older interface; on the same bit generator the two share one stream.
    state = np.random.RandomState(as_generator(rng).bit_generator)
    points, _ = make_swiss_roll(num_data, noise=noise, random_state=state)
    mean, scale = swiss_roll_moments(noise)
    return ((points[:, [0, 2]] - mean) / scale).astype(np.float32)


def swiss_roll_log_density(x: ArrayLike, noise: float = 0.5) -> np.ndarray:
    r"""Exact $\log p(x)$ of standardized points, by quadrature over the roll's parameter.

    $p(x) = \frac{s^2}{3\pi} \int \mathcal N(m + s x;\ c(\tau), \sigma^2 I)\, d\tau$, by ten-point Gauss-Legendre on panels
    about $2\sigma$ long along the spiral: exact to some ten digits wherever the roll itself goes.

    Args:
        x: Points in the units of `swiss_roll`, shape (*batch, 2). Cost grows as 1 / noise.
        noise: $\sigma$, as in `swiss_roll`, and above 0: without noise there is no density.

    Returns:
        Nats, float64, shape (*batch,).

    Raises:
        ValueError: x not finite or not made of pairs, or noise not above 0.
    """
    if not 0.0 < noise < math.inf:
        raise ValueError(f"noise must be finite and above 0 for a density to exist; got {noise:g}.")
    x = np.asarray(x, np.float64)
    if x.ndim == 0 or x.shape[-1] != 2:
        raise ValueError(f"x must have trailing shape (2,), one point of the roll; got shape {x.shape}.")
    if not np.all(np.isfinite(x)):
        raise ValueError("x must be finite; got NaN or infinite values. Drop those points.")
    mean, scale = swiss_roll_moments(noise)
    tau, weight = _nodes(noise)
    spiral = np.stack([tau * np.cos(tau), tau * np.sin(tau)])
    points = mean + scale * x.reshape(-1, 2)
    integral = by_rows(lambda points: _log_integral(points, spiral, weight, noise), points, tau.size)
    log_constant = 2.0 * math.log(scale) - math.log(LAST - FIRST) - math.log(2.0 * math.pi * noise**2)
    return integral.reshape(x.shape[:-1]) + log_constant


def swiss_roll_moments(noise: float) -> tuple[float, float]:
    """Mean and standard deviation over draws and both coordinates before scaling, in closed form."""
    # E[tau cos tau] = 2 and E[tau sin tau] = 2 / (3 pi); both squares together are tau^2, of mean 39 pi^2 / 4.
    mean = 1.0 + 1.0 / (3.0 * math.pi)
    return mean, math.sqrt(39.0 * math.pi**2 / 8.0 + noise**2 - mean**2)


def _nodes(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Composite Gauss-Legendre nodes and weights over the roll's parameter."""
    # Equal panels in tau^2 are nearly equal in arc length, which is about tau d tau.
    num_panels = max(8, math.ceil((LAST**2 - FIRST**2) / (4.0 * noise)))
    return panels(np.sqrt(np.linspace(FIRST**2, LAST**2, num_panels + 1)))


def _log_integral(points: np.ndarray, spiral: np.ndarray, weight: np.ndarray, noise: float) -> np.ndarray:
    """Log of the weighted sum over nodes of exp(-distance^2 / (2 noise^2)), for every point."""
    exponent = np.square(points[:, :1] - spiral[0]) + np.square(points[:, 1:] - spiral[1])
    exponent *= -0.5 / noise**2
    largest = exponent.max(axis=1, keepdims=True)
    return np.log(np.exp(exponent - largest) @ weight) + largest[:, 0]
