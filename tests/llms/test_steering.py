"""Guidance shifts the last position's hidden state by exactly what is asked, at each step, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.steering import layer_of, middle, offset, pooled_state, sample_text, steered
from llm_wrapper.recipe.schema import SamplingSection
from tests.llms import tiny

pytestmark = pytest.mark.slow

SAMPLING = SamplingSection(max_new_tokens=6)
BETTER, WORSE = "the left dog of 4 dogs", "12 chairs"


def states(llm: LoadedLLM, run: Any, layer: int | None = None) -> list[torch.Tensor]:
    """What comes out of a layer in each forward pass of a function, after all hooks that stand there already."""
    seen: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = layer_of(llm.model, layer).register_forward_hook(keep)
    run()
    handle.remove()
    return seen


@torch.inference_mode()
def generated(llm: LoadedLLM, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
    output: torch.Tensor = llm.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=steps, max_new_tokens=steps,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return output


@tiny.pairs
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_the_last_position_is_shifted_by_alpha_times_the_offset_at_each_step_and_no_other(
    architecture: str, style: str, alpha: float
) -> None:
    llm = tiny.llm(architecture, style)
    ids = torch.tensor([llm.encoder.encode(tiny.said("find the dog", roles=("user",)))])
    shift = alpha * offset(llm, BETTER, WORSE)
    assert float(shift.abs().max()) > 1e-3

    # The steered states: the hook that looks is registered within the block, so it sees what the later layers see.
    with steered(llm.model, shift):
        after = states(llm, lambda: generated(llm, ids))
    # What the layer gives before the shift, for the very same inputs: its own hook stands in front.
    before: list[torch.Tensor] = []
    handle = layer_of(llm.model, None).register_forward_hook(
        lambda _, __, out: before.append((out[0] if isinstance(out, tuple) else out).clone())
    )
    with steered(llm.model, shift):
        generated(llm, ids)
    handle.remove()

    assert [tuple(each.shape[:2]) for each in after] == [(1, ids.shape[1])] + [(1, 1)] * 4
    for plain, moved in zip(before, after, strict=True):
        assert torch.equal(moved[:, :-1], plain[:, :-1])
        assert torch.equal(moved[:, -1], plain[:, -1] + shift)


@tiny.pairs
def test_what_comes_before_the_layer_is_the_same_and_what_comes_after_is_not(architecture: str, style: str) -> None:
    llm = tiny.llm(architecture, style)
    ids = torch.tensor([llm.encoder.encode(tiny.said("find the dog", roles=("user",)))])
    shift = 4 * offset(llm, BETTER, WORSE)

    @torch.inference_mode()
    def logits() -> torch.Tensor:
        found: torch.Tensor = llm.model(input_ids=ids).logits
        return found

    plain = logits()
    with steered(llm.model, shift):
        moved = logits()
    assert torch.equal(moved[:, :-1], plain[:, :-1])
    assert not torch.allclose(moved[:, -1], plain[:, -1])
    assert torch.equal(logits(), plain)  # the hook is gone


@tiny.pairs
def test_alpha_zero_changes_no_bit(architecture: str, style: str) -> None:
    llm = tiny.llm(architecture, style)
    prompt = tiny.said("find the dog", roles=("user",))
    ids = torch.tensor([llm.encoder.encode(prompt)])
    plain = states(llm, lambda: generated(llm, ids), 2)
    with steered(llm.model, 0.0 * offset(llm, BETTER, WORSE)):
        same = states(llm, lambda: generated(llm, ids), 2)
        text = sample_text(llm, prompt, SAMPLING, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(plain, same, strict=True))
    assert text == sample_text(llm, prompt, SAMPLING, seed=3)


def test_the_shift_is_constant_and_does_not_add_up() -> None:
    """With a shift, each step is as if the prompt so far had its later layers see one shift at each such position."""
    llm = tiny.llm()
    ids = torch.tensor([llm.encoder.encode(tiny.said("find", roles=("user",)))])
    shift = offset(llm, BETTER, WORSE)
    with steered(llm.model, shift):
        output = generated(llm, ids)
    start = ids.shape[1] - 1

    def add_at_all(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        moved = out.clone()
        moved[:, start:] += shift
        return moved

    handle = layer_of(llm.model, None).register_forward_hook(add_at_all)
    with torch.inference_mode():
        logits = llm.model(input_ids=output[:, :-1]).logits
        logits[..., 1] = -torch.inf  # generation was kept from ending
    handle.remove()
    assert torch.equal(logits[0, start:].argmax(-1), output[0, ids.shape[1] :])


@tiny.pairs
def test_a_pooled_state_is_the_mean_over_the_texts_own_tokens(architecture: str, style: str) -> None:
    llm = tiny.llm(architecture, style)
    tokens = llm.tokenizer(BETTER, return_tensors="pt")["input_ids"]
    num_special = tokens.shape[1] - len(llm.tokenizer(BETTER, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        hidden = llm.model(input_ids=tokens, output_hidden_states=True).hidden_states
    expected = hidden[middle(llm.model)][0, num_special:].mean(dim=0)
    torch.testing.assert_close(pooled_state(llm, BETTER), expected)
    assert offset(llm, BETTER, BETTER).abs().max() == 0
    assert torch.equal(offset(llm, BETTER, WORSE), -offset(llm, WORSE, BETTER))


def test_draws_hang_on_the_seed_alone() -> None:
    llm = tiny.llm()
    prompt = tiny.said("find the dog", roles=("user",))
    texts = [sample_text(llm, prompt, SAMPLING, seed=seed) for seed in range(5)]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert [sample_text(llm, prompt, SAMPLING, seed=seed) for seed in range(5)] == texts
    assert torch.equal(torch.get_rng_state(), state)
    assert len({text for text, _ in texts}) == 5
    assert all(1 <= num_tokens <= 6 for _, num_tokens in texts)


def test_steering_changes_what_is_drawn() -> None:
    llm = tiny.llm()
    prompt = tiny.said("find the dog", roles=("user",))
    plain = [sample_text(llm, prompt, SAMPLING, seed=seed) for seed in range(4)]
    with steered(llm.model, 8 * offset(llm, BETTER, WORSE)):
        assert [sample_text(llm, prompt, SAMPLING, seed=seed) for seed in range(4)] != plain


@pytest.mark.parametrize("number", [1, 2])
def test_layers_are_counted_from_one(number: int) -> None:
    model = tiny.model("mixtral")
    assert layer_of(model, number) is model.model.layers[number - 1]


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"search\.layer=3: the model has 2 decoder layers"):
        layer_of(tiny.model("llama"), 3)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny.model("llama")
    model.model.layers = None
    with pytest.raises(ModelError, match="no list of its 2 decoder layers"):
        layer_of(model, 1)
