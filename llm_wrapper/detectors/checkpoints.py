"""What detectors with weights of a hub share: which commit is loaded, where to, and that no weight is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.utils import cached_file, extract_commit_hash

from llm_wrapper.errors import ModelError, RecipeError

__all__ = ["Architecture", "PreparedImage", "device", "load"]


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the vision tower takes it: pixel values (1, 3, height, width), and its own size in pixels."""

    pixel_values: torch.Tensor
    image_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The `model_type` that a checkpoint must have, transformers' classes for it, and what to do without one."""

    model_type: str
    model: Any
    processor: Any
    remedy: str


def device(setting: str) -> torch.device:
    """Return the device that a recipe names; `auto` is a GPU where there is one.

    Raises:
        RecipeError: If the device is not there.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, count = torch.device(setting), torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise RecipeError(f"detector.settings.device={setting}: PyTorch sees {count} CUDA devices; use device=auto")
    return found


def load(
    name: str, revision: str | None, architecture: Architecture, *, where: torch.device, **options: Any
) -> tuple[Any, Any, str | None]:
    """Return a model in evaluation mode, its processor, and the commit that both were loaded from.

    Args:
        name: Hub id or local folder; a folder has no commit.
        revision: Commit, tag or branch; `None` is the main branch.
        architecture: What the checkpoint must be.
        where: The device.
        **options: For `from_pretrained` of the model.

    Raises:
        ModelError: If anything of it cannot be loaded, or weights are missing.
    """
    asked = revision or "main"
    try:
        commit = extract_commit_hash(cached_file(name, "config.json", revision=asked), None)
        model = _model(name, commit or asked, architecture, options)
        processor = architecture.processor.from_pretrained(name, revision=commit or asked)
        return model.to(where).eval(), processor, commit
    except Exception as error:  # what loading may raise is open: hub, file, JSON, configuration, tokenizer, memory
        what = f"detector.settings.model={name} (revision {asked}) cannot be used"
        raise ModelError(f"{what}: {type(error).__name__}: {error}. {architecture.remedy}") from error


def _model(name: str, revision: str, architecture: Architecture, options: dict[str, Any]) -> Any:
    kind = transformers.AutoConfig.from_pretrained(name, revision=revision).model_type
    if kind != architecture.model_type:
        raise ValueError(f"it is a {kind}, not a {architecture.model_type}")
    model, report = architecture.model.from_pretrained(name, revision=revision, output_loading_info=True, **options)
    # transformers fills what a checkpoint lacks with random numbers, and only logs it.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} of the weights are missing, such as {missing[0]}")
    return model
