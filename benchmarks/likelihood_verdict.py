"""Do data that are not flagged cover? Flags and coverage of log likelihoods by good and poor kernels, against exact log p.

    python benchmarks/likelihood_verdict.py

Thirteen kernels: bits enumerated at four strengths of random couplings, and linear Gaussian chains whose exact reversal was given
wrong means or variances. A log likelihood of 8,192 trajectories for each of 200 data is cut into repeats of S.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import exact
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nedm_ppl import models
from nedm_ppl.inference import LogLikelihood, marginal_log_likelihood
from nedm_ppl.inference.likelihood import k_threshold
from nedm_ppl.models.chain.schedules import FixedSchedule, log_snr_linear

POOL, REPEATS, NUM_DATA = 8192, 32, 200
# Dimension, steps, factor of the kernel's mean, factor of its variance.
LINEAR = [(2, 10, 0.97, 1.0), (2, 6, 1.0, 0.6), (2, 6, 1.0, 1.8), (20, 10, 1.0, 1.3), (20, 6, 0.9, 1.0)]
LINEAR += [(8, 10, 1.0, 0.6), (8, 6, 0.7, 1.2), (20, 6, 1.0, 0.5), (20, 4, 1.0, 2.5)]


def bits(strength: float):
    process = models.BernoulliDiffusion((8,), FixedSchedule((0.2, 0.3, 0.4, 0.6, 0.8)), rate=0.4)
    weight = strength * jax.random.normal(jax.random.key(7), (8, 8))
    reverse = models.BitPrediction(lambda t, x: weight @ (2.0 * x - 1.0))
    diffusion = models.Diffusion(process, reverse, first_step="learned")
    return diffusion, exact.states(8)[:NUM_DATA], exact.bits_log_prob(diffusion)[:NUM_DATA]


def linear(rng, dim: int, num_steps: int, mean: float, var: float):
    process = models.GaussianDiffusion((dim,), log_snr_linear(num_steps))
    weight, bias, cov = exact.linear_reverse(np.zeros(dim), np.eye(dim), process.schedule.betas)
    arrays = mean * weight, bias, var * cov
    x0 = rng.standard_normal((NUM_DATA, dim))
    diffusion = models.Diffusion(process, exact.Linear(*arrays), first_step="learned")
    return diffusion, x0, stats.multivariate_normal(*exact.linear_data_law(*arrays)).logpdf(x0)


def main() -> None:
    rng = np.random.default_rng(0)
    cases = {f"bits {strength}": bits(strength) for strength in (0.2, 0.6, 1.0, 2.0)}
    cases |= {f"linear {arguments}": linear(rng, *arguments) for arguments in LINEAR}
    found: dict = {}
    for name, (diffusion, x0, truth) in cases.items():
        log_weights = marginal_log_likelihood(
            jax.random.key(3), diffusion, jnp.asarray(x0), num_trajectories=POOL
        ).log_weights
        for num in (16, 64, 256):
            repeats = min(POOL // num, REPEATS)
            cut = [log_weights[i * num : (i + 1) * num] for i in range(repeats)]
            result = LogLikelihood.from_log_weights(np.concatenate(cut, axis=1))
            covered = np.abs(result.log_prob - np.tile(truth, repeats)) <= 1.96 * result.se
            parts = covered, ~(result.k_hat <= k_threshold(num)), result.flagged
            found.setdefault(("all", num), []).append(parts)
            report(name, num, log_weights.std(axis=0).mean(), *parts)
    for (name, num), parts in found.items():
        report(name, num, np.nan, *map(np.concatenate, zip(*parts, strict=True)))


def report(name, num, spread, covered, by_k, flagged) -> None:
    def cover(chosen) -> str:
        return f"{covered[chosen].mean():.2f}" if chosen.any() else "   -"

    rules = (
        f"{which}: flagged {flags.mean():.3f}, cover {cover(~flags)} / {cover(flags)}"
        for which, flags in (("k-hat", by_k), ("verdict", flagged))
    )
    print(f"{name:26} sd log w {spread:5.2f}, S = {num:3}: cover {covered.mean():.2f};", "; ".join(rules), flush=True)


if __name__ == "__main__":
    main()
