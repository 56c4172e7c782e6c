"""Recipes that name a server: what they refuse, and the road from the command line to the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_wrapper.cli import main
from llm_wrapper.errors import ModelError, RecipeError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.recipe import Recipe, compose
from tests.first_images import copy_first_images
from tests.llms import tiny
from tests.llms.model_server import ModelServer

NAMES = {"vlm": "toy", "llm": "vllm", "data": "toy", "train": "default"}


def composed(*overrides: str, llm: str = "vllm") -> Recipe:
    return compose({**NAMES, "llm": llm}, overrides)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        pytest.param("llm.model=null", "llm.model is not set", id="no-model"),
        pytest.param("llm.server.base_url=localhost:8000", "llm.server.base_url", id="no-scheme"),
        pytest.param("llm.server.base_url=http://me:secret@host/v1", "llm.server.base_url", id="password-in-address"),
        pytest.param("llm.server.base_url=http://host/v1?key=secret", "llm.server.base_url", id="key-in-address"),
        pytest.param("llm.server.key_variable=sk-123", "llm.server.key_variable", id="a-key-for-its-name"),
        pytest.param("llm.server.concurrency=0", "llm.server.concurrency", id="nobody-asks"),
        pytest.param("llm.server.request_seconds=.inf", "llm.server.request_seconds", id="for-ever"),
        pytest.param("llm.server.base_ulr=http://host/v1", "did you mean 'base_url'", id="unknown-key"),
        pytest.param("llm.decode=guess", "llm.decode", id="unknown-way"),
    ],
)
def test_what_no_server_can_be_asked_by(override: str, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        composed(override)
    assert text in str(caught.value)


@pytest.mark.parametrize("decode", ["first_token", "choice"])
def test_ways_of_servers_are_refused_for_a_local_model(decode: str) -> None:
    with pytest.raises(RecipeError, match=f"llm.decode={decode} is for servers"):
        composed(f"llm.decode={decode}", llm="smollm2")


def test_no_recipe_sends_the_key_of_one_service_to_another() -> None:
    for llm in ("vllm", "openai"):
        server = composed(llm=llm).llm.server
        assert (server.key_variable == "OPENAI_API_KEY") == server.base_url.startswith("https://api.openai.com/")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first two images of the toy's val split, in a folder of its own to work in."""
    monkeypatch.chdir(tmp_path)
    return copy_first_images(tmp_path / "toy", count=2, splits=["val"])


def invoke(*args: str | Path) -> BaseException | None:
    return CliRunner().invoke(main.app, [str(arg) for arg in args]).exception


@pytest.mark.slow
def test_a_served_model_is_evaluated_and_resumed(toy: Path) -> None:
    assert invoke("cache-detections", "--data-root", toy, "--split", "val") is None
    with ModelServer(tiny.llm(max_new_tokens=2)) as server:
        settings = (f"llm.server.base_url={server.base_url}", "llm.decode=generate", "llm.model=org/tiny")
        command = ("eval", "--llm", "vllm", "--data-root", toy, "llm.max_new_tokens=2", *settings)
        assert invoke(*command) is None
        num_asked = server.count("POST")
        assert invoke(*command) is None
        assert server.count("POST") == num_asked
    rows = files.load_predictions(Path("runs/toy-org-tiny-toy-served/predictions-val.parquet"))
    assert list(dict.fromkeys(row.system for row in rows)) == ["detector", "rule", "served", "oracle"]
    kept = Path("data/answers/org-tiny-generate.jsonl").read_text(encoding="utf-8").splitlines()
    assert 0 < num_asked == len(kept) <= sum(row.system == "served" for row in rows)


def test_a_served_model_is_not_trained(toy: Path) -> None:
    problem = invoke("train", "--llm", "vllm", "--data-root", toy, "--run", "runs/a")
    assert isinstance(problem, ModelError)
    assert "LLM=llama3" in str(problem)
    assert not Path("runs/a").exists()
