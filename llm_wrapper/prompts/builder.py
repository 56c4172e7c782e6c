"""Builds the prompts of samples as a recipe asks: format, instruction, and few-shot examples.

(Sample, Candidates) --render--> question ---+
examples of the question --render--> turns --+--> Prompt(messages = turns + question)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_wrapper.errors import PromptError
from llm_wrapper.prompts.examples import ExampleSelector, Exemplar
from llm_wrapper.prompts.render import PromptInput, render_prompt
from llm_wrapper.prompts.text import require_instruction
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Message, Prompt

__all__ = ["PromptBuilder"]


@dataclass(frozen=True)
class PromptBuilder:
    """Build prompts of samples and their candidates; equal sections without examples give equal builders.

    Attributes:
        section: Format, instruction, number of examples, and whether "none of these" is an answer.
        selector: Chooses the examples of each question; needed where the section asks for examples, see
            `training.pool.load_prompt_builder`.
        facts: Where the examples came from, for the report.

    Raises:
        PromptError: If the instruction cannot be used, or the section asks for examples and there is no selector.
    """

    section: PromptSection
    selector: ExampleSelector | None = None
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.section.examples and self.selector is None:
            raise PromptError(f"prompt.examples={self.section.examples}: there are no training expressions to show")
        if self.section.instruction is not None:
            require_instruction(self.section.instruction)

    def build(self, questions: Sequence[PromptInput]) -> list[Prompt]:
        """Return one prompt for each question, in order."""
        prompts = [
            render_prompt(
                sample,
                candidates,
                self.section.format,
                instruction=self.section.instruction,
                none=self.section.none,
            )
            for sample, candidates in questions
        ]
        if self.selector is None:
            return prompts
        return [
            replace(prompt, messages=(*self._turns(examples), *prompt.messages))
            for prompt, examples in zip(prompts, self.selector.select(questions), strict=True)
        ]

    def _turns(self, examples: Sequence[Exemplar]) -> list[Message]:
        """Return a question and its answer for each example."""
        turns: list[Message] = []
        bare = PromptBuilder(self.section.model_copy(update={"examples": 0}))
        for each, shown in zip(
            examples, bare.build([(each.sample, each.candidates) for each in examples]), strict=True
        ):
            turns += [*shown.messages, Message("assistant", str(each.index))]
        return turns
