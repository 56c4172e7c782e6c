"""Methods to improve one LLM, with and without training, at equal budgets: which there are, and their costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llm_wrapper.errors import RecipeError, listed, nearest
from llm_wrapper.recipe import Recipe, prompt_of
from llm_wrapper.records import Prediction

UNTRAINED = "untrained"
TRAINING = 3
"""Cost of a token that is trained on, in tokens that are only read: the backward pass costs about twice as much."""

_CONFIRMED = 4
"""Prompts that a search asks about its second slice: the seed prompt and the best three."""


@dataclass(frozen=True, slots=True)
class Method:
    """A row: the LLM as it is, with another prompt, with a prompt from a search, or trained.

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

DEFAULT_METHODS = tuple(name for name in METHODS if name not in ("ia3", "dora"))


def select_methods(names: Sequence[str]) -> list[Method]:
    """Return the methods of these names in the order to be shown, the untrained LLM always; by default most of them.

    Raises:
        RecipeError: If there is no such method.
    """
    known = [*METHODS]
    wrong = [f"no method is named {name!r}{nearest(name, known)}" for name in names if name not in METHODS]
    if wrong:
        raise RecipeError(f"{'; '.join(wrong)} (there are: {', '.join(known)})")
    wanted = {UNTRAINED, *(names or DEFAULT_METHODS)}
    return [method for name, method in METHODS.items() if name in wanted]


_OWN = {"train.limit": "--labelled", "search.slice": "--labelled", "search.confirm": "--labelled",
        "search.proposer": "--proposer", "data.eval_split": "--split", "train.method": "--method"}  # fmt: skip
"""Keys that a row sets itself -> the option for it."""


def require_used(rows: Sequence[Method], overrides: Sequence[str]) -> None:
    """Refuse overrides that a row sets itself, and those that no row reads."""
    keys = {override: override.partition("=")[0] for override in overrides}
    problems = [f"{override}: use {_OWN[key]}" for override, key in keys.items() if key in _OWN]
    problems += [
        f"{override}: it is for none of {', '.join(row.name for row in rows)}"
        for override, key in keys.items()
        if key not in _OWN and not any(is_override_of(row, override) for row in rows)
    ]
    if problems:
        raise RecipeError(listed("these overrides cannot be used", problems))


def is_override_of(row: Method, override: str) -> bool:
    """Tell whether an override is for a row: keys of a search, a training or a prompt go to such rows alone."""
    section, _, key = override.partition("=")[0].partition(".")
    if section == "search":
        return row.kind == "search"
    if section == "train":
        return row.kind == "train" or key in ("seed", "min_candidates")  # these decide what examples there are
    if section != "prompt" or key == "format":
        return True
    known = prompt_of(row.file) if row.kind == "prompt" else {}
    return key in known or (key == "embedder" and "retrieve" in known)


def split_labels(labelled: int) -> tuple[int, int]:
    """Divide labelled expressions between the two slices of a search: two thirds to search on, a third to confirm."""
    return labelled - labelled // 3, labelled // 3


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """Tokens of one question, by which a budget is divided.

    Attributes:
        num: How many questions are answered.
        alone: Tokens of a plain question that goes alone.
        shared: Tokens that went through the LLM for one, with shared prefixes and padding.
        step: Tokens of a training step, each counted `TRAINING` times; `None` where nothing is trained.
    """

    num: int
    alone: float
    shared: float
    step: float | None = None


def limit_compute(recipe: Recipe, method: Method, budget: int, found: QuestionTokens) -> Recipe:
    """Return a recipe whose knob is turned down so that preparing and answering fit a budget of tokens.

    The method's knob is steps of a training, rounds of a search, examples or words of reasoning: never less than one,
    never more than the recipe has. An estimate: prompts of other samples, or with examples per question, count as if
    they went alone.
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
    """Tokens through the LLM, those that are trained on counted three times (`None`: unknown), and seconds."""

    tokens: int | None
    seconds: float


@dataclass(frozen=True)
class MethodResult:
    """Predictions of a method, with the cost of preparing (training or search, once) and of all answers.

    Attributes:
        folder: Its run folder.
        rows: Its predictions.
        labelled: Labelled expressions that it may have looked at.
        num_asked: Answers that the LLM gave; where there is one candidate or none, it is not asked.
        per_answer: Tokens read and written for an answer, if its question goes alone; `None` where unknown.
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
        prepared, answered = self.prepared.tokens, self.answered.tokens
        return None if prepared is None or answered is None else prepared + answered

    def facts(self) -> dict[str, Any]:
        """Return all but the predictions as JSON values."""
        return {
            "labelled": self.labelled,
            "prepared": asdict(self.prepared),
            "answered": asdict(self.answered),
            "num_asked": self.num_asked,
            "tokens_per_answer": self.per_answer,
            "notes": [*self.notes],
        }

    @classmethod
    def from_facts(cls, folder: Path, rows: Sequence[Prediction], facts: Mapping[str, Any]) -> MethodResult:
        """Return the result that `facts` describes, with its predictions."""
        prepared, answered = (Cost(**facts[key]) for key in ("prepared", "answered"))
        counts = (facts["num_asked"], facts["tokens_per_answer"])
        return cls(folder, rows, facts["labelled"], prepared, answered, *counts, facts["notes"])
