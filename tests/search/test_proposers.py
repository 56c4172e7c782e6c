"""A local LLM proposes, steered where it is asked to; a server is asked once for each draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.llms import answers, steering
from llm_wrapper.recipe.schema import LLMSection, SamplingSection, SearchSection
from llm_wrapper.search.proposers import LocalProposer, ServedProposer
from llm_wrapper.search.search import Request
from tests.llms import tiny
from tests.search.fakes import ProposingServer

GUIDES = ("the left dog of 4 dogs", "12 chairs")


def proposer(**changes: object) -> LocalProposer:
    values = {"sampling": {"max_new_tokens": 6}, "alphas": [1.0], **changes}
    return LocalProposer(tiny.llm(), SearchSection.model_validate(values))


def test_the_same_request_draws_the_same_and_guidance_changes_it() -> None:
    propose = proposer()
    plain = [propose(Request("Write.", seed)) for seed in range(4)]
    assert [propose(Request("Write.", seed)) for seed in range(4)] == plain
    assert [propose(Request("Write.", seed, GUIDES, 0.0)) for seed in range(4)] == plain
    assert [propose(Request("Write.", seed, GUIDES, 8.0)) for seed in range(4)] != plain
    assert len({found.text for found in plain}) == 4


def test_the_offset_is_computed_once_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[str, str, int | None]] = []
    real = steering.offset

    def counted(llm: object, better: str, worse: str, layer: int | None) -> object:
        pairs.append((better, worse, layer))
        return real(llm, better, worse, layer)  # type: ignore[arg-type]

    monkeypatch.setattr(steering, "offset", counted)
    propose = proposer(layer=2)
    for guides in (GUIDES, GUIDES, GUIDES[::-1]):
        propose(Request("Write.", 1, guides, 0.5))
    assert pairs == [(*GUIDES, 2), (*GUIDES[::-1], 2)]


def served(server: ProposingServer, **sampling: object) -> ServedProposer:
    section = LLMSection.model_validate({"backend": "openai", "model": "m", "server": {"base_url": f"{server.url}/v1"}})
    return ServedProposer(section, SamplingSection.model_validate(sampling))


def test_a_server_is_asked_once_for_each_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ROOT", tmp_path)
    with ProposingServer(["one", "two"]) as server:
        assert not ServedProposer.can_be_guided
        assert [served(server)(Request("Write.", seed)).text for seed in (1, 2, 1, 2)] == ["one", "two"] * 2
        assert [each.body["seed"] for each in server.seen] == [1, 2]
        # Another temperature is another question, and what a server does not know is not sent.
        served(server, temperature=0.5, top_k=None)(Request("Write.", 1))
        assert server.seen[-1].body["temperature"] == 0.5
        assert "top_k" not in server.seen[-1].body
        assert server.seen[-1].path == "/v1/chat/completions"


def test_a_local_model_is_no_server() -> None:
    with pytest.raises(RecipeError, match="is no server"):
        ServedProposer(LLMSection(model="tiny"), SamplingSection())
