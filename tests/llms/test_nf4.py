"""A 4-bit model computes with its packed weights, trains its adapter alone, and is refused where it is not 4-bit."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import modeling_utils

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import nf4
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.llms.load import load_model
from llm_wrapper.llms.nf4 import footprint
from llm_wrapper.recipe import LLMSection
from tests.llms import tiny
from tests.training import families

bnb = pytest.importorskip("bitsandbytes")

# torch.jit of the import, and kernels that bitsandbytes would rather have.
pytestmark = [
    pytest.mark.slow,  # seconds each; CI runs them
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*kernels:UserWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["w1", "w2", "w3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Mixtral and a tiny Llama on disk, as transformers saves them."""
    made = {}
    for name in ("mixtral", "llama"):
        made[name] = tmp_path_factory.mktemp(name)
        tiny.model(name).save_pretrained(made[name])
        tiny.tokenizer("llama3").save_pretrained(made[name])
    return made


def section(folder: Path, **changes: Any) -> LLMSection:
    options = {"quantization": "nf4", "dtype": "float32", "attention": "eager", **changes}
    return LLMSection(model=str(folder), **options)


def there_and_back(weight: torch.Tensor) -> torch.Tensor:
    """What bitsandbytes makes of a weight, by its own two functions."""
    packed, state = bnb.functional.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    return bnb.functional.dequantize_4bit(packed, state)


def rounded(name: str) -> Any:
    """The plain transformers model whose linear weights went through 4 bit, each matrix of an expert alone."""
    model = tiny.model(name)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "gate_up_proj" in key and weight.ndim == 3:
                for expert in weight:
                    gate, up = expert.chunk(2)
                    expert.copy_(torch.cat([there_and_back(gate), there_and_back(up)]))
            elif "experts" in key:
                for expert in weight:
                    expert.copy_(there_and_back(expert))
            elif "proj" in key:
                weight.copy_(there_and_back(weight))
    return model


def adapted(model: Any, targets: Any, *, checkpointing: bool = False) -> Any:
    """Put an adapter with random weights on a model, the same ones on each call, and make it train."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()  # renamed in transformers 5.23; the lock for Python 3.10 has 5.20
    return model.train()


def batch() -> torch.Tensor:
    return torch.arange(40, 100).reshape(2, 30)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=batch(), labels=batch(), use_cache=False).loss.backward()
    return {key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None}


def frozen(model: Any) -> dict[str, torch.Tensor]:
    return {key: each.detach().clone() for key, each in model.named_parameters() if "lora_" not in key}


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "llama"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_logits_are_those_of_the_rounded_weights(folders: dict[str, Path], name: str, training: bool) -> None:
    model, expected = load_model(section(folders[name])).model, rounded(name)
    model.train(training)
    for _ in range(2):  # bitsandbytes may repack a weight on the first pass
        with torch.inference_mode():
            torch.testing.assert_close(model(batch()).logits, expected(batch()).logits, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        assert (expected(batch()).logits - tiny.model(name)(batch()).logits).abs().max() > 0.1


def test_padding_and_a_cache_give_the_same_answers(folders: dict[str, Path]) -> None:
    model = load_model(section(folders["mixtral"])).model
    ids = batch()[:1]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * ids.shape[1]])
    with torch.inference_mode():
        whole = model(ids).logits[:, -1]
        shifted = model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1]
        begun = model(ids[:, :-1], use_cache=True)
        resumed = model(ids[:, -1:], past_key_values=begun.past_key_values).logits[:, -1]
    torch.testing.assert_close(shifted, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(resumed, whole, atol=1e-4, rtol=1e-4)


def test_the_model_keeps_its_name_and_settings(folders: dict[str, Path]) -> None:
    llm = load_model(section(folders["mixtral"], dtype="bfloat16"))
    assert llm.model.name_or_path == str(folders["mixtral"])
    assert llm.model.dtype is torch.bfloat16
    plain = tiny.model("mixtral").config.to_dict()
    ours = llm.model.config.to_dict()
    assert {key for key in plain if plain[key] != ours[key]} <= {
        "_name_or_path", "architectures", "dtype", "model_type", "transformers_version",
    }  # fmt: skip
    assert llm.model.model.layers[0].mlp.gate.weight.dtype is torch.bfloat16


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_the_footprint_of_mixtral(folders: dict[str, Path]) -> None:
    model = load_model(section(folders["mixtral"])).model
    found = footprint(model)
    attention, experts, router = 2 * (32 * 32 + 32 * 16), 4 * 3 * 32 * 48, 4 * 32
    assert found.num_4bit == 2 * (attention + experts)
    assert found.num_weights == 2 * (attention + experts + router)
    assert found.num_parameters == sum(each.numel() for each in tiny.model("mixtral").parameters())
    assert [row[0] for row in found.others] == [f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 1)]
    assert found.others[0][1:] == ((4, 32), "float32")
    assert found.quantized_share == found.num_4bit / found.num_weights > 0.99
    plain = 4 * (found.num_parameters - found.num_4bit)
    assert plain + found.num_4bit / 2 < found.num_bytes < plain + 2 * found.num_4bit


def test_the_footprint_of_a_plain_model() -> None:
    model = tiny.model("gpt_neo")  # with an embedding of places beside that of tokens, and tied ones
    found = footprint(model)
    assert found.quantized_share == 0
    assert found.num_bytes == 4 * found.num_parameters == 4 * sum(each.numel() for each in model.parameters())
    assert found.num_weights == sum(
        each.numel()
        for key, each in model.named_parameters()
        if each.ndim > 1 and "wte" not in key and "wpe" not in key
    )
    assert len(found.others[0][1]) == 2
    assert torch.Size(found.others[0][1]).numel() == 32 * 48


def test_a_model_without_matrices_is_not_divided_by() -> None:
    assert nf4.Footprint(10, 0, 0, 40, ()).quantized_share == 1


# --- what is refused -------------------------------------------------------------------------------------------------


def test_plain_transformers_leaves_experts_in_16_bit(folders: dict[str, Path]) -> None:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["mixtral"], quantization_config=config)
    assert footprint(model).quantized_share < 0.2  # once this fails, transformers does what nf4.py does


def test_fused_experts_of_another_architecture_are_refused(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        **{key: value for key, value in tiny._SIZES.items() if key != "initializer_range"},
        head_dim=8, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer("llama3").save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(section(tmp_path))
    message = str(caught.value)
    assert f"llm.model={tmp_path} cannot be held in 4 bit: 14% of its linear and expert weights" in message
    assert "95% are needed" in message
    assert "llm.quantization=none" in message
    assert "\n  - model.layers.0.mlp.experts.gate_up_proj: (4, 96, 32)\n" in message


def test_fused_experts_are_refused_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.settings("qwen3-moe").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be held in 4 bit: \d+% .*set llm\.quantization=none"):
        nf4.load_4bit(str(tmp_path))


def test_a_checkpoint_that_is_packed_otherwise_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config = families.settings("gpt-oss")
    config.quantization_config = {"quant_method": "mxfp4"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"comes packed as mxfp4: set llm\.quantization=none"):
        nf4.load_4bit(str(tmp_path))


def test_experts_apart_mix_as_fused_ones_do() -> None:
    config = tiny.CONFIGS["mixtral"]()
    torch.manual_seed(5)
    experts = nf4._Experts(nf4._Expert(config) for _ in range(4))
    states, index = torch.randn(7, 32), torch.tensor([[2, 0], [0, 2], [2, 0], [3, 2], [0, 3], [2, 3], [3, 0]])
    weights = torch.rand(7, 2)
    wanted = torch.stack(
        [sum(weights[i, j] * experts[int(index[i, j])](states[i]) for j in range(2)) for i in range(7)]
    )
    torch.testing.assert_close(experts(states, index, weights), wanted)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        pytest.param("experts.3.w2", "model.layers.0.mlp.experts.3.w2.weight", id="one expert"),
        pytest.param("self_attn.q_proj", "model.layers.1.self_attn.q_proj.weight", id="attention"),
        pytest.param("lm_head", "lm_head.weight", id="output"),
    ],
)
def test_missing_weights_are_named(folders: dict[str, Path], tmp_path: Path, gone: str, named: str) -> None:
    shutil.copytree(folders["mixtral"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: each for key, each in tensors.items() if gone not in key}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"llm.model={tmp_path}.*{named}|(?s:weights are missing.*{named})"):
        load_model(section(tmp_path))


def test_a_checkpoint_with_fused_experts_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["mixtral"], tmp_path, dirs_exist_ok=True)
    save_file(tiny.model("mixtral").state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing.*\(24 problems\)"):
        load_model(section(tmp_path))


@pytest.mark.parametrize("fails", [False, True], ids=["loaded", "failed"])
def test_transformers_is_left_as_it_was(folders: dict[str, Path], tmp_path: Path, fails: bool) -> None:
    before = modeling_utils.safe_open
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    if fails:
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(section(tmp_path))
    else:
        load_model(section(tmp_path))
    assert modeling_utils.safe_open is before


def test_weights_are_read_and_not_mapped(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = modeling_utils.safe_open

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(options["backend"])
        return original(*args, **options)

    monkeypatch.setattr(modeling_utils, "safe_open", watched)
    load_model(section(folders["llama"]))
    assert asked == ["pread"]


# --- how it trains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "llama"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_gradients_are_those_of_the_rounded_weights(folders: dict[str, Path], name: str, checkpointing: bool) -> None:
    model = load_model(section(folders[name])).model
    with torch.inference_mode():
        model(batch())  # scoring before training must not break it
    found = gradients(adapted(model, ATTENTION, checkpointing=checkpointing))
    expected = gradients(adapted(rounded(name), ATTENTION))
    assert found.keys() == expected.keys()
    assert len(found) == 2 * 2 * len(ATTENTION)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("targets", [ATTENTION, EXPERTS, "all-linear"], ids=["attention", "experts", "all-linear"])
def test_a_step_changes_the_adapter_alone(folders: dict[str, Path], targets: Any) -> None:
    model = adapted(load_model(section(folders["mixtral"])).model, targets)
    before, adapter = frozen(model), {k: v.detach().clone() for k, v in model.named_parameters() if "lora_" in k}
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    model(input_ids=batch(), labels=batch()).loss.backward()
    optimizer.step()
    assert all(torch.equal(each, before[key]) for key, each in frozen(model).items())
    changed = {key for key, each in model.named_parameters() if "lora_" in key and not torch.equal(each, adapter[key])}
    assert changed == adapter.keys()
    names = {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in adapter}
    assert names == set([*ATTENTION, *EXPERTS] if targets == "all-linear" else targets)  # no router, no lm_head


@pytest.mark.parametrize("targets", [ATTENTION, [*ATTENTION, *EXPERTS]], ids=["attention", "experts"])
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")  # PEFT's own
def test_an_adapter_travels_to_the_plain_model(folders: dict[str, Path], tmp_path: Path, targets: list[str]) -> None:
    model = adapted(load_model(section(folders["mixtral"])).model, targets).eval()
    model.save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == set(targets)
    with torch.inference_mode():
        expected = model(batch()).logits
        again = add_adapter(load_model(section(folders["mixtral"])), tmp_path).model(batch()).logits
        plain = peft.PeftModel.from_pretrained(rounded("mixtral"), str(tmp_path)).eval()(batch()).logits
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(plain, expected, atol=1e-4, rtol=1e-4)


def test_a_copy_is_as_good(folders: dict[str, Path]) -> None:
    model = load_model(section(folders["mixtral"])).model
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(model)(batch()).logits, model(batch()).logits)
