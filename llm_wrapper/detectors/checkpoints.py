"""Load the weights of detectors: from which commit, onto which device, and with no weight missing.

PyTorch is imported when weights are loaded: a cache is opened, and its identity compared, without either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper import storage
from llm_wrapper.errors import ModelError

if TYPE_CHECKING:
    import torch


class CheckpointSettings(BaseModel):
    """Settings of every detector with weights.

    `model` is a hub id or a local folder. `revision` is a commit, tag or branch on the hub; pin a commit, because a
    cache cannot notice that a branch moved. `device` auto takes a GPU where there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    revision: str | None = None
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the vision tower takes it: pixel values (1, 3, height, width), and its own size in pixels."""

    pixel_values: torch.Tensor
    image_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The `model_type`s that a checkpoint may have, the names of transformers' classes for it, and a remedy."""

    model_types: tuple[str, ...]
    model: str
    processor: str | Callable[[str, str], Any]
    """A class, or a function of name and revision."""
    remedy: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in evaluation mode, its processor, and the commit or the local files that both were loaded from."""

    model: Any
    processor: Any
    commit: str | None = None
    files: str | None = None

    def recorded(self, *parts: Any) -> dict[str, Any]:
        """Return how the model computes; `parts` are the configurations of its parts that have an attention."""
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
    """A model that is loaded when it is first needed; several threads, and several detectors, may share it."""

    def __init__(self, load: Callable[[], Loaded], built: Loaded | None = None) -> None:
        self._load, self._lock = load, threading.Lock()
        self.built = built
        """The model, if it has been needed."""

    def loaded(self) -> Loaded:
        """Return the model; raise a ModelError if it cannot be loaded."""
        with self._lock:
            if self.built is None:
                self.built = self._load()
            return self.built


def load_checkpoint(settings: CheckpointSettings, architecture: Architecture, *, dtype: str, **options: Any) -> Loaded:
    """Load a model and its processor from a hub or a folder; code that comes with them is never run.

    `dtype` auto is float16 on a GPU and float32 on the CPU; `options` are for `from_pretrained` of the model.

    Raises:
        ModelError: If anything of it cannot be loaded, or weights are missing.
        RecipeError: If the device is not there.
    """
    import torch
    import transformers
    from transformers.utils import cached_file, extract_commit_hash

    from llm_wrapper.devices import choose_device, loading_bars

    device = choose_device(settings.device)
    default = torch.float16 if device.type == "cuda" else torch.float32
    name, asked = settings.model, settings.revision or "main"
    try:
        commit = extract_commit_hash(cached_file(name, "config.json", revision=asked), None)
        revision = commit or asked
        with loading_bars():
            kind = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).model_type
            if kind not in architecture.model_types:
                raise ValueError(f"it is a {kind}, not a {' or '.join(architecture.model_types)}")
            options["dtype"] = default if dtype == "auto" else getattr(torch, dtype)
            model, report = getattr(transformers, architecture.model).from_pretrained(
                name, revision=revision, output_loading_info=True, trust_remote_code=False, **options
            )
        # transformers fills a checkpoint's gaps with random numbers, and only logs it.
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} of the weights are missing, such as {missing[0]}")
        if callable(architecture.processor):
            processor = architecture.processor(name, revision)
        else:
            processor = getattr(transformers, architecture.processor).from_pretrained(
                name, revision=revision, trust_remote_code=False
            )
        return Loaded(model.to(device).eval(), processor, commit, storage.digest_model(name))
    except Exception as error:  # hub, file, JSON, configuration, tokenizer, memory: loading may raise anything
        what = f"detector.settings.model={name} (revision {asked}) cannot be used"
        raise ModelError(f"{what}: {type(error).__name__}: {error}. {architecture.remedy}") from error
