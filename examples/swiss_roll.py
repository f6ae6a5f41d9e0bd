"""Swiss roll: train a Gaussian diffusion, and draw the paper's Figure 1 (results/swiss-roll/figure1.png).

The short way to the same is `nedm run swiss-roll`; this is what it does, in plain NumPyro.

    python examples/swiss_roll.py [number of training steps]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI
from tqdm import tqdm

from nedm_ppl import data, inference, models


def main(num_training_steps: int = 3000, num_data: int = 20_000) -> inference.Estimate:
    train, holdout = data.swiss_roll(0, num_data), data.swiss_roll(1, num_data)

    process = models.GaussianDiffusion((2,), models.schedules.log_snr_linear(40))
    network = models.networks.ResidualMLP((2,), (2, 2), 40, key=jax.random.key(0))
    diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_training_steps))
    svi = SVI(diffusion.model, diffusion.guide, optimizer, inference.TrajectoryBound())
    state = svi.init(jax.random.key(1), jnp.asarray(train[:256]))
    update = jax.jit(svi.update)
    rng = np.random.default_rng(0)
    for _ in tqdm(range(num_training_steps)):
        state, _ = update(state, jnp.asarray(rng.choice(train, 256)))
    trained = inference.with_parameters(diffusion, svi.get_params(state))

    bound = inference.Estimate.of(inference.evaluate(jax.random.key(2), trained, holdout).total) * (1.0 / np.log(2.0))
    truth = inference.Estimate.of(data.swiss_roll_log_density(holdout)) * (1.0 / np.log(2.0))
    print(f"bound K {bound} bits, truth {truth} bits")
    return bound


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
