"""The paper's way: greedy generation, whose first integer is the answer. Kept for comparison with scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.sharing import base_of, can_pad_left, can_share_prefixes
from llm_wrapper.llms.virtual import is_soft, num_virtual, to_continue
from llm_wrapper.records import Answer, Prompt

__all__ = ["continuations", "generate"]


def continuations(llm: LoadedLLM, inputs: dict[str, Any], **settings: Any) -> torch.Tensor:
    """Generate as told and in no other way; the model's generation_config.json is left out of account.

    Transformers fills in from there what is not set: a repetition penalty of 1.1 (Qwen2.5) punishes greedy answers
    whose digits stand in the prompt.

    Args:
        llm: The model.
        inputs: What its `generate` continues.
        settings: Of `transformers.GenerationConfig`.

    Returns:
        Shape (b, t): the inputs, where these are token ids, and what follows.
    """
    model = base_of(llm.model)
    end, pad = llm.encoder.end_of_turn, llm.tokenizer.pad_token_id
    own, model.generation_config = model.generation_config, transformers.GenerationConfig()
    try:
        settings = {**settings, "eos_token_id": end, "pad_token_id": pad, "use_cache": True}
        output: torch.Tensor = model.generate(**inputs, generation_config=transformers.GenerationConfig(**settings))
    finally:
        model.generation_config = own
    return output


@torch.inference_mode()
def generate(llm: LoadedLLM, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
    """Yield (place in `prompts`, answer with the generated text), batches of prompts of similar length."""
    encoded = [llm.encoder.encode(prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    step = max(1, llm.section.tokens_per_batch // (max(map(len, encoded), default=1) + llm.section.max_new_tokens))
    longest = max(map(len, encoded), default=1) + llm.section.max_new_tokens + num_virtual(llm.model)
    if not can_pad_left(llm.model) or (is_soft(llm.model) and not can_share_prefixes(llm.model, longest)):
        step = 1  # padding would stand between learned tokens and prompt, and local attention counts places
    for start in range(0, len(order), step):
        batch = order[start : start + step]
        yield from zip(batch, _texts(llm, [encoded[place] for place in batch]), strict=True)


def _texts(llm: LoadedLLM, rows: Sequence[Sequence[int]]) -> list[Answer]:
    length, pad = max(map(len, rows)), llm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=llm.model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=llm.model.device)
    end = llm.encoder.end_of_turn
    given = to_continue(llm.model, ids, mask, fill=pad)
    num_given = given["input_ids"].shape[1] if "input_ids" in given else 0  # behind embeddings only what is new comes
    output = continuations(llm, given, do_sample=False, max_new_tokens=llm.section.max_new_tokens)
    return [_finished(llm, row, end) for row in output[:, num_given:].tolist()]


def _finished(llm: LoadedLLM, row: Sequence[int], end: int) -> Answer:
    stopped = end in row
    kept = row[: row.index(end)] if stopped else row
    count = len(kept) + stopped
    return Answer(text=llm.tokenizer.decode(kept), finish_reason="stop" if stopped else "length", num_tokens=count)
