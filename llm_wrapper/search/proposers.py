"""Who proposes: a local LLM, which can be guided, or a server, which cannot."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from llm_wrapper.errors import RecipeError
from llm_wrapper.llms.answers import AnswerFile
from llm_wrapper.llms.server import Server, answers_path
from llm_wrapper.llms.server_formats import request_format
from llm_wrapper.recipe import LLMSection, SearchSection
from llm_wrapper.recipe.schema import SamplingSection
from llm_wrapper.records import Answer, Message, Prompt
from llm_wrapper.search.search import Proposed, Request

if TYPE_CHECKING:
    from llm_wrapper.llms.load import LoadedLLM

__all__ = ["LocalProposer", "ServedProposer"]


def _prompt(text: str) -> Prompt:
    return Prompt("proposal", (Message("user", text),), (), "proposal")


class LocalProposer:
    """Draws from a local LLM, steered where a request says so."""

    can_be_guided = True

    def __init__(self, llm: LoadedLLM, section: SearchSection) -> None:
        self._llm, self._section = llm, section
        self._offsets: dict[tuple[str, str], Any] = {}

    def __call__(self, request: Request) -> Proposed:
        """Draw a proposal; the same request draws the same one."""
        from llm_wrapper.llms.steering import sample_text

        with self._steered(request):
            text, num_tokens = sample_text(self._llm, _prompt(request.text), self._section.sampling, seed=request.seed)
        return Proposed(text, num_tokens)

    def _steered(self, request: Request) -> AbstractContextManager[None]:
        from llm_wrapper.llms.steering import offset, steered

        if request.guides is None:
            return nullcontext()
        layer = self._section.layer
        if request.guides not in self._offsets:
            self._offsets = {request.guides: offset(self._llm, *request.guides, layer)}
        return steered(self._llm.model, request.alpha * self._offsets[request.guides], layer)


class ServedProposer:
    """Asks an OpenAI-compatible server; each answer is kept on disk, and not asked for again.

    It cannot be guided: nobody reaches the hidden states of a server. The seed is sent, and whether the server heeds it
    or not, a resumed search reads the answers that are kept.
    """

    can_be_guided = False

    def __init__(self, section: LLMSection, sampling: SamplingSection) -> None:
        if section.backend != "openai":
            raise RecipeError(f"search.proposer: llm.backend={section.backend} is no server")
        self._section = section.model_copy(update={"decode": "generate", "max_new_tokens": sampling.max_new_tokens})
        self._sampling = sampling

    def __call__(self, request: Request) -> Proposed:
        """Ask for a proposal.

        Raises:
            ModelError: If the server refuses, or is not there.
        """
        kept = AnswerFile(answers_path(self._section))
        prompt = _prompt(request.text)
        kept.warn_of_damage()
        server = Server(self._section)
        server.format = _Drawn(self._section, self._sampling, request.seed)
        key = server.key_of(prompt)
        if key not in kept:
            kept.keep(key, server.ask(prompt), sample_id=prompt.sample_id)
        return Proposed(kept[key].text or "", kept[key].num_tokens)


class _Drawn:
    """Asks as `generate` does, but for a draw in place of the most probable answer."""

    def __init__(self, section: LLMSection, sampling: SamplingSection, seed: int) -> None:
        self._plain, self._sampling, self._seed = request_format(section), sampling, seed

    @property
    def path(self) -> str:
        return self._plain.path

    def body(self, prompt: Prompt) -> dict[str, Any]:
        drawn = {**self._plain.body(prompt), "seed": self._seed}
        drawn |= {"temperature": self._sampling.temperature, "top_p": self._sampling.top_p}
        # Not a part of OpenAI's interface; vLLM, SGLang and llama.cpp take it.
        return drawn if self._sampling.top_k is None else {**drawn, "top_k": self._sampling.top_k}

    def answer(self, prompt: Prompt, reply: Any) -> Answer:
        return self._plain.answer(prompt, reply)
