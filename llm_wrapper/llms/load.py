"""Load a causal LM and its tokenizer: from a hub id, a local folder, or a GGUF file; and try it out before it is used.

Nothing of a model's files is run (`trust_remote_code=False`), and what they ask for is bounded before it is built.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from llm_wrapper.devices import choose_device, loading_bars
from llm_wrapper.errors import ModelError, listed
from llm_wrapper.llms.chat import ChatEncoder, chat_encoder
from llm_wrapper.llms.model_files import require_sane, resolve_model
from llm_wrapper.llms.self_test import require_exact
from llm_wrapper.llms.soft_prompts import num_virtual
from llm_wrapper.recipe import LLMSection

__all__ = ["LoadedLLM", "load_config", "load_model", "load_tokenizer", "loading_failure"]

_log = logging.getLogger(__name__)

_MAX_ERROR = 600
"""Characters of a library's message: one of transformers lists 180 classes."""
_FLEX = "flex_attention"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoadedLLM:
    """A model in evaluation mode, with its tokenizer and the recipe section it was loaded by."""

    model: Any
    tokenizer: Any
    section: LLMSection

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The encoder of prompts and completions."""
        return chat_encoder(self.tokenizer, self.section)

    @cached_property
    def num_virtual(self) -> int:
        """The number of learned tokens that the model reads first."""
        return num_virtual(self.model)


def _has_fast_bfloat16(where: torch.device) -> bool:
    if where.type == "cuda":
        # Emulated it is several times slower than float16 (T4, V100, RTX 20), and counts as supported by default.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _dtype(section: LLMSection, where: torch.device) -> torch.dtype:
    if section.dtype != "auto":
        return _DTYPES[section.dtype]
    if _has_fast_bfloat16(where):
        return torch.bfloat16
    return torch.float16 if where.type == "cuda" else torch.float32


def _attention(section: LLMSection, where: torch.device) -> str | None:
    """Resolve `auto`: on the CPU eager, which trains about a tenth faster than SDPA there.

    Elsewhere None: transformers then takes SDPA, and eager for architectures that have no SDPA (Gemma 2, GPT-Neo).
    Flex attention has to be asked for. It spares the mask, a hundredth of a gigabyte for four packs of 1,024 tokens,
    but needs a compiler, recompiles as shapes change, and has not run on a GPU.

    Raises:
        ModelError: If flex attention is asked for where torch cannot train with it.
    """
    if section.attention == _FLEX and where.type != "cuda":
        raise ModelError(f"llm.attention={_FLEX} needs a CUDA device (no backward pass on others); set it to auto")
    if section.attention != "auto":
        return section.attention
    return "eager" if where.type == "cpu" else None


def _quantization(section: LLMSection, where: torch.device, dtype: torch.dtype) -> Any:
    if section.quantization == "none" or (section.quantization == "auto" and where.type != "cuda"):
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "llm.quantization=nf4 needs bitsandbytes: pip install 'llm-wrapper-rec[gpu]', or set llm.quantization=none"
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shares out weights of floating-point types alone: each number then holds several packed ones.
        bnb_4bit_quant_storage=dtype if os.environ.get("ACCELERATE_USE_FSDP") == "true" else torch.uint8,
    )


def _load_weights(name: str, section: LLMSection, where: torch.device) -> Any:
    """Load the weights onto the device, in 4 bit where the section asks for it."""
    dtype = _dtype(section, where)
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": _attention(section, where),
        "device_map": {"": where},  # tensor by tensor, not whole through host memory
    }
    if section.revision:
        options["revision"] = section.revision
    quantization = _quantization(section, where, dtype)
    if quantization is not None:
        from llm_wrapper.llms.nf4 import load_4bit

        return load_4bit(name, quantization_config=quantization, **options)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        name, trust_remote_code=False, output_loading_info=True, **options
    )
    if loading["missing_keys"]:  # transformers fills them with random numbers
        raise ModelError(
            listed(f"llm.model={name}: weights are missing in the checkpoint", sorted(loading["missing_keys"]), most=6)
        )
    return model


def loading_failure(section: LLMSection, error: Exception) -> ModelError:
    """Return the error to raise where a model's files cannot be loaded, with a library's message cut short."""
    said = str(error) if len(str(error)) <= _MAX_ERROR else f"{str(error)[:_MAX_ERROR]} .."
    if "trust_remote_code" in said:
        said = "it brings its own code, which is never run here; choose a model that transformers itself has"
    return ModelError(f"llm.model={section.model} cannot be loaded: {said or type(error).__name__}")


def load_config(section: LLMSection) -> Any:
    """Return the settings of a recipe's model as transformers reads them.

    Raises:
        ModelError: If they cannot be read, or are not those of a model that can be used here.
    """
    name = resolve_model(section)
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=section.revision, trust_remote_code=False)
    except Exception as error:  # files of strangers: what their readers may raise is open
        raise loading_failure(section, error) from error
    require_sane(config, str(section.model))
    return config


def load_tokenizer(section: LLMSection) -> Any:
    """Return the tokenizer of a recipe's model, which has a token to pad with.

    Raises:
        ModelError: If it cannot be read.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            resolve_model(section), revision=section.revision, trust_remote_code=False
        )
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises Exception itself
        raise loading_failure(section, error) from error
    if tokenizer.pad_token_id is None:
        # Padding is seen by nothing, so any token will do where there is no end of a text.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _pad_within(tokenizer: Any, model: Any, name: str) -> None:
    """Pad with a token that the model has an embedding of; a pad token that was added later may have none."""
    size = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id < size:
        return
    pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None and tokenizer.eos_token_id < size else 0
    _log.info("llm.model=%s: its pad token %s has no embedding, so another pads", name, tokenizer.pad_token)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)


def load_model(section: LLMSection, adapter: Path | None = None) -> LoadedLLM:
    """Load the model and tokenizer of a recipe section, with an adapter where one is given, and try them out.

    Raises:
        ModelError: If the model cannot be found or loaded as the section asks, its chat template does not give distinct
            answers, or its scores would differ from those of its forward pass.
    """
    from llm_wrapper.llms import adapters  # they load models too

    load_config(section)
    if adapter:
        adapters.require_fit(section, adapter)
    tokenizer = load_tokenizer(section)
    try:
        with loading_bars():
            model = _load_weights(resolve_model(section), section, choose_device())
    except ModelError:
        raise
    except Exception as error:  # files of strangers: what their readers may raise is open
        raise loading_failure(section, error) from error
    _pad_within(tokenizer, model, str(section.model))
    llm = LoadedLLM(model.eval(), tokenizer, section)
    require_exact(llm.model, str(section.model))
    llm.encoder.completion(0)
    return adapters.add_adapter(llm, adapter) if adapter else llm
