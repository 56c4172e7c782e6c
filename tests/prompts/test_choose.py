"""The only parser of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_wrapper.prompts.render import NONE_OF_THESE, choose
from llm_wrapper.records import Answer, Choice

NO_NUMBER = Choice(None, reason="no_number")
OUT_OF_RANGE = Choice(None, reason="index_out_of_range")


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


@pytest.mark.parametrize(
    ("answer", "num", "expected"),
    [
        pytest.param(Answer((0.1, 0.8, 0.1)), 3, Choice(1, 0.8), id="most-probable"),
        pytest.param(Answer((0.4, 0.4, 0.2)), 3, Choice(0, 0.4), id="first-of-equals"),
        pytest.param(Answer((1.0,)), 1, Choice(0, 1.0), id="one"),
        pytest.param(Answer((0.0, 0.0)), 2, Choice(0, 0.0), id="all-zero"),
        pytest.param(Answer((0.2, 0.8), text="0"), 2, Choice(1, 0.8), id="before-text"),
        pytest.param(Answer(text="0"), 0, OUT_OF_RANGE, id="nothing-from-nothing"),
    ],
)
def test_probabilities(answer: Answer, num: int, expected: Choice) -> None:
    assert choose(answer, num) == expected


@given(st.text(), st.integers(0, 20))
def test_any_text_gives_a_valid_index_or_a_reason(text: str, num_candidates: int) -> None:
    choice = choose(Answer(text=text), num_candidates)
    if choice.index is None:
        assert choice.reason in {"no_number", "index_out_of_range"}
    else:
        assert 0 <= choice.index < num_candidates
        assert choice.reason is None


# none of these


@pytest.mark.parametrize(
    ("answer", "none", "below", "expected"),
    [
        pytest.param(Answer((0.2, 0.3, 0.5)), True, None, Choice(None, 0.5, NONE_OF_THESE), id="most-probable"),
        pytest.param(Answer((0.2, 0.4, 0.4)), True, None, Choice(1, 0.4), id="a-candidate-wins-a-tie"),
        pytest.param(Answer((0.3, 0.7)), False, 0.8, Choice(None, None, NONE_OF_THESE), id="below"),
        pytest.param(Answer((0.3, 0.7)), False, 0.7, Choice(1, 0.7), id="the-bound-is-not-below"),
        pytest.param(Answer((0.2, 0.5, 0.3)), True, 0.6, Choice(None, 0.3, NONE_OF_THESE), id="below-with-its-own"),
        pytest.param(Answer(text="2"), True, None, Choice(None, None, NONE_OF_THESE), id="text"),
        pytest.param(Answer(text="2"), False, None, Choice(None, None, "index_out_of_range"), id="text-not-offered"),
        pytest.param(Answer(text="3"), True, None, Choice(None, None, "index_out_of_range"), id="text-behind"),
        pytest.param(Answer(text="1"), True, 0.9, Choice(1), id="text-has-no-probability"),
        pytest.param(Answer(text="none"), True, None, Choice(None, None, "no_number"), id="word"),
    ],
)
def test_none_of_these(answer: Answer, none: bool, below: float | None, expected: Choice) -> None:
    assert choose(answer, 2, none=none, none_below=below) == expected


@pytest.mark.parametrize(("shares", "none"), [((0.5, 0.5), True), ((0.2, 0.3, 0.5), False), ((), True)])
def test_as_many_probabilities_as_answers(shares: tuple[float, ...], none: bool) -> None:
    with pytest.raises(ValueError, match=f"{len(shares)} probabilities for 2 candidates"):
        choose(Answer(shares), 2, none=none)
