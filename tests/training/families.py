"""One tiny random model of each family that training meets: fused names, experts, towers for images, no attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.recipe import LLMSection
from tests.llms import tiny

_SIZES: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
    **{"initializer_range": 0.3, "tie_word_embeddings": False},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}
_EXPERTS = {"num_experts_per_tok": 2}
_VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}
_LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 8},
    **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 4},
}
_SHARED = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1}


def _sizes(**more: Any) -> dict[str, Any]:
    return {**_SIZES, **more}


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**_sizes()),
    "phi3": lambda: t.Phi3Config(**_sizes(sliding_window=None)),
    "gpt-neox": lambda: t.GPTNeoXConfig(**_sizes()),
    "gemma3-with-images": lambda: t.Gemma3Config(
        text_config=_sizes(head_dim=8, sliding_window=8),
        vision_config=_VISION,
        tie_word_embeddings=False,
        mm_tokens_per_image=4,
    ),
    "gemma4-text": lambda: t.Gemma4TextConfig(
        **_sizes(
            head_dim=8,
            global_head_dim=16,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=512,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=8,
        )
    ),
    "modernbert": lambda: t.ModernBertDecoderConfig(
        **{
            key: value
            for key, value in _sizes(pad_token_id=0, local_attention=16, cls_token_id=0, sep_token_id=0).items()
            if key not in {"num_key_value_heads", "bos_token_id", "eos_token_id"}
        }
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=4),
    "phi3.5-moe": lambda: t.PhimoeConfig(**_sizes(**_EXPERTS, num_local_experts=4, sliding_window=None)),
    "llama4-text": lambda: t.Llama4TextConfig(
        **_sizes(
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=1,
            intermediate_size_mlp=64,
            interleave_moe_layer_step=2,
            attn_temperature_tuning=False,
        )
    ),
    "qwen3-moe": lambda: t.Qwen3MoeConfig(**_sizes(**_EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=16)),
    "mixtral": lambda: t.MixtralConfig(
        **_sizes(**_EXPERTS, num_local_experts=4, sliding_window=None, output_router_logits=True)
    ),
    "gpt-oss": lambda: t.GptOssConfig(
        **_sizes(
            **_EXPERTS, head_dim=8, num_local_experts=4, sliding_window=8, rope_parameters={"rope_type": "default"}
        )
    ),
    "deepseek-v2": lambda: t.DeepseekV2Config(**_sizes(**_EXPERTS, **_LATENT, **_SHARED, topk_method="greedy")),
}


def settings(name: str) -> Any:
    """Return the settings of a family."""
    return CONFIGS[name]()


def model(name: str) -> Any:
    """Return a random model of a family."""
    torch.manual_seed(0)
    config = settings(name)
    return t.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def llm(name: str) -> LoadedLLM:
    """Return a random model of a family with a tokenizer."""
    section = LLMSection(model=f"tiny-{name}", quantization="none", attention="eager")
    return LoadedLLM(model(name), tiny.tokenizer("chatml"), section)
