"""Gaussian steps whose coordinates go together: full and low-rank laws, and the Jacobian's covariance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from nedm_ppl import inference, models
from nedm_ppl.inference.bound import divergence
from nedm_ppl.inference.likelihood._weights import draw_log_weights
from nedm_ppl.inference.posterior import particle_filter
from nedm_ppl.inference.posterior._spliced import Spliced
from nedm_ppl.laws import LowRankNormal
from nedm_ppl.laws._low_rank import as_low_rank, from_covariance

SHAPE, BATCH, RANK = (2, 3), (4,), 2
SIZE = 6


def parts(seed: int = 0, rank: int = RANK, scale: float = 1.0):
    keys = jax.random.split(jax.random.key(seed), 3)
    loc = jax.random.normal(keys[0], (*BATCH, *SHAPE))
    return (
        loc,
        jnp.exp(jax.random.normal(keys[1], loc.shape)),
        scale * jax.random.normal(keys[2], (*BATCH, rank, *SHAPE)),
    )


def dense(law: LowRankNormal) -> dist.MultivariateNormal:
    """The same law by its covariance matrix, over flattened data."""
    flat = law.factor.reshape(*law.batch_shape, law.rank, SIZE)
    covariance = jnp.swapaxes(flat, -1, -2) @ flat + jax.vmap(jnp.diag)(law.diagonal.reshape(-1, SIZE))
    return dist.MultivariateNormal(law.loc.reshape(-1, SIZE), covariance)


@pytest.mark.cases(1)
@pytest.mark.parametrize("rank", [2, 0, 6])
def test_a_low_rank_law_is_its_covariance_matrix(x64, rank):
    rng = np.random.default_rng(8)
    x, rows = rng.normal(size=(5, *BATCH, *SHAPE)), rng.normal(size=(*BATCH, 3, *SHAPE))

    @jax.jit
    def both(x, rows):
        law = LowRankNormal(*parts(rank=rank), event_dim=2)
        full, flat = dense(law), rows.reshape(4, 3, SIZE)
        first = LowRankNormal(*(p[0] for p in parts(rank=rank)), event_dim=2)
        root = jax.jacobian(lambda noise: first.driven(noise).reshape(-1))(jnp.zeros(SHAPE)).reshape(SIZE, SIZE)
        return {
            "density": (law.log_prob(x), full.log_prob(x.reshape(5, 4, SIZE))),
            "entropy": (law.entropy(), full.entropy()),
            "variance": (law.variance.reshape(4, SIZE), full.variance),
            "covariance": (law.covariance_times(rows).reshape(flat.shape), flat @ full.covariance_matrix),
            "precision": (law.precision_times(rows).reshape(flat.shape), flat @ full.precision_matrix),
            "root": (root @ root.T, full.covariance_matrix[0]),  # noise drives it by a root of the covariance
        }

    tolerances = {
        "density": (1e-11, 0.0),
        "entropy": (1e-11, 0.0),
        "variance": (1e-12, 0.0),
        "precision": (1e-9, 1e-11),
    }
    for name, (own, truth) in both(x, rows).items():
        rtol, atol = tolerances.get(name, (1e-10, 1e-12))
        np.testing.assert_allclose(own, truth, rtol=rtol, atol=atol, err_msg=name)


def test_draws_have_the_covariance():
    law = LowRankNormal(*parts(), event_dim=2)
    x = np.asarray(law.sample(jax.random.key(0), (100_000,)))[:, 1].reshape(-1, SIZE)
    truth = np.asarray(dense(law).covariance_matrix[1])
    errors = np.sqrt((truth**2 + np.outer(np.diag(truth), np.diag(truth))) / len(x))
    assert np.max(np.abs(np.cov(x.T) - truth) / errors) < 5.0
    assert (
        np.max(np.abs(np.cov(x.T) - np.diag(np.diag(truth))) / errors) > 20.0
    )  # a control that forgets the directions


def test_divergences_are_closed_between_every_two_gaussians(x64):
    """Independent normals, full covariances, low ranks of NumPyro's and ours: against two full covariances."""
    loc, own, rows = (part.reshape(*part.shape[:-2], SIZE) for part in parts(1))
    low = LowRankNormal(loc, own, rows)
    laws = [
        dist.Normal(loc + 0.3, jnp.sqrt(own)).to_event(1),
        low,
        dist.LowRankMultivariateNormal(loc - 0.1, jnp.swapaxes(rows, -1, -2), 2.0 * own),
        dist.MultivariateNormal(loc + 0.2, 0.5 * dense(LowRankNormal(*parts(1), event_dim=2)).covariance_matrix),
    ]
    for q in laws:
        for p in laws:
            truth = dist.kl_divergence(*(dist.MultivariateNormal(law.mean, covariance_of(law)) for law in (q, p)))
            np.testing.assert_allclose(dist.kl_divergence(q, p), truth, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(divergence(jax.random.key(0), q, p), truth, rtol=1e-9, atol=1e-10)
    with pytest.raises(NotImplementedError, match="no closed form"):
        dist.kl_divergence(dist.Laplace(loc, 1.0).to_event(1), low)


def covariance_of(law):
    law = as_low_rank(law)
    return jnp.swapaxes(law.factor, -1, -2) @ law.factor + jax.vmap(jnp.diag)(law.diagonal)


def test_any_covariance_is_split_exactly(x64):
    covariance = dense(LowRankNormal(*parts(2, scale=3.0), event_dim=2)).covariance_matrix
    split = from_covariance(jnp.zeros((4, SIZE)), covariance)
    np.testing.assert_allclose(covariance_of(split), covariance, rtol=1e-11)
    assert np.all(np.asarray(split.diagonal) > 0.0)


@pytest.mark.parametrize("known", [False, True])
def test_observing_coordinates_leaves_the_conditional_law(x64, known):
    law = LowRankNormal(*parts(3), event_dim=2)
    y, precision = jax.random.normal(jax.random.key(4), SHAPE), jnp.array([[0.0, 4.0, 9.0], [1.0, 0.0, 0.25]])
    if known:
        precision = precision.at[:, 2].set(jnp.inf)
    conditional, evidence = law.observed(y, precision)
    seen = np.flatnonzero(np.asarray(precision).ravel() > 0.0)
    noise = np.diag(1.0 / np.asarray(precision).ravel()[seen])
    for b in range(4):
        prior, mean = np.asarray(dense(law).covariance_matrix[b]), np.asarray(law.loc[b]).ravel()
        spread = prior[np.ix_(seen, seen)] + noise
        gain = prior[:, seen] @ np.linalg.inv(spread)
        residual = np.asarray(y).ravel()[seen] - mean[seen]
        np.testing.assert_allclose(conditional.mean[b].ravel(), mean + gain @ residual, rtol=1e-10, atol=1e-12)
        flat = np.asarray(conditional.factor[b]).reshape(RANK, SIZE)
        found = np.diag(np.asarray(conditional.diagonal[b]).ravel()) + flat.T @ flat
        np.testing.assert_allclose(found, prior - gain @ prior[seen], atol=1e-11)
        truth = normal(mean[seen], spread).log_prob(np.asarray(y).ravel()[seen])
        np.testing.assert_allclose(evidence[b], truth, rtol=1e-11)


# --- chains ---------------------------------------------------------------------------------------------------------------

DIM = 3
MEAN = np.array([0.3, -0.5, 0.8])
COVARIANCE = np.array([[1.0, 0.7, -0.2], [0.7, 0.8, 0.1], [-0.2, 0.1, 0.5]])


def normal(mean, covariance):
    """As arrays of the mode's own precision: NumPy's would share compiled programs with the other mode."""
    return dist.MultivariateNormal(jnp.asarray(mean, float), jnp.asarray(covariance, float))


class Linear(models.Prediction):
    """The exact law of x_0 given x_t of data from N(MEAN, COVARIANCE), or its coordinates' laws alone."""

    network: None = None
    full: bool = eqx.field(static=True, default=True)

    def data_law(self, process, t, x):
        signal, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        spread = jnp.asarray(COVARIANCE)
        gain = jnp.sqrt(signal) * spread @ jnp.linalg.inv(signal * spread + noise * jnp.eye(DIM))
        center = jnp.asarray(MEAN, x.dtype)
        mean = center + (x - jnp.sqrt(signal) * center) @ gain.T
        covariance = spread - jnp.sqrt(signal) * gain @ spread
        if not self.full:
            return dist.Normal(mean, jnp.sqrt(jnp.diag(covariance))).to_event(1)
        return dist.MultivariateNormal(mean, jnp.broadcast_to(covariance, (*x.shape[:-1], DIM, DIM)))

    def output_shape(self, event_shape):
        return event_shape

    def check_process(self, process): ...


def chain(num_steps: int, reverse=None) -> models.Diffusion:
    process = models.GaussianDiffusion((DIM,), models.schedules.erasing(num_steps))
    return models.Diffusion(process, Linear() if reverse is None else reverse, first_step="learned")


def as_callable(num_steps: int):
    """The same kernel as a user writes it: a callable that returns a MultivariateNormal."""
    process = chain(num_steps).process

    def kernel(t, x):
        law = Linear().data_law(process, t, x)
        c, d, var = process.posterior_coefficients(t)
        return dist.MultivariateNormal(c * law.mean + d * x, jnp.square(c) * law.covariance_matrix + var * jnp.eye(DIM))

    return kernel


@pytest.mark.cases(2)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("kernel", ["prediction", "callable"])
def test_the_exact_reversal_of_correlated_data_loses_nothing(x64, num_steps, kernel):
    """Every log weight is log q(x_0) + log pi(x_T) - log q(x_T), the last two alike where nothing is left at T; K is log q."""
    model = chain(num_steps, None if kernel == "prediction" else as_callable(num_steps))
    x0 = jnp.asarray(np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 6))
    truth = normal(MEAN, COVARIANCE).log_prob(x0)
    keys = jax.random.split(jax.random.key(0), 6)
    weights = jax.jit(lambda k: draw_log_weights(k, model, x0, chunk_size=2))(keys)
    np.testing.assert_allclose(weights, truth, atol=1e-9)
    total = jax.jit(jax.vmap(lambda key: inference.bound_terms(key, model, x0).total))
    terms = total(jax.random.split(jax.random.key(1), 400))
    errors = np.std(terms, axis=0) / 20.0
    assert np.all(np.abs(np.mean(terms, axis=0) - truth) < 4.5 * errors + 1e-9)
    if num_steps == 5:  # a control: kernels of independent coordinates lose
        assert np.mean(draw_log_weights(keys, chain(5, Linear(None, False)), x0, chunk_size=2) - truth) < -0.05


OBSERVATIONS = {
    "normal": inference.NormalObservation(jnp.array([0.5, np.nan, -1.0]), scale=0.4),
    "known": inference.Known(jnp.array([np.nan, 0.2, np.nan])),
    "linear": inference.LinearObservation(jnp.array([1.0]), jnp.array([[1.0, -1.0, 0.5]]), scale=0.3),
}
OBSERVATIONS["all"] = OBSERVATIONS["known"] * OBSERVATIONS["linear"]


def evidence_of(name: str) -> float:
    rows, y, noise = {
        "normal": (np.eye(3)[[0, 2]], [0.5, -1.0], [0.16, 0.16]),
        "known": (np.eye(3)[[1]], [0.2], [0.0]),
        "linear": (np.array([[1.0, -1.0, 0.5]]), [1.0], [0.09]),
        "all": (np.array([[0.0, 1.0, 0.0], [1.0, -1.0, 0.5]]), [0.2, 1.0], [0.0, 0.09]),
    }[name]
    law = normal(rows @ MEAN, rows @ COVARIANCE @ rows.T + np.diag(noise))
    return float(law.log_prob(np.array(y)))


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", list(OBSERVATIONS))
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_filter_of_an_exact_reversal_is_exact(x64, name, num_steps):
    """Looking ahead every weight is equal, and the evidence that of the conjugate answer."""
    target = inference.multiply(chain(num_steps), OBSERVATIONS[name], along="lookahead")
    found = jax.jit(lambda key: particle_filter(key, target, 16, threshold=0.0))(jax.random.key(0))
    np.testing.assert_allclose(found.log_evidence, evidence_of(name), atol=1e-9)
    np.testing.assert_allclose(found.log_weights, -np.log(16), atol=1e-9)


@pytest.mark.cases(1)
@pytest.mark.parametrize("along", ["constant", "power", "lookahead"])
def test_correlated_kernels_are_exact_along_every_way(along):
    """By particles, prediction and callable alike: the evidence is right within its error, at one failure in 10,000."""
    r, keys = inference.NormalObservation(jnp.array([0.5, np.nan, -1.0]), scale=1.5), jax.random.key(0)
    spread = COVARIANCE[np.ix_([0, 2], [0, 2])] + 2.25 * np.eye(2)
    truth = normal(MEAN[[0, 2]], spread).log_prob(np.array([0.5, -1.0]))
    for reverse in (None, as_callable(4)):
        runs = evidences(jax.random.split(keys, 64), inference.multiply(chain(4, reverse), r, along=along))
        z = np.exp(np.asarray(runs, np.float64) - float(truth))
        assert abs(z.mean() - 1.0) < 4.0 * z.std() / 8.0 + 1e-4
        assert z.std() < 0.3


def test_known_coordinates_walk_the_forward_chain_beside_what_goes_with_them():
    """Unbiased, at one failure in 10,000, for two known coordinates of three; a law that forgets how they go together is not."""
    r, keys = inference.Known(jnp.array([0.6, np.nan, -0.3])), jax.random.split(jax.random.key(0), 4096)
    truth = normal(MEAN[[0, 2]], COVARIANCE[np.ix_([0, 2], [0, 2])]).log_prob(np.array([0.6, -0.3]))
    for reverse, is_right in ((as_callable(2), True), (Linear(None, False), False)):
        target = inference.multiply(chain(2, reverse), r, along="forward")
        z = np.exp(np.asarray(evidences(keys, target, 8), np.float64) - float(truth))
        assert (abs(z.mean() - 1.0) < 4.0 * z.std() / 64.0) == is_right, (z.mean(), z.std())


def test_what_is_spliced_into_a_correlated_law_of_its_own_margin_changes_nothing():
    """One known coordinate drawn as the law itself draws it: the density is the law's, and so are the draws."""
    own = normal(np.zeros((5, DIM)), np.broadcast_to(COVARIANCE, (5, DIM, DIM)))
    margin = dist.Normal(jnp.zeros((5, DIM)), jnp.sqrt(jnp.diag(jnp.asarray(COVARIANCE)))).to_event(1)
    law = Spliced(own, margin, jnp.arange(DIM) == 1)
    x = jax.random.normal(jax.random.key(0), (7, 5, DIM))
    log_prob, sample = jax.jit(lambda law, x: law.log_prob(x)), jax.jit(lambda law, key: law.sample(key, (4000,)))
    np.testing.assert_allclose(log_prob(law, x), log_prob(own, x), rtol=1e-4, atol=1e-4)
    draws = sample(law, jax.random.key(1))
    assert np.all(draws[..., 1] == draws[:1, :1, 1])
    given = COVARIANCE[:, 1] / COVARIANCE[1, 1] * draws[0, 0, 1]
    spread = COVARIANCE - np.outer(COVARIANCE[:, 1], COVARIANCE[:, 1]) / COVARIANCE[1, 1]
    flat = np.asarray(draws).reshape(-1, DIM)
    np.testing.assert_allclose(flat.mean(0), given, atol=5.0 * np.sqrt(np.diag(spread).max() / len(flat)) + 1e-6)
    np.testing.assert_allclose(np.cov(flat.T), spread, atol=0.03)


@eqx.filter_jit
def evidences(keys, target, num_particles=512):
    return jax.vmap(lambda key: particle_filter(key, target, num_particles).log_evidence)(keys)


@eqx.filter_jit
def law_of(model, t, x):
    return model.data_law(t, x)


def test_a_jacobian_gives_the_covariance_of_an_exact_mean(x64):
    """From kernels that know means and variances, the covariance at every t; where nothing is left, the variances."""
    diagonal, full = chain(4, Linear(None, False)), chain(4)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, DIM)))
    known = models.correlated(diagonal)
    for t in (1, 2, 3):
        law = law_of(known, t, x)
        np.testing.assert_allclose(covariance_of(law), law_of(full, t, x).covariance_matrix, rtol=1e-6)
        np.testing.assert_allclose(law.mean, law_of(full, t, x).mean, rtol=1e-12)
    last = law_of(known, 4, x)
    np.testing.assert_allclose(last.variance, law_of(diagonal, 4, x).variance, rtol=1e-12)
    np.testing.assert_array_equal(last.factor, 0.0)
    few = law_of(models.correlated(diagonal, 1), 2, x)
    np.testing.assert_allclose(few.variance, law_of(diagonal, 2, x).variance, rtol=1e-9)  # what the model states itself
    covariance, direction = np.asarray(law_of(full, 2, x).covariance_matrix[0]), np.asarray(few.factor[0, 0])
    quotient = direction @ covariance @ direction / (direction @ direction)
    assert quotient > 0.98 * np.linalg.eigvalsh(covariance)[-1] > 1.3 * np.trace(covariance) / 3.0


def test_a_step_of_levels_keeps_its_first_step():
    levels = (-1.0, 0.0, 1.0)
    process = models.GaussianDiffusion((4,), models.schedules.log_snr_linear(6))
    network = models.networks.ResidualMLP((4,), (4, 3), 6, width=16, depth=1, key=jax.random.key(0))
    model = models.Diffusion(process, models.LevelPrediction(network, levels), first_step="quantized")
    known, x = models.correlated(model, 2), jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), float)

    @eqx.filter_jit
    def laws(model):
        law = model.kernel(3, x)
        return model.first_kernel(x).base_dist.logits, law.mean, law.variance

    for found, expected, rtol in zip(laws(known), laws(model), (1e-6, 1e-5, 1e-4), strict=True):
        np.testing.assert_allclose(found, expected, rtol=rtol)
    terms = eqx.filter_jit(inference.bound_terms)(jax.random.key(0), known, jnp.zeros((2, 4)))
    assert np.isfinite(terms.total).all()
    shorter = models.respace(known, 3)
    assert shorter.num_steps == 3 and jax.eval_shape(lambda: shorter.kernel(2, x).mean).shape == (3, 4)


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", [models.DataPrediction, models.NoisePrediction, models.VelocityPrediction])
@pytest.mark.parametrize("rank", [1, 4])
def test_directions_are_trained(kind, rank):
    """A silent network has short, distinct directions, whose gradients are not zero."""
    process = models.GaussianDiffusion((4,), models.schedules.log_snr_linear(6))
    network = models.networks.ResidualMLP((4,), (2 + rank, 4), 6, width=16, depth=1, key=jax.random.key(0))
    model = models.Diffusion(process, kind(network, rank=rank), first_step="learned")
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(rng.normal(size=(64, 1)) + 0.2 * rng.normal(size=(64, 4)), float)  # all coordinates together
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(arrays):
        return -jnp.mean(inference.bound_terms(jax.random.key(0), eqx.combine(arrays, static), x0).total)

    slope = jax.jit(jax.grad(loss))(arrays).reverse.network.readout.bias.reshape(2 + rank, 4)
    moving = np.abs(np.asarray(slope[2:]))
    if rank == 4:
        moving = moving[np.triu_indices(4)]
    assert np.all(moving > 1e-4)
    law = model.data_law(3, x0[:2])
    assert isinstance(law, LowRankNormal) and law.rank == rank
    off = np.asarray(covariance_of(law))[0]
    assert np.max(np.abs(off - np.diag(np.diag(off)))) < 0.1


def test_bad_input():
    process = models.GaussianDiffusion((3,), models.schedules.log_snr_linear(4))
    network = models.networks.ResidualMLP((3,), (6, 3), 4, width=8, depth=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="rank must be at most 3, the number of coordinates of a datum; got 4"):
        models.Diffusion(process, models.VelocityPrediction(network, rank=4))
    with pytest.raises(ValueError, match="rank must be at least 0"):
        models.VelocityPrediction(network, rank=-1)
    with pytest.raises(ValueError, match="rank must be at most 3"):
        models.correlated(chain(3), 4)
    bits = models.BernoulliDiffusion((3,), models.schedules.erasing(4))
    flat = models.networks.ResidualMLP((3,), (3,), 4, width=8, depth=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="bits have none"):
        models.correlated(models.Diffusion(bits, models.BitPrediction(flat)))
