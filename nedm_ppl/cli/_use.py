"""`nedm sample`, `loglik`, `inpaint`, `denoise` and `show`: what is done with a trained model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from nedm_ppl.cli._app import app, console
from nedm_ppl.cli._arguments import (
    DATA,
    MODEL,
    MOST,
    NUM,
    NUM_STEPS,
    PARTICLES,
    REPEATS,
    check_new,
    check_sizes,
    data_of,
    holdout_of,
    label_of,
    model_folder,
    read_array,
    write_csv,
    write_likelihoods,
)
from nedm_ppl.cli._tables import likelihood_table, metrics_table, renamed, restoration_table
from nedm_ppl.files import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from nedm_ppl.restoration import Degradation

__all__ = ["denoise", "inpaint", "loglik", "sample", "show"]


@app.command()
def sample(
    model: Annotated[Path, MODEL],
    num_samples: Annotated[int, typer.Option("--num", help="Number of samples.")] = 64,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    context: Annotated[int | None, typer.Option(help="A label, for a model that takes one; by default none.")] = None,
    label: Annotated[
        str | None, typer.Option(help="The same by its value in the label column that `nedm train` was told.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where to write them, .npy or .csv; must not exist. By default samples.csv of a table."
        ),
    ] = None,
) -> None:
    """Draw samples from a trained model, in the units of its data."""
    import equinox as eqx
    import jax
    import numpy as np

    from nedm_ppl.files import whole
    from nedm_ppl.models import Diffusion

    check_sizes(num=num_samples, seed=seed, context=context)
    if num_samples < 1:
        raise ValueError(f"--num must be at least 1; got {num_samples}.")
    if out is not None:
        check_new(out, ".npy", ".csv")
    folder = model_folder(model)
    diffusion = Diffusion.load(folder)
    if out is None:
        out = Path("samples.npy" if diffusion.columns is None else "samples.csv")
        check_new(out, out.suffix)
    if label is not None:
        if context is not None:
            raise ValueError("--label and --context name the same thing; give one of them.")
        context = label_of(folder, label)
    diffusion = diffusion.given(context)
    with console.status(f"Sampling {diffusion.num_steps} steps"):
        draw = eqx.filter_jit(lambda d, key: d.with_units(None).sample(key, (num_samples,)))
        samples = np.asarray(diffusion.to_data(np.asarray(draw(diffusion, jax.random.key(seed)))))
        with whole(out) as file:
            if out.suffix == ".csv":
                write_csv(file, samples, diffusion.columns)
            else:
                np.save(file, samples)
    console.print(printable(f"{num_samples} samples of shape {diffusion.event_shape} are in {out}."), markup=False)


@app.command()
def loglik(
    model: Annotated[Path, MODEL],
    data: Annotated[
        Path | None,
        typer.Argument(help="Data in the model's units, a table or .npy; by default the experiment's holdout."),
    ] = None,
    trajectories: Annotated[int, typer.Option(help="Trajectories per datum; with --target-se, to begin with.")] = 64,
    target_se: Annotated[float | None, typer.Option(help="Standard error to reach for every datum, nats.")] = None,
    max_trajectories: Annotated[int, typer.Option(help="Most trajectories per datum with --target-se.")] = 4096,
    num: Annotated[int | None, typer.Option(help="Only the first NUM data.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", help="Per-datum results, .nc for ArviZ or .csv; must not exist.")
    ] = Path("loglik.nc"),
) -> None:
    """Estimate log p(x_0) of data by importance sampling, with standard errors and diagnostics."""
    import warnings

    import jax

    from nedm_ppl.files import write_netcdf, write_outputs
    from nedm_ppl.inference import TargetNotReachedWarning, marginal_log_likelihood
    from nedm_ppl.models import Diffusion

    check_sizes(trajectories=trajectories, max_trajectories=max_trajectories, seed=seed)
    if num is not None and num < 1:
        raise ValueError(f"--num must be at least 1; got {num}.")
    check_new(out, ".nc", ".csv")
    folder = model_folder(model)
    diffusion = Diffusion.load(folder)
    x0, context = holdout_of(folder) if data is None else data_of(data, folder, diffusion.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TargetNotReachedWarning)  # the table says so
        result = marginal_log_likelihood(
            jax.random.key(seed),
            diffusion,
            x0[:num],
            context=None if context is None else context[:num],
            num_trajectories=trajectories,
            target_se=target_se,
            max_trajectories=max_trajectories,
            progress=sys.stderr.isatty() or sys.stdout.isatty(),
        )
    console.print(likelihood_table(result.summary()))
    if out.suffix == ".csv":
        what = {out.name: lambda file: write_likelihoods(file, result)}
    else:
        what = {out.name: lambda file: write_netcdf(file, result.to_arviz())}
    write_outputs(out.parent, what, "The table has the means.")
    console.print(
        printable(f"Estimates, errors, diagnostics and log weights of every datum are in {out}."), markup=False
    )


@app.command()
def inpaint(
    model: Annotated[Path, MODEL],
    mask: Annotated[
        str, typer.Option(help="The half to hide: lower, upper, left or right; or a .npy file, True where hidden.")
    ] = "lower",
    data: Annotated[Path | None, DATA] = None,
    num: Annotated[int, NUM] = 10,
    particles: Annotated[int, PARTICLES] = 32,
    repeats: Annotated[int, REPEATS] = 8,
    num_steps: Annotated[int | None, NUM_STEPS] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Output folder; must not exist.")] = Path("inpainted"),
) -> None:
    """Hide a part of data, and draw it from its posterior under a trained model (Figure 5); of a table, draws.csv too."""
    from nedm_ppl.restoration import HIDDEN, Hidden, hidden

    def hide(x0: "np.ndarray") -> "Degradation":
        if mask in HIDDEN:
            return Hidden(hidden(mask, x0.shape[1:]))
        if not mask.endswith(".npy"):
            raise ValueError(f"--mask must be one of {', '.join(HIDDEN)}, or a .npy file; got {mask!r}.")
        return Hidden(read_array(Path(mask), "--mask").astype(bool))

    _restore(model, data, num, hide, {"task": "inpaint", "mask": mask}, particles, repeats, num_steps, seed, out)


@app.command()
def denoise(
    model: Annotated[Path, MODEL],
    scale: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise; by default that of the data, SNR 1.")
    ] = None,
    data: Annotated[Path | None, DATA] = None,
    num: Annotated[int, NUM] = 10,
    particles: Annotated[int, PARTICLES] = 32,
    repeats: Annotated[int, REPEATS] = 8,
    num_steps: Annotated[int | None, NUM_STEPS] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Output folder; must not exist.")] = Path("denoised"),
) -> None:
    """Add noise to data, and draw them from their posterior under a trained model (Figure 3); draws.csv too, of a table."""
    from nedm_ppl.restoration import Noise

    about: dict[str, Any] = {"task": "denoise"}

    def add_noise(x0: "np.ndarray") -> "Degradation":
        about["scale"] = float(x0.std()) if scale is None else scale
        if not abs(about["scale"]) <= MOST:  # NaN too
            raise ValueError(f"--scale must be a number of at most {MOST:g}; got {scale}.")
        return Noise(about["scale"])

    _restore(model, data, num, add_noise, about, particles, repeats, num_steps, seed, out)


@app.command()
def show(model: Annotated[Path, MODEL]) -> None:
    """Say what a saved model is, with its numbers where they are beside it."""
    import equinox as eqx
    import jax

    from nedm_ppl.models import Diffusion

    folder = model_folder(model)
    diffusion = Diffusion.load(folder)
    arrays = jax.tree.leaves(eqx.filter(diffusion, eqx.is_inexact_array))
    network = getattr(diffusion.reverse, "network", None)
    rates = diffusion.process.schedule.rates
    table = Table("part", "value", title=escape(printable(folder)))
    for part, value in (
        ("process", type(diffusion.process).__name__),
        ("datum", f"shape {diffusion.event_shape}"),
        ("steps T", f"{diffusion.num_steps}"),
        (
            "diffusion rates",
            f"{float(rates[0]):.3g} .. {float(rates[-1]):.3g} ({type(diffusion.process.schedule).__name__})",
        ),
        ("reverse kernel", type(diffusion.reverse).__name__),
        ("network", "none" if network is None else type(network).__name__),
        ("parameters", f"{sum(array.size for array in arrays):,}"),
        ("first step", diffusion.first_step),
        ("units of data", "as the chain has them" if diffusion.units is None else repr(diffusion.units)),
    ):
        table.add_row(part, value)
    console.print(table)
    metrics = folder.parent / "metrics.json"
    if metrics.exists():
        try:
            console.print(metrics_table(renamed(json.loads(metrics.read_text()))))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise ValueError(f"{metrics} is damaged; remove it, or run the experiment again.") from None


def _restore(
    model: Path,
    data: Path | None,
    num: int,
    degrade: "Callable[[np.ndarray], Degradation]",
    about: dict,
    particles: int,
    repeats: int,
    num_steps: int | None,
    seed: int,
    out: Path,
) -> None:
    """Degrade, infer, write and report."""
    import warnings

    import jax

    from nedm_ppl import restoration as restore
    from nedm_ppl.models import Diffusion

    check_sizes(particles=particles, repeats=repeats, num_steps=num_steps, seed=seed)
    if num < 1:
        raise ValueError(f"--num must be at least 1; got {num}.")
    restore.check_out(out)
    folder = model_folder(model)
    diffusion = Diffusion.load(folder)
    x0 = holdout_of(folder, "--data")[0] if data is None else data_of(data, folder, diffusion.columns, "--data")[0]
    diffusion.check_data(x0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the particles of every run descend")  # the table says so
        result = restore.restore(
            jax.random.key(seed),
            diffusion,
            x0[:num],
            degrade(x0),
            num_particles=particles,
            num_repeats=repeats,
            num_steps=num_steps,
            progress=sys.stderr.isatty() or sys.stdout.isatty(),
        )
    metrics = restore.save(result, out, about | {"seed": seed})
    console.print(restoration_table(metrics))
    console.print(printable(f"The picture, the draws for ArviZ and the numbers are in {out}."), markup=False)
