"""Binary heartbeat: a binomial diffusion whose truth is known, log2(1/5) = -2.3219 bits.

python examples/heartbeat.py [number of training steps]
"""

import sys

import equinox as eqx
import jax
import numpy as np

from nedm_ppl import data, inference, models


def main(num_training_steps: int = 3000, num_steps: int = 500) -> inference.Estimate:
    process = models.BernoulliDiffusion((20,), models.schedules.erasing(num_steps), rate=0.2)
    network = models.networks.ResidualMLP((20,), (20,), num_steps, key=jax.random.key(0))
    diffusion = models.Diffusion(process, models.BitPrediction(network))

    fitted = inference.fit(jax.random.key(1), diffusion, data.heartbeat(0, 10_000), num_updates=num_training_steps)
    terms = inference.evaluate(jax.random.key(2), fitted.diffusion, data.heartbeat(1, 500))
    bound = inference.Estimate.of(terms.total) * (1.0 / np.log(2.0))
    print(f"bound K {bound} bits per sequence, truth {data.HEARTBEAT_LOG_PROB / np.log(2.0):.4f}")

    for sequence in eqx.filter_jit(lambda d, key: d.sample(key, (5,)))(fitted.diffusion, jax.random.key(3)):
        print("".join(".|"[int(bit)] for bit in sequence))
    return bound


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
