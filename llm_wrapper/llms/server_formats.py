"""The formats in which an OpenAI-compatible server is asked: the request of a prompt, the answer of a reply.

- `score`: every index, as the token ids that the chat template gives it, behind the prompt's; the server echoes their
  log-probabilities (`/completions` with `echo` and `logprobs`: vLLM, SGLang), as scoring does for a local model.
- `first_token`: one generated answer, and the alternatives to its first token (`logprobs`: vLLM, SGLang, llama.cpp,
  OpenAI). Probabilities only where each index is one token.
- `choice`: one answer that the server holds to the indices (`response_format` with a JSON schema: vLLM, SGLang,
  llama.cpp). No probabilities.
- `generate`: one free answer, whose first integer counts. Any server.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from llm_wrapper.errors import ModelError
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.services import CallError

_NUM_ALTERNATIVES = 20
"""The most that OpenAI and, by default, vLLM give."""
_DIGITS = 10
"""Up to this number of answers every index is one token of every tokenizer."""
_MAX_TEXT = 1_000_000
"""Characters of an answer; it is kept, and the longest reasons have 4,096 tokens."""
_IMPOSSIBLE = -9999.0
"""Written by vLLM and OpenAI for minus infinity."""

_LogProb = Annotated[
    Annotated[float, Field(strict=True, le=1e-3)] | None,
    BeforeValidator(lambda value: None if isinstance(value, float) and math.isnan(value) else value),
]
"""A log-probability; `None` where the server has none: a model in 16 bits may overflow."""

_Form = TypeVar("_Form", bound=BaseModel)


class RequestFormat(Protocol):
    """How a prompt becomes a request, and its reply an answer."""

    @property
    def path(self) -> str:
        """The place on the server, behind its base URL."""

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the request; it decides the answer."""

    def answer(self, prompt: Prompt, reply: Any) -> Answer:
        """Read a reply; raises CallError where it does not have what was asked for."""


def request_format(section: LLMSection) -> RequestFormat:
    """Return the request format that a recipe names in `llm.decode`."""
    return _Scored(section) if section.decode == "score" else _Chatted(section)


def _read(form: type[_Form], reply: Any) -> _Form:
    """Return a reply in the form that is needed; a CallError names the fields that are missing or wrong."""
    try:
        return form.model_validate(reply)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, row['loc'])) or 'reply'}: {row['msg']}" for row in error.errors()[:5]]
        raise CallError(f"the reply has not the form that was asked for: {'; '.join(faults)}") from error


# --- score -----------------------------------------------------------------------------------------------------------


class _Echo(BaseModel):
    token_logprobs: list[_LogProb]


class _Completion(BaseModel):
    index: int
    logprobs: _Echo


class _PromptUsage(BaseModel):
    prompt_tokens: int


class _Completions(BaseModel):
    choices: list[_Completion]
    usage: _PromptUsage | None = None


class _Scored:
    path = "/completions"

    def __init__(self, section: LLMSection) -> None:
        from llm_wrapper.llms.chat import ChatEncoder

        self._model = section.model
        self._lock = threading.Lock()
        self._encoder = ChatEncoder(_tokenizer(section), section)

    def body(self, prompt: Prompt) -> dict[str, Any]:
        head, tails = self._tokens(prompt)
        # Some servers read 0 tokens as "no limit", so one is generated and not looked at.
        return {
            "model": self._model,
            "prompt": [[*head, *tail] for tail in tails],
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }

    def answer(self, prompt: Prompt, reply: Any) -> Answer:
        """Return the probabilities; none where a value is missing, or no index is possible at all."""
        head, tails = self._tokens(prompt)
        completions = _read(_Completions, reply)
        rows = {choice.index: choice.logprobs.token_logprobs for choice in completions.choices}
        if sorted(rows) != list(range(len(tails))) or len(completions.choices) != len(tails):
            raise CallError(f"the server answers {len(completions.choices)} of the {len(tails)} prompts of a request")
        num_sent = sum(len(head) + len(tail) for tail in tails)
        if completions.usage and completions.usage.prompt_tokens != num_sent:
            num_read = completions.usage.prompt_tokens
            raise CallError(f"the server read {num_read} tokens where {num_sent} were sent: it adds tokens")
        spans = []  # the log-probabilities of the tokens behind the prompt
        for index, tail in enumerate(tails):
            length = len(head) + len(tail)
            if not length <= len(rows[index]) <= length + 1:
                raise _no_echo(len(rows[index]), length)
            spans.append(rows[index][len(head) : length])
        if all(value is None for span in spans for value in span):
            raise _no_echo(len(rows[0]), len(head) + len(tails[0]))
        if any(value is None for span in spans for value in span):
            return Answer()
        log_probs = [sum(value for value in span if value is not None) for span in spans]
        highest = max(log_probs)
        if highest <= _IMPOSSIBLE:
            return Answer()
        shares = [math.exp(value - highest) for value in log_probs]
        probabilities = tuple(share / sum(shares) for share in shares)
        return Answer(probabilities=probabilities, mass=sum(math.exp(value) for value in log_probs))

    def _tokens(self, prompt: Prompt) -> tuple[list[int], list[tuple[int, ...]]]:
        with self._lock:  # a fast tokenizer may refuse a second thread
            head = self._encoder.encode(prompt)
            return head, [self._encoder.completion(index) for index in range(prompt.num_answers)]


def _no_echo(num_values: int, num_tokens: int) -> CallError:
    return CallError(
        f"the server gives {num_values} log-probabilities for a prompt of {num_tokens} tokens: it does not "
        "echo the prompt's. Set llm.decode=first_token, choice or generate (vLLM and SGLang can score)"
    )


def _tokenizer(section: LLMSection) -> Any:
    """Load the tokenizer of the served model; its weights are not needed here."""
    import transformers

    name = section.server.tokenizer or str(section.model)
    try:
        return transformers.AutoTokenizer.from_pretrained(name, revision=section.revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"scoring sends token ids, and the tokenizer {name!r} cannot be loaded: {error}. Name the hub id or the "
            "folder of the served model: llm.server.tokenizer=..."
        ) from error


# --- first_token, choice, generate -----------------------------------------------------------------------------------


class _Alternative(BaseModel):
    token: str
    logprob: _LogProb


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _LogProbs(BaseModel):
    content: list[_Token] | None


class _Message(BaseModel):
    content: Annotated[str, Field(max_length=_MAX_TEXT)] | None


class _Chat(BaseModel):
    message: _Message
    finish_reason: Annotated[str, Field(max_length=100)] | None = None
    logprobs: _LogProbs | None = None


class _ChatUsage(BaseModel):
    completion_tokens: int | None = None


class _Chats(BaseModel):
    choices: Annotated[list[_Chat], Field(min_length=1)]
    usage: _ChatUsage | None = None


class _Chatted:
    path = "/chat/completions"

    def __init__(self, section: LLMSection) -> None:
        self._section = section

    def body(self, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._section.model,
            "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
            "max_tokens": self._section.max_new_tokens,
            "temperature": 0,
        }
        if self._section.decode == "first_token":
            body |= {"logprobs": True, "top_logprobs": _NUM_ALTERNATIVES}
        if self._section.decode == "choice":
            schema = {"type": "integer", "enum": list(range(prompt.num_answers))}
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "index", "schema": schema}}
        return body

    def answer(self, prompt: Prompt, reply: Any) -> Answer:
        chats = _read(_Chats, reply)
        chat, count = chats.choices[0], chats.usage.completion_tokens if chats.usage else None
        text = chat.message.content or ""
        answer = Answer(text=text, finish_reason=chat.finish_reason, num_tokens=count)
        if self._section.decode == "first_token":
            return _with_shares(answer, chat, prompt.num_answers)
        if self._section.decode == "choice" and text.strip() not in map(str, range(prompt.num_answers)):
            raise CallError(
                f"the server answers {text.strip()[:80]!r}, not one of the {prompt.num_answers} indices that were "
                "allowed: it does not hold to response_format. Set llm.decode=generate"
            )
        return answer


def _with_shares(answer: Answer, chat: _Chat, num_answers: int) -> Answer:
    """Add the probabilities of the indices, where the first token of an answer is a whole index."""
    tokens = chat.logprobs.content if chat.logprobs else None
    if tokens is None or (tokens and not any(token.top_logprobs for token in tokens)):
        raise CallError("the reply has no top_logprobs: this server does not give them. Set llm.decode=generate")
    shares = _first_shares(tokens, num_answers)
    mass = sum(shares.values())
    # Where a tokenizer splits numbers, a `1` may be the beginning of `12`: then the text is all there is.
    whole = num_answers <= _DIGITS or any(index >= _DIGITS for index in shares)
    if not whole or mass <= 0:
        return answer
    probabilities = tuple(shares.get(index, 0.0) / mass for index in range(num_answers))
    return replace(answer, probabilities=probabilities, mass=mass)


def _first_shares(tokens: Sequence[_Token], num_answers: int) -> dict[int, float]:
    """Return index -> probability among the alternatives to the first token that is not blank."""
    index_of = {str(index): index for index in range(num_answers)}
    before = 1.0
    for token in tokens:
        if token.token.strip():
            # A server may leave the token that it chose out of the alternatives.
            alternatives = {each.token: each.logprob for each in (token, *token.top_logprobs)}
            shares: defaultdict[int, float] = defaultdict(float)
            for text, log_prob in alternatives.items():
                if text.strip() in index_of and log_prob is not None:
                    shares[index_of[text.strip()]] += before * math.exp(log_prob)
            return shares
        if token.logprob is None:
            return {}
        before *= math.exp(token.logprob)
    return {}
