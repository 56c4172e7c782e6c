"""The chooser without a model: named first, then direction and size words, else the largest box.

Every LLM must beat it. It imports no torch, so it also serves as a fast chooser in tests (`LLM=rule`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llm_wrapper.boxes import FloatArray, array
from llm_wrapper.prompts.vocabulary import names_of, singular, words_of
from llm_wrapper.records import Candidate, Choice

__all__ = ["choose"]

_Key = Callable[[FloatArray], FloatArray]

_DIRECTIONS: tuple[tuple[str, _Key], ...] = (
    (r"\b(left|leftmost|left-most)\b(?! (hand|arm|foot|leg))", lambda box: (box[:, 0] + box[:, 2]) / 2),
    (r"\b(right|rightmost|right-most)\b(?! (hand|arm|foot|leg))", lambda box: -(box[:, 0] + box[:, 2]) / 2),
    (r"\b(top|upper|highest|above)\b", lambda box: (box[:, 1] + box[:, 3]) / 2),
    (r"\b(bottom|lower|lowest|below)\b", lambda box: -(box[:, 1] + box[:, 3]) / 2),
    (r"\b(smallest|small|smaller|little|tiny|tiniest|baby|far|farthest|back|background|behind)\b",
     lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])),
    (r"\b(front|closest|nearest|close|closer|foreground)\b", lambda box: -box[:, 3]),
)  # fmt: skip
"""Pattern -> key of shape (n,); the candidate with the smallest key wins. Tried in this order."""

_MIDDLE = re.compile(r"\b(middle|center|centre|between)\b")


def _first_mention(label: str, words: Sequence[str]) -> tuple[int, int] | None:
    """Return (position, penalty) of the earliest mention of a label, or None."""
    best: tuple[int, int] | None = None
    for name, penalty in names_of(label.lower()).items():
        for start in range(len(words) - len(name) + 1):
            if tuple(words[start : start + len(name)]) == name:
                # A head noun stands at the end of its group: "teddy bear" names the group where it ends.
                best = min(best or (start, penalty), (start, penalty))
                break
    return best


def _named(candidates: Sequence[Candidate], expression: str) -> list[int]:
    words = [singular(word) for word in words_of(expression)]
    mentions = {label: _first_mention(label, words) for label in {candidate.label for candidate in candidates}}
    found = {label: mention for label, mention in mentions.items() if mention is not None}
    if not found:
        return list(range(len(candidates)))
    first = min(found.values())
    labels = {label for label, mention in found.items() if mention == first}
    return [index for index, candidate in enumerate(candidates) if candidate.label in labels]


def choose(expression: str, candidates: Sequence[Candidate]) -> Choice:
    """Choose a candidate by fixed rules; the choice carries no probability.

    Args:
        expression: The referring expression.
        candidates: At least one candidate; their order matters only for exact ties.
    """
    if not candidates:
        return Choice(None, reason="no candidate")
    kept = _named(candidates, expression)
    boxes = array([candidates[index].box for index in kept])
    text = expression.lower()
    for pattern, key in _DIRECTIONS:
        if re.search(pattern, text):
            return Choice(kept[int(key(boxes).argmin())])
    if _MIDDLE.search(text):
        everyone = array([candidate.box for candidate in candidates])
        middle = (everyone[:, 0].min() + everyone[:, 2].max()) / 2
        return Choice(kept[int(abs((boxes[:, 0] + boxes[:, 2]) / 2 - middle).argmin())])
    return Choice(kept[int(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax())])
