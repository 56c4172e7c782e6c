"""An adapter merged into its base model, as one folder that any server can load."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from llm_wrapper.errors import ModelError, RunError, shell_word
from llm_wrapper.llms import adapters
from llm_wrapper.llms.load import load
from llm_wrapper.recipe import LLMSection

__all__ = ["export"]


def export(section: LLMSection, adapter: Path, out: Path) -> None:
    """Write base model, adapter and tokenizer as one model in safetensors; `out` appears when it is whole.

    A quantized base is loaded unquantized: an adapter cannot be merged into 4-bit weights without rounding it away. The
    chat template that the recipe brings is written with the tokenizer, so that a server asks in the same words.

    Raises:
        RunError: If `out` exists.
        ModelError: If the model or the adapter cannot be loaded, or the adapter is a soft prompt.
    """
    if out.exists():
        raise RunError(f"{out} exists. Name another folder, or remove it: rm -r {shell_word(out)}")
    if adapters.is_soft_prompt(adapter):
        raise ModelError(
            f"{adapter} is a soft prompt: tokens that are read before every prompt. No weight is changed, so nothing "
            "can be merged; train one of the methods lora, dora, ia3, or serve base model and adapter by PEFT"
        )
    llm = load(section.model_copy(update={"quantization": "none"}), adapter)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        llm.model.merge_and_unload().save_pretrained(unfinished)
        if section.chat_template:
            llm.tokenizer.chat_template = section.chat_template
        llm.tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
