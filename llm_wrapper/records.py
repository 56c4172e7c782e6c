"""The typed records that a sample becomes on its way from image to P@1.

Each record is frozen, validates itself, refuses unknown keys and round-trips through plain Python data
(`to_dict`, `from_dict`), so JSON and Arrow need no further code. A value that is not known is `None`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")
_Record = TypeVar("_Record")

MAX_EXPRESSION = 10_000
"""Characters of an expression; the longest of the data sets that are read here have some hundred words."""

DecidedBy = Literal["detector", "rule", "llm", "single_candidate", "no_candidate", "fallback", "oracle", "missing"]
"""Who chose the box; `fallback` is the detector's top-1 box after an unusable answer, `missing` a prediction that was
expected and never made."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Box:
    """An axis-aligned box: xyxy, float pixels of the original image, origin at the top left; it has an area."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.xyxy):
            raise ValueError(f"box {self.xyxy} has a coordinate that is not finite")
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"box {self.xyxy} is reversed or has no area (x0 < x1 and y0 < y1 are required)")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """The four coordinates (x0, y0, x1, y1) in pixels."""
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def area(self) -> float:
        """Area in square pixels; always positive."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    @property
    def center(self) -> tuple[float, float]:
        """Center (x, y) in pixels."""
        return ((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)


@dataclass(frozen=True, slots=True, config=_STRICT)
class Sample:
    """One expression about one object of one image.

    `target` is `None` where the data has no box (prediction, or an expression that nothing fits). `image_path` is
    `None` where the data set has no image files; `image_wh` is (width, height) in pixels. `kind` is the data set's
    own tag of the expression, if it has one. `further_targets` are the boxes of the other objects meant, where an
    expression means several; `target` is then the first.
    """

    sample_id: str
    ref_id: str
    image_id: str
    image_path: str | None
    image_wh: tuple[int, int]
    expression: str
    target: Box | None
    kind: str | None = None
    further_targets: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.further_targets and self.target is None:
            raise ValueError(f"sample {self.sample_id!r} has further targets, but no target")


@dataclass(frozen=True, slots=True, config=_STRICT)
class Detection:
    """One raw output of a detector; `source` is the detector's task that produced it, `score` is in 0..1."""

    box: Box
    label: str
    score: float | None
    source: str

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"score {self.score} of {self.label!r} is not finite")


@dataclass(frozen=True, slots=True, config=_STRICT)
class Detections:
    """A detector's output for one sample, in the detector's own order.

    `num_dropped` counts outputs that could not become a `Box` (reversed, not finite, no area).
    """

    items: tuple[Detection, ...]
    num_dropped: int = 0


@dataclass(frozen=True, slots=True, config=_STRICT)
class Candidate:
    """A detection that was kept and can be chosen; its index is its place in the prompt's candidates."""

    box: Box
    label: str
    score: float | None
    detector: str
    source: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class Message:
    """One turn of a conversation, without any special token."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class Prompt:
    """A question to the LLM. `candidates` are in the order shown: index i is line i.

    With `none`, one more line says "none of these", and its index is the number of candidates.
    """

    sample_id: str
    messages: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    format: str
    none: bool = False

    @property
    def num_answers(self) -> int:
        """How many indices are valid answers, from 0."""
        return len(self.candidates) + self.none


@dataclass(frozen=True, slots=True, config=_STRICT)
class Answer:
    """An LLM's answer: a probability per index, or a text with the reason why it ended.

    `probabilities` sums to one over the valid answers: the candidates and, where the prompt offers it, "none of these"
    behind them. `mass` is the probability of all valid answers together before that normalization. `reasoning` is the
    text before the answer, and `num_tokens` counts the generated tokens of both, where that is known.
    """

    probabilities: tuple[float, ...] | None = None
    mass: float | None = None
    text: str | None = None
    finish_reason: str | None = None
    reasoning: str | None = None
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True, config=_STRICT)
class Choice:
    """The chosen index with its probability, or the reason why there is none."""

    index: int | None
    probability: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, config=_STRICT)
class Prediction:
    """One system's decision for one sample, with all that is needed to score it again.

    `candidates` are in the order shown to the system, and `origins` are their indices among the detector's outputs;
    `failure` names why a fallback was needed. `probability` is that of the answer, `probabilities` is one per
    candidate, and `none_probability` is the rest, where "none of these" was an answer. `further_targets` and
    `image_wh` are those of the sample, `reasoning`, `num_tokens` and `mass` those of the answer.
    """

    system: str
    sample_id: str
    image_id: str
    expression: str
    kind: str | None
    target: Box | None
    box: Box | None
    decided_by: DecidedBy
    probability: float | None
    probabilities: tuple[float, ...] | None
    failure: str | None
    candidates: tuple[Candidate, ...]
    origins: tuple[int, ...] | None = None
    further_targets: tuple[Box, ...] = ()
    image_wh: tuple[int, int] | None = None
    reasoning: str | None = None
    num_tokens: int | None = None
    none_probability: float | None = None
    mass: float | None = None

    @property
    def says_none(self) -> bool:
        """Whether the answer is "none of these": no box, and not for want of an answer."""
        return self.decided_by == "llm" and self.box is None

    def __post_init__(self) -> None:
        if self.further_targets and self.target is None:
            raise ValueError(f"prediction for {self.sample_id!r} has further targets, but no target")
        if self.origins is not None and len(self.origins) != len(self.candidates):
            raise ValueError(
                f"prediction for {self.sample_id!r}: {len(self.origins)} origins of {len(self.candidates)} candidates"
            )


def to_dict(record: Any) -> dict[str, Any]:
    """Return a record as plain dicts, tuples and scalars."""
    return asdict(record)


def from_dict(kind: type[_Record], data: Mapping[str, Any]) -> _Record:
    """Build a record from plain data; unknown keys and wrong types raise pydantic's ValidationError."""
    return TypeAdapter(kind).validate_python(dict(data))
