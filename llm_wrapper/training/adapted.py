"""Puts on a frozen model what is trained: LoRA, DoRA, (IA)3, or a soft prompt, all by PEFT."""

from __future__ import annotations

import itertools
import logging
from functools import partial
from typing import Any

import peft
import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.sharing import takes_blocks
from llm_wrapper.llms.soft_prompts import SoftPromptModel
from llm_wrapper.recipe import LoraSection, Recipe, TrainSection
from llm_wrapper.training import processes
from llm_wrapper.training.targets import adapt_layers, choose_ia3_targets, choose_lora_targets, describe_targets

__all__ = ["FIRST_WORDS", "adapted", "adapter_config", "lora"]

_log = logging.getLogger(__name__)

FIRST_WORDS = (
    "Each object has a number, a kind, a place and a size. Find the one object that the words describe, by its kind, "
    "its place, its size and what is next to it. Answer with its number."
)
"""What a soft prompt says before it is trained, over and over if it is longer. From random numbers, larger than any
embedding, a small model hardly learns."""


def adapter_config(section: TrainSection, model: Any) -> peft.PeftConfig:
    """Return what a recipe means to PEFT.

    (IA)3 scales what PEFT names for the architecture: of Llama keys, values and the feed-forward layer's inner states,
    as in its paper (arXiv 2205.05638).

    Raises:
        ModelError: If the recipe names layers that cannot be adapted.
    """
    if section.method in ("lora", "dora"):
        return lora(section.lora, model, use_dora=section.method == "dora")
    if section.method == "ia3":
        return choose_ia3_targets(peft.IA3Config(task_type="CAUSAL_LM"), model)
    kind = peft.PromptTuningConfig if section.method == "prompt-tuning" else peft.PrefixTuningConfig
    return kind(num_virtual_tokens=section.virtual_tokens, task_type="CAUSAL_LM")


def lora(section: LoraSection, model: Any, *, use_dora: bool = False) -> peft.LoraConfig:
    """Return what the section of LoRA means to PEFT.

    Raises:
        ModelError: If it names layers that cannot be adapted.
    """
    config = peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        use_dora=use_dora,
        task_type="CAUSAL_LM",
    )
    return choose_lora_targets(config, model, section.target_modules)


def adapted(llm: LoadedLLM, recipe: Recipe) -> Any:
    """Put a fresh adapter on the model, drawn by the seed.

    Raises:
        ModelError: If the method cannot be used with this model, or as it is loaded.
    """
    transformers.set_seed(recipe.train.seed)
    config = adapter_config(recipe.train, llm.model)
    if config.is_prompt_learning:
        model = _with_soft_prompt(llm, config)
    else:
        model = adapt_layers(llm.model, config)
        if processes.is_main():
            _log.info("adapters: %s", describe_targets(model))
    # In adapters of the way too: where a copy of the model lies on this machine helps nobody else.
    model.peft_config["default"].base_model_name_or_path = recipe.llm.model
    if recipe.train.gradient_checkpointing:
        model.enable_input_require_grads()
    # Or the whole output layer would be stored with every checkpoint where it is adapted.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _with_soft_prompt(llm: LoadedLLM, config: peft.PeftConfig) -> SoftPromptModel:
    if takes_blocks(llm.model):
        raise ModelError("soft prompts do not go with llm.attention=flex_attention; set llm.attention=auto")
    if processes.shares_model():
        raise ModelError(
            "soft prompts are too small to be shared out by FSDP, and PEFT cannot save the parts; use "
            "recipes/accelerate/ddp.yaml"
        )
    model = SoftPromptModel(llm.model, config)
    _begin(model, llm.tokenizer(FIRST_WORDS, add_special_tokens=False)["input_ids"])
    return model


@torch.no_grad()
def _begin(model: SoftPromptModel, token_ids: list[int]) -> None:
    """Set learned tokens to what the model makes of given ones: their embeddings, or their keys and values."""
    base, config = model.get_base_model(), model.active_peft_config
    chosen = itertools.islice(itertools.cycle(token_ids), config.num_virtual_tokens)
    ids = torch.tensor([list(chosen)], device=base.device)
    if config.peft_type == peft.PeftType.PROMPT_TUNING:
        values = base.get_input_embeddings()(ids)[0]
    else:
        # Not the model's own cache: that of local attention forgets what is further back than its window.
        layers = base(input_ids=ids, past_key_values=transformers.DynamicCache(), use_cache=True).past_key_values.layers
        both = torch.cat([states for layer in layers for states in (layer.keys, layer.values)])  # (2 layers, h, v, d)
        values = both.permute(2, 0, 1, 3).flatten(1)
    model.prompt_encoder["default"].embedding.weight.copy_(values)
