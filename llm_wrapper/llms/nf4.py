"""4-bit weights that are 4-bit: Mixtral with its experts apart, weights read one by one, and a count afterwards.

transformers 5 keeps the experts of Mixtral in fused three-dimensional parameters. bitsandbytes quantizes `nn.Linear`
only, so the experts, 97 % of the model, would stay in 16 bit, unreported. Here each expert is three linear layers
again, named as in the checkpoint (w1, w2, w3). From there on everything is the ordinary way of bitsandbytes and PEFT:
a layer's weight is unpacked where it is used, forward and backward, and only the experts that a token chose are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, modeling_utils
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from llm_wrapper.errors import ModelError, listed

LEAST_SHARE = 0.95
"""Least share of the linear and expert weights that must be in 4 bit."""
_REMEDY = "set llm.quantization=none if that fits, or choose a dense model or Mixtral"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class _Expert(nn.Module):
    """One expert: a gated feed-forward layer, its parts named as in Mixtral's checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map the states (n, hidden) of the tokens that chose this expert."""
        answer: torch.Tensor = self.w2(self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states))
        return answer


class _Experts(nn.ModuleList):
    """The experts of a layer; takes and returns what transformers' fused `MixtralExperts` does."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum (n, hidden) of each token's experts; the indices and weights are (n, k).

            top_k_index [[2, 0], [0, 1]]  ->  by expert 0 0 1 2, their tokens 0 1 1 0, and one slice an expert

        A GPU is waited for once, for the sizes of the slices.
        """
        chosen = top_k_index.flatten()
        order = chosen.argsort(stable=True)
        sizes = torch.bincount(chosen, minlength=len(self)).tolist()
        rows, weights = order // top_k_index.shape[1], top_k_weights.flatten()[order, None]
        mixed = torch.zeros_like(hidden_states)
        for expert, tokens, shares in zip(self, torch.split(rows, sizes), torch.split(weights, sizes), strict=True):
            if len(tokens):
                mixed.index_add_(0, tokens, (expert(hidden_states[tokens]) * shares).to(mixed.dtype))
        return mixed


class _ApartConfig(MixtralConfig):  # type: ignore[misc]
    """Mixtral's settings under another type, by which neither transformers nor PEFT takes the experts for fused."""

    model_type = "mixtral_apart"

    @classmethod
    def get_config_dict(cls, *args: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read settings as they are on disk, under this type."""
        values, unused = super().get_config_dict(*args, **options)
        return {**values, "model_type": cls.model_type}, unused


class _ApartMixtral(MixtralForCausalLM):  # type: ignore[misc]
    """Mixtral whose experts are linear layers."""

    config_class = _ApartConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.experts = _Experts(_Expert(config) for _ in range(config.num_local_experts))


@contextmanager
def _weights_read() -> Iterator[None]:
    """Let transformers read weights from the files instead of mapping these into memory.

    Mapped pages stay resident after their tensor is quantized and gone, so that the process seems to hold, and on some
    systems is billed for, the whole 16-bit model.
    """
    mapped = modeling_utils.safe_open

    def read(*args: Any, **options: Any) -> Any:
        return mapped(*args, **{**options, "backend": "pread"})

    modeling_utils.safe_open = read
    try:
        yield
    finally:
        modeling_utils.safe_open = mapped


@contextmanager
def _freed_blocks_returned() -> Iterator[None]:
    """Let glibc give each freed block back at once while weights are packed, and blocks of 4 MB and more afterwards.

    It would keep blocks of up to 32 MB for later use; the packed weights and their scales, which stay, come to lie
    between them, and a model of small matrices grows to several times its 16-bit size. The same holds, to a lesser
    degree, for weights that are unpacked in a forward pass.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
    try:
        yield
    finally:  # small blocks are many in training, and slow to take from the system
        mallopt(_M_MMAP_THRESHOLD, 4 * 1024**2)
        mallopt(_M_TRIM_THRESHOLD, 64 * 1024**2)


def load_4bit(name: str, **options: Any) -> Any:
    """Load a causal LM with its linear and expert weights in 4 bit, tensor by tensor.

    `options` are those of `from_pretrained`; `quantization_config` says how the weights are packed. Less than 95 % of
    weights that can be packed is refused before any is read.
    """
    revision = options.get("revision")
    config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    require_packable(name, config)
    kind: Any = transformers.AutoModelForCausalLM
    if config.model_type == "mixtral":
        kind = _ApartMixtral
        options["key_mapping"] = {r"\.block_sparse_moe\.": ".mlp."}
    with _weights_read(), _freed_blocks_returned():
        model, loading = kind.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **options)
    require_complete(name, loading)
    for module in model.modules():
        # On a CPU with AVX512-BF16 bitsandbytes would repack weights at the first pass in evaluation mode: it then
        # computes in bfloat16 whatever the model's type is, and a later training gets no gradient through the layer.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    size = footprint(model)
    if size.quantized_share < LEAST_SHARE:  # whatever its loader believes
        headline = (
            f"llm.model={name} is not in 4 bit: {size.quantized_share:.0%} of its linear and expert weights are, "
            f"{LEAST_SHARE:.0%} are needed, and its size is {size.num_bytes / 1e9:.1f} GB; {_REMEDY}; not in 4 bit"
        )
        raise ModelError(listed(headline, (f"{key}: {shape}, {kind}" for key, shape, kind in size.others), most=5))
    return model


def require_complete(name: str, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights, by the loading info of transformers, which fills in random numbers."""
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(listed(f"llm.model={name}: weights are missing in the checkpoint", missing, most=6))


def require_packable(name: str, config: Any) -> None:
    """Refuse a model whose weights bitsandbytes cannot pack, by its settings alone."""
    packed = getattr(config, "quantization_config", None) or {}
    method = packed.get("quant_method") if isinstance(packed, dict) else packed.quant_method
    if method not in (None, "bitsandbytes"):
        raise ModelError(f"llm.model={name} comes packed as {method}: set llm.quantization=none, which loads it so")
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    share = packable_share(skeleton)
    if share < LEAST_SHARE:
        weights = sorted(_weights(skeleton), key=lambda row: -row[1].numel())
        packable = {id(each) for each in packable_weights(skeleton)}
        others = (f"{key}: {tuple(each.shape)}" for key, each in weights if id(each) not in packable)
        headline = (
            f"llm.model={name} cannot be held in 4 bit: {share:.0%} of its linear and expert weights can be packed, "
            f"{LEAST_SHARE:.0%} are needed; {_REMEDY}; not packed"
        )
        raise ModelError(listed(headline, others, most=5))


def packable_weights(model: Any) -> list[Any]:
    """Return the weights of a model without adapters that 4 bit packs: of linear layers, and the experts of Mixtral."""
    output = model.get_output_embeddings()
    linear = [each.weight for each in model.modules() if isinstance(each, nn.Linear | Conv1D) and each is not output]
    is_mixtral = model.config.model_type == "mixtral"
    return linear + [each for each in model.parameters() if is_mixtral and each.ndim == 3]


def packable_share(model: Any) -> float:
    """Return the share of a model's linear and expert weights that 4 bit packs; 1 where there are none."""
    total = sum(each.numel() for _, each in _weights(model))
    return sum(each.numel() for each in packable_weights(model)) / total if total else 1.0


def _weights(model: Any) -> list[tuple[str, Any]]:
    """Return the weights to be packed: matrices outside the embeddings and the output layer."""
    spared = _spared(model)
    return [(name, each) for name, each in model.named_parameters() if each.ndim > 1 and id(each) not in spared]


def _spared(model: Any) -> set[int]:
    """Return the ids of the parameters that are not packed: those of the embeddings and the output layer."""
    output = model.get_output_embeddings()
    modules = [each for each in model.modules() if isinstance(each, nn.Embedding) or each is output]
    return {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}


@dataclass(frozen=True, slots=True)
class Footprint:
    """The size of a model's parameters, counted as they were before packing, tied ones once."""

    num_parameters: int
    num_weights: int  # meant to be packed: matrices outside the embeddings and the output layer
    num_4bit: int
    num_bytes: int
    others: tuple[tuple[str, tuple[int, ...], str], ...]  # weights in more bits: name, shape, type; the largest first

    @property
    def quantized_share(self) -> float:
        """Packed weights / weights of linear layers and experts; 1 where there are none."""
        return self.num_4bit / self.num_weights if self.num_weights else 1.0

    @property
    def quantized_share_of_all(self) -> float:
        """Packed weights / all parameters."""
        return self.num_4bit / self.num_parameters


def footprint(model: Any) -> Footprint:
    """Count the parameters of a model without adapters, and the bytes they take."""
    spared = _spared(model)
    num_parameters = num_weights = num_4bit = num_bytes = 0
    others: list[tuple[str, tuple[int, ...], str]] = []
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        shape = torch.Size(parameter.shape if state is None else state.shape)
        num_parameters += shape.numel()
        # Scales of blocks unpack a weight; double quantization packs them in turn.
        states = (state, getattr(state, "state2", None))
        statistics = [getattr(each, key, None) for each in states for key in ("absmax", "code")]
        num_bytes += parameter.nbytes + sum(each.nbytes for each in statistics if each is not None)
        if len(shape) < 2 or id(parameter) in spared:
            continue
        num_weights += shape.numel()
        if state is None:
            others.append((name, tuple(shape), str(parameter.dtype).removeprefix("torch.")))
        else:
            num_4bit += shape.numel()
    others.sort(key=lambda row: -torch.Size(row[1]).numel())
    return Footprint(num_parameters, num_weights, num_4bit, num_bytes, tuple(others))
