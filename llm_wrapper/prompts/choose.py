"""Answer -> Choice. The only parser of answers."""

from __future__ import annotations

import re

from llm_wrapper.records import Answer, Choice

__all__ = ["choose"]


def choose(answer: Answer, num_candidates: int) -> Choice:
    """Return the most probable index, or the first integer of a generated text.

    Args:
        answer: Probabilities (the first of equals wins), or a text.
        num_candidates: How many indices are valid.

    Returns:
        A choice without an index, and with the reason, where the text has no integer or one out of range.
    """
    if answer.probabilities is not None:
        best = max(answer.probabilities)
        return Choice(answer.probabilities.index(best), best)
    found = re.search(r"-?\d+", answer.text or "", flags=re.ASCII)
    if found is None:
        return Choice(None, reason="no_number")
    index = int(found[0][:1000])  # Python refuses to read numbers of more than 4,300 digits
    return Choice(index) if 0 <= index < num_candidates else Choice(None, reason="index_out_of_range")
