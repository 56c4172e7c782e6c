"""The exact probability of every candidate index: its whole token sequence and the end of the turn.

Nothing is generated and nothing is parsed, so an answer is never unusable. Expressions of one image share one copy of
their prefix, and the indices of one expression share theirs, in a single forward pass.
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

__all__ = ["score"]

_MAX_GROUP = 16
"""Most expressions behind one prefix; attention grows with the square of a pack."""
_ROWS = 64
"""Rows of logits that are turned into float32 at a time: all at once would take twice what the logits take."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A prompt's tokens, and where its completions stand in a pack (`paths[i]` is the path of index i)."""

    place: int
    prompt: list[int]
    completions: list[tuple[int, ...]]


def _questions(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[_Question]:
    encoder = llm.encoder
    return [
        _Question(place, encoder.encode(prompt), [encoder.completion(i) for i in range(prompt.num_answers)])
        for place, prompt in enumerate(prompts)
    ]


def _groups(questions: Sequence[_Question], *, share: bool) -> Iterator[list[_Question]]:
    """Yield questions that go into one pack: neighbours that share most of their tokens, or a single one.

    They have the same candidates, or the same examples before them. Where the expression stands before the candidates
    little is shared, and a long pack would cost more attention than the shared tokens save.
    """
    group: list[_Question] = []
    for question in questions:
        if group and not (share and len(group) < _MAX_GROUP and _is_worth_it(group[0], question)):
            yield group
            group = []
        group.append(question)
    if group:
        yield group


def _is_worth_it(first: _Question, other: _Question) -> bool:
    shared = common_prefix_length([first.prompt, other.prompt])
    return 2 * shared >= min(len(first.prompt), len(other.prompt))


def _rows(group: Sequence[_Question], *, share: bool) -> Iterator[list[tuple[_Question, int]]]:
    """Yield the (question, index) pairs that one pack holds: all of a group, or one where nothing may be shared."""
    pairs = [(question, index) for question in group for index in range(len(question.completions))]
    yield from [pairs] if share else ([pair] for pair in pairs)


def _packed(questions: Sequence[_Question], *, share: bool) -> tuple[list[list[tuple[_Question, int]]], list[Pack]]:
    """Return the (question, index) pairs that go together, and the pack of each list of them."""
    jobs = [pairs for group in _groups(questions, share=share) for pairs in _rows(group, share=share)]
    return jobs, [pack_tree([[*q.prompt, *q.completions[i]] for q, i in pairs], merge=True) for pairs in jobs]


@contextmanager
def _computing(model: Any, section: LLMSection, longest: int) -> Iterator[None]:
    """Let a model compute an adapter's products, which is kept in float32, in its own type, as training does.

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
    wanted = [
        (row, pack.parents[place], pack.input_ids[place])
        for row, pack in enumerate(packs)
        for path, span in zip(pack.paths, spans[row], strict=True)
        for place in path[len(path) - span :]
    ]
    # Only these positions go through the head: the logits of a whole batch would be larger than the model.
    unique = sorted({(row, place) for row, place, _ in wanted})
    where = {key: number for number, key in enumerate(unique)}
    rows, places = (torch.tensor(column, device=model.device) for column in zip(*unique, strict=True))
    with _computing(model, llm.section, max(map(len, packs)) + num_virtual(llm.model)):
        try:
            logits = logits_at(model, batch, rows, places + num_columns(llm.model))
        except Exception as error:  # the model's own code: what it may raise is open
            shape = " x ".join(map(str, batch["position_ids"].shape))
            raise model_failure(f"llm.model={llm.section.model} fails at {shape} tokens", error) from error
    numbers = torch.tensor([where[row, place] for row, place, _ in wanted], device=logits.device)
    tokens = torch.tensor([token for _, _, token in wanted], device=logits.device)
    norms = torch.cat([logits[n : n + _ROWS].float().logsumexp(dim=-1) for n in range(0, len(logits), _ROWS)])
    picked = (logits[numbers, tokens].float() - norms[numbers]).tolist()
    if any(map(math.isnan, picked)):
        raise ModelError(
            f"llm.model={llm.section.model} gives scores that are no numbers: weights or an adapter that are not "
            "finite, or values beyond the range of its type; try llm.dtype=float32"
        )
    values = iter(picked)
    return [[sum(next(values) for _ in range(span)) for span in spans[row]] for row in range(len(packs))]


def _answer(log_probs: Sequence[float]) -> Answer:
    values = torch.tensor(log_probs, dtype=torch.float64)
    return Answer(probabilities=tuple(values.softmax(0).tolist()), mass=float(values.exp().sum()))


@torch.inference_mode()
def score(llm: LoadedLLM, prompts: Sequence[Prompt], *, share: bool = True) -> Iterator[tuple[int, Answer]]:
    """Yield (place in `prompts`, answer) as batches are done, in an order of their own.

    Args:
        llm: The model to ask.
        prompts: Those of one image should be neighbours: neighbours share what they begin with, if it is most of them.
        share: Whether anything is shared at all, if the model can; without it every answer goes through the model
            with a copy of its prompt.
    """
    questions = _questions(llm, prompts)
    jobs, packs = _packed(questions, share=share and can_share_prefixes(llm.model, 1))
    longest = max(map(len, packs), default=0) + num_virtual(llm.model)
    if not all(pack.is_plain for pack in packs) and not can_share_prefixes(llm.model, longest):
        jobs, packs = _packed(questions, share=False)
    open_answers: dict[int, dict[int, float]] = {}
    for batch in by_budget(packs, llm.section.tokens_per_batch):
        spans = [[len(q.completions[i]) for q, i in jobs[place]] for place in batch]
        for place, values in zip(batch, _log_probs(llm, [packs[place] for place in batch], spans), strict=True):
            for (question, index), value in zip(jobs[place], values, strict=True):
                answers = open_answers.setdefault(question.place, {})
                answers[index] = value
                if len(answers) == len(question.completions):
                    done = open_answers.pop(question.place)
                    yield question.place, _answer([done[i] for i in range(len(done))])
