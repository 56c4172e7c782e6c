"""Processes of one training, as `accelerate launch` starts them, and the signals that stop it.

Each process knows its rank from its environment. torch is imported only where there are several.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.errors import LLMWrapperError, RecipeError
from llm_wrapper.terminal import say
from llm_wrapper.training import checkpoints


def process_count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tell whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def groups_per_process(groups_per_step: int) -> int:
    """Return the groups of a step that each process takes; refuse an uneven division (RecipeError)."""
    num = process_count()
    if groups_per_step % num:
        even = [number for number in range(1, groups_per_step + 1) if groups_per_step % number == 0]
        raise RecipeError(
            f"train.groups_per_step={groups_per_step} cannot be divided evenly among {num} processes: start "
            f"{', '.join(map(str, even))}, or set train.groups_per_step to a multiple of {num} (another training)"
        )
    return groups_per_step // num


def is_sharded() -> bool:
    """Tell whether each process has a part of the model (FSDP), rather than a copy of it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def require_devices() -> None:
    """Refuse FSDP without GPUs or with one process (RecipeError); accelerate would copy the model instead."""
    if not is_sharded():
        return
    import torch

    if not torch.cuda.is_available():
        raise RecipeError("ACCELERATE=fsdp shares a model out among GPUs, and there is none; leave it out")
    if process_count() == 1:
        raise RecipeError("ACCELERATE=fsdp needs several processes: set PROCESSES to how many GPUs there are")


def open_run_together(folder: Path, open_run: Callable[[Path], Path]) -> Path:
    """Let the main process open the run; return its folder, which may hold the time, to all processes.

    If it cannot be opened, the main process raises the error, and the others exit with status 2.
    """
    if process_count() == 1:
        return open_run(folder)
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

    PartialState(cpu=not torch.cuda.is_available())
    agreed: list[str | None] = [None]
    problem: LLMWrapperError | None = None
    if is_main_process():
        try:
            agreed = [str(open_run(folder))]
        except LLMWrapperError as error:
            problem = error
    broadcast_object_list(agreed)
    if problem is not None:
        raise problem
    if agreed[0] is None:
        raise SystemExit(2)
    return Path(agreed[0])


def leave_process_group() -> bool:
    """Leave the group of processes; return whether this is the main one, which continues alone."""
    if process_count() > 1:
        import torch

        torch.distributed.destroy_process_group()
    return is_main_process()


@contextmanager
def print_from_main(console: Console) -> Iterator[None]:
    """Let the main process alone print, also an error that all processes raise."""
    console.quiet = not is_main_process()
    try:
        yield
    except LLMWrapperError as error:
        if is_main_process():
            raise
        raise SystemExit(2) from error


_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class _Stopped(BaseException):
    """A signal arrived; not an `Exception`, so that no library handles it as an error."""


@contextmanager
def exit_on_signal(run: Path, console: Console) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a message with the command that resumes, and exit status 130 or 143.

    A second signal is ignored. Outside the main thread signals cannot be caught.
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

    def send_again(unraisable: sys.UnraisableHookArgs) -> None:
        """Send a signal again that arrived in a finalizer or a weakref's callback: Python drops what these raise."""
        if isinstance(unraisable.exc_value, _Stopped):
            threading.Timer(0.05, os.kill, (process, caught.pop())).start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, send_again
    before = {number: signal.signal(number, stop) for number in _NAMES}
    try:
        yield
    except BaseException as error:
        # Libraries may wrap `_Stopped` in another exception.
        if not caught:
            raise
        checkpoint = checkpoints.find_last_complete(run / "checkpoints")
        place = f"after step {runs.step_of(checkpoint)}" if checkpoint else "from the start (no checkpoint yet)"
        name = _NAMES[signal.Signals(caught[0])]
        say(console, f"stopped by {name}. To resume {place}: {runs.resume_command(run)}")
        raise SystemExit(128 + caught[0]) from error
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
