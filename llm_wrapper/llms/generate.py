"""The paper's way: greedy generation, whose first integer is the answer. Kept for comparison with scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from llm_wrapper.llms.load import LoadedLLM, can_share_prefixes
from llm_wrapper.llms.virtual import is_soft, to_continue
from llm_wrapper.records import Answer, Prompt

__all__ = ["generate"]


@torch.inference_mode()
def generate(llm: LoadedLLM, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
    """Yield (place in `prompts`, answer with the generated text), batches of prompts of similar length."""
    encoded = [llm.encoder.encode(prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    step = max(1, llm.section.tokens_per_batch // (max(map(len, encoded), default=1) + llm.section.max_new_tokens))
    if is_soft(llm.model) and not can_share_prefixes(llm.model):
        step = 1  # padding would stand between learned tokens and prompt, and local attention counts places
    for start in range(0, len(order), step):
        batch = order[start : start + step]
        yield from zip(batch, _texts(llm, [encoded[place] for place in batch]), strict=True)


def _texts(llm: LoadedLLM, rows: Sequence[Sequence[int]]) -> list[Answer]:
    length, pad = max(map(len, rows)), llm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=llm.model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=llm.model.device)
    end = llm.encoder.end_of_turn
    model = llm.model.get_base_model() if is_soft(llm.model) else llm.model
    given = to_continue(llm.model, ids, mask, fill=pad)
    num_given = given["input_ids"].shape[1] if "input_ids" in given else 0  # behind embeddings only what is new comes
    output = model.generate(
        **given,
        do_sample=False,
        max_new_tokens=llm.section.max_new_tokens,
        eos_token_id=end,
        pad_token_id=pad,
    )[:, num_given:].tolist()
    return [_finished(llm, row, end) for row in output]


def _finished(llm: LoadedLLM, row: Sequence[int], end: int) -> Answer:
    stopped = end in row
    kept = row[: row.index(end)] if stopped else row
    count = len(kept) + stopped
    return Answer(text=llm.tokenizer.decode(kept), finish_reason="stop" if stopped else "length", num_tokens=count)
