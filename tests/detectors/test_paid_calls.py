"""Agreement, budget, pace and repetition of paid calls, on a clock that only the tests move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from llm_wrapper.detectors.paid_calls import CostEstimate, PaidCalls, PaidTerms
from llm_wrapper.errors import LLMWrapperError, ModelError, RecipeError
from llm_wrapper.services import CallError, seconds_to_wait

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=timezone.utc)


class FakeTime:
    """A clock that stands still but for sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def paid(time: FakeTime, chance: float = 1.0, **terms: Any) -> PaidCalls:
    chosen = PaidTerms(**{"price_per_call": 0.02, "max_cost": 10.0, "requests_per_second": 1000.0, **terms})
    return PaidCalls("gd", chosen, clock=time.clock, sleep=time.sleep, chance=lambda: chance)


def attempts(calls: PaidCalls, *outcomes: CallError | str) -> tuple[Callable[[], str], Iterator[CallError | str]]:
    """An attempt that is one paid call with the given outcomes, one after the other, and what is left of them."""
    left = iter(outcomes)

    def attempt() -> str:
        with calls.charged():
            outcome = next(left)
            if isinstance(outcome, CallError):
                raise outcome
            return outcome

    return attempt, left


def ask(calls: PaidCalls, *outcomes: CallError | str) -> str:
    attempt, left = attempts(calls, *outcomes)
    try:
        return calls.answer(attempt, about="sample 's1'")
    finally:
        assert not list(left), "the attempt was not repeated as often as the test expects"


def busy(**kwargs: Any) -> CallError:
    return CallError("busy", again=True, **kwargs)


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        pytest.param({"max_cost": None}, "gd: 300 paid calls at 0.02 dollars, 6.00 dollars in all", id="no-budget"),
        pytest.param({"max_cost": 6}, "; the budget of 6 dollars pays for 300", id="enough"),
        pytest.param({"max_cost": 4.01}, "; the budget of 4.01 dollars pays for 200", id="too-little"),
        pytest.param({"price_per_call": 0.0005}, "300 paid calls at 0.0005 dollars, 0.15 dollars in all", id="cheap"),
    ],
)
def test_estimate(terms: dict[str, Any], text: str) -> None:
    estimate = CostEstimate("gd", 300, PaidTerms(**{"price_per_call": 0.02, **terms}))
    assert text in str(estimate)


@pytest.mark.parametrize(
    ("price", "max_cost", "max_calls"),
    [
        pytest.param(0.02, 6.0, 300, id="even"),
        pytest.param(0.02, 0.05, 2, id="rest"),
        pytest.param(0.1, 0.3, 3, id="quotient-just-below"),
        pytest.param(0.02, 0.019, 0, id="less-than-one"),
        pytest.param(0.02, None, 0, id="none"),
        pytest.param(1e-300, 1e300, 10**15, id="quotient-is-infinite"),
    ],
)
def test_the_budget_pays_for(price: float, max_cost: float | None, max_calls: int) -> None:
    assert PaidTerms(price_per_call=price, max_cost=max_cost).max_calls == max_calls


@pytest.mark.parametrize(
    "wrong",
    [
        {"price_per_call": 0},
        {"price_per_call": -1},
        {"price_per_call": math.nan},
        {"price_per_call": math.inf},
        {"max_cost": 0},
        {"max_cost": math.inf},
        {"max_cost": math.nan},
        {"requests_per_second": 0},
        {"max_tries": 0},
        {"max_coast": 1},
    ],
    ids=str,
)
def test_terms_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PaidTerms(**{"price_per_call": 0.02, **wrong})


@pytest.mark.parametrize(
    ("terms", "remedy"),
    [
        pytest.param({"max_cost": None}, "detector.settings.max_cost=6.00", id="no-budget"),
        pytest.param({"max_cost": 0.01}, "detector.settings.max_cost=6.00", id="not-one-call"),
        pytest.param({"max_cost": None, "price_per_call": 0.00001}, "max_cost=0.01", id="rounded-up"),
    ],
)
def test_without_a_budget_there_is_an_estimate_and_no_call(terms: dict[str, Any], remedy: str) -> None:
    calls = paid(FakeTime(), **terms)
    with pytest.raises(RecipeError, match=r"300 paid calls .* Nothing was called") as caught:
        calls.agree(300, lambda estimate: pytest.fail("asked although there is no budget"))
    assert remedy in str(caught.value)
    attempt, left = attempts(calls, "never asked")
    with pytest.raises(RecipeError, match="max_cost="):
        calls.answer(attempt, about="sample 's1'")
    assert list(left) == ["never asked"]


def test_the_user_may_say_no() -> None:
    calls = paid(FakeTime())
    shown: list[CostEstimate] = []
    with pytest.raises(RecipeError, match="not confirmed, so nothing was called"):
        calls.agree(300, lambda estimate: bool(shown.append(estimate)))
    assert [(each.num_questions, each.cost) for each in shown] == [(300, 6.0)]
    assert calls.agree(300, lambda estimate: True) == shown[0]


def test_the_budget_ends_before_the_call_that_it_does_not_pay_for() -> None:
    calls = paid(FakeTime(), max_cost=0.06)
    assert [ask(calls, name) for name in ("a", "b", "c")] == ["a", "b", "c"]
    attempt, left = attempts(calls, "d")
    with pytest.raises(RecipeError) as caught:
        calls.answer(attempt, about="sample 's4'")
    assert list(left) == ["d"]
    text = str(caught.value)
    assert "3 calls may have been charged, 0.06 dollars" in text
    assert "Answers kept in this run: 3; the same command asks only for those that are missing." in text
    assert "max_cost=" in text


def test_calls_that_may_have_been_charged_end_the_budget_too() -> None:
    calls = paid(FakeTime(), max_cost=0.06)
    attempt, left = attempts(calls, busy(charged=True), busy(), busy(charged=True), "a", "b")
    assert calls.answer(attempt, about="sample 's1'") == "a"
    with pytest.raises(RecipeError, match="Answers kept in this run: 1;"):
        calls.answer(attempt, about="sample 's2'")
    assert (list(left), calls.num_charged, calls.spent) == (["b"], 3, pytest.approx(0.06))


@pytest.mark.parametrize(
    ("error", "num_charged"),
    [
        pytest.param(CallError("no"), 0, id="refused"),
        pytest.param(CallError("no", charged=True), 1, id="maybe-charged"),
        pytest.param(KeyboardInterrupt(), 1, id="interrupted"),
        pytest.param(RuntimeError(), 1, id="unforeseen"),
    ],
)
def test_what_is_counted(error: BaseException, num_charged: int) -> None:
    calls = paid(FakeTime())
    with pytest.raises(type(error)), calls.charged():
        raise error
    assert calls.num_charged == num_charged


@pytest.mark.parametrize(
    ("chance", "delays"),
    [pytest.param(0.0, [0.5, 1, 2, 4, 8], id="shortest"), pytest.param(1.0, [1, 2, 4, 8, 16], id="longest")],
)
def test_each_delay_is_twice_the_last_one_with_a_random_part(chance: float, delays: list[float]) -> None:
    time = FakeTime()
    assert ask(paid(time, chance), *[busy() for _ in delays], "found") == "found"
    assert time.slept == delays


def test_delays_have_a_limit() -> None:
    time = FakeTime()
    ask(paid(time, max_tries=20), *[busy() for _ in range(12)], "found")
    assert max(time.slept) == 60.0


@pytest.mark.parametrize(
    ("wait", "delay"),
    [
        pytest.param(7.0, 7.0, id="longer-than-ours"),
        pytest.param(0.1, 1.0, id="shorter-than-ours"),
        pytest.param(600.0, 600.0, id="longest"),
    ],
)
def test_a_pause_that_is_asked_for_is_kept(wait: float, delay: float) -> None:
    time = FakeTime()
    ask(paid(time), busy(wait=wait), "found")
    assert time.slept == [delay]


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        pytest.param(
            [CallError("no such key")], "gd, sample 's1': no such key. Answers kept in this run: 0;", id="refused"
        ),
        pytest.param([busy(wait=601.0)], "asks for a pause of 601 seconds", id="pause-too-long"),
        pytest.param([busy(wait=math.inf)], "asks for a pause of inf seconds", id="pause-for-ever"),
        pytest.param([busy() for _ in range(6)], "busy. Given up after 6 tries", id="too-many-tries"),
        pytest.param([busy(), CallError("no")], "gd, sample 's1': no. ", id="refused-later"),
    ],
)
def test_what_ends_a_run(outcomes: list[CallError], text: str) -> None:
    time = FakeTime()
    with pytest.raises(ModelError) as caught:
        ask(paid(time), *outcomes)
    assert text in str(caught.value)
    assert "the same command asks only for those that are missing" in str(caught.value)
    assert isinstance(caught.value, LLMWrapperError)
    assert len(time.slept) == len(outcomes) - 1


def test_tries_are_counted_for_each_question() -> None:
    calls = paid(FakeTime(), max_tries=2)
    assert [ask(calls, busy(), name) for name in ("a", "b")] == ["a", "b"]
    assert calls.num_answers == 2


def test_requests_keep_their_distance() -> None:
    time = FakeTime()
    calls = paid(time, requests_per_second=4.0)
    sent = []
    for work in (0.0, 0.1, 3.0, 0.0, 0.0):
        calls.pace()
        sent.append(time.now - 100)
        time.now += work
    assert sent == pytest.approx([0.0, 0.25, 0.5, 3.5, 3.75])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param(None, None, id="none"),
        pytest.param("", None, id="empty"),
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 0 ", 0.0, id="zero"),
        pytest.param("9" * 400, math.inf, id="for-ever"),
        pytest.param("Thu, 01 Jan 2026 12:01:30 GMT", 90.0, id="date"),
        pytest.param("Thu, 01 Jan 2026 12:01:30 -0000", 90.0, id="date-without-zone"),
        pytest.param("Thu, 01 Jan 2026 11:00:00 GMT", 0.0, id="past"),
        pytest.param("-5", None, id="negative"),
        pytest.param("nan", None, id="nan"),
        pytest.param("a minute", None, id="words"),
        pytest.param("٣", None, id="other-digits"),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header, NOON) == seconds
