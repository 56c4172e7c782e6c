"""The door to every LLM: `load_llm` gives an object that answers prompts, whether the LLM runs here or on a server.

    load_llm(section, adapter).answer([Prompt, ..]) -> [Answer, ..]

    LocalLLM       weights on this machine: exact scores of every index (`llms.score`), or text (`llms.generate`)
    ServerLLM      an OpenAI-compatible server (`llms.server`)
    ReasoningLLM   lets either of them write its reasons first, and asks for the answer after them

The answer after reasons is read as the recipe says (`llm.decode`): with scoring it is the exact probability of every
index given the reasons, so no text has to be searched for a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llm_wrapper.errors import PromptError
from llm_wrapper.prompts.text import clean_text
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Message, Prompt
from llm_wrapper.terminal import ProgressBar, as_description

if TYPE_CHECKING:
    from llm_wrapper.llms.load import LoadedLLM

__all__ = [
    "ANSWER_NOW",
    "LLM",
    "REASON_FIRST",
    "LocalLLM",
    "ReasoningLLM",
    "WriterLLM",
    "add_reasoning",
    "answer_now",
    "load_llm",
    "reason_first",
    "writing_section",
]

_CHUNK = 256
"""Prompts tokenized and packed at a time; long enough for batches of similar length, short enough for memory."""

_INDEX_TOKENS = 3
"""Tokens of an answer that is scored: an index and the end of the turn."""

_FRAME = 512
"""Tokens that a chat template may add to the messages."""

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

    Args:
        section: The recipe's section.
        adapter: Folder of an adapter, for an LLM on this machine.
        title: Shown beside the progress bar.
        reasoning_tokens: The most that it may write before each answer, see `ReasoningLLM`.
        progress: Whether to show a progress bar, on standard error.

    Raises:
        ModelError: If the model or its adapter cannot be loaded.
    """
    if section.backend == "openai":
        from llm_wrapper.llms.server import ServerLLM

        return add_reasoning(ServerLLM(section, title=title, progress=progress), reasoning_tokens)
    from llm_wrapper.llms.load import load_model

    return add_reasoning(LocalLLM(load_model(section, adapter), title=title, progress=progress), reasoning_tokens)


def add_reasoning(llm: WriterLLM, num_tokens: int) -> LLM:
    """Let an LLM write up to `num_tokens` tokens of reasons before each answer; with 0 it stays as it is."""
    return ReasoningLLM(llm, llm.writer(num_tokens)) if num_tokens else llm


def writing_section(section: LLMSection, num_tokens: int) -> LLMSection:
    """Return the section by which an LLM writes a text of at most `num_tokens` tokens."""
    return section.model_copy(update={"decode": "generate", "max_new_tokens": num_tokens})


class LocalLLM:
    """An LLM whose weights are on this machine; `llm.decode` says whether it scores the indices or generates.

    Args:
        loaded: The model.
        title: Shown beside the progress bar.
        progress: Whether to show one, on standard error.
    """

    def __init__(self, loaded: LoadedLLM, *, title: str = "LLM", progress: bool = True) -> None:
        self.loaded, self._title, self._progress = loaded, title, progress

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order.

        Args:
            prompts: Those of one image should be neighbours, so that they share their prefix.

        Raises:
            PromptError: If prompts are longer than the model's limit.
        """
        from llm_wrapper.llms.generate import generate
        from llm_wrapper.llms.score import score_prompts

        _require_room(self.loaded, prompts)
        method = score_prompts if self.loaded.section.decode == "score" else generate
        answers: dict[int, Answer] = {}
        with ProgressBar(shown=self._progress) as bar:
            task = bar.add_task(as_description(self._title), total=len(prompts))
            for start in range(0, len(prompts), _CHUNK):
                for index, answer in method(self.loaded, prompts[start : start + _CHUNK]):
                    answers[start + index] = answer
                    bar.advance(task)
        return [answers[index] for index in range(len(prompts))]

    def writer(self, num_tokens: int) -> LocalLLM:
        """Return the same model, generating a text of at most `num_tokens` tokens."""
        loaded = replace(self.loaded, section=writing_section(self.loaded.section, num_tokens))
        return LocalLLM(loaded, title=f"{self._title}: reasons", progress=self._progress)


def reason_first(prompt: Prompt) -> Prompt:
    """Return the prompt that asks for reasons and not yet for the answer."""
    *before, question = prompt.messages
    return replace(prompt, messages=(*before, Message("user", f"{question.content}\n\n{REASON_FIRST}")))


def answer_now(prompt: Prompt, reasoning: str) -> Prompt:
    """Return the prompt that asks for the answer after the reasons; without any the prompt stays as it is.

    Args:
        prompt: The question.
        reasoning: The text of the LLM. It is cleaned like any input: an expression may have asked the LLM to write a
            chat token, which would end its turn.
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


def _require_room(llm: LoadedLLM, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are longer than the model's limit, all at once, before the first is asked.

    Only prompts with as many bytes as the model takes tokens are encoded: a token is a byte or more.

    Raises:
        PromptError: With their number and the first of them.
    """
    from llm_wrapper.llms.soft_prompts import num_virtual

    limit = getattr(llm.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return
    generated = llm.section.max_new_tokens if llm.section.decode != "score" else _INDEX_TOKENS
    room = limit - generated - num_virtual(llm.model)
    large = [
        prompt for prompt in prompts if sum(len(each.content.encode()) for each in prompt.messages) > room - _FRAME
    ]
    lengths = {prompt.sample_id: len(llm.encoder.encode(prompt)) for prompt in large}
    too_long = {sample_id: length for sample_id, length in lengths.items() if length > room}
    if too_long:
        named = ", ".join(f"{sample_id} ({length:,} tokens)" for sample_id, length in list(too_long.items())[:3])
        more = ", ..." if len(too_long) > 3 else ""
        raise PromptError(
            f"the prompts of {len(too_long):,} samples are longer than the {room:,} tokens that "
            f"llm.model={llm.section.model} has for them: samples {named}{more}. Show fewer candidates, as "
            "candidates.cap=10, or write them shorter: prompt.format=compact"
        )
