"""A soft prompt before packs is PEFT's own before each prompt alone: same loss, gradients, scores and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.local import generate, score_prompts
from llm_wrapper.llms.soft_prompts import SoftPromptModel, prepended
from llm_wrapper.records import Prompt
from llm_wrapper.training import trainer
from llm_wrapper.training.adapters import SOFT_PROMPT_TEXT, create_adapter
from llm_wrapper.training.collator import Collator
from tests.llms import tiny
from tests.training.test_trainer import examples, groups, log_of, recipe, train_groups

pytestmark = pytest.mark.slow

COUNT = 5

methods = pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
pairs = pytest.mark.parametrize(
    ("architecture", "style"),
    [("llama", "chatml"), ("llama", "numbers"), ("mixtral", "llama3"), ("gemma2", "gemma"), ("gpt_neo", "bare")],
    ids=["llama", "llama-numbers", "mixtral", "gemma2", "gpt_neo"],
)


def soft(llm: LoadedLLM, method: str, *, seed: int | None = 1, count: int = COUNT) -> SoftPromptModel:
    """The LLM behind a soft prompt of random numbers, or without a seed behind a fresh one."""
    model: SoftPromptModel = create_adapter(llm, recipe(method=method, virtual_tokens=count)).eval()
    if seed is not None:
        with torch.no_grad():
            weight = model.prompt_encoder["default"].embedding.weight
            weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def plain(model: Any, **inputs: Any) -> Any:
    """What PEFT's own forward pass gives."""
    return peft.PeftModelForCausalLM.forward(model, **inputs)


def gradient(model: Any) -> torch.Tensor:
    """The gradient on the learned tokens, which alone have one."""
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert list(found) == ["prompt_encoder.default.embedding.weight"]
    grad: torch.Tensor = next(iter(found.values())).clone()
    model.zero_grad()
    return grad


def prompts() -> list[Prompt]:
    """Neighbours that share candidates, and others of other lengths."""
    return [
        tiny.prompt("left dog", 4),
        tiny.prompt("the cat on the chair", 4),
        tiny.prompt("dog", 2, first=3),
        tiny.prompt("the last of them all, far on the right", 12, first=1),
    ]


# --- training --------------------------------------------------------------------------------------------------------


@methods
@pairs
def test_packed_loss_and_gradients_equal_those_of_peft_on_separate_prompts(
    architecture: str, style: str, method: str, tmp_path: Path
) -> None:
    llm, chosen = tiny.llm(architecture, style), recipe(method=method, virtual_tokens=COUNT)
    built = trainer.build_trainer(llm, groups(), chosen, tmp_path)
    built.model = model = soft(tiny.llm(architecture, style), method)
    batch = Collator(llm, groups(), chosen)([{"epoch": 0, "group": place} for place in range(4)])
    num_labels = sum(len(completion) for _, completion in examples(llm, groups(), chosen))
    packed = sum(built.compute_loss(model, part, num_items_in_batch=num_labels) for part in batch["parts"])
    packed.backward()
    ours = gradient(model)

    expected = torch.zeros(())
    for prompt, completion in examples(llm, groups(), chosen):
        labels = torch.tensor([[-100] * len(prompt) + completion])
        mean = plain(model, input_ids=torch.tensor([[*prompt, *completion]]), labels=labels).loss
        expected = expected + mean * len(completion) / num_labels
    torch.autograd.backward(expected)
    theirs = gradient(model)

    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    largest = float(theirs.abs().max())
    assert largest > 1e-4
    assert bool((theirs.abs().sum(dim=1) > 0).all())
    torch.testing.assert_close(ours, theirs, atol=1e-4 * largest, rtol=1e-4)


@methods
@pytest.mark.parametrize("count", [3, 200], ids=["part of the words", "words over and over"])
def test_a_fresh_soft_prompt_reads_as_its_words(method: str, count: int) -> None:
    llm = tiny.llm()
    words = (llm.tokenizer(SOFT_PROMPT_TEXT, add_special_tokens=False)["input_ids"] * 200)[:count]
    row = llm.encoder.encode(tiny.prompt("the cat", 3))
    with torch.inference_mode():
        said = llm.model(torch.tensor([[*words, *row]])).logits[:, count:]
        learned = plain(soft(llm, method, seed=None, count=count), input_ids=torch.tensor([row])).logits[:, -len(row) :]
    torch.testing.assert_close(learned, said, atol=1e-4, rtol=1e-4)


@methods
def test_a_soft_prompt_learns_and_the_model_stays_as_it_is(method: str, tmp_path: Path) -> None:
    llm, before = tiny.llm(), tiny.llm().model.state_dict()
    chosen = recipe(method=method, virtual_tokens=COUNT, epochs=5, learning_rate=0.1)
    outcome = trainer.train_adapter(llm, train_groups(), chosen, tmp_path)
    losses = [row["loss"] for row in log_of(tmp_path) if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert outcome["trainable_parameters"] == COUNT * (32 if method == "prompt-tuning" else 2 * 2 * 16)
    after = llm.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@methods
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(method: str, tmp_path: Path) -> None:
    chosen = recipe(method=method, virtual_tokens=COUNT, scheduler="linear", max_steps=4, save_steps=2)
    trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path)
    first = learned(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path)
    assert [row["step"] for row in log_of(tmp_path) if "loss" in row] == [1, 2, 3, 4]
    torch.testing.assert_close(learned(tmp_path), first, atol=1e-6, rtol=1e-5)


def learned(folder: Path) -> torch.Tensor:
    model = add_adapter(tiny.llm(), folder / "adapter").model
    weight: torch.Tensor = model.prompt_encoder["default"].embedding.weight.detach()
    return weight


def test_gradient_checkpointing_changes_nothing_for_prompt_tuning(tmp_path: Path) -> None:
    for name, is_on in (("without", False), ("with", True)):
        chosen = recipe(method="prompt-tuning", virtual_tokens=COUNT, gradient_checkpointing=is_on, max_steps=2)
        trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path / name)
    torch.testing.assert_close(learned(tmp_path / "with"), learned(tmp_path / "without"), atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_of_prefix_tuning_and_fsdp_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"goes without any: set it to false, and lower train\.tokens_per_batch"):
        recipe(method="prefix-tuning", gradient_checkpointing=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelError, match=r"use recipes/accelerate/ddp\.yaml"):
        soft(tiny.llm(), "prompt-tuning")


@methods
def test_blocks_are_refused(method: str) -> None:
    with pytest.raises(ModelError, match=r"set llm\.attention=auto"):
        soft(tiny.llm(attention="flex_attention"), method)
    with pytest.raises(ModelError, match=r"set llm\.attention=auto"):
        prepended(soft(tiny.llm(), method), {"input_ids": None, "attention_mask": object()})


# --- asking ----------------------------------------------------------------------------------------------------------


def reloaded(architecture: str, style: str, method: str, folder: Path, **section: Any) -> LoadedLLM:
    """The LLM with a soft prompt that was saved and loaded, as another process has it."""
    soft(tiny.llm(architecture, style), method).save_pretrained(folder)
    return add_adapter(tiny.llm(architecture, style, **section), folder)


@methods
@pairs
def test_scores_equal_the_log_probabilities_of_pefts_forward_pass(
    architecture: str, style: str, method: str, tmp_path: Path
) -> None:
    attention = "sdpa" if style in {"numbers", "llama3"} else "eager"
    llm = reloaded(architecture, style, method, tmp_path, attention=attention)
    answers = dict(score_prompts(llm, prompts()))
    bare = dict(score_prompts(tiny.llm(architecture, style), prompts()))
    for place, prompt in enumerate(prompts()):
        row = llm.encoder.encode(prompt)
        values = torch.tensor([alone(llm, row, llm.encoder.completion(i)) for i in range(len(prompt.candidates))])
        assert answers[place].probabilities == pytest.approx(values.softmax(0).tolist(), abs=1e-5)
        assert answers[place].mass == pytest.approx(float(values.exp().sum()), rel=1e-4)
        assert bare[place].mass != pytest.approx(answers[place].mass, rel=1e-3)


@torch.inference_mode()
def alone(llm: LoadedLLM, row: Sequence[int], completion: Sequence[int]) -> float:
    """The log-probability of a completion behind one prompt, by PEFT's own forward pass."""
    logits = plain(llm.model, input_ids=torch.tensor([[*row, *completion]])).logits[0, -len(completion) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(completion)), list(completion)].sum())


@methods
@pairs
def test_texts_are_those_of_the_likeliest_tokens_one_by_one(
    architecture: str, style: str, method: str, tmp_path: Path
) -> None:
    llm = reloaded(architecture, style, method, tmp_path, decode="generate", max_new_tokens=6)
    answers = dict(generate(llm, prompts()))
    for place, prompt in enumerate(prompts()):
        assert answers[place].text == llm.tokenizer.decode(list(greedy(llm, llm.encoder.encode(prompt))))


@torch.inference_mode()
def greedy(llm: LoadedLLM, row: list[int]) -> Iterator[int]:
    """Yield the tokens that follow a prompt, each by a forward pass of its own."""
    for _ in range(llm.section.max_new_tokens):
        token = int(plain(llm.model, input_ids=torch.tensor([row])).logits[0, -1].argmax())
        if token == llm.encoder.end_of_turn:
            return
        yield token
        row = [*row, token]


@methods
def test_a_model_in_16_bit_answers_by_tokens_in_32(method: str, tmp_path: Path) -> None:
    llm = reloaded("llama", "chatml", method, tmp_path)
    expected = dict(score_prompts(llm, prompts()))
    half = tiny.llm()
    half.model.to(torch.bfloat16)
    found = dict(score_prompts(add_adapter(half, tmp_path), prompts()))
    weight = add_adapter(half, tmp_path).model.prompt_encoder["default"].embedding.weight
    assert weight.dtype == torch.float32
    assert found[0].probabilities == pytest.approx(expected[0].probabilities, abs=0.1)
