"""Score every candidate index exactly: the probability of its whole token sequence and the end of the turn.

Nothing is generated and nothing is parsed, so an answer is never unusable. Expressions of one image share one copy of
their prefix, and the indices of one expression share theirs, in a single forward pass:

    pack       <candidates> left dog <assistant>  1 . 2 .     right dog <assistant>  1 . 2 .
               |- shared -| |---- question ----|  |-----|     |---- question -----|  |-----|
    head            only at the columns before a scored token: `>` (for 1, 2), 1 (for .), 2 (for .)
    log p(1) = log_softmax(logits at `>`)[1] + log_softmax(logits at 1)[.]
    answer     softmax over the indices; mass = p(1) + p(2) before it
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import Pack, by_budget, common_prefix_length, pack_tree
from llm_wrapper.llms.sharing import base_of, can_share_prefixes, logits_at, model_batch, model_failure
from llm_wrapper.llms.soft_prompts import num_columns, num_virtual, prepended
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Prompt

__all__ = ["score_prompts"]

_MAX_GROUP = 16
"""Most expressions behind one prefix; attention grows with the square of a pack."""
_ROWS = 64
"""Rows of logits that are turned into float32 at a time: all at once would need twice the memory of the logits."""


@dataclass(frozen=True, slots=True)
class _Question:
    """The tokens of prompt `number`, and those of each of its answers."""

    number: int
    prompt: list[int]
    completions: list[tuple[int, ...]]


_Job = list[tuple[_Question, int]]
"""The (question, index) pairs of one pack; path i of the pack is that of pair i."""


@torch.inference_mode()
def score_prompts(llm: LoadedLLM, prompts: Sequence[Prompt], *, share: bool = True) -> Iterator[tuple[int, Answer]]:
    """Yield (index in `prompts`, answer) as batches are done, in any order.

    Args:
        llm: The model to ask.
        prompts: Those of one image should be neighbours: neighbours share a prefix if it is most of them.
        share: Whether anything is shared at all, if the model can; without it every answer goes through the model
            with a copy of its prompt.
    """
    encoder = llm.encoder
    questions = [
        _Question(number, encoder.encode(prompt), [encoder.completion(i) for i in range(prompt.num_answers)])
        for number, prompt in enumerate(prompts)
    ]
    jobs, packs = _pack(questions, share=share and can_share_prefixes(llm.model, 1))
    longest = max(map(len, packs), default=0) + num_virtual(llm.model)
    if not all(pack.is_plain for pack in packs) and not can_share_prefixes(llm.model, longest):
        jobs, packs = _pack(questions, share=False)
    open_answers: dict[int, dict[int, float]] = {}
    for batch in by_budget(packs, llm.section.tokens_per_batch):
        spans = [[len(question.completions[i]) for question, i in jobs[number]] for number in batch]
        for number, values in zip(batch, _log_probs(llm, [packs[n] for n in batch], spans), strict=True):
            for (question, index), value in zip(jobs[number], values, strict=True):
                answers = open_answers.setdefault(question.number, {})
                answers[index] = value
                if len(answers) == len(question.completions):
                    complete = open_answers.pop(question.number)
                    yield question.number, _answer([complete[i] for i in range(len(complete))])


def _pack(questions: Sequence[_Question], *, share: bool) -> tuple[list[_Job], list[Pack]]:
    """Return the (question, index) pairs that go together, and the pack of each list of them."""
    jobs: list[_Job] = []
    for group in _groups(questions, share=share):
        pairs = [(question, index) for question in group for index in range(len(question.completions))]
        jobs += [pairs] if share else [[pair] for pair in pairs]
    return jobs, [pack_tree([[*q.prompt, *q.completions[i]] for q, i in pairs], merge=True) for pairs in jobs]


def _groups(questions: Sequence[_Question], *, share: bool) -> Iterator[list[_Question]]:
    """Yield questions that go into one pack: neighbours that share most of their tokens, or a single one.

    They have the same candidates, or the same examples before them. Where the expression precedes the candidates little
    is shared, and a long pack would cost more attention than the shared tokens save.
    """
    group: list[_Question] = []
    for question in questions:
        if group and not (share and len(group) < _MAX_GROUP and _share_most(group[0], question)):
            yield group
            group = []
        group.append(question)
    if group:
        yield group


def _share_most(first: _Question, other: _Question) -> bool:
    shared = common_prefix_length([first.prompt, other.prompt])
    return 2 * shared >= min(len(first.prompt), len(other.prompt))


@contextmanager
def _computing(model: Any, section: LLMSection, longest: int) -> Iterator[None]:
    """Let a model compute the products of a float32 adapter in its own type, as training does.

    PEFT would copy their inputs to float32, and autocast back. On the CPU long packs are faster with SDPA, and the
    short rows of a training with eager attention, which `auto` therefore is there.
    """
    is_narrow, own = model.dtype != torch.float32, model.config._attn_implementation
    is_open = own == "eager" and section.attention == "auto" and model._supports_sdpa
    takes_sdpa = is_open and can_share_prefixes(model, longest)
    if takes_sdpa:
        model.set_attn_implementation("sdpa")
    try:
        with (
            disable_input_dtype_casting(model, active=is_narrow),
            torch.autocast(model.device.type, dtype=model.dtype, enabled=is_narrow),
        ):
            yield
    finally:
        if takes_sdpa:
            model.set_attn_implementation(own)


def _log_probs(llm: LoadedLLM, packs: Sequence[Pack], spans: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return, for each pack and path, the log-probability of the last `span` tokens of its sequence."""
    model = base_of(llm.model)
    batch = prepended(llm.model, model_batch(model, packs, llm.tokenizer.pad_token_id))
    # (row, column of the token before, token) of every token that is scored
    scored = [
        (row, pack.parents[column], pack.input_ids[column])
        for row, pack in enumerate(packs)
        for path, span in zip(pack.paths, spans[row], strict=True)
        for column in path[len(path) - span :]
    ]
    # Only these columns go through the head: the logits of a whole batch would be larger than the model.
    unique = sorted({(row, column) for row, column, _ in scored})
    number_of = {key: number for number, key in enumerate(unique)}
    rows, columns = (torch.tensor(each, device=model.device) for each in zip(*unique, strict=True))
    with _computing(model, llm.section, max(map(len, packs)) + num_virtual(llm.model)):
        try:
            logits = logits_at(model, batch, rows, columns + num_columns(llm.model))
        except Exception as error:  # the model's own code: what it may raise is open
            shape = " x ".join(map(str, batch["position_ids"].shape))
            raise model_failure(f"llm.model={llm.section.model} fails at {shape} tokens", error) from error
    numbers = torch.tensor([number_of[row, column] for row, column, _ in scored], device=logits.device)
    tokens = torch.tensor([token for _, _, token in scored], device=logits.device)
    norms = torch.cat([logits[n : n + _ROWS].float().logsumexp(dim=-1) for n in range(0, len(logits), _ROWS)])
    picked = (logits[numbers, tokens].float() - norms[numbers]).tolist()
    if any(map(math.isnan, picked)):
        raise ModelError(
            f"llm.model={llm.section.model} gives non-finite scores: weights or an adapter that are not finite, or "
            "values beyond the range of its type; try llm.dtype=float32"
        )
    values = iter(picked)
    return [[sum(next(values) for _ in range(span)) for span in spans[row]] for row in range(len(packs))]


def _answer(log_probs: Sequence[float]) -> Answer:
    values = torch.tensor(log_probs, dtype=torch.float64)
    return Answer(probabilities=tuple(values.softmax(0).tolist()), mass=float(values.exp().sum()))
