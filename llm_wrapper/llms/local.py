"""An LLM whose weights are on this machine: exact scores of every index, or generated text.

`score_prompts` gives the probability of an index's whole token sequence and the end of the turn. Nothing is generated
and nothing is parsed, so an answer is never unusable. Expressions of one image share one copy of their prefix, and the
indices of one expression share theirs, in a single forward pass:

    pack       <candidates> left dog <assistant>  1 . 2 .     right dog <assistant>  1 . 2 .
               |- shared -| |---- question ----|  |-----|     |---- question -----|  |-----|
    head            only at the columns before a scored token: `>` (for 1, 2), 1 (for .), 2 (for .)
    log p(1) = log_softmax(logits at `>`)[1] + log_softmax(logits at 1)[.]
    answer     softmax over the indices; mass = p(1) + p(2) before it

`generate` continues prompts greedily, as the paper does, whose answer is the first integer of the text.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from peft.helpers import disable_input_dtype_casting

from llm_wrapper.errors import ModelError, PromptError
from llm_wrapper.llms import soft_prompts
from llm_wrapper.llms.base import writing_section
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import (
    Pack,
    base_of,
    by_budget,
    can_share_prefixes,
    common_prefix_length,
    logits_at,
    model_batch,
    pack_tree,
)
from llm_wrapper.llms.self_test import model_failure, probe_sequences, relative_difference, rounding_of, trial
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.terminal import ProgressBar, as_description

_log = logging.getLogger(__name__)

_CHUNK = 256
"""Prompts tokenized and packed at a time; long enough for batches of similar length, short enough for memory."""
_INDEX_TOKENS = 3
"""Tokens of an answer that is scored: an index and the end of the turn."""
_FRAME = 512
"""Tokens that a chat template may add to the messages."""
_MAX_GROUP = 16
"""Most expressions behind one prefix; attention grows with the square of a pack."""
_ROWS = 64
"""Rows of logits that are turned into float32 at a time: all at once would need twice the memory of the logits."""


class LocalLLM:
    """An LLM whose weights are on this machine; `llm.decode` says whether it scores the indices or generates."""

    def __init__(self, loaded: LoadedLLM, *, title: str = "LLM", progress: bool = True) -> None:
        self.loaded, self._title, self._progress = loaded, title, progress

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order.

        Prompts of one image should be neighbours, so that they share their prefix.
        """
        _require_room(self.loaded, prompts)
        method = score_prompts if self.loaded.section.decode == "score" else generate
        rows: Iterable[tuple[int, Answer]] = (
            (start + index, answer)
            for start in range(0, len(prompts), _CHUNK)
            for index, answer in method(self.loaded, prompts[start : start + _CHUNK])
        )
        answers = dict(_with_progress(rows, self._title, len(prompts)) if self._progress else rows)
        return [answers[index] for index in range(len(prompts))]

    def writer(self, num_tokens: int) -> LocalLLM:
        """Return the same model, generating a text of at most `num_tokens` tokens."""
        loaded = replace(self.loaded, section=writing_section(self.loaded.section, num_tokens))
        return LocalLLM(loaded, title=f"{self._title}: reasons", progress=self._progress)


def _with_progress(rows: Iterable[tuple[int, Answer]], title: str, total: int) -> Iterator[tuple[int, Answer]]:
    with ProgressBar() as bar:
        task = bar.add_task(as_description(title), total=total)
        for row in rows:
            yield row
            bar.advance(task)


def _require_room(llm: LoadedLLM, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are longer than the model's limit, all at once, before the first is asked.

    Only prompts with as many bytes as the model takes tokens are encoded: a token is a byte or more.
    """
    limit = getattr(llm.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return
    generated = llm.section.max_new_tokens if llm.section.decode != "score" else _INDEX_TOKENS
    room = limit - generated - llm.num_virtual
    lengths = {
        prompt.sample_id: len(llm.encoder.encode(prompt))
        for prompt in prompts
        if sum(len(each.content.encode()) for each in prompt.messages) > room - _FRAME
    }
    too_long = {sample_id: length for sample_id, length in lengths.items() if length > room}
    if too_long:
        named = ", ".join(f"{sample_id} ({length:,} tokens)" for sample_id, length in list(too_long.items())[:3])
        more = ", ..." if len(too_long) > 3 else ""
        raise PromptError(
            f"the prompts of {len(too_long):,} samples are longer than the {room:,} tokens that "
            f"llm.model={llm.section.model} has for them: samples {named}{more}. Show fewer candidates, as "
            "candidates.cap=10, or write them shorter: prompt.format=compact"
        )


# --- scoring ---------------------------------------------------------------------------------------------------------


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

    Neighbours share a prefix if it is most of them, so prompts of one image should be neighbours. Without `share` every
    answer goes through the model with a copy of its prompt.
    """
    encoder = llm.encoder
    questions = [
        _Question(number, encoder.encode(prompt), [encoder.completion(i) for i in range(prompt.num_answers)])
        for number, prompt in enumerate(prompts)
    ]
    jobs, packs = _pack(questions, share=share and can_share_prefixes(llm.model, 1))
    longest = max(map(len, packs), default=0) + llm.num_virtual
    if not all(pack.is_plain for pack in packs) and not can_share_prefixes(llm.model, longest):
        jobs, packs = _pack(questions, share=False)
    open_answers: dict[int, dict[int, float]] = {}
    for batch in by_budget(packs, llm.section.tokens_per_batch):
        spans = [[len(question.completions[i]) for question, i in jobs[number]] for number in batch]
        for number, log_probs in zip(batch, _log_probs(llm, [packs[n] for n in batch], spans), strict=True):
            for (question, index), log_prob in zip(jobs[number], log_probs, strict=True):
                answers = open_answers.setdefault(question.number, {})
                answers[index] = log_prob
                if len(answers) == len(question.completions):
                    del open_answers[question.number]
                    values = torch.tensor([answers[i] for i in range(len(answers))], dtype=torch.float64)
                    shares = tuple(values.softmax(0).tolist())
                    yield question.number, Answer(probabilities=shares, mass=float(values.exp().sum()))


def _pack(questions: Sequence[_Question], *, share: bool) -> tuple[list[_Job], list[Pack]]:
    """Return the (question, index) pairs that go together, and the pack of each list of them.

    Questions share a pack with neighbours that share most of their tokens: they have the same candidates, or the same
    examples before them. Where the expression precedes the candidates little is shared, and a long pack would cost more
    attention than the shared tokens save.
    """
    jobs: list[_Job] = []
    first: _Question | None = None
    size = 0
    for question in questions:
        pairs = [(question, index) for index in range(len(question.completions))]
        if not share:
            jobs += [[pair] for pair in pairs]
        elif first and size < _MAX_GROUP and _share_most(first.prompt, question.prompt):
            jobs[-1] += pairs
            size += 1
        else:
            jobs.append(pairs)
            first, size = question, 1
    return jobs, [pack_tree([[*q.prompt, *q.completions[i]] for q, i in pairs], merge=True) for pairs in jobs]


def _share_most(one: Sequence[int], other: Sequence[int]) -> bool:
    return 2 * common_prefix_length(one, other) >= min(len(one), len(other))


def _log_probs(llm: LoadedLLM, packs: Sequence[Pack], spans: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return, for each pack and path, the log-probability of the last `span` tokens of its sequence."""
    model = base_of(llm.model)
    batch = model_batch(model, packs, llm.tokenizer.pad_token_id)
    if llm.num_virtual:
        batch = soft_prompts.prepended(llm.model, batch)
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
    if llm.num_virtual:
        columns += soft_prompts.num_columns(llm.model)
    with _computing(llm, model, max(map(len, packs)) + llm.num_virtual):
        try:
            logits = logits_at(model, batch, rows, columns)
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


@contextmanager
def _computing(llm: LoadedLLM, model: Any, longest: int) -> Iterator[None]:
    """Let a model compute the products of a float32 adapter in its own type, as training does.

    PEFT would copy their inputs to float32, and autocast back. On the CPU long packs are faster with SDPA, and the
    short rows of a training with eager attention, which `auto` therefore is there.
    """
    is_narrow, own = model.dtype != torch.float32, model.config._attn_implementation
    is_open = own == "eager" and llm.section.attention == "auto" and model._supports_sdpa
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


# --- generation ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def generate(llm: LoadedLLM, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
    """Yield (index in `prompts`, answer with the generated text), in batches of prompts of similar length."""
    encoded = [llm.encoder.encode(prompt) for prompt in prompts]
    end, pad, most = llm.encoder.end_of_turn, llm.tokenizer.pad_token_id, llm.section.max_new_tokens
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    longest = max(map(len, encoded), default=1) + most
    step = max(1, llm.section.tokens_per_batch // longest)
    if llm.num_virtual and not can_share_prefixes(llm.model, longest + llm.num_virtual):
        step = 1  # padding would separate learned tokens from the prompt, and local attention counts columns
    if min(step, len(order)) > 1 and not _can_pad_left(llm):
        step = 1
    for start in range(0, len(order), step):
        batch = order[start : start + step]
        inputs = _pad_left([encoded[index] for index in batch], pad, llm.model.device)
        if llm.num_virtual:
            inputs = soft_prompts.to_continue(llm.model, inputs["input_ids"], inputs["attention_mask"], fill=pad)
        output = continuations(llm, inputs, do_sample=False, max_new_tokens=most)
        num_input = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0  # embeddings are not in the output
        for index, row in zip(batch, output[:, num_input:].tolist(), strict=True):
            stopped = end in row
            tokens = row[: row.index(end)] if stopped else row
            text, reason = llm.tokenizer.decode(tokens), "stop" if stopped else "length"
            yield index, Answer(text=text, finish_reason=reason, num_tokens=len(tokens) + stopped)


def continuations(llm: LoadedLLM, inputs: dict[str, Any], **settings: Any) -> torch.Tensor:
    """Generate by the given settings alone, up to the end of the turn.

    Returns shape (b, t): the inputs, where these are token ids, and the tokens that follow.
    """
    ends = {"eos_token_id": llm.encoder.end_of_turn, "pad_token_id": llm.tokenizer.pad_token_id}
    try:
        output: torch.Tensor = _generate(base_of(llm.model), inputs, **ends, **settings)
    except Exception as error:  # the model's own code: what it may raise is open
        raise model_failure(f"llm.model={llm.section.model} fails to generate", error) from error
    return output


def _generate(model: Any, inputs: Mapping[str, Any], **settings: Any) -> Any:
    """Generate by these settings alone.

    Transformers fills the others in from the model's generation_config.json: a repetition penalty of 1.1 (Qwen2.5)
    punishes greedy answers whose digits occur in the prompt.
    """
    own, model.generation_config = model.generation_config, transformers.GenerationConfig()
    try:
        return model.generate(**inputs, generation_config=transformers.GenerationConfig(use_cache=True, **settings))
    finally:
        model.generation_config = own


def _pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, torch.Tensor]:
    """Return token ids (b, t) and their mask, 1 where a token is.

    ids  pad pad  A   B      mask  0 0 1 1
         A   B    C   D            1 1 1 1
    """
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


_PADS_LEFT: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def _can_pad_left(llm: LoadedLLM) -> bool:
    """Tell whether left-padded rows generate the same as alone, tested once for each model.

    Some do not: a state runs along the row, or positions are counted in it.
    """
    model = base_of(llm.model)
    if model in _PADS_LEFT:
        return _PADS_LEFT[model]

    def first_logits(rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits (b, 2, v) of the first two tokens that follow each row: of the prompt, and with a cache."""
        settings = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
        output = _generate(model, _pad_left(rows, 0, model.device), max_new_tokens=2, pad_token_id=0, **settings)
        return torch.stack(output.logits, dim=1).float()

    one, other = probe_sequences(model.config)
    rows = [one, other[:-4]]
    try:
        with trial():
            together = first_logits(rows).flatten(0, 1)
            alone = torch.cat([first_logits([row]) for row in rows]).flatten(0, 1)
    except Exception as error:  # the model's own code: what it may raise is open
        raise model_failure(f"llm.model={llm.section.model} fails to generate", error) from error
    _PADS_LEFT[model] = all(
        relative_difference(together[n : n + 1], alone[n : n + 1]) <= rounding_of(model) for n in range(len(alone))
    )
    if not _PADS_LEFT[model]:
        _log.info(
            "llm.model=%s: prompts are continued one by one, since padding before them changes what it generates",
            llm.section.model,
        )
    return _PADS_LEFT[model]
