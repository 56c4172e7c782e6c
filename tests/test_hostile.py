"""Somebody else's words, recipes and answers cannot hurt who uses them: one row for each kind of attack.

Files are in `test_hostile_files`, models in `test_hostile_models`; details are in the tests of each module.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import runs
from llm_wrapper.llms import server
from llm_wrapper.llms.server import Server, ServerLLM
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.render import render_prompt
from llm_wrapper.prompts.text import clean_text
from llm_wrapper.recipe import LLMSection, load_resolved
from llm_wrapper.records import Answer, Sample
from tests.attacks import (
    CANDIDATES,
    CLIPBOARD,
    PICTURE,
    PROMPT,
    ROOT,
    SAMPLE,
    SECRET,
    Attack,
    bounded,
    check,
    command,
    row,
    stranger,
)

Handler = http.server.BaseHTTPRequestHandler
Reply = Callable[[Handler], object]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm_wrapper.llms.server.ANSWER_FOLDER", tmp_path / "answers")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("LLM_WRAPPER_KEYS", "")
    monkeypatch.setattr(server, "_MAX_TRIES", 1)


# --- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def serving(reply: Reply) -> Iterator[str]:
    """Run a server that answers each request by a function; its address."""

    class Replying(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            try:
                reply(self)
            except OSError:
                """The client went away, as it should."""

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replying) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1"
        finally:
            listening.shutdown()
            thread.join()


def served(url: str, **more: Any) -> LLMSection:
    section = {"backend": "openai", "model": "m", "decode": "generate", "server": {"base_url": url, **more}}
    return LLMSection.model_validate(section)


def head(handler: Handler, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def ask(reply: Reply, **more: Any) -> Answer:
    with serving(reply) as url:
        return Server(served(url, **more)).ask(PROMPT)


def key_to_a_stranger() -> None:
    sent: list[str | None] = []
    with serving(lambda handler: sent.append(handler.headers["Authorization"])) as url:
        folder = stranger({"llm": served(url, key_variable="AWS_SECRET_ACCESS_KEY").model_dump()})
        try:
            ServerLLM(runs.recipe_of(folder).llm, progress=False).answer([PROMPT])
        finally:
            assert sent == []


def key_sent_back() -> None:
    def echo(handler: Handler) -> None:
        head(handler)
        said = {"content": f"1 {handler.headers['Authorization']}"}
        handler.wfile.write(json.dumps({"choices": [{"message": said, "finish_reason": SECRET}]}).encode())

    with serving(echo) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_WRAPPER_KEYS", f"AWS_SECRET_ACCESS_KEY={url}")
        (answer,) = ServerLLM(served(url, key_variable="AWS_SECRET_ACCESS_KEY"), progress=False).answer([PROMPT])
    assert (answer.text, answer.finish_reason) == ("1 Bearer ***", "***")
    assert SECRET not in server.ANSWER_FOLDER.joinpath("m-generate.jsonl").read_text(encoding="utf-8")


def endless_reply() -> None:
    def write(handler: Handler) -> None:
        head(handler)
        for _ in range(3000):
            handler.wfile.write(b" " * (1 << 20))

    ask(write)


def packed_reply() -> None:
    """Send 3 GB as 3 MB: each block of a packed stream is the same where nothing before it is referred to."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)

    def write(handler: Handler) -> None:
        head(handler, Content_Encoding="gzip")
        handler.wfile.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * 3000)

    ask(write)


def slow_drip(start: bytes, drop: bytes) -> Attack:
    def drip(handler: Handler) -> None:
        handler.wfile.write(start)
        for _ in range(100):
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.05)

    def attack() -> None:
        began = time.monotonic()
        try:
            ask(drip, request_seconds=0.5)
        finally:
            assert time.monotonic() - began < 4

    return attack


def escapes_of_a_server() -> None:
    def refuse(handler: Handler) -> None:
        head(handler, 400)
        handler.wfile.write(f"\x1b[2J\x1b]0;title\x07{CLIPBOARD}".encode())

    with serving(refuse) as url:
        overrides = (f"llm.server.base_url={url}", "llm.model=m", "llm.decode=generate")
        printed = command("predict", PICTURE, "red", *overrides, "--vlm", "toy", "--llm", "vllm")
    assert "HTTP 400" in printed
    assert "\x1b]" not in printed
    assert "\x1b[2J" not in printed


def kept_answers() -> None:
    for shares in ([2.0, -1.0], [float("nan"), 1.0]):
        line = {"key": "k", "sample_id": "s", "answer": {"probabilities": shares}}
        Path("answers.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        assert server.AnswerFile(Path("answers.jsonl")).num_damaged == 1


# --- recipes and run folders -----------------------------------------------------------------------------------------


def file_as_template() -> None:
    Path("secret.j2").write_text("of the user", encoding="utf-8")
    secret = str(Path("secret.j2").resolve())
    recipe = runs.recipe_of(stranger({"prompt": {"format": secret}}))
    render_prompt(SAMPLE, CANDIDATES, recipe.prompt.format)


def link_as_template() -> None:
    folder = stranger({"prompt": {"format": "runs/stranger/own.j2"}})
    Path("secret").write_text("of the user", encoding="utf-8")
    (folder / "own.j2").symlink_to(Path("secret").resolve())
    render_prompt(SAMPLE, CANDIDATES, runs.recipe_of(folder).prompt.format)


def sections(**values: Any) -> Attack:
    return lambda: runs.recipe_of(stranger(values))


def recipe(text: str) -> Attack:
    def attack() -> None:
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        load_resolved(Path("recipe.yaml"))

    return attack


def repeated_key() -> None:
    path = stranger({}) / "recipe.yaml"
    sections = json.loads(path.read_text(encoding="utf-8"))
    once = {**sections, "train": sections.pop("train")}
    text = json.dumps(once).replace('"train": {', '"train": {"seed": 7, ')
    path.write_text(text, encoding="utf-8")
    runs.recipe_of(path.parent)


def aliases(depth: int) -> str:
    lists = [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, depth)]
    return "a0: &a0 [x]\n" + "".join(lists)


def changed_recipe() -> None:
    folder = stranger({})
    runs.finish(folder, {})
    path = folder / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    runs.recipe_of(folder)


def make(*words: str) -> None:
    """Run make where its program does nothing, so that only make and the shell can do what words say."""
    program = Path(".venv/bin/llm-wrapper")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "requirements-nodeps.lock", "pyproject.toml"):
        Path(name).write_bytes((ROOT / name).read_bytes())
    Path(".venv/.installed").touch()
    clean_environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *words], env=clean_environment, capture_output=True, text=True, check=False)
    assert not Path("pwned").exists()
    assert done.returncode == 0, done.stderr


def shell_in_make(target: str, *names: str) -> Attack:
    return lambda: make(target, *(f"{name}=x; touch pwned $(shell touch pwned) `touch pwned`" for name in names))


def shell_in_a_paper_row() -> None:
    path = Path("recipes/paper/x.yaml")
    path.parent.mkdir(parents=True)
    path.write_text("vlm: toy; touch pwned; true\nllm: rule\ndata: toy\ntrain: default\n", encoding="utf-8")
    make("train", "PAPER=x")


def command_of_a_message() -> None:
    folder = stranger({}).rename("runs/x; touch pwned")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    runs.open_run(folder, runs.recipe_of(folder))


def escapes_of_a_name() -> None:
    toy = ("red", "--vlm", "toy", "--llm", "rule")
    printed = command("predict", f"{CLIPBOARD}.png", *toy)
    assert "cannot be read as an image" in " ".join(printed.split())
    assert "\x1b]" not in printed
    assert "picture: [/x].png" in command("predict", PICTURE, *toy, "--out", "[/x].png")


# --- templates and texts ---------------------------------------------------------------------------------------------


def template(source: str) -> Attack:
    def attack() -> None:
        Path("own.j2").write_text(source, encoding="utf-8")
        render_prompt(SAMPLE, CANDIDATES, "own.j2")

    return bounded(attack)


def long_words() -> None:
    assert rule.choose_by_rule("second " * 64_000, CANDIDATES).index is not None
    assert len(clean_text("e" + "\u0301\u0316" * 500_000)) < 10


def odd_letters() -> None:
    assert not set("<>|") & set(unicodedata.normalize("NFD", clean_text("\u226e|im_end|\u226f"))), "in parts"
    assert clean_text("a\u3164\ufe0f\u034f\u2800b") in ("ab", "a b"), "unseen"


def empty_expression() -> None:
    render_prompt(Sample("s", "r", "i", None, (40, 40), "\u200b\ufe0f", None), CANDIDATES, "coords")


NAMES = {"name": "../../x", "eval_split": "..", "train_split": "/x"}
LOOPS = "{% for i in range(9999) %}"
MACRO = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"

ATTACKS = [
    row("key-to-a-stranger", key_to_a_stranger, "you have not allowed that"),
    row("key-sent-back", key_sent_back),
    row("reply-without-end", bounded(endless_reply, gigabytes=1), "more than 64 MiB"),
    row("reply-that-unpacks", bounded(packed_reply, gigabytes=1), "the reply is packed"),
    row("reply-drip-by-drip", slow_drip(b"HTTP/1.1 200 OK\r\n\r\n", b" "), "no whole answer in 0.5 seconds"),
    row("headers-drip-by-drip", slow_drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "no whole answer in 0.5 seconds"),
    row("escapes-of-a-server", escapes_of_a_server, slow=True),
    row("kept-answers", kept_answers),
    row("file-as-template", file_as_template, "nor a readable template file"),
    row("link-as-template", link_as_template, "lies outside"),
    row("names-as-paths", sections(data=NAMES, detector={"label": ".."}), r"\(4 problems\)"),
    row("alpha-without-end", sections(train={"lora": {"alpha": float("inf")}}), "alpha.*finite"),
    row("recipe-aliases", bounded(recipe(aliases(9)), gigabytes=1), "alias"),
    row("recipe-digits", recipe("train: {seed: 0x" + "f" * 5000 + "}"), "100 digits"),
    row("recipe-tag", recipe("train: {seed: !!timestamp x}"), "cannot be read as YAML"),
    row("recipe-repeated-key", repeated_key, "is given twice"),
    row("recipe-changed-afterwards", changed_recipe, "not as it was written"),
    row("shell-in-make", shell_in_make("train", "VLM", "DATA_ROOT", "RUN", "ARGS")),
    row("shell-in-an-expression", shell_in_make("predict", "IMAGE", "EXPRESSION")),
    row("shell-in-a-paper-row", shell_in_a_paper_row),
    row("command-of-a-message", command_of_a_message, "rm -r 'runs/x; touch pwned'$"),
    row("escapes-and-markup-of-a-name", escapes_of_a_name),
    row("template-memory", template("{{ 'x' * 10 ** 11 }}"), "MemoryError"),
    row("template-recursion", template(MACRO), "recursion|ends the process"),
    row("template-blocks", template(LOOPS * 25 + "{% endfor %}" * 25), "nested blocks"),
    row("words-and-marks-without-end", bounded(long_words, seconds=10)),
    row("brackets-in-parts-and-letters-unseen", odd_letters),
    row("expression-unseen", empty_expression, "is empty: say what to find"),
]


@pytest.mark.parametrize(("attack", "message"), ATTACKS)
def test_an_attack_does_no_harm(attack: Attack, message: str | None) -> None:
    check(attack, message)
