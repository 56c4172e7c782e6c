"""The loop: a planted good prompt rises, nothing is measured twice, and an interrupted search goes on unharmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.errors import PromptError, RecipeError, RunError
from llm_wrapper.search.history import EvaluatedPrompt, History, HistoryRow, Leaderboard, RefusedProposal, SearchCost
from llm_wrapper.search.proposals import Request
from llm_wrapper.search.search import proposal_seed
from tests.search.made import NUM, Proposer, Selector, climbing, prompt, searched

pytestmark = pytest.mark.slow


class StoppedError(Exception):
    """Stands for Ctrl-C, a kill, or a server that went away."""


def timeless(rows: Sequence[HistoryRow]) -> list[HistoryRow]:
    """Rows without what no two runs share."""
    return [
        replace(row, cost=SearchCost(row.cost.tokens, row.cost.questions, 0.0))
        if isinstance(row, EvaluatedPrompt | RefusedProposal)
        else row
        for row in rows
    ]


def in_turn(*texts: str) -> Callable[[Request], str]:
    places = count()
    return lambda _: texts[next(places) % len(texts)]


def test_a_planted_good_prompt_rises_to_the_top(tmp_path: Path) -> None:
    good = prompt(0.95, "planted")
    texts = [prompt(0.3 + place / 100, f"p{place}") for place in range(11)]
    history, leaderboard = searched(tmp_path / "h", Proposer(in_turn(*texts[:7], good, *texts[7:])))
    best = leaderboard.best()
    assert best is not None
    assert (best.prompt, best.n, best.iteration, best.number) == (good, NUM, 3, 1)
    assert best.fitness > 0.9
    assert leaderboard.ranked()[0] == best
    assert [row.iteration for row in history.evaluated][-1] == 4


def test_a_proposer_that_learns_from_the_history_climbs(tmp_path: Path) -> None:
    _, leaderboard = searched(tmp_path / "h", Proposer(climbing), iterations=12)
    seed, best = leaderboard.seed, leaderboard.best()
    assert seed is not None
    assert best is not None
    assert best.fitness > seed.fitness + 0.3


def test_hopeless_prompts_stop_early_and_others_see_everything(tmp_path: Path) -> None:
    selector = Selector()
    texts = [prompt(0.9, "good"), prompt(0.02, "bad"), prompt(0.03, "bad too")]
    _, leaderboard = searched(tmp_path / "h", Proposer(in_turn(*texts)), selector, iterations=1)
    verdicts = {row.prompt: (row.verdict, row.n) for row in leaderboard.ranked()}
    assert verdicts == {
        prompt(0.3, "seed"): ("complete", NUM),
        texts[0]: ("complete", NUM),
        texts[1]: ("stopped", 15),
        texts[2]: ("stopped", 15),
    }
    assert sum(end - start for _, start, end in selector.calls) == 2 * NUM + 2 * 15


def test_equal_prompts_are_measured_once(tmp_path: Path) -> None:
    selector = Selector()
    text = prompt(0.4, "again")
    history, _ = searched(tmp_path / "h", Proposer(in_turn(text, f'"{text}"', text.replace("\n", " \n "))), selector)
    assert [row.prompt for row in history.evaluated if row.verdict == "complete"] == [prompt(0.3, "seed"), text]
    assert {row.reasons for row in history.refused} == {("it is the prompt 0 of round 1 again",)}
    assert len(history.refused) == 4 * 3 - 1
    asked = [(start, end) for each, start, end in selector.calls if each == text]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("answer", "why", "length"),
    [
        pytest.param("", "the instruction is empty", 0, id="nothing"),
        pytest.param("word " * 6000, "1000 is the most", 30_000, id="ten-pages"),
        pytest.param("\x00\x1b[31m", "control characters", 6, id="control"),
        pytest.param("\ud800", "occurs in the instruction 0 times", 1, id="half-a-pair"),
        pytest.param("I cannot help with that.", "{objects} occurs in the instruction 0 times", 24, id="refusal"),
    ],
)
def test_a_proposer_that_never_helps_leaves_the_seed_prompt(tmp_path: Path, answer: str, why: str, length: int) -> None:
    history, leaderboard = searched(tmp_path / "h", Proposer(lambda _: answer))
    assert [row.prompt for row in leaderboard.ranked()] == [prompt(0.3, "seed")]
    assert len(history.refused) == 12
    for row in history.refused:
        assert any(why in reason for reason in row.reasons)
        assert (row.length, len(row.answer)) == (length, min(length, 2000))
    assert History(tmp_path / "h").rows == history.rows


def interrupted(limit: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that stops the search instead of its call number `limit`."""
    calls = count()

    def one(*args: Any) -> Any:
        if next(calls) == limit:
            raise StoppedError
        return call(*args)

    return one


@pytest.mark.parametrize("what", ["propose", "measure"])
@pytest.mark.parametrize("limit", range(0, 12, 2))
def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path: Path, what: str, limit: int) -> None:
    options: dict[str, Any] = {"alphas": [1.0, 0.5]}
    whole, _ = searched(tmp_path / "whole", Proposer(climbing, can_be_guided=True), **options)
    propose, measure = Proposer(climbing, can_be_guided=True), Selector()
    stopped = Proposer(interrupted(limit, climbing) if what == "propose" else climbing, can_be_guided=True)
    with pytest.raises(StoppedError):
        searched(tmp_path / "parts", stopped, interrupted(limit, measure) if what == "measure" else measure, **options)
    assert len(History(tmp_path / "parts").rows) < len(whole.rows)
    resumed, _ = searched(tmp_path / "parts", propose, measure, **options)
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert what == "measure" or len(propose.requests) == 12 - limit
    assert len({(text, start) for text, start, _ in measure.calls}) == len(measure.calls)


def test_a_history_that_was_cut_off_goes_on_to_the_same_end(tmp_path: Path) -> None:
    path = tmp_path / "h"
    whole, _ = searched(path, Proposer(climbing))
    content = path.read_bytes()
    for cut in range(1, len(content), len(content) // 7):
        path.write_bytes(content[:-cut])
        resumed, _ = searched(path, Proposer(climbing))
        assert timeless(resumed.rows) == timeless(whole.rows)
    propose, measure = Proposer(climbing), Selector()
    searched(path, propose, measure)  # it is finished
    assert (propose.requests, measure.calls) == ([], [])


def test_every_draw_has_a_seed_of_its_own() -> None:
    seeds = [
        proposal_seed(seed, iteration, number) for seed in range(3) for iteration in range(30) for number in range(5)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= each < 2**31 for each in seeds)


def test_all_draws_of_a_round_are_asked_the_same_and_see_only_rounds_before(tmp_path: Path) -> None:
    propose = Proposer(climbing)
    history, _ = searched(tmp_path / "h", propose)
    for iteration in range(1, 5):
        requests = propose.requests[(iteration - 1) * 3 : iteration * 3]
        assert len({request.text for request in requests}) == 1
        later = {row.prompt for row in history.evaluated if row.iteration >= iteration}
        assert not [text for text in later if f"{text}\nAccuracy" in requests[0].text]


# guidance


def test_guidance_begins_after_the_first_improvement_and_takes_the_strengths_in_turn(tmp_path: Path) -> None:
    texts = [prompt(0.2, "a"), prompt(0.3, "b"), prompt(0.1, "c"), prompt(0.8, "d"), prompt(0.7, "e"), prompt(0.2, "f"),
             *(prompt(0.35, f"x{place}") for place in range(6))]  # fmt: skip
    propose = Proposer(in_turn(*texts), can_be_guided=True)
    history, _ = searched(tmp_path / "h", propose, alphas=[1.0, 0.25])
    guides = [request.guides for request in propose.requests]
    best_two = (prompt(0.8, "d"), prompt(0.3, "seed"))
    assert guides == [None] * 6 + [best_two] * 6
    assert [request.alpha for request in propose.requests[6:]] == [1.0, 0.25, 1.0] * 2
    alphas = {row.prompt: row.alpha for row in history.evaluated}
    assert [alphas[text] for text in texts[5:9]] == [None, 1.0, 0.25, 1.0]
    for request, row in zip(propose.requests[6:], [6, 7, 8], strict=False):
        assert request.guides == Leaderboard(history.rows, before=3).guides(), row


@pytest.mark.parametrize("options", [{"can_be_guided": False}, {"can_be_guided": True}], ids=str)
def test_without_strengths_or_with_a_server_nobody_is_guided(tmp_path: Path, options: dict[str, bool]) -> None:
    propose = Proposer(climbing, **options)
    searched(tmp_path / "h", propose, iterations=6, alphas=[] if options["can_be_guided"] else [1.0])
    assert {request.guides for request in propose.requests} == {None}


# what is wrong


def test_a_prompt_that_no_model_can_be_asked_is_refused(tmp_path: Path) -> None:
    selector = Selector()

    def picky(text: str, start: int, end: int) -> list[bool]:
        if "odd" in text:
            raise PromptError("its text forms a special token")
        return selector(text, start, end)

    texts = (prompt(0.5, "odd"), prompt(0.6, "fine"), prompt(0.4, "too"))
    history, leaderboard = searched(tmp_path / "h", Proposer(in_turn(*texts)), picky, iterations=1)
    assert [row.reasons for row in history.refused] == [("it cannot be asked: its text forms a special token",)]
    assert {row.prompt for row in leaderboard.ranked()} >= {texts[1]}
    with pytest.raises(PromptError, match="special token"):
        searched(tmp_path / "other", Proposer(climbing), picky, seed_prompt=prompt(0.4, "odd"))


def test_a_seed_prompt_without_a_placeholder_and_a_slice_of_another_search_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h"
    with pytest.raises(RecipeError, match=r"(?s)search.seed_prompt cannot be used.*\{objects\} occurs"):
        searched(tmp_path / "seed", Proposer(climbing), seed_prompt="the number of {expression}")
    searched(path, Proposer(climbing), iterations=1)
    path.write_text(path.read_text(encoding="utf-8").replace('"digest"', '"another"'), encoding="utf-8")
    with pytest.raises(RunError, match="other expressions"):
        searched(path, Proposer(climbing))
