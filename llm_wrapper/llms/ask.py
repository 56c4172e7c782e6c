"""Asks an LLM many prompts by the decoding that its recipe names, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from llm_wrapper.errors import PromptError
from llm_wrapper.llms.generate import generate
from llm_wrapper.llms.load import LoadedLLM, load
from llm_wrapper.llms.reason import Asked, with_reasoning
from llm_wrapper.llms.score import score
from llm_wrapper.llms.server import ask_server
from llm_wrapper.llms.virtual import num_virtual
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.terminal import as_description, open_console

__all__ = ["ask", "asked_by", "asker"]

_CHUNK = 256
"""Prompts tokenized and packed at a time; long enough for batches of similar length, short enough for memory."""

_INDEX_TOKENS = 3
"""Tokens of an answer that is scored: an index and the end of the turn."""

_FRAME = 512
"""Tokens that a chat template may add to the messages."""


def ask(llm: LoadedLLM, prompts: Sequence[Prompt], *, title: str, progress: bool = True) -> list[Answer]:
    """Return the answer to each prompt, in order.

    Args:
        llm: The model; `llm.section.decode` says whether it scores or generates.
        prompts: Those of one image should be neighbours, so that they share their prefix.
        title: Shown beside the progress bar.
        progress: Whether to show one, on standard error.
    """
    _require_room(llm, prompts)
    method = score if llm.section.decode == "score" else generate
    answers: dict[int, Answer] = {}
    with Progress(console=open_console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task(as_description(title), total=len(prompts))
        for start in range(0, len(prompts), _CHUNK):
            for place, answer in method(llm, prompts[start : start + _CHUNK]):
                answers[start + place] = answer
                bar.advance(task)
    return [answers[place] for place in range(len(prompts))]


def _require_room(llm: LoadedLLM, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are longer than the model's limit, all at once, before the first is asked.

    Only prompts with as many bytes as the model takes tokens are encoded: a token is a byte or more.

    Raises:
        PromptError: With their number and the first of them.
    """
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


def asker(
    section: LLMSection,
    adapter: Path | None = None,
    *,
    title: str = "LLM",
    reasoning_tokens: int = 0,
    progress: bool = True,
) -> Asked:
    """Load an LLM and return the function that asks it; a server is only asked.

    Args:
        section: The recipe's section.
        adapter: Folder of an adapter.
        title: Shown beside the progress bar.
        reasoning_tokens: The most that it may write before each answer, see `llms.reason`.
        progress: Whether to show a progress bar.
    """
    if section.backend != "openai":
        llm = load(section, adapter)
        return asked_by(llm, title=title, reasoning_tokens=reasoning_tokens, progress=progress)

    def served(section: LLMSection, title: str) -> Asked:
        return lambda prompts: ask_server(section, prompts, title=title, progress=progress)

    answers = served(section, title)
    if not reasoning_tokens:
        return answers
    return with_reasoning(answers, served(_writing(section, reasoning_tokens), f"{title}: reasons"))


def asked_by(llm: LoadedLLM, *, title: str, reasoning_tokens: int = 0, progress: bool = True) -> Asked:
    """Return the function that asks a loaded LLM; see `asker`."""

    def answers(prompts: Sequence[Prompt]) -> list[Answer]:
        return ask(llm, prompts, title=title, progress=progress)

    if not reasoning_tokens:
        return answers
    writer = replace(llm, section=_writing(llm.section, reasoning_tokens))
    return with_reasoning(answers, lambda prompts: ask(writer, prompts, title=f"{title}: reasons", progress=progress))


def _writing(section: LLMSection, num_tokens: int) -> LLMSection:
    """Return the section by which an LLM writes a text of so many tokens."""
    return section.model_copy(update={"decode": "generate", "max_new_tokens": num_tokens})
