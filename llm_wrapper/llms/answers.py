"""Answers of a server on disk: one JSON line each, written before the next question is counted as asked."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_wrapper.errors import DataError, LLMWrapperError
from llm_wrapper.readers import parse_json, read_bytes
from llm_wrapper.records import Answer, from_dict, to_dict

__all__ = ["ROOT", "AnswerFile"]

_log = logging.getLogger(__name__)

ROOT = Path("data/answers")


class AnswerFile:
    """A file of answers by the digest of their request; threads and processes may add to it at the same time.

    A line that cannot be read, as a killed process or a full disk leaves one, is counted and asked again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_damaged = 0
        self._lock = threading.Lock()
        try:
            content = read_bytes(path) if path.exists() else b""
        except OSError as error:
            raise LLMWrapperError(f"{path} cannot be read: {error.strerror or error}.") from error
        self._answers = dict(self._read(content))
        # A line that was cut off has no end; the next one must not become part of it.
        self._before = b"" if content.endswith(b"\n") or not content else b"\n"

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def fits(self, key: str, num_answers: int) -> bool:
        """Tell whether there is an answer, with as many probabilities as there are answers; else it is damaged."""
        answer = self._answers.get(key)
        if answer is None:
            return False
        fits = answer.probabilities is None or len(answer.probabilities) == num_answers
        self.num_damaged += not fits
        return fits

    def warn_of_damage(self) -> None:
        """Say how many lines cannot be used, where there are any."""
        if self.num_damaged:
            _log.warning("%s: %d damaged lines; their questions are asked again", self.path, self.num_damaged)

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def keep(self, key: str, answer: Answer, *, sample_id: str) -> None:
        """Write an answer.

        Raises:
            LLMWrapperError: If it cannot be written.
        """
        known = {name: value for name, value in to_dict(answer).items() if value is not None}
        line = json.dumps({"key": key, "sample_id": sample_id, "answer": known}, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # One write to a file opened for appending: lines of two processes do not mix.
                with self.path.open("ab", buffering=0) as stream:
                    num_written = stream.write(self._before + line)
            except OSError as error:
                raise LLMWrapperError(self._problem(error.strerror or str(error))) from error
            if num_written != len(self._before) + len(line):
                raise LLMWrapperError(self._problem("the disk is full"))
            self._before = b""
            self._answers[key] = answer

    def _problem(self, why: str) -> str:
        return f"an answer was not written to {self.path}: {why}. Fix that; the same command asks only for the rest."

    def _read(self, content: bytes) -> Iterator[tuple[str, Answer]]:
        for line in content.splitlines():
            if not line.strip():
                continue
            try:
                row: Any = parse_json(line, str(self.path))
                answer = from_dict(Answer, row["answer"])
                _require_shares(answer)
                yield str(row["key"]), answer
            except (DataError, ValueError, TypeError, KeyError):
                self.num_damaged += 1


def _require_shares(answer: Answer) -> None:
    """Refuse probabilities that are none: not of 0..1, or with another sum than 1."""
    shares = answer.probabilities
    if shares is not None and not (all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-3):
        raise ValueError(f"no probabilities: {shares}")
