"""From questions to prompts as a recipe wants them worded. Many at once, so that what they need is looked up once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from llm_wrapper.errors import PromptError
from llm_wrapper.prompts import instruction
from llm_wrapper.prompts.render import render
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Candidate, Prompt, Sample

__all__ = ["Question", "Worder", "plain"]

Question = tuple[Sample, Sequence[Candidate]]
"""A sample, and its candidates in the order to be shown."""

Worder = Callable[[Sequence[Question]], list[Prompt]]
"""Words questions, one prompt each, in order."""


@cache
def plain(section: PromptSection) -> Worder:
    """Return what words questions by format and instruction alone; for equal sections the same function.

    Raises:
        PromptError: If the instruction cannot be used, or the section asks for examples: those need training
            expressions, see `training.wording`.
    """
    if section.examples:
        raise PromptError(f"prompt.examples={section.examples}: here are no training expressions to take them from")
    if section.instruction is not None:
        instruction.require(section.instruction)

    def word(questions: Sequence[Question]) -> list[Prompt]:
        return [
            render(sample, candidates, section.format, instruction=section.instruction, none=section.none)
            for sample, candidates in questions
        ]

    return word
