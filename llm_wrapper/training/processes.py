"""Several processes of one training, as `accelerate launch` starts them: who is first, and who does what.

Each process knows its place from its environment. torch is imported only where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from llm_wrapper.errors import LLMWrapperError, RecipeError

__all__ = ["count", "is_main", "main_speaks", "open_together", "part", "require_devices", "share", "shares_model"]


def count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Tell whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def share(groups_per_step: int) -> int:
    """Return how many groups of a step each process takes, so that a recipe means the same run for any number of them.

    Raises:
        RecipeError: If the groups of a step cannot be shared out evenly.
    """
    if groups_per_step % count():
        even = [number for number in range(1, groups_per_step + 1) if groups_per_step % number == 0]
        raise RecipeError(
            f"train.groups_per_step={groups_per_step} cannot be shared out evenly among {count()} processes: start "
            f"{', '.join(map(str, even))}, or set train.groups_per_step to a multiple of {count()} (another training)"
        )
    return groups_per_step // count()


def shares_model() -> bool:
    """Tell whether each process has a part of the model (FSDP), rather than a copy of it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def require_devices() -> None:
    """Check that what `accelerate launch` was asked for can be done here.

    Raises:
        RecipeError: If weights are to be shared out (FSDP) without GPUs: accelerate would copy them without a word.
    """
    if not shares_model():
        return
    import torch

    if not torch.cuda.is_available():
        raise RecipeError("ACCELERATE=fsdp shares a model out among GPUs, and there is none; leave it out")
    if count() == 1:
        raise RecipeError("ACCELERATE=fsdp needs several processes: set PROCESSES to how many GPUs there are")


def open_together(folder: Path, open_run: Callable[[Path], Path]) -> Path:
    """Let the main process open the run; return its folder, which all processes then agree on.

    A folder's name may hold the time, which is not quite the same in two processes.

    Raises:
        LLMWrapperError: In the main process, if the run cannot be opened. The others then exit without a word.
    """
    if count() == 1:
        return open_run(folder)
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

    PartialState(cpu=not torch.cuda.is_available())
    agreed: list[str | None] = [None]
    problem: LLMWrapperError | None = None
    if is_main():
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


def part() -> bool:
    """Leave the group of processes, when nothing is done together any more; tell whether to go on as the main one."""
    if count() > 1:
        import torch

        torch.distributed.destroy_process_group()
    return is_main()


@contextmanager
def main_speaks(console: Console) -> Iterator[None]:
    """Let the main process alone print, also an error that all of them meet."""
    console.quiet = not is_main()
    try:
        yield
    except LLMWrapperError as error:
        if is_main():
            raise
        raise SystemExit(2) from error
