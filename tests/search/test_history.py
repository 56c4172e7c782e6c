"""A history is read back equal and survives a cut-off last line; the ranking of its rows is a brute-force one."""

from __future__ import annotations

import json
import logging
import random
from itertools import groupby
from pathlib import Path

import pytest

from llm_wrapper.errors import LLMWrapperError, RunError
from llm_wrapper.search.history import (
    EvaluatedPrompt,
    History,
    Leaderboard,
    RefusedProposal,
    SearchCost,
    SearchStart,
)
from tests.search.made import evaluated

ROWS = [
    SearchStart("digest", 4),
    evaluated("0110", "seed {objects}\nüñí", iteration=0),
    RefusedProposal(1, 0, "no", 2, ("the instruction is empty", "and more"), None, SearchCost(None, 0, 0.1)),
    evaluated("01", "second", iteration=1, number=1, verdict="stopped", alpha=0.5),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A history of four rows."""
    history = History(tmp_path / "run" / "history.jsonl")
    for row in ROWS:
        history.add(row)
    return history.path


def test_rows_are_lines_of_json_that_are_read_back_equal(path: Path) -> None:
    found = History(path)
    assert found.rows == ROWS
    assert (found.evaluated, found.refused) == ([ROWS[1], ROWS[3]], [ROWS[2]])
    assert found.evaluated[0].is_right == [False, True, True, False]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["begun", "evaluated", "refused", "evaluated"]
    assert (lines[1]["fitness"], lines[1]["n"], lines[1]["right"]) == (0.5, 4, "0110")


@pytest.mark.parametrize("cut", [1, 2, 30, 60], ids=lambda cut: f"{cut}-bytes")
def test_a_last_line_that_was_cut_off_is_left_out_with_a_word(
    path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with caplog.at_level(logging.WARNING):
        history = History(path)
    assert history.rows == ROWS[:-1]
    assert path.read_bytes() == whole[:-cut]  # reading changes nothing
    assert "the last line was cut off" in caplog.text
    history.add(ROWS[-1])
    assert path.read_bytes() == whole
    assert History(path).rows == ROWS


@pytest.mark.parametrize(
    ("line", "content", "why"),
    [
        pytest.param(2, b"\0\0\0", "Expecting value", id="zeros"),
        pytest.param(3, b"", "Expecting value", id="blank"),
        pytest.param(2, b"{}", "", id="no-kind"),
        pytest.param(2, b'{"kind": "evaluated", "prompt": "x"}', "required", id="half-a-row"),
        pytest.param(4, b'{"kind": "begun", "expressions": "d", "n": 4, "more": 1}', "Unexpected", id="unknown-key"),
        pytest.param(1, b"[" * 100_000, "", id="deep"),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(path: Path, line: int, content: bytes, why: str) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = content
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match=rf"line {line}, is damaged: .*{why}.*or start again without it: rm "):
        History(path)


@pytest.mark.parametrize(
    "change",
    [{"right": "0111"}, {"n": 5}, {"fitness": 0.4}, {"right": ""}, {"right": "01a0"}, {"verdict": "maybe"}],
    ids=lambda change: "-".join(map(str, [*change, *change.values()])),
)
def test_numbers_that_contradict_each_other_are_refused(path: Path, change: dict[str, object]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="line 2, is damaged"):
        History(path)


def test_a_search_goes_on_only_with_what_it_began_with(path: Path, tmp_path: Path) -> None:
    History(path).begin(SearchStart("digest", 4))
    assert History(path).rows == ROWS
    with pytest.raises(RunError, match="other expressions or other candidates"):
        History(path).begin(SearchStart("another", 4))
    fresh = History(tmp_path / "new.jsonl")
    fresh.begin(SearchStart("digest", 4))
    assert History(fresh.path).rows == [SearchStart("digest", 4)]


def test_what_cannot_be_written_is_told(path: Path) -> None:
    history = History(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(LLMWrapperError, match="cannot be written"):
        history.add(ROWS[1])
    assert history.rows == ROWS


# the ranking


def drawn(rng: random.Random, count: int) -> list[EvaluatedPrompt]:
    """A seed prompt that saw ten expressions, and others that saw some or all; many are equally good."""
    rows = [evaluated("".join(rng.choices("01", k=10)), "seed", iteration=0)]
    for number in range(count):
        n = rng.choice([2, 4, 10])
        right = "".join(rng.choices("01", k=n))
        rows.append(evaluated(right, f"p{number}", number=number, verdict="complete" if n == 10 else "stopped"))
    return rows


@pytest.mark.parametrize("draw", range(30))
def test_the_ranking_equals_a_brute_force_one(draw: int) -> None:
    rows = drawn(random.Random(draw), 25)
    seed = rows[0].right

    def beats(a: int, b: int) -> bool:
        """Whole numbers only: gains over the seed prompt, brought to one denominator; then who came first."""
        one, other = (rows[i].right.count("1") - seed[: rows[i].n].count("1") for i in (a, b))
        left, right = one * rows[b].n, other * rows[a].n
        return left > right or (left == right and a < b)

    places = {i: sum(beats(j, i) for j in range(len(rows)) if j != i) for i in range(len(rows))}
    expected = [rows[i].prompt for i in sorted(places, key=places.__getitem__)]
    assert [row.prompt for row in Leaderboard(rows).ranked()] == expected
    fitness = [row.fitness for row in Leaderboard(rows).complete()]
    assert fitness == sorted(fitness, reverse=True)


def test_a_later_row_of_a_prompt_replaces_the_earlier_one_in_its_place() -> None:
    rows = [
        evaluated("0101", "seed", iteration=0),
        evaluated("11", "a", verdict="open"),
        evaluated("1100", "b"),
        evaluated("1100", "a"),
    ]
    leaderboard = Leaderboard([SearchStart("d", 4), *rows])
    assert [row.prompt for row in leaderboard.ranked()] == ["seed", "a", "b"]
    assert leaderboard.get("a") == rows[3]
    assert leaderboard.get("never") is None


def test_a_prompt_that_saw_easy_expressions_only_is_not_the_best() -> None:
    rows = [evaluated("1100", "seed", iteration=0), evaluated("11", "easy", verdict="stopped"), evaluated("1101", "c")]
    leaderboard = Leaderboard(rows)
    assert [row.prompt for row in leaderboard.ranked()] == ["c", "seed", "easy"]
    assert [leaderboard.expected(row) for row in leaderboard.ranked()] == [0.75, 0.5, 0.5]
    assert leaderboard.best() == rows[2]


def test_only_rounds_before_count() -> None:
    rows = [evaluated("0000", "seed", iteration=0), evaluated("1000", "a"), evaluated("1100", "b", iteration=2)]
    assert [row.prompt for row in Leaderboard(rows, before=2).ranked()] == ["a", "seed"]
    assert Leaderboard(rows, before=0).ranked() == []
    assert Leaderboard([]).best() is None


def test_guides_begin_with_the_first_improvement_and_change_with_a_new_best_only() -> None:
    rows = [
        evaluated("0100", "seed", iteration=0),
        evaluated("0001", "equal"),
        evaluated("0000", "worse"),
        evaluated("0110", "better"),
        evaluated("1100", "as good"),
        evaluated("11", "not done", verdict="open"),
        evaluated("0111", "best"),
        evaluated("0110", "near"),
    ]
    found = [Leaderboard(rows[:end]).guides() for end in range(1, len(rows) + 1)]
    first, second = ("better", "seed"), ("best", "better")
    assert found == [None, None, None, first, first, first, second, second]
    # Of the moment when it became the best, the second best is the one that was the best until then.
    for end in (4, 7):
        best, other = (row.prompt for row in Leaderboard(rows[:end]).complete()[:2])
        assert found[end - 1] == (best, other)


@pytest.mark.parametrize(
    ("size", "worst", "best"),
    [(0, "", ""), (1, "", "a"), (2, "b", "a"), (3, "c", "a"), (5, "ed", "ba"), (9, "ihg", "cba")],
)
def test_at_most_half_of_the_history_is_shown_as_best_and_as_worst(size: int, worst: str, best: str) -> None:
    texts = "abcdefghi"[:size]
    rows = [evaluated("1" * (9 - i) + "0" * (i + 1), text, iteration=int(i > 0)) for i, text in enumerate(texts)]
    shown = Leaderboard(rows).extremes(3)
    assert ["".join(row.prompt for row in part) for part in shown] == [worst, best]
    rising = [row.fitness for part in shown for row in part]
    assert rising == sorted(rising)
    assert all(len(list(same)) == 1 for _, same in groupby(rising))
