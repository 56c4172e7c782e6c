"""Asks an LLM many prompts by the decoding that its recipe names, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from llm_wrapper.llms.generate import generate
from llm_wrapper.llms.load import LoadedLLM, load
from llm_wrapper.llms.score import score
from llm_wrapper.llms.server import ask_server
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Prompt

__all__ = ["ask", "asker"]

_CHUNK = 256
"""Prompts tokenized and packed at a time; long enough for batches of similar length, short enough for memory."""


def ask(llm: LoadedLLM, prompts: Sequence[Prompt], *, title: str, progress: bool = True) -> list[Answer]:
    """Return the answer to each prompt, in order.

    Args:
        llm: The model; `llm.section.decode` says whether it scores or generates.
        prompts: Those of one image should be neighbours, so that they share their prefix.
        title: Shown beside the progress bar.
        progress: Whether to show one, on standard error.
    """
    method = score if llm.section.decode == "score" else generate
    answers: dict[int, Answer] = {}
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task(title, total=len(prompts))
        for start in range(0, len(prompts), _CHUNK):
            for place, answer in method(llm, prompts[start : start + _CHUNK]):
                answers[start + place] = answer
                bar.advance(task)
    return [answers[place] for place in range(len(prompts))]


def asker(
    section: LLMSection, adapter: Path | None = None, *, title: str = "LLM"
) -> Callable[[Sequence[Prompt]], list[Answer]]:
    """Load an LLM and return the function that asks it; a server is only asked."""
    if section.backend == "openai":
        return lambda prompts: ask_server(section, prompts, title=title)
    llm = load(section, adapter)
    return lambda prompts: ask(llm, prompts, title=title)
