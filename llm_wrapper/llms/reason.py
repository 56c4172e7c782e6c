"""Chain of thought: the LLM writes its reasons first, then it is asked for the answer after them.

The answer is read as the recipe says (`llm.decode`); with scoring it is the exact probability of every index given the
reasons, so no text has to be searched for a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_wrapper.prompts.text import clean_text
from llm_wrapper.records import Answer, Message, Prompt

if TYPE_CHECKING:
    from llm_wrapper.llms.base import LLM

__all__ = ["ANSWER_NOW", "REASON_FIRST", "ReasoningLLM", "answer_now", "reason_first"]

REASON_FIRST = "Reason in one or two sentences first. Do not give the number yet."
ANSWER_NOW = "Now answer with the number alone."


def reason_first(prompt: Prompt) -> Prompt:
    """Return the prompt that asks for reasons and not yet for the answer."""
    *before, question = prompt.messages
    return replace(prompt, messages=(*before, Message("user", f"{question.content}\n\n{REASON_FIRST}")))


def answer_now(prompt: Prompt, reasoning: str) -> Prompt:
    """Return the prompt that asks for the answer after the reasons; without any it is the question as it stands.

    Args:
        prompt: The question.
        reasoning: What the LLM wrote. It is made harmless like foreign text: an expression may have told the LLM to
            write a chat token, which would end its turn.
    """
    said = clean_text(reasoning)
    if not said:
        return prompt
    turns = (Message("assistant", said), Message("user", ANSWER_NOW))
    return replace(prompt, messages=(*reason_first(prompt).messages, *turns))


class ReasoningLLM:
    """Lets an LLM write its reasons before each answer.

    Its answers hold the reasons as they were kept, and the tokens of both.

    Args:
        llm: Answers prompts as the recipe says.
        writer: Answers prompts with a text of at most as many tokens as the reasons may have.
    """

    def __init__(self, llm: LLM, writer: LLM) -> None:
        self._llm, self._writer = llm, writer

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order."""
        reasons = self._writer.answer([reason_first(prompt) for prompt in prompts])
        questions = [answer_now(prompt, each.text or "") for prompt, each in zip(prompts, reasons, strict=True)]
        return [_together(answer, each) for answer, each in zip(self._llm.answer(questions), reasons, strict=True)]


def _together(answer: Answer, reasons: Answer) -> Answer:
    count = None if reasons.num_tokens is None else reasons.num_tokens + (answer.num_tokens or 0)
    return replace(answer, reasoning=clean_text(reasons.text or ""), num_tokens=count)
