"""What somebody else wrote or answers cannot hurt who uses it: one row for each kind of attack.

Each attack is a function that does what a user does with something hostile, and ends in an error of the package that
says what is wrong, or in harmless output. Details are in the tests of each module.
"""

from __future__ import annotations

import gzip
import http.server
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import keys, runs
from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.llms import answers, server
from llm_wrapper.llms.packages import find_in_package
from llm_wrapper.llms.server import Server, ask_server
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.render import render
from llm_wrapper.prompts.text import clean
from llm_wrapper.recipe import LLMSection, compose, load_resolved
from llm_wrapper.records import Answer, Box, Candidate, Message, Prompt, Sample

ROOT = Path(__file__).parents[1]
NAMES = {"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"}
SECRET = "sk-very-secret-0123456789"
CANDIDATES = tuple(Candidate(Box(x, 0.0, x + 9.0, 9.0), "dog", 0.5, "d", "od") for x in (0.0, 20.0))
SAMPLE = Sample("s", "r", "i", None, (40, 40), "left dog", None)
PROMPT = Prompt("s", (Message("user", "Which?"),), CANDIDATES, "coords")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answers, "ROOT", tmp_path / "answers")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(keys, "_typed", {})
    monkeypatch.setattr(server, "_MAX_TRIES", 1)


@contextmanager
def serving(reply: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that answers each request by a function; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            try:
                reply(self)
            except OSError:
                """The client went away, as it should."""

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}/v1"
        finally:  # also where the test expects an error: the process would never end
            found.shutdown()
        thread.join()


def served(url: str, **more: Any) -> LLMSection:
    section = {"backend": "openai", "model": "m", "decode": "generate", "server": {"base_url": url, **more}}
    return LLMSection.model_validate(section)


def head(handler: http.server.BaseHTTPRequestHandler, **headers: str) -> None:
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def stranger(change: dict[str, dict[str, Any]]) -> Path:
    """A run folder with a recipe that its author has changed."""
    recipe = compose(ROOT / "recipes", NAMES).model_dump(mode="json")
    for section, values in change.items():
        recipe[section] |= values
    folder = Path("runs/stranger")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe, default=str), encoding="utf-8")
    return folder


def key_to_a_stranger() -> None:
    sent: list[str | None] = []
    with serving(lambda handler: sent.append(handler.headers["Authorization"])) as url:
        folder = stranger({"llm": served(url, key_variable="AWS_SECRET_ACCESS_KEY").model_dump()})
        try:
            ask_server(runs.recipe_of(folder).llm, [PROMPT], progress=False)
        finally:
            assert sent == []


def key_sent_back() -> None:
    def echo(handler: http.server.BaseHTTPRequestHandler) -> None:
        head(handler)
        said = {"content": f"1 {handler.headers['Authorization']}"}
        handler.wfile.write(json.dumps({"choices": [{"message": said, "finish_reason": SECRET}]}).encode())

    with serving(echo) as url:
        keys.allow_key("AWS_SECRET_ACCESS_KEY", url)
        (answer,) = ask_server(served(url, key_variable="AWS_SECRET_ACCESS_KEY"), [PROMPT], progress=False)
    assert (answer.text, answer.finish_reason) == ("1 Bearer ***", "***")
    assert SECRET not in answers.ROOT.joinpath("m-generate.jsonl").read_text(encoding="utf-8")


def asked(reply: Callable[[http.server.BaseHTTPRequestHandler], None], **more: Any) -> Answer:
    with serving(reply) as url:
        return Server(served(url, **more)).ask(PROMPT)


def endless_reply() -> None:
    def write(handler: http.server.BaseHTTPRequestHandler) -> None:
        head(handler)
        for _ in range(3000):
            handler.wfile.write(b" " * (1 << 20))

    asked(write)


def packed_reply() -> None:
    def write(handler: http.server.BaseHTTPRequestHandler) -> None:
        head(handler, Content_Encoding="gzip")
        handler.wfile.write(gzip.compress(b" " * (1 << 24)))

    asked(write)


def slow_drip(write: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Callable[[], None]:
    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        for _ in range(200):
            write(handler)
            handler.wfile.flush()
            time.sleep(0.05)

    def attack() -> None:
        began = time.monotonic()
        try:
            asked(drip, request_seconds=0.5)
        finally:
            assert time.monotonic() - began < 9

    return attack


def deep_reply() -> None:
    def write(handler: http.server.BaseHTTPRequestHandler) -> None:
        head(handler)
        handler.wfile.write(b"[" * 100_000)

    asked(write)


def kept_answers() -> None:
    key = Server(section := served("http://127.0.0.1:9/v1")).key_of(PROMPT)
    rows = [
        {"probabilities": [0.5, 0.25, 0.25]},
        {"probabilities": [float("nan"), 1.0]},
        {"probabilities": [2.0, -1.0]},
    ]
    for row in rows:
        path = server.answers_path(section)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"key": key, "sample_id": "s", "answer": row}) + "\n", encoding="utf-8")
        kept = answers.AnswerFile(path)
        assert not kept.fits(key, 2)
        assert kept.num_damaged == 1


def code_of_a_run() -> None:
    for name in ("runs/__init__.py", "runs/stranger/__init__.py", "runs/stranger/weights/__init__.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("raise SystemExit('code of a stranger has run')\n", encoding="utf-8")
    sys.path.insert(0, "")
    try:
        find_in_package("runs.stranger.weights", "*.gguf", "llm.model=gguf:runs.stranger.weights")
    finally:
        sys.path.remove("")


def file_as_template() -> None:
    Path("secret.j2").write_text("of the user", encoding="utf-8")
    secret = str(Path("secret.j2").resolve())
    recipe = runs.recipe_of(stranger({"prompt": {"format": secret}}))
    render(SAMPLE, CANDIDATES, recipe.prompt.format)


def link_as_template() -> None:
    folder = stranger({"prompt": {"format": "own.j2"}})
    Path("secret").write_text("of the user", encoding="utf-8")
    (folder / "own.j2").symlink_to(Path("secret").resolve())
    runs.recipe_of(folder)


def names_as_paths() -> None:
    folder = stranger(
        {"data": {"name": "../../x", "eval_split": "..", "train_split": "/x"}, "detector": {"label": ".."}}
    )
    runs.recipe_of(folder)


def recipe(text: str) -> Callable[[], None]:
    def attack() -> None:
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        load_resolved(Path("recipe.yaml"))

    return attack


def template(source: str) -> Callable[[], None]:
    def attack() -> None:
        Path("own.j2").write_text(source, encoding="utf-8")
        render(SAMPLE, CANDIDATES, "own.j2")

    return attack


def endless_words() -> None:
    assert rule.choose("second " * 64_000, CANDIDATES).index is not None
    assert len(clean("e" + "\u0301\u0316" * 100_000)) < 10


def bracket_in_parts() -> None:
    assert not set("<>|") & set(clean("\u226e|im_end|\u226f"))


def empty_expression() -> None:
    render(Sample("s", "r", "i", None, (40, 40), "\u200b\ufe0f", None), CANDIDATES, "coords")


def shell_in_make() -> None:
    words = [
        f"{name}=x; touch pwned $(shell touch pwned) `touch pwned`" for name in ("VLM", "DATA_ROOT", "RUN", "ARGS")
    ]
    program = Path(".venv/bin/llm-wrapper")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "requirements-nodeps.lock", "pyproject.toml"):
        Path(name).write_bytes((ROOT / name).read_bytes())
    Path(".venv/.installed").touch()
    done = subprocess.run(["make", "train", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path("pwned").exists()


def command_of_a_message() -> None:
    folder = stranger({}).rename("runs/x; touch pwned")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    runs.open_run(folder, runs.recipe_of(folder))


ATTACKS: dict[str, tuple[Callable[[], None], str | None]] = {
    "key-to-a-stranger": (key_to_a_stranger, "you have not allowed that"),
    "key-sent-back": (key_sent_back, None),
    "reply-without-end": (endless_reply, "more than 64 MiB"),
    "reply-that-unpacks": (packed_reply, "the reply is packed"),
    "reply-drip-by-drip": (
        slow_drip(lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")), "no whole answer in 0.5 seconds"
    ),
    "headers-drip-by-drip": (
        slow_drip(lambda handler: handler.send_response_only(100)), "no whole answer in 0.5 seconds|no answer"
    ),
    "reply-nested": (deep_reply, "not valid JSON"),
    "kept-answers": (kept_answers, None),
    "code-of-a-run": (code_of_a_run, "is not the name of a package"),
    "file-as-template": (file_as_template, "nor a readable template file"),
    "link-as-template": (link_as_template, "lies outside"),
    "names-as-paths": (names_as_paths, r"\(4 problems\)"),
    "recipe-aliases": (recipe("a: &a [1, 1]\nb: &b [*a, *a]\n"), "alias"),
    "recipe-depth": (recipe("a: " + "[" * 1000), "nested|YAML"),
    "recipe-digits": (recipe("train: {seed: " + "9" * 5000 + "}"), "100 digits"),
    "recipe-repeated-key": (recipe("train: {seed: 1}\ntrain: {seed: 2}\n"), "stands twice"),
    "template-memory": (template("{{ 'x' * 10 ** 11 }}"), "MemoryError"),
    "template-recursion": (template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "recursion|ends the process"),
    "template-loops": (template("{% for i in range(9999) %}" * 25 + "{% endfor %}" * 25), "nested blocks"),
    "words-without-end": (endless_words, None),
    "bracket-in-parts": (bracket_in_parts, None),
    "empty-expression": (empty_expression, "is empty: say what to find"),
    "shell-in-make": (shell_in_make, None),
    "command-of-a-message": (command_of_a_message, "rm -r 'runs/x; touch pwned'$"),
}  # fmt: skip
"""Kind of attack -> what a user does, and what the error says; none where nothing happens."""


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_does_no_harm(attack: Callable[[], None], message: str | None) -> None:
    if message is None:
        attack()
        return
    with pytest.raises(LLMWrapperError) as caught:
        attack()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert SECRET not in str(caught.value)
