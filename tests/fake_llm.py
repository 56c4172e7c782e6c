"""An LLM that is a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_wrapper.records import Answer, Prompt


@dataclass
class FakeLLM:
    """Answers by a function, and keeps what it was asked."""

    function: Callable[[Sequence[Prompt]], list[Answer]]

    def __post_init__(self) -> None:
        self.prompts: list[Prompt] = []

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.prompts += prompts
        return self.function(prompts)
