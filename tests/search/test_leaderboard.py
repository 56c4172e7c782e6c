"""The ranking is a brute-force one; leaders, guides and what is shown follow from it."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from llm_wrapper.search.history import EvaluatedPrompt, Leaderboard, SearchStart
from tests.search.made import evaluated


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
