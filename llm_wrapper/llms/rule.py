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

_PROMINENT = 0.15
"""People speak of objects that stand out: at least this share of the largest area among those named."""

_SMALL = re.compile(r"\b(small|little|tiny|baby|far|back|behind)")
_MIDDLE = re.compile(r"\b(middle|center|centre|between)\b")
_NUMBER = {"second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4}
_ORDINAL = re.compile(rf"\b({'|'.join(_NUMBER)})\b.*\b(left|right)\b")


def _mentions(label: str, words: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return (start, end, penalty) of every mention of a label; `end` is the place behind its last word."""
    return [
        (start, start + len(name), penalty)
        for name, penalty in names_of(label.lower()).items()
        for start in range(len(words) - len(name) + 1)
        if tuple(words[start : start + len(name)]) == name
    ]


def _named(candidates: Sequence[Candidate], expression: str) -> list[int]:
    """Return the candidates whose label heads the first noun group that names any; all where none is named."""
    words = [singular(word) for word in words_of(expression)]
    found = {label: _mentions(label, words) for label in {candidate.label for candidate in candidates}}
    mentions = sorted(mention for rows in found.values() for mention in rows)
    if not mentions:
        return list(range(len(candidates)))
    end = mentions[0][1]
    for start, stop, _ in mentions:  # "baseball player" is a player: the last noun of a group is its head
        end = max(end, stop) if start <= end else end
    penalties = {label: min((p for _, stop, p in rows if stop == end), default=None) for label, rows in found.items()}
    best = min(penalty for penalty in penalties.values() if penalty is not None)
    return [index for index, candidate in enumerate(candidates) if penalties[candidate.label] == best]


def _ordinal(text: str, boxes: FloatArray) -> int | None:
    """Return the place of "second from the left" and the like; None where nothing of that kind is said."""
    found = _ORDINAL.search(text)
    if found is None or int(_NUMBER[found[1]]) > len(boxes):
        return None
    order = boxes[:, [0, 2]].mean(axis=1).argsort(kind="stable")
    rank = _NUMBER[found[1]]
    return int(order[-rank] if found[2] == "right" else order[rank - 1])


def _by_words(text: str, boxes: FloatArray) -> int:
    """Return the place of the box that direction and size words mean; of the largest where there are none."""
    for pattern, key in _DIRECTIONS:
        if re.search(pattern, text):
            return int(key(boxes).argmin())
    centers = boxes[:, [0, 2]].mean(axis=1)
    if _MIDDLE.search(text):
        return int(abs(centers - (boxes[:, 0].min() + boxes[:, 2].max()) / 2).argmin())
    return int(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax())


def choose(expression: str, candidates: Sequence[Candidate]) -> Choice:
    """Choose a candidate by fixed rules; the choice carries no probability.

    Named first; of these the prominent ones, unless smallness or distance is spoken of; then "second from the left",
    direction and size words; else the largest.

    Args:
        expression: The referring expression.
        candidates: At least one candidate; their order matters only for exact ties.
    """
    if not candidates:
        return Choice(None, reason="no candidate")
    text = expression.lower()
    kept = _named(candidates, text)
    largest = max(candidates[index].box.area for index in kept)
    if not _SMALL.search(text):
        kept = [index for index in kept if candidates[index].box.area >= _PROMINENT * largest]
    boxes = array([candidates[index].box for index in kept])
    ordinal = _ordinal(text, boxes)
    return Choice(kept[_by_words(text, boxes) if ordinal is None else ordinal])
