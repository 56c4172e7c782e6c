"""A server that misbehaves costs patience, never an answer: again where that helps, at once where it does not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import services
from llm_wrapper.errors import LLMWrapperError, ModelError, RecipeError
from llm_wrapper.llms import server
from llm_wrapper.llms.server import Server, ServerLLM
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Prompt
from tests.detectors.misbehaving_server import GOOD, Step
from tests.llms import tiny
from tests.llms.model_server import ModelServer

pytestmark = pytest.mark.slow  # it waits; CI runs it

KEY = "sk-very-secret-0123456789"
HTML = b"<html><body>\n<h1>502 Bad Gateway</h1>\n</body></html>"


class Waits(list[float]):
    """Sleeps without sleeping, and remembers how long."""

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        return False


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("llm_wrapper.llms.server.ANSWER_FOLDER", tmp_path / "answers")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(services, "_is_below", lambda address, allowed: True)  # each test has a port of its own
    return tmp_path / "answers"


@pytest.fixture(scope="module")
def llm() -> Any:
    return tiny.llm(max_new_tokens=2)


@pytest.fixture
def served(llm: Any) -> Iterator[ModelServer]:
    with ModelServer(llm) as found:
        yield found


def section(served: ModelServer, **more: Any) -> LLMSection:
    settings = {"base_url": served.base_url, "concurrency": 1, "key_variable": "OPENAI_API_KEY", **more}
    return LLMSection.model_validate(
        {"backend": "openai", "model": "tiny", "decode": "generate", "max_new_tokens": 2, "server": settings}
    )


def questions(count: int = 4) -> list[Prompt]:
    return [tiny.prompt(f"the dog {number}", 2 + number % 3, number=number) for number in range(count)]


def ask_one(served: ModelServer, waits: Waits, **more: Any) -> Answer:
    return Server(section(served, **more), wait=waits).ask(questions(1)[0])


@pytest.mark.parametrize(
    ("step", "least"),
    [
        pytest.param(Step(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}), 7, id="429-retry-after"),
        pytest.param(Step(429, {}), 0.5, id="429"),
        pytest.param(Step(500, {"error": "oops"}), 0.5, id="500"),
        pytest.param(Step(502, HTML), 0.5, id="html-502"),
        pytest.param(Step(503, b"", {"Retry-After": "soon"}), 0.5, id="503-unclear-pause"),
        pytest.param(Step(408, {}), 0.5, id="408"),
        pytest.param(Step(200, b'{"choices": [{"mess'), 0.5, id="broken-json"),
        pytest.param(Step(200, HTML), 0.5, id="html-200"),
        pytest.param(Step(200, b"\xff\xfe"), 0.5, id="not-utf-8"),
        pytest.param(Step(200, {"choices": []}, how="half"), 0.5, id="cut-body"),
        pytest.param(Step(how="nothing"), 0.5, id="connection-closed"),
        pytest.param(Step(how="never"), 0.5, id="timeout"),
    ],
)
def test_trouble_that_passes_is_waited_for(served: ModelServer, step: Step, least: float) -> None:
    waits = Waits()
    served.submits.extend([step, step])
    patience = 0.3 if step.how == "never" else 30.0
    answer = ask_one(served, waits, request_seconds=patience)
    assert answer == ask_one(served, Waits())
    assert served.count("POST") == 4
    assert len(waits) == 2
    assert least <= waits[0] <= max(1.0, least)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        pytest.param(
            Step(401, {"error": {"message": "no"}}), "wants another key.*OPENAI_API_KEY holds another", id="401"
        ),
        pytest.param(Step(403, HTML), "wants another key", id="403"),
        pytest.param(
            Step(403, {"error": {"message": "You are not allowed to request logprobs from this model"}}),
            r"gives no logprobs of this model.*llm\.decode=generate",
            id="403-logprobs",
        ),
        pytest.param(
            Step(400, {"error": {"message": "logprobs are not supported with reasoning models."}}),
            r"gives no logprobs of this model.*llm\.decode=generate",
            id="400-logprobs",
        ),
        pytest.param(Step(200, b"x", {"Content-Encoding": "gzip"}), "the reply is packed", id="packed"),
        pytest.param(Step(404, {"detail": "Not Found"}), r"HTTP 404.*base_url ends in /v1", id="404"),
        pytest.param(Step(400, {"error": "too long: 9000 tokens"}), "too long: 9000 tokens", id="400"),
        pytest.param(Step(422, {"detail": "Unexpected fields"}), "Unexpected fields", id="422"),
        pytest.param(Step(307, b"", {"Location": "http://elsewhere/"}), "redirects are not followed", id="redirect"),
        pytest.param(Step(200, {"object": "list"}), "choices: Field required", id="wrong-form"),
    ],
)
def test_what_will_not_pass_is_told_at_once(served: ModelServer, step: Step, text: str) -> None:
    waits = Waits()
    served.submits.extend([step] * 10)
    with pytest.raises(ModelError, match=text) as caught:
        ask_one(served, waits)
    assert served.count("POST") == 1
    assert not waits
    assert "sample image-0/0" in str(caught.value)
    assert "asks only for those that are missing" in str(caught.value)


UNSUPPORTED = [
    {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
     "instead.", "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter"},
    {"message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
     "supported.", "param": "temperature", "code": "unsupported_value"},
]  # fmt: skip


def test_what_a_model_that_reasons_refuses_is_left_out(served: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    served.submits.extend(Step(400, {"error": error}) for error in UNSUPPORTED)
    served.submits.append(Step(200, {"choices": [{"message": {"content": "1"}, "finish_reason": "stop"}]}))
    assert ask_one(served, Waits()).text == "1"
    assert [sorted(seen.body) for seen in served.seen] == [
        ["max_tokens", "messages", "model", "temperature"],
        ["max_completion_tokens", "messages", "model", "temperature"],
        ["max_completion_tokens", "messages", "model"],
    ]
    assert served.seen[1].body["max_completion_tokens"] == 2
    assert "refuses max_tokens" in caplog.text
    assert "refuses temperature" in caplog.text


def test_a_server_that_refuses_one_parameter_for_ever_is_asked_twice(served: ModelServer) -> None:
    served.submits.extend([Step(400, {"error": UNSUPPORTED[0]})] * 9)
    with pytest.raises(ModelError, match="refuses the request"):
        ask_one(served, Waits())
    assert served.count("POST") == 2


def test_patience_ends(served: ModelServer) -> None:
    waits = Waits()
    served.submits.extend([Step(500, {})] * 20)
    with pytest.raises(ModelError, match="Given up after 6 tries"):
        ask_one(served, waits)
    assert served.count("POST") == 6
    assert waits == sorted(waits), "each pause is longer than the one before"


def test_a_long_pause_is_the_users_to_take(served: ModelServer) -> None:
    served.submits.append(Step(429, {}, {"Retry-After": "86400"}))
    with pytest.raises(ModelError, match="asks for a pause of 86400 seconds"):
        ask_one(served, Waits())


def test_no_server_there(served: ModelServer) -> None:
    waits = Waits()
    with pytest.raises(ModelError, match=r"no answer \(Connect.*is the server running there"):
        ask_one(served, waits, base_url="http://127.0.0.1:9/v1")
    assert len(waits) == 5


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_the_key_is_sent_but_never_shown(
    served: ModelServer, status: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="llm_wrapper")
    echo = f'Incorrect API key provided: "Bearer {KEY}"'
    served.submits.extend([Step(status, {"error": {"message": echo}})] * 6)
    with pytest.raises(ModelError) as caught:
        ask_one(served, Waits())
    assert {seen.headers["Authorization"] for seen in served.seen} == {f"Bearer {KEY}"}
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert KEY not in caplog.text
    served.submits.clear()
    ServerLLM(section(served), progress=False).answer(questions(2))
    assert all(KEY not in file.read_text() for file in folder.iterdir())


def test_no_key_is_sent_that_the_recipe_does_not_name(served: ModelServer) -> None:
    ask_one(served, Waits(), key_variable=None)
    assert "Authorization" not in served.seen[0].headers


def test_a_named_key_that_is_not_set(served: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    served.submits.append(Step(401, {}))
    with pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
        ask_one(served, Waits())


def test_a_key_of_two_lines_is_refused(served: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY holds spaces") as caught:
        ask_one(served, Waits())
    assert KEY not in str(caught.value)


def test_answers_are_asked_for_once(served: ModelServer, folder: Path) -> None:
    first = ServerLLM(section(served), progress=False).answer(questions())
    assert served.count("POST") == 4
    assert ServerLLM(section(served), progress=False).answer(questions()[::-1]) == first[::-1]
    assert served.count("POST") == 4
    assert len({answer.text for answer in first}) > 1, "all the same answers would show nothing"


def test_equal_questions_are_asked_once(served: ModelServer) -> None:
    found = ServerLLM(section(served), progress=False).answer([*questions(2), *questions(2)])
    assert found[:2] == found[2:]
    assert served.count("POST") == 2


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"model": "other"}, id="model"),
        pytest.param({"decode": "first_token"}, id="way"),
        pytest.param({"max_new_tokens": 1}, id="length"),
    ],
)
def test_another_question_is_asked_again(served: ModelServer, change: dict[str, Any]) -> None:
    ServerLLM(section(served), progress=False).answer(questions(1))
    ServerLLM(section(served).model_copy(update=change), progress=False).answer(questions(1))
    assert served.count("POST") == 2


def test_the_same_model_elsewhere_is_asked_again(served: ModelServer, llm: Any) -> None:
    ServerLLM(section(served), progress=False).answer(questions(1))
    with ModelServer(llm) as other:
        ServerLLM(section(other), progress=False).answer(questions(1))
        assert other.count("POST") == 1


def test_an_interrupted_evaluation_loses_nothing(served: ModelServer) -> None:
    served.submits.extend([GOOD, GOOD, Step(400, {"error": "too long"})])
    with pytest.raises(ModelError, match="too long"):
        ServerLLM(section(served), progress=False).answer(questions())
    num_before = served.count("POST")
    assert num_before == 3, "nothing is asked after the one that failed"
    assert len(ServerLLM(section(served), progress=False).answer(questions())) == 4
    assert served.count("POST") == num_before + 2


def test_requests_under_way_are_kept_when_one_fails(served: ModelServer, folder: Path) -> None:
    served.seconds = 0.2
    served.submits.extend([Step(400, {}), GOOD, GOOD])
    with pytest.raises(ModelError):
        ServerLLM(section(served, concurrency=3), progress=False).answer(questions())
    assert len((folder / "tiny-generate.jsonl").read_text().splitlines()) == served.count("POST") - 1


def test_nobody_sleeps_on_after_a_failure(served: ModelServer) -> None:
    served.seconds = 0.1
    served.submits.extend([Step(429, {}, {"Retry-After": "500"}), Step(400, {})])
    with pytest.raises(ModelError):
        ServerLLM(section(served, concurrency=2), progress=False).answer(questions(2))


@pytest.mark.parametrize("damage", ["cut", "garbage", "form", "record"])
def test_a_damaged_line_costs_one_question(
    served: ModelServer, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ServerLLM(section(served), progress=False).answer(questions())
    file = folder / "tiny-generate.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    row = json.loads(lines[-1])
    lines[-1] = {
        "cut": lines[-1][:-20],
        "garbage": b"\xff\x00 not json\n",
        "form": json.dumps({"key": row["key"]}).encode() + b"\n",
        "record": json.dumps({**row, "answer": {"probability": "high"}}).encode() + b"\n",
    }[damage]
    file.write_bytes(b"".join(lines))
    assert ServerLLM(section(served), progress=False).answer(questions()) == expected
    assert served.count("POST") == 5
    assert "1 damaged lines" in caplog.text
    assert len(server.AnswerFile(file)) == 4, "the new line did not become part of the damaged one"
    ServerLLM(section(served), progress=False).answer(questions())
    assert served.count("POST") == 5


def test_an_answer_that_cannot_be_kept_stops_the_work(served: ModelServer, folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    with pytest.raises(LLMWrapperError, match=r"not written|cannot be read"):
        ServerLLM(section(served), progress=False).answer(questions())
    assert served.count("POST") <= 1


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    file = server.AnswerFile(tmp_path / "full.jsonl")
    file.path.symlink_to("/dev/full")
    with pytest.raises(LLMWrapperError, match="No space left"):
        file.keep("b", Answer(text="1"), sample_id="s")
    assert "b" not in file


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_at_a_time_are_bounded(served: ModelServer, concurrency: int) -> None:
    served.seconds = 0.1
    ServerLLM(section(served, concurrency=concurrency), progress=False).answer(questions(9))
    assert served.most_at_once == concurrency
