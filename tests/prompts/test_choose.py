"""The only parser of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_wrapper.prompts.render import choose
from llm_wrapper.records import Answer, Choice

NO_NUMBER = Choice(None, reason="no_number")
OUT_OF_RANGE = Choice(None, reason="index_out_of_range")


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        pytest.param((0.1, 0.8, 0.1), Choice(1, 0.8), id="most-probable"),
        pytest.param((0.4, 0.4, 0.2), Choice(0, 0.4), id="first-of-equals"),
        pytest.param((1.0,), Choice(0, 1.0), id="one"),
        pytest.param((0.0, 0.0), Choice(0, 0.0), id="all-zero"),
    ],
)
def test_probabilities(probabilities: tuple[float, ...], expected: Choice) -> None:
    assert choose(Answer(probabilities=probabilities), len(probabilities)) == expected


def test_probabilities_come_before_text() -> None:
    assert choose(Answer(probabilities=(0.2, 0.8), text="0"), 2) == Choice(1, 0.8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1", Choice(1), id="number"),
        pytest.param(" 1\n", Choice(1), id="spaces"),
        pytest.param("Answer: 2.", Choice(2), id="sentence"),
        pytest.param("2 or 1", Choice(2), id="first-of-two"),
        pytest.param("box2", Choice(2), id="glued"),
        pytest.param("01", Choice(1), id="leading-zero"),
        pytest.param("", NO_NUMBER, id="empty"),
        pytest.param(None, Choice(None, reason="no_probability"), id="nothing"),
        pytest.param("the left one", NO_NUMBER, id="words"),
        pytest.param("two", NO_NUMBER, id="spelled"),
        pytest.param("²", NO_NUMBER, id="superscript"),
        pytest.param("\N{ARABIC-INDIC DIGIT ONE}", NO_NUMBER, id="arabic-digit"),
        pytest.param("3", OUT_OF_RANGE, id="one-too-many"),
        pytest.param("10", OUT_OF_RANGE, id="two-digits-are-one-number"),
        pytest.param("9" * 10_000, OUT_OF_RANGE, id="endless"),
    ],
)
def test_text(text: str | None, expected: Choice) -> None:
    assert choose(Answer(text=text), 3) == expected


def test_nothing_can_be_chosen_from_nothing() -> None:
    assert choose(Answer(text="0"), 0) == OUT_OF_RANGE


@given(st.text(), st.integers(0, 20))
def test_any_text_gives_a_valid_index_or_a_reason(text: str, num_candidates: int) -> None:
    choice = choose(Answer(text=text), num_candidates)
    if choice.index is None:
        assert choice.reason in {"no_number", "index_out_of_range"}
    else:
        assert 0 <= choice.index < num_candidates
        assert choice.reason is None
