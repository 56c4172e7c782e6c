"""Prompt -> token ids. The chat template is applied here and only here, for training and for inference alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from llm_wrapper.errors import ModelError, PromptError
from llm_wrapper.records import Message, Prompt

__all__ = ["ChatEncoder"]


class ChatEncoder:
    """Encodes prompts and completions of one tokenizer.

    The completion of index i is the tokens of the number and the end of the turn, exactly as the chat template
    writes them; what the template adds after the end of the turn (a newline, say) is not part of it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        chat_template: A Jinja chat template for tokenizers that have none.

    Raises:
        ModelError: If neither the tokenizer nor the recipe has a chat template.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._template = chat_template or tokenizer.chat_template
        if not self._template:
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "set llm.chat_template in the recipe (recipes/llm/gpt-neo.yaml shows how)"
            )
        self._special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._completions: dict[int, tuple[int, ...]] = {}

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, up to where the answer begins.

        Raises:
            PromptError: If the prompt's text forms a special token, so that it could end its own turn.
        """
        ids = self._ids(self._text(prompt.messages, add_generation_prompt=True))
        found = sum(token in self._special for token in ids)
        expected = self._num_special(prompt.messages)
        if found != expected:
            raise PromptError(
                f"the prompt of sample {prompt.sample_id} has {found} special tokens where its template has "
                f"{expected}: its text forms a special token of {self.tokenizer.name_or_path!r}"
            )
        return ids

    def completion(self, index: int) -> tuple[int, ...]:
        """Return the token ids of an index and the end of the turn."""
        if index not in self._completions:
            question = Message("user", "?")
            head = self._text([question], add_generation_prompt=True)
            whole = self._text([question, Message("assistant", str(index))], add_generation_prompt=False)
            if not whole.startswith(head):
                raise ModelError("the chat template words the question differently once it is answered")
            self._completions[index] = self._until_end_of_turn(self._continuation(head, whole))
        return self._completions[index]

    def _continuation(self, head: str, whole: str) -> list[int]:
        """Return the token ids that follow those of `head`, which no tokenizer may change any more."""
        prompt, ids = self._ids(head), self._ids(whole)
        # A template that ends in a space (`Answer: `) can have its last token merged with the number behind it.
        return ids[len(prompt) :] if ids[: len(prompt)] == prompt else self._ids(whole[len(head) :])

    @cached_property
    def end_of_turn(self) -> int:
        """The token id that ends an answer."""
        return self.completion(0)[-1]

    def _until_end_of_turn(self, ids: Sequence[int]) -> tuple[int, ...]:
        for place, token in enumerate(ids):
            if token in self._special or token == self.tokenizer.eos_token_id:
                return tuple(ids[: place + 1])
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has neither an end of turn nor an eos token"
            )
        return (*ids, self.tokenizer.eos_token_id)

    def _num_special(self, messages: Sequence[Message]) -> int:
        harmless = [Message(message.role, "?") for message in messages]
        return sum(token in self._special for token in self._ids(self._text(harmless, add_generation_prompt=True)))

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self.tokenizer.apply_chat_template(
                rows, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=self._template
            )
        )

    def _ids(self, text: str) -> list[int]:
        # The template writes the beginning-of-sequence token itself: adding special tokens here would double it.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
