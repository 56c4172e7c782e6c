"""The sections of a recipe, and the whole: every choice with its default, validated."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe.files import shipped_folder
from llm_wrapper.storage import folder_name

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""The range of NumPy's seeds."""

TEMPLATE_DATE = date(2024, 7, 26)
"""The day that chat templates write; Llama 3.1's has it as its own. Today's would give other prompts tomorrow."""

_MANY = 1_000_000
"""The largest number of steps, groups or tokens: each becomes an object in memory."""


def _safe(name: str, info: ValidationInfo) -> str:
    try:
        return folder_name(name, info.field_name or "label")
    except RecipeError as error:
        raise ValueError(str(error)) from error


FolderName = Annotated[str, AfterValidator(_safe)]
"""A word that becomes a part of a path: detections, answers and results are under it."""


def _short(path: Path) -> Path:
    if len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError("no file can have so long a name")
    return path


_Root = Annotated[Path, AfterValidator(_short)]

_Line = Annotated[str, Field(max_length=1000)]
"""A name or a path; nothing that is used has more characters."""


class Section(BaseModel):
    """A part of a recipe: immutable, without unknown keys and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=200_000)


class DetectorSection(Section):
    """Which detector, and the settings that decide its answers.

    `label` names its cached detections' folder and, where several are mixed, its candidates; it is the name of the
    recipe's file unless it is set, so that two sets of settings can be kept beside each other.
    """

    name: FolderName = Field(description="name in the registry of detectors")
    label: FolderName | None = None
    settings: dict[str, Any] = {}


class OtherDetector(Section):
    """A further detector of an ensemble, with its own choice of boxes; cap and order are those of the whole."""

    detector: DetectorSection
    candidates: CandidatePolicy = CandidatePolicy()


class EnsembleSection(Section):
    """The detectors beside the recipe's own, by label: `--vlm a+b` puts b here.

    `nms_iou` is the IoU above which boxes of different detectors are taken for one, see
    `candidates.merge_candidates`. Detectors cut one object differently, so it is lower than that within most detectors.
    """

    also: dict[FolderName, OtherDetector] = {}
    nms_iou: float | None = Field(0.7, gt=0, le=1)


class DataSection(Section):
    """Which data set, where it lies, and which splits are trained on and evaluated."""

    name: FolderName = Field(description="name of the data set, also the folder name of its cached detections")
    reader: _Line = Field(description="name in the registry of data sets")
    root: _Root
    settings: dict[str, Any] = {}
    train_split: FolderName = "train"
    eval_split: FolderName = "val"

    @property
    def folder(self) -> Path:
        """The root; where a relative one does not exist, that of the data that come with the package."""
        shipped = shipped_folder() / self.root
        is_shipped = not self.root.is_absolute() and ".." not in self.root.parts and not os.path.exists(self.root)
        return shipped if is_shipped and shipped.is_dir() else self.root


class OtherData(Section):
    """A further data set to train on, read as `data` is, from the same root."""

    name: FolderName
    settings: dict[str, Any] = {}
    train_split: FolderName = "train"


class PromptSection(Section):
    """The text of a question: a shipped format or a `.j2` template, examples, and whether "none of these" is an answer.

    A template is named by its path on the command line; a recipe's file names one that lies beside it.

    `instruction` takes the place of the format's own words; it has `{objects}` and `{expression}` in it once each
    (`prompts/instruction.py`). `examples` many training expressions are shown with their answers before the question:
    the same for all, or with `retrieve` those nearest to it by `embedder`, which is `lexical`, a hub id or folder of a
    BERT for sentences, or `package:NAME` for one inside an installed Python package. With `reasoning_tokens` the LLM
    first writes at most that number of tokens, and is asked for the answer after them. An LLM is trained with format,
    instruction and `none` alone.

    With `none` the LLM may answer that none of the candidates is meant, and is trained to say so of expressions without
    a target, or whose target the detector does not offer. `none_below` makes a choice that is less probable the same
    answer, without training; choose it on samples that are neither trained on nor reported (`llm-wrapper report
    --none-below`).
    """

    format: _Line = "relations"
    instruction: str | None = None
    examples: int = Field(0, ge=0, le=64)
    retrieve: bool = False
    embedder: _Line = "lexical"
    reasoning_tokens: int = Field(0, ge=0, le=4096)
    none: bool = False
    none_below: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_together(self) -> PromptSection:
        if self.retrieve and not self.examples:
            raise ValueError("prompt.retrieve looks for examples, and prompt.examples is 0: say how many")
        return self

    @property
    def summary(self) -> str:
        """The format, and what is added to it, in a few words."""
        examples = f"{self.examples} {'retrieved' if self.retrieve else 'fixed'} examples" if self.examples else ""
        below = "" if self.none_below is None else f"none below {self.none_below:g}"
        more = ("own instruction" if self.instruction is not None else "", "or none" * self.none, below, examples)
        reasoning = f"up to {self.reasoning_tokens} tokens of reasoning" if self.reasoning_tokens else ""
        return ", ".join(part for part in (self.format, *more, reasoning) if part)


class ServerSection(Section):
    """Where an OpenAI-compatible server is, and how many requests it gets at once.

    `key_variable` names the environment variable with the key, which is sent only to an address that this user has
    allowed for it (`services.py`). `tokenizer` is a hub id or a folder, where the server knows the model by another
    name than `llm.model`; only scoring needs it. `request_seconds` limits one request as a whole.
    """

    base_url: str = Field("http://localhost:8000/v1", pattern=r"^https?://[^\s@?#]+$", max_length=1000)
    key_variable: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$", max_length=100)
    tokenizer: _Line | None = None
    concurrency: int = Field(16, ge=1, le=256)
    request_seconds: float = Field(120.0, gt=0, le=86400)


class LLMSection(Section):
    """Which LLM, and how it is loaded and asked; or which server to ask (`backend: openai`).

    `model` is a hub id, a local folder, `gguf:PATH.gguf` for a GGUF file, or `gguf:PACKAGE` for one inside an
    installed Python package; for a server the name that it serves the model under. `decode` is what the answer is
    read from; a local model knows only `score` and `generate` (`llms/server_formats.py` says what the others are).
    Probabilities are averaged over `orders` orders of the candidates, at that multiple of the cost.

    Chat templates write a date (Llama 3.2, SmolLM3, Granite, gpt-oss) and an empty or open thought (Qwen3, GLM-4,
    Nemotron): `template_date` is the date that they get, and `enable_thinking` what they are given by that name.
    """

    backend: Literal["transformers", "rule", "openai"] = "transformers"
    model: _Line | None = None
    revision: _Line | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"] = "auto"
    quantization: Literal["auto", "none", "nf4"] = "auto"
    chat_template: str | None = None
    template_date: date = TEMPLATE_DATE
    enable_thinking: bool = False
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

    rank: int = Field(16, ge=1, le=4096)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Annotated[list[_Line], Field(max_length=1000)] | Literal["all-linear"] = "all-linear"


class TrainSection(Section):
    """Supervised fine-tuning. A group is one image with some of its expressions behind one shared prefix.

    `limit` annotated expressions, of whole images drawn by the seed, are all that is used; those of a smaller limit are
    among those of a larger one. A checkpoint is written every `save_steps` steps, and training resumes from one of the
    last two. `keep_adapters` chooses the intermediate adapters that `make curve` needs: `doubling` keeps those of 1, 2,
    4, 8 .. times `save_steps`. `report_to` names trackers that receive the training log.

    A step is of `groups_per_step` groups, which go through the model in parts of at most `tokens_per_batch` tokens with
    padding: the first decides what is learned, the second only the memory.

    The first `generated_steps` steps are on generated expressions alone, for which no annotation is needed; after
    them, up to `generated_per_group` of a group's expressions are generated.

    `lora` is for the methods LoRA and DoRA, which change the weights, as (IA)3 does; the other methods learn
    `virtual_tokens` tokens before the prompt, and leave the weights as they are.
    """

    method: Literal["lora", "dora", "ia3", "prompt-tuning", "prefix-tuning"] = "lora"
    virtual_tokens: int = Field(20, ge=1, le=1024)
    lora: LoraSection = LoraSection()
    learning_rate: float = Field(5e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(20, ge=0, le=_MANY)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(1, ge=1, le=1000)
    max_steps: int | None = Field(None, ge=1, le=100 * _MANY)
    groups_per_step: int = Field(4, ge=1, le=_MANY)
    tokens_per_batch: int = Field(4096, ge=64, le=_MANY)
    expressions_per_group: int = Field(8, ge=1, le=_MANY)
    generated_steps: int = Field(0, ge=0, le=_MANY)
    generated_per_group: int = Field(0, ge=0, le=_MANY)
    shuffle_candidates: bool = False
    max_tokens: int = Field(1024, ge=32, le=_MANY)
    min_candidates: int = Field(2, ge=2)
    limit: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = False
    save_steps: int = Field(100, ge=1, le=_MANY)
    keep_adapters: Literal["last", "doubling", "all"] = "doubling"
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    seed: Seed = 0
    also: list[OtherData] = []

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSection:
        if self.method == "prefix-tuning" and self.gradient_checkpointing:
            raise ValueError(
                "train.method=prefix-tuning learns a cache of keys and values, and train.gradient_checkpointing=true "
                "goes without any: set it to false, and lower train.tokens_per_batch where memory is short"
            )
        return self

    @property
    def method_words(self) -> str:
        """The method and its size, in a few words."""
        if name := {"lora": "LoRA", "dora": "DoRA"}.get(self.method):
            return f"{name} of rank {self.lora.rank}, alpha {self.lora.alpha:g}, dropout {self.lora.dropout:g}"
        return "(IA)3" if self.method == "ia3" else f"{self.method} of {self.virtual_tokens} tokens"

    @property
    def is_soft(self) -> bool:
        """Whether tokens are learned, which cannot be merged into the weights."""
        return self.method in ("prompt-tuning", "prefix-tuning")


class SamplingSection(Section):
    """How the proposing LLM draws a prompt; arXiv 2410.06154 draws 50 tokens, and our instructions are longer.

    `top_k` may be null for servers that do not know it (OpenAI's).
    """

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int | None = Field(50, ge=1)
    max_new_tokens: int = Field(160, ge=1, le=4096)


class SearchSection(Section):
    """How an LLM searches for a better prompt, see `search.search_prompts` (GLOV, arXiv 2410.06154).

    Attributes:
        target: The selector's instruction, or the caption that an open-vocabulary detector is asked with.
        seed_prompt: Where the search begins; by default `prompt.instruction`, or plain words.
        description: Task and data, in words for the proposing LLM; by default a text from the recipe.
        iterations: Rounds of proposals.
        samples: Proposals a round.
        shown: Number of best and of worst prompts that the proposing LLM sees.
        slice: Expressions to measure a prompt on.
        first: Size of their first part; a prompt that is far behind there is measured no further.
        confirm: Other expressions, of other images, to measure the winner on once.
        fitness: What is counted as right: the chosen box, or (of a caption) that any candidate is.
        ensemble: How the best three decide together: by their mean probability, or by vote.
        alphas: Strengths of the activation steering, spread over the samples of a round; empty: none.
        layer: The decoder layer after which activations are steered, from 1; by default half of the depth.
        proposer: The proposing LLM, if it is not the selector itself.
    """

    target: Literal["instruction", "caption"] = "instruction"
    seed_prompt: str | None = None
    description: str | None = None
    iterations: int = Field(10, ge=1, le=10_000)
    samples: int = Field(5, ge=1, le=1000)
    shown: int = Field(5, ge=1, le=1000)
    slice: int = Field(300, ge=2)
    first: int = Field(50, ge=1)
    confirm: int = Field(300, ge=2)
    fitness: Literal["p_at_1", "oracle"] = "p_at_1"
    ensemble: Literal["mean", "vote"] = "mean"
    sampling: SamplingSection = SamplingSection()
    alphas: Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=1000)] = []
    layer: int | None = Field(None, ge=1)
    proposer: LLMSection | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSection:
        if self.first > self.slice:
            raise ValueError(f"search.first={self.first} is more than search.slice={self.slice}")
        if self.fitness == "oracle" and self.target == "instruction":
            raise ValueError("search.fitness=oracle is for search.target=caption: an instruction changes no candidate")
        return self
