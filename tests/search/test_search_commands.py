"""`prompts search` and `prompts history` from the command line, with tiny models, servers and detectors."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_wrapper import detectors, runs
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, ModelError, RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.llms.local import LocalLLM
from llm_wrapper.search.history import EvaluatedPrompt, History
from tests.commands import fail, run
from tests.detectors.misbehaving_server import Step
from tests.search.fakes import CaptionedDetector, ProposingServer
from tests.search.test_search import timeless

pytestmark = pytest.mark.slow

RUN = Path("runs/prompts/toy-smollm2-toy-glov")
SIZES = ["search.slice=8", "search.first=4", "search.confirm=6", "search.iterations=2", "search.samples=2"]
PROPOSALS = [
    "Here is a new prompt:\nThings:\n{objects}\nThe number of {expression} is",
    'Prompt: "{objects}\nIndex of the thing called {expression}:"',
    "I do not know.",
    "{objects} Number? {expression}",
]


@pytest.fixture
def options(own_folder: Path, toy: Path, tiny_model: Path) -> list[str]:
    """The options that choose data and LLM."""
    return ["--data-root", str(toy), f"llm.model='{tiny_model}'", "llm.dtype=float32"]


@pytest.fixture
def cached(options: list[str]) -> list[str]:
    run("cache-detections", *options[:2])
    return options


@pytest.fixture
def server() -> Iterator[ProposingServer]:
    with ProposingServer(PROPOSALS) as found:
        yield found


def proposer(server: ProposingServer, **more: Any) -> str:
    settings = {"backend": "openai", "model": "m", "server": {"base_url": f"{server.url}/v1"}, **more}
    return f"search.proposer={json.dumps(settings)}"


def search(*args: str | Path) -> str:
    return run("search-prompts", *SIZES, *args)


# the selector's instruction


def test_a_tiny_llm_searches_for_its_own_prompt(cached: list[str]) -> None:
    printed = search(*cached, "search.alphas=[1.0]", "search.sampling.max_new_tokens=4")
    assert "4 of 4 proposals were refused" in printed  # a random model writes no prompt
    assert "no proposal was better than the seed prompt" in printed
    history = History(RUN / "history.jsonl")
    assert [row.n for row in history.evaluated] == [4, 8]
    assert all(1 <= (row.cost.tokens or 0) <= 4 for row in history.refused)
    assert {path.name for path in RUN.iterdir()} >= {"recipe.yaml", "confirmed.json", "best.yaml", "manifest.json"}
    assert runs.recipe_of(RUN).search is not None

    again = run("report", RUN)
    assert "4 of 4 proposals were refused" in again
    assert (RUN / "history.png").stat().st_size > 5000
    assert "is complete" in fail(RunError, "search-prompts", *SIZES, *cached)


def test_a_search_with_a_server_proposes_measures_confirms_and_is_used(
    cached: list[str], server: ProposingServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        printed = search(*cached, proposer(server), "search.alphas=[1.0]")
    assert "without guidance" in caplog.text
    history = History(RUN / "history.jsonl")
    texts = list(dict.fromkeys(row.prompt for row in history.evaluated))[1:]
    assert texts == [
        "Things:\n{objects}\nThe number of {expression} is",
        "{objects}\nIndex of the thing called {expression}:",
        "{objects} Number? {expression}",
    ]
    assert [row.answer for row in history.refused] == ["I do not know."]
    assert {row.cost.tokens for row in history.evaluated if row.iteration} <= {9, None}

    body = server.seen[0].body
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (1.0, 0.9, 50, 160)
    assert len({each.body["seed"] for each in server.seen}) == 4
    assert "Write one new prompt" in body["messages"][0]["content"]

    rows = json.loads((RUN / "confirmed.json").read_text())["rows"]
    assert [row["name"] for row in rows][:2] == ["seed", "best 1"]
    assert rows[-1]["name"].startswith("mean of the best")
    for row in rows[:-1]:
        assert row["drop"] == pytest.approx(row["search"]["fitness"] - row["confirm"]["value"])
        assert row["confirm"]["n"] == 6
    assert rows[0]["gain_over_seed"]["value"] == 0
    assert "1 of 4 proposals were refused" in printed

    best = yaml.safe_load((RUN / "best.yaml").read_text())
    assert best["prompt"]["instruction"] == rows[1]["prompt"]
    run("eval", *cached, "--limit", "3", "--prompt", RUN / "best.yaml")


def test_search_and_confirmation_share_no_image_and_see_no_evaluated_one(
    cached: list[str], server: ProposingServer, toy: Path
) -> None:
    search(*cached, proposer(server))
    lines = {split: (toy / f"{split}.jsonl").read_text().splitlines() for split in ("train", "val")}
    images = {split: {json.loads(line)["image_id"] for line in part} for split, part in lines.items()}
    confirmed = {row.image_id for path in RUN.glob("confirmed-*.parquet") for row in files.load_predictions(path)}
    assert confirmed <= images["train"] - images["val"]
    assert len(list(RUN.glob("confirmed-*.parquet"))) >= 2


def test_a_server_that_stops_in_the_middle_and_the_same_command_again(
    cached: list[str], server: ProposingServer
) -> None:
    search(*cached, proposer(server), "--run", "runs/whole")
    shutil.rmtree("data/answers")
    server.num_answered = 0
    server.submits.extend([Step(), Step(400, {"error": "gone"})])
    told = fail(ModelError, "search-prompts", *SIZES, *cached, proposer(server))
    assert "the server refuses the request" in told
    assert not runs.is_complete(RUN)
    num_before = len(server.seen)
    assert "prompt" in run("report", RUN)
    search(*cached, proposer(server))
    assert len(server.seen) - num_before == 3  # one proposal was kept
    whole, parts = (History(path / "history.jsonl").rows for path in (Path("runs/whole"), RUN))
    assert timeless(parts) == timeless(whole)
    assert (RUN / "best.yaml").read_text().partition("\n")[2] == Path("runs/whole/best.yaml").read_text().partition(
        "\n"
    )[2]


def test_an_interrupted_confirmation_asks_only_for_what_lacks(
    cached: list[str], server: ProposingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*cached, proposer(server)]
    search(*command)
    (RUN / "manifest.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in RUN.glob("confirmed-*")}
    monkeypatch.setattr(LocalLLM, "answer", None)  # whoever asks now must fail
    search(*command)
    assert {path.name: path.stat().st_mtime_ns for path in RUN.glob("confirmed-*.parquet")}.items() <= before.items()


# the caption of a detector


@pytest.fixture
def captioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detectors.REGISTRY, "captioned", "tests.search.fakes:create")
    CaptionedDetector.asked.clear()


@pytest.mark.usefixtures("captioned")
@pytest.mark.parametrize(
    ("fitness", "best"), [("oracle", "precisely {expression}"), ("p_at_1", "first precisely {expression}")]
)
def test_a_caption_that_finds_more_rises(options: list[str], server: ProposingServer, fitness: str, best: str) -> None:
    server.proposals = [
        *("a photograph of {expression}", "precisely {expression}", "no place", "first precisely {expression}")
    ]
    command = [*options, "--search", "glov-detector", proposer(server), f"search.fitness={fitness}",
               "detector.name=captioned"]  # fmt: skip
    search(*command)
    folder = Path("runs/prompts/toy-smollm2-toy-glov-detector")
    rows = json.loads((folder / "confirmed.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["seed", "best 1", "best 2", "best 3"]
    assert (rows[1]["prompt"], rows[1]["search"]["fitness"], rows[1]["confirm"]["value"]) == (best, 1.0, 1.0)
    assert rows[0]["confirm"]["value"] < 0.5
    found = yaml.safe_load((folder / "best.yaml").read_text())
    assert found["detector"] == {"name": "captioned", "label": "toy-captioned", "settings": {"caption": best}}
    assert len(set(CaptionedDetector.asked)) == len(CaptionedDetector.asked)  # each question is cached

    # A search that lost its history asks no detector again.
    (folder / "manifest.json").unlink()
    (folder / "history.jsonl").unlink()
    before = len(CaptionedDetector.asked)
    search(*command)
    assert len(CaptionedDetector.asked) == before


def test_a_detector_without_captions_is_refused(options: list[str], server: ProposingServer) -> None:
    args = ("search-prompts", *SIZES, *options, "--search", "glov-detector", proposer(server))
    assert "one detector that takes a caption" in fail(RecipeError, *args)


# what is wrong


@pytest.mark.parametrize(
    ("more", "kind", "text"),
    [
        pytest.param(["search.slice=100"], DataError, "search.slice=100 and search.confirm=6 need 106", id="too-small"),
        pytest.param(["data.train_split=val"], RecipeError, "data.train_split=val is evaluated on", id="val"),
        pytest.param(["data.train_split=test"], RecipeError, "data.train_split=test is evaluated on", id="test"),
        pytest.param(["--llm", "rule"], RecipeError, "LLM=rule writes no prompts", id="rule"),
        pytest.param(["prompt.examples=2"], RecipeError, "without prompt.examples", id="examples"),
        pytest.param(["search.seed_prompt=Which?"], RecipeError, "{objects} occurs in the instruction 0", id="seed"),
        pytest.param(["search.first=9"], RecipeError, "search.first=9 is more than search.slice=8", id="first"),
        pytest.param(["search.fitness=oracle"], RecipeError, "is for search.target=caption", id="oracle"),
        pytest.param(["search.alphas=[-1]"], RecipeError, "search.alphas", id="alpha"),
        pytest.param(["--search", "golv"], RecipeError, "did you mean 'glov'", id="name"),
        pytest.param([], CacheError, "llm-wrapper cache-detections", id="no-detections"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_loaded(
    options: list[str], more: list[str], kind: type[LLMWrapperError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [each for each in options if "llm.model" not in each or "rule" not in more]
    assert text in fail(kind, "search-prompts", *SIZES, *options, *more)
    assert not Path("runs").exists()


def test_a_search_may_begin_with_a_prompt_recipe(cached: list[str], server: ProposingServer, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("prompt: {instruction: 'Number of {expression} in {objects}'}\n")
    search(*cached, proposer(server), "--prompt", "mine.yaml")
    assert History(RUN / "history.jsonl").evaluated[0].prompt == "Number of {expression} in {objects}"


def test_other_detections_than_the_search_began_with_are_refused(cached: list[str], server: ProposingServer) -> None:
    server.submits.extend([Step(), Step(400, {})])
    fail(ModelError, "search-prompts", *SIZES, *cached, proposer(server))
    lines = (RUN / "history.jsonl").read_text().splitlines()
    lines[0] = lines[0].replace('"expressions": "', '"expressions": "other')
    (RUN / "history.jsonl").write_text("".join(line + "\n" for line in lines))
    assert "other expressions" in fail(RunError, "search-prompts", *SIZES, *cached, proposer(server))
    assert isinstance(History(RUN / "history.jsonl").rows[1], EvaluatedPrompt)
