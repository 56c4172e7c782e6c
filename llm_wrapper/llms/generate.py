"""Generate greedily, as the paper does: the first integer is the answer. Kept for comparison with scoring."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.sharing import (
    base_of,
    can_share_prefixes,
    model_failure,
    probe_sequences,
    relative_difference,
    rounding_of,
    trial,
)
from llm_wrapper.llms.soft_prompts import is_soft, num_virtual, to_continue
from llm_wrapper.records import Answer, Prompt

__all__ = ["continuations", "generate"]

_log = logging.getLogger(__name__)


def continuations(llm: LoadedLLM, inputs: dict[str, Any], **settings: Any) -> torch.Tensor:
    """Generate greedily by the given settings alone, up to the end of the turn.

    Args:
        llm: The model.
        inputs: What its `generate` continues.
        settings: Of `transformers.GenerationConfig`.

    Returns:
        Shape (b, t): the inputs, where these are token ids, and what follows.

    Raises:
        ModelError: If the model's own code fails.
    """
    ends = {"eos_token_id": llm.encoder.end_of_turn, "pad_token_id": llm.tokenizer.pad_token_id}
    try:
        output: torch.Tensor = _generated(base_of(llm.model), inputs, **ends, **settings)
    except Exception as error:  # the model's own code: what it may raise is open
        raise model_failure(f"llm.model={llm.section.model} fails to generate", error) from error
    return output


def _generated(model: Any, inputs: Mapping[str, Any], **settings: Any) -> Any:
    """Generate by these settings alone.

    Transformers fills the others in from the model's generation_config.json: a repetition penalty of 1.1 (Qwen2.5)
    punishes greedy answers whose digits occur in the prompt.
    """
    own, model.generation_config = model.generation_config, transformers.GenerationConfig()
    try:
        return model.generate(**inputs, generation_config=transformers.GenerationConfig(use_cache=True, **settings))
    finally:
        model.generation_config = own


_PADS_LEFT: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def _can_pad_left(llm: LoadedLLM) -> bool:
    """Tell whether left-padded rows generate the same as alone, tested once for each model.

    Some do not: a state runs along the row, or positions are counted in it.
    """
    model = base_of(llm.model)
    if model not in _PADS_LEFT:
        one, other = probe_sequences(model.config)
        rows = [one, other[:-4]]
        try:
            with trial():
                together = _first_logits(model, rows)
                alone = [_first_logits(model, [row])[0] for row in rows]
        except Exception as error:  # the model's own code: what it may raise is open
            raise model_failure(f"llm.model={llm.section.model} fails to generate", error) from error
        _PADS_LEFT[model] = all(
            relative_difference(batched[step : step + 1], single[step : step + 1]) <= rounding_of(model)
            for batched, single in zip(together, alone, strict=True)
            for step in range(len(single))
        )
        if not _PADS_LEFT[model]:
            _log.info(
                "llm.model=%s: prompts are continued one by one, since padding before them changes what it generates",
                llm.section.model,
            )
    return _PADS_LEFT[model]


def _first_logits(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the logits (2, v) of the first two tokens that follow each row: of the prompt, and with a cache."""
    inputs = dict(zip(("input_ids", "attention_mask"), _padded_left(rows, 0, model.device), strict=True))
    settings = {"do_sample": False, "max_new_tokens": 2, "pad_token_id": 0}
    output = _generated(model, inputs, output_logits=True, return_dict_in_generate=True, **settings)
    return list(torch.stack(output.logits, dim=1).float())


def _padded_left(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (b, t) and their mask, 1 where a token is.

    ids  pad pad  A   B      mask  0 0 1 1
         A   B    C   D            1 1 1 1
    """
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@torch.inference_mode()
def generate(llm: LoadedLLM, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
    """Yield (index in `prompts`, answer with the generated text), in batches of prompts of similar length."""
    encoded = [llm.encoder.encode(prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    step = max(1, llm.section.tokens_per_batch // (max(map(len, encoded), default=1) + llm.section.max_new_tokens))
    longest = max(map(len, encoded), default=1) + llm.section.max_new_tokens + num_virtual(llm.model)
    if is_soft(llm.model) and not can_share_prefixes(llm.model, longest):
        step = 1  # padding would separate learned tokens from the prompt, and local attention counts columns
    if min(step, len(order)) > 1 and not _can_pad_left(llm):
        step = 1
    for start in range(0, len(order), step):
        batch = order[start : start + step]
        yield from zip(batch, _texts(llm, [encoded[index] for index in batch]), strict=True)


def _texts(llm: LoadedLLM, rows: Sequence[Sequence[int]]) -> list[Answer]:
    end, pad = llm.encoder.end_of_turn, llm.tokenizer.pad_token_id
    ids, mask = _padded_left(rows, pad, llm.model.device)
    inputs = to_continue(llm.model, ids, mask, fill=pad)
    num_input = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0  # behind embeddings only what is new comes
    output = continuations(llm, inputs, do_sample=False, max_new_tokens=llm.section.max_new_tokens)
    return [_finished(llm, row, end) for row in output[:, num_input:].tolist()]


def _finished(llm: LoadedLLM, row: Sequence[int], end: int) -> Answer:
    stopped = end in row
    tokens = row[: row.index(end)] if stopped else row
    count = len(tokens) + stopped
    return Answer(text=llm.tokenizer.decode(tokens), finish_reason="stop" if stopped else "length", num_tokens=count)
