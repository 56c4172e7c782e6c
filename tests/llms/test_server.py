"""What a server says is what the same model says here; and what it cannot say is told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import server_formats
from llm_wrapper.llms.base import load_llm
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.local import LocalLLM
from llm_wrapper.llms.server import ServerLLM
from llm_wrapper.prompts.render import choose
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Choice, Prompt
from llm_wrapper.services import CallError
from tests.llms import tiny
from tests.llms.model_server import ModelServer

styles = pytest.mark.parametrize("style", ["chatml", "numbers"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers are kept in a folder of the test; no key of the user's is at hand."""
    monkeypatch.setattr("llm_wrapper.llms.server.ANSWER_FOLDER", tmp_path / "answers")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path / "answers"


@pytest.fixture
def served(style: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """A server of a tiny model, whose tokenizer is at hand."""
    llm = tiny.llm(style=style, max_new_tokens=4)
    monkeypatch.setattr(server_formats, "_tokenizer", lambda section: tiny.tokenizer(style))
    with ModelServer(llm) as server:
        yield server


def section(server: ModelServer, decode: str = "score", **more: Any) -> LLMSection:
    settings = {"base_url": server.base_url, "concurrency": 4, **more}
    return LLMSection.model_validate(
        {"backend": "openai", "model": "tiny", "decode": decode, "max_new_tokens": 4, "server": settings}
    )


def questions() -> list[Prompt]:
    shared = [tiny.prompt(text, 3, number=i) for i, text in enumerate(("left dog", "left cat on a chair", "dog"))]
    return [*shared, tiny.prompt("a chair", 2, first=50), tiny.prompt("x", 1), tiny.prompt("the 12th", 13)]


def asked(server: ModelServer, decode: str, prompts: list[Prompt]) -> list[Answer]:
    return ServerLLM(section(server, decode), progress=False).answer(prompts)


def local(llm: LoadedLLM, decode: str, prompts: list[Prompt]) -> list[Answer]:
    llm.section = llm.section.model_copy(update={"decode": decode})
    return LocalLLM(llm, progress=False).answer(prompts)


@styles
def test_scores_of_a_server_are_those_of_the_model(served: ModelServer) -> None:
    found, expected = asked(served, "score", questions()), local(served.llm, "score", questions())
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.mass == pytest.approx(other.mass, rel=1e-4)
        assert one.text is None
    assert served.count("POST") == len(questions()), "one request for all indices of a question"


@styles
def test_texts_of_a_server_are_those_of_the_model(served: ModelServer) -> None:
    assert asked(served, "generate", questions()) == local(served.llm, "generate", questions())


@styles
def test_first_tokens_give_the_shares_of_whole_indices(served: ModelServer) -> None:
    prompts = [tiny.prompt("left dog", 3)]
    llm = served.llm
    with torch.inference_mode():
        row = torch.softmax(llm.model(torch.tensor([llm.encoder.encode(prompts[0])])).logits[0, -1].double(), dim=-1)
    best = set(row.topk(20).indices.tolist())
    tokens = [llm.tokenizer(str(index), add_special_tokens=False)["input_ids"] for index in range(3)]
    expected = [float(row[token]) if token in best else 0.0 for (token,) in tokens]
    (found,) = asked(served, "first_token", prompts)
    if not sum(expected):
        assert found.probabilities is None
        return
    assert found.probabilities == pytest.approx([share / sum(expected) for share in expected])
    assert found.mass == pytest.approx(sum(expected))
    assert found.text is not None


def told(*alternatives: tuple[str, float], before: tuple[str, float] | None = None) -> dict[str, Any]:
    """A reply whose first token that counts has these alternatives, the likeliest first."""
    rows = [{"token": token, "logprob": math.log(share)} for token, share in alternatives]
    tokens = [{**rows[0], "top_logprobs": rows}]
    if before:
        blank = {"token": before[0], "logprob": math.log(before[1])}
        tokens.insert(0, {**blank, "top_logprobs": [blank]})
    return {"choices": [{"message": {"content": "1 said"}, "finish_reason": "length", "logprobs": {"content": tokens}}]}


FIRST = LLMSection(backend="openai", model="tiny", decode="first_token")


@pytest.mark.parametrize(
    ("reply", "count", "shares", "mass"),
    [
        pytest.param(told(("1", 0.6), ("0", 0.2), ("two", 0.1)), 3, (0.25, 0.75, 0.0), 0.8, id="digits"),
        pytest.param(told(("1", 0.5), (" 1", 0.1), ("0", 0.2)), 2, (0.25, 0.75), 0.8, id="with-and-without-space"),
        pytest.param(told(("1", 0.5), ("7", 0.3), ("-1", 0.1)), 2, (0.0, 1.0), 0.5, id="not-a-candidate"),
        pytest.param(
            told(("1", 0.5), ("01", 0.3), ("\u0661", 0.1), ("1.", 0.05)), 2, (0.0, 1.0), 0.5, id="not-so-written"
        ),
        pytest.param(told(("1", 0.6), ("0", 0.2), before=(" ", 0.5)), 2, (0.25, 0.75), 0.4, id="after-a-blank"),
        pytest.param(told(("1", 0.6), ("11", 0.2)), 12, (0.0, 0.75, *[0.0] * 9, 0.25), 0.8, id="whole-numbers"),
        pytest.param(told(("1", 0.6), ("2", 0.2)), 12, None, None, id="may-be-the-beginning-of-11"),
        pytest.param(told(("box", 0.6), ("the", 0.2)), 3, None, None, id="no-index"),
    ],
)
def test_first_token_shares(
    reply: dict[str, Any], count: int, shares: tuple[float, ...] | None, mass: float | None
) -> None:
    answer = server_formats.request_format(FIRST).answer(tiny.prompt("left", count), reply)
    assert answer.probabilities == (None if shares is None else pytest.approx(shares))
    assert answer.mass == (None if mass is None else pytest.approx(mass))
    assert (answer.text, answer.finish_reason) == ("1 said", "length")
    assert choose(answer, count).index == 1


@styles
def test_a_choice_is_an_index_and_has_no_probability(served: ModelServer) -> None:
    prompts = [tiny.prompt("left dog", 3), tiny.prompt("x", 13)]
    found = asked(served, "choice", prompts)
    assert [choose(answer, 13).index for answer in found] == [2, 12]
    assert {answer.probabilities for answer in found} == {None}


@pytest.mark.parametrize("style", ["chatml"])
def test_a_server_that_does_not_hold_to_the_choices_is_named(served: ModelServer) -> None:
    served.holds_to_schema = False
    with pytest.raises(ModelError, match=r"not one of the 3 indices.*llm\.decode=generate"):
        asked(served, "choice", [tiny.prompt("left dog", 3)])
    assert served.count("POST") == 1


@pytest.mark.parametrize("style", ["chatml"])
def test_a_server_that_does_not_echo_is_named(served: ModelServer) -> None:
    served.echoes = False
    with pytest.raises(ModelError, match=r"gives 1 log-probabilities.*llm\.decode=first_token"):
        asked(served, "score", [tiny.prompt("left dog", 3)])


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    wrong = LLMSection.model_validate({"backend": "openai", "model": "tiny", "server": {"tokenizer": str(tmp_path)}})
    with pytest.raises(ModelError, match=r"(?s)tokenizer .* cannot be loaded.*llm\.server\.tokenizer"):
        server_formats.request_format(wrong)


GOOD_ROW: list[Any] = [None, *[-1.0] * 400]


def echoed(*rows: list[Any], indices: tuple[int, ...] | None = None, read: int | None = None) -> dict[str, Any]:
    places = indices or tuple(range(len(rows)))
    choices = [{"index": i, "logprobs": {"token_logprobs": row}} for i, row in zip(places, rows, strict=True)]
    return {"choices": choices} if read is None else {"choices": choices, "usage": {"prompt_tokens": read}}


@pytest.mark.parametrize("style", ["chatml"])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda n: echoed([None, *[-1.0] * n[0]]), "answers 1 of the 2", id="one-missing"),
        pytest.param(lambda n: echoed(*[[-1.0] * k for k in n], indices=(0, 0)), "answers 2 of the 2", id="twice-one"),
        pytest.param(lambda n: echoed(*[[-1.0] * (k - 1) for k in n]), "does not echo", id="one-token-short"),
        pytest.param(lambda n: echoed(*[[-1.0] * (k + 2) for k in n]), "does not echo", id="more-tokens"),
        pytest.param(lambda n: echoed(*[[-1.0] * k for k in n], read=sum(n) + 2), "it adds tokens", id="bos"),
        pytest.param(lambda n: echoed(*[[None] * k for k in n]), "does not echo", id="all-null"),
        pytest.param(lambda n: echoed(*[[0.9] * k for k in n]), "less than or equal", id="probabilities"),
        pytest.param(
            lambda n: {"choices": [{"index": 0, "logprobs": None}]}, r"choices\.0\.logprobs", id="no-logprobs"
        ),
        pytest.param(lambda n: {"error": {"message": "no"}}, "choices: Field required", id="error-with-200"),
        pytest.param(lambda n: [], "has not the form", id="a-list"),
        pytest.param(lambda n: None, "has not the form", id="null"),
    ],
)
def test_echoes_that_are_not_what_was_asked_for(served: ModelServer, make: Any, text: str) -> None:
    prompt = tiny.prompt("left dog", 2)
    way = server_formats.request_format(section(served))
    lengths = [len(row) for row in way.body(prompt)["prompt"]]
    with pytest.raises(CallError, match=text) as caught:
        way.answer(prompt, make(lengths))
    assert not caught.value.again


@pytest.mark.parametrize("style", ["chatml"])
@pytest.mark.parametrize(
    ("last", "probabilities"),
    [
        pytest.param([None, -1.0], None, id="null"),
        pytest.param([math.nan, -1.0], None, id="nan"),
        pytest.param([-math.inf, -math.inf], None, id="minus-infinity-in-all"),
        pytest.param([-9999.0, -9999.0], None, id="clamped-in-all"),
        pytest.param([-math.inf, -1.0], (0.0, 1.0), id="minus-infinity-in-one"),
        pytest.param([-9999.0, -1.0], (0.0, 1.0), id="clamped-in-one"),
        pytest.param([-800.0, -800.0], (0.5, 0.5), id="small-is-information"),
    ],
)
def test_an_echo_without_a_number_costs_one_question(
    served: ModelServer, last: list[Any], probabilities: tuple[float, ...] | None
) -> None:
    prompt = tiny.prompt("left dog", 2)
    way = server_formats.request_format(section(served))
    rows = [[-1.0] * len(row) for row in way.body(prompt)["prompt"]]
    for row, value in zip(rows, last, strict=True):
        row[-1] = value
    answer = way.answer(prompt, echoed(*rows))
    assert answer.probabilities == (None if probabilities is None else pytest.approx(probabilities))
    if probabilities is None:
        assert choose(answer, 2) == Choice(None, reason="no_probability")


@pytest.mark.parametrize("decode", ["first_token", "choice", "generate"])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param({"choices": []}, id="no-choices"),
        pytest.param({"choices": [{"text": "1"}]}, id="no-message"),
        pytest.param({"choices": [{"message": {"content": 1}}]}, id="number"),
        pytest.param("<html>1</html>", id="text"),
        pytest.param({"choices": [{"message": {"content": "1" * 1_000_001}}]}, id="without-end"),
    ],
)
def test_chats_that_are_not_what_was_asked_for(decode: str, reply: Any) -> None:
    way = server_formats.request_format(FIRST.model_copy(update={"decode": decode}))
    with pytest.raises(CallError, match="has not the form"):
        way.answer(tiny.prompt("left", 2), reply)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="not-named"),
        pytest.param({"logprobs": None}, id="null"),
        pytest.param({"logprobs": {"content": None}}, id="no-content"),
        pytest.param({"logprobs": {"content": [{"token": "1", "logprob": -0.1}]}}, id="no-alternatives"),
    ],
)
def test_missing_alternatives_are_named(more: dict[str, Any]) -> None:
    reply = {"choices": [{"message": {"content": "1"}, "finish_reason": "stop", **more}]}
    with pytest.raises(CallError, match=r"no top_logprobs.*llm\.decode=generate"):
        server_formats.request_format(FIRST).answer(tiny.prompt("left", 2), reply)


@pytest.mark.parametrize("number", [None, math.nan, -math.inf, -9999.0], ids=["null", "nan", "-inf", "clamped"])
def test_an_alternative_without_a_number_does_not_count(number: float | None) -> None:
    reply = told(("1", 0.5), ("0", 0.25))
    reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append({"token": "2", "logprob": number})
    answer = server_formats.request_format(FIRST).answer(tiny.prompt("left", 3), reply)
    assert answer.probabilities == pytest.approx((1 / 3, 2 / 3, 0.0))


def test_an_empty_answer_is_an_empty_text() -> None:
    reply = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    answer = server_formats.request_format(FIRST.model_copy(update={"decode": "generate"})).answer(
        tiny.prompt("left", 2), reply
    )
    assert (answer.text, answer.finish_reason) == ("", "stop")


@pytest.mark.parametrize("style", ["chatml"])
def test_the_recipe_decides_who_is_asked(served: ModelServer) -> None:
    (answer,) = load_llm(section(served, "generate")).answer([tiny.prompt("left dog", 3)])
    assert served.count("POST") == 1
    assert answer.text is not None
