"""What is refused before the first prompt is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_wrapper.errors import PromptError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.local import LocalLLM
from llm_wrapper.records import Prompt
from tests.llms import tiny

LIMIT = 1024
"""Tokens that the model of these tests takes."""


def small_llm(**changes: str) -> LoadedLLM:
    llm = tiny.llm(**changes)
    llm.model.config.max_position_embeddings = LIMIT
    return llm


def prompts(*lengths: int) -> list[Prompt]:
    asked = [tiny.prompt("left " * length, 3, number=number) for number, length in enumerate(lengths)]
    return [replace(each, sample_id=f"s{number}") for number, each in enumerate(asked)]


@pytest.mark.parametrize("decode", ["score", "generate"])
def test_all_prompts_beyond_the_limit_are_named_at_once(decode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("score_prompts", "generate"):
        monkeypatch.setattr(f"llm_wrapper.llms.local.{name}", lambda *_: pytest.fail("a prompt was asked"))
    llm = small_llm(decode=decode)
    with pytest.raises(
        PromptError, match=r"prompts of 2 samples .* samples s1 \(.* tokens\), s3 \(.* tokens\)\."
    ) as caught:
        LocalLLM(llm, progress=False).answer(prompts(1, LIMIT, 2, LIMIT + 1))
    assert "candidates.cap=10" in str(caught.value)
    assert "prompt.format=compact" in str(caught.value)


def test_what_fits_is_asked() -> None:
    llm = small_llm()
    most = prompts(100)
    assert len(llm.encoder.encode(most[0])) < LIMIT
    assert len(LocalLLM(llm, progress=False).answer(most)) == 1
