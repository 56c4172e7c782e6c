"""Soft prompts: learned tokens before everything a frozen model reads (prompt and prefix tuning).

PEFT puts them before plain rows alone: it drops positions, and takes masks of two dimensions only. Here they precede
packs too, as ancestors of every token, so packed sequences still see what they would see alone:

    prompt tuning   v0 v1 | A B 0 . 1 .     columns in the row: embeddings in place of token ids
    prefix tuning    (v)  | A B 0 . 1 .     keys and values of every layer: a cache that is filled already
    position        0  1    2 3 4 5 4 5

Prompt tuning learns rows of the embeddings (arXiv 2104.08691), prefix tuning keys and values (arXiv 2101.00190).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import peft
import torch

from llm_wrapper.errors import ModelError

TAKEN = (peft.PeftType.PROMPT_TUNING, peft.PeftType.PREFIX_TUNING)
_SHAPE = ("num_layers", "token_dim", "num_attention_heads")
_WEIGHT = "prompt_embeddings"


def num_virtual(model: Any) -> int:
    """Return how many learned tokens a model reads first, in the row or as keys and values; 0 without a soft prompt."""
    is_soft = isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning
    return int(model.active_peft_config.num_virtual_tokens) if is_soft else 0


def num_columns(model: Any) -> int:
    """Return how many columns of a model's outputs precede that of the first token."""
    count = num_virtual(model)
    return count if count and model.active_peft_config.peft_type == peft.PeftType.PROMPT_TUNING else 0


def prepended(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Put the learned tokens of a soft prompt before a batch of the base model.

    Args:
        model: With a soft prompt.
        batch: `input_ids` and `position_ids` (b, t), an `attention_mask` as `packing.collate_for` gives it, and
            perhaps columns as `logits_to_keep`.
    """
    mask = batch["attention_mask"]
    if not isinstance(mask, torch.Tensor):
        raise ModelError("soft prompts do not go with llm.attention=flex_attention; set llm.attention=auto")
    count = model.active_peft_config.num_virtual_tokens
    in_row = num_columns(model)
    ahead = {"attention_mask": _seen(mask, count, in_row=bool(in_row)), "position_ids": batch["position_ids"] + count}
    if not in_row:
        return {**batch, **ahead, "past_key_values": model.get_prompt(len(mask))}
    own = torch.arange(count, device=mask.device).expand(len(mask), -1)
    ahead["position_ids"] = torch.cat([own, ahead["position_ids"]], dim=1)
    if "logits_to_keep" in batch:
        ahead["logits_to_keep"] = batch["logits_to_keep"] + count
    others = {key: value for key, value in batch.items() if key != "input_ids"}
    return {**others, **ahead, "inputs_embeds": _embedded(model, batch["input_ids"])}


def _embedded(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (b, v + t, d) of learned tokens and tokens."""
    words = model.get_base_model().get_input_embeddings()(input_ids)
    return torch.cat([model.get_prompt(len(input_ids)).to(words.dtype), words], dim=1)


def _seen(mask: torch.Tensor, count: int, *, in_row: bool) -> torch.Tensor:
    """Widen a mask by learned tokens, which all tokens see; where they are in the row, each sees those before it."""
    if mask.ndim == 2:
        return torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
    below = torch.nn.functional.pad(mask, (count, 0))  # it is added: 0 is seen
    if not in_row:
        return below
    hidden = mask.new_full((count, below.shape[-1]), torch.finfo(mask.dtype).min).triu(1)
    return torch.cat([hidden.expand(len(mask), 1, -1, -1), below], dim=2)


def to_continue(model: Any, input_ids: torch.Tensor, mask: torch.Tensor, *, fill: int) -> dict[str, Any]:
    """Return the arguments with which the base model's `generate` continues rows that are padded on the left.

    Not PEFT's own `generate`: it counts padding as positions behind the tokens of prompt tuning, so an answer would
    depend on the other rows.

    Args:
        model: With a soft prompt.
        input_ids: Of shape (b, t).
        mask: Of shape (b, t), 1 where a token is.
        fill: A token for the places of a prefix, whose keys and values are there already; it is not read.
    """
    count = model.active_peft_config.num_virtual_tokens
    wide = _seen(mask, count, in_row=True)
    if num_columns(model):
        return {"inputs_embeds": _embedded(model, input_ids), "attention_mask": wide}
    prefix = input_ids.new_full((len(mask), count), fill)
    ids = torch.cat([prefix, input_ids], dim=1)
    return {"input_ids": ids, "attention_mask": wide, "past_key_values": model.get_prompt(len(mask))}


class SoftPromptModel(peft.PeftModelForCausalLM):  # type: ignore[misc]
    """PEFT's model of a soft prompt, that takes packs; it is trained as this, and saved and loaded as PEFT's own."""

    def forward(self, **batch: Any) -> Any:
        """Run the base model behind the learned tokens."""
        return self.base_model(**prepended(self, batch))


def require_fitting(skeleton: Any, config: peft.PeftConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse a soft prompt whose settings or weights are not of a model's size."""
    expected = copy.deepcopy(config)
    expected.inference_mode = True  # or PEFT would load the tokenizer that a third-party adapter names
    for name in _SHAPE:  # PEFT takes these from the adapter, whatever the model is
        setattr(expected, name, None)
    with torch.device("meta"):  # nothing is allocated for a number of tokens that the file does not hold
        encoder: Any = peft.PeftModel(skeleton, expected).prompt_encoder["default"]
    values = {name: (getattr(config, name), getattr(expected, name)) for name in _SHAPE}
    brought = {key: tuple(value.shape) for key, value in weights.items()}
    values["weights"] = (brought, {_WEIGHT: tuple(encoder.embedding.weight.shape)})
    problems = [
        f"{name}: {theirs}, and {own} for this model" for name, (theirs, own) in values.items() if theirs != own
    ]
    if problems:
        raise ValueError("; ".join(problems))
