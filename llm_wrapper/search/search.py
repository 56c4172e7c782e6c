"""Search for a prompt with GLOV (arXiv 2410.06154): propose, clean or refuse, measure, rank, repeat.

Round 0 measures the seed prompt. Each further round shows the proposing LLM the best and the worst prompts so far and
draws `samples` proposals. A draw depends on the seed, its round, its number and the earlier rounds alone, and each
measurement is written to disk at once, so that an interrupted search resumes with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_wrapper.errors import PromptError, RecipeError, listed
from llm_wrapper.recipe.schema import SearchSection
from llm_wrapper.search.fitness import halving_sizes, judge_prompt
from llm_wrapper.search.history import (
    EvaluatedPrompt,
    History,
    RefusedProposal,
    SearchCost,
    SearchStart,
    Verdict,
    read_bits,
    write_bits,
)
from llm_wrapper.search.leaderboard import Leaderboard
from llm_wrapper.search.proposals import (
    ForbiddenText,
    Proposer,
    Request,
    build_meta_prompt,
    clean_proposal,
    find_refusals,
    is_same_prompt,
)
from llm_wrapper.search.tasks import SearchTask
from llm_wrapper.statistics import estimate
from llm_wrapper.storage import digest_value

__all__ = ["Measure", "SearchProblem", "choose_seed_prompt", "proposal_seed", "search_prompts"]

_LONGEST_KEPT = 2000
"""Characters of a refused answer that the history keeps."""


Measure = Callable[[str, int, int], Sequence[bool]]
"""(prompt, start, end) -> whether it is right, for the expressions start .. end - 1 of the slice."""


@dataclass(frozen=True)
class SearchProblem:
    """The task, data and LLMs of a search.

    Attributes:
        task: An instruction or a caption.
        description: Of the data, for the proposing LLM.
        images: The image of each expression of the slice.
        identity: The digest of the expressions and of their candidates.
        known: Text that no proposal may hold.
        measure: Measures a prompt.
        propose: The proposing LLM.
    """

    task: SearchTask
    description: str
    images: Sequence[str]
    identity: str
    known: ForbiddenText
    measure: Measure
    propose: Proposer


def proposal_seed(seed: int, iteration: int, number: int) -> int:
    """Return the seed of one draw, in 0 .. 2^31 - 1 as servers take it."""
    return int(digest_value([seed, iteration, number])[:8], 16) >> 1


def choose_seed_prompt(section: SearchSection, task: SearchTask) -> str:
    """Return the prompt that a search begins with; refuse an unusable one with all reasons (RecipeError)."""
    text = section.seed_prompt if section.seed_prompt is not None else task.seed
    if problems := task.problems(text):
        raise RecipeError(listed("search.seed_prompt cannot be used", problems))
    return text


def search_prompts(
    section: SearchSection, problem: SearchProblem, history: History, say: Callable[[str], None]
) -> Leaderboard:
    """Search, or resume an interrupted search, and return the leaderboard of all prompts.

    Args:
        section: The recipe's section.
        problem: The task, data and LLMs.
        history: Of the search so far; each evaluation is added.
        say: Prints a line for each result.

    Raises:
        RunError: If the history is of other expressions.
        RecipeError: If the seed prompt cannot be used.
    """
    history.begin(SearchStart(problem.identity, len(problem.images)))
    run = _Search(section, problem, history, say)
    run.measure_seed()
    for iteration in range(1, section.iterations + 1):
        run.round(iteration)
    return Leaderboard(history.rows)


@dataclass(frozen=True)
class _Origin:
    """Round, number and cost of a proposal."""

    iteration: int
    number: int
    alpha: float | None = None
    tokens: int | None = None
    seconds: float = 0.0


class _Search:
    def __init__(
        self, section: SearchSection, problem: SearchProblem, history: History, say: Callable[[str], None]
    ) -> None:
        self._section, self._problem, self._history, self._say = section, problem, history, say

    def measure_seed(self) -> None:
        self._measure(choose_seed_prompt(self._section, self._problem.task), _Origin(0, 0))

    def round(self, iteration: int) -> None:
        past = Leaderboard(self._history.rows, before=iteration)
        text = build_meta_prompt(self._problem.task, self._problem.description, past, self._section.shown)
        guides = past.guides() if self._problem.propose.can_be_guided and self._section.alphas else None
        for number in range(self._section.samples):
            begun = self._begun(iteration, number)
            if begun is None:
                self._propose(text, iteration, number, guides)
            elif isinstance(begun, EvaluatedPrompt) and begun.verdict == "open":
                self._measure(begun.prompt, _Origin(iteration, number, begun.alpha))

    def _begun(self, iteration: int, number: int) -> EvaluatedPrompt | RefusedProposal | None:
        """Return the last row of a proposal, written before the search was interrupted."""
        for row in reversed(self._history.rows):
            if not isinstance(row, SearchStart) and (row.iteration, row.number) == (iteration, number):
                return row
        return None

    def _propose(self, text: str, iteration: int, number: int, guides: tuple[str, str] | None) -> None:
        alphas = self._section.alphas
        alpha = alphas[number % len(alphas)] if guides else None
        started = time.perf_counter()
        request = Request(text, proposal_seed(self._section.seed, iteration, number), guides, alpha or 0.0)
        answer = self._problem.propose(request)
        origin = _Origin(iteration, number, alpha, answer.tokens, time.perf_counter() - started)
        said = answer.text.encode("utf-8", "replace").decode()  # half a surrogate pair could not be kept
        prompt = clean_proposal(said)
        reasons = find_refusals(prompt, self._problem.task, self._problem.known) + self._duplicates(prompt)
        if reasons:
            self._refuse(said, reasons, origin)
        else:
            self._measure(prompt, origin)

    def _duplicates(self, prompt: str) -> list[str]:
        found = next((row for row in self._history.evaluated if is_same_prompt(row.prompt, prompt)), None)
        return [f"it is the prompt {found.number} of round {found.iteration} again"] if found else []

    def _refuse(self, answer: str, reasons: Sequence[str], origin: _Origin) -> None:
        cost = SearchCost(origin.tokens, 0, round(origin.seconds, 3))
        kept = answer[:_LONGEST_KEPT]
        where = (origin.iteration, origin.number)
        self._history.add(RefusedProposal(*where, kept, len(answer), tuple(reasons), origin.alpha, cost))
        self._say(f"round {where[0]}, proposal {where[1]}: refused, {'; '.join(reasons)}")

    def _measure(self, prompt: str, origin: _Origin) -> None:
        """Measure a prompt on the rest of the slice, rung by rung, until it is surely worse than the best."""
        best = Leaderboard(self._history.rows).best()
        known = Leaderboard(self._history.rows).get(prompt)
        right = read_bits(known) if known else []
        for end in halving_sizes(self._section.first, len(self._problem.images)):
            if end <= len(right):
                continue
            started, num_asked = time.perf_counter(), end - len(right)
            try:
                right = [*right, *self._problem.measure(prompt, len(right), end)]
            except PromptError as error:
                if origin.iteration == 0:
                    raise
                self._refuse(prompt, [f"it cannot be asked: {error}"], origin)
                return
            judged = judge_prompt(right, read_bits(best) if best else None, self._problem.images)
            seconds = time.perf_counter() - started
            cost = SearchCost(origin.tokens, num_asked, round(origin.seconds + seconds, 3))
            self._keep(prompt, right, judged, origin, cost)
            origin = _Origin(origin.iteration, origin.number, origin.alpha)  # its cost is counted once
            if judged != "open":
                return

    def _keep(self, prompt: str, right: Sequence[bool], judged: Verdict, origin: _Origin, cost: SearchCost) -> None:
        n = len(right)
        found = estimate([*right], list(self._problem.images[:n]))
        row = EvaluatedPrompt(
            prompt=prompt,
            iteration=origin.iteration,
            number=origin.number,
            right=write_bits(right),
            fitness=sum(right) / n,
            n=n,
            interval=None if found.ci is None else (found.ci.low, found.ci.high),
            verdict=judged,
            alpha=origin.alpha,
            cost=cost,
        )
        self._history.add(row)
        if judged != "open":
            share = f"{100 * row.fitness:.1f} % of {n}"
            self._say(f"round {origin.iteration}, proposal {origin.number}: {judged}, {share}")
