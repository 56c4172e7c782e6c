"""Ask an LLM for a new prompt, clean its answer, or list the reasons to refuse it.

leaderboard --meta_prompt--> Request --LocalProposer / ServedProposer--> Proposed --clean--> prompt, or refusals
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llm_wrapper.errors import RecipeError
from llm_wrapper.llms.server import AnswerFile, Server, answers_path
from llm_wrapper.llms.server_formats import request_format
from llm_wrapper.recipe import LLMSection, SearchSection
from llm_wrapper.recipe.schema import SamplingSection
from llm_wrapper.records import Answer, Message, Prompt
from llm_wrapper.search.history import Leaderboard
from llm_wrapper.search.tasks import SearchTask

if TYPE_CHECKING:
    from llm_wrapper.llms.load import LoadedLLM

_SYSTEM = (
    "You write prompts for another model. Each prompt was tried on the same questions, and its accuracy is the share "
    "of right answers. Learn from what the good ones have in common and the bad ones lack."
)

_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_HEAD = re.compile(
    r"\A\W*(?:here (?:is|are)\b[^\n{}]*\b(?:prompt|instruction|caption|version)\b[^\n{}]*[:.!]|"
    r"(?:sure|okay|certainly)\b[^\n{}]*?[:.!]|"
    r"(?:the |my |a )?(?:new |improved |better )*(?:prompt|instruction|caption)\W*:)[*_\s]*",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\n\W*(?:accuracy|explanation|note|prompt|this (?:prompt|instruction|caption))\b.*\Z", re.IGNORECASE | re.DOTALL
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}  # noqa: RUF001 (the quotes that models write)

_CHAT = re.compile(
    r"<\|[^<>]{1,40}\|>|</?(?:s|bos|eos|pad|unk|think|[a-z]+_of_[a-z]+)>|<<SYS>>|<</SYS>>|<｜|｜>|"  # noqa: RUF001
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+)\]"
)
"""Patterns of known models' chat tokens; a model's own are given beside them."""

_FOUR_NUMBERS = re.compile(r"(?:-?\d+(?:\.\d+)?[\s,;]+){3}-?\d")
_LEAST_WORDS = 3
_LEAST_LABELS = 3


@dataclass(frozen=True)
class ForbiddenText:
    """Text that no proposal may hold: expressions and labels of the slices, and the models' special tokens."""

    expressions: Collection[str]
    labels: Collection[str]
    special: Collection[str] = ()


def build_meta_prompt(task: SearchTask, description: str, leaderboard: Leaderboard, most: int) -> str:
    """Build the question that asks for one new prompt; one message, as not every chat template has a system turn.

    It shows up to `most` of the best and of the worst prompts of the earlier rounds.
    """
    parts = [_SYSTEM, f"The task. {task.about}", f"The data. {description}"]
    for rows, result in zip(leaderboard.extremes(most), ("badly", "well"), strict=True):
        if rows:
            parts.append(f"Prompts that did {result}, from worse to better:")
        parts += [f"Prompt:\n{row.prompt}\nAccuracy: {100 * leaderboard.expected(row):.1f} %" for row in rows]
    parts.append(f"Write one new prompt that will be more accurate than all of these. {task.rules}")
    parts.append("Write the prompt and nothing else.")
    return "\n\n".join(parts)


def clean_proposal(answer: str) -> str:
    """Return the prompt in an answer, without code fence, announcement, quotes and comments.

    Line breaks stay; those written as backslash and n become real ones.
    """
    text, before = answer.strip(), None
    while text != before:
        before = text
        if fenced := _FENCE.search(text):
            text = fenced[1]
        text = _TAIL.sub("", _HEAD.sub("", text, count=1)).strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1].strip()
    lines = text.replace("\\n", "\n").splitlines()
    return "\n".join(line.rstrip() for line in lines)


def is_same_prompt(one: str, other: str) -> bool:
    """Tell whether two prompts are the same but for spaces."""
    return one.split() == other.split()


def find_refusals(text: str, task: SearchTask, known: ForbiddenText) -> list[str]:
    """Return every reason to refuse a cleaned proposal, one sentence each."""
    problems = list(task.problems(text))
    tokens = [found[0] for found in _CHAT.finditer(text)]
    if tokens := [*tokens, *(token for token in known.special if token.strip() and token in text)]:
        problems.append(f"it holds a chat token: {tokens[0]!r}")
    words = f" {_words(text)} "
    leaked = (each for each in map(_words, known.expressions) if len(each.split()) >= _LEAST_WORDS)
    if expression := next((each for each in leaked if f" {each} " in words), None):
        problems.append(f"it leaks a training expression: {expression!r}")
    if box := _FOUR_NUMBERS.search(text):
        problems.append(f"it leaks a box: {box[0]!r}")
    if labels := _label_list(text, known.labels):
        problems.append(f"it lists labels of the training data: {', '.join(labels)}")
    return problems


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))


def _label_list(text: str, labels: Collection[str]) -> list[str]:
    """Return at least three labels listed in a row: `such as a dog, cats and the red chair there`."""
    known = {f" {_words(label)} " for label in labels}
    for line in text.splitlines():
        row: list[str] = []
        for part in re.split(r"[,;:()/]|\band\b|\bor\b", line.lower()):
            words = f" {re.sub(r'^(?:[0-9]+ |an? |the )+', '', _words(part))} "
            # Other words may come before the first of a row, and after the last.
            fits = words.startswith if row else words.endswith
            found = max((each for each in known if fits(each)), key=len, default=None)
            row = [] if found is None else [*row, found.strip()]
            if len(set(row)) >= _LEAST_LABELS:
                return row
    return []


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one proposal."""

    text: str
    seed: int
    guides: tuple[str, str] | None = None  # the best prompt and the best before it, for activation steering
    alpha: float = 0.0  # strength of the steering


@dataclass(frozen=True, slots=True)
class Proposal:
    """A text of the proposing LLM, and its tokens, if they are known."""

    text: str
    tokens: int | None


class Proposer(Protocol):
    """An LLM that proposes prompts; `can_be_guided` tells whether it looks at `Request.guides`."""

    can_be_guided: bool

    def __call__(self, request: Request) -> Proposal:
        """Answer; the same request has the same answer."""
        ...


def _prompt(text: str) -> Prompt:
    return Prompt("proposal", (Message("user", text),), (), "proposal")


class LocalProposer:
    """Draws from a local LLM, steered where a request has guides."""

    can_be_guided = True

    def __init__(self, llm: LoadedLLM, section: SearchSection) -> None:
        self._llm, self._section = llm, section
        self._offsets: dict[tuple[str, str], Any] = {}

    def __call__(self, request: Request) -> Proposal:
        """Draw a proposal; the same request draws the same one."""
        from llm_wrapper.llms.steering import offset, sample_text, steered

        steering: AbstractContextManager[None] = nullcontext()
        layer = self._section.layer
        if request.guides is not None:
            if request.guides not in self._offsets:
                self._offsets = {request.guides: offset(self._llm, *request.guides, layer)}
            steering = steered(self._llm.model, request.alpha * self._offsets[request.guides], layer)
        with steering:
            text, num_tokens = sample_text(self._llm, _prompt(request.text), self._section.sampling, seed=request.seed)
        return Proposal(text, num_tokens)


class ServedProposer:
    """Asks an OpenAI-compatible server and keeps each answer on disk, for a resumed search.

    It cannot be steered, as the hidden states of a server are out of reach.
    """

    can_be_guided = False

    def __init__(self, section: LLMSection, sampling: SamplingSection) -> None:
        if section.backend != "openai":
            raise RecipeError(f"search.proposer: llm.backend={section.backend} is no server")
        self._section = section.model_copy(update={"decode": "generate", "max_new_tokens": sampling.max_new_tokens})
        self._sampling = sampling

    def __call__(self, request: Request) -> Proposal:
        """Ask for a proposal; ModelError if the server refuses, or is not there."""
        kept = AnswerFile(answers_path(self._section))
        prompt = _prompt(request.text)
        kept.warn_of_damage()
        server = Server(self._section)
        server.format = _Drawn(self._section, self._sampling, request.seed)
        key = server.key_of(prompt)
        if key not in kept:
            kept.keep(key, server.ask(prompt), sample_id=prompt.sample_id)
        return Proposal(kept[key].text or "", kept[key].num_tokens)


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
