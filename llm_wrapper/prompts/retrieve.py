"""Retrieved examples: the training expressions nearest to a question's, with candidates like its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from llm_wrapper.boxes import FloatArray
from llm_wrapper.prompts.examples import Exemplar
from llm_wrapper.prompts.render import PromptInput
from llm_wrapper.prompts.same_picture import Pictures
from llm_wrapper.prompts.text import clean_label
from llm_wrapper.records import Candidate

__all__ = ["Embed", "NearestExamples"]

Embed = Callable[[Sequence[str]], Any]
"""Texts -> rows of length 1, shape (n, d): an array, or a sparse matrix. The product of two rows is their nearness."""

_CHUNK = 128
"""Questions compared with the whole pool at a time; with 80,000 expressions that takes 80 MB."""

_UNLIKE = 4.0
"""Taken off the nearness (-1 to 1) of what has other candidates, so that it comes after all that has like ones."""


class NearestExamples:
    """Show each question the training expressions nearest to its own, the nearest last.

    Those whose candidates are like the question's come before all others: at least half as many and at most twice as
    many, and at least one label in common. Of equally near ones the first of the pool is taken. None shows the
    question's own image, so there may be fewer than `count`.

    Args:
        pool: The examples to choose from; embedded once.
        count: Examples of a question.
        embed: Turns texts into vectors.
    """

    def __init__(self, pool: Sequence[Exemplar], count: int, embed: Embed) -> None:
        self._pool, self._count, self._embed = pool, count, embed
        self._vectors = embed([each.sample.expression for each in pool])
        self._pictures = Pictures([each.sample for each in pool])
        self._likeness = _Likeness([each.candidates for each in pool])

    def select(self, questions: Sequence[PromptInput]) -> list[list[Exemplar]]:
        """Return the examples of each question, the nearest last."""
        chosen = []
        for chunk in _chunks(questions):
            near = _dense(self._embed([sample.expression for sample, _ in chunk]) @ self._vectors.T)
            near[~self._likeness.alike([candidates for _, candidates in chunk])] -= _UNLIKE
            for row, (sample, _) in zip(near, chunk, strict=True):
                row[list(self._pictures.places_of(sample))] = -np.inf
                chosen.append([self._pool[i] for i in reversed(_best(row, self._count))])
        return chosen


def _chunks(questions: Sequence[PromptInput]) -> Iterator[Sequence[PromptInput]]:
    return (questions[start : start + _CHUNK] for start in range(0, len(questions), _CHUNK))


def _dense(product: Any) -> FloatArray:
    dense: FloatArray = product.toarray() if sparse.issparse(product) else np.asarray(product)
    return dense.astype(np.float64)


def _best(row: FloatArray, count: int) -> list[int]:
    """Return the places of the highest values, highest first, the earlier of equals first; none that is -inf."""
    count = min(count, int(np.isfinite(row).sum()))
    if count == 0:
        return []
    places = np.flatnonzero(row >= np.partition(row, -count)[-count])
    order = np.argsort(-row[places], kind="stable")[:count]
    return [int(place) for place in places[order]]


class _Likeness:
    """Compares the candidates of questions with those of the pool, by their number and their labels."""

    def __init__(self, pool: Sequence[Sequence[Candidate]]) -> None:
        labels = sorted({label for each in pool for label in _labels(each)})
        self._columns = {label: column for column, label in enumerate(labels)}
        self._counts = np.array([len(each) for each in pool])
        self._has = self._rows(pool)

    def _rows(self, many: Sequence[Sequence[Candidate]]) -> sparse.csr_matrix:
        """Return (n, labels): 1 where there is a candidate of that label."""
        columns = [[self._columns[label] for label in _labels(each) if label in self._columns] for each in many]
        ends = np.cumsum([0, *map(len, columns)])
        flat = [column for row in columns for column in row]
        return sparse.csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(many), len(self._columns)))

    def alike(self, many: Sequence[Sequence[Candidate]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return (n, pool): whether the numbers are within a factor of two and a label is in common."""
        counts = np.array([len(each) for each in many])[:, None]
        fits = (counts <= 2 * self._counts) & (self._counts <= 2 * counts)
        shared: np.ndarray[Any, np.dtype[np.bool_]] = (self._rows(many) @ self._has.T).toarray() > 0
        return fits & shared


def _labels(candidates: Sequence[Candidate]) -> list[str]:
    return sorted({clean_label(each.label) for each in candidates})
