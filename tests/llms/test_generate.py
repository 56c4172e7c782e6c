"""Batched greedy generation says what one-by-one generation says, and says why it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.local import generate
from llm_wrapper.records import Answer, Prompt
from tests.llms import tiny

pairs = pytest.mark.parametrize(("architecture", "style"), tiny.PAIRS, ids=["-".join(pair) for pair in tiny.PAIRS])


def by_place(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Answer]:
    answers = list(generate(llm, prompts))
    assert sorted(place for place, _ in answers) == list(range(len(prompts)))
    return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]


def one_by_one(llm: LoadedLLM, prompt: Prompt) -> str:
    """What transformers itself generates, without batch and padding, up to the end of the turn."""
    ids = torch.tensor([llm.encoder.encode(prompt)])
    end = llm.encoder.end_of_turn
    output = llm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=llm.section.max_new_tokens,
        eos_token_id=end,
        pad_token_id=llm.tokenizer.pad_token_id,
    )[0, ids.shape[1] :].tolist()
    return str(llm.tokenizer.decode(output[: output.index(end)] if end in output else output))


def questions() -> list[Prompt]:
    texts = ("a", "the left dog", "the very old cat beside the second chair from the left", "dog", "a chair on a cat")
    return [tiny.prompt(text, 2 + i, number=i) for i, text in enumerate(texts)]


def always(llm: LoadedLLM, tokens: Sequence[int]) -> None:
    """Make a Llama say these tokens, whatever it is asked: its last hidden state no longer hangs on the input."""
    says = iter(tokens)

    def biased(module: torch.nn.Module, args: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        wanted = torch.full_like(logits, -10.0)
        wanted[..., next(says)] = 10.0
        return wanted

    llm.model.lm_head.register_forward_hook(biased)


@pairs
@pytest.mark.parametrize(
    "tokens_per_batch", [pytest.param(64, id="alone", marks=pytest.mark.slow), pytest.param(4096, id="together")]
)
def test_a_batch_says_what_each_prompt_gets_alone(architecture: str, style: str, tokens_per_batch: int) -> None:
    llm = tiny.llm(architecture, style, tokens_per_batch=tokens_per_batch, max_new_tokens=4)
    texts = [answer.text for answer in by_place(llm, questions())]
    assert texts == [one_by_one(llm, prompt) for prompt in questions()]
    assert len(set(texts)) > 1, "all the same texts would show nothing"


def test_a_batch_is_one_call() -> None:
    llm = tiny.llm(max_new_tokens=1)
    shapes = []
    llm.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    by_place(llm, questions())
    assert shapes[-1] == 5
    assert max(shapes[:-1]) == 2, "padding is tried out with two rows"
    shapes.clear()
    by_place(llm, questions())
    assert shapes == [5], "once"


THEIRS = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3, "max_new_tokens": 1, "do_sample": True}


def test_the_models_own_generation_config_does_not_count() -> None:
    llm = tiny.llm(max_new_tokens=6)
    expected = [answer.text for answer in by_place(llm, questions())]
    for setting, value in THEIRS.items():
        theirs = transformers.GenerationConfig(**{setting: value})
        llm.model.generation_config = theirs
        assert [answer.text for answer in by_place(llm, questions())] == expected, setting
        assert llm.model.generation_config is theirs


def test_where_padding_changes_answers_each_prompt_goes_alone() -> None:
    llm, rows = tiny.llm(max_new_tokens=4), []
    inner = llm.model.model.forward

    def counting(*args: Any, attention_mask: Any = None, position_ids: Any = None, **given: Any) -> Any:
        rows.append(len(given["input_ids"]))
        return inner(*args, attention_mask=None, position_ids=None, **given)  # padding is read as any other token

    alone = [answer.text for prompt in questions() for answer in by_place(llm, [prompt])]
    llm.model.model.forward = counting
    assert [answer.text for answer in by_place(llm, questions())] == alone
    assert rows[-1] == 1


def test_a_model_that_cannot_generate_is_named() -> None:
    llm = tiny.llm()
    llm.model.model.forward = lambda *args, **given: {}["a cache of another kind"]
    with pytest.raises(ModelError, match=r"llm\.model=tiny-llama fails to generate: KeyError"):
        by_place(llm, questions()[:1])


def test_an_answer_that_ends_its_turn_stopped() -> None:
    llm = tiny.llm()
    always(llm, [*llm.encoder.completion(12), 40, 41])
    (answer,) = by_place(llm, [tiny.prompt("left", 13)])
    assert (answer.text, answer.finish_reason) == ("12", "stop")
    assert answer.probabilities is None
    assert answer.mass is None


def test_an_answer_cut_off_says_so() -> None:
    llm = tiny.llm(max_new_tokens=2)
    one = llm.tokenizer("1", add_special_tokens=False)["input_ids"][0]
    always(llm, [one, one])
    (answer,) = by_place(llm, [tiny.prompt("left", 3)])
    assert (answer.text, answer.finish_reason) == ("11", "length")


def test_an_empty_answer_is_an_empty_text() -> None:
    llm = tiny.llm()
    always(llm, [llm.encoder.end_of_turn])
    (answer,) = by_place(llm, [tiny.prompt("left", 3)])
    assert (answer.text, answer.finish_reason) == ("", "stop")


def test_the_end_of_the_turn_ends_it_though_eos_is_another_token() -> None:
    llm = tiny.llm("mixtral", "llama3")
    assert llm.encoder.end_of_turn != llm.tokenizer.eos_token_id
    always(llm, [*llm.encoder.completion(3), 40, 41, 42, 43, 44, 45, 46])
    assert by_place(llm, [tiny.prompt("left", 13)])[0].text == "3"


def test_nothing_asked_nothing_generated() -> None:
    assert list(generate(tiny.llm(), [])) == []
