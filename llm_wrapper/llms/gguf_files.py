"""GGUF files, from a path or from inside an installed package, turned into plain safetensors on first use."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.checked_config import require_sane
from llm_wrapper.llms.packages import find_in_package

__all__ = ["GGUF", "plain_copy"]

GGUF = "gguf:"
_ENDING = ".gguf"


def _gguf_file(name: str) -> Path:
    """Find a GGUF file: the path itself, or the one file of an installed package, which is not imported."""
    if not name.lower().endswith(_ENDING) and "/" not in name and os.sep not in name:
        return find_in_package(name, f"*{_ENDING}", f"llm.model={GGUF}{name}")
    path = Path(name).expanduser()
    if not path.is_file():
        raise ModelError(f"llm.model={GGUF}{name}: no such file; give a {_ENDING} file or an installed package")
    return path.resolve()


def _cache_home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "llm-wrapper" / "models"


def plain_copy(name: str) -> Path:
    """Return a folder with the weights of a GGUF file as plain safetensors, made on first use.

    A model loaded from GGUF keeps its weights packed, takes much longer to load, and can be neither trained nor
    saved; the copy can. It is made once per file (about half a minute) and kept in the user's cache folder.

    Args:
        name: The path of a `.gguf` file, or an installed package with one inside.

    Raises:
        ModelError: If there is no such file, it is damaged, or the cache folder cannot be written.
    """
    source = _gguf_file(name)
    key = hashlib.sha256(f"{source}{source.stat().st_size}{source.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache_home() / f"{source.stem}-{key}"
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


def _unwritable(folder: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{folder} cannot hold the plain copy of a GGUF model: {error}. Set XDG_CACHE_HOME to a folder with room"
    )


def _convert(source: Path, target: Path) -> None:
    """Write a GGUF file's model and tokenizer as transformers keeps them; OSError where they cannot be written."""
    place, file = source.parent, source.name
    try:
        require_sane(
            transformers.AutoConfig.from_pretrained(place, gguf_file=file, trust_remote_code=False), str(source)
        )
        packed = transformers.AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file, dtype=torch.float32, trust_remote_code=False
        )
        config = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        plain.load_state_dict(packed.state_dict())
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # what a file that is not what it says makes its readers raise is open
        said = (str(error).splitlines() or [""])[0][:300]
        raise ModelError(
            f"llm.model={GGUF}{source} cannot be read: {type(error).__name__}: {said}. The file may be damaged, or of "
            "an architecture that transformers does not read from GGUF"
        ) from error
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
