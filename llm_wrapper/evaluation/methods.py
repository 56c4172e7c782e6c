"""Ways to get more out of one LLM, with and without training, at equal budgets: what they are, take, and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_wrapper.errors import RecipeError, nearest
from llm_wrapper.evaluation.comparison import Comparison, compare_systems
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction

__all__ = ["DEFAULT", "METHODS", "TRAINING", "UNTRAINED", "Cost", "Done", "Measured", "Method", "Methods", "Row",
           "capped", "chosen", "measure", "shares"]  # fmt: skip

UNTRAINED = "untrained"
TRAINING = 3
"""What a token that is trained on costs, in tokens that are only read: it goes back, too, for about twice as much."""

_CONFIRMED = 4
"""Prompts that a search asks about its second slice: the seed prompt and the best three."""


@dataclass(frozen=True, slots=True)
class Method:
    """A row: the LLM as it is, asked otherwise, with a prompt that was searched for, or trained.

    `file` is the recipe that makes the difference: of `recipes/prompt`, `recipes/search` or `recipes/train`.
    """

    name: str
    kind: Literal["untrained", "prompt", "search", "train"]
    file: str = ""


METHODS: dict[str, Method] = {
    each.name: each
    for each in (
        Method(UNTRAINED, "untrained"),
        Method("glov", "search", "glov"),
        Method("glov-guided", "search", "glov-guided"),
        Method("in-context", "prompt", "in-context"),
        Method("retrieved", "prompt", "retrieved"),
        Method("chain-of-thought", "prompt", "chain-of-thought"),
        Method("prompt-tuning", "train", "prompt-tuning"),
        Method("prefix-tuning", "train", "prefix-tuning"),
        Method("ia3", "train", "ia3"),
        Method("lora", "train", "default"),
        Method("dora", "train", "dora"),
    )
}
"""In the order in which they are shown."""

DEFAULT = tuple(name for name in METHODS if name not in ("ia3", "dora"))


def chosen(names: Sequence[str]) -> list[Method]:
    """Return the methods of these names in the order to be shown, the untrained LLM always; by default most of them.

    Raises:
        RecipeError: If there is no such method.
    """
    known = [*METHODS]
    wrong = [f"no method is named {name!r}{nearest(name, known)}" for name in names if name not in METHODS]
    if wrong:
        raise RecipeError(f"{'; '.join(wrong)} (there are: {', '.join(known)})")
    wanted = {UNTRAINED, *(names or DEFAULT)}
    return [method for name, method in METHODS.items() if name in wanted]


def shares(labelled: int) -> tuple[int, int]:
    """Divide labelled expressions between the two slices of a search: two thirds to search on, a third to confirm."""
    return labelled - labelled // 3, labelled // 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What a budget of tokens is divided by.

    Attributes:
        num: How many questions are answered.
        alone: Tokens of a plain question that goes alone.
        shared: Tokens that went through the LLM for one, with the company that all of them had.
        step: Tokens of a training step, each counted `TRAINING` times; `None` where nothing is trained.
    """

    num: int
    alone: float
    shared: float
    step: float | None = None


def capped(recipe: Recipe, method: Method, budget: int, found: Measured) -> Recipe:
    """Return a recipe whose knob is turned down to what a budget of tokens lets it do, for preparing and answering.

    Steps of a training, rounds of a search, examples or words of reasoning: never less than one, never more than the
    recipe has. It is an estimate; what is asked on other samples, or differs from question to question, is taken as if
    it went alone.

    Args:
        recipe: The row's.
        method: Says which knob.
        budget: Tokens through the LLM.
        found: What the untrained LLM took, and what a step would take.
    """
    spare = budget - found.num * found.shared
    search, prompt = recipe.search, recipe.prompt
    if method.kind == "train":
        return recipe if found.step is None else _turned(recipe, "train", "max_steps", spare / found.step)
    if method.kind == "search" and search is not None:
        spare -= found.alone * (search.slice + _CONFIRMED * search.confirm)
        return _turned(recipe, "search", "iterations", spare / (found.alone * search.slice * search.samples))
    each = budget / found.num
    if prompt.reasoning_tokens:  # the question is read twice, the reasons are written once and read once
        return _turned(recipe, "prompt", "reasoning_tokens", (each - found.shared - found.alone) / 2)
    if prompt.examples:  # as long as a question
        return _turned(recipe, "prompt", "examples", each / (found.alone if prompt.retrieve else found.shared) - 1)
    return recipe


def _turned(recipe: Recipe, section: str, key: str, value: float) -> Recipe:
    part = getattr(recipe, section)
    wanted, most = max(1, int(value)), getattr(part, key)
    changed = part.model_copy(update={key: wanted if most is None else min(wanted, most)})
    return recipe.model_copy(update={section: changed})


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens through the LLM, those that are trained on counted three times (`None`: nobody told), and seconds."""

    tokens: int | None
    seconds: float


@dataclass(frozen=True)
class Done:
    """What a method took and gave.

    Attributes:
        folder: Its run folder.
        rows: Its predictions.
        labelled: Labelled expressions that it may have looked at.
        prepared: Cost of training or search, once.
        answered: Cost of all answers.
        num_asked: Answers that the LLM gave; where there is one candidate or none, it is not asked.
        per_answer: Tokens read and written for an answer, if its question goes alone; `None` where nobody told.
        notes: What has to be said of it.
    """

    folder: Path
    rows: Sequence[Prediction]
    labelled: int
    prepared: Cost
    answered: Cost
    num_asked: int
    per_answer: float | None
    notes: Sequence[str] = ()

    @property
    def tokens(self) -> int | None:
        """Tokens through the LLM, for preparing and for all answers."""
        known = (self.prepared.tokens, self.answered.tokens)
        return None if None in known else sum(each for each in known if each is not None)

    def facts(self) -> dict[str, Any]:
        """Return all but the predictions as JSON values."""
        return {
            "labelled": self.labelled,
            "prepared": {"tokens": self.prepared.tokens, "seconds": self.prepared.seconds},
            "answered": {"tokens": self.answered.tokens, "seconds": self.answered.seconds},
            "num_asked": self.num_asked,
            "tokens_per_answer": self.per_answer,
            "notes": [*self.notes],
        }

    @classmethod
    def of_facts(cls, folder: Path, rows: Sequence[Prediction], facts: Mapping[str, Any]) -> Done:
        """Return what `facts` told of, with its predictions."""
        prepared, answered = (Cost(**facts[key]) for key in ("prepared", "answered"))
        counts = (facts["num_asked"], facts["tokens_per_answer"])
        return cls(folder, rows, facts["labelled"], prepared, answered, *counts, facts["notes"])


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; of a method that failed there is the reason alone."""

    name: str
    done: Done | None = None
    summary: Summary | None = None
    over_untrained: Comparison | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Methods:
    """All rows in the order to be shown; `others` are detector, rule and oracle, which ask no LLM."""

    column: str
    others: Sequence[Summary]
    rows: Sequence[Row]


def measure(column: str, others: Sequence[Sequence[Prediction]], made: Mapping[str, Done | str]) -> Methods:
    """Compute every row, with what it gains over the untrained LLM on the same samples.

    Args:
        column: What was asked about.
        others: Predictions of detector, rule and oracle.
        made: Method -> what it gave, or why it gave nothing.
    """
    untrained = made.get(UNTRAINED)
    rows = []
    for name, found in made.items():
        if isinstance(found, str):
            rows.append(Row(name, problem=found))
            continue
        rival = untrained if isinstance(untrained, Done) and name != UNTRAINED else None
        over = compare_systems(found.rows, rival.rows) if rival else None
        rows.append(Row(name, found, summarize(found.rows), over))
    return Methods(column, [summarize(each) for each in others], rows)
