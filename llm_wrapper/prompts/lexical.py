"""Texts as TF-IDF vectors over words and character trigrams: nearness without a model, the same on every machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llm_wrapper.boxes import FloatArray
from llm_wrapper.prompts.text import clean

__all__ = ["Lexical"]


class Lexical:
    """Embeds texts by what they have in common with those that it was made with.

    A word or trigram counts the more the fewer of those texts have it (TF-IDF, its frequency on a logarithmic scale);
    what none of them has does not count.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        documents = Counter(part for text in texts for part in set(_parts(text)))
        self._columns = {part: column for column, part in enumerate(sorted(documents))}
        counts = np.array([documents[part] for part in self._columns], dtype=np.float64)
        self._weights: FloatArray = np.log((1 + len(texts)) / (1 + counts)) + 1

    def __call__(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return one row per text of shape (n, parts), of length 1; of a text without any known part it is zero."""
        found = [
            [(self._columns[part], count) for part, count in _parts(text).items() if part in self._columns]
            for text in texts
        ]
        columns = np.array([column for row in found for column, _ in row], dtype=np.int64)
        counts = np.array([count for row in found for _, count in row], dtype=np.float64)
        rows = np.repeat(np.arange(len(found)), [len(row) for row in found])
        values = (1 + np.log(counts)) * self._weights[columns]
        lengths = np.sqrt(np.bincount(rows, weights=values**2, minlength=len(found)))
        shape = (len(found), len(self._columns))
        return sparse.csr_matrix((values / lengths[rows], (rows, columns)), shape=shape)


def _parts(text: str) -> Counter[str]:
    """Count the words, and the trigrams of each word with its borders."""
    words = re.findall(r"\w+", clean(text).lower())
    padded = [f" {word} " for word in words]
    trigrams = [word[start : start + 3] for word in padded for start in range(len(word) - 2)]
    return Counter([*(f"={word}" for word in words), *trigrams])
