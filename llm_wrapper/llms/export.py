"""An adapter merged into its base model, as one folder that any server can load."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from llm_wrapper import storage
from llm_wrapper.errors import ModelError, RunError, shell_word
from llm_wrapper.llms import adapters
from llm_wrapper.llms import load as loading
from llm_wrapper.llms.load import load_tokenizer, require_fit
from llm_wrapper.recipe import LLMSection

__all__ = ["export"]


def export(section: LLMSection, adapter: Path, out: Path) -> None:
    """Write base model, adapter and tokenizer as one model in safetensors; `out` appears when it is whole.

    The base is loaded unquantized, since merging into 4-bit weights would round the adapter away, and into the memory
    of the host, which is larger than a GPU's: Mixtral takes 93 GB. It is written in the type of its checkpoint, or
    in `llm.dtype`. The chat template that the recipe brings is written with the tokenizer, so that a server asks in
    the same words.

    Raises:
        RunError: If `out` exists, or its disk is full.
        ModelError: If the model or the adapter cannot be loaded, or the adapter is a soft prompt.
    """
    if out.exists():
        raise RunError(f"{out} exists. Name another folder, or remove it: rm -r {shell_word(out)}")
    if adapters.is_soft_prompt(adapter):
        raise ModelError(
            f"{adapter} is a soft prompt: tokens that are read before every prompt. No weight is changed, so nothing "
            "can be merged; train one of the methods lora, dora, ia3, or serve base model and adapter by PEFT"
        )
    require_fit(section, adapter)
    tokenizer = load_tokenizer(section)
    model = adapters.put_on(_base(section), adapter, str(section.model))
    if section.chat_template:
        tokenizer.chat_template = section.chat_template
    with storage.explaining_full_disk(out, f"Free space, or name another folder; nothing is left under {out}"):
        _write(model.merge_and_unload(), tokenizer, out)


def _base(section: LLMSection) -> Any:
    dtype = "auto" if section.dtype == "auto" else getattr(torch, section.dtype)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            loading._name(section),
            revision=section.revision,
            dtype=dtype,
            device_map={"": "cpu"},
            trust_remote_code=False,
        ).eval()
    except Exception as error:  # files of strangers: what their readers may raise is open
        raise ModelError(f"llm.model={section.model} cannot be loaded: {error}") from error


def _write(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a model and its tokenizer into a folder that appears when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
