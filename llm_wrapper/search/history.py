"""Keep the history of a search on disk, one JSON line an evaluation, and rank all prompts by it.

The first line of `history.jsonl` identifies the expressions, so that a search is never resumed on others. Each line is
written before the next evaluation begins.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from llm_wrapper import readers
from llm_wrapper.errors import DataError, LLMWrapperError, RunError, shell_word
from llm_wrapper.records import to_dict
from llm_wrapper.storage import inside

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
    """A prompt measured on the first expressions of the slice; a later row of the same prompt holds more of them."""

    prompt: str
    iteration: int  # round of the proposal; 0 for the seed prompt
    number: int  # of the proposal in its round, from 0
    right: Annotated[str, Field(pattern="^[01]+$")]  # for each expression so far, in the order of the slice
    fitness: _Share  # share of `1` in `right`
    n: int  # expressions so far
    interval: tuple[_Share, _Share] | None  # 95 %, of the fitness over images; None where there is one image only
    verdict: Verdict
    alpha: float | None  # strength of activation steering; None without
    cost: SearchCost  # of this row alone; the first row of a prompt has the tokens
    kind: Literal["evaluated"] = "evaluated"

    def __post_init__(self) -> None:
        if self.n != len(self.right) or self.fitness != self.right.count("1") / self.n:
            raise ValueError(f"fitness {self.fitness} of {self.n} is not the share of 1 in {self.right[:20]!r}")

    @property
    def is_right(self) -> list[bool]:
        """Whether the prompt was right, for each expression so far."""
        return [bit == "1" for bit in self.right]


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


class History:
    """The rows of a search, in memory and on disk; the file need not exist.

    A last line without an end, as a killed process leaves, is dropped with a warning and overwritten by the next row.
    Any other damage is refused with the line's number (RunError): a search that misses a row would take another course.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[HistoryRow] = []
        try:
            # A link would let a search write to a file elsewhere.
            content = readers.read_bytes(inside(path.parent, path.name)) if path.exists() else b""
        except DataError as error:
            raise RunError(str(error)) from error
        whole, newline, rest = content.rpartition(b"\n")
        self._length = len(whole) + len(newline)
        if rest:
            _log.warning("%s: the last line was cut off (%d bytes) and is ignored", path, len(rest))
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            try:
                self.rows.append(_ROW.validate_python(readers.parse_json(line, f"{path}, line {number}")))
            except (ValueError, DataError) as error:
                why = "; ".join(each["msg"] for each in error.errors()) if isinstance(error, ValidationError) else error
                raise RunError(
                    f"{path}, line {number}, is damaged: {why}. Restore the file, or start again without it: "
                    f"rm {shell_word(path)}"
                ) from error

    def add(self, row: HistoryRow) -> None:
        """Write a row and flush it to disk; LLMWrapperError if it cannot be written, and the complete rows stay."""
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


class Leaderboard:
    """The last measurement of each prompt in a history's rows, ranked; only of rounds before `before`.

    All prompts see the same expressions in the same order, but surely worse ones only the first of them. So prompts are
    ranked by their gain over the seed prompt on the expressions that they saw, ties in order of time. Among complete
    prompts this is the ranking by fitness.
    """

    def __init__(self, rows: Iterable[HistoryRow], before: int | None = None) -> None:
        self._last: dict[str, EvaluatedPrompt] = {}
        completed: dict[str, EvaluatedPrompt] = {}
        for row in rows:
            if isinstance(row, EvaluatedPrompt) and (before is None or row.iteration < before):
                self._last[row.prompt] = row  # the place of the first row of a prompt is kept
                if row.verdict == "complete":
                    completed[row.prompt] = row
        self._completed = list(completed.values())
        self.seed = next((row for row in self._completed if row.iteration == 0), None)
        """The seed prompt, if it has been measured on everything."""

    def get(self, prompt: str) -> EvaluatedPrompt | None:
        """Return the last measurement of a prompt, if there is any."""
        return self._last.get(prompt)

    def gain(self, row: EvaluatedPrompt) -> float:
        """Return the gain of a prompt over the seed prompt on the expressions that it saw."""
        return (row.right.count("1") - (self.seed.right[: row.n].count("1") if self.seed else 0)) / row.n

    def expected(self, row: EvaluatedPrompt) -> float:
        """Return the fitness of a complete prompt; of others the seed prompt's plus the gain over it."""
        if self.seed is None or row.verdict == "complete":
            return row.fitness
        return min(1.0, max(0.0, self.seed.fitness + self.gain(row)))

    def ranked(self) -> list[EvaluatedPrompt]:
        """Return all prompts, the best first."""
        return sorted(self._last.values(), key=self.gain, reverse=True)  # sorting keeps the order of equals

    def complete(self) -> list[EvaluatedPrompt]:
        """Return the prompts measured on everything, the best first."""
        return [row for row in self.ranked() if row.verdict == "complete"]

    def best(self) -> EvaluatedPrompt | None:
        """Return the best prompt measured on everything."""
        return next(iter(self.complete()), None)

    def guides(self) -> tuple[str, str] | None:
        """Return the best prompt and the one that was best before it, to steer from; `None` if there is only one."""
        leaders: list[EvaluatedPrompt] = []
        for row in self._completed:
            if not leaders or self.gain(row) > self.gain(leaders[-1]):
                leaders.append(row)
        return (leaders[-1].prompt, leaders[-2].prompt) if len(leaders) > 1 else None

    def extremes(self, most: int) -> tuple[Sequence[EvaluatedPrompt], Sequence[EvaluatedPrompt]]:
        """Return the worst and the best prompts, both from worse to better, at most half of the history each."""
        rising = self.ranked()[::-1]
        half = len(rising) // 2
        num_best, num_worst = min(most, max(1, half)), min(most, half)
        return rising[:num_worst], rising[len(rising) - num_best :] if rising else []
