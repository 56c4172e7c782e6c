"""Packs are shared where a trial finds them exact, and a model that gives no scores of its own is refused."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import packing
from llm_wrapper.llms.packing import can_share_prefixes, collate, model_batch, pack_tree
from llm_wrapper.llms.self_test import require_exact
from tests.llms import tiny

SIZES = {"vocab_size": 300, "hidden_size": 32, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def mpt() -> Any:
    return made(transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=300, initializer_range=0.3))


def bloom() -> Any:
    return made(transformers.BloomConfig(**SIZES, n_layer=2, n_head=4))


def falcon_alibi() -> Any:
    return made(transformers.FalconConfig(**SIZES, num_hidden_layers=2, num_attention_heads=4, alibi=True))


def rwkv() -> Any:
    return made(transformers.RwkvConfig(**SIZES, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48))


def mamba() -> Any:
    return made(transformers.MambaConfig(**SIZES, num_hidden_layers=2, state_size=8))


def llama4() -> Any:
    more = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    return made(transformers.Llama4TextConfig(**SIZES, **LAYERS, **more, attention_chunk_size=16))


def bert(*, is_decoder: bool) -> Any:
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, initializer_range=0.3, is_decoder=is_decoder, **LAYERS
    )
    return made(config)


# --- what may be shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "shared"),
    [
        pytest.param(lambda: tiny.model("llama"), True, id="llama"),
        pytest.param(lambda: tiny.model("llama", attention="sdpa"), True, id="llama-sdpa"),
        pytest.param(lambda: tiny.model("mixtral"), True, id="mixtral"),
        pytest.param(mpt, False, id="mpt: positions are places in the row"),
        pytest.param(bloom, False, id="bloom: takes no mask of four dimensions"),
        pytest.param(falcon_alibi, False, id="falcon: the same"),
        pytest.param(rwkv, False, id="rwkv: a state along the row"),
        pytest.param(mamba, False, id="mamba: the same"),
        pytest.param(lambda: bert(is_decoder=True), True, id="bert as a decoder"),
        pytest.param(llama4, False, id="llama 4: chunks"),
    ],
)
def test_packs_are_shared_where_they_are_exact(build: Callable[[], Any], shared: bool) -> None:
    model = build()
    require_exact(model, "tiny")
    assert can_share_prefixes(model, 100) is shared


def test_what_is_not_shared_is_said_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        require_exact(mpt(), "tiny-mpt")
    (record,) = [record.getMessage() for record in caplog.records if record.name.startswith("llm_wrapper")]
    assert "llm.model=tiny-mpt: packed questions do not get the scores" in record
    assert "slower, and exact" in record


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({}, None, id="plain"),
        pytest.param({"sliding_window": None, "layer_types": ["full_attention"]}, None, id="window off"),
        pytest.param({"sliding_window": 0}, None, id="window of nothing is none"),
        pytest.param({"sliding_window": 4096}, 4096, id="window"),
        pytest.param({"sliding_window": 4096, "layer_types": ["full_attention"]}, None, id="window that no layer has"),
        pytest.param({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, 512, id="some"),
        pytest.param({"layer_types": ["chunked_attention"]}, 0, id="chunks of unknown size"),
        pytest.param({"layer_types": ["chunked_attention"], "attention_chunk_size": 8192}, 8192, id="chunks"),
        pytest.param({"layer_types": ["full_attention", "linear_attention"]}, 0, id="recurrent"),
        pytest.param({"attention_layers": ["global", "local"], "window_size": 256}, 256, id="local"),
        pytest.param({"attention_layers": ["global", "global"], "window_size": 256}, None, id="global"),
        pytest.param({"local_attention": 128}, 128, id="modernbert"),
        pytest.param({"max_window_layers": 28, "use_sliding_window": True}, None, id="no sizes"),
    ],
)
def test_windows(config: dict[str, Any], expected: int | None) -> None:
    assert packing._window(SimpleNamespace(**config)) == expected


@pytest.mark.parametrize(("longest", "expected"), [(1, True), (99, True), (100, False), (10_000, False)])
def test_a_window_is_held_against_the_longest_pack(longest: int, expected: bool) -> None:
    assert can_share_prefixes(tiny.model("gemma2", sliding_window=100), longest) is expected


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_flash_attention_takes_no_mask_and_blocks_have_no_window(attention: str) -> None:
    model = tiny.model("gemma2")
    model.config._attn_implementation = attention
    assert not can_share_prefixes(model, 1)


def test_a_model_without_weights_is_believed() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny.CONFIGS["llama"]())
    assert can_share_prefixes(model, 1000)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("rank", [0, 4], ids=["bare", "adapted"])
def test_bfloat16_is_told_from_a_wrong_mask(architecture: str, rank: int) -> None:
    model = tiny.model(architecture).to(torch.bfloat16)
    if rank:
        lora = peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(model, lora)
    assert can_share_prefixes(model, 100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [mpt, rwkv, mamba])
def test_a_wrong_mask_shows_in_short_types_too(build: Callable[[], Any], dtype: torch.dtype) -> None:
    assert not can_share_prefixes(build().to(dtype), 100)


def test_a_trial_leaves_everything_as_it_was() -> None:
    model = tiny.model("llama")
    model.train()
    model.model.layers[0].eval()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    training = {name: module.training for name, module in model.named_modules()}
    require_exact(model, "tiny")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert {name: module.training for name, module in model.named_modules()} == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == "eager"
    model(torch.tensor([[5, 6, 7]])).logits.sum().backward()  # no tensor of the trial is left behind


def test_a_model_is_tried_out_once() -> None:
    model, passes = tiny.model("llama"), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(3):
        require_exact(model, "tiny")
    assert can_share_prefixes(peft.PeftModel(model, peft.LoraConfig(target_modules=["q_proj"])), 50)
    assert len(passes) == 4


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_whose_tokens_see_the_answer_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"tokens see those behind them .*it fills gaps and does not continue text"):
        require_exact(bert(is_decoder=False).to(dtype), "bert")


def test_a_model_that_fails_is_refused_with_its_words() -> None:
    model = tiny.model("llama")
    model.model.layers[0].forward = lambda *args, **given: {}["a key"]
    with pytest.raises(ModelError, match="fails at a plain text: KeyError: 'a key'"):
        require_exact(model, "tiny")


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.inf
    with pytest.raises(ModelError, match=r"not finite .*llm\.dtype=float32"):
        require_exact(model, "tiny")


def test_a_model_that_mixes_padding_in_is_refused() -> None:
    model = tiny.model("llama")
    forward = model.model.forward

    def mixed(*args: Any, attention_mask: Any = None, **given: Any) -> Any:
        output = forward(*args, attention_mask=attention_mask, **given)
        if attention_mask is not None:
            output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    model.model.forward = mixed
    with pytest.raises(ModelError, match="other logits to a padded batch than to its rows alone"):
        require_exact(model, "tiny")


# --- masks -----------------------------------------------------------------------------------------------------------


def test_plain_rows_get_a_mask_of_two_dimensions_and_trees_one_of_four() -> None:
    model = tiny.model("llama")
    rows = [pack_tree([[5, 6, 7]], merge=True), pack_tree([[5, 6]], merge=True)]
    tree = pack_tree([[5, 6, 7], [5, 8]], merge=True)
    assert model_batch(model, rows, 0)["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    mask, visible = (make([*rows, tree], 0)["attention_mask"] for make in (partial(model_batch, model), collate))
    assert mask.shape == (3, 1, 4, 4)
    assert (mask == 0).equal(visible)
