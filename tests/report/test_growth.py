"""The tables and the picture of growth say what was measured, and nothing where nothing was."""

from __future__ import annotations

import pytest

from llm_wrapper.report import growth

pytestmark = pytest.mark.slow

SECONDS = {100: {"read": 0.001, "ask the LLM": 0.1}, 1000: {"read": 0.002, "ask the LLM": 0.08}, 10000: {"read": 0.02}}
CPU = {100: {"read": 0.001, "ask the LLM": 0.1}, 1000: {"read": 0.001, "ask the LLM": 0.05}, 10000: {"read": 0.01}}
CANDIDATES = {
    20: {"tokens": 300.4, "shared": 0.1, "single": 0.2, "training": 0.5},
    2: {"tokens": 50.0, "shared": 0.01, "single": 0.02, "training": 0.05},
}


def test_growth_is_that_of_computing_time_between_the_last_two_sizes() -> None:
    assert growth.size_rows(SECONDS, CPU) == [
        ["read", "1", "2", "20", "10.00"],
        ["ask the LLM", "100", "80", "-", "0.50"],
    ]


def test_one_size_has_no_growth() -> None:
    assert growth.size_rows({100: {"read": 0.001}}, {100: {"read": 0.001}}) == [["read", "1", "-"]]


def test_markdown_has_both_tables_and_the_notes() -> None:
    text = growth.markdown(SECONDS, CPU, CANDIDATES, ["two cores."])
    assert "| ms per expression | 100 | 1,000 | 10,000 | grows by |" in text
    assert "| ask the LLM | 100 | 80 | - | 0.50 |" in text
    assert text.index("| 2 | 50 | 10 | 20 | 50 |") < text.index("| 20 | 300 | 100 | 200 | 500 |")
    assert text.endswith("\n\ntwo cores.\n")


@pytest.mark.parametrize("candidates", [CANDIDATES, {}], ids=["both", "sizes-alone"])
@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_picture_is_the_same_each_time(candidates: growth.Steps, kind: str, start: bytes) -> None:
    drawn = growth.picture(SECONDS, candidates, kind=kind)
    assert drawn.startswith(start)
    assert drawn == growth.picture(SECONDS, candidates, kind=kind)
    assert kind == "png" or b"2026" not in drawn
