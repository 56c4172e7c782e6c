"""Define the two search tasks, instruction and caption: their description, rules, seed, and checks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llm_wrapper.prompts.text import check_instruction

_MAX_CAPTION = 200
"""Letters of a caption; detectors read some hundred tokens, and the expression needs most of them."""

_INDEX = re.compile(r"\b(?:numbers?|index|indices|indexes|ids?|digits?|integers?|which one)\b", re.IGNORECASE)
_OTHER = re.compile(
    r"\b(?:coordinates?|bounding box(?:es)?|x0|yes or no|yes/no|true or false|describe|description of|explain|caption|"
    r"list all|list the|sentence|translate)\b",
    re.IGNORECASE,
)
_COUNT = re.compile(r"\b(?:how many|count the|count all|number of (?:the )?(?:objects|things))\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SearchTask:
    """A kind of text to search for; `about` and `rules` are for the proposing LLM."""

    name: Literal["instruction", "caption"]
    about: str
    rules: str
    seed: str  # the first prompt, unless the recipe has one
    problems: Callable[[str], list[str]]  # returns the reasons that make a text unusable, one sentence each


def find_other_demand(text: str) -> str | None:
    """Return the words of an instruction that demand something else than an index, `None` where it has none.

    A heuristic over English words: it counts objects, or it has a word for another answer (coordinates, yes or no, a
    description, ..) and none for a number. A miss costs one measurement.
    """
    words = text.replace("{objects}", " ").replace("{expression}", " ")
    found = _COUNT.search(words) or (None if _INDEX.search(words) else _OTHER.search(words))
    return found[0] if found else None


def _instruction_problems(text: str) -> list[str]:
    problems = check_instruction(text)
    demand = find_other_demand(text)
    return [*problems, f"it asks for something else than an index: {demand!r}"] if demand else problems


def _caption_problems(text: str) -> list[str]:
    if not text.strip():
        return ["the caption is empty"]
    problems = []
    if (count := text.count("{expression}")) != 1:
        problems.append(f"{{expression}} occurs in the caption {count} times; it is needed exactly once")
    if re.search(r"[{}]", text.replace("{expression}", "")):
        problems.append("the caption has a brace that belongs to no {expression}")
    if any(unicodedata.category(char)[0] == "C" for char in text):
        problems.append("the caption has a line break or a control character")
    if len(text) > _MAX_CAPTION:
        problems.append(f"the caption has {len(text)} characters; {_MAX_CAPTION} is the most")
    return problems


INSTRUCTION = SearchTask(
    name="instruction",
    about=(
        "A detector has found objects in an image, and a person refers to one of them by an expression. A language "
        "model that cannot see the image is given the objects as a numbered list of text lines and the expression, and "
        "answers with the number of the object that is meant. The prompt is all that it is told."
    ),
    rules=(
        "The prompt holds {objects} exactly once, where the list of objects will stand, and {expression} exactly once, "
        "where the expression will stand. It asks for the number of one object and for nothing else. It works for any "
        "image: it names no object and gives no example."
    ),
    seed=(
        "Objects in an image:\n{objects}\n"
        "Which one does this expression describe? Answer with its number alone.\nExpression: {expression}"
    ),
    problems=_instruction_problems,
)

CAPTION = SearchTask(
    name="caption",
    about=(
        "A detector that understands short texts is given an image and a caption, and returns boxes of what the "
        "caption names. A person refers to one object of the image by an expression, and the detector is asked with a "
        "caption that is made of it."
    ),
    rules=(
        "The caption is a single short line and holds {expression} exactly once, where the expression will stand. It "
        "works for any image: it names no object and gives no example."
    ),
    seed="{expression}",
    problems=_caption_problems,
)


def search_task(target: Literal["instruction", "caption"]) -> SearchTask:
    """Return the task that a recipe names."""
    return INSTRUCTION if target == "instruction" else CAPTION
