"""An OpenAI-compatible server around a tiny model, which answers well unless a test has scripted something else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from llm_wrapper.llms.load import LoadedLLM
from tests.detectors.misbehaving_server import GOOD, MisbehavingServer, Seen, Step


class ModelServer(MisbehavingServer):
    """Serves `/v1/completions` with echoed log-probabilities, and `/v1/chat/completions`.

    Attributes:
        most_at_once: The most requests that were under way at the same time.
        holds_to_schema: Whether `response_format` is obeyed.
        echoes: Whether the log-probabilities of the prompt are given.
        seconds: How long each answer takes at least.
    """

    def __init__(self, llm: LoadedLLM) -> None:
        super().__init__()
        self.llm = llm
        self.most_at_once = 0
        self.holds_to_schema = True
        self.echoes = True
        self.seconds = 0.0
        self._at_once = 0
        self._model = threading.Lock()
        self._count = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def submit(self, seen: Seen) -> tuple[Step, Any]:
        with self._counted():
            time.sleep(self.seconds)
            step = self.submits.popleft() if self.submits else GOOD
            if not step.good:
                return step, None
            with self._model, torch.inference_mode():
                good = self._completions if seen.path == "/v1/completions" else self._chat
                return step, good(seen.body)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._count:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._count:
            self._at_once -= 1

    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {"index": i, "logprobs": {"token_logprobs": self._echo(row)}} for i, row in enumerate(body["prompt"])
        ]
        return {"choices": choices[::-1], "usage": {"prompt_tokens": sum(map(len, body["prompt"]))}}

    def _echo(self, ids: Sequence[int]) -> list[float | None]:
        table = self._table(ids)
        best = float(table[-1].max())
        if not self.echoes:
            return [best]
        return [None, *(float(table[place, token]) for place, token in enumerate(ids[1:])), best]

    def _table(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.log_softmax(self.llm.model(torch.tensor([list(ids)])).logits[0].double(), dim=-1)

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        tokenizer, end = self.llm.tokenizer, self.llm.encoder.end_of_turn
        ids = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(ids, add_special_tokens=False)["input_ids"]
        said: list[int] = []
        content = []
        while len(said) < body["max_tokens"] and end not in said:
            row = self._table([*ids, *said])[-1]
            said.append(int(row.argmax()))
            content.append({**self._token(row, said[-1]), "top_logprobs": self._best(row, body)})
        reason = "stop" if end in said else "length"
        text = tokenizer.decode(said[: said.index(end)] if end in said else said)
        if "response_format" in body and self.holds_to_schema:
            text, reason = f"{body['response_format']['json_schema']['schema']['enum'][-1]} ", "stop"
        chat: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
        if body.get("logprobs"):
            chat["logprobs"] = {"content": content}
        return {"choices": [{"index": 0, **chat}], "usage": {"completion_tokens": len(said)}}

    def _best(self, row: torch.Tensor, body: dict[str, Any]) -> list[dict[str, Any]]:
        return [self._token(row, int(token)) for token in row.topk(body.get("top_logprobs", 0)).indices]

    def _token(self, row: torch.Tensor, token: int) -> dict[str, Any]:
        return {"token": self.llm.tokenizer.decode([token]), "logprob": float(row[token])}
