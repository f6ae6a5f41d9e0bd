"""How experiments with cheap networks are trained."""

from typing import Any

import optax

__all__ = ["training_options"]


def training_options(num_updates: int, learning_rate: float = 3e-3) -> dict[str, Any]:
    """Options of `inference.fit` that suit data in the plane and other small data: batches of 512, Adam with clipped gradients.

    The learning rate rises over the first hundred updates, over half of them where there are fewer than two hundred, and falls to
    0 along a cosine.

    Args:
        num_updates: Optimizer updates, as `fit` is told; the schedule is as long.
        learning_rate: The largest rate.

    Returns:
        `batch_size`, `optimizer` and `log_every`.

    Examples:
        >>> import jax
        >>> from nedm_ppl import data, experiments, inference, models
        >>> process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(10))
        >>> network = models.networks.ResidualMLP((2,), (2, 2), 10, width=8, depth=1, key=jax.random.key(0))
        >>> diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
        >>> options = experiments.training_options(20)
        >>> x0 = data.swiss_roll(0, 1000)
        >>> fitted = inference.fit(jax.random.key(1), diffusion, x0, num_updates=20, **options, progress=False)
        >>> fitted.num_updates
        20
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, num_updates // 2), max(num_updates, 2))
    return {
        "batch_size": 512,
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        "log_every": 100,
    }
