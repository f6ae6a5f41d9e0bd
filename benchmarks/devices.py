"""The same numbers whatever the number of devices, and what two host devices save of a step.

Run from the repository with `python -m benchmarks.devices`. Devices are simulated on the CPU, by the XLA flag
`xla_force_host_platform_device_count`, each part in a process of its own, because JAX counts its devices once.

- `numbers`: 100 updates over 1, 2 and 8 devices by plain SGD and by the default optimizer, in float32 and float64: the largest
  relative difference of losses and of parameters from those of one device;
- `step`: seconds of an update of the digits' transformer, batch 64, on two devices against one, in turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

COUNTS = (2, 8)


def numbers() -> dict[str, Any]:
    """In a process that has eight devices."""
    import equinox as eqx
    import jax
    import numpy as np
    import optax

    from nedm_ppl import data, inference, models

    x0 = data.swiss_roll(0, 2000)
    network = models.networks.ResidualMLP((2,), (2, 2), 40, width=64, depth=2, key=jax.random.key(0))
    process = models.GaussianDiffusion(2, models.schedules.log_snr_linear(40))
    diffusion = models.Diffusion(process, models.VelocityPrediction(network), first_step="learned")

    def fitted(optimizer: Any, sharding: Any) -> tuple[np.ndarray, np.ndarray]:
        options = {"num_updates": 100, "batch_size": 128, "log_every": 1, "average_decay": 0.0, "progress": False}
        found = inference.fit(jax.random.key(1), diffusion, x0, optimizer=optimizer, sharding=sharding, **options)
        leaves = jax.tree.leaves(eqx.filter(found.diffusion, eqx.is_inexact_array))
        return found.history["bound"], np.concatenate([np.ravel(leaf) for leaf in leaves])

    rows: dict[str, Any] = {}
    for name, optimizer in (("SGD", optax.sgd(1e-3)), ("default", None)):
        alone = fitted(optimizer, None)
        for count in COUNTS:
            together = fitted(optimizer, over(count))
            rows[f"{name}, {count} devices"] = {
                what: float(np.max(np.abs(a - b)) / np.max(np.abs(a)))
                for what, a, b in zip(("losses", "parameters"), alone, together, strict=True)
            }
    return rows


def over(count: int) -> Any:
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("rows",)), PartitionSpec("rows"))


def step(count: int, num_updates: int) -> dict[str, float]:
    """In a process that has so many devices."""
    import jax

    from nedm_ppl import experiments, inference

    experiment = experiments.choose("digits", network="transformer")
    split = experiment.data(0)
    diffusion = experiment.build(jax.random.key(0), split, experiment.num_steps, experiment.first_step)
    options = experiment.training(1000) | {"log_every": num_updates, "checkpoint_every": num_updates}

    def run(updates: int) -> float:
        start = time.perf_counter()
        inference.fit(
            jax.random.key(1),
            diffusion,
            split.train,
            num_updates=updates,
            sharding=over(count) if count > 1 else None,
            progress=False,
            **options | {"augment": None},
        )
        return time.perf_counter() - start

    run(num_updates)
    once, thrice = run(num_updates), run(3 * num_updates)
    return {"seconds": (thrice - once) / (2 * num_updates)}


def apart(part: str, count: int, *more: str, double: bool = False) -> Any:
    """A part in a process of its own with so many devices."""
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={count}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(double))}
    command = [sys.executable, "-m", "benchmarks.devices", "--part", part, "--count", str(count), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("numbers", "step", "both"), nargs="?", default="both")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("numbers", "step"), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    got = parser.parse_args()
    if got.part:
        print(json.dumps(numbers() if got.part == "numbers" else step(got.count, got.updates)))
        return
    if got.what in ("numbers", "both"):
        for double in (False, True):
            print(
                "float64" if double else "float32", json.dumps(apart("numbers", 8, double=double), indent=2), flush=True
            )
    if got.what in ("step", "both"):
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(got.rounds):
            for count in seconds:
                seconds[count].append(apart("step", count, "--updates", str(got.updates))["seconds"])
        ratios = [two / one for one, two in zip(*seconds.values(), strict=True)]
        print(json.dumps({"seconds": seconds, "two over one": ratios}, indent=2))


if __name__ == "__main__":
    main()
