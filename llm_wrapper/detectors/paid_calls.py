"""Calls that cost money: agreed before the first, within a budget, paced, and retried where that helps.

Nothing here knows a network: clock, sleep and chance are passed in, and a request is any function that raises
`CallError` where it fails.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper.errors import ModelError, RecipeError
from llm_wrapper.services import CallError, delay_after

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PaidTerms(BaseModel):
    """Price and budget in dollars; without `max_cost` nothing is called. A question is tried `max_tries` times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    price_per_call: _Positive
    max_cost: _Positive | None = None
    requests_per_second: _Positive = 2.0
    max_tries: int = Field(6, ge=1)

    @property
    def max_calls(self) -> int:
        """How many calls the budget pays for; 0 without a budget."""
        # In floats 0.3 / 0.1 is 2.9999999999999996, and a quotient may be infinite.
        return 0 if self.max_cost is None else math.floor(min(self.max_cost / self.price_per_call + 1e-9, 1e15))


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The cost of a run, for the user to agree to. Failed calls that may have been charged come on top."""

    name: str
    num_questions: int
    terms: PaidTerms

    @property
    def cost(self) -> float:
        """Dollars, if each question needs one call."""
        return self.num_questions * self.terms.price_per_call

    def __str__(self) -> str:
        """Say it in one sentence."""
        price, allowed = self.terms.price_per_call, self.terms.max_calls
        text = f"{self.name}: {self.num_questions} paid calls at {price:g} dollars, {self.cost:.2f} dollars in all"
        if self.terms.max_cost is not None:
            text += f"; the budget of {self.terms.max_cost:g} dollars pays for {allowed}"
        return text


class PaidCalls:
    """Makes calls within a budget; counts what may have been charged and what was answered, in this run.

    Attributes:
        num_charged: Calls that the service may have charged for: all but those that it surely refused.
        num_answers: Questions that were answered.
    """

    def __init__(
        self,
        name: str,
        terms: PaidTerms,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name, self.terms = name, terms
        self.clock, self.sleep, self._chance = clock, sleep, chance
        self.num_charged = self.num_answers = 0
        self._next_request = -math.inf

    @property
    def spent(self) -> float:
        """Dollars that may have been charged in this run."""
        return self.num_charged * self.terms.price_per_call

    def agree(self, num_questions: int, confirm: Callable[[CostEstimate], bool] | None = None) -> CostEstimate:
        """Estimate the cost of the missing answers and make sure that the user agrees, before the first call.

        Raises:
            RecipeError: If there is no budget, it does not pay for one call, or `confirm` says no.
        """
        estimate = CostEstimate(self.name, num_questions, self.terms)
        if self.terms.max_calls < 1:
            raise RecipeError(f"{estimate}. Nothing was called. To agree to a budget, {_budget(estimate.cost)}.")
        if confirm is not None and not confirm(estimate):
            raise RecipeError(f"{estimate}. This was not confirmed, so nothing was called.")
        _log.info("%s", estimate)
        return estimate

    def answer(self, attempt: Callable[[], _Answer], *, about: str) -> _Answer:
        """Return the answer of an attempt about a question, retried where its `CallError` allows it.

        An attempt continues where its last try stopped; it opens a paid call with `charged`, any other with `pace`.

        Raises:
            ModelError: If the service refuses, or does not answer after all tries.
            RecipeError: If the budget ends.
        """
        num_tries = 0
        while True:
            num_tries += 1
            try:
                answer = attempt()
            except CallError as error:
                try:
                    delay = delay_after(error, num_tries, max_tries=self.terms.max_tries, chance=self._chance)
                except CallError as final:
                    raise ModelError(f"{self.name}, {about}: {final}. {self._progress()}") from error
                again = f"try {num_tries + 1} of {self.terms.max_tries} follows in {delay:.1f} s"
                _log.warning("%s, %s: %s; %s", self.name, about, error, again)
                self.sleep(delay)
            else:
                self.num_answers += 1
                return answer

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Make one paid call inside: within the budget, in time, and counted unless it was surely not charged."""
        if self.terms.max_cost is None:
            price = self.terms.price_per_call
            raise RecipeError(f"{self.name} costs {price:g} dollars a call. To agree to a budget, {_budget()}.")
        if self.num_charged >= self.terms.max_calls:
            raise RecipeError(
                f"{self.name}: the budget of {self.terms.max_cost:g} dollars is used up; {self.num_charged} calls may "
                f"have been charged, {self.spent:.2f} dollars. {self._progress()}. A budget is for one run: to "
                f"continue, {_budget()}."
            )
        self.pace()
        self.num_charged += 1
        try:
            yield
        except CallError as error:
            if not error.charged:
                self.num_charged -= 1
            raise

    def pace(self) -> None:
        """Wait until the next request may be sent."""
        now = self.clock()
        if now < self._next_request:
            self.sleep(self._next_request - now)
        self._next_request = max(now, self._next_request) + 1 / self.terms.requests_per_second

    def _progress(self) -> str:
        return f"Answers kept in this run: {self.num_answers}; the same command asks only for those that are missing"


def _budget(cost: float | None = None) -> str:
    """Say how to agree to a budget, in whole cents that pay for the cost."""
    amount = "DOLLARS" if cost is None else f"{math.ceil(cost * 100 - 1e-9) / 100:.2f}"
    return f"run the same command with detector.settings.max_cost={amount}"
