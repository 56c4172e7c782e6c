"""Histories and searches made by hand: a proposer that reads a list, and prompts whose worth is written in them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_wrapper.recipe.schema import SearchSection
from llm_wrapper.search.history import EvaluatedPrompt, History, Leaderboard, SearchCost, Verdict
from llm_wrapper.search.proposals import ForbiddenText, Proposal, Request
from llm_wrapper.search.search import SearchProblem, search_prompts
from llm_wrapper.search.tasks import INSTRUCTION

NUM = 60
IMAGES = tuple(f"image-{place // 3}" for place in range(NUM))


def prompt(share: float, name: str = "") -> str:
    """An instruction that a fake selector answers right with a probability that stands in its text."""
    return f"Objects:\n{{objects}}\nGive the number ({name} {share:.2f}) of {{expression}}"


def evaluated(right: str, text: str = "p", *, iteration: int = 1, number: int = 0, verdict: Verdict = "complete",
              alpha: float | None = None) -> EvaluatedPrompt:  # fmt: skip
    fitness = right.count("1") / len(right)
    cost = SearchCost(7, len(right), 0.5)
    return EvaluatedPrompt(text, iteration, number, right, fitness, len(right), None, verdict, alpha, cost)


class Selector:
    """Answers the same expressions right for the same prompt; `calls` is what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, text: str, start: int, end: int) -> list[bool]:
        self.calls.append((text, start, end))
        share = float(re.findall(r"\d\.\d\d", text)[0])
        return [random.Random(f"{place}").random() < share for place in range(start, end)]


class Proposer:
    """Says what a function makes of a request; `requests` is what it was asked."""

    def __init__(self, say: Callable[[Request], str], *, can_be_guided: bool = False) -> None:
        self.say, self.can_be_guided = say, can_be_guided
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Proposal:
        self.requests.append(request)
        return Proposal(self.say(request), 5)


def climbing(request: Request) -> str:
    """Propose something near the best prompt that is shown; what it draws hangs on the request alone."""
    shown = [float(share) for share in re.findall(r"(\d\.\d\d)\)", request.text)] or [0.3]
    share = min(1.0, max(0.0, max(shown) + random.Random(request.seed).uniform(-0.3, 0.15)))
    return prompt(share, f"draw {request.seed}")


def ground(propose: Proposer, measure: Callable[[str, int, int], Sequence[bool]] | None = None) -> SearchProblem:
    known = ForbiddenText(("the man in the red shirt",), ("dog", "cat", "chair"))
    return SearchProblem(INSTRUCTION, "Made by hand.", IMAGES, "digest", known, measure or Selector(), propose)


def section(**changes: object) -> SearchSection:
    values = {"seed_prompt": prompt(0.3, "seed"), "iterations": 4, "samples": 3, "slice": NUM, "first": 15, "shown": 2}
    return SearchSection.model_validate({**values, **changes})


def searched(path: Path, propose: Proposer, measure: Callable[[str, int, int], Sequence[bool]] | None = None,
             **changes: object) -> tuple[History, Leaderboard]:  # fmt: skip
    """Search, or go on, with what is in a file."""
    history = History(path)
    leaderboard = search_prompts(section(**changes), ground(propose, measure), history, lambda _: None)
    return history, leaderboard
