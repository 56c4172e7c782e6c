"""Prompt -> token ids. The chat template is applied here and only here, for training and for inference alike.

    <|im_start|>user ... <|im_start|>assistant <think></think>  7  <|im_end|>
    |------------------- encode ------------------------------|-completion-|

Text that a template writes before every number (an empty thought, the channel of answers) belongs to the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from llm_wrapper.bounded_templates import TEMPLATES
from llm_wrapper.errors import ModelError, PromptError
from llm_wrapper.llms.packing import common_prefix_length
from llm_wrapper.recipe.schema import LLMSection
from llm_wrapper.records import Message, Prompt
from llm_wrapper.terminal import printable

_NUM_CHECKED = 25
"""Indices whose completions are compared with each other: one digit, two, and both beginnings of tens."""
_MAX_TEMPLATE = 1_000_000


def _template_of(tokenizer: Any, chat_template: str | None = None) -> str:
    """Return the text of the chat template to use: the recipe's own, else the tokenizer's."""
    name = tokenizer.name_or_path
    template: Any = chat_template or getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping) and template:
        if "default" not in template:
            names = printable(", ".join(sorted(map(str, template))))[:200]
            raise ModelError(
                f"the tokenizer {name!r} has several chat templates and none is called default ({names}); put the text "
                "of one into llm.chat_template"
            )
        template = template["default"]
    if not template:
        raise ModelError(
            f"the tokenizer {name!r} has no chat template; "
            "set llm.chat_template in the recipe (recipes/llm/gpt-neo.yaml shows how)"
        )
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
        raise ModelError(f"the chat template of {name!r} is not a text of at most {_MAX_TEMPLATE:,} characters")
    return template


class ChatTemplate:
    """A chat template with what it knows besides the messages.

    `variables` are such as `bos_token` and `enable_thinking`; `strftime_now` tells it the day, as `2024-07-26`.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], *, day: str, name: str) -> None:
        self._text = text
        self._variables = {"tools": None, "documents": None, **variables}
        self._day = day
        self._name = name

    def render(self, rows: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the chat of rows {"role", "content"} as text."""
        variables = {**self._variables, "messages": rows, "add_generation_prompt": add_generation_prompt}
        try:
            reply = TEMPLATES.render_chat(self._text, variables, day=self._day)
        except (OSError, ValueError) as error:
            fault = str(error)
        else:
            if "text" in reply:
                return str(reply["text"])
            source = f"line {reply['line']}" if "line" in reply else reply["kind"]
            fault = f"{source}: {reply['error']}"
        raise ModelError(
            f"the chat template of {self._name!r} fails: {printable(fault)}. Put another one into "
            "llm.chat_template (recipes/llm/gpt-neo.yaml shows how)"
        )


class ChatEncoder:
    """Encodes prompts and completions of one tokenizer.

    The completion of index i is the tokens of the number and the end of the turn, exactly as the chat template
    writes them; what the template adds after the end of the turn (a newline, say) is not part of it.
    """

    def __init__(self, tokenizer: Any, section: LLMSection | None = None) -> None:
        section = section or LLMSection()
        self.tokenizer = tokenizer
        special = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        self._template = ChatTemplate(
            _template_of(tokenizer, section.chat_template),
            {**special, "enable_thinking": section.enable_thinking},
            day=section.template_date.isoformat(),
            name=tokenizer.name_or_path,
        )
        self._special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._written: dict[int, tuple[int, ...]] = {}
        self._num_special: dict[tuple[str, ...], int] = {}  # that the template itself writes around such roles

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, up to where the number begins."""
        text = self._text(prompt.messages, add_generation_prompt=True)
        for message in prompt.messages:
            if message.content.strip() not in text:
                raise ModelError(
                    f"the chat template of {self.tokenizer.name_or_path!r} leaves out what the {message.role} of "
                    f"sample {prompt.sample_id} says; put another one into llm.chat_template"
                )
        ids = self._ids(text)
        count = sum(token in self._special for token in ids)
        roles = tuple(message.role for message in prompt.messages)
        if roles not in self._num_special:
            harmless = self._text([Message(role, "?") for role in roles], add_generation_prompt=True)
            self._num_special[roles] = sum(token in self._special for token in self._ids(harmless))
        expected = self._num_special[roles]
        if count != expected:
            raise PromptError(
                f"the prompt of sample {prompt.sample_id} has {count} special tokens where its template has "
                f"{expected}: its text forms a special token of {self.tokenizer.name_or_path!r}"
            )
        return [*ids, *self._constant]

    def completion(self, index: int) -> tuple[int, ...]:
        """Return the token ids of an index and the end of the turn."""
        constant, written = self._constant, self._completion(index)
        if written[: len(constant)] != constant:
            raise self._unusable(f"writes other words before {index} than before 0")
        return written[len(constant) :]

    @cached_property
    def end_of_turn(self) -> int:
        """The token id that ends an answer."""
        return self.completion(0)[-1]

    @cached_property
    def _constant(self) -> tuple[int, ...]:
        """The token ids before every number, if they are more than space.

        Space alone stays part of the completion: sentencepiece writes it before each word.
        """
        rows = sorted((self._completion(index), index) for index in range(_NUM_CHECKED))
        for (shorter, one), (longer, other) in pairwise(rows):
            if longer[: len(shorter)] == shorter:
                text = self.tokenizer.decode(longer)
                raise self._unusable(f"writes the answers {one} and {other} so that one begins the other: {text!r}")
        (first, _), (last, _) = rows[0], rows[-1]  # sorted: what these two share, all share
        constant = first[: common_prefix_length(first, last)]
        return constant if self.tokenizer.decode(constant).strip() else ()

    def _completion(self, index: int) -> tuple[int, ...]:
        """Return the tokens of an answer as the template writes it, up to the end of the turn."""
        if index not in self._written:
            question = Message("user", "?")
            head = self._text([question], add_generation_prompt=True)
            whole = self._text([question, Message("assistant", str(index))], add_generation_prompt=False)
            if not whole.startswith(head):
                same = common_prefix_length(head, whole)
                raise self._unusable(
                    "words the question differently once it is answered: "
                    f"{head[same : same + 40]!r} before an answer is {whole[same : same + 40]!r} with one"
                )
            prompt, ids = self._ids(head), self._ids(whole)
            # A template that ends in a space (`Answer: `) can have its last token merged with the number behind it.
            ids = ids[len(prompt) :] if ids[: len(prompt)] == prompt else self._ids(whole[len(head) :])
            self._written[index] = self._until_end_of_turn(ids, index)
        return self._written[index]

    def _until_end_of_turn(self, ids: Sequence[int], index: int) -> tuple[int, ...]:
        """Cut behind the first special token behind the number; some templates write others before it."""
        eos = self.tokenizer.eos_token_id
        number = re.compile(rf"(?<!\d){index}(?!\d)")
        start = 0
        for column, token in enumerate(ids):
            if token in self._special or token == eos:
                if number.search(self.tokenizer.decode(ids[start:column])):
                    return tuple(ids[: column + 1])
                start = column + 1
        if not number.search(self.tokenizer.decode(ids[start:])):
            raise self._unusable(f"writes {self.tokenizer.decode(ids)[:200]!r} for the answer {index}")
        if eos is None:
            name = self.tokenizer.name_or_path
            raise ModelError(f"the tokenizer {name!r} has neither an end of turn nor an eos token")
        return (*ids, eos)

    def _unusable(self, fault: str) -> ModelError:
        return ModelError(
            f"the chat template of {self.tokenizer.name_or_path!r} {fault}. Put one into llm.chat_template that begins "
            "an answer as it asks for one, writes the number, and ends the turn (recipes/llm/gpt-neo.yaml shows how)"
        )

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        return self._template.render(rows, add_generation_prompt=add_generation_prompt)

    def _ids(self, text: str) -> list[int]:
        # The template writes the beginning-of-sequence token itself: adding special tokens here would double it.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
