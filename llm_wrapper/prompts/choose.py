"""Convert an LLM's answer to a choice; the only parser of answers."""

from __future__ import annotations

import re

from llm_wrapper.records import Answer, Choice

__all__ = ["NONE_OF_THESE", "NO_PROBABILITY", "choose"]

NO_PROBABILITY = "no_probability"
"""Reason where a server was asked for probabilities and gave none that can be used."""

NONE_OF_THESE = "none_of_these"
"""Reason of a choice that is an answer all the same: none of the candidates is meant."""


def choose(answer: Answer, num_candidates: int, *, none: bool = False, none_below: float | None = None) -> Choice:
    """Return the most probable index, or the first integer of a generated text.

    Args:
        answer: Probabilities (the first of equals wins), or a text.
        num_candidates: How many indices are candidates.
        none: Whether the index behind them is "none of these".
        none_below: A less probable choice becomes "none of these" too. A text has no probability, and stays.

    Returns:
        A choice without an index, and with the reason, where none is meant, or the text has no integer or one out of
        range. The probability of none is known only where it was an answer.

    Raises:
        ValueError: If there are more or fewer probabilities than answers.
    """
    if answer.probabilities is not None:
        if len(answer.probabilities) != num_candidates + none:
            asked = f"{num_candidates} candidates{' and none of these' if none else ''}"
            raise ValueError(f"{len(answer.probabilities)} probabilities for {asked}")
        best = max(answer.probabilities)
        index = answer.probabilities.index(best)
        if index == num_candidates or (none_below is not None and best < none_below):
            return Choice(None, answer.probabilities[-1] if none else None, NONE_OF_THESE)
        return Choice(index, best)
    if answer.text is None:
        return Choice(None, reason=NO_PROBABILITY)
    found = re.search(r"-?\d+", answer.text, flags=re.ASCII)
    if found is None:
        return Choice(None, reason="no_number")
    index = int(found[0][:1000])  # Python refuses to read numbers of more than 4,300 digits
    if none and index == num_candidates:
        return Choice(None, reason=NONE_OF_THESE)
    return Choice(index) if 0 <= index < num_candidates else Choice(None, reason="index_out_of_range")
