"""The device that models run on, and how their weights are loaded: one way for detectors, LLMs and training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from transformers.utils import logging as bars

from llm_wrapper.errors import RecipeError
from llm_wrapper.terminal import SHOWS_LOADING

_log = logging.getLogger(__name__)


def choose_device(setting: str = "auto") -> torch.device:
    """Return the device that a recipe names; `auto` is this process's CUDA GPU where there is one, else the CPU.

    Apple's and Intel's GPUs are not used by `auto`: nothing here has been tried on them. A warning says so once.
    """
    if setting != "auto":
        chosen, count = torch.device(setting), torch.cuda.device_count()
        if chosen.type == "cuda" and (chosen.index or 0) >= count:
            raise RecipeError(f"detector.settings.device={setting}: PyTorch sees {count} CUDA devices; use device=auto")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    _warn_of_unused_gpus()
    return torch.device("cpu")


@contextmanager
def loading_bars() -> Iterator[None]:
    """Show the progress bars of transformers while weights are loaded, unless `SHOWS_LOADING` says no."""
    if SHOWS_LOADING.get() or not bars.is_progress_bar_enabled():
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()


@cache
def _warn_of_unused_gpus() -> None:
    unused = [name for name in ("mps", "xpu") if getattr(torch, name).is_available()]
    if unused:
        _log.warning("models run on the CPU: the GPU of this machine (%s) is not used, only CUDA is", unused[0])
