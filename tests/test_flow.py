"""The probability flow against the exact density, sampler and derivatives of a Gaussian mixture whose score is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import assert_mean
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import TransformReparam
from scipy import stats
from scipy.special import logsumexp

from nedm_ppl import models
from tests.zoo import MixtureMoments

DIM, COMPONENTS = 8, 5
WEIGHTS = np.array([0.3, 0.25, 0.2, 0.15, 0.1])


def mixture(dim: int) -> tuple[np.ndarray, float]:
    """Means and the common variance, pooled mean square 1."""
    means = np.random.default_rng(0).normal(size=(COMPONENTS, dim))
    means -= WEIGHTS @ means
    total = np.mean(WEIGHTS @ np.square(means)) + 0.25
    return means / np.sqrt(total), 0.25 / total


def draw(dim: int, num: int, seed: int = 1) -> np.ndarray:
    means, var = mixture(dim)
    rng = np.random.default_rng(seed)
    return means[rng.choice(COMPONENTS, num, p=WEIGHTS)] + np.sqrt(var) * rng.normal(size=(num, dim))


def log_density(x: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """Exact log density of the mixture, with noise of variance `extra` added."""
    means, var = mixture(x.shape[-1])
    squares = np.sum(np.square(x[:, None] - means), axis=-1) / (var + extra)
    return logsumexp(np.log(WEIGHTS) - 0.5 * squares, axis=1) - 0.5 * x.shape[-1] * np.log(2.0 * np.pi * (var + extra))


def chain(dim: int = DIM, num_steps: int = 1000, first_step: str = "learned", **options) -> models.Diffusion:
    process = models.GaussianDiffusion((dim,), models.schedules.log_snr_linear(num_steps, end=np.log(1e-8)))
    means, var = mixture(dim)
    reverse = models.DataPrediction(
        MixtureMoments(jnp.asarray(WEIGHTS), jnp.asarray(means), process.schedule.alpha_bar, float(var))
    )
    return models.Diffusion(process, reverse, first_step=first_step, **options)


X = draw(DIM, 64)


# --- exactness ----------------------------------------------------------------------------------------------------------


@pytest.mark.central
def test_log_prob_is_the_exact_density_within_a_thousandth_of_a_nat():
    assert np.max(np.abs(chain().flow().log_prob(X[:16]) - log_density(X[:16]))) < 1e-3


@pytest.mark.long
def test_in_float64_density_and_both_directions_agree(double):
    flow = chain(num_steps=500).flow()
    z = jax.random.normal(jax.random.key(0), (4, DIM))
    x, log_det = flow.transforms[0].call_with_intermediates(z)
    carried = flow.base_dist.log_prob(z) - log_det
    np.testing.assert_allclose(carried, log_density(np.asarray(x)), atol=1e-3)
    np.testing.assert_allclose(flow.log_prob(x), carried, atol=1e-3)
    # The tolerance bounds the error of a step, 1e-5; over a hundred of them, and where the flow stretches, it adds up.
    np.testing.assert_allclose(flow.transforms[0].inv(x), z, atol=1e-3)


class Untrained(eqx.Module):
    """A network that was never asked for t = 1."""

    mean: MixtureMoments

    def __call__(self, t, x):
        return jnp.where(t == 1, jnp.nan, self.mean(t, x))


def test_a_fixed_first_step_starts_at_the_second_kernel():
    fixed = chain(first_step="fixed")
    fixed = eqx.tree_at(lambda d: d.reverse.network, fixed, Untrained(fixed.reverse.network))
    assert np.max(np.abs(fixed.flow().log_prob(X) - log_density(X))) < 1e-3


def test_a_quantized_first_step_gives_the_density_with_the_first_steps_noise():
    quantized = chain(first_step="quantized", levels=(-1.0, 0.0, 1.0))
    schedule = quantized.process.schedule
    noise = float(schedule.one_minus_alpha_bar[1] / schedule.alpha_bar[1])
    assert np.max(np.abs(quantized.flow().log_prob(X) - log_density(X, noise))) < 1e-3
    assert np.max(np.abs(log_density(X, noise) - log_density(X))) > 1e-3  # the noise is seen


def test_the_steps_drift_over_its_rate_is_tweedies_score(double):
    """mu = c m + d x is undone exactly, and (sqrt(1 - beta) mu - x) / beta is the mixture's score."""
    own = chain()
    plain = models.Diffusion(own.process, lambda t, x: own.kernel(t, x), first_step="learned")
    x, schedule = jnp.asarray(X), own.process.schedule
    for t in (1, 2, 500, 1000):
        mean = own.data_law(t, x).mean
        beta, a = schedule.rates[t - 1], schedule.alpha_bar[t]
        drift = (jnp.sqrt(1.0 - beta) * plain.kernel(t, x).mean - x) / beta
        np.testing.assert_allclose(drift, (jnp.sqrt(a) * mean - x) / (1.0 - a), rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(plain.data_law(t, x).mean, mean, rtol=1e-7, atol=1e-7)


def test_samples_follow_the_mixture(significance):
    """Log densities of samples and of exact draws have one law; those of the mixture's Gaussian fit have another."""
    num = 1000
    x, exact = np.asarray(chain(num_steps=200).flow().sample(jax.random.key(1), (num,))), draw(DIM, num, seed=2)
    fitted = np.random.default_rng(3).multivariate_normal(exact.mean(0), np.cov(exact.T), num)
    for statistic in (log_density, lambda v: v[:, 0], lambda v: v[:, 1]):
        assert stats.ks_2samp(statistic(x), statistic(exact)).pvalue > significance
    assert stats.ks_2samp(log_density(fitted), log_density(exact)).pvalue < significance


# --- Hutchinson's trace ---------------------------------------------------------------------------------------------------


def test_hutchinson_is_unbiased_and_its_error_is_right():
    model, x = chain(num_steps=200), X[:1]
    exact, none = model.flow().log_prob_and_se(x)
    assert none == 0.0
    keys = jax.random.split(jax.random.key(0), 100)
    runs = jax.vmap(lambda key: model.flow(key, num_probes=8).log_prob_and_se(x))
    log_probs, errors = (np.asarray(part)[:, 0] for part in runs(keys))
    assert_mean(log_probs - np.asarray(exact), 0.0)
    # The mean of squared errors is the variance of the estimates.
    ratio = np.mean(np.square(errors)) / np.var(log_probs, ddof=1)
    assert 0.5 < ratio < 2.0
    assert np.std(log_probs) > 0.0


# --- derivatives, programs ------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_a_gradient_is_that_of_the_density_at_every_tolerance(double, tolerance):
    """Undivided by `jit`, where the backward pass is compiled apart from the forward one and rounds in its own way."""
    network = models.networks.ResidualMLP((2,), (2, 2), 20, width=32, depth=2, key=jax.random.key(0))
    network = jax.tree.map(
        lambda a: a + 0.03 * jax.random.normal(jax.random.key(5), a.shape) if eqx.is_inexact_array(a) else a, network
    )
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(20))
    model = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
    x, h = jnp.array([0.3, -0.7]), 1e-4

    def density(tolerance):
        return model.flow(rtol=tolerance, atol=tolerance).log_prob

    above, below = jax.jit(density(1e-10))(x + h * jnp.stack([jnp.eye(2), -jnp.eye(2)]))
    slopes = (above - below) / (2.0 * h)
    np.testing.assert_allclose(jax.grad(density(tolerance))(x), slopes, rtol=1e-5)


@pytest.mark.long
def test_derivatives_match_finite_differences_and_the_log_determinant(double):
    """With respect to the value, and a scale upstream of the model's own arrays."""
    model = chain(dim=2, num_steps=20)
    means, x = model.reverse.network.means, jnp.asarray(draw(2, 1)[0])

    def flow(scale, tolerance=1e-7):
        scaled = eqx.tree_at(lambda d: d.reverse.network.means, model, scale * means)
        return scaled.flow(rtol=tolerance, atol=tolerance)

    def density(value, scale, tolerance=1e-7):
        return flow(scale, tolerance).log_prob(value)

    gradient = jax.jit(jax.grad(density, argnums=(0, 1)))(x, 1.1)
    shift = np.array([-2.0, -1.0, 1.0, 2.0])
    h, unit = 1e-2, np.eye(3)
    moved = np.asarray([*x.tolist(), 1.1]) + h * shift[:, None, None] * unit  # (4, 3, 3): point by direction
    # The field has kinks between steps of the chain, where the solver errs by its tolerance: differences must not see it.
    values = jax.jit(jax.vmap(jax.vmap(lambda v: density(v[:2], v[2], 1e-12))))(moved)
    slopes = np.array([1.0, -8.0, 8.0, -1.0]) @ np.asarray(values) / (12.0 * h)
    np.testing.assert_allclose([*gradient[0], gradient[1]], slopes, rtol=1e-3)  # of a solver with tolerance 1e-7
    assert np.min(np.abs(slopes)) > 1e-2

    transform, z = flow(1.1).transforms[0], jnp.asarray([0.3, -1.2])
    jacobian = jax.jit(jax.jacrev(transform))(z)
    np.testing.assert_allclose(transform.call_with_intermediates(z)[1], np.linalg.slogdet(jacobian)[1], atol=1e-5)


def test_plates_predictive_vmap_and_batches():
    flow, x = chain(dim=2, num_steps=50).flow(), draw(2, 6)

    def program():
        with numpyro.plate("rows", 3):
            numpyro.sample("x", flow)

    drawn = Predictive(program, num_samples=2)(jax.random.key(0))["x"]
    assert drawn.shape == (2, 3, 2)
    whole = flow.log_prob(x)
    np.testing.assert_allclose(flow.log_prob(x.reshape(2, 3, 2)), np.reshape(whole, (2, 3)), rtol=1e-5)
    np.testing.assert_allclose(flow.expand((6,)).log_prob(x), whole, rtol=1e-5)
    # A pytree: an argument of jit, and vmap over the value.
    mapped = jax.jit(jax.vmap(lambda f, v: f.log_prob(v), in_axes=(None, 0)))(flow, x)
    np.testing.assert_allclose(mapped, whole, rtol=1e-4, atol=1e-4)
    base = {"x_base": np.ones((3, 2))}
    named = numpyro.handlers.reparam(program, config={"x": TransformReparam()})
    log_joint, trace = numpyro.infer.util.log_density(named, (), {}, base)
    np.testing.assert_allclose(log_joint, 3.0 * flow.base_dist.log_prob(np.ones(2)), rtol=1e-5)
    np.testing.assert_allclose(trace["x"]["value"], flow.transforms[0](base["x_base"]), rtol=1e-5)


@pytest.mark.long
def test_nuts_samples_straight_through_the_flow():
    """A Gaussian observation of a two-dimensional mixture: the posterior is a mixture, and known."""
    means, var = mixture(2)
    flow, y, noise = chain(dim=2, num_steps=50).flow(rtol=1e-3, atol=1e-3), np.array([0.5, -0.3]), 0.7

    def program():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", flow), noise).to_event(1), obs=y)

    mcmc = MCMC(NUTS(program, max_tree_depth=4), num_warmup=100, num_samples=300, progress_bar=False)
    mcmc.run(jax.random.key(0))
    total = var + noise**2
    share = np.log(WEIGHTS) - 0.5 * np.sum(np.square(y - means), axis=1) / total
    truth = np.exp(share - logsumexp(share)) @ (means + var / total * (y - means))
    draws = np.asarray(mcmc.get_samples()["x"])
    size = numpyro.diagnostics.effective_sample_size(draws[None])
    assert np.all(size > 30)
    np.testing.assert_array_less(np.abs(draws.mean(0) - truth), 4.0 * draws.std(0) / np.sqrt(size))


# --- bad input ------------------------------------------------------------------------------------------------------------


def test_what_has_no_flow_is_refused():
    bits = models.BernoulliDiffusion((4,), models.schedules.erasing(5), rate=0.5)
    flips = models.FlipRate(models.networks.ResidualMLP((4,), (4,), 5, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="needs a GaussianDiffusion"):
        models.Diffusion(bits, flips).flow()
    erased = models.GaussianDiffusion((2,), models.schedules.erasing(5))
    with pytest.raises(ValueError, match="must leave some signal at T"):
        models.Diffusion(erased, lambda t, x: erased.step(t, x)).flow()
    single = models.GaussianDiffusion((2,), models.schedules.erasing(1, last_rate=0.5))
    with pytest.raises(ValueError, match="at least 2"):
        models.Diffusion(single, lambda t, x: single.step(t, x)).flow()
    wide = models.GaussianDiffusion((65,), models.schedules.erasing(5, last_rate=0.5))
    with pytest.raises(ValueError, match="rng_key must be given"):
        models.Diffusion(wide, lambda t, x: wide.step(t, x)).flow()


@pytest.mark.parametrize(
    "options, message",
    [({"num_probes": 0}, "num_probes"), ({"rtol": 0.0}, "rtol and atol"), ({"atol": -1.0}, "rtol and")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        chain(num_steps=10).flow(jax.random.key(0), **options)


def test_bad_values_are_refused():
    flow = chain(num_steps=10).flow()
    with pytest.raises(ValueError, match="trailing shape"):
        flow.log_prob(np.zeros((3, DIM + 1)))
    with pytest.raises(ValueError, match="must be finite"):
        flow.log_prob(np.full(DIM, np.nan))
    with pytest.warns(UserWarning, match="root mean square of 255"):
        flow.log_prob(np.full(DIM, 255.0))
