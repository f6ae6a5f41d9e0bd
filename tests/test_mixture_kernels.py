"""Steps that are mixtures: exact reversal of mixtures of bits and of Gaussians, their divergence, and their posteriors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from exact import product_law, states
from scipy.special import logsumexp

from nedm_ppl import inference, models
from nedm_ppl.inference.bound import divergence
from nedm_ppl.inference.likelihood._weights import draw_log_weights
from nedm_ppl.inference.posterior import particle_filter
from nedm_ppl.laws import LowRankNormal
from nedm_ppl.laws._mixtures import components, mixture

# --- a mixture of bits ----------------------------------------------------------------------------------------------------

NUM_BITS = 4
LOGITS = jnp.array([[2.0, -1.0, 0.5, -3.0], [-2.0, 1.5, 0.0, 2.0], [0.3, 3.0, -2.5, -0.5]])
LOG_WEIGHTS = jnp.array([0.2, -0.4, 0.9])
STATES = states(NUM_BITS)


def bits_law() -> np.ndarray:
    """The mixture over all states."""
    weights = np.exp(LOG_WEIGHTS - logsumexp(LOG_WEIGHTS))
    return sum(
        w * product_law(1.0 / (1.0 + np.exp(-np.asarray(z, float)))) for w, z in zip(weights, LOGITS, strict=True)
    )


def bits(num_steps: int, log_weights=LOG_WEIGHTS) -> models.Diffusion:
    process = models.BernoulliDiffusion((NUM_BITS,), models.schedules.erasing(num_steps), rate=0.3)
    base = models.BitMixture(LOGITS, log_weights)
    return models.Diffusion(process, models.BitMixturePrediction(None, base), first_step="learned")


@pytest.mark.parametrize("t", [2, 4])
def test_a_mixtures_step_is_the_average_of_the_posterior_over_its_own(x64, t):
    model, x = bits(5), jnp.asarray(STATES)
    process = model.process

    def posterior(x0):
        return jax.vmap(lambda later: jnp.exp(process.posterior(t, later, x0).log_prob(x)))(x)

    @jax.jit
    def laws(x):
        steps = jnp.exp(jax.vmap(model.kernel(t, x).log_prob)(x))  # [x_{t-1}, x_t]
        backwards = jax.vmap(lambda x0: jnp.exp(process.marginal(t, x0).log_prob(x)))(x)  # q(x_t | x_0)
        return steps, backwards, jax.vmap(posterior)(x)

    found, backwards, posteriors = map(np.asarray, laws(x))
    joint = bits_law()[:, None] * backwards
    truth = np.einsum("st,stp->pt", joint / joint.sum(0), posteriors)
    np.testing.assert_allclose(found, truth, atol=1e-12)


@pytest.mark.cases(2)
@pytest.mark.parametrize("num_steps", [1, 5, 40])
def test_the_reversal_of_a_mixture_of_bits_loses_nothing(num_steps):
    """Every log weight is log q(x_0); with other weights of the components it is not."""
    x0 = jnp.asarray(STATES, float)
    keys = jax.random.split(jax.random.key(0), len(x0))
    weights = jax.jit(lambda model: draw_log_weights(keys, model, x0, chunk_size=8))
    np.testing.assert_allclose(weights(bits(num_steps)), np.log(bits_law()), atol=2e-5)
    wrong = weights(bits(num_steps, LOG_WEIGHTS + jnp.array([0.2, 0.0, -0.2])))
    assert np.max(np.abs(wrong - np.log(bits_law()))) > 0.02


BIT_OBSERVATIONS = {
    "known": inference.Known(jnp.array([np.nan, 1.0, np.nan, 0.0])),
    "flipped": inference.BernoulliObservation(jnp.array([1.0, 0.0, 1.0, np.nan]), 0.2),
}
BIT_OBSERVATIONS["both"] = inference.Known(jnp.array([np.nan, np.nan, np.nan, 1.0])) * BIT_OBSERVATIONS["flipped"]


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", list(BIT_OBSERVATIONS))
@pytest.mark.parametrize("num_steps", [1, 5])
def test_the_filter_of_a_mixture_of_bits_is_exact(name, num_steps):
    """Looking ahead every weight is equal, and the evidence and the posterior are those of enumeration."""
    r = BIT_OBSERVATIONS[name]
    joint = bits_law() * np.exp(np.asarray(jax.vmap(r.log_r)(jnp.asarray(STATES, float)), np.float64))
    target = inference.multiply(bits(num_steps), r, along="lookahead")
    found = jax.jit(lambda key: particle_filter(key, target, 4000, threshold=0.0))(jax.random.key(0))
    np.testing.assert_allclose(found.log_evidence, np.log(joint.sum()), atol=1e-4)
    np.testing.assert_allclose(found.log_weights, -np.log(4000), atol=1e-4)
    index = (np.asarray(found.x) @ 2 ** np.arange(NUM_BITS)[::-1]).astype(int)
    counts, posterior = np.bincount(index, minlength=16), joint / joint.sum()
    assert np.all(np.abs(counts - 4000 * posterior) < 5.0 * np.sqrt(4000 * posterior * (1.0 - posterior)) + 1e-9)


def test_bits_given_any_r_are_right_by_particles():
    """An r of all bits together has no closed form: the weights repair what guides."""
    r = inference.Function(lambda x: -jnp.square(jnp.sum(x) - 2.0))
    truth = np.sum(bits_law() * np.exp(-np.square(STATES.sum(1) - 2.0)))
    target = inference.multiply(bits(5), r, along="lookahead")
    runs = jax.jit(jax.vmap(lambda key: particle_filter(key, target, 200).log_evidence))(
        jax.random.split(jax.random.key(0), 64)
    )
    z = np.exp(np.asarray(runs, np.float64)) / truth
    assert abs(z.mean() - 1.0) < 4.0 * z.std() / 8.0 and z.std() > 0.0


# --- a mixture of Gaussians -----------------------------------------------------------------------------------------------

DIM = 2
SHARES = np.array([0.5, 0.2, 0.3])
CENTERS = np.array([[1.0, 0.5], [-1.2, 0.3], [0.2, -1.0]])
SPREADS = np.array([[[0.3, 0.2], [0.2, 0.25]], [[0.1, 0.0], [0.0, 0.4]], [[0.2, -0.1], [-0.1, 0.1]]])


class Three(models.Prediction):
    """The exact law of x_0 given x_t of data from three correlated Gaussians."""

    network: None = None
    log_shares: jax.Array = eqx.field(default_factory=lambda: jnp.log(jnp.asarray(SHARES)))

    def data_law(self, process, t, x):
        signal, noise = process.schedule.alpha_bar[t], process.schedule.one_minus_alpha_bar[t]
        centers, spreads = jnp.asarray(CENTERS), jnp.asarray(SPREADS)
        seen = signal * spreads + noise * jnp.eye(DIM)
        gain = jnp.sqrt(signal) * spreads @ jnp.linalg.inv(seen)
        residual = x[..., None, :] - jnp.sqrt(signal) * centers
        mean = centers + jnp.einsum("kij,...kj->...ki", gain, residual)
        covariance = jnp.broadcast_to(spreads - jnp.sqrt(signal) * gain @ spreads, (*mean.shape, DIM))
        evidence = dist.MultivariateNormal(jnp.zeros(DIM), seen).log_prob(residual)
        return mixture(self.log_shares + evidence, dist.MultivariateNormal(mean, covariance))

    def output_shape(self, event_shape):
        return event_shape

    def check_process(self, process): ...


def three(num_steps: int, log_shares=None) -> models.Diffusion:
    process = models.GaussianDiffusion((DIM,), models.schedules.erasing(num_steps))
    reverse = Three() if log_shares is None else Three(None, log_shares)
    return models.Diffusion(process, reverse, first_step="learned")


def three_log_prob(x, rows=None, noise=0.0):
    rows = np.eye(DIM) if rows is None else rows
    laws = [
        dist.MultivariateNormal(jnp.asarray(rows @ c), jnp.asarray(rows @ s @ rows.T + noise))
        for c, s in zip(CENTERS, SPREADS, strict=True)
    ]
    return logsumexp([np.log(w) + np.asarray(law.log_prob(x)) for w, law in zip(SHARES, laws, strict=True)], axis=0)


@pytest.mark.cases(2)
@pytest.mark.parametrize("num_steps", [1, 5, 40])
def test_the_reversal_of_a_mixture_of_gaussians_loses_nothing(x64, num_steps):
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(8, DIM)))
    keys = jax.random.split(jax.random.key(0), 8)
    weights = jax.jit(lambda model: draw_log_weights(keys, model, x0, chunk_size=8))
    np.testing.assert_allclose(weights(three(num_steps)), three_log_prob(x0), atol=1e-9)
    wrong = weights(three(num_steps, jnp.log(jnp.array([0.4, 0.3, 0.3]))))
    assert np.max(np.abs(wrong - three_log_prob(x0))) > 0.02


OBSERVATIONS = {
    "normal": (inference.NormalObservation(jnp.array([0.4, np.nan]), scale=0.3), [[1.0, 0.0]], [0.4], [0.09]),
    "known": (inference.Known(jnp.array([np.nan, 0.1])), [[0.0, 1.0]], [0.1], [0.0]),
    "linear": (
        inference.LinearObservation(jnp.array([0.7]), jnp.array([[1.0, -2.0]]), scale=0.5),
        [[1.0, -2.0]],
        [0.7],
        [0.25],
    ),
}
OBSERVATIONS["all"] = (
    OBSERVATIONS["known"][0] * OBSERVATIONS["linear"][0],
    [[0.0, 1.0], [1.0, -2.0]],
    [0.1, 0.7],
    [0.0, 0.25],
)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", list(OBSERVATIONS))
@pytest.mark.parametrize("num_steps", [4, 1])
def test_the_filter_of_a_mixture_of_gaussians_is_exact(x64, name, num_steps):
    r, rows, y, noise = OBSERVATIONS[name]
    truth = three_log_prob(np.array(y), np.array(rows), np.diag(noise))
    target = inference.multiply(three(num_steps), r, along="lookahead")
    found = jax.jit(lambda key: particle_filter(key, target, 16, threshold=0.0))(jax.random.key(0))
    np.testing.assert_allclose(found.log_evidence, truth, atol=1e-6)
    np.testing.assert_allclose(found.log_weights, -np.log(16), atol=1e-6)


@pytest.mark.parametrize("kind", ["bits", pytest.param("Gaussians", marks=pytest.mark.long)])
def test_known_coordinates_of_a_mixture_walk_the_forward_chain(kind):
    """Unbiased, at one failure in 10,000: the components' shares follow what is known at every step."""
    if kind == "bits":
        r, model = BIT_OBSERVATIONS["known"], bits(5)
        truth = np.log(bits_law()[(STATES[:, 1] == 1) & (STATES[:, 3] == 0)].sum())
    else:
        r, rows, y, _ = OBSERVATIONS["known"]
        model, truth = three(4), three_log_prob(np.array(y), np.array(rows))
    target = inference.multiply(model, r, along="forward")
    runs = jax.jit(jax.vmap(lambda key: particle_filter(key, target, 8).log_evidence))(
        jax.random.split(jax.random.key(0), 1024)
    )
    z = np.exp(np.asarray(runs, np.float64) - truth)
    assert abs(z.mean() - 1.0) < 4.0 * z.std() / 32.0 and z.std() < 2.0, (z.mean(), z.std())


@pytest.mark.cases(1)
@pytest.mark.parametrize("along", ["constant", "power"])
def test_mixtures_are_exact_along_power_and_constant(along, x64):
    """Every component's own evidence is its weight, to a power too."""
    r = inference.NormalObservation(jnp.array([0.4, np.nan]), scale=1.0)
    target = inference.multiply(three(4), r, along=along)
    look = jax.jit(lambda target: target.look(3, jnp.array([[0.3, -0.4]])))(target)
    power = 0.5 if along == "power" else 1.0
    axis = np.linspace(-6.0, 6.0, 301)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2))
    density = jax.jit(lambda law: law.log_prob(grid))
    product = np.array(density(look.law) + power * jax.vmap(r.log_r)(grid[:, 0])[:, None])[:, 0]
    product -= logsumexp(product) + 2.0 * np.log(axis[1] - axis[0])
    found = np.asarray(density(look.proposal))[:, 0]
    likely = product > -12.0
    np.testing.assert_allclose(found[likely], product[likely], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("along", ["constant", "power"])
def test_evidences_of_mixtures_are_unbiased_along_power_and_constant(along, x64):
    """At one failure in 10,000."""
    _, rows, y, _ = OBSERVATIONS["normal"]
    truth = three_log_prob(np.array(y), np.array(rows), np.eye(1))
    r = inference.NormalObservation(jnp.array([0.4, np.nan]), scale=1.0)
    target = inference.multiply(three(4), r, along=along)
    runs = jax.jit(jax.vmap(lambda key, target: particle_filter(key, target, 200).log_evidence, (0, None)))(
        jax.random.split(jax.random.key(0), 64), target
    )
    z = np.exp(np.asarray(runs) - truth)
    assert abs(z.mean() - 1.0) < 4.0 * z.std() / 8.0


# --- the divergence from a mixture ----------------------------------------------------------------------------------------


def normal_pair(step: float = 0.3):
    q = dist.Normal(jnp.array([[0.2, -0.1]]), step).to_event(1)
    own = jnp.array([[[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]]]) * step**2 * 4.0
    parts = LowRankNormal(jnp.array([[[0.3, 0.1], [0.0, -0.5], [1.0, 0.4]]]), own, 0.1 * jnp.ones((1, 3, 1, 2)))
    return q, parts


def bit_pair():
    q = dist.BernoulliLogits(jnp.array([[0.4, -1.0, 2.0]])).to_event(1)
    return q, dist.BernoulliLogits(jnp.array([[[0.3, -0.5, 1.0], [2.0, 1.0, -1.0], [-1.0, -2.0, 3.0]]])).to_event(1)


PAIRS = {"normals": normal_pair, "bits": bit_pair}
LOGS = jnp.array([[0.1, -0.3, 0.4]])


def exact_divergence(name: str, log_weights) -> float:
    q, parts = PAIRS[name]()
    p = mixture(log_weights, parts)
    if name == "bits":
        x, cell = jnp.asarray(states(3), float)[:, None], 1.0
    else:
        axis = np.linspace(-2.0, 2.0, 801)
        x = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2) + np.array([0.2, -0.1]))
        cell = (axis[1] - axis[0]) ** 2
    log_q = q.log_prob(x)
    return jnp.sum(jnp.exp(log_q) * (log_q - p.log_prob(x))) * cell


@pytest.mark.parametrize("name", list(PAIRS))
def test_the_divergence_from_a_mixture_is_unbiased_with_its_gradient(x64, name):
    q, parts = PAIRS[name]()

    def estimate(key, log_weights):
        return divergence(key, q, mixture(log_weights, parts))[0]

    keys = jax.random.split(jax.random.key(0), 20_000)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(estimate, argnums=1), (0, None)))(keys, LOGS)
    truth, slope = jax.jit(jax.value_and_grad(lambda logs: exact_divergence(name, logs)))(LOGS)
    for found, expected in (values, truth), (slopes, slope):
        found = np.asarray(found)
        error = found.std(axis=0) / np.sqrt(len(found))
        assert np.all(np.abs(found.mean(axis=0) - expected) < 4.5 * error + 1e-9)


@pytest.mark.cases(1)
@pytest.mark.parametrize("t", [3, 20, 39])
def test_what_is_left_to_average_is_little(x64, t):
    """Against one draw of log q - log p, at x_t of the chain itself: the variance is a fraction of it."""
    model, key = three(40), jax.random.key(0)
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, DIM)))

    @jax.jit
    def both(keys):
        x = model.process.marginal(t, x0).sample(key)
        q, p = model.process.posterior(t, x, x0), model.kernel(t, x)
        draws = q.sample(jax.random.key(1), (2000,))
        return jax.vmap(lambda key: divergence(key, q, p))(keys), q.log_prob(draws) - p.log_prob(draws)

    ours, plain = both(jax.random.split(jax.random.key(2), 2000))
    assert np.mean(np.var(ours, axis=0)) < 0.1 * np.mean(np.var(plain, axis=0))


# --- networks -------------------------------------------------------------------------------------------------------------

LEVELS = (-1.0, 0.0, 1.5)


def model_of(kind: str, num_components: int = 3) -> models.Diffusion:
    if kind == "bits":
        process = models.BernoulliDiffusion((4,), models.schedules.erasing(6))
    else:
        process = models.GaussianDiffusion((4,), models.schedules.log_snr_linear(6))
    bare = {
        "normals": lambda net: models.VelocityPrediction(net),
        "directions": lambda net: models.VelocityPrediction(net, rank=2),
        "bits": lambda net: models.BitPrediction(net),
        "levels": lambda net: models.LevelPrediction(net, LEVELS),
    }[kind]
    shape = models.MixturePrediction.shape_for(bare(None), num_components, (4,))
    network = models.networks.ResidualMLP((4,), shape, 6, width=16, depth=1, key=jax.random.key(0))
    first = "quantized" if kind == "levels" else "learned"
    return models.Diffusion(process, models.MixturePrediction(bare(network), num_components), first_step=first)


KINDS = ["normals", "directions", "bits", "levels"]


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_components_is_a_model_like_others(kind, tmp_path):
    model = model_of(kind)
    x0 = model.sample(jax.random.key(0), 5)
    assert x0.shape == (5, 4)
    terms = jax.jit(lambda key: inference.bound_terms(key, model, x0).total)(jax.random.key(1))
    assert np.all(np.isfinite(terms))
    found = inference.marginal_log_likelihood(jax.random.key(2), model, x0, num_trajectories=8)
    assert np.all(np.isfinite(found.log_prob))
    model.save(tmp_path / "m")
    again = models.Diffusion.load(tmp_path / "m")
    np.testing.assert_array_equal(again.sample(jax.random.key(0), 5), x0)
    shorter = models.respace(model, 3)
    assert np.all(np.isfinite(shorter.sample(jax.random.key(0), 5)))
    if kind == "levels":
        assert set(np.unique(x0).round(4)) <= set(LEVELS)


@pytest.mark.cases(2)
@pytest.mark.parametrize("kind", KINDS)
def test_components_part(kind):
    """Equal components would have equal gradients; a silent network's differ, and so do those of the weights."""
    model, rng = model_of(kind), np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], size=(64, 1))
    x0 = {"bits": np.tile(sign > 0, 4), "levels": np.where(sign > 0, 1.5, -1.0) + np.zeros(4)}.get(
        kind, sign + 0.3 * rng.normal(size=(64, 4))
    )
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(arrays):
        return -jnp.mean(
            inference.bound_terms(jax.random.key(0), eqx.combine(arrays, static), jnp.asarray(x0, float)).total
        )

    slope = np.asarray(jax.jit(jax.grad(loss))(arrays).reverse.network.readout.bias)
    by_component = slope.reshape(3, -1)
    assert np.all(np.max(np.abs(by_component[:, None] - by_component[None]), -1) + 10.0 * np.eye(3) > 1e-4)


def test_one_component_is_the_component():
    one = model_of("normals", 1)
    network = one.reverse.network

    def silent(t, x):
        return network(t, x)[0, :2] + jnp.asarray(apart)

    apart = np.zeros((2, 4))
    apart[0] = 0.2 * np.random.default_rng(0).normal(size=(1, 3, 4))[0, 0][:4]
    plain = models.Diffusion(one.process, models.VelocityPrediction(silent), first_step="learned")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), float)
    (_, parts), expected = components(one.kernel(3, x)), plain.kernel(3, x)
    np.testing.assert_allclose(one.kernel(3, x).mean, parts.mean[:, 0], rtol=1e-6)
    assert parts.mean.shape == (3, 1, 4) and expected.mean.shape == (3, 4)


def test_bits_moved_by_a_network_start_at_their_mixture():
    network = models.networks.ResidualMLP((NUM_BITS, 2), (2, NUM_BITS), 5, width=16, depth=1, key=jax.random.key(0))
    moved = eqx.tree_at(
        lambda m: m.reverse, bits(5), models.BitMixturePrediction(network, models.BitMixture(LOGITS, LOG_WEIGHTS))
    )
    x = jnp.asarray(STATES, float)
    at_rest, base = (jax.jit(lambda x, m=m: m.kernel(3, x).log_prob(x))(x) for m in (moved, bits(5)))
    np.testing.assert_allclose(at_rest, base, atol=1e-5)


def test_bad_input():
    network = models.networks.ResidualMLP((4,), (4,), 6, width=8, depth=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="num_components must be at least 1"):
        models.MixturePrediction(models.BitPrediction(network), 0)
    with pytest.raises(ValueError, match="got a FlipRate"):
        models.MixturePrediction(models.FlipRate(network), 2)
    with pytest.raises(ValueError, match="BitMixturePrediction"):
        models.MixturePrediction(models.BitPrediction(network, base=models.BitMixture(LOGITS, LOG_WEIGHTS)), 2)
    process = models.BernoulliDiffusion((3,), models.schedules.erasing(5))
    with pytest.raises(ValueError, match="base must be a mixture of bits of shape"):
        models.Diffusion(process, models.BitMixturePrediction(None, models.BitMixture(LOGITS, LOG_WEIGHTS)))
    process = models.BernoulliDiffusion((4,), models.schedules.erasing(6))
    with pytest.raises(ValueError, match=r"network must return shape \(2, 2, 4\)"):
        models.Diffusion(process, models.MixturePrediction(models.BitPrediction(network), 2))
