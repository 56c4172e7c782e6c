"""Tokens through an LLM are counted in the model; those of an answer as if its question went alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm_wrapper.llms.base import add_reasoning
from llm_wrapper.llms.local import LocalLLM, generate, score_prompts
from llm_wrapper.llms.meter import CountingLLM, Spoken, metered
from llm_wrapper.llms.self_test import require_exact
from llm_wrapper.records import Prompt
from tests.llms import tiny

THREE = 3


def prompts() -> list[Prompt]:
    return [tiny.prompt(text, 3, number=number) for number, text in enumerate(("left dog", "the cat", "chair on top"))]


@pytest.mark.parametrize(("architecture", "style"), tiny.PAIRS)
def test_each_token_counts_once_and_three_times_with_gradients(architecture: str, style: str) -> None:
    llm = tiny.llm(architecture, style)
    ids = torch.arange(10, 24).reshape(2, 7)
    with metered(training=THREE) as meter:
        with torch.no_grad():
            llm.model(input_ids=ids)
        assert meter.tokens == ids.numel()
        llm.model(input_ids=ids)
    assert meter.tokens == ids.numel() * (1 + THREE)
    llm.model(input_ids=ids)
    assert meter.tokens == ids.numel() * (1 + THREE), "the block is over"


def test_scoring_counts_packs_and_generation_what_is_new() -> None:
    llm = tiny.llm(max_new_tokens=4)
    (question, *_) = prompts()
    length = len(llm.encoder.encode(question))
    with metered(training=THREE) as alone:
        list(score_prompts(llm, [question]))
    # Behind the prompt come the first tokens of the answers, and ends of turn.
    assert length < alone.tokens <= length + sum(len(llm.encoder.completion(i)) for i in range(3))
    with metered(training=THREE) as unshared:
        list(score_prompts(llm, prompts(), share=False))
    with metered(training=THREE) as shared:
        list(score_prompts(llm, prompts()))
    assert shared.tokens < unshared.tokens
    with metered(training=THREE) as written:
        ((_, answer),) = generate(llm, [question])
    assert answer.num_tokens is not None
    assert written.tokens == length + answer.num_tokens - 1, "the last token is not read again"


def test_a_trial_of_a_model_is_free() -> None:
    llm = tiny.llm()
    with metered(training=THREE) as meter:
        require_exact(llm.model, "tiny")
    assert meter.tokens == 0


def test_counting_ends_with_an_error() -> None:
    llm = tiny.llm()
    with pytest.raises(RuntimeError, match="stop"), metered(training=THREE) as meter:
        raise RuntimeError("stop")
    llm.model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert meter.tokens == 0


class Pooled(torch.nn.Module):
    """Not an LLM."""

    def forward(self, x: torch.Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": x})()


def test_other_modules_are_not_counted() -> None:
    with metered(training=THREE) as meter:
        Pooled()(torch.zeros(2, 3, 4))
    assert meter.tokens == 0


@pytest.mark.parametrize("num_tokens", [0, 5], ids=["scored", "reasoned"])
def test_what_is_said_is_counted_as_if_alone_and_answers_are_those_of_ask(num_tokens: int) -> None:
    llm, spoken = tiny.llm(), Spoken()
    asked = add_reasoning(CountingLLM(LocalLLM(llm), spoken), num_tokens).answer(prompts())
    assert asked == add_reasoning(LocalLLM(llm), num_tokens).answer(prompts())
    plain = sum(len(llm.encoder.encode(prompt)) for prompt in prompts())
    assert spoken.written == sum(answer.num_tokens or 0 for answer in asked)
    if num_tokens:
        assert spoken.written > 0
        assert spoken.read > 2 * plain + spoken.written // 2
    else:
        assert (spoken.read, spoken.written) == (plain, 0)
