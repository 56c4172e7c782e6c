"""Load the weights of detectors: from which commit, onto which device, and with no weight missing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.utils import cached_file, extract_commit_hash

from llm_wrapper import storage
from llm_wrapper.devices import loading_bars
from llm_wrapper.errors import ModelError

__all__ = ["Architecture", "Loaded", "PreparedImage", "Weights", "load_checkpoint"]


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the vision tower takes it: pixel values (1, 3, height, width), and its own size in pixels."""

    pixel_values: torch.Tensor
    image_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The `model_type`s that a checkpoint may have, transformers' classes for it, and what to do without one."""

    model_types: tuple[str, ...]
    model: Any
    processor: Any
    remedy: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode, its processor, and the commit or the local files that both were loaded from."""

    model: Any
    processor: Any
    commit: str | None = None
    files: str | None = None

    def recorded(self, *parts: Any) -> dict[str, Any]:
        """Return how the model computes, which is recorded with its answers and never compared.

        Args:
            *parts: The configurations of those parts of the model that have an attention.
        """
        facts = {
            "commit": self.commit,
            "files": self.files,
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": "+".join(sorted({str(part._attn_implementation) for part in parts})),
            "image_processor": type(self.processor.image_processor).__name__,
        }
        return {name: value for name, value in facts.items() if value is not None}


class Weights:
    """A model that is loaded when it is first needed; several threads, and several detectors, may share it.

    A cache can so be opened, and its identity compared, without the weights.
    """

    def __init__(self, load: Callable[[], Loaded], built: Loaded | None = None) -> None:
        self._load, self._built, self._lock = load, built, threading.Lock()

    @property
    def built(self) -> Loaded | None:
        """The model, if it has been needed."""
        return self._built

    def loaded(self) -> Loaded:
        """Return the model; it is loaded where it is not there yet.

        Raises:
            ModelError: If it cannot be loaded.
        """
        with self._lock:
            if self._built is None:
                self._built = self._load()
            return self._built


def load_checkpoint(
    name: str, revision: str | None, architecture: Architecture, *, where: torch.device, **options: Any
) -> Loaded:
    """Load a model and its processor from a hub or a folder; code that comes with them is never run.

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
        with loading_bars():
            model = _model(name, commit or asked, architecture, options)
        processor = architecture.processor.from_pretrained(name, revision=commit or asked, trust_remote_code=False)
        return Loaded(model.to(where).eval(), processor, commit, storage.digest_model(name))
    except Exception as error:  # what loading may raise is open: hub, file, JSON, configuration, tokenizer, memory
        what = f"detector.settings.model={name} (revision {asked}) cannot be used"
        raise ModelError(f"{what}: {type(error).__name__}: {error}. {architecture.remedy}") from error


def _model(name: str, revision: str, architecture: Architecture, options: dict[str, Any]) -> Any:
    kind = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).model_type
    if kind not in architecture.model_types:
        raise ValueError(f"it is a {kind}, not a {' or '.join(architecture.model_types)}")
    model, report = architecture.model.from_pretrained(
        name, revision=revision, output_loading_info=True, trust_remote_code=False, **options
    )
    # transformers fills what a checkpoint lacks with random numbers, and only logs it.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} of the weights are missing, such as {missing[0]}")
    return model
