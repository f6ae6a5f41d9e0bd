"""Particle Gibbs against closed forms: joint posteriors of programs with diffusion priors and other latents."""

import os
import subprocess
import sys
import warnings
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import HMC, MCMC, NUTS, DiscreteGibbs, Gibbs
from numpyro.infer.gibbs import with_conditioning

from nedm_ppl import inference, models
from nedm_ppl.inference import PathGibbs
from tests.conftest import STANDARD_ERRORS, assert_mean
from tests.exact import bits_log_prob, states
from tests.zoo import diagonal, gaussian

DIM, STEPS, NUM_SAMPLES = 2, 5, 1200
PROCESS = models.GaussianDiffusion((DIM,), models.schedules.log_snr_linear(STEPS, start=3.0, end=-6.0))


(FIRST, FIRST_LAW), (SECOND, SECOND_LAW) = (
    (diagonal(PROCESS, *arrays), law) for arrays, law in (gaussian(seed, PROCESS) for seed in (0, 1))
)


def run(kernel, *args, num_samples=100, num_warmup=50, num_chains=1, key=0, chain_method="sequential", **options):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    with warnings.catch_warnings():  # numpyro donates buffers that mapped chains cannot use
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        mcmc.run(jax.random.key(key), *args, **options)
    return mcmc


def compiled_vmap(chain):
    """Chains side by side as by `jax.vmap`, their start compiled too."""
    return jax.jit(jax.vmap(chain))


# --- the whole, in closed form ------------------------------------------------------------------------------------------


def hierarchy(y):
    """Two diffusions and two ordinary latents, all jointly Gaussian with the data."""
    a = numpyro.sample("a", FIRST.prior())
    offset = numpyro.sample("offset", dist.Normal(0.0, 0.5))
    b = numpyro.sample("b", SECOND.prior())
    z = numpyro.sample("z", dist.Normal(a[0] - b[1], 0.7))
    with numpyro.plate("rows", 2):
        numpyro.sample("y", dist.Normal(a + 0.5 * b + offset, 0.6), obs=y)
    numpyro.sample("w", dist.Normal(z, 0.5), obs=0.4)


def exact_hierarchy(y):
    """Mean and covariance of (a, offset, b, z) given y and w, by conditioning the joint Gaussian."""
    prior_mean = np.concatenate([FIRST_LAW[0], [0.0], SECOND_LAW[0], [0.0]])
    precision = np.zeros((6, 6))
    precision[:2, :2], precision[2, 2] = np.linalg.inv(FIRST_LAW[1]), 1.0 / 0.5**2
    precision[3:5, 3:5] = np.linalg.inv(SECOND_LAW[1])
    shift = precision @ prior_mean
    rows = np.array([[1, 0, 1, 0.5, 0, 0], [0, 1, 1, 0, 0.5, 0], [1, 0, 0, 0, -1, -1], [0, 0, 0, 0, 0, 1]], float)
    noise, value = np.array([0.6, 0.6, 0.7, 0.5]) ** -2, np.array([*y, 0.0, 0.4])
    precision = precision + rows.T @ (noise[:, None] * rows)
    cov = np.linalg.inv(precision)
    return cov @ (shift + rows.T @ (noise * value)), cov


@pytest.fixture(scope="module")
def posterior():
    y = jnp.array([1.2, -0.7])
    blocks = [(PathGibbs(hierarchy, num_particles=4), ["a"]), (PathGibbs(hierarchy, num_particles=4), ["b"])]
    kernel = Gibbs([*blocks, (NUTS(hierarchy), None)])
    fields = ("block_states.0.moved", "block_states.2.diverging")
    options = {"num_samples": NUM_SAMPLES, "num_warmup": 100, "num_chains": 2, "chain_method": compiled_vmap}
    return run(kernel, y, extra_fields=fields, **options), exact_hierarchy(y)


def test_every_moment_of_a_conjugate_hierarchy(posterior):
    mcmc, (mean, cov) = posterior
    samples = mcmc.get_samples(group_by_chain=True)
    names = ("a", "offset", "b", "z")
    draws = np.concatenate([np.asarray(samples[n], np.float64).reshape(2, NUM_SAMPLES, -1) for n in names], axis=-1)
    centered = draws - mean
    second = centered[..., :, None] * centered[..., None, :]
    upper = np.triu_indices(len(mean))
    moments = np.concatenate([draws, second[..., upper[0], upper[1]]], axis=-1)
    truth = np.concatenate([mean, cov[upper]])
    errors = moments.std(axis=(0, 1)) / np.sqrt(effective_sample_size(moments))
    assert np.all(np.abs(moments.mean(axis=(0, 1)) - truth) <= STANDARD_ERRORS * errors)
    assert np.all(gelman_rubin(draws) < 1.01)


def test_the_whole_path_moves_and_arviz_finds_the_divergences(posterior):
    mcmc, _ = posterior
    data = inference.mcmc_to_arviz(mcmc)
    assert data["sample_stats"]["diverging"].dims == ("chain", "draw") and not data["sample_stats"]["diverging"].any()
    assert data["posterior"]["a"].shape == (2, NUM_SAMPLES, DIM)
    assert np.all(data["sample_stats"]["moved"].mean(("chain", "draw")) > 0.9)


# --- Geweke: the joint of latents and data, the data drawn anew at every sweep -------------------------------------------


def joint_draws(program, draw_others, redraw, kernel, diffusion, placeholder, num, num_sweeps=3):
    """Latents and data after sweeps that start from exact draws of the joint: exact draws, independent over `num` lanes."""

    @jax.jit
    def lanes(key_state, keys):
        state = kernel.init(key_state, 0, None, (placeholder,), {})
        (other,) = kernel._sites[1]

        def refreshed(state, y):
            # Nobody else does when only the data change: every block, by hand.
            blocks, values = [], {}
            for (block, _), name, block_state in zip(kernel.blocks, ("x", other), state.block_states, strict=True):
                values[name] = block.get_constrain_fn((y,), {})(block_state.z)[name]
            for (block, _), name, block_state in zip(kernel.blocks, ("x", other), state.block_states, strict=True):
                given = with_conditioning({}, {n: v for n, v in values.items() if n != name})
                blocks.append(block.refresh(block_state, (y,), given))
            return state._replace(block_states=tuple(blocks)), values

        def lane(key):
            key_others, key_path, key_y, key_first, key_second = jax.random.split(key, 5)
            path = diffusion.sample_trajectory(key_path).astype(float)
            unconstrained, value = draw_others(key_others)
            first, second = state.block_states
            first = first._replace(z={"x": path[0]}, path=path[1:], rng_key=key_first)
            second = second._replace(z={other: unconstrained}, rng_key=key_second)
            y = redraw(key_y, path[0], value)

            def sweep(carry, i):
                now, y = carry
                now = kernel.sample(refreshed(now, y)[0], (y,), {})
                values = refreshed(now, y)[1]
                return (now, redraw(jax.random.fold_in(key_y, i), values["x"], values[other])), None

            start = state._replace(block_states=(first, second)), y
            (now, y), _ = jax.lax.scan(sweep, start, jnp.arange(num_sweeps))
            values = refreshed(now, y)[1]
            return values["x"], values[other], y

        return jax.vmap(lane)(keys)

    return lanes(jax.random.key(0), jax.random.split(jax.random.key(1), num))


@pytest.mark.long
def test_geweke_on_a_gaussian_chain():
    def program(y):
        offset = numpyro.sample("offset", dist.Normal(0.0, 0.5))
        x = numpyro.sample("x", FIRST.prior())
        numpyro.sample("y", dist.Normal(x + offset, 0.6).to_event(1), obs=y)

    def redraw(key, x, offset):
        return x + offset + 0.6 * jax.random.normal(key, (DIM,))

    def draw_offset(key):
        offset = 0.5 * jax.random.normal(key)
        return offset, offset

    kernel = Gibbs(
        [(PathGibbs(program, num_particles=3), ["x"]), (HMC(program, step_size=0.4, trajectory_length=1.0), None)]
    )
    x, offset, y = joint_draws(program, draw_offset, redraw, kernel, FIRST, jnp.zeros(DIM), 2000)
    mean, cov = FIRST_LAW
    joint = np.concatenate([x, np.asarray(offset)[:, None], y], axis=1)
    to_joint = np.concatenate([np.eye(3), np.eye(3)[:2] + np.eye(3)[2]])
    latent = np.zeros((3, 3))
    latent[:2, :2], latent[2, 2] = cov, 0.25
    spread = to_joint @ latent @ to_joint.T + np.diag([0, 0, 0, 0.36, 0.36])
    center = to_joint @ np.append(mean, 0.0)
    assert_mean(joint, center)
    centered = joint - center
    assert_mean(centered[:, :, None] * centered[:, None, :], spread)


@pytest.mark.long
def test_geweke_on_enumerated_bits():
    process = models.BernoulliDiffusion((2,), models.schedules.erasing(4), rate=0.4)
    coupling = 1.5 * jax.random.normal(jax.random.key(3), (2, 2))
    reverse = models.BitPrediction(lambda t, x: 2.0 * jnp.tanh((2.0 * x - 1.0) @ coupling))
    diffusion = models.Diffusion(process, reverse, first_step="learned")

    def program(y):
        flip = numpyro.sample("flip", dist.Beta(2.0, 5.0))
        x = numpyro.sample("x", diffusion.prior())
        numpyro.sample("y", dist.Bernoulli(jnp.where(x > 0.5, 1.0 - flip, flip)).to_event(1), obs=y)

    def redraw(key, x, flip):
        return jnp.where(jax.random.bernoulli(key, flip, (2,)), 1.0 - x, x)

    def draw_flip(key):
        flip = jax.random.beta(key, 2.0, 5.0)
        return jax.scipy.special.logit(flip), flip

    kernel = Gibbs(
        [(PathGibbs(program, num_particles=3), ["x"]), (HMC(program, step_size=0.3, trajectory_length=1.0), None)]
    )
    x, flip, y = joint_draws(program, draw_flip, redraw, kernel, diffusion, jnp.zeros(2), 2000)
    wrong = np.asarray(x != y, np.float64)
    assert_mean((np.asarray(x)[:, None] == states(2)).all(axis=2), np.exp(bits_log_prob(diffusion)))
    mean, square = 2.0 / 7.0, 6.0 / 56.0
    assert_mean(np.stack([flip, np.square(flip)], axis=1), [mean, square])
    assert_mean(wrong, mean)
    assert_mean(np.asarray(flip)[:, None] * wrong, square)


# --- plates -------------------------------------------------------------------------------------------------------------


def rows(y, total=None):
    """A draw each of three rows; what is said of their sum, if anything, ties them."""
    with numpyro.plate("rows", 3):
        x = numpyro.sample("x", FIRST.prior())
        numpyro.sample("y", dist.Normal(x, 0.7).to_event(1), obs=y)
    if total is not None:
        numpyro.sample("total", dist.Normal(jnp.sum(x[:, 0]), 0.5), obs=total)


def touching(y):
    """Rows that a plate calls independent and that are not."""
    with numpyro.plate("rows", 3):
        x = numpyro.sample("x", FIRST.prior())
        numpyro.sample("y", dist.Normal(x + jnp.roll(x, 1, axis=0), 0.7).to_event(1), obs=y)


@pytest.mark.cases(1)
@pytest.mark.parametrize("total", [None, 1.5], ids=["each", "together"])
def test_one_draw_per_row_of_a_plate(total):
    y = jnp.array([[1.0, 0.0], [-0.5, 0.5], [0.2, -1.0]])
    kernel = PathGibbs(rows, num_particles=4)
    mcmc = run(kernel, y, total, num_samples=2000, num_warmup=20)
    assert (kernel._found.num_members is None) == (total is not None)
    mean, cov = FIRST_LAW
    precision = np.kron(np.eye(3), np.linalg.inv(cov))
    shift = precision @ np.tile(mean, 3)
    precision, shift = precision + np.eye(6) / 0.49, shift + np.asarray(y, np.float64).ravel() / 0.49
    if total is not None:
        row = np.array([1.0, 0.0] * 3)
        precision, shift = precision + np.outer(row, row) / 0.25, shift + row * total / 0.25
    exact_cov = np.linalg.inv(precision)
    draws = np.asarray(mcmc.get_samples()["x"], np.float64).reshape(1, -1, 6) - exact_cov @ shift
    moments = np.concatenate([draws, (draws[..., :, None] * draws[..., None, :]).reshape(1, -1, 36)], axis=-1)
    errors = moments.std(axis=(0, 1)) / np.sqrt(effective_sample_size(moments))
    truth = np.concatenate([np.zeros(6), exact_cov.ravel()])
    assert np.all(np.abs(moments.mean(axis=(0, 1)) - truth) <= STANDARD_ERRORS * errors)


def test_a_plate_is_not_taken_at_its_word():
    kernel = PathGibbs(touching)
    kernel.init(jax.random.key(0), 0, None, (jnp.zeros((3, DIM)),), {})
    assert kernel._found.num_members is None


# --- chains, keys, conditions -------------------------------------------------------------------------------------------


def small(y):
    offset = numpyro.sample("offset", dist.Normal(0.0, 0.5))
    x = numpyro.sample("x", FIRST.prior())
    numpyro.sample("y", dist.Normal(x + offset, 0.6).to_event(1), obs=y)


def smallest():
    """The kernel by itself, and nothing that takes long to compile."""
    return PathGibbs(handlers.condition(small, {"offset": 0.3}), num_particles=4, along="constant")


Y = jnp.array([0.5, -0.5])


# Two devices must be asked for before JAX starts.
CHAINS = """
import jax, numpy as np
from numpyro.infer import MCMC
from tests.test_path_gibbs import Y, run, smallest
runs = {
    method: run(smallest(), Y, num_samples=5, num_warmup=3, num_chains=2, chain_method=method).get_samples(True)
    for method in ("sequential", "parallel", jax.vmap)
}
alone = MCMC(smallest(), num_warmup=3, num_samples=5, progress_bar=False)
alone.run(jax.random.split(jax.random.key(0), 2)[1], Y)
for name, values in runs["sequential"].items():
    np.testing.assert_array_equal(alone.get_samples()[name], values[1])
    for other in ("parallel", jax.vmap):
        np.testing.assert_allclose(runs[other][name], values, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.long
def test_a_chain_is_that_of_its_own_key_however_chains_are_run():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run([sys.executable, "-c", CHAINS], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_data_sets_may_be_vmapped():
    """What a program is to its site does not hang on values: traced data give what one data set gives, in plates and with bits."""
    process = models.BernoulliDiffusion((2,), models.schedules.erasing(3))
    bits = models.Diffusion(process, models.BitPrediction(lambda t, x: 2.0 * x - 1.0), first_step="learned")

    def flipped(y):
        x = numpyro.sample("x", bits.prior())
        numpyro.sample("y", dist.Bernoulli(jnp.where(x > 0.5, 0.8, 0.2)).to_event(1), obs=y)

    keys = jax.random.split(jax.random.key(0), 2)
    for program, y in ((rows, jnp.arange(12.0).reshape(2, 3, 2) / 6.0 - 1.0), (flipped, jnp.eye(2))):
        kernel = PathGibbs(program, num_particles=2)
        first = jax.jit(jax.vmap(lambda key, y, kernel=kernel: kernel.init(key, 0, None, (y,), {})))(keys, y)
        among_others = kernel._found
        alone = kernel.init(keys[1], 0, None, (y[1],), {})
        assert kernel._found == among_others
        jax.tree.map(lambda one, all_: np.testing.assert_allclose(one, all_[1], rtol=1e-5), alone[:2], first[:2])


@pytest.mark.central
def test_equal_keys_give_equal_chains():
    kernel = smallest()
    first, second = (kernel.init(jax.random.key(0), 0, None, (Y,), {}) for _ in range(2))
    sweep = jax.jit(lambda state: kernel.sample(state, (Y,), {}))
    once = sweep(first)
    jax.tree.map(np.testing.assert_array_equal, once[:3], sweep(second)[:3])
    assert not np.array_equal(once.path, sweep(once).path)


@pytest.mark.central
def test_a_site_that_is_conditioned_needs_no_block():
    given = handlers.condition(hierarchy, {"b": jnp.array([0.5, -0.5])})
    kernel = Gibbs([(PathGibbs(given, num_particles=4), ["a"]), (NUTS(given), None)])
    state = kernel.init(jax.random.key(0), 5, None, (Y,), {})
    assert set(state.z) == {"a", "offset", "z"}
    assert "of the path moved" in kernel.get_diagnostics_str(state)


@pytest.mark.cases(1)
@pytest.mark.parametrize("rows", [None, 3])
def test_moved_says_which_times_the_last_sweep_changed(rows):
    """Of one trajectory yes or no at every time, of a plate's the share of its rows."""
    process = models.BernoulliDiffusion((2,), models.schedules.erasing(3))
    bits = models.Diffusion(process, models.BitPrediction(lambda t, x: 2.0 * x - 1.0), first_step="learned")

    def program():
        with numpyro.plate("rows", rows) if rows else nullcontext():
            x = numpyro.sample("x", bits.prior())
            numpyro.sample("y", dist.Bernoulli(jnp.where(x > 0.5, 0.8, 0.2)).to_event(1), obs=jnp.ones_like(x))

    kernel, seen = PathGibbs(program, num_particles=2), []
    state = kernel.init(jax.random.key(0), 0, None, (), {})
    step = jax.jit(lambda state: kernel.sample(state, (), {}))
    for _ in range(20):
        before, state = state, step(state)
        paths = (np.concatenate([of.z["x"][None], of.path]).reshape(4, rows or 1, 2) for of in (before, state))
        changed = np.not_equal(*paths).any(axis=2).mean(axis=1)
        np.testing.assert_allclose(state.moved, changed, rtol=1e-6)
        seen.append(changed)
    assert any(0.0 < np.mean(changed) < 1.0 for changed in seen)


# --- what is refused ----------------------------------------------------------------------------------------------------


def upstream(y):
    weight = numpyro.sample("weight", dist.Normal(1.0, 0.1))
    first = FIRST.reverse
    numpyro.sample("x", diagonal(PROCESS, first.weight * weight, first.bias, first.cov).prior())


def which(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    bias = jnp.stack([FIRST.reverse.bias, SECOND.reverse.bias])[k]
    numpyro.sample("x", diagonal(PROCESS, FIRST.reverse.weight, bias, FIRST.reverse.cov).prior())


def subsampled(y):
    with numpyro.plate("rows", 4, subsample_size=2):
        numpyro.sample("x", FIRST.prior())


def impossible(y):
    x = numpyro.sample("x", FIRST.prior())
    numpyro.sample("y", dist.Delta(x, event_dim=1), obs=y + 100.0)


def chained(y):
    x = numpyro.sample("x", FIRST.prior())
    first = FIRST.reverse
    numpyro.sample("b", diagonal(PROCESS, first.weight, first.bias + x, first.cov).prior(), obs=y)


def enumerated(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    numpyro.sample("y", dist.Normal(numpyro.sample("x", FIRST.prior()) + k, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Gibbs([(PathGibbs(small, along="forward"), ["x"]), (NUTS(small), None)]),
            "for known coordinates alone",
        ),
        (lambda: PathGibbs(small, num_particles=1), "num_particles must be at least 2"),
        (lambda: Gibbs([(PathGibbs(small), ["offset"]), (NUTS(small), None)]), "program draws 'offset' from a Normal"),
        (lambda: Gibbs([(PathGibbs(small), ["x", "offset"])]), "samples one site, and .* are left to it"),
        (lambda: PathGibbs(hierarchy), "samples one site"),
        (
            lambda: Gibbs([(PathGibbs(upstream), ["x"]), (NUTS(upstream), None)]),
            "depends on weight.*ParticleMetropolis",
        ),
        (lambda: Gibbs([(PathGibbs(which), ["x"]), (DiscreteGibbs(which), None)]), "depends on k"),
        (lambda: PathGibbs(subsampled), "plate 'rows' draws 2 of 4"),
        (lambda: PathGibbs(impossible), "contradict one another"),
        (lambda: PathGibbs(chained), "must not depend on site 'x'"),
        (lambda: PathGibbs(enumerated), "enumerated sites; got k"),
        (lambda: PathGibbs(handlers.condition(small, {"x": Y, "offset": 0.0})), "observed or conditioned"),
        (
            lambda: PathGibbs(handlers.scale(handlers.condition(small, {"offset": 0.0}), scale=2.0)),
            "must not be scaled",
        ),
    ],
)
def test_bad_input_gets_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), 0, None, (Y,), {})


def test_an_older_numpyro_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro.infer.gibbs", None)
    with pytest.raises(ImportError, match=f"needs numpyro 0.22 or newer.*got {numpyro.__version__}"):
        PathGibbs(small)
