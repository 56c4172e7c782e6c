"""Tiny random models of every family of causal LMs, with the chat templates of the real ones (for llm_families.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["FAMILIES", "Family", "build"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
DATED = (
    "{{ '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') + '<|im_end|>\\n' }}"
    "{% set thought = '' if enable_thinking else '<think>\\n\\n</think>\\n' %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (thought if m.role == 'assistant' else '') + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + thought }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + '\\nAnswer:' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
OWN = {"chatml": CHATML, "inst": INST, "dated": DATED, "plain": PLAIN}

_MARKS = re.compile(r"<[|\uff5c][^<>'\"{}]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|<\|?turn\|?>|<bos>|<eos>|</?s>")
"""Special tokens in the text of a template."""

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
"""Weights are large, so that a token's probability depends on what the token sees."""

WITHOUT_KV = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}


@dataclass(frozen=True)
class Family:
    """A kind of model: its configuration, tiny, and its chat template (of TRL's folder, or of OWN).

    `refused` says that the family cannot be used, so that being refused is right.
    """

    config: str
    template: str = "chatml"
    changes: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)
    refused: bool = False


def _moe(**more: Any) -> dict[str, Any]:
    return {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, **more}


_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}
_LAYERS_2 = ["linear_attention", "full_attention"]
_WINDOWED_2 = ["sliding_attention", "full_attention"]
_DEEPSEEK = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}

FAMILIES: dict[str, Family] = {
    "llama-3": Family("LlamaConfig", "llama3"),
    "llama-3.1": Family("LlamaConfig", "llama3_1"),
    "llama-3.2 (date)": Family("LlamaConfig", "llama3_2", {"tie_word_embeddings": True}),
    "qwen2.5": Family("Qwen2Config", "qwen2_5"),
    "qwen2 sliding": Family(
        "Qwen2Config", "qwen2_5", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    ),
    "qwen2-moe": Family(
        "Qwen2MoeConfig", "chatml", _moe(shared_expert_intermediate_size=24, decoder_sparse_step=1, sliding_window=0)
    ),
    "qwen3": Family("Qwen3Config", "qwen3", {"head_dim": 8}),
    "qwen3-2507": Family("Qwen3Config", "qwen3_instruct_2507", {"head_dim": 8}),
    "qwen3-moe": Family("Qwen3MoeConfig", "qwen3", _moe(head_dim=8)),
    "qwen3-next": Family(
        "Qwen3NextConfig",
        "qwen3",
        _moe(
            head_dim=8,
            layer_types=_LAYERS_2,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=24,
        ),
    ),
    "qwen3.5 text": Family(
        "Qwen3_5TextConfig",
        "qwen3_5_nothink",
        {
            "head_dim": 8,
            "layer_types": _LAYERS_2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "gemma": Family("GemmaConfig", "gemma", {"head_dim": 8}),
    "gemma-2": Family("Gemma2Config", "gemma", {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}),
    "gemma-2 (wide window)": Family("Gemma2Config", "gemma", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma-3 text": Family(
        "Gemma3TextConfig",
        "gemma3",
        {"head_dim": 8, "sliding_window": 16, "layer_types": _WINDOWED_2, "query_pre_attn_scalar": 8},
    ),
    "gemma-3 multimodal": Family("Gemma3Config", "gemma3"),
    "gemma-4 text": Family(
        "Gemma4TextConfig",
        "gemma4",
        {
            "head_dim": 8,
            "global_head_dim": 8,
            "sliding_window": 16,
            "layer_types": _WINDOWED_2,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
        },
    ),
    "mistral-v0.1 (window)": Family("MistralConfig", "inst", {"sliding_window": 16}),
    "mistral-v0.1 (wide window)": Family("MistralConfig", "inst", {"sliding_window": 4096}),
    "mistral-v0.2": Family("MistralConfig", "inst", {"sliding_window": None}),
    "mixtral": Family("MixtralConfig", "inst", {"num_local_experts": 4, "sliding_window": None}),
    "phi-3": Family("Phi3Config", "phi3", {"sliding_window": 2047}),
    "phi-3.5-moe": Family("PhimoeConfig", "phi3_5", {"num_local_experts": 4, "sliding_window": 4096}),
    "smollm3 (date)": Family("SmolLM3Config", "dated", {"no_rope_layer_interval": 2}),
    "gpt-oss": Family(
        "GptOssConfig",
        "gptoss",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    ),
    "olmo-2": Family("Olmo2Config", "chatml"),
    "olmo-3": Family("Olmo3Config", "chatml", {"sliding_window": 16, "layer_types": _WINDOWED_2}),
    "olmoe": Family("OlmoeConfig", "chatml", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite-3 (date)": Family("GraniteConfig", "dated", {"logits_scaling": 8.0, "embedding_multiplier": 3.0}),
    "granite-4 hybrid": Family(
        "GraniteMoeHybridConfig",
        "dated",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "logits_scaling": 8.0,
        },
    ),
    "deepseek-v2": Family("DeepseekV2Config", "chatml", _DEEPSEEK),
    "deepseek-v3": Family("DeepseekV3Config", "chatml", _DEEPSEEK),
    "deepseek-v3 (own template)": Family("DeepseekV3Config", "deepseekv3", _DEEPSEEK, refused=True),
    "deepseek-r1-distill": Family("LlamaConfig", "deepseek_r1_distill", refused=True),
    "glm-4-moe": Family("Glm4MoeConfig", "glm4moe", {**_DEEPSEEK, "head_dim": 8, "num_key_value_heads": 2}),
    "cohere": Family("CohereConfig", "cohere", {"logit_scale": 0.25}),
    "cohere2": Family("Cohere2Config", "cohere2", {"sliding_window": 16, "layer_types": _WINDOWED_2}),
    "falcon-h1": Family(
        "FalconH1Config",
        "chatml",
        {
            "lm_head_multiplier": 0.078125,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "lfm2": Family("Lfm2Config", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    "mamba": Family("MambaConfig", "plain", sizes=_MAMBA),
    "mamba-2": Family("Mamba2Config", "plain", {"num_heads": 4, "head_dim": 16, "n_groups": 1}, sizes=_MAMBA),
    "falcon-mamba": Family("FalconMambaConfig", "plain", sizes=_MAMBA),
    "rwkv": Family("RwkvConfig", "plain", {"attention_hidden_size": 32, "intermediate_size": 48}, sizes=_MAMBA),
    "xlstm": Family(
        "xLSTMConfig",
        "plain",
        {
            "hidden_size": 256,  # whose parts are rounded to 64
            "num_heads": 4,
            "num_blocks": 2,
            "chunkwise_kernel": "chunkwise--native_autograd",
            "sequence_kernel": "native_sequence__native",
            "step_kernel": "native",
        },
        sizes=_MAMBA,
    ),
    "recurrent-gemma": Family(
        "RecurrentGemmaConfig",
        "gemma",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 16,
            "logits_soft_cap": 3.0,
        },
    ),
    "jamba": Family(
        "JambaConfig",
        "chatml",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    ),
    "bamba": Family(
        "BambaConfig", "chatml", {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    ),
    "zamba2": Family(
        "Zamba2Config",
        "plain",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "num_mem_blocks": 1,
        },
    ),
    "nemotron-h": Family(
        "NemotronHConfig",
        "nemotron_3_nano",
        {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
        },
    ),
    "nemotron": Family("NemotronConfig", "chatml"),
    "hyperclovax": Family("HyperCLOVAXConfig", "chatml", {"logits_scaling": 4.0}),
    "modernbert decoder": Family("ModernBertDecoderConfig", "plain", {"local_attention": 16}),
    "mpt (alibi)": Family("MptConfig", "plain", {"d_model": 32, "n_heads": 4, "n_layers": 2}, sizes={}),
    "bloom (alibi)": Family(
        "BloomConfig", "plain", {"n_layer": 2, "n_head": 4}, sizes={"hidden_size": 32, "initializer_range": 0.3}
    ),
    "falcon (alibi)": Family(
        "FalconConfig", "plain", {"alibi": True, "new_decoder_architecture": False}, sizes=WITHOUT_KV
    ),
    "falcon (rope)": Family("FalconConfig", "plain", {"alibi": False}, sizes=WITHOUT_KV),
    "llama-4 text": Family(
        "Llama4TextConfig",
        "chatml",
        {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 16},
    ),
    "gpt-neox": Family("GPTNeoXConfig", "plain", sizes=WITHOUT_KV),
    "gpt-neo (local)": Family(
        "GPTNeoConfig",
        "plain",
        {"num_layers": 2, "num_heads": 4, "window_size": 16, "attention_types": [[["global", "local"], 1]]},
        sizes={"hidden_size": 32, "initializer_range": 0.3, "max_position_embeddings": 2048},
    ),
    "gpt-2": Family(
        "GPT2Config",
        "plain",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048},
        sizes={"initializer_range": 0.3},
    ),
    "gpt-j": Family(
        "GPTJConfig",
        "plain",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        sizes={"initializer_range": 0.3},
    ),
    "opt": Family("OPTConfig", "plain", {"ffn_dim": 48, "word_embed_proj_dim": 32}, sizes=WITHOUT_KV),
    "stablelm": Family("StableLmConfig", "chatml"),
    "starcoder2": Family("Starcoder2Config", "chatml", {"sliding_window": 4096}),
    "minimax": Family("MiniMaxConfig", "chatml", {"num_local_experts": 4, "layer_types": _LAYERS_2, "head_dim": 8}),
    "exaone-4": Family("Exaone4Config", "chatml", {"sliding_window": 16, "layer_types": _WINDOWED_2}),
    "helium": Family("HeliumConfig", "chatml", {"head_dim": 8}),
    "smolvlm template": Family("LlamaConfig", "smolvlm", refused=True),
    "t5": Family(
        "T5Config",
        "plain",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        sizes={},
        refused=True,
    ),
    "bart": Family(
        "BartConfig",
        "plain",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
        sizes={},
        refused=True,
    ),
    "bert": Family("BertConfig", "plain", sizes=WITHOUT_KV, refused=True),
    "roformer (encoder)": Family("RoFormerConfig", "plain", sizes=WITHOUT_KV, refused=True),
}


# --- building --------------------------------------------------------------------------------------------------------


def template_text(name: str) -> str:
    """Return a template of this file, or of TRL's folder of the real ones."""
    if name in OWN:
        return OWN[name]
    return (Path(str(trl.__file__)).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def byte_tokenizer(template: str) -> Any:
    """Return a tokenizer of bytes and of the special tokens that a template writes."""
    marks = dict.fromkeys(["<s>", "</s>", *_MARKS.findall(template)])
    ends = [
        mark for mark in marks if re.search(r"im_end|eot_id|end_of_turn|endoftext|return|END_OF_TURN|end|<eos>", mark)
    ]
    vocabulary = {token: number for number, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=ends[0] if ends else "</s>",
        additional_special_tokens=list(marks),
    )
    made.chat_template = template
    return made


def build(family: Family, folder: Path) -> None:
    """Save a tiny random model and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(template_text(family.template))
    common = {"vocab_size": len(tokenizer) + 7, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    kind = getattr(transformers, family.config)
    if family.config == "Gemma3Config":
        text = {
            **SIZES,
            "vocab_size": len(tokenizer) + 7,
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": _WINDOWED_2,
            "query_pre_attn_scalar": 8,
        }
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        last = len(tokenizer) + 6
        config = kind(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            image_token_index=last,
            boi_token_index=last - 1,
            eoi_token_index=last - 2,
            initializer_range=0.3,
        )
    else:
        config = kind(**{**family.sizes, **common, **family.changes})
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- asking ----------------------------------------------------------------------------------------------------------
