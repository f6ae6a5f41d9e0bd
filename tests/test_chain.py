"""A chain as one distribution: its two directions, its shapes, its laws, and a compile time that does not know T."""

import re
import time

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import assert_mean, chi_square
from hypothesis import given
from hypothesis import strategies as st
from numpyro.handlers import seed, trace
from scipy import stats

from nedm_ppl import models
from nedm_ppl.models import MarkovChain
from nedm_ppl.models.chain.schedules import FixedSchedule, erasing, log_snr_linear
from tests.zoo import noise_of

BETAS = [0.1, 0.3, 0.2, 0.5]
PROCESSES = {
    "gaussian": models.GaussianDiffusion((2,), FixedSchedule(BETAS)),
    "bernoulli": models.BernoulliDiffusion((2,), FixedSchedule(BETAS), rate=0.3),
}
X0 = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])


def chain_of(name: str, *, reverse: bool, **kwargs) -> MarkovChain:
    process = PROCESSES[name]
    initial = process.stationary().expand((3,)) if reverse else process.step(1, X0)
    return MarkovChain(initial, process.step, first=1, last=4, reverse=reverse, **kwargs)


both_families = pytest.mark.parametrize("name", PROCESSES)
both_directions = pytest.mark.parametrize("reverse", [False, True])


@pytest.mark.cases(2)
@pytest.mark.central
@both_families
@both_directions
def test_log_prob_is_the_sum_of_every_transition_written_out(name, reverse):
    chain, process = chain_of(name, reverse=reverse), PROCESSES[name]

    @jax.jit
    def both_ways(key):
        path = chain.sample(key, (5,))
        x = {t: path[..., t - 1, :] for t in (1, 2, 3, 4)}
        if reverse:
            start = process.stationary().log_prob(x[4])
            steps = [process.step(t, x[t]).log_prob(x[t - 1]) for t in (2, 3, 4)]
        else:
            start = process.step(1, X0).log_prob(x[1])
            steps = [process.step(t, x[t - 1]).log_prob(x[t]) for t in (2, 3, 4)]
        return chain.log_prob_steps(path), jnp.stack(steps, axis=-1), chain.log_prob(path), start + sum(steps)

    steps, expected_steps, log_prob, expected = both_ways(jax.random.key(0))
    np.testing.assert_allclose(steps, expected_steps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)


@both_directions
def test_a_chain_of_bits_sums_to_one(reverse):
    process = models.BernoulliDiffusion((), FixedSchedule([0.2, 0.3, 0.4]), rate=0.4)
    initial = process.stationary() if reverse else process.step(1, jnp.array(1.0))
    chain = MarkovChain(initial, process.step, first=1, last=3, reverse=reverse)
    np.testing.assert_allclose(np.exp(jax.jit(chain.log_prob)(exact.states(3))).sum(), 1.0, rtol=1e-5)


@both_families
@both_directions
def test_shapes(name, reverse):
    chain = chain_of(name, reverse=reverse)
    assert (chain.batch_shape, chain.event_shape, chain.num_steps) == ((3,), (4, 2), 3)
    path = jax.eval_shape(lambda: chain.sample(jax.random.key(0), (5, 7)))
    assert path.shape == (5, 7, 3, 4, 2)
    assert jax.eval_shape(chain.log_prob, path).shape == (5, 7, 3)
    assert jax.eval_shape(chain.log_prob_steps, path).shape == (5, 7, 3, 3)
    assert chain.support.event_dim == 2
    assert chain.is_discrete == (name == "bernoulli")


@pytest.mark.cases(2)
@both_families
@both_directions
def test_expand_draws_independent_trajectories_of_the_same_law(name, reverse):
    chain = chain_of(name, reverse=reverse)
    wider = chain.expand((6, 3))
    assert (wider.batch_shape, wider.event_shape) == ((6, 3), (4, 2))

    @jax.jit
    def draw(key):
        path = wider.sample(key)
        return path, wider.log_prob(path), chain.log_prob(path), chain.support(path)

    path, log_prob, expected, supported = draw(jax.random.key(1))
    assert path.shape == (6, 3, 4, 2)
    assert np.unique(path, axis=0).shape[0] > 1
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)
    assert np.all(supported)
    assert chain.expand((3,)) is chain


@both_families
def test_a_trajectory_is_stored_ascending_whatever_its_direction(name):
    process = PROCESSES[name]

    def stamp(t, x):
        return dist.Normal(jnp.full_like(x, t), 1e-6).to_event(1)

    def stamp_reverse(t, x):
        return dist.Normal(jnp.full_like(x, t - 1), 1e-6).to_event(1)

    def start(t):
        return dist.Normal(jnp.full(process.event_shape, float(t)), 1e-6).to_event(1)

    for chain in (
        MarkovChain(start(2), stamp, first=2, last=5),
        MarkovChain(start(5), stamp_reverse, first=2, last=5, reverse=True),
    ):
        path = chain.sample(jax.random.key(0), (3,))
        for t in (2, 3, 4, 5):
            np.testing.assert_allclose(chain.at(path, t), np.full((3, 2), t), atol=1e-4)
        with pytest.raises(ValueError, match=re.escape("t must lie in 2..5, the times of this trajectory; got 1.")):
            chain.at(path, 1)


@pytest.mark.cases(2)
@pytest.mark.central
@both_families
@both_directions
def test_sample_end_is_the_end_of_sample(name, reverse):
    chain = chain_of(name, reverse=reverse)
    key = jax.random.key(3)
    path = chain.sample(key, (4,))
    np.testing.assert_array_equal(chain.sample_end(key, (4,)), chain.at(path, 1 if reverse else 4))


@pytest.mark.cases(2)
@both_families
@both_directions
def test_chunks_do_not_change_the_log_prob(name, reverse):
    chain = chain_of(name, reverse=reverse)
    chunked = [chain_of(name, reverse=reverse, chunk_size=size) for size in (1, 2, 3, 50)]
    whole, *parts = jax.jit(lambda path: [d.log_prob(path) for d in (chain, *chunked)])(
        chain.sample(jax.random.key(4), (2,))
    )
    for part in parts:
        np.testing.assert_allclose(part, whole, rtol=1e-6)
    assert chunked[0].expand((2, 3)).chunk_size == 1


@pytest.mark.cases(2)
@both_families
@both_directions
def test_a_chain_is_a_pytree(name, reverse):
    chain = chain_of(name, reverse=reverse)
    path = chain.sample(jax.random.key(5))
    leaves, structure = jax.tree.flatten(chain)
    again = jax.tree.unflatten(structure, leaves)
    assert (again.batch_shape, again.event_shape, again.reverse) == (chain.batch_shape, chain.event_shape, reverse)
    np.testing.assert_array_equal(again.log_prob(path), chain.log_prob(path))
    through_jit = jax.jit(lambda d, x: (d.log_prob(x), d.sample(jax.random.key(5)), d))
    log_prob, draws, returned = through_jit(chain, path)
    np.testing.assert_allclose(log_prob, chain.log_prob(path), rtol=1e-6)
    np.testing.assert_allclose(draws, path, rtol=1e-6)
    assert isinstance(returned, MarkovChain)
    np.testing.assert_allclose(returned.log_prob(path), log_prob, rtol=1e-6)


def test_a_kernel_brings_its_arrays_as_leaves():
    kernel = exact.Linear(*exact.linear_reverse(np.ones(2), np.eye(2), BETAS))
    chain = MarkovChain(PROCESSES["gaussian"].stationary(), kernel, first=1, last=4, reverse=True)
    path = chain.sample(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda d: d.log_prob(path)))(chain).kernel.bias
    assert gradient.shape == (4, 2)
    assert np.all(gradient[1:] != 0.0)
    np.testing.assert_array_equal(gradient[0], 0.0)  # step 1 is not in x_1..x_4


@both_families
def test_vmap_over_data_is_a_batch_of_chains(name):
    process, keys = PROCESSES[name], jax.random.split(jax.random.key(7), 3)

    def draw(key, x0):
        path = process.forward(x0).sample(key)
        return path, process.forward(x0).log_prob(path)

    paths, log_probs = jax.jit(jax.vmap(draw))(keys, X0)
    np.testing.assert_allclose(log_probs, jax.jit(process.forward(X0).log_prob)(paths), rtol=1e-5)
    alone = jax.jit(draw)
    for key, x0, path in zip(keys, X0, paths, strict=True):
        np.testing.assert_allclose(alone(key, x0)[0], path, rtol=1e-5)


@pytest.mark.cases(2)
@pytest.mark.central
@both_families
@both_directions
def test_a_plate_draws_independent_trajectories(name, reverse):
    process = PROCESSES[name]
    initial = process.stationary() if reverse else process.step(1, X0[0])
    chain = MarkovChain(initial, process.step, first=1, last=4, reverse=reverse)

    def program():
        with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 5):
            numpyro.sample("path", chain)

    @jax.jit
    def draw():
        site = trace(seed(program, 0)).get_trace()["path"]
        return site["value"], site["fn"].log_prob(site["value"])

    path, log_prob = draw()
    assert path.shape == (2, 5, 4, 2)
    assert log_prob.shape == (2, 5)
    assert np.unique(np.asarray(path).reshape(10, -1), axis=0).shape[0] > 5


def test_pathwise_gradients_exist_for_real_states_alone():
    gaussian = PROCESSES["gaussian"]
    end = jax.grad(lambda x: gaussian.forward(x).rsample(jax.random.key(0))[-1].sum())(X0[0])
    np.testing.assert_allclose(end, np.sqrt(np.prod(1.0 - np.array(BETAS))), rtol=1e-5)
    bits = PROCESSES["bernoulli"].forward(X0)
    assert not bits.has_rsample
    with pytest.raises(NotImplementedError, match="no pathwise gradient"):
        bits.rsample(jax.random.key(0))


def test_a_chain_of_one_state_is_its_initial_law():
    chain = PROCESSES["gaussian"].stationary()
    single = MarkovChain(chain, PROCESSES["gaussian"].step, first=4, last=4, reverse=True)
    path = single.sample(jax.random.key(0), (3,))
    assert path.shape == (3, 1, 2)
    np.testing.assert_allclose(single.log_prob(path), chain.log_prob(path[:, 0]), rtol=1e-6)
    np.testing.assert_array_equal(single.sample_end(jax.random.key(0), (3,)), path[:, 0])


@given(st.integers(1, 4), st.sampled_from([(), (2,), (2, 2)]), st.sampled_from([(), (3,)]))
def test_forward_chains_of_any_shape(num_steps, shape, batch):
    process = models.GaussianDiffusion(shape, log_snr_linear(num_steps))
    chain = process.forward(jnp.zeros((*batch, *shape)))
    path = jax.eval_shape(lambda: chain.sample(jax.random.key(0), (2,)))
    assert path.shape == (2, *batch, num_steps, *shape)
    assert jax.eval_shape(chain.log_prob, path).shape == (2, *batch)


@both_directions
def test_trajectories_of_bits_have_the_law_their_log_prob_says(reverse, significance):
    def chain(betas):
        process = models.BernoulliDiffusion((), FixedSchedule(betas), rate=0.3)
        initial = process.stationary() if reverse else process.step(1, jnp.array(1.0))
        return MarkovChain(initial, process.step, first=1, last=4, reverse=reverse)

    betas = np.array([0.1, 0.3, 0.2, 0.5])
    law = np.exp(np.asarray(chain(betas).log_prob(exact.states(4)), np.float64))
    for factor, is_right in ((1.0, True), (1.1, False)):
        draws = np.asarray(chain(factor * betas).sample(jax.random.key(8), (60_000,)))
        counts = np.bincount(draws @ 2 ** np.arange(4)[::-1], minlength=16)
        assert (chi_square(counts, law) > significance) == is_right


@pytest.mark.cases(1)
@both_directions
def test_trajectories_of_reals_have_the_law_their_log_prob_says(reverse, significance):
    """Twice the excess of -log p over its least value is chi-square with one degree of freedom per state."""

    def chain(betas):
        process = models.GaussianDiffusion((), FixedSchedule(betas))
        initial = process.stationary() if reverse else process.step(1, jnp.array(2.0))
        return MarkovChain(initial, process.step, first=1, last=4, reverse=reverse)

    betas = np.array([0.1, 0.3, 0.2, 0.5])
    right = chain(betas)
    mode = np.array([2.0 * np.sqrt(np.prod(1.0 - betas[:t])) for t in (1, 2, 3, 4)]) if not reverse else np.zeros(4)
    for factor, is_right in ((1.0, True), (1.1, False)):
        draws = chain(factor * betas).sample(jax.random.key(9), (60_000,))
        excess = 2.0 * (right.log_prob(mode) - right.log_prob(draws))
        assert (stats.kstest(excess, stats.chi2(4).cdf).pvalue > significance) == is_right


def compiled_at(name: str, num_steps: int):
    """A program over T steps and its argument: log_prob in parallel or in chunks, sampling by a scan."""
    event, width = (20,), 32

    def network(output):
        return models.networks.ResidualMLP(event, output, num_steps, width=width, depth=1, key=jax.random.key(0))

    if name == "bernoulli":
        process = models.BernoulliDiffusion(event, erasing(num_steps), rate=0.2)
        diffusion = models.Diffusion(process, models.BitPrediction(network(event)), first_step="learned")
    else:
        process = models.GaussianDiffusion(event, log_snr_linear(num_steps))
        diffusion = models.Diffusion(process, models.DriftVariance(network((2, *event))))
    if name == "sample":
        return jax.jit(lambda key: diffusion.sample(key, (3,))), jax.random.key(0)
    chain = MarkovChain(
        process.stationary(),
        diffusion.kernel,
        first=1,
        last=num_steps,
        reverse=True,
        chunk_size=16 if name == "bernoulli" else None,
    )
    return jax.jit(lambda path: chain.log_prob(path)), jnp.zeros((num_steps, *event))


def equations(jaxpr) -> int:
    """Number of equations, those of inner programs included."""
    inner = (sub for e in jaxpr.eqns for p in e.params.values() for sub in jax.tree.leaves(p, is_leaf=_is_jaxpr))
    return len(jaxpr.eqns) + sum(equations(getattr(sub, "jaxpr", sub)) for sub in inner if _is_jaxpr(sub))


def _is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "sample"])
def test_the_program_does_not_grow_with_the_number_of_steps(name):
    sizes, seconds = {}, {40: [], 4000: []}
    for num_steps in seconds:
        program, argument = compiled_at(name, num_steps)
        sizes[num_steps] = equations(jax.make_jaxpr(program)(argument).jaxpr)
    assert sizes[40] == sizes[4000] > 10
    for attempt in range(10):  # the best of three, and of a few more where another process is in the way
        if attempt >= 3 and min(seconds[4000]) <= 1.2 * min(seconds[40]):
            break
        for num_steps, taken in seconds.items():
            program, argument = compiled_at(name, num_steps)
            start = time.process_time()
            program.lower(argument).compile()
            taken.append(time.process_time() - start)
    assert min(seconds[4000]) <= 1.2 * min(seconds[40])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"first": 3, "last": 2}, "last must be at least first; got times 3..2."),
        ({"first": 1, "last": 2, "chunk_size": 0}, "chunk_size must be an integer of at least 1; got 0."),
    ],
)
def test_bad_times_are_named(kwargs, message):
    process = PROCESSES["gaussian"]
    with pytest.raises(ValueError, match=re.escape(message)):
        MarkovChain(process.stationary(), process.step, **kwargs)


class Shift(eqx.Module):
    bias: jax.Array

    def __call__(self, t, x):
        return dist.Normal(0.5 * x + self.bias, 1.0).to_event(1)


def test_chains_that_vmap_returns_are_a_batch():
    """Three forward chains of data, and three reverse chains of kernels with arrays of their own."""
    key, process = jax.random.key(0), PROCESSES["gaussian"]
    data, biases = jnp.array([[1.0, 0.0], [-2.0, 0.5], [0.3, 3.0]]), jnp.array([[0.5, 0.0], [0.0, -1.0], [2.0, 0.1]])
    forward, plain = jax.jit(jax.vmap(process.forward))(data), process.forward(data)
    assert forward.batch_shape == (3,) and forward.event_shape == (4, 2)
    path = plain.sample(key, (5,))
    np.testing.assert_allclose(forward.log_prob(path), plain.log_prob(path), rtol=1e-5)
    np.testing.assert_allclose(forward.log_prob_steps(path), plain.log_prob_steps(path), rtol=1e-5, atol=1e-6)
    assert forward.sample(key, (5,)).shape == (5, 3, 4, 2) and forward.sample_end(key).shape == (3, 2)
    assert forward.expand((2, 3)).sample(key, (5,)).shape == (5, 2, 3, 4, 2)

    def reverse(bias):
        return MarkovChain(process.stationary(), Shift(bias), first=1, last=4, reverse=True)

    chains, one_by_one = jax.vmap(reverse)(biases), jax.jit(lambda bias, one: reverse(bias).log_prob(one))
    np.testing.assert_allclose(chains.log_prob(path[0]), list(map(one_by_one, biases, path[0])))


def test_the_divergence_of_chains_is_that_of_their_starts_where_they_share_a_kernel():
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4))
    first, second = jnp.array([[0.3, -0.2], [1.0, 2.0]]), jnp.array([-1.0, 0.4])
    q, p = process.forward(first), process.forward(second)
    expected = dist.kl_divergence(process.step(1, first), process.step(1, second))
    np.testing.assert_allclose(dist.kl_divergence(q, p), expected, rtol=1e-6)
    draws = q.sample(jax.random.key(0), (4000,))
    assert_mean(q.log_prob(draws) - p.log_prob(draws), expected)
    np.testing.assert_allclose(dist.kl_divergence(q, q), 0.0, atol=1e-6)
    again = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4)).forward(second)
    np.testing.assert_allclose(dist.kl_divergence(q, again), expected, rtol=1e-6)
    mapped = jax.vmap(lambda x: dist.kl_divergence(process.forward(x), p))(first)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def test_a_divergence_without_a_closed_form_is_refused_by_name():
    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4))
    other = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(4, end=-5.0))
    learned = models.GaussianDiffusion((2,), models.schedules.LearnedSchedule(models.schedules.log_snr_linear(4)))
    moved = eqx.tree_at(lambda d: d.schedule.logits, learned, learned.schedule.logits + 0.1)
    diffusion, x = noise_of(process), jnp.zeros(2)
    forward, reverse = process.forward(x), diffusion.reverse_chain()
    for q, p, message in (
        (
            forward,
            other.forward(x),
            r"MarkovChain\(forward.*only where they have the same kernel.*inference.bound_terms",
        ),
        (learned.forward(x), moved.forward(x), "only where they have the same kernel"),
        (forward, reverse, "their times or directions differ"),
        (
            diffusion.prior(),
            diffusion.prior(),
            "the divergence of a DiffusionPrior from a DiffusionPrior has no closed form",
        ),
        (diffusion.flow(), reverse, "the divergence of a DiffusionFlow from a MarkovChain has no closed form"),
        (forward, dist.Normal(0.0, 1.0), "MarkovChain, Normal"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            dist.kl_divergence(q, p)
    assert dist.kl_divergence(learned.forward(x), learned.forward(x)) == 0.0
