"""Count a model without its weights: build it on the meta device, put PEFT's adapters on it, measure some prompts.

The counts are those of the real training; Mixtral 8x7B is counted on a laptop in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import psutil  # type: ignore[import-untyped,unused-ignore]
import torch
import transformers

from llm_wrapper.devices import choose_device
from llm_wrapper.errors import ModelError
from llm_wrapper.llms import load as loading
from llm_wrapper.llms import nf4
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.recipe import LLMSection, Recipe
from llm_wrapper.training import architecture, trainer
from llm_wrapper.training.adapters import adapt_layers, adapter_config, describe_targets
from llm_wrapper.training.collator import IGNORED, Collator
from llm_wrapper.training.examples import Group, schedule_groups
from llm_wrapper.training.memory_estimate import (
    BatchShape,
    MemoryEstimate,
    ModelSizes,
    TrainingSetup,
    estimate_memory,
    fits_memory,
)

__all__ = [
    "EpochSize",
    "TrainingDevice",
    "TrainingEstimate",
    "add_tokenizer",
    "build_weightless_model",
    "count_sizes",
    "describe_setup",
    "estimate_training",
    "find_device",
    "longest_batch",
    "measure_epoch",
]

_SAMPLED = 128
"""Groups whose prompts are measured; the epoch's tokens are extrapolated from them."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux keeps the memory limit of a container."""


@dataclass(frozen=True, slots=True)
class TrainingDevice:
    """The device of a training, and its free bytes."""

    name: str
    free: int


@dataclass(frozen=True, slots=True)
class EpochSize:
    """Steps of the whole training, tokens of one epoch with padding, and its largest batch; extrapolated."""

    num_steps: int
    num_tokens: int
    largest: BatchShape


def build_weightless_model(section: LLMSection) -> Any:
    """Build the model of a recipe section without weights, from its settings alone.

    Raises:
        ModelError: If the settings cannot be read, or their architecture is unknown.
    """
    if section.model is None:
        raise ModelError("llm.model is not set: give a hub id, a folder, or gguf:PACKAGE")
    where = choose_device()
    options: dict[str, Any] = {
        "dtype": loading._dtype(section, where),
        "attn_implementation": loading._attention(section, where),
    }
    try:
        config = loading.load_config(section)
        if _is_4bit(section):
            nf4.require_packable(str(section.model), config)
        with torch.device("meta"):
            if _is_4bit(section) and config.model_type == "mixtral":  # its experts are layers of their own in 4 bit
                values = {key: value for key, value in config.to_dict().items() if key != "model_type"}
                return nf4._ApartMixtral._from_config(nf4._ApartConfig(**values), **options)
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise ModelError(f"llm.model={section.model} cannot be planned: {error}") from error


def add_tokenizer(model: Any, section: LLMSection) -> LoadedLLM:
    """Add the tokenizer to a model without weights, so that prompts can be measured.

    Raises:
        ModelError: If it cannot be read.
    """
    return LoadedLLM(model, loading.load_tokenizer(section), section)


def count_sizes(model: Any, adapter: peft.PeftConfig) -> ModelSizes:
    """Count the parameters of a model without weights, put adapters on it, and count these."""
    return _counted(model, adapter)[0]


def _counted(model: Any, adapter: peft.PeftConfig) -> tuple[ModelSizes, str]:
    """Return the sizes of a model with adapters, and which layers carry them."""
    config, output = model.config.get_text_config(), model.get_output_embeddings()
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    packable = [parameter.numel() for parameter in nf4.packable_weights(model)]
    adapted = adapt_layers(model, adapter, low_cpu_mem_usage=True)
    inputs = _adapter_inputs(adapted, output)
    rebuilt = getattr(adapted.base_model, "targeted_parameter_names", ())
    sizes = ModelSizes(
        num_parameters=sum(numbers.values()),
        num_packable=sum(packable),
        num_trainable=sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad),
        rank=getattr(adapter, "r", 0),
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=architecture.feedforward_width(config),
        attended=architecture.attention_width(config),
        num_heads=architecture.attention_heads(config),
        vocabulary=config.vocab_size,
        adapter_inputs=round(sum(width * share for width, share in inputs)),
        num_adapters=round(sum(share for _, share in inputs)),
        largest_weight=max(packable, default=0),
        num_rebuilt=sum(numbers[name] for name in rebuilt),
    )
    return sizes, "no layer: learned tokens" if adapter.is_prompt_learning else describe_targets(adapted)


def _adapter_inputs(adapted: Any, output: Any) -> list[tuple[int, float]]:
    """Return, for each adapter in the layers, the width of its input and the share of tokens that pass it."""
    config = adapted.get_base_model().config
    passed, experts = architecture.experts_per_token(config), max(1, architecture.num_experts(config))
    return [
        (module.in_features, passed / experts if ".experts." in name else 1.0)
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and module.get_base_layer() is not output
    ]


def _is_4bit(section: LLMSection) -> bool:
    return section.quantization == "nf4" or (section.quantization == "auto" and choose_device().type == "cuda")


def describe_setup(recipe: Recipe, model: Any) -> TrainingSetup:
    """Return how a recipe trains the model, on the device at hand."""
    attention = model.config.get_text_config()._attn_implementation
    return TrainingSetup(
        number_bytes=model.dtype.itemsize,
        is_4bit=_is_4bit(recipe.llm),
        is_eager=attention == "eager",
        has_dropout=recipe.train.lora.dropout > 0,
        has_checkpointing=recipe.train.gradient_checkpointing,
        has_mask=attention in {"eager", "sdpa"},
        can_checkpoint=recipe.train.method != "prefix-tuning",
        can_pack=nf4.packable_share(model) >= nf4.LEAST_SHARE,
    )


def longest_batch(recipe: Recipe) -> BatchShape:
    """Return the largest possible batch: every row as long as `train.max_tokens` allows."""
    section = recipe.train
    rows = min(section.groups_per_step, max(1, section.tokens_per_batch // section.max_tokens))
    return BatchShape(rows, section.max_tokens, 2 * rows)


def measure_epoch(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> EpochSize | None:
    """Measure up to 128 evenly spread groups as the trainer will batch them; None if none fits `train.max_tokens`."""
    measured = groups[:: -(-len(groups) // _SAMPLED) or 1]
    kept, _ = trainer.fit_to_length(llm, measured, recipe)
    if not kept:
        return None
    section = recipe.train.model_copy(update={"epochs": 1, "max_steps": None})
    collate = Collator(llm, kept, recipe)
    rows = [{"epoch": epoch, "group": place} for epoch, place in schedule_groups(kept, section)]
    size = section.groups_per_step
    batches = [
        BatchShape(len(part["labels"]), part["labels"].shape[1], int((part["labels"] != IGNORED).sum()))
        for start in range(0, len(rows), size)
        for part in collate(rows[start : start + size])["parts"]
    ]
    share = len(groups) / len(measured)
    num_groups = recipe.train.epochs * round(share * len(kept))
    num_steps = math.ceil(num_groups / size)
    return EpochSize(
        min(num_steps, recipe.train.max_steps or num_steps),
        round(share * sum(batch.num_tokens for batch in batches)),
        max(batches, key=lambda batch: (batch.num_tokens, batch.length)),
    )


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """The estimate of a training: `targets` names the adapted layers, `epoch` is None where prompts are unknown."""

    sizes: ModelSizes
    targets: str
    setup: TrainingSetup
    batch: BatchShape
    epoch: EpochSize | None
    device: TrainingDevice

    @property
    def memory(self) -> MemoryEstimate:
        """Bytes of its largest step."""
        return estimate_memory(self.sizes, self.setup, self.batch)

    @property
    def fits(self) -> bool:
        """Whether the device has that much memory free."""
        return fits_memory(self.memory.peak, self.device.free)


def estimate_training(recipe: Recipe, groups: Sequence[Group] | None) -> TrainingEstimate:
    """Estimate the training of a recipe on this machine's device, without loading the model.

    Args:
        recipe: Its LLM is one of transformers.
        groups: Without any, prompts count as long as `train.max_tokens` allows.

    Raises:
        ModelError: If the settings cannot be read, or adapters cannot be put on the model.
    """
    model = build_weightless_model(recipe.llm)
    setup = describe_setup(recipe, model)
    epoch = measure_epoch(add_tokenizer(model, recipe.llm), groups, recipe) if groups else None
    adapter = adapter_config(recipe.train, model)
    try:
        sizes, targets = _counted(model, adapter)
    except ModelError:
        raise
    except Exception as error:  # an untested architecture may lack any setting
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"llm.model={recipe.llm.model} cannot be planned: {reason}") from error
    batch = epoch.largest if epoch else longest_batch(recipe)
    if recipe.train.is_soft:
        batch = replace(batch, length=batch.length + recipe.train.virtual_tokens)
    return TrainingEstimate(sizes, targets, setup, batch, epoch, find_device())


def find_device() -> TrainingDevice:
    """Return the GPU with its free memory, else the CPU with the free memory of the container or the machine."""
    where = choose_device()
    if where.type == "cuda":
        return TrainingDevice(torch.cuda.get_device_name(where), torch.cuda.mem_get_info(where)[0])
    limits = [path.read_text(encoding="ascii").strip() for path in _LIMITS if path.is_file()]
    taken = psutil.Process().memory_info().rss
    free = [int(limit) - taken for limit in limits if limit.isdigit()]
    return TrainingDevice("CPU", max(0, min([psutil.virtual_memory().available, *free])))
