"""A search for people: ranks, refusals by kind, costs, and a plot."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from llm_wrapper.cli.search import cost_line, plot_history, ranking_table, refusal_lines
from llm_wrapper.search.history import History, RefusedProposal, SearchCost, SearchStart
from tests.search.made import evaluated


def printed(table: Table) -> list[str]:
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def history(tmp_path: Path) -> History:
    found = History(tmp_path / "history.jsonl")
    refusals = [
        ("the instruction is empty",),
        ("{objects} occurs in the instruction 0 times; it is needed exactly once", "it leaks a box: '1 2 3 4'"),
        ("{objects} occurs in the instruction 3 times; it is needed exactly once", "it leaks a box: '5, 6, 7, 8'"),
        ("it is the prompt 0 of round 1 again",),
        ("'{answer}' is no placeholder; there are {objects} and {expression}",),
    ]
    rows = [
        SearchStart("digest", 4),
        evaluated("0110", "seed [bold]words", iteration=0),
        evaluated("01", "open", verdict="open"),
        evaluated("0111", "open", alpha=0.25),
        evaluated("00", "bad", number=1, verdict="stopped"),
        *(RefusedProposal(2, place, "a", 1, why, None, SearchCost(3, 0, 0.5)) for place, why in enumerate(refusals)),
    ]
    for row in rows:
        found.add(row)
    return found


def test_prompts_stand_by_rank_with_interval_and_round(history: History) -> None:
    lines = [line for line in printed(ranking_table(history)) if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert cells == [
        ["1", "75.0", "no data", "4", "1 (alpha 0.25)", "open"],
        ["2", "50.0", "no data", "4", "0", "seed [bold]words"],
        ["3", "0.0 (stopped)", "no data", "2", "1", "bad"],
    ]
    assert len([line for line in printed(ranking_table(history, 1)) if "│" in line]) == 1


def test_refusals_are_counted_by_kind(history: History) -> None:
    assert refusal_lines(history) == [
        "5 of 7 proposals were refused",
        "  2 x {objects} occurs in the instruction .. times; it is needed exactly once",
        "  2 x it leaks a box",
        "  1 x the instruction is empty",
        "  1 x it is an earlier prompt again",
        "  1 x there is a word in braces that is no placeholder; there are {objects} and {expression}",
    ]


def test_costs_are_summed(history: History) -> None:
    assert cost_line(history) == "12 questions asked, 43 tokens of proposals, 4 s"


def test_the_plot_is_the_same_picture_each_time(history: History, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_history(history, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
