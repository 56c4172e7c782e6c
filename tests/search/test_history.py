"""A history is read back equal, survives a cut-off last line, and refuses any other damage."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llm_wrapper.errors import LLMWrapperError, RunError
from llm_wrapper.search.history import (
    EvaluatedPrompt,
    History,
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


def test_rows_are_read_back_equal(path: Path) -> None:
    found = History(path)
    assert found.rows == ROWS
    assert (found.evaluated, found.refused) == ([ROWS[1], ROWS[3]], [ROWS[2]])
    assert found.evaluated[0].is_right == [False, True, True, False]


def test_every_row_is_one_line_that_other_programs_can_read(path: Path) -> None:
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
    assert "the last line was cut off" in caplog.text
    history.add(ROWS[-1])
    assert path.read_bytes() == whole
    assert History(path).rows == ROWS


def test_a_history_is_not_touched_by_reading_it(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
    before = path.read_bytes()
    History(path)
    assert path.read_bytes() == before


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


def test_a_measurement_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        EvaluatedPrompt("p", 1, 0, "", 0.0, 0, None, "open", None, SearchCost(None, 0, 0.0))
