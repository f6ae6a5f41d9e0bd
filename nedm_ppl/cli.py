"""The command line: `nedm list`, `run`, `sample`, `loglik`, `inpaint`, `denoise` and `show`."""

import json
import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nedm_ppl import interrupts
from nedm_ppl.files import printable, reason, shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from nedm_ppl.restoration import Degradation

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Diffusion probabilistic models: the experiments of Sohl-Dickstein et al. (2015).",
)
console = Console()
MOST = 1e15  # of data and scales, whose squares float32 must hold

OUT = typer.Option("--out", help="Output folder; by default results/<experiment>, or results/<experiment>-<density>.")
MODEL = typer.Argument(help="A model folder, or the output folder of an experiment.")
DATA = typer.Option("--data", help="Data x_0, .npy, scaled as in training; by default the experiment's holdout.")
NUM = typer.Option("--num", help="Only the first NUM data.")
PARTICLES = typer.Option("--particles", help="Particles of a filter.")
REPEATS = typer.Option("--repeats", help="Filters per datum, pooled.")
NUM_STEPS = typer.Option("--num-steps", help="Respace the chain to so many steps; by default all.")


@app.command("list")
def list_experiments() -> None:
    """List the experiments."""
    from nedm_ppl.experiments import EXPERIMENTS

    table = Table("experiment", "T", "first step", "what it is", title="nedm run EXPERIMENT")
    for experiment in EXPERIMENTS.values():
        others = [f"({name})" for name in experiment.first_steps if name != experiment.first_step]
        first_steps = " ".join([experiment.first_step, *others])
        table.add_row(experiment.name, str(experiment.num_steps), first_steps, experiment.summary)
    console.print(table)


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="Its name; see `nedm list`.")],
    density: Annotated[str | None, typer.Option(help="Which density, of an experiment that has several.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds data, weights and training.")] = 0,
    out: Annotated[Path | None, OUT] = None,
    updates: Annotated[int | None, typer.Option(help="Optimizer updates.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Steps of the chain, T.")] = None,
    first_step: Annotated[str | None, typer.Option(help="fixed, learned or quantized.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start again in an --out that holds an earlier run.")] = False,
) -> None:
    """Run an experiment: train, evaluate, save the model, draw the figures."""
    try:
        with interrupts.deferred():
            from nedm_ppl.experiments import choose
            from nedm_ppl.experiments import run as run_experiment

        _check_sizes(seed=seed, updates=updates, num_steps=num_steps)
        chosen = choose(experiment, density)
        out = Path("results") / "-".join(filter(None, (experiment, chosen.density))) if out is None else out
        result = run_experiment(
            chosen,
            out,
            seed=seed,
            num_updates=updates,
            num_steps=num_steps,
            first_step=first_step,
            resume=resume,
            force=force,
            progress=sys.stderr.isatty() or sys.stdout.isatty(),
        )
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and not interrupts.received:
            raise
        with suppress(OSError):  # the terminal may be gone
            console.print("Stopped. The same command with --resume goes on from the last checkpoint.")
        raise typer.Exit(128 + (interrupts.received or [signal.SIGINT])[0]) from None
    console.print(_metrics_table(result.metrics, chosen.published))
    console.print(printable(f"Model, metrics, figures and ArviZ files are in {out}."), markup=False)


@app.command()
def sample(
    model: Annotated[Path, MODEL],
    num_samples: Annotated[int, typer.Option("--num", help="Number of samples.")] = 64,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    context: Annotated[int | None, typer.Option(help="A label, for a model that takes one; by default none.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where to write them, .npy; must not exist.")] = Path(
        "samples.npy"
    ),
) -> None:
    """Draw samples from a trained model (in the units it was trained in)."""
    import equinox as eqx
    import jax
    import numpy as np

    from nedm_ppl.files import whole
    from nedm_ppl.models import Diffusion

    _check_sizes(num=num_samples, seed=seed, context=context)
    if num_samples < 1:
        raise ValueError(f"--num must be at least 1; got {num_samples}.")
    _check_new(out, ".npy")
    diffusion = Diffusion.load(_model_folder(model)).given(context)
    with console.status(f"Sampling {diffusion.num_steps} steps"):
        samples = eqx.filter_jit(lambda d, key: d.sample(key, (num_samples,)))(diffusion, jax.random.key(seed))
        with whole(out) as file:
            np.save(file, np.asarray(samples))
    console.print(printable(f"{num_samples} samples of shape {diffusion.event_shape} are in {out}."), markup=False)


@app.command()
def loglik(
    model: Annotated[Path, MODEL],
    data: Annotated[
        Path | None, typer.Argument(help="Data x_0, .npy, scaled as in training; by default the experiment's holdout.")
    ] = None,
    trajectories: Annotated[int, typer.Option(help="Trajectories per datum; with --target-se, to begin with.")] = 64,
    target_se: Annotated[float | None, typer.Option(help="Standard error to reach for every datum, nats.")] = None,
    max_trajectories: Annotated[int, typer.Option(help="Most trajectories per datum with --target-se.")] = 4096,
    num: Annotated[int | None, typer.Option(help="Only the first NUM data.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Per-datum results, netCDF; must not exist.")] = Path("loglik.nc"),
) -> None:
    """Estimate log p(x_0) of data by importance sampling, with standard errors and diagnostics."""
    import warnings

    import jax

    from nedm_ppl.files import write_netcdf, write_outputs
    from nedm_ppl.inference import TargetNotReachedWarning, marginal_log_likelihood
    from nedm_ppl.models import Diffusion

    _check_sizes(trajectories=trajectories, max_trajectories=max_trajectories, seed=seed)
    if num is not None and num < 1:
        raise ValueError(f"--num must be at least 1; got {num}.")
    _check_new(out, ".nc")
    folder = _model_folder(model)
    diffusion = Diffusion.load(folder)
    x0, context = _holdout(folder) if data is None else (_read_array(data), None)
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
    console.print(_likelihood_table(result.summary()))
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
    """Hide a part of data, and draw it from its posterior under a trained model (Figure 5)."""
    from nedm_ppl.restoration import HIDDEN, Hidden, hidden

    def hide(x0: "np.ndarray") -> "Degradation":
        if mask in HIDDEN:
            return Hidden(hidden(mask, x0.shape[1:]))
        if not mask.endswith(".npy"):
            raise ValueError(f"--mask must be one of {', '.join(HIDDEN)}, or a .npy file; got {mask!r}.")
        return Hidden(_read_array(Path(mask), "--mask").astype(bool))

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
    """Add Gaussian noise to data, and draw them from their posterior under a trained model (Figure 3)."""
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

    folder = _model_folder(model)
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
    ):
        table.add_row(part, value)
    console.print(table)
    metrics = folder.parent / "metrics.json"
    if metrics.exists():
        try:
            console.print(_metrics_table(_renamed(json.loads(metrics.read_text()))))
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

    _check_sizes(particles=particles, repeats=repeats, num_steps=num_steps, seed=seed)
    if num < 1:
        raise ValueError(f"--num must be at least 1; got {num}.")
    restore.check_out(out)
    folder = _model_folder(model)
    diffusion = Diffusion.load(folder)
    x0 = _holdout(folder, "--data")[0] if data is None else _read_array(data, "--data")
    diffusion.check_data(x0)
    degradation = degrade(x0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the particles of every run descend")  # the table says so
        result = restore.restore(
            jax.random.key(seed),
            diffusion,
            x0[:num],
            degradation,
            num_particles=particles,
            num_repeats=repeats,
            num_steps=num_steps,
            progress=sys.stderr.isatty() or sys.stdout.isatty(),
        )
    metrics = restore.save(result, out, about | {"seed": seed})
    console.print(_restoration_table(metrics))
    console.print(printable(f"The picture, the draws for ArviZ and the numbers are in {out}."), markup=False)


def _check_new(out: Path, suffix: str) -> None:
    """Raise a ValueError where no new file of this kind can have that name, before hours are spent on what is to be in it."""
    if out.suffix != suffix:
        raise ValueError(f"--out must end in {suffix}; got {out}.")
    if os.path.lexists(out):  # a link to nothing too
        raise ValueError(f"--out {out} exists; name another file.")
    if not out.parent.is_dir():
        raise ValueError(f"--out must lie in a folder that is there; got {out}.")


def _check_sizes(**options: int | None) -> None:
    """Raise a ValueError where an integer is too large for JAX, which counts with 32 bits and takes seeds of 64."""
    for name, value in options.items():
        most = 2**63 - 1 if name == "seed" else 2**31 - 1
        if value is not None and abs(value) > most:
            raise ValueError(f"--{name.replace('_', '-')} must be at most {most} in size; got {shortened(value)}.")


def _model_folder(path: Path) -> Path:
    return path / "model" if (path / "model").is_dir() else path


def _holdout(folder: Path, name: str = "DATA") -> "tuple[np.ndarray, np.ndarray | None]":
    """Holdout data of the experiment whose metrics lie beside the model, and their contexts."""
    from nedm_ppl.experiments import choose

    metrics = folder.parent / "metrics.json"
    try:
        content = json.loads(metrics.read_text())
        split = choose(content["experiment"], content.get("density")).data(content["seed"])
        return split.holdout, split.holdout_context
    except FileNotFoundError:
        raise ValueError(f"{name} must be given: there is no {metrics} that says whose holdout to take.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{name} must be given: {metrics} names no experiment of `nedm list`.") from None


def _read_array(file: Path, name: str = "DATA") -> "np.ndarray":
    import numpy as np

    try:
        # Mapped first, which compares what the header claims with what the file holds, and allocates nothing.
        values = np.array(np.load(file, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise ValueError(f"{name} must be a .npy file; there is nothing at {printable(file)}.") from None
    except MemoryError:
        raise
    except Exception:  # NumPy parses a header as Python, and raises what that raises
        values = None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or values.ndim == 0:
        raise ValueError(f"{name} must be a .npy file that holds an array of numbers; {printable(file)} does not.")
    if (largest := float(np.max(np.abs(values.astype(float)), initial=0.0))) > MOST:
        raise ValueError(f"{name} must hold numbers of at most {MOST:g} in size; {printable(file)} holds {largest:g}.")
    return values


def _likelihood_table(summary: dict) -> Table:
    table = Table("quantity", "nats", "bits", title="log p(x_0), importance sampling")
    mean, se = summary["mean_nats"], summary["se_nats"]
    bits = f"{summary['mean_bits']:.4f} ± {summary['se_bits']:.4f}"
    table.add_row("mean over the data", f"[bold]{mean:.4f} ± {se:.4f}[/bold]", f"[bold]{bits}[/bold]")
    per_nat = 1.0 / math.log(2.0)
    for name, key in (("  of which Monte Carlo error", "monte_carlo_se_nats"), ("  bias, about", "bias_nats")):
        table.add_row(name, f"{summary[key]:.4f}", f"{per_nat * summary[key]:.4f}")
    table.add_section()
    table.add_row("data", f"{summary['num_data']:,}", "")
    table.add_row("trajectories per datum, at most", f"{summary['num_trajectories']:,}", "")
    table.add_row("effective sample size, least", f"{summary['ess_min']:.1f}", "")
    table.add_row("Pareto k-hat, largest", f"{summary['k_hat_max']:.2f}", "")
    table.add_row("data whose weights spread too far to trust", f"{summary['num_flagged']:,}", "")
    table.add_row("data above the target standard error", f"{summary['num_above_target']:,}", "")
    table.caption = str(summary["estimate"])
    return table


def _restoration_table(metrics: dict) -> Table:
    what = (
        f"mask {printable(metrics['mask'])}"
        if metrics["task"] == "inpaint"
        else f"noise of scale {metrics['scale']:.3g}"
    )
    table = Table("quantity", "value", title=f"{metrics['task']}, {what}, {metrics['num_data']} data")
    table.add_row("RMSE of the posterior mean, units of the data", f"[bold]{metrics['rmse']:.4f}[/bold]")
    table.add_row("RMSE of one posterior draw", f"{metrics['rmse_posterior_draw']:.4f}")
    table.add_row("RMSE of one draw of the paper's method", f"{metrics['rmse_paper_draw']:.4f}")
    table.add_row("truths inside their central 90 %", f"{metrics['coverage_90']:.1%}")
    table.add_row("log evidence, mean, nats", f"{metrics['log_evidence_nats']:.3f}")
    table.add_section()
    sizes = f"{metrics['num_steps']}, {metrics['num_repeats']} x {metrics['num_particles']}"
    table.add_row("steps, filters x particles per datum", sizes)
    table.add_row("effective sample size, least on the way", f"{metrics['ess_min']:.1f}")
    table.add_row("ancestors at t = T, least", f"{metrics['num_ancestors_min']}")
    table.add_row("posteriors with a reason to doubt them", f"{metrics['num_doubtful']} of {metrics['num_data']}")
    return table


def _renamed(metrics: dict) -> dict:
    """Metrics by the names of today: those of runs before 2026-11-28 had two others."""
    old = {"train_steps": "num_updates", "num_particles": "num_trajectories"}
    return {
        old.get(name, name): _renamed(value) if name == "log_likelihood" else value for name, value in metrics.items()
    }


def _metrics_table(metrics: dict, published: str = "") -> Table:
    def text(entry: dict) -> str:
        if entry["mean"] is None:
            return "unknown"
        return f"{entry['mean']:.4f}" + ("" if not entry.get("se") else f" ± {entry['se']:.4f}")

    name = ", ".join(filter(None, (metrics["experiment"], metrics.get("density"))))
    title = f"{name}, T = {metrics['num_steps']}, seed {metrics['seed']}"
    table = Table("quantity", metrics["unit"], title=title)
    table.add_row("bound K on the holdout (higher is better)", f"[bold]{text(metrics['bound'])}[/bold]")
    likelihood = metrics.get("log_likelihood")
    if likelihood is not None:
        data = f"{likelihood['num_data']:,} data x {likelihood['num_trajectories']} trajectories"
        table.add_row(f"log likelihood, {data}", text(likelihood))
        k_hat = likelihood["k_hat_max"]
        if "above_bound" in likelihood:  # not in folders of earlier versions
            table.add_row("  bound K on the same data", text(likelihood["bound"]))
            table.add_row("  log likelihood above K, datum by datum", text(likelihood["above_bound"]))
        table.add_row("  its largest Pareto k-hat", "unknown" if k_hat is None else f"{k_hat:.2f}")
    table.add_row("null: log likelihood under the noise law", text(metrics["null"]))
    table.add_row("K above the null", text(metrics["bound_above_null"]))
    table.add_row("truth: exact log likelihood", text(metrics["truth"]))
    if published:
        table.add_row("the paper's K", published)
    if "excess" in metrics:
        table.add_row("truth above the log likelihood, datum by datum", text(metrics["excess"]))
    if "bits_per_dim_discrete" in metrics:
        table.add_row("discrete bits per pixel (lower is better)", text(metrics["bits_per_dim_discrete"]))
    table.add_section()
    for name, entry in metrics["terms"].items():
        table.add_row(f"term of K: {name.replace('_', ' ')}", text(entry))
    if (found := metrics.get("classification")) is not None:
        table.add_section()
        table.add_row("accuracy of Bayes' rule on the holdout", text(found["accuracy"]))
        table.add_row("  its calibration error", f"{found['bayes']['calibration_error']:.4f}")
        tempered = found["tempered"]
        table.add_row(f"  at temperature {tempered['temperature']:.3f}", f"{tempered['calibration_error']:.4f}")
    table.add_section()
    table.add_row("holdout data", f"{metrics['holdout_size']:,}")
    table.add_row("training", f"{metrics['num_updates']:,} updates, {metrics['train_seconds']:.0f} s")
    return table


def main() -> None:
    """Run the command line. A mistake is one sentence and exit code 2; what the machine refuses, a full disk, 1."""
    try:
        with interrupts.stoppable():
            app()
    except BaseException as error:
        if interrupts.received:
            sys.exit(128 + interrupts.received[0])
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            error = OSError(
                f"this takes more memory than there is: {reason(error)}. Ask for less at a time, or for fewer steps."
            )
        if not isinstance(error, ValueError | FloatingPointError | OSError):
            raise
        Console(stderr=True).print(
            Text("nedm: ", "bold red") + Text(printable(" ".join(str(error).split()))), soft_wrap=True
        )
        sys.exit(2 if isinstance(error, ValueError | FloatingPointError) else 1)
