"""Keep the history of a search on disk: one JSON line for each evaluation, written before the next one begins.

The first line of `history.jsonl` identifies the expressions, so that a search is never resumed on others.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from llm_wrapper import readers
from llm_wrapper.errors import DataError, LLMWrapperError, RunError, shell_word
from llm_wrapper.records import to_dict
from llm_wrapper.storage import inside

__all__ = [
    "EvaluatedPrompt",
    "History",
    "HistoryRow",
    "RefusedProposal",
    "SearchCost",
    "SearchStart",
    "Verdict",
    "read_bits",
    "write_bits",
]

_log = logging.getLogger(__name__)
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Share = Annotated[float, Field(ge=0, le=1)]

Verdict = Literal["open", "stopped", "complete"]
"""Still being measured, surely worse than the best on the first expressions, or measured on all."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class SearchStart:
    """The first row: the digest of the expressions in their order, and their number."""

    expressions: str
    n: int
    kind: Literal["begun"] = "begun"


@dataclass(frozen=True, slots=True, config=_STRICT)
class SearchCost:
    """The cost of a row: tokens that the proposing LLM wrote (None if unknown), questions to measure, seconds."""

    tokens: int | None
    questions: int
    seconds: float


@dataclass(frozen=True, slots=True, config=_STRICT)
class EvaluatedPrompt:
    """A prompt measured on the first expressions of the slice; a later row of the same prompt holds more of them.

    Attributes:
        prompt: The text.
        iteration: Round of the proposal; 0 for the seed prompt.
        number: Of the proposal in its round, from 0.
        right: A `1` or `0` for each expression so far, in the order of the slice.
        fitness: Share of `1`.
        n: Expressions so far.
        interval: 95 % interval of the fitness over images; `None` where there is one image only.
        verdict: See `Verdict`.
        alpha: Strength of activation steering; `None` without.
        cost: Of this row alone; the first row of a prompt has the tokens.
    """

    prompt: str
    iteration: int
    number: int
    right: Annotated[str, Field(pattern="^[01]+$")]
    fitness: _Share
    n: int
    interval: tuple[_Share, _Share] | None
    verdict: Verdict
    alpha: float | None
    cost: SearchCost
    kind: Literal["evaluated"] = "evaluated"

    def __post_init__(self) -> None:
        if self.n != len(self.right) or self.fitness != self.right.count("1") / self.n:
            raise ValueError(f"fitness {self.fitness} of {self.n} is not the share of 1 in {self.right[:20]!r}")


@dataclass(frozen=True, slots=True, config=_STRICT)
class RefusedProposal:
    """A proposal that was not measured, and why; of a long answer the beginning is kept, and its length."""

    iteration: int
    number: int
    answer: str
    length: int
    reasons: tuple[str, ...]
    alpha: float | None
    cost: SearchCost
    kind: Literal["refused"] = "refused"


HistoryRow = SearchStart | EvaluatedPrompt | RefusedProposal
_ROW: TypeAdapter[HistoryRow] = TypeAdapter(Annotated[HistoryRow, Field(discriminator="kind")])


def read_bits(row: EvaluatedPrompt) -> list[bool]:
    """Return whether a prompt was right, for each expression so far."""
    return [bit == "1" for bit in row.right]


def write_bits(right: Sequence[bool]) -> str:
    """Return truth values as `Evaluated.right` holds them."""
    return "".join("1" if each else "0" for each in right)


class History:
    """The rows of a search, in memory and on disk.

    A last line without an end, as a killed process leaves, is dropped with a warning and overwritten by the next row.
    Any other damage is refused, as a search that misses a row would take another course.

    Args:
        path: The file; it need not exist.

    Raises:
        RunError: If a line that is not the last cannot be read; the message has its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _content(path)
        whole, newline, rest = content.rpartition(b"\n")
        self._length = len(whole) + len(newline)
        if rest:
            _log.warning("%s: the last line was cut off (%d bytes) and is ignored", path, len(rest))
        lines = whole.split(b"\n") if newline else []
        self.rows: list[HistoryRow] = [_row(path, number, line) for number, line in enumerate(lines, start=1)]

    def add(self, row: HistoryRow) -> None:
        """Write a row and flush it to disk.

        Raises:
            LLMWrapperError: If it cannot be written; the complete rows stay.
        """
        line = json.dumps(to_dict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "xb") as stream:
                stream.truncate(self._length)
                stream.seek(self._length)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise LLMWrapperError(
                f"{self.path} cannot be written: {error.strerror or error}. Correct that; the same command resumes."
            ) from error
        self._length += len(line)
        self.rows.append(row)

    @property
    def evaluated(self) -> list[EvaluatedPrompt]:
        """All measurements, in their order."""
        return [row for row in self.rows if isinstance(row, EvaluatedPrompt)]

    @property
    def refused(self) -> list[RefusedProposal]:
        """All refused proposals, in their order."""
        return [row for row in self.rows if isinstance(row, RefusedProposal)]

    def begin(self, begun: SearchStart) -> None:
        """Write the first row, or refuse a history of other expressions (RunError)."""
        if not self.rows:
            self.add(begun)
        elif self.rows[0] != begun:
            raise RunError(
                f"{self.path} was measured on other expressions or other candidates than there are now (or its first "
                f"line is missing). Start again: rm {shell_word(self.path)}"
            )


def _content(path: Path) -> bytes:
    try:
        # A link would let a search write to a file elsewhere.
        return readers.read_bytes(inside(path.parent, path.name)) if path.exists() else b""
    except DataError as error:
        raise RunError(str(error)) from error


def _row(path: Path, number: int, line: bytes) -> HistoryRow:
    try:
        return _ROW.validate_python(readers.parse_json(line, f"{path}, line {number}"))
    except (ValueError, DataError) as error:
        why = "; ".join(each["msg"] for each in error.errors()) if isinstance(error, ValidationError) else error
        raise RunError(
            f"{path}, line {number}, is damaged: {why}. Restore the file, or start again without it: "
            f"rm {shell_word(path)}"
        ) from error
