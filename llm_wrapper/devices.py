"""The device that models run on: detectors, LLMs and training choose it in one way."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from llm_wrapper.errors import RecipeError

__all__ = ["choose_device"]

_log = logging.getLogger(__name__)


def choose_device(setting: str = "auto") -> torch.device:
    """Return the device that a recipe names; `auto` is this process's CUDA GPU where there is one, else the CPU.

    Apple's and Intel's GPUs are not used by `auto`: nothing here has been tried on them. A warning says so once.

    Raises:
        RecipeError: If the device is not there.
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


@cache
def _warn_of_unused_gpus() -> None:
    unused = [name for name in ("mps", "xpu") if getattr(torch, name).is_available()]
    if unused:
        _log.warning("models run on the CPU: the GPU of this machine (%s) is not used, only CUDA is", unused[0])
