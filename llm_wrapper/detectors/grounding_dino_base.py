"""The input and output of both Grounding-DINOs: image -> pixels; expression -> text and words; logits -> scored boxes.

The model answers with `num_queries` boxes, and with one logit per box and token of the text: how alike the two are.
How a box is scored is a choice:

Mode `gd`, the detector as published: the score of a box is the highest probability over all tokens, boxes above
`box_threshold` are kept (source `gd`), and the label is the words above `text_threshold`.

Mode `gdrec` (arXiv 2409.11919): a box is scored by the tokens of one noun group of the expression, reduced to one
number (`reduction`, by default the least of them), and labelled with that group. Boxes enter from three sources, each
with its own threshold, and one box may enter from several:

- `subject`: the group that names the thing referred to. The detector's own answer is the best of these. An expression
  that names nothing ("far left one") is taken whole in the subject's place: scored and labelled as in mode `gd`, above
  `subject_threshold`.
- `noun_group`: the other groups, each scored by its own tokens: they tell the subject from others.
- `sentence`: the whole expression where it has a subject, scored and labelled as in mode `gd`. It is not reduced by the
  least, because hardly any box is like "left", "of" and "with" at once, and none would reach the threshold.

Scores of different sources are not comparable: the highest word is nearly always above the least word of a group. A
policy that ranks candidates by score should keep one source, or know this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import expit

from llm_wrapper.detectors import RawRow, detections_from_raw, joined, noun_groups
from llm_wrapper.detectors.noun_groups import NounGroups, Span
from llm_wrapper.errors import ModelError
from llm_wrapper.records import Detections

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.floating[Any]]

_STRIDES = (8, 16, 32, 64)
"""Pixels per cell of the four feature maps."""

_REDUCTIONS: dict[str, Callable[..., Floats]] = {"min": np.min, "max": np.max, "mean": np.mean}

_ONLY_IN = {
    "gd": ("box_threshold",),
    "gdrec": ("sentence_threshold", "subject_threshold", "noun_group_threshold", "reduction"),
}
"""Mode -> the settings that have a meaning in it alone."""


class Scoring(BaseModel):
    """How boxes are scored and which are kept; thresholds are probabilities, and a kept box is above them.

    `box_threshold` is 0.2, as in the code that made the paper's results; the first version of the paper says 0.15. The
    thresholds of `gdrec` are the paper's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["gd", "gdrec"] = "gd"
    box_threshold: float = Field(0.2, ge=0, lt=1)
    text_threshold: float = Field(0.05, ge=0, lt=1)
    sentence_threshold: float = Field(0.3, ge=0, lt=1)
    subject_threshold: float = Field(0.15, ge=0, lt=1)
    noun_group_threshold: float = Field(0.2, ge=0, lt=1)
    reduction: Literal["min", "max", "mean"] = "min"

    @model_validator(mode="after")
    def _fits_mode(self) -> Scoring:
        if given := sorted(self.model_fields_set & self._useless()):
            raise ValueError(f"mode {self.mode!r} makes no use of {', '.join(given)}: remove them or change the mode")
        return self

    def _useless(self) -> set[str]:
        return {name for mode, names in _ONLY_IN.items() if mode != self.mode for name in names}

    def identity(self) -> dict[str, Any]:
        """Return the mode, the settings that have a meaning in it, and the rules of noun groups where it uses them."""
        chosen = {name: getattr(self, name) for name in Scoring.model_fields if name not in self._useless()}
        return chosen | ({"noun_groups": noun_groups.identity()} if self.mode == "gdrec" else {})


@dataclass(frozen=True, slots=True)
class PreparedPixels:
    """An image as the model takes it: `pixels` (1, 3, height, width), `mask` (1, height, width), zero for padding."""

    pixels: torch.Tensor
    mask: torch.Tensor


def widen(image: Image.Image, longest: int) -> Image.Image:
    """Stretch an image that would have no width left when its length is shrunk to `longest` pixels.

    Boxes are parts of the image, so they stay right.
    """
    least = -(-max(image.size) // longest)
    return image if min(image.size) >= least else image.resize((max(image.width, least), max(image.height, least)))


def pad_to_queries(image: PreparedPixels, num_queries: int) -> PreparedPixels:
    """Pad an oblong image whose feature maps have fewer cells than the model has queries: it would refuse it."""
    from torch.nn.functional import pad

    height, width = image.pixels.shape[-2:]
    num_cells = sum(-(-height // stride) * -(-width // stride) for stride in _STRIDES)
    if num_cells >= num_queries:
        return image
    padding = (0, max(0, _STRIDES[-1] - width), 0, max(0, _STRIDES[-1] - height))
    return PreparedPixels(pad(image.pixels, padding), pad(image.mask, padding))


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the text: characters `start` up to, not including, `end`, and the places of its tokens."""

    start: int
    end: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text as the model reads it, and its words; special tokens and the final period belong to no word."""

    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The model's answer about one text.

    Attributes:
        probabilities: (num_queries, num_places) in 0..1; zero for padding.
        boxes: (num_queries, 4) xyxy in pixels of the image.
    """

    probabilities: Floats
    boxes: Floats


def fit_expression(expression: str, tokenizer: Any, most_tokens: int) -> tuple[str, bool]:
    """Return an expression in the form in which the model reads it, without the final period, and if it was cut.

    Lower case, and one space between words. The model takes "." and "?" for the border between two phrases, which then
    know nothing of each other: inside an expression both become spaces, so that it stays one phrase. "##" needs
    nothing: the tokenizer reads it as two number signs, and words are separated by their characters, never by their
    tokens. A text that is too long loses whole words at its end, so that it still ends with a period: without one the
    model lets no word see another.

    Args:
        expression: Any text.
        tokenizer: The model's fast tokenizer.
        most_tokens: What the model takes, special tokens and period included.
    """
    whole = expression.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is refused by the tokenizer
    text = " ".join(whole.lower().replace(".", " ").replace("?", " ").split())
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)
    room = most_tokens - 3  # [CLS], the period and [SEP]
    if len(tokens["input_ids"]) <= room:
        return text, False
    return text[: tokens.word_to_chars(tokens.token_to_word(room)).start].rstrip(), True


def read_caption(text: str, offsets: Sequence[tuple[int, int]], word_numbers: Sequence[int | None]) -> ReadText:
    """Gather the tokens of each word.

    Args:
        text: What `fit_expression` gave.
        offsets: Per token of "text." its first character and the one behind its last.
        word_numbers: Per token the number of its word; `None` for special tokens and padding.
    """
    places: dict[int, list[int]] = {}
    for place, number in enumerate(word_numbers):
        if number is not None and offsets[place][0] < len(text):
            places.setdefault(number, []).append(place)
    words = (Word(offsets[of[0]][0], offsets[of[-1]][1], tuple(of)) for of in places.values())
    return ReadText(text, tuple(words))


def decode_answer(logits: Floats, boxes: Floats, image_wh: tuple[int, int]) -> RawAnswer:
    """Turn what the model gives into probabilities and pixels.

    Args:
        logits: (num_queries, num_places); minus infinity for padding.
        boxes: (num_queries, 4): center x, center y, width, height, as parts of the image.
        image_wh: Width and height in pixels.

    Raises:
        ModelError: If a value is NaN: the boxes would silently vanish.
    """
    if np.isnan(logits).any() or np.isnan(boxes).any():
        raise ModelError("the detector's answer is not a number; use detector.settings.dtype=float32")
    center, size = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    corners = np.concatenate([center - size / 2, center + size / 2], axis=1) * np.array([*image_wh, *image_wh])
    probabilities: Floats = expit(logits)
    return RawAnswer(probabilities, corners)


def score_output(
    logits: Floats, boxes: Floats, text: ReadText, *, image_wh: tuple[int, int], scoring: Scoring
) -> Detections:
    """Score the model's output about one text; see `decode_answer` and `score_answer`."""
    groups = noun_groups.find_noun_groups(text.text) if scoring.mode == "gdrec" else None
    return score_answer(decode_answer(logits, boxes, image_wh), text, groups, scoring)


def score_answer(answer: RawAnswer, text: ReadText, groups: NounGroups | None, scoring: Scoring) -> Detections:
    """Score an answer; the boxes of each source are in the order of falling score, the subject's first.

    `groups` are the noun groups of the text, for mode `gdrec`. A text without words, such as control characters, which
    the tokenizer drops, has no detections.
    """

    def by_sentence(source: str, threshold: float) -> Detections:
        """Return the boxes that are like any token, special ones included, as the detector was published."""
        scores = answer.probabilities.max(axis=1)
        rows: list[RawRow] = []
        for i in np.flatnonzero(scores > threshold):
            label = _label(answer.probabilities[i], text, scoring.text_threshold)
            rows.append((answer.boxes[i].tolist(), label, float(scores[i])))
        return _sorted(rows, source)

    if not text.words:
        return Detections(())
    if groups is None:
        return by_sentence("gd", scoring.box_threshold)
    reduce, threshold = _REDUCTIONS[scoring.reduction], scoring.noun_group_threshold
    others = [row for span in groups.others for row in _by_group(answer, text, span, reduce, threshold)]
    noun_group = _sorted(others, "noun_group")
    if groups.subject is None:
        return joined([by_sentence("subject", scoring.subject_threshold), noun_group])
    subject = _by_group(answer, text, groups.subject, reduce, scoring.subject_threshold)
    return joined([_sorted(subject, "subject"), noun_group, by_sentence("sentence", scoring.sentence_threshold)])


def _by_group(
    answer: RawAnswer, text: ReadText, span: Span, reduce: Callable[..., Floats], threshold: float
) -> list[RawRow]:
    """Return the boxes that are like the words of a span."""
    places = [place for word in text.words if word.start < span.end and span.start < word.end for place in word.places]
    if not places:
        return []
    scores = reduce(answer.probabilities[:, places], axis=1)
    kept = np.flatnonzero(scores > threshold)
    return [(answer.boxes[i].tolist(), span.of(text.text), float(scores[i])) for i in kept]


def _sorted(rows: list[RawRow], source: str) -> Detections:
    return detections_from_raw(sorted(rows, key=lambda row: -(row[2] or 0.0)), source)


def _label(probabilities: Floats, text: ReadText, threshold: float) -> str:
    """Return the words of which any token is above the threshold, or the best one where none is."""
    best = [max(probabilities[place] for place in word.places) for word in text.words]
    chosen = [word for word, value in zip(text.words, best, strict=True) if value > threshold]
    if not chosen:
        chosen = [text.words[int(np.argmax(best))]]
    return " ".join(text.text[word.start : word.end] for word in chosen)
