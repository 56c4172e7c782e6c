"""Estimate a training before it begins: its memory, steps and tokens, without loading the model.

recipe --build_weightless_model--> model on the meta device --adapters--> ModelSizes ---+
groups --measure_epoch--> largest BatchShape -------------------------------------------+--> MemoryEstimate

The counts are those of the real training; Mixtral 8x7B is counted on a laptop in seconds. Only the activations are an
estimate; docs/plan.md compares it with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from llm_wrapper.training import adapters, trainer
from llm_wrapper.training.collator import IGNORED, Collator
from llm_wrapper.training.examples import Group, schedule_groups

ADAPTER_BYTES = 4
"""Bytes of a number of the adapter: float32, whatever the model is kept in."""
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a packed weight: 4 bits, a byte per block of 64, a float32 per 256 of these (double quantization)."""
_MARGIN, _SURPLUS = 1.25, 250_000_000
"""A quarter more than the peak and these bytes must be free; docs/plan.md has measurements."""
_SMALL_RANK = 16
_SAMPLED = 128
"""Groups whose prompts are measured; the epoch's tokens are extrapolated from them."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux keeps the memory limit of a container."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Counts of a model with adapters; tied weights are counted once."""

    num_parameters: int
    num_packable: int  # weights that 4 bit packs: linear layers and experts, not the output layer
    num_trainable: int
    rank: int
    num_layers: int
    hidden: int
    inner: int  # width of the feed-forward layer, times the experts of a token
    attended: int  # width of all heads together
    num_heads: int
    vocabulary: int
    adapter_inputs: int  # numbers that a token brings into all adapters of the layers
    num_adapters: int  # adapters that a token passes
    largest_weight: int
    num_rebuilt: int = 0  # fused expert weights that PEFT adds adapters to in every pass
    targets: str = ""  # the adapted layers, for people


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How the model is loaded and trained."""

    number_bytes: int  # of a number of the model's own type
    is_4bit: bool
    is_eager: bool
    has_dropout: bool
    has_checkpointing: bool
    has_mask: bool = True  # of all pairs of tokens; flex attention has one of blocks
    can_checkpoint: bool = True  # the method allows gradient checkpointing
    can_pack: bool = True  # the model can be loaded in 4 bit


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Rows of `length` tokens with padding that go through the model at once, and their labelled tokens."""

    num_rows: int
    length: int
    num_answers: int

    @property
    def num_tokens(self) -> int:
        """Tokens with padding."""
        return self.num_rows * self.length


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by what they are for."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    working: int

    @property
    def peak(self) -> int:
        """All together, without Python and the libraries."""
        return sum((self.weights, self.adapter, self.gradients, self.optimizer, self.activations, self.working))


@dataclass(frozen=True, slots=True)
class EpochSize:
    """Steps of the whole training, tokens of one epoch with padding, and its largest batch; extrapolated."""

    num_steps: int
    num_tokens: int
    largest: BatchShape


@dataclass(frozen=True, slots=True)
class TrainingDevice:
    """The device of a training, and its free bytes."""

    name: str
    free: int


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """The estimate of a training; `epoch` is None where prompts are unknown."""

    sizes: ModelSizes
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
    """Estimate the training of a recipe, whose LLM is one of transformers, on this machine's device.

    Without groups, each row of the largest batch is as long as `train.max_tokens` allows.
    """
    model, section = build_weightless_model(recipe.llm), recipe.train
    setup, epoch = describe_setup(recipe, model), None
    if groups:
        epoch = measure_epoch(LoadedLLM(model, loading.load_tokenizer(recipe.llm), recipe.llm), groups, recipe)
    adapter = adapters.adapter_config(section, model)
    try:
        sizes = count_sizes(model, adapter)
    except ModelError:
        raise
    except Exception as error:  # an untested architecture may lack any setting
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"llm.model={recipe.llm.model} cannot be planned: {reason}") from error
    rows = min(section.groups_per_step, max(1, section.tokens_per_batch // section.max_tokens))
    batch = epoch.largest if epoch else BatchShape(rows, section.max_tokens, 2 * rows)
    if section.is_soft:
        batch = replace(batch, length=batch.length + section.virtual_tokens)
    return TrainingEstimate(sizes, setup, batch, epoch, find_device())


def build_weightless_model(section: LLMSection) -> Any:
    """Build the model of a recipe section without weights, from its settings alone; ModelError if they are unusable."""
    if section.model is None:
        raise ModelError("llm.model is not set: give a hub id, a folder, or gguf:PACKAGE")
    where = choose_device()
    options = {"dtype": loading._dtype(section, where), "attn_implementation": loading._attention(section, where)}
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


def _is_4bit(section: LLMSection) -> bool:
    return section.quantization == "nf4" or (section.quantization == "auto" and choose_device().type == "cuda")


def count_sizes(model: Any, adapter: peft.PeftConfig) -> ModelSizes:
    """Count the parameters of a model without weights, put adapters on it, and count these."""
    config, output = model.config.get_text_config(), model.get_output_embeddings()
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    packable = [parameter.numel() for parameter in nf4.packable_weights(model)]
    adapted = adapters.adapt_layers(model, adapter, low_cpu_mem_usage=True)
    own_config = adapted.get_base_model().config
    share = adapters.experts_per_token(own_config) / max(1, adapters.num_experts(own_config))
    inputs = [  # (width, share of the tokens that pass it) of each adapter in the layers
        (module.in_features, share if ".experts." in name else 1.0)
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and module.get_base_layer() is not output
    ]
    return ModelSizes(
        num_parameters=sum(numbers.values()),
        num_packable=sum(packable),
        num_trainable=sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad),
        rank=getattr(adapter, "r", 0),
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=adapters.feedforward_width(config),
        attended=adapters.attention_width(config),
        num_heads=adapters.attention_heads(config),
        vocabulary=config.vocab_size,
        adapter_inputs=round(sum(width * passed for width, passed in inputs)),
        num_adapters=round(sum(passed for _, passed in inputs)),
        largest_weight=max(packable, default=0),
        num_rebuilt=sum(numbers[name] for name in getattr(adapted.base_model, "targeted_parameter_names", ())),
        targets="no layer: learned tokens" if adapter.is_prompt_learning else adapters.describe_targets(adapted),
    )


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
    num_steps = math.ceil(recipe.train.epochs * round(share * len(kept)) / size)
    return EpochSize(
        min(num_steps, recipe.train.max_steps or num_steps),
        round(share * sum(batch.num_tokens for batch in batches)),
        max(batches, key=lambda batch: (batch.num_tokens, batch.length)),
    )


def find_device() -> TrainingDevice:
    """Return the GPU with its free memory, else the CPU with the free memory of the container or the machine."""
    where = choose_device()
    if where.type == "cuda":
        return TrainingDevice(torch.cuda.get_device_name(where), torch.cuda.mem_get_info(where)[0])
    limits = [path.read_text(encoding="ascii").strip() for path in _LIMITS if path.is_file()]
    taken = psutil.Process().memory_info().rss
    free = [int(limit) - taken for limit in limits if limit.isdigit()]
    return TrainingDevice("CPU", max(0, min([psutil.virtual_memory().available, *free])))


def estimate_memory(sizes: ModelSizes, setup: TrainingSetup, batch: BatchShape) -> MemoryEstimate:
    """Return the bytes of a training step.

    AdamW keeps two numbers per trainable parameter, in the parameter's own type. `working` holds the gradients of one
    layer's activations, adapters in the type of products, and one unpacked weight.
    """
    packed = sizes.num_packable if setup.is_4bit else 0
    adapter = sizes.num_trainable * ADAPTER_BYTES
    casts = sizes.num_trainable * setup.number_bytes if setup.number_bytes < ADAPTER_BYTES else 0
    return MemoryEstimate(
        weights=round(packed * _NF4_BYTES) + (sizes.num_parameters - packed) * setup.number_bytes,
        adapter=adapter,
        gradients=adapter,
        optimizer=2 * adapter,
        activations=activation_bytes(sizes, setup, batch),
        working=_layer_bytes(sizes, setup, batch)
        + casts
        + sizes.num_rebuilt // sizes.num_layers * ADAPTER_BYTES
        + (sizes.largest_weight * setup.number_bytes if packed else 0),
    )


def activation_bytes(sizes: ModelSizes, setup: TrainingSetup, batch: BatchShape) -> int:
    """Estimate the bytes that the forward pass keeps for the backward pass of a frozen base.

    With gradient checkpointing each layer keeps its input alone, and one layer at a time everything. Outside the
    layers: the mask (boolean and additive), logits at the answers' columns of every row with their gradients, and three
    float32 copies of the labelled ones.
    """
    size, rows, answers = setup.number_bytes, batch.num_rows, batch.num_answers
    layer = _layer_bytes(sizes, setup, batch)
    kept = batch.num_tokens * sizes.hidden * size * sizes.num_layers + layer
    mask = rows * batch.length**2 * (1 + size) if setup.has_mask else 0
    logits = sizes.vocabulary * (2 * size * rows * min(answers, batch.length) + 12 * answers)
    return (kept if setup.has_checkpointing else layer * sizes.num_layers) + mask + logits


def _layer_bytes(sizes: ModelSizes, setup: TrainingSetup, batch: BatchShape) -> int:
    """Estimate the bytes that one layer keeps.

    Two norms in float32; queries, keys, values, and either their mix or, with eager attention, the probabilities (in
    float32, and for a 16-bit model in 16 bit too); three inner states of the gated feed-forward layer; for each adapter
    a copy of its input (with a byte a number for dropout's mask) and its `rank` numbers; adapted fused experts whole.
    """
    size = setup.number_bytes
    probabilities = sizes.num_heads * batch.length * (4 if size == 4 else 4 + size)
    attention = 3 * size * sizes.attended + (probabilities if setup.is_eager else size * sizes.attended)
    inputs = sizes.adapter_inputs * (size + setup.has_dropout) + sizes.num_adapters * sizes.rank * size
    each = 8 * sizes.hidden + attention + 3 * size * sizes.inner
    return batch.num_tokens * (each + inputs // sizes.num_layers) + sizes.num_rebuilt // sizes.num_layers * size


def fits_memory(peak: int, free: int) -> bool:
    """Tell whether a peak fits into free memory, with a quarter of it and 0.25 GB to spare."""
    return peak * _MARGIN + _SURPLUS <= free


def with_rank(sizes: ModelSizes, rank: int) -> ModelSizes:
    """Return the sizes with adapters of another rank, which their parameters are proportional to."""
    if rank == sizes.rank:  # 0 for a method without any
        return sizes
    return replace(sizes, num_trainable=sizes.num_trainable * rank // sizes.rank, rank=rank)


@dataclass(frozen=True, slots=True)
class SuggestedChange:
    """Overrides that lower the peak, as they are typed, and the peak with them."""

    overrides: str
    peak: int


def suggest_changes(
    sizes: ModelSizes, setup: TrainingSetup, batch: BatchShape, *, alpha: float
) -> Iterator[SuggestedChange]:
    """Yield overrides that lower the peak: each alone, then all together.

    A smaller rank keeps alpha / rank; the expressions of a step stay the same.
    """
    one_row = BatchShape(1, batch.length, -(-batch.num_answers // batch.num_rows))
    small = with_rank(sizes, min(sizes.rank, _SMALL_RANK))
    cases: dict[str, tuple[ModelSizes, TrainingSetup, BatchShape]] = {}
    if setup.can_pack and not setup.is_4bit:
        cases["llm.quantization=nf4"] = (sizes, replace(setup, is_4bit=True), batch)
    if setup.can_checkpoint and not setup.has_checkpointing:
        cases["train.gradient_checkpointing=true"] = (sizes, replace(setup, has_checkpointing=True), batch)
    if batch.num_rows > 1:
        cases[f"train.tokens_per_batch={max(64, batch.length)}"] = (sizes, setup, one_row)
    if small != sizes:
        rank = f"train.lora.rank={_SMALL_RANK} train.lora.alpha={alpha * _SMALL_RANK / sizes.rank:g}"
        cases[rank] = (small, setup, batch)
    for overrides, case in cases.items():
        yield SuggestedChange(overrides, estimate_memory(*case).peak)
    if len(cases) > 1:
        together = replace(setup, is_4bit=setup.is_4bit or setup.can_pack, has_checkpointing=setup.can_checkpoint)
        yield SuggestedChange(" ".join(cases), estimate_memory(small, together, one_row).peak)
