"""What the proposing LLM is asked, and what is made of its answer: a clean text, or reasons to refuse it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from llm_wrapper.search.history import Evaluated
from llm_wrapper.search.standing import Standing
from llm_wrapper.search.tasks import Task

__all__ = ["Known", "clean", "meta_prompt", "refusals", "same"]

_SYSTEM = (
    "You write prompts for another model. Each prompt was tried on the same questions, and its accuracy is the share "
    "of right answers. Learn from what the good ones have in common and the bad ones lack."
)

_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_HEAD = re.compile(
    r"\A\W*(?:here (?:is|are)\b[^\n{}]*\b(?:prompt|instruction|caption|version)\b[^\n{}]*[:.!]|"
    r"(?:sure|okay|certainly)\b[^\n{}]*?[:.!]|"
    r"(?:the |my |a )?(?:new |improved |better )*(?:prompt|instruction|caption)\W*:)[*_\s]*",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\n\W*(?:accuracy|explanation|note|prompt|this (?:prompt|instruction|caption))\b.*\Z", re.IGNORECASE | re.DOTALL
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}  # noqa: RUF001 (the quotes that models write)

_CHAT = re.compile(
    r"<\|[^<>]{1,40}\|>|</?(?:s|bos|eos|pad|unk|think|[a-z]+_of_[a-z]+)>|<<SYS>>|<</SYS>>|<｜|｜>|"  # noqa: RUF001
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+)\]"
)
"""How the chat tokens of the models known to us are written; a model's own are given beside them."""

_FOUR_NUMBERS = re.compile(r"(?:-?\d+(?:\.\d+)?[\s,;]+){3}-?\d")
_LEAST_WORDS = 3
_LEAST_LABELS = 3


@dataclass(frozen=True)
class Known:
    """What no proposal may hold.

    Attributes:
        expressions: Those of the search's slices.
        labels: Those of the objects there.
        special: The model's special tokens, beside those that are recognised by how they are written.
    """

    expressions: Collection[str]
    labels: Collection[str]
    special: Collection[str] = ()


def meta_prompt(task: Task, description: str, standing: Standing, most: int) -> str:
    """Word the question that asks for one new prompt.

    It is one text, not a system message and a question, because not every chat template knows the former. Accuracies
    of prompts that saw a part of the expressions are as `Standing.expected` says.

    Args:
        task: What is searched for.
        description: What the data is.
        standing: Of the rounds before.
        most: How many of the best and of the worst prompts are shown; at most half of the history each.
    """
    worst, best = standing.extremes(most)
    parts = [_SYSTEM, f"The task. {task.about}", f"The data. {description}"]
    if worst:
        parts.append("Prompts that did badly, from worse to better:\n\n" + _shown(worst, standing))
    if best:
        parts.append("Prompts that did well, from worse to better:\n\n" + _shown(best, standing))
    parts.append(f"Write one new prompt that will be more accurate than all of these. {task.rules}")
    parts.append("Write the prompt and nothing else.")
    return "\n\n".join(parts)


def _shown(rows: Sequence[Evaluated], standing: Standing) -> str:
    return "\n\n".join(f"Prompt:\n{row.prompt}\nAccuracy: {100 * standing.expected(row):.1f} %" for row in rows)


def clean(answer: str) -> str:
    """Return the prompt in an answer: without code fence, announcement, quotes, and what is said about it afterwards.

    Line breaks within a prompt stay; those that were written as backslash and n become some.
    """
    text, before = answer.strip(), None
    while text != before:
        before = text
        if fenced := _FENCE.search(text):
            text = fenced[1]
        text = _TAIL.sub("", _HEAD.sub("", text, count=1)).strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip()
    lines = text.replace("\\n", "\n").splitlines()
    return "\n".join(line.rstrip() for line in lines)


def same(one: str, other: str) -> bool:
    """Tell whether two prompts are the same but for spaces."""
    return one.split() == other.split()


def refusals(text: str, task: Task, known: Known) -> list[str]:
    """Return every reason why a cleaned proposal is not measured, one sentence each; nothing where it is."""
    problems = list(task.problems(text))
    if token := next(_chat_tokens(text, known.special), None):
        problems.append(f"it holds a chat token: {token!r}")
    words = f" {_words(text)} "
    leaked = (each for each in map(_words, known.expressions) if len(each.split()) >= _LEAST_WORDS)
    if expression := next((each for each in leaked if f" {each} " in words), None):
        problems.append(f"it leaks a training expression: {expression!r}")
    if box := _FOUR_NUMBERS.search(text):
        problems.append(f"it leaks a box: {box[0]!r}")
    if labels := _label_list(text, known.labels):
        problems.append(f"it lists labels of the training data: {', '.join(labels)}")
    return problems


def _chat_tokens(text: str, special: Iterable[str]) -> Iterator[str]:
    yield from (found[0] for found in _CHAT.finditer(text))
    yield from (token for token in special if token.strip() and token in text)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))


def _label_list(text: str, labels: Collection[str]) -> list[str]:
    """Return the labels that stand in a row, if at least three do: `such as a dog, cats and the red chair there`."""
    known = {f" {_words(label)} " for label in labels}
    for line in text.splitlines():
        row: list[str] = []
        for part in re.split(r"[,;:()/]|\band\b|\bor\b", line.lower()):
            words = f" {re.sub(r'^(?:[0-9]+ |an? |the )+', '', _words(part))} "
            # Other words may stand before the first of a row, and behind the last.
            found = max((each for each in known if _stands(each, words, first=not row)), key=len, default=None)
            row = [] if found is None else [*row, found.strip()]
            if len(set(row)) >= _LEAST_LABELS:
                return row
    return []


def _stands(label: str, words: str, *, first: bool) -> bool:
    return words.endswith(label) if first else words.startswith(label)
