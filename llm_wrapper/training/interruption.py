"""Ctrl-C and SIGTERM end a training with a word on how to go on, and the exit status that shells expect."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.terminal import say
from llm_wrapper.training import checkpoints

__all__ = ["stoppable"]

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class _Stopped(BaseException):
    """A signal arrived; no `except Exception` on the way up may take it for an error of its own."""


@contextmanager
def stoppable(run: Path, console: Console) -> Iterator[None]:
    """Turn the two signals into a message and exit status 130 or 143, without a traceback.

    A second signal while the first is being handled changes nothing. Outside the main thread signals cannot be
    taken, and nothing is done.

    Raises:
        SystemExit: After a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    process = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker prints nothing
            os._exit(128 + number)
        if not caught:
            caught.append(number)
            raise _Stopped

    before = {number: signal.signal(number, stop) for number in _NAMES}
    try:
        yield
    except BaseException as error:
        # Libraries may turn what a signal raised inside them into an error of their own.
        if not caught:
            raise
        say(console, _parting(run, _NAMES[signal.Signals(caught[0])]))
        raise SystemExit(128 + caught[0]) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parting(run: Path, reason: str) -> str:
    """Say where a training stopped for good, and how to go on."""
    checkpoint = checkpoints.last_complete(run / "checkpoints")
    place = f"after step {checkpoints.step_of(checkpoint)}" if checkpoint else "from the start (no checkpoint yet)"
    return f"stopped by {reason}. To resume {place}: {runs.resume_command(run)}"
