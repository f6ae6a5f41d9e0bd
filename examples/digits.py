"""Handwritten digits: gray levels with exact evidence, and honest bits per pixel.

    python examples/digits.py [number of training steps]

`make demo` runs the full experiment; this is its core.
"""

import sys

import jax
import numpy as np
import optax

from nedm_ppl import data, inference, models


def main(num_training_steps: int = 1500, num_steps: int = 500) -> inference.Estimate:
    digits = data.digits()
    levels = digits.levels

    process = models.GaussianDiffusion((8, 8), models.schedules.log_snr_logistic(num_steps))
    network = models.networks.PatchTransformer(
        (8, 8, len(levels) + 1), (8, 8, len(levels)), num_steps, key=jax.random.key(0)
    )
    kernel = models.LevelPrediction(network, levels, base=models.log_frequencies(digits.train, levels))
    diffusion = models.Diffusion(process, kernel, first_step="quantized")

    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(100, num_training_steps // 2), num_training_steps)
    fitted = inference.fit(
        jax.random.key(1),
        diffusion,
        digits.train,
        num_updates=num_training_steps,
        batch_size=64,
        optimizer=optax.chain(optax.clip_by_global_norm(64.0), optax.adam(rate)),
        objective=inference.TrajectoryBound(first_step_share=0.125),
        validation=digits.validation,
        evaluate_every=500,
    )
    terms = inference.evaluate(jax.random.key(2), fitted.diffusion, digits.holdout, num_times=32)
    bits = inference.Estimate.of(terms.total) * (-1.0 / (64 * np.log(2.0)))
    print(f"{bits} discrete bits per pixel on the holdout (lower is better)")
    return bits


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
