"""The program that the commands belong to, and where they print."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer
from rich.console import Console

from nedm_ppl import interrupts

__all__ = ["app", "console", "resumable"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Diffusion probabilistic models: the experiments of Sohl-Dickstein et al. (2015).",
)
console = Console()


@contextmanager
def resumable() -> Iterator[None]:
    """What a request to end stops, with a sentence on how it goes on and the exit code of the request."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and not interrupts.received:
            raise
        with suppress(OSError):  # the terminal may be gone
            console.print("Stopped. The same command with --resume goes on from the last checkpoint.")
        raise typer.Exit(128 + (interrupts.received or [signal.SIGINT])[0]) from None
