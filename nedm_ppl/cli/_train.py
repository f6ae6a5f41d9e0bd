"""`nedm train`: a model of one's own data."""

import sys
import warnings
from pathlib import Path
from typing import Annotated, TextIO

import typer

from nedm_ppl import interrupts
from nedm_ppl.cli._app import app, console, resumable
from nedm_ppl.cli._arguments import check_sizes
from nedm_ppl.cli._tables import metrics_table
from nedm_ppl.files import printable

__all__ = ["train"]


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A table (.csv, .tsv, .parquet, .npy, .npz), or a folder of images.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("results/own"),
    kind: Annotated[
        str | None, typer.Option(help="real, levels (gray levels, counts) or bits; by default found out.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column that is no number of the data but their label, to be given it.")
    ] = None,
    holdout: Annotated[float, typer.Option(help="Share of the data that numbers are reported on.")] = 0.2,
    updates: Annotated[
        int | None, typer.Option(help="Optimizer updates, at most; by default by the number of data.")
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option(help="Steps of the chain, T; by default by the kind of data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the split, weights and training.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a folder with files that are no images.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start again in an --out that holds an earlier run.")] = False,
) -> None:
    """Train a model of your own data, in their own units: split, choose a model, train, evaluate, save, draw."""
    with resumable():
        with interrupts.deferred(), warnings.catch_warnings():
            from nedm_ppl.data import read_images, read_table
            from nedm_ppl.experiments import own_data
            from nedm_ppl.experiments import run as run_experiment
            from nedm_ppl.models import DataWarning

            warnings.simplefilter("always")
            warnings.showwarning = _said
            check_sizes(seed=seed, updates=updates, num_steps=num_steps)
            columns = labels = None
            if data.is_dir():
                if label is not None:
                    raise ValueError("--label must be left out for a folder of images, which has no columns.")
                values = read_images(data, strict=strict)
            else:
                values, columns, labels = read_table(data, label=label)
            chosen = own_data(values, kind=kind, holdout=holdout, columns=columns, labels=labels, label=label)
        with warnings.catch_warnings():
            warnings.simplefilter("always", DataWarning)
            warnings.showwarning = _said
            result = run_experiment(
                chosen,
                out,
                seed=seed,
                num_updates=updates,
                num_steps=num_steps,
                resume=resume,
                force=force,
                progress=sys.stderr.isatty() or sys.stdout.isatty(),
            )
    console.print(metrics_table(result.metrics))
    console.print(printable(f"Model, metrics, figures and ArviZ files are in {out}."), markup=False)
    console.print(printable(f"nedm sample {out} draws from it; nedm loglik {out} DATA scores data."), markup=False)


def _said(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line of its own, without the place in the code where it was given."""
    console.print(f"{category.__name__}: {printable(message)}", style="yellow", markup=False)
