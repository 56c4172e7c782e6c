"""How long the steps of something take: on the clock, and computed by this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["Clock"]

_Result = TypeVar("_Result")


@dataclass
class Clock:
    """Seconds of each step, by its name, in the order in which steps were done.

    `cpu` are those that the process itself computed, on all of its cores: other work on the machine moves them less.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, work: Callable[[], _Result]) -> _Result:
        """Do some work, note how long it took, and return what it returned."""
        started, computed = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[step] = time.perf_counter() - started
        self.cpu[step] = time.process_time() - computed
        return result
