"""Measure the cost of a method in tokens: those that go through the LLM, and those read and written per answer.

The first is measured in the model itself, so whatever asks or trains it is counted alike: padding is, and a prefix that
several questions share is once. The second is what an answer would cost if its question went alone, to a server say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.nn.modules.module import register_module_forward_hook

from llm_wrapper.llms.local import LocalLLM
from llm_wrapper.llms.self_test import IN_TRIAL
from llm_wrapper.records import Answer, Prompt


@dataclass
class Meter:
    """Tokens that went through an LLM."""

    tokens: int = 0


@dataclass
class Spoken:
    """Tokens of whole questions as they were read, chat template and all, and tokens that were written."""

    read: int = 0
    written: int = 0


@contextmanager
def metered(*, training: int) -> Iterator[Meter]:
    """Count every token that goes through any LLM in this block; one that goes with gradients counts `training` times.

    A model that embeds sentences is none: it gives a pooled state, which decoders do not have.
    """
    meter = Meter()

    def count(module: torch.nn.Module, _: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None or hasattr(output, "pooler_output") or IN_TRIAL.get():
            return
        # The body and not the whole: scoring asks it without the head.
        if isinstance(module, transformers.PreTrainedModel) and module.base_model is module:
            meter.tokens += hidden.shape[0] * hidden.shape[1] * (training if torch.is_grad_enabled() else 1)

    handle = register_module_forward_hook(count)
    try:
        yield meter
    finally:
        handle.remove()


class CountingLLM:
    """Answers as a local LLM, and adds what it reads and writes to `spoken`; with reasons it reads questions twice."""

    def __init__(self, llm: LocalLLM, spoken: Spoken) -> None:
        self._llm, self._spoken = llm, spoken

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order."""
        answers, encoder = self._llm.answer(prompts), self._llm.loaded.encoder
        self._spoken.read += sum(len(encoder.encode(prompt)) for prompt in prompts)
        self._spoken.written += sum(answer.num_tokens or 0 for answer in answers)
        return answers

    def writer(self, num_tokens: int) -> CountingLLM:
        """Return the same LLM, writing a text of at most `num_tokens` tokens, counted with the rest."""
        return CountingLLM(self._llm.writer(num_tokens), self._spoken)
