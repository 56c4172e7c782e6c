"""Steer a local LLM while it writes, from a worse prompt towards a better one (GLOV, arXiv 2410.06154).

A prompt is represented by the mean of its tokens' hidden states after a middle layer. The difference of
a better prompt and a worse one, times a strength, is added to the hidden state from which each new token is made. The
strength is constant: an addition for one token stays in the cache of the later layers, and is not added again.

    layer l output (1, t, d)   h0 h1 .. ht        after the cache is filled, t = 1: each new token is steered once
                                        + alpha * (mean h(better) - mean h(worse))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.local import continuations
from llm_wrapper.recipe.schema import SamplingSection
from llm_wrapper.records import Prompt


def middle(model: Any) -> int:
    """Return half of the depth: the paper takes layer 17 of 32."""
    return max(1, int(model.config.get_text_config().num_hidden_layers) // 2)


def layer_of(model: Any, number: int | None) -> torch.nn.Module:
    """Return a decoder layer, counted from 1; by default the middle one."""
    count = model.config.get_text_config().num_hidden_layers
    chosen = middle(model) if number is None else number
    for module in model.modules():  # outer modules come first, so experts of a layer are not taken for layers
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            if chosen > count:
                raise ModelError(f"search.layer={chosen}: the model has {count} decoder layers")
            return module[chosen - 1]
    raise ModelError(f"{type(model).__name__} shows no list of its {count} decoder layers; search.alphas=[]")


def _hidden(output: Any) -> torch.Tensor:
    """Return the hidden states (b, t, d) in a decoder layer's output, which is a tensor or begins with one."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.inference_mode()
def pooled_state(llm: LoadedLLM, text: str, layer: int | None = None) -> torch.Tensor:
    """Return the mean of the hidden states of a text's tokens after a layer, (d,) in float32.

    Special tokens that the tokenizer puts around a text do not count: they are the same for all texts, and the state of
    the first one is so large in many models that it would be most of the mean.
    """
    tokens = llm.tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    ordinary = tokens["special_tokens_mask"][0] == 0
    seen: list[torch.Tensor] = []
    handle = layer_of(llm.model, layer).register_forward_hook(lambda _, __, output: seen.append(_hidden(output)))
    try:
        llm.model(input_ids=tokens["input_ids"].to(llm.model.device), use_cache=False)
    finally:
        handle.remove()
    return seen[0][0][ordinary.to(seen[0].device)].float().mean(dim=0)


def offset(llm: LoadedLLM, better: str, worse: str, layer: int | None = None) -> torch.Tensor:
    """Return the pooled state of a better prompt minus that of a worse one, (d,) in float32."""
    return pooled_state(llm, better, layer) - pooled_state(llm, worse, layer)


@contextmanager
def steered(model: Any, shift: torch.Tensor, layer: int | None = None) -> Iterator[None]:
    """Add a shift to the hidden state of the last position after a layer, in every forward pass within the block.

    With a key-value cache a pass after the first has one position, so each new token is steered once and by the same
    shift, the first one by the last position of the prompt. Without a cache earlier tokens would lose theirs: do not
    generate without. A shift of zero changes no bit.

    `shift` is (d,), the offset times its strength; padding, if any, is on the left.
    """
    if not bool(shift.any()):
        yield
        return

    def add(_: Any, __: Any, output: Any) -> Any:
        hidden = _hidden(output).clone()
        hidden[:, -1] += shift.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layer_of(model, layer).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def sample_text(llm: LoadedLLM, prompt: Prompt, sampling: SamplingSection, *, seed: int) -> tuple[str, int]:
    """Draw one answer, and return it with its number of tokens; the same seed draws the same one.

    Other random numbers of the program are left as they are.
    """
    ids = torch.tensor([llm.encoder.encode(prompt)], device=llm.model.device)
    end = llm.encoder.end_of_turn
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or 0}
    with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
        torch.manual_seed(seed)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        output = continuations(llm, inputs, do_sample=True, max_new_tokens=sampling.max_new_tokens, **settings)
    row = output[0, ids.shape[1] :].tolist()
    tokens = row[: row.index(end)] if end in row else row
    return str(llm.tokenizer.decode(tokens)), len(row)
