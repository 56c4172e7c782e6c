"""Sizes of an architecture, read from its settings under the names that model families give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_wrapper.errors import ModelError

__all__ = ["attention_heads", "attention_width", "experts_per_token", "feedforward_width", "num_experts"]

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_k", "top_k_experts")


def _layers(config: Any) -> Sequence[Any]:
    """Return the settings of each layer where layers differ, else those of the text model."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def _number(layer: Any, *names: str) -> int:
    """Return the first of some settings that is set to a number over zero; else 0."""
    values = (getattr(layer, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def num_experts(config: Any) -> int:
    """Return how many experts a layer routes among; 0 for a dense model."""
    return max(_number(layer, *_EXPERTS) for layer in _layers(config))


def experts_per_token(config: Any) -> int:
    """Return how many experts a token is sent to; 1 for a dense model, whose only one is the layer."""
    return max(_number(layer, *_PER_TOKEN) or 1 for layer in _layers(config)) if num_experts(config) else 1


def feedforward_width(config: Any) -> int:
    """Return the inner states of a token in the widest feed-forward layer: of all its experts, shared ones too."""
    return max(_inner(layer, experts_per_token(config)) for layer in _layers(config))


def _inner(layer: Any, per_token: int) -> int:
    dense = _number(layer, "intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    dense = dense or 4 * _number(layer, "hidden_size")
    if not _number(layer, *_EXPERTS):
        return dense
    width = _number(layer, "moe_intermediate_size", "expert_ffn_hidden_size") or _number(layer, "intermediate_size")
    shared = _number(layer, "shared_expert_intermediate_size", "shared_intermediate_size")
    shared = shared or width * _number(layer, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    # Some families give a width of dense layers that they have none of; it is then no more than that of the experts.
    return max(dense, (width or dense) * per_token + shared)


def attention_heads(config: Any) -> int:
    """Return the heads of the layer that has most; 0 where no layer attends to earlier tokens (Mamba)."""
    return max(_number(layer, "num_attention_heads") for layer in _layers(config))


def attention_width(config: Any) -> int:
    """Return the width of all heads of the widest layer together.

    Raises:
        ModelError: If heads have no width.
    """
    return max(_attended(layer) for layer in _layers(config))


def _attended(layer: Any) -> int:
    heads = _number(layer, "num_attention_heads")
    head = _number(layer, "head_dim", "qk_head_dim") or (_number(layer, "hidden_size") // heads if heads else 0)
    if heads and not head:
        raise ModelError(f"its settings give {heads} heads and no width for them (head_dim, hidden_size)")
    return heads * head
