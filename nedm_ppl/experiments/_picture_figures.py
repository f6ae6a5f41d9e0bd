"""Pictures of the image experiments: samples beside data, and Figures 3, 5 and D.1 of the paper."""

from itertools import count
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nedm_ppl import models, restoration
from nedm_ppl.experiments._figures import training_figures
from nedm_ppl.experiments._picture_numbers import nearest
from nedm_ppl.experiments._spec import Result
from nedm_ppl.files import write_figure

__all__ = ["denoising", "figures", "inpainting", "network", "of_size"]

NUM_DRAWN, NUM_DENOISED, NUM_NEIGHBORS, NUM_INPAINTED = 36, 16, 10, 4


def figures(result: Result, key: Array, out: Path, samples: np.ndarray, statistics: dict[str, Any]) -> None:
    """Samples beside data and beside their nearest training images, spectra, the reverse chain, the loss, the bound by step."""
    from nedm_ppl import plotting

    diffusion, holdout = result.diffusion, result.split.holdout
    limits = (float(np.quantile(holdout, 0.001)), float(np.quantile(holdout, 0.999)))
    num_drawn = min(NUM_DRAWN, len(holdout), len(samples))
    shown, few = samples[:num_drawn], samples[:NUM_NEIGHBORS]
    write_figure(plotting.digits_figure(shown, holdout[:num_drawn], num_columns=6, limits=limits), out / "samples.png")
    found = nearest(few, result.split.train)[0]
    write_figure(plotting.neighbors_figure(few, found, limits=limits), out / "neighbors.png")
    spectra = {name: of["spectrum"] for name, of in statistics.items()}
    write_figure(plotting.spectrum_figure(spectra), out / "spectrum.png")
    if len(diffusion.event_shape) == 2:  # gray
        states = np.asarray(eqx.filter_jit(lambda d, k: d.sample_trajectory(k, (6,)))(diffusion, key))
        low, high = np.asarray(diffusion.to_chain(np.asarray(limits)))
        write_figure(plotting.reverse_chain_figure(states, limits=(float(low), float(high))), out / "reverse_chain.png")
    training_figures(result, out, num_coordinates=holdout[0].size, per="dimension")
    if isinstance(network_of(diffusion), models.networks.MultiScaleNetwork):
        network(network_of(diffusion), out / "network.png")


def denoising(result: Result, key: Array, file: Path, samples: np.ndarray) -> None:
    """Figure 3: holdout images, noise of the data's own variance on them, a draw by the paper's method, samples."""
    from nedm_ppl import plotting

    diffusion, x0 = result.diffusion, result.split.holdout[:NUM_DENOISED]
    noise = restoration.Noise(float(result.split.train.std()))
    y = noise.apply(np.random.default_rng(0), x0)
    draw = eqx.filter_jit(jax.vmap(lambda key, y: noise.paper(key, diffusion, y)))
    denoised = np.asarray(draw(jax.random.split(key, len(y)), jnp.asarray(y)))
    axes = plotting.denoising_figure(x0, y, denoised, samples[:NUM_DENOISED], limits=(float(x0.min()), float(x0.max())))
    axes[1].set_title("noise, SNR 1")
    write_figure(axes, file)


def inpainting(diffusion: models.Diffusion, key: Array, x0: np.ndarray, file: Path, **options: Any) -> Any:
    """Figure 5: the middle of images, half as high and wide, from what is round it; the paper's method and exact draws."""
    from nedm_ppl import plotting

    height, width = x0.shape[1:3]
    mask = np.zeros((height, width), bool)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = True
    found = restoration.restore(key, of_size(diffusion, x0.shape[1:]), x0, restoration.Hidden(mask), **options)
    of, shown = found.posterior, slice(NUM_INPAINTED)
    draws = of.get_samples()["x"][shown, :3]
    parts = (x0[shown], found.y[shown], draws, of.mean.mean[shown], of.sd[shown])
    write_figure(plotting.restoration_figure(*parts, paper=found.paper[shown]), file)
    return found


def network(of: models.networks.MultiScaleNetwork, file: Path) -> None:
    """Figure D.1, from the network's own sizes."""
    from nedm_ppl import plotting

    bent, flat = ("softplus", "tanh") if of.slope is None else (f"leaky ReLU {of.slope:g}",) * 2
    scales = ", ".join(str(2**s) for s in range(of.num_scales))
    rows = []
    if of.layers:
        sides = f"scales {scales}"
        rows.append(
            [f"convolution\n{layer.convolutions[0].weight.shape[-1]} channels\n{sides}\n{bent}" for layer in of.layers]
        )
    if of.dense:
        rows.append([f"dense\n{linear.out_features} units\n{flat}" for linear in of.dense])
    numbers = count(1)
    after = [f"1 x 1 ({next(numbers)})\n{linear.out_features} channels\n{flat}" for linear in of.upper]
    after.append(f"readout\n{of.num_bumps} bumps\nin time")
    times = jnp.arange(1, of.num_steps + 1)
    bumps = jax.vmap(lambda t: models.networks.time_bumps(t, of.num_steps, of.num_bumps, of.bump_width))(times)
    write_figure(plotting.network_figure(rows, after, np.asarray(bumps)), file)


def of_size(diffusion: models.Diffusion, shape: tuple[int, ...]) -> models.Diffusion:
    """The same model of images of another size, where its network is convolutional throughout."""
    process = models.GaussianDiffusion(shape, diffusion.process.schedule)
    return models.Diffusion(process, diffusion.reverse, first_step=diffusion.first_step, units=diffusion.units)


def network_of(diffusion: models.Diffusion) -> Any:
    return getattr(diffusion.reverse, "network", None)
