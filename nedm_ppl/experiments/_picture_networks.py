"""The networks of the image experiments, and what they predict: a U-Net, or the paper's multi-scale convolutions (Appendix D.2)."""

from typing import Any

from jax import Array

from nedm_ppl import models

__all__ = ["BOTH", "CONVOLUTIONS", "DENSE", "FULL_OF_COLORS", "REVERSES", "Pathways"]

# Sizes of the paper's network for two cores and at full size: a dense pathway alone for MNIST, both pathways for CIFAR-10, and
# convolutions alone for dead leaves and bark.
Pathways = tuple[dict[str, int], dict[str, int]]
FULL_OF_COLORS = {
    "depth": 6,
    "width": 100,
    "dense_width": 1000,
    "dense_outputs": 5,
    "upper_depth": 4,
    "upper_width": 100,
}
CONVOLUTIONS: Pathways = ({}, {})
DENSE: Pathways = ({"depth": 0, "dense_width": 500},) * 2
BOTH: Pathways = ({"dense_width": 500}, FULL_OF_COLORS)


def unet(shape: tuple[int, ...], num_steps: int, key: Array, **sizes: Any) -> models.VelocityPrediction:
    """A velocity by a U-Net."""
    network = models.networks.UNet(shape, (2, *shape), num_steps, multipliers=scales(shape), key=key, **sizes)
    return models.VelocityPrediction(network)


def paper(shape: tuple[int, ...], num_steps: int, key: Array, **sizes: Any) -> models.DriftVariance:
    """The paper's drift and variance by its own network."""
    network = models.networks.MultiScaleNetwork(
        shape, (2, *shape), num_steps, num_scales=len(scales(shape)), key=key, **sizes
    )
    return models.DriftVariance(network)


def scales(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Channels at every scale, in widths: three scales where the image halves twice, else fewer."""
    halvings = sum(shape[0] % side == 0 and shape[1] % side == 0 for side in (2, 4))
    return (1, 2, 2)[: 1 + halvings]


REVERSES = {"unet": unet, "paper": paper}
