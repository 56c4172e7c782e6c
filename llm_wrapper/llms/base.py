"""The door to every LLM: `load_llm` gives an object that answers prompts, whether the LLM runs here or on a server.

    load_llm(section, adapter).answer([Prompt, ..]) -> [Answer, ..]

    LocalLLM       weights on this machine: exact scores of every index, or text (`llms.local`)
    ServerLLM      an OpenAI-compatible server (`llms.server`)
    ReasoningLLM   lets either of them write its reasons first, and asks for the answer after them

The answer after reasons is read as the recipe says (`llm.decode`): with scoring it is the exact probability of every
index given the reasons, so no text has to be searched for a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from llm_wrapper.prompts.text import clean_text
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Message, Prompt

REASON_FIRST = "Reason in one or two sentences first. Do not give the number yet."
ANSWER_NOW = "Now answer with the number alone."


class LLM(Protocol):
    """Answers prompts; how is not its caller's business."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order."""


class WriterLLM(LLM, Protocol):
    """An LLM that can write text too, whatever way it answers in."""

    def writer(self, num_tokens: int) -> LLM:
        """Return the same LLM, answering with a text of at most `num_tokens` tokens."""


def load_llm(
    section: LLMSection,
    adapter: Path | None = None,
    *,
    title: str = "LLM",
    reasoning_tokens: int = 0,
    progress: bool = True,
) -> LLM:
    """Load the LLM that a recipe names; a server is only asked.

    The LLM may write up to `reasoning_tokens` before each answer, see `ReasoningLLM`.
    """
    if section.backend == "openai":
        from llm_wrapper.llms.server import ServerLLM

        return add_reasoning(ServerLLM(section, title=title, progress=progress), reasoning_tokens)
    from llm_wrapper.llms.load import load_model
    from llm_wrapper.llms.local import LocalLLM

    return add_reasoning(LocalLLM(load_model(section, adapter), title=title, progress=progress), reasoning_tokens)


def add_reasoning(llm: WriterLLM, num_tokens: int) -> LLM:
    """Let an LLM write up to `num_tokens` tokens of reasons before each answer; with 0 it stays as it is."""
    return ReasoningLLM(llm, llm.writer(num_tokens)) if num_tokens else llm


def writing_section(section: LLMSection, num_tokens: int) -> LLMSection:
    """Return the section by which an LLM writes a text of at most `num_tokens` tokens."""
    return section.model_copy(update={"decode": "generate", "max_new_tokens": num_tokens})


def reason_first(prompt: Prompt) -> Prompt:
    """Return the prompt that asks for reasons and not yet for the answer."""
    *before, question = prompt.messages
    return replace(prompt, messages=(*before, Message("user", f"{question.content}\n\n{REASON_FIRST}")))


def answer_now(prompt: Prompt, reasoning: str) -> Prompt:
    """Return the prompt that asks for the answer after the reasons; without any the prompt stays as it is.

    The reasons are cleaned like any input: an expression may have asked the LLM to write a chat token, which would end
    its turn.
    """
    said = clean_text(reasoning)
    if not said:
        return prompt
    turns = (Message("assistant", said), Message("user", ANSWER_NOW))
    return replace(prompt, messages=(*reason_first(prompt).messages, *turns))


class ReasoningLLM:
    """Lets `writer` write reasons before `llm` answers; answers hold the reasons, and the tokens of both."""

    def __init__(self, llm: LLM, writer: LLM) -> None:
        self._llm, self._writer = llm, writer

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order."""
        reasons = self._writer.answer([reason_first(prompt) for prompt in prompts])
        questions = [answer_now(prompt, each.text or "") for prompt, each in zip(prompts, reasons, strict=True)]
        answers = []
        for answer, each in zip(self._llm.answer(questions), reasons, strict=True):
            count = None if each.num_tokens is None else each.num_tokens + (answer.num_tokens or 0)
            answers.append(replace(answer, reasoning=clean_text(each.text or ""), num_tokens=count))
        return answers
