"""Compute the memory of a training step from counts, without a model.

Only the activations are an estimate; docs/plan.md compares it with measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = [
    "ADAPTER_BYTES",
    "BatchShape",
    "MemoryEstimate",
    "ModelSizes",
    "SuggestedChange",
    "TrainingSetup",
    "activation_bytes",
    "estimate_memory",
    "fits_memory",
    "suggest_changes",
    "with_rank",
]

_MARGIN, _SURPLUS = 1.25, 250_000_000
"""A quarter more than the peak and these bytes must be free; docs/plan.md has measurements."""
_SMALL_RANK = 16
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a packed weight: 4 bits, a byte per block of 64, a float32 per 256 of these (double quantization)."""


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


ADAPTER_BYTES = 4
"""Bytes of a number of the adapter: float32, whatever the model is kept in."""


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

    def of_one_row(self) -> BatchShape:
        """Return the batch with one of its rows alone."""
        return BatchShape(1, self.length, -(-self.num_answers // self.num_rows))


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


def with_rank(sizes: ModelSizes, rank: int) -> ModelSizes:
    """Return the sizes with adapters of another rank; their parameters are proportional to it."""
    if rank == sizes.rank:  # 0 for a method without any
        return sizes
    return replace(sizes, num_trainable=sizes.num_trainable * rank // sizes.rank, rank=rank)


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
    found: list[tuple[str, ModelSizes, TrainingSetup, BatchShape]] = []
    if not setup.is_4bit and setup.can_pack:
        found.append(("llm.quantization=nf4", sizes, replace(setup, is_4bit=True), batch))
    if not setup.has_checkpointing and setup.can_checkpoint:
        found.append(("train.gradient_checkpointing=true", sizes, replace(setup, has_checkpointing=True), batch))
    if batch.num_rows > 1:
        found.append((f"train.tokens_per_batch={max(64, batch.length)}", sizes, setup, batch.of_one_row()))
    if sizes.rank > _SMALL_RANK:
        rank = f"train.lora.rank={_SMALL_RANK} train.lora.alpha={alpha * _SMALL_RANK / sizes.rank:g}"
        found.append((rank, with_rank(sizes, _SMALL_RANK), setup, batch))
    for overrides, their_sizes, their_setup, their_batch in found:
        yield SuggestedChange(overrides, estimate_memory(their_sizes, their_setup, their_batch).peak)
    if len(found) > 1:
        small = with_rank(sizes, min(sizes.rank, _SMALL_RANK))
        together = replace(setup, is_4bit=setup.is_4bit or setup.can_pack, has_checkpointing=setup.can_checkpoint)
        peak = estimate_memory(small, together, batch.of_one_row()).peak
        yield SuggestedChange(" ".join(row[0] for row in found), peak)
