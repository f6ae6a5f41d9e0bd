"""The command line as a process: its commands, its sentences and its exit codes."""

import sys

from rich.console import Console
from rich.text import Text

from nedm_ppl import interrupts
from nedm_ppl.cli import _run as _run  # its commands
from nedm_ppl.cli import _train as _train
from nedm_ppl.cli import _use as _use
from nedm_ppl.cli._app import app
from nedm_ppl.files import printable, reason

__all__ = ["main"]


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
