"""`nedm list` and `nedm run`: the experiments."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nedm_ppl import interrupts
from nedm_ppl.cli._app import app, console, resumable
from nedm_ppl.cli._arguments import OUT, check_sizes
from nedm_ppl.cli._tables import metrics_table
from nedm_ppl.files import printable

__all__ = ["list_experiments", "run"]


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
    data: Annotated[
        Path | None, typer.Option("--data", help="Files of an image experiment, where not its default.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="unet or paper, of an image experiment; unet or transformer, of digits.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of an image experiment's U-Net at full size; 16, or 64 with --full.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="An image experiment at the paper's size.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start again in an --out that holds an earlier run.")] = False,
) -> None:
    """Run an experiment: train, evaluate, save the model, draw the figures."""
    with resumable():
        with interrupts.deferred():
            from nedm_ppl.experiments import choose
            from nedm_ppl.experiments import run as run_experiment

        check_sizes(seed=seed, updates=updates, num_steps=num_steps, width=width)
        chosen = choose(experiment, density, path=data, network=network, width=width, full=full)
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
    console.print(metrics_table(result.metrics, chosen.published))
    console.print(printable(f"Model, metrics, figures and ArviZ files are in {out}."), markup=False)
