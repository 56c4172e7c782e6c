"""The probability of "none of these" is exact, and it is sent and read like every other index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llm_wrapper.llms import server_formats
from llm_wrapper.llms.local import score_prompts
from llm_wrapper.prompts.render import render_prompt
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Prompt
from tests.llms import tiny
from tests.llms.test_score import pairs
from tests.llms.test_server import told


def prompt(expression: str, count: int, number: int = 0) -> Prompt:
    return render_prompt(tiny.sample(expression, number=number), tiny.candidates(count), "compact", none=True)


def questions() -> list[Prompt]:
    """Neighbours with one prefix, a single candidate, and an answer that is the first of two digits."""
    return [prompt("left dog", 3), prompt("no such thing", 3, 1), prompt("x", 1), prompt("the 10th", 10)]


@pairs
@torch.inference_mode()
def test_scores_equal_brute_force_and_those_that_share_nothing(architecture: str, style: str) -> None:
    llm = tiny.llm(architecture, style)
    shared, alone = (dict(score_prompts(llm, questions(), share=share)) for share in (True, False))
    for place, asked in enumerate(questions()):
        head, sums = llm.encoder.encode(asked), []
        for index in range(len(asked.candidates) + 1):
            completion = llm.encoder.completion(index)
            logits = llm.model(torch.tensor([[*head, *completion]])).logits[0].double().log_softmax(dim=-1)
            sums.append(sum(float(logits[len(head) + i - 1, token]) for i, token in enumerate(completion)))
        expected = torch.tensor(sums).softmax(dim=0).tolist()
        assert shared[place].probabilities == pytest.approx(expected, abs=1e-5)
        assert alone[place].probabilities == pytest.approx(expected, abs=1e-5)
        assert shared[place].mass == pytest.approx(sum(torch.tensor(sums).exp().tolist()), rel=1e-4)


def way(decode: str) -> Any:
    return server_formats.request_format(
        LLMSection.model_validate({"backend": "openai", "model": "tiny", "decode": decode})
    )


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


def test_a_server_is_held_to_it() -> None:
    body = way("choice").body(prompt("left", 3))
    assert body["response_format"]["json_schema"]["schema"]["enum"] == [0, 1, 2, 3]
    assert way("choice").answer(prompt("left", 3), said("3")).text == "3"
    with pytest.raises(Exception, match="not one of the 3 indices"):
        way("choice").answer(replace(prompt("left", 3), none=False), said("3"))


@pytest.mark.parametrize(
    ("count", "shares"),
    [(1, (0.25, 0.75)), (9, (0.25, 0.75, *[0.0] * 8)), (10, None)],
    ids=["one candidate", "all of one digit", "none is 10"],
)
def test_first_tokens_give_its_share(count: int, shares: tuple[float, ...] | None) -> None:
    found = way("first_token").answer(prompt("left", count), told(("1", 0.6), ("0", 0.2)))
    assert found.probabilities == (None if shares is None else pytest.approx(shares))
