"""Few-shot examples: training expressions with their answers, shown before the question.

pool of exemplars --FixedExamples / NearestExamples--> examples of a question, never of the same image
"""

from __future__ import annotations

import os
import random
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from llm_wrapper.boxes import FloatArray
from llm_wrapper.prompts.render import Exemplar, PromptInput
from llm_wrapper.prompts.text import clean_label, clean_text
from llm_wrapper.records import Candidate, Sample
from llm_wrapper.storage import digest


def draw_examples(pool: Sequence[Exemplar], count: int, *, seed: int) -> list[Exemplar]:
    """Draw up to `count` examples of different images, whose answers are spread evenly over the indices.

    An LLM tends to repeat the answers that it has seen. The draw does not depend on the order of the pool.
    """
    rng = random.Random(seed)
    remaining = sorted(pool, key=lambda each: each.sample.sample_id)
    rng.shuffle(remaining)
    drawn: list[Exemplar] = []
    used: Counter[int] = Counter()
    while remaining and len(drawn) < count:
        best = min(remaining, key=lambda each: used[each.index])
        drawn.append(best)
        used[best.index] += 1
        remaining = [each for each in remaining if each.sample.image_id != best.sample.image_id]
    return drawn


class FixedExamples:
    """Show every question the same examples, so that the questions of one image share all of them."""

    def __init__(self, pool: Sequence[Exemplar], count: int, *, seed: int) -> None:
        self._count = count
        self._drawn = draw_examples(pool, count + 1, seed=seed)  # one more: it replaces one of a question's own image
        self._images = _ImageIndex([each.sample for each in self._drawn])

    def select(self, questions: Sequence[PromptInput]) -> list[list[Exemplar]]:
        """Return the first `count` examples that do not show the question's image."""
        own = [self._images.indices_of(sample) for sample, _ in questions]
        return [[each for i, each in enumerate(self._drawn) if i not in indices][: self._count] for indices in own]


Embed = Callable[[Sequence[str]], Any]
"""Texts -> unit rows (n, d), an array or a sparse matrix; the dot product of two rows is their similarity."""

_CHUNK = 128
"""Questions compared with the whole pool at once; 80 MB with 80,000 expressions."""

_UNLIKE = 4.0
"""Subtracted from the similarity (-1 to 1) of an exemplar with other candidates, so that it comes after all others."""


class NearestExamples:
    """Show each question the training expressions nearest to its own, the nearest last.

    Exemplars with similar candidates come before all others: at least half and at most twice as many, and at least one
    label in common. Ties go to the first of the pool. None shows the question's own image.
    """

    def __init__(self, pool: Sequence[Exemplar], count: int, embed: Embed) -> None:
        self._pool, self._count, self._embed = pool, count, embed
        self._vectors = embed([each.sample.expression for each in pool])
        self._images = _ImageIndex([each.sample for each in pool])
        self._columns = {
            label: i for i, label in enumerate(sorted({label for each in pool for label in _labels(each.candidates)}))
        }
        self._num_candidates = np.array([len(each.candidates) for each in pool])
        self._has_label = self._label_rows([each.candidates for each in pool])

    def select(self, questions: Sequence[PromptInput]) -> list[list[Exemplar]]:
        """Return the examples of each question, the nearest last."""
        chosen = []
        for start in range(0, len(questions), _CHUNK):
            chunk = questions[start : start + _CHUNK]
            product = self._embed([sample.expression for sample, _ in chunk]) @ self._vectors.T
            near = np.asarray(product.toarray() if sparse.issparse(product) else product).astype(np.float64)
            near[~self._are_alike([candidates for _, candidates in chunk])] -= _UNLIKE
            for row, (sample, _) in zip(near, chunk, strict=True):
                row[list(self._images.indices_of(sample))] = -np.inf
                chosen.append([self._pool[i] for i in reversed(_find_highest(row, self._count))])
        return chosen

    def _label_rows(self, many: Sequence[Sequence[Candidate]]) -> sparse.csr_matrix:
        """Return (n, labels): 1 where there is a candidate of that label."""
        columns = [[self._columns[label] for label in _labels(each) if label in self._columns] for each in many]
        ends = np.cumsum([0, *map(len, columns)])
        flat = [column for row in columns for column in row]
        return sparse.csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(many), len(self._columns)))

    def _are_alike(self, many: Sequence[Sequence[Candidate]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return (n, pool): whether the numbers are within a factor of two and a label is in common."""
        counts = np.array([len(each) for each in many])[:, None]
        fits = (counts <= 2 * self._num_candidates) & (self._num_candidates <= 2 * counts)
        shared: np.ndarray[Any, np.dtype[np.bool_]] = (self._label_rows(many) @ self._has_label.T).toarray() > 0
        return fits & shared


def _labels(candidates: Sequence[Candidate]) -> list[str]:
    return sorted({clean_label(each.label) for each in candidates})


def _find_highest(row: FloatArray, count: int) -> list[int]:
    """Return the indices of the highest finite values, highest first, ties in order."""
    count = min(count, int(np.isfinite(row).sum()))
    if count == 0:
        return []
    indices = np.flatnonzero(row >= np.partition(row, -count)[-count])
    return [int(i) for i in indices[np.argsort(-row[indices], kind="stable")[:count]]]


def fit_tfidf(texts: Sequence[str]) -> Embed:
    """Fit TF-IDF over words and character trigrams; it needs no model and gives the same on every machine.

    Returns:
        An embedder: (n, parts) sparse, rows of length 1, or zero where a text has no known part.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    parts = sorted({part for text in texts for part in _split_parts(text)}) or [""]  # it refuses an empty vocabulary
    embed: Embed = TfidfVectorizer(analyzer=_split_parts, sublinear_tf=True, vocabulary=parts).fit(texts).transform
    return embed


def _split_parts(text: str) -> list[str]:
    """Return the words (`=dog`), and the trigrams of each word with its borders."""
    words = re.findall(r"\w+", clean_text(text).lower())
    padded = [f" {word} " for word in words]
    return [*(f"={word}" for word in words), *(word[i : i + 3] for word in padded for i in range(len(word) - 2))]


class _ImageIndex:
    """Find samples of one image, so that an example never gives a question's answer away.

    By image id, by path, and by content where two files have the same size. Ids of two data sets may be equal by
    chance; then an example is skipped for nothing, which does no harm.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._digest = cache(lambda path: digest(Path(path)))
        self._by_id: dict[str, list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            self._by_id[sample.image_id].append(i)

    def indices_of(self, sample: Sample) -> frozenset[int]:
        """Return the indices of all samples that show the image of this one."""
        same = set(self._by_id.get(sample.image_id, ()))
        path, size = _find_file(sample.image_path)
        others = self._by_size.get(size, {})
        # Not cached: another image may have this file's name the next time.
        content = digest(Path(path)) if others.keys() - {path} else None
        for other, indices in others.items():
            if other == path or self._digest(other) == content:
                same.update(indices)
        return frozenset(same)

    @cached_property
    def _by_size(self) -> dict[int, dict[str, list[int]]]:
        """Size of a file in bytes -> path -> indices."""
        of_path: dict[str | None, list[int]] = defaultdict(list)
        for i, sample in enumerate(self._samples):
            of_path[sample.image_path].append(i)
        by_size: dict[int, dict[str, list[int]]] = defaultdict(dict)
        for image_path, indices in of_path.items():
            path, size = _find_file(image_path)
            if size >= 0:
                by_size[size].setdefault(path, []).extend(indices)
        return by_size


def _find_file(image_path: str | None) -> tuple[str, int]:
    """Return the real path of an image and its size in bytes; -1 where there is no such file."""
    try:
        path = os.path.realpath(image_path or "")
        info = os.stat(path)
    except (OSError, ValueError):
        return "", -1
    return path, info.st_size if stat.S_ISREG(info.st_mode) else -1  # reading a pipe never ends
