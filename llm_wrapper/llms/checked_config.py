"""Settings of a model, checked before anything is built of them: a few bytes of JSON may ask for all memory."""

from __future__ import annotations

from typing import Any

from llm_wrapper.errors import ModelError, listed

__all__ = ["require_sane"]

_MOST = {
    "num_hidden_layers": 1_000,
    "hidden_size": 200_000,
    "intermediate_size": 1_000_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "vocab_size": 10_000_000,
    "num_local_experts": 10_000,
    "num_experts": 10_000,
    "n_routed_experts": 10_000,
}
"""Several times what the largest published models have."""


def require_sane(config: Any, name: str, setting: str = "llm.model") -> None:
    """Refuse settings of a model that cannot be used here, or that no model has.

    Args:
        config: As transformers reads it.
        name: What the model is called, for messages.
        setting: The recipe's word for it.

    Raises:
        ModelError: With every reason.
    """
    if config.is_encoder_decoder:
        raise ModelError(
            f"{setting}={name} is an encoder-decoder ({config.model_type}), whose decoder reads a text that is not "
            "given here; choose a model that continues text, such as recipes/llm/llama3.yaml"
        )
    text = vars(config.get_text_config())
    problems = [
        f"{key}: {value!r}, and 1 to {most:,} are possible"
        for key, most in _MOST.items()
        if isinstance(value := text.get(key), (int, float)) and not 0 < value <= most
    ]
    if problems:
        raise ModelError(listed(f"{setting}={name}: its config.json is no model's", problems))
