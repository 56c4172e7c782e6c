"""What the sections of a recipe hold: every choice with its default, validated by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_wrapper.candidates import CandidatePolicy

__all__ = [
    "DataSection",
    "DetectorSection",
    "EnsembleSection",
    "LLMSection",
    "LoraSection",
    "OtherData",
    "OtherDetector",
    "PromptSection",
    "Section",
    "ServerSection",
    "TrainSection",
]


class Section(BaseModel):
    """A part of a recipe: it refuses unknown keys, and is not changed once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectorSection(Section):
    """Which detector, and the settings that decide its answers.

    `label` names its cached detections' folder and, where several are mixed, its candidates; it is the name of the
    recipe's file unless it is set, so that two sets of settings can be kept beside each other.
    """

    name: str = Field(description="name in the registry of detectors")
    label: str | None = Field(None, pattern=r"^[\w.+-]+$")
    settings: dict[str, Any] = {}


class OtherDetector(Section):
    """A further detector of an ensemble, with its own choice of boxes; cap and order are those of the whole."""

    detector: DetectorSection
    candidates: CandidatePolicy = CandidatePolicy()


class EnsembleSection(Section):
    """The detectors beside the recipe's own, by label: `--vlm a+b` puts b here.

    `nms_iou` is the IoU above which boxes of different detectors are taken for one, see `candidates.merge`. Detectors
    cut one object differently, so it is lower than that within most detectors.
    """

    also: dict[str, OtherDetector] = {}
    nms_iou: float | None = Field(0.7, gt=0, le=1)


class DataSection(Section):
    """Which data set, where it lies, and which splits are trained on and evaluated."""

    name: str = Field(description="name of the data set, also the folder name of its cached detections")
    reader: str = Field(description="name in the registry of data sets")
    root: Path
    settings: dict[str, Any] = {}
    train_split: str = "train"
    eval_split: str = "val"


class OtherData(Section):
    """A further data set to train on, read as `data` is, from the same root."""

    name: str
    settings: dict[str, Any] = {}
    train_split: str = "train"


class PromptSection(Section):
    """How candidates are worded; a shipped format or the path of a `.j2` template."""

    format: str = "relations"


class ServerSection(Section):
    """Where an OpenAI-compatible server is, and how hard it may be asked.

    `key_variable` names the environment variable whose value is sent as the key. Without it none is sent, so that no
    key reaches a server that it is not meant for. `tokenizer` is a hub id or a folder, where the server knows the model
    by another name than `llm.model`; only scoring needs it. `request_seconds` is the time-out of one request.
    """

    base_url: str = Field("http://localhost:8000/v1", pattern=r"^https?://[^\s@?#]+$")
    key_variable: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    tokenizer: str | None = None
    concurrency: int = Field(16, ge=1, le=256)
    request_seconds: float = Field(120.0, gt=0, allow_inf_nan=False)


class LLMSection(Section):
    """Which LLM, and how it is loaded and asked; or which server to ask (`backend: openai`).

    `model` is a hub id, a local folder, or `gguf:PACKAGE` for a GGUF file inside an installed Python package; for a
    server the name that it serves the model under. `decode` is what the answer is read from; a local model knows only
    `score` and `generate` (`llms/server_ways.py` says what the others are). With `orders` over one, probabilities are
    averaged over so many orders of the candidates, at as many times the cost.
    """

    backend: Literal["transformers", "rule", "openai"] = "transformers"
    model: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    quantization: Literal["auto", "none", "nf4"] = "auto"
    chat_template: str | None = None
    decode: Literal["score", "first_token", "choice", "generate"] = "score"
    max_new_tokens: int = Field(8, ge=1)
    orders: int = Field(1, ge=1)
    tokens_per_batch: int = Field(4096, ge=64)
    server: ServerSection = ServerSection()

    @model_validator(mode="after")
    def _fits_together(self) -> LLMSection:
        if self.backend == "openai" and self.model is None:
            raise ValueError("llm.model is not set: give the name that the server serves the model under")
        if self.backend != "openai" and self.decode not in ("score", "generate"):
            raise ValueError(f"llm.decode={self.decode} is for servers (llm.backend=openai); others score or generate")
        return self


class LoraSection(Section):
    """Low-rank adapters; `alpha` is the scale before division by `rank`."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class TrainSection(Section):
    """Supervised fine-tuning. A group is one image with some of its expressions behind one shared prefix."""

    lora: LoraSection = LoraSection()
    learning_rate: float = Field(5e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    groups_per_step: int = Field(4, ge=1)
    accumulation: int = Field(1, ge=1)
    expressions_per_group: int = Field(8, ge=1)
    generated_per_group: int = Field(0, ge=0)
    shuffle_candidates: bool = False
    max_tokens: int = Field(1024, ge=32)
    min_candidates: int = Field(2, ge=2)
    limit: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = False
    save_steps: int = Field(100, ge=1)
    seed: int = 0
    also: list[OtherData] = []
