"""The program that the commands belong to, and where they print."""

import typer
from rich.console import Console

__all__ = ["app", "console"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Diffusion probabilistic models: the experiments of Sohl-Dickstein et al. (2015).",
)
console = Console()
