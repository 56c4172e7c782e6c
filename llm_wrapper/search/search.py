"""Search for a prompt with GLOV (arXiv 2410.06154): propose, clean or refuse, measure, rank, repeat; then confirm.

Round 0 measures the seed prompt. Each further round shows the proposing LLM the best and the worst prompts so far and
draws `samples` proposals. A draw depends on the seed, its round, its number and the earlier rounds alone, and each
measurement is written to disk at once, so that an interrupted search resumes with the same result. The best prompts are
measured again on held-out expressions: the winner of many is partly a lucky one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_wrapper.errors import PromptError, RecipeError, listed
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.systems import average, vote
from llm_wrapper.metrics import codes
from llm_wrapper.recipe.schema import SearchSection
from llm_wrapper.records import Prediction
from llm_wrapper.search.fitness import Fitness, halving_sizes, judge_prompt, mark_right
from llm_wrapper.search.history import (
    EvaluatedPrompt,
    History,
    Leaderboard,
    RefusedProposal,
    SearchCost,
    SearchStart,
)
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
from llm_wrapper.statistics import Estimate, difference, estimate, mcnemar
from llm_wrapper.storage import digest_value

_LONGEST_KEPT = 2000
"""Characters of a refused answer that the history keeps."""

_NUM_MEMBERS = 3
"""GLOV's result is the ensemble of the best three."""


@dataclass(frozen=True)
class SearchProblem:
    """The task, data and LLMs of a search."""

    task: SearchTask
    description: str  # of the data, for the proposing LLM
    images: Sequence[str]  # of each expression of the slice
    identity: str  # the digest of the expressions and of their candidates
    known: ForbiddenText
    measure: Callable[[str, int, int], Sequence[bool]]  # (prompt, start, end) -> right or not, expressions start .. end
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

    Each evaluation is added to the history, and `say` prints a line for each result. RunError if the history is of
    other expressions, RecipeError if the seed prompt cannot be used.
    """
    history.begin(SearchStart(problem.identity, len(problem.images)))
    run = _Search(section, problem, history, say)
    run.measure(choose_seed_prompt(section, problem.task), _Origin(0, 0))
    for iteration in range(1, section.iterations + 1):
        run.run_round(iteration)
    return Leaderboard(history.rows)


@dataclass(frozen=True)
class _Origin:
    """Round, number and cost of a proposal."""

    iteration: int
    number: int
    alpha: float | None = None
    tokens: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Search:
    section: SearchSection
    problem: SearchProblem
    history: History
    say: Callable[[str], None]

    def run_round(self, iteration: int) -> None:
        past = Leaderboard(self.history.rows, before=iteration)
        text = build_meta_prompt(self.problem.task, self.problem.description, past, self.section.shown)
        guides = past.guides() if self.problem.propose.can_be_guided and self.section.alphas else None
        begun = {  # the last row of each proposal, written before the search was interrupted
            row.number: row
            for row in self.history.rows
            if not isinstance(row, SearchStart) and row.iteration == iteration
        }
        for number in range(self.section.samples):
            row = begun.get(number)
            if row is None:
                self.propose(text, iteration, number, guides)
            elif isinstance(row, EvaluatedPrompt) and row.verdict == "open":
                self.measure(row.prompt, _Origin(iteration, number, row.alpha))

    def propose(self, text: str, iteration: int, number: int, guides: tuple[str, str] | None) -> None:
        alphas = self.section.alphas
        alpha = alphas[number % len(alphas)] if guides else None
        started = time.perf_counter()
        request = Request(text, proposal_seed(self.section.seed, iteration, number), guides, alpha or 0.0)
        answer = self.problem.propose(request)
        origin = _Origin(iteration, number, alpha, answer.tokens, time.perf_counter() - started)
        said = answer.text.encode("utf-8", "replace").decode()  # half a surrogate pair could not be kept
        prompt = clean_proposal(said)
        reasons = find_refusals(prompt, self.problem.task, self.problem.known)
        if same := next((row for row in self.history.evaluated if is_same_prompt(row.prompt, prompt)), None):
            reasons.append(f"it is the prompt {same.number} of round {same.iteration} again")
        if reasons:
            self.refuse(said, reasons, origin)
        else:
            self.measure(prompt, origin)

    def refuse(self, answer: str, reasons: Sequence[str], origin: _Origin) -> None:
        cost = SearchCost(origin.tokens, 0, round(origin.seconds, 3))
        iteration, number, kept = origin.iteration, origin.number, answer[:_LONGEST_KEPT]
        self.history.add(RefusedProposal(iteration, number, kept, len(answer), tuple(reasons), origin.alpha, cost))
        self.say(f"round {iteration}, proposal {number}: refused, {'; '.join(reasons)}")

    def measure(self, prompt: str, origin: _Origin) -> None:
        """Measure a prompt on the rest of the slice, rung by rung, until it is surely worse than the best."""
        images, leaderboard = self.problem.images, Leaderboard(self.history.rows)
        best, known = leaderboard.best(), leaderboard.get(prompt)
        right = known.is_right if known else []
        for n in halving_sizes(self.section.first, len(images)):
            if n <= len(right):
                continue
            started, num_asked = time.perf_counter(), n - len(right)
            try:
                right = [*right, *self.problem.measure(prompt, len(right), n)]
            except PromptError as error:
                if origin.iteration == 0:
                    raise
                self.refuse(prompt, [f"it cannot be asked: {error}"], origin)
                return
            ci = estimate([*right], list(images[:n])).ci
            row = EvaluatedPrompt(
                prompt=prompt,
                iteration=origin.iteration,
                number=origin.number,
                right="".join("1" if each else "0" for each in right),
                fitness=sum(right) / n,
                n=n,
                interval=None if ci is None else (ci.low, ci.high),
                verdict=judge_prompt(right, best.is_right if best else None, images),
                alpha=origin.alpha,
                cost=SearchCost(origin.tokens, num_asked, round(origin.seconds + time.perf_counter() - started, 3)),
            )
            self.history.add(row)
            if row.verdict != "open":
                share = f"{100 * row.fitness:.1f} % of {n}"
                self.say(f"round {origin.iteration}, proposal {origin.number}: {row.verdict}, {share}")
                return
            origin = _Origin(origin.iteration, origin.number, origin.alpha)  # its cost is counted once


@dataclass(frozen=True, slots=True)
class ConfirmedPrompt:
    """A prompt, or an ensemble of some, on the second slice."""

    name: str  # `seed`, `best 1`, .., or how an ensemble decides
    row: EvaluatedPrompt | None  # its measurement on the first slice; None for an ensemble
    fitness: Estimate
    gain: Estimate  # over the seed prompt, paired
    p_value: float | None  # McNemar's, of the same pairs

    @property
    def drop(self) -> float | None:
        """Fitness on the first slice minus that on the second; `None` for an ensemble."""
        return None if self.row is None or self.fitness.value is None else self.row.fitness - self.fitness.value

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values; shares in 0..1."""
        row = self.row
        confirm, gain = (
            {"value": each.value, "interval": None if each.ci is None else list(each.ci), "n": each.n}
            for each in (self.fitness, self.gain)
        )
        return {
            "name": self.name,
            "prompt": row.prompt if row else None,
            "iteration": row.iteration if row else None,
            "search": {"fitness": row.fitness, "interval": row.interval, "n": row.n} if row else None,
            "confirm": confirm,
            "drop": self.drop,
            "gain_over_seed": {**gain, "p_value": self.p_value},
        }


def confirm_prompts(
    section: SearchSection, fitness: Fitness, places: Sequence[int], leaderboard: Leaderboard, folder: Path
) -> list[ConfirmedPrompt]:
    """Measure the seed prompt, the best three, and their ensemble, on the second slice.

    Predictions are kept in `folder` as `confirmed-<digest>.parquet`, and read from there the next time. Without
    probabilities an ensemble votes.
    """
    seed, best = leaderboard.seed, leaderboard.complete()[:_NUM_MEMBERS]
    assert seed is not None  # a search begins with it
    made: dict[str, list[Prediction]] = {}
    for prompt in dict.fromkeys(row.prompt for row in [seed, *best]):
        path = folder / f"confirmed-{digest_value(prompt)[:12]}.parquet"
        if not path.exists():
            files.save_predictions(path, fitness.predictions(prompt, places))
        made[prompt] = files.load_predictions(path)
    systems: list[tuple[str, EvaluatedPrompt | None, list[Prediction]]] = [("seed", seed, made[seed.prompt])]
    systems += [(f"best {rank}", row, made[row.prompt]) for rank, row in enumerate(best, start=1)]
    if section.target == "instruction" and len(best) > 1:
        parts = [made[row.prompt] for row in best]
        is_mean = section.ensemble == "mean" and any(each.probabilities is not None for each in parts[0])
        name, combine = ("mean", average) if is_mean else ("vote", vote)
        systems.append((f"{name} of the best {len(best)}", None, combine(parts, name)))
    confirmed = []
    seed_right = mark_right(made[seed.prompt], section.fitness)
    for name, row, predictions in systems:
        right, images = mark_right(predictions, section.fitness), codes(each.image_id for each in predictions)
        gain, p_value = difference(right, seed_right, images), mcnemar(right, seed_right).p_value
        confirmed.append(ConfirmedPrompt(name, row, estimate(right, images), gain, p_value))
    return confirmed
