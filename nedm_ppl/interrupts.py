"""Requests to end a command: Ctrl-C, SIGTERM and a terminal that goes away all raise KeyboardInterrupt, and none is lost.

Python raises it wherever it happens to be. Amid an import that leaves half a module, which fails later in odd ways: there it
waits. In a callback of the garbage collector, and JAX has one, it is dropped: so it is raised again every second.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["deferred", "received", "stoppable"]

AGAIN = 1.0  # s
received: list[int] = []  # the signals that have come since `stoppable` began
_waiting = [False]


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the three signals raise KeyboardInterrupt inside. What is to be ignored, as under `nohup`, stays so."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None)) is not None}

    def stop(number: int, frame: Any) -> None:
        if number in before:
            received.append(number)
        if hasattr(signal, "setitimer"):
            before.setdefault(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        if not _waiting[0]:
            raise KeyboardInterrupt

    hook = sys.unraisablehook

    def report(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):  # that one comes again
            hook(dropped)

    received.clear()
    sys.unraisablehook = report
    try:
        for number, handler in list(before.items()):
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, stop)
        yield
    finally:
        sys.unraisablehook = hook
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let what comes inside raise KeyboardInterrupt at the end. For imports."""
    _waiting[0] = True
    try:
        yield
    finally:
        _waiting[0] = False
    if received:
        raise KeyboardInterrupt
