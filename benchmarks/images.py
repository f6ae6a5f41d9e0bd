"""Image models against what is known of the images otherwise, and the cost of a step.

    python -m benchmarks.images leaves MODEL --data FILE     K by whole test images, whose number is what its error is over
    python -m benchmarks.images photographs MODEL            K of held-out photographs; a Gaussian, PNG and WebP beside it
    python -m benchmarks.images texture MODEL                coverage of inpainted middles over 50 places
    python -m benchmarks.images step                         a training step of the paper's network in PyTorch beside ours
    python -m benchmarks.images memory                       working memory by the number of steps T

MODEL is the folder `model` of a `nedm run`. `step` needs PyTorch, which nothing else here does.
"""

import argparse
import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from tqdm import tqdm

from nedm_ppl import data, inference, models
from nedm_ppl.experiments._picture_data import SIZE, larger_places, of_photographs
from nedm_ppl.experiments._picture_data import leaves as leaves_of
from nedm_ppl.experiments._picture_figures import of_size
from nedm_ppl.experiments._picture_networks import FULL_OF_COLORS
from nedm_ppl.inference import Estimate

BITS = np.log(2.0)


def leaves(model: Path, file: Path, num_times: int) -> dict[str, Any]:
    """K of 32 x 32 crops in bits per pixel; the error is over whole images."""
    diffusion, split = models.Diffusion.load(model), leaves_of(file, 0)
    terms = inference.evaluate(jax.random.key(0), diffusion, split.holdout, num_times=num_times, progress=True)
    each = np.asarray(terms.total, np.float64) / (BITS * SIZE**2)
    return {"K": str(Estimate.of(each.reshape(20, -1).mean(axis=1)))}


def photographs(model: Path, num_times: int) -> dict[str, Any]:
    """Bits per dimension of the two held-out photographs' crops, apart and together."""
    diffusion, split = models.Diffusion.load(model), of_photographs(None, 0)
    terms = inference.evaluate(jax.random.key(0), diffusion, split.holdout, num_times=num_times, progress=True)
    ours = -np.asarray(terms.total, np.float64) / (BITS * split.holdout[0].size)
    gaussian = gaussian_bits(split.train, split.validation, split.holdout)
    counts = {name: len(data.crops(image, SIZE)) for name, image in data.photographs()[1].items()}
    rows, start = {}, 0
    for name, count in (*counts.items(), ("both", len(split.holdout))):
        part = slice(0, None) if name == "both" else slice(start, start + count)
        start += count
        crops = split.holdout[part].astype(np.uint8)
        rows[name] = {
            "crops": len(crops),
            "K": str(Estimate.of(ours[part])),
            "Gaussian": str(Estimate.of(gaussian[part])),
            "ahead of it": str(Estimate.of(gaussian[part] - ours[part])),
            "PNG": compressed(crops, "PNG", optimize=True),
            "WebP": compressed(crops, "WEBP", lossless=True, quality=100, method=6),
        }
    return rows


def gaussian_bits(train: np.ndarray, validation: np.ndarray, holdout: np.ndarray) -> np.ndarray:
    """Bits per dimension of a full-covariance Gaussian, the density of level plus uniform noise; shrinkage chosen on training
    pictures.

    A density of level plus noise is a lower bound on the probability of the level."""
    rng = np.random.default_rng(0)
    flat = [(part + rng.uniform(-0.5, 0.5, part.shape)).reshape(len(part), -1) for part in (train, validation, holdout)]
    mean, covariance = flat[0].mean(axis=0), np.cov(flat[0].T)
    pooled = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance)

    def bits(x: np.ndarray, share: float) -> np.ndarray:
        variance = (1.0 - share) * np.maximum(values, 0.0) + share * pooled
        along = (x - mean) @ vectors
        return 0.5 * np.mean(np.log(2.0 * np.pi * variance) + np.square(along) / variance, axis=1) / BITS

    shares = np.geomspace(1e-6, 0.3, 30)
    best = shares[int(np.argmin([bits(flat[1], share).mean() for share in shares]))]
    return bits(flat[2], best)


def compressed(crops: np.ndarray, kind: str, **options: Any) -> float:
    """Bits per dimension of all crops as one picture of them side by side."""
    columns = int(np.ceil(np.sqrt(len(crops))))
    rows = len(crops) // columns  # whole rows alone
    tiled = crops[: rows * columns].reshape(rows, columns, SIZE, SIZE, 3).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(tiled.reshape(rows * SIZE, columns * SIZE, 3)).save(file, kind, **options)
    return round(8.0 * file.tell() / (rows * columns * SIZE * SIZE * 3), 3)


def texture(model: Path, num_places: int, num_draws: int) -> dict[str, Any]:
    """Central 90 % intervals of the hidden middles' pixels, over places of the rows that were held out.

    Draws are those of the approximate chain, known pixels along the forward chain: each is a chain of its own. A particle filter's
    draws of a thousand hidden pixels have one ancestor, and cover next to nothing."""
    places = larger_places(None, 2 * SIZE)
    some = places[np.linspace(0, len(places) - 1, num_places).round().astype(int)]
    mask = np.zeros(some.shape[1:], bool)
    mask[SIZE // 2 : -SIZE // 2, SIZE // 2 : -SIZE // 2] = True
    diffusion = of_size(models.Diffusion.load(model), some.shape[1:])

    @eqx.filter_jit
    def drawn(key: jax.Array, y: jax.Array) -> jax.Array:
        chain = inference.multiply(diffusion, inference.Known(y, ~jnp.asarray(mask)), along="forward")
        return chain.sample(key, (num_draws,))

    rng, inside, errors = np.random.default_rng(0), [], []
    for i, x in enumerate(tqdm(some)):
        draws, truth = np.asarray(drawn(jax.random.key(i), jnp.asarray(np.where(mask, np.nan, x))))[:, mask], x[mask]
        place = ((draws < truth).sum(axis=0) + rng.uniform(size=truth.shape)) / (num_draws + 1)
        inside.append(np.mean(np.abs(place - 0.5) < 0.45))
        errors.append(np.sqrt(np.mean(np.square(draws.mean(axis=0) - truth))))
    of = {"coverage of 90 % intervals": str(Estimate.of(np.array(inside))), "rmse": str(Estimate.of(np.array(errors)))}
    return of | {"sd of the places": float(some.std()), "draws": num_draws, "places": len(some)}


def step(num_updates: int, rounds: int, batch: int) -> dict[str, Any]:
    """Seconds of an update of the paper's network for 32 x 32 x 3, ours and PyTorch's in turns."""
    shape, last = (SIZE, SIZE, 3), 1000
    network = models.networks.MultiScaleNetwork(shape, (2, *shape), last, **FULL_OF_COLORS, key=jax.random.key(0))
    process = models.GaussianDiffusion(shape, models.schedules.erasing(last, first_rate=1e-3))
    diffusion = models.Diffusion(process, models.DriftVariance(network))
    x0 = np.random.default_rng(0).normal(size=(256, *shape)).astype(np.float32)
    optimizer = optax.rmsprop(1e-3)

    def ours(count: int) -> None:
        inference.fit(
            jax.random.key(1),
            diffusion,
            x0,
            num_updates=count,
            batch_size=batch,
            optimizer=optimizer,
            average_decay=0.0,
            log_every=1,
            progress=False,
        )

    theirs = torch_update(FULL_OF_COLORS, np.asarray(process.schedule.rates, np.float64), x0, batch)
    ours(2), theirs(2)
    seconds: dict[str, list[float]] = {"ours": [], "PyTorch": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("PyTorch", theirs)):
            start = time.perf_counter()
            run(1)
            once = time.perf_counter() - start
            start = time.perf_counter()
            run(1 + num_updates)
            seconds[name].append((time.perf_counter() - start - once) / num_updates)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return medians | {"ratio": medians["ours"] / medians["PyTorch"], "all": seconds}


def torch_update(sizes: dict[str, Any], betas: np.ndarray, x0: np.ndarray, batch: int) -> Any:
    """`(count) -> None`: so many updates of the same network and loss in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    last, pixels = len(betas), SIZE * SIZE
    beta = torch.tensor(betas, dtype=torch.float32)
    kept = torch.cumprod(1.0 - beta.double(), 0).float()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [3] + [sizes["width"]] * sizes["depth"]
            self.layers = nn.ModuleList(nn.Conv2d(m, n, 3, padding=1) for m, n in pairwise(widths))
            hidden, outputs = sizes["dense_width"], sizes["dense_outputs"]
            self.dense = nn.ModuleList([nn.Linear(3 * pixels, hidden), nn.Linear(hidden, pixels * outputs)])
            widths = [sizes["width"] + outputs] + [sizes["upper_width"]] * sizes["upper_depth"]
            self.upper = nn.ModuleList(nn.Conv2d(m, n, 1) for m, n in pairwise(widths))
            self.readout = nn.Conv2d(widths[-1], 6 * 10, 1)

        def forward(self, t: Any, x: Any) -> Any:
            h = x
            for layer in self.layers:
                h = functional.softplus(layer(h))
            u = x.flatten(1)
            for layer in self.dense:
                u = torch.tanh(layer(u))
            h = torch.cat([h, u.reshape(len(x), -1, SIZE, SIZE)], 1)
            for layer in self.upper:
                h = torch.tanh(layer(h))
            spacing = last / 9
            bumps = torch.softmax(-0.5 * ((t[:, None] - spacing * torch.arange(10)) / spacing) ** 2, -1)
            return torch.einsum("bkjhw,bj->bkhw", self.readout(h).reshape(len(x), 6, 10, SIZE, SIZE), bumps)

    network = Network()
    optimizer = torch.optim.RMSprop(network.parameters(), 1e-3)
    images = torch.tensor(x0).permute(0, 3, 1, 2).contiguous()

    def update() -> None:
        x = images[torch.randperm(len(images))[:batch]]
        t = torch.randint(2, last + 1, (batch,))
        b, a, before = (value[:, None, None, None] for value in (beta[t - 1], kept[t - 1], kept[t - 2]))
        x_t = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
        mean = (before.sqrt() * b * x + (1 - b).sqrt() * (1 - before) * x_t) / (1 - a)
        variance = b * (1 - before) / (1 - a)
        z_mean, z_variance = network(t, x_t).chunk(2, 1)
        own = torch.sigmoid(z_variance + torch.log(b) - torch.log1p(-b))
        guess = (x_t - z_mean) * (1 - own) + z_mean
        loss = 0.5 * ((variance + (mean - guess) ** 2) / own - 1 + torch.log(own / variance)).sum() * (last - 1) / batch
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1e9)
        optimizer.step()

    return lambda count: [update() for _ in range(count)]


def memory() -> dict[str, Any]:
    """Bytes of working memory that XLA plans for an update's gradient and for sampling, by T."""
    shape, rows = (SIZE, SIZE), {}
    for last in (100, 1000):
        process = models.GaussianDiffusion(shape, models.schedules.log_snr_logistic(last))
        network = models.networks.UNet(shape, (2, *shape), last, width=16, key=jax.random.key(0))
        diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")
        x0 = jnp.zeros((16, *shape))
        trained, rest = eqx.partition(diffusion, eqx.is_inexact_array)

        def loss(trained: Any, key: Any, x0: Any, rest: Any = rest) -> Any:
            return -jnp.mean(inference.bound_terms(key, eqx.combine(trained, rest), x0, num_times=1).total)

        def sampled(trained: Any, key: Any, rest: Any = rest) -> Any:
            return eqx.combine(trained, rest).sample(key, (16,))

        key = jax.random.key(0)
        of = {
            "gradient": jax.jit(jax.grad(loss)).lower(trained, key, x0),
            "sampling": jax.jit(sampled).lower(trained, key),
        }
        rows[f"T = {last}"] = {
            name: int(lowered.compile().memory_analysis().temp_size_in_bytes) for name, lowered in of.items()
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("leaves", "photographs", "texture", "step", "memory"))
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--num-times", type=int, default=20)
    parser.add_argument("--places", type=int, default=50)
    parser.add_argument("--draws", type=int, default=9)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    got = parser.parse_args()
    if got.what in ("leaves", "photographs", "texture") and got.model is None:
        parser.error(f"{got.what} needs the folder of a model")
    if got.what == "leaves" and got.data is None:
        parser.error("leaves needs --data, the file that the run read")
    found = {
        "leaves": lambda: leaves(got.model, got.data, got.num_times),
        "photographs": lambda: photographs(got.model, got.num_times),
        "texture": lambda: texture(got.model, got.places, got.draws),
        "step": lambda: step(got.updates, got.rounds, got.batch),
        "memory": memory,
    }[got.what]()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
