"""Adapters that plain PEFT code made: what fits is loaded whole, what does not is refused with every reason."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm_wrapper import adapter_files
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.errors import DataError, ModelError
from llm_wrapper.llms import nf4
from llm_wrapper.llms.adapters import add_adapter, require_fit
from tests.llms import tiny

PAPERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
WEIGHTS = "adapter_model.safetensors"
COPY = "base_model.model.lm_head.base_layer.weight"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
]


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        **{"r": 4, "target_modules": PAPERS, "task_type": "CAUSAL_LM", "init_lora_weights": False, **options}
    )


def third_party(folder: Path, config: Any = None, model: Any = None, *, base: str | None = "tiny-llama") -> Path:
    """Save an adapter with random weights as another program would."""
    torch.manual_seed(5)
    model = peft.get_peft_model(model or tiny.model("llama"), config or lora())
    for name, parameter in model.named_parameters():
        if ".default" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = None  # or PEFT looks for it on the hub
    model.save_pretrained(folder)
    return changed(folder, base_model_name_or_path=base)


def spoil(weights: dict[str, torch.Tensor], value: float) -> None:
    """Set one number of a weight."""
    weights[sorted(weights)[0]].view(-1)[3] = value


def changed(folder: Path, **values: Any) -> Path:
    """Change settings of a saved adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Change the weights of a saved adapter."""
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS)
    return folder


def cut_off(folder: Path) -> Path:
    """Leave the first bytes of an adapter's weights."""
    os.truncate(folder / WEIGHTS, 100)
    return folder


def sized(name: str = "llama", **values: Any) -> Any:
    """A random model of another size."""
    config = tiny.CONFIGS[name]()
    for key, value in values.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def resized() -> Any:
    model = tiny.model("llama")
    model.resize_token_embeddings(520)
    return model


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([[40, 41, 42, 43, 44]])).logits
    return found


# what fits


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lora(), id="lm_head"),
        pytest.param(lora(target_modules="all-linear", use_dora=True), id="dora"),
        pytest.param(lora(task_type=None, target_modules=r".*\.q_proj"), id="no-task-and-a-pattern"),
        pytest.param(lora(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]), id="trained-ends"),
        pytest.param(lora(target_modules=["q_proj", "embed_tokens"]), id="embeddings"),
        pytest.param(lora(init_lora_weights="pissa", target_modules=["q_proj"]), id="pissa"),
        pytest.param(
            peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), id="ia3"
        ),
    ],
)
def test_a_whole_adapter_answers_as_in_peft(tmp_path: Path, config: Any) -> None:
    folder = third_party(tmp_path, config)
    expected = logits(peft.PeftModel.from_pretrained(tiny.model("llama"), str(folder)).eval())
    adapted = add_adapter(tiny.llm(), folder)
    torch.testing.assert_close(logits(adapted.model), expected)
    assert not torch.allclose(expected, logits(tiny.model("llama")), atol=1e-3)
    assert not adapted.model.training


def test_peft_stores_the_output_layer_beside_its_adapter(tmp_path: Path) -> None:
    assert COPY in load_file(third_party(tmp_path) / WEIGHTS)  # else the tests of copies say nothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_rounded_copy_of_the_output_layer_is_the_models_own(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = edited(third_party(tmp_path), lambda weights: weights.update({COPY: weights[COPY].to(dtype)}))
    add_adapter(tiny.llm(), folder)


def test_an_adapter_of_mixtrals_attention_and_lm_head_fits(tmp_path: Path) -> None:
    folder = third_party(tmp_path, model=tiny.model("mixtral"))
    assert not [key for key in load_file(folder / WEIGHTS) if "expert" in key]
    add_adapter(tiny.llm("mixtral", "llama3"), folder)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_an_adapter_of_single_experts_fits_fused_ones(tmp_path: Path) -> None:
    values = {key: value for key, value in tiny.CONFIGS["mixtral"]().to_dict().items() if key != "model_type"}
    apart = nf4._ApartMixtral(nf4._ApartConfig(**values)).eval()
    folder = third_party(tmp_path, lora(target_modules=["q_proj", "w1", "w2", "w3"]), apart)
    llm = tiny.llm("mixtral", "llama3")
    expected = logits(peft.PeftModel.from_pretrained(tiny.model("mixtral"), str(folder)).eval())
    torch.testing.assert_close(logits(add_adapter(llm, folder).model), expected)


@pytest.mark.parametrize(
    ("base", "warned"),
    [
        ("other/Llama", True),
        ("tiny-llama", False),
        ("someone/Tiny-Llama", False),
        ("models/tiny-llama", False),
        (None, False),
    ],
)
def test_another_name_of_the_base_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, base: str | None, warned: bool
) -> None:
    folder = third_party(tmp_path, base=base)
    with caplog.at_level(logging.WARNING, "llm_wrapper"):
        add_adapter(tiny.llm(), folder)
    assert (
        ["other/Llama" in row.message and "tiny-llama" in row.message for row in caplog.records] == [True]
    ) is warned


# what does not


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda at: third_party(at, model=sized(hidden_size=64), base="a/Larger"),
            r"a/Larger(.|\n)*q_proj\.lora_A\.weight: shape torch\.Size\(\[4, 64\]\).*\[4, 32\]",
            id="wider",
        ),
        pytest.param(lambda at: third_party(at, model=resized()), "tokens were added to", id="resized"),
        pytest.param(
            lambda at: third_party(at, lora(target_modules=["q_proj"]), sized(num_hidden_layers=3)),
            r"layers\.2\.self_attn\.q_proj\.lora_A\.weight: the model has no such place",
            id="more-layers",
        ),
        pytest.param(
            lambda at: third_party(at, lora(target_modules=["q_proj"]), sized(num_hidden_layers=1)),
            r"layers\.1\.self_attn\.q_proj\.lora_A\.weight: not in the adapter's file",
            id="fewer-layers",
        ),
        pytest.param(
            lambda at: third_party(at, lora(target_modules=["out_proj"]), tiny.model("gpt_neo"), base="a/GPT"),
            r"a/GPT(.|\n)*out_proj.* not found in the base model",
            id="no-such-modules",
        ),
        pytest.param(
            lambda at: third_party(at, model=tiny.model("llama", seed=1)),
            r"not this model's own(.|\n)*lm_head\.weight \(512, 32\)",
            id="another-model-of-this-size",
        ),
        pytest.param(
            lambda at: edited(third_party(at), lambda weights: weights.pop("base_model.model.lm_head.lora_B.weight")),
            r"lm_head\.lora_B\.weight: not in the adapter's file",
            id="half",
        ),
        pytest.param(
            lambda at: edited(
                third_party(at, lora(modules_to_save=["lm_head"], target_modules=["q_proj"])),
                lambda weights: weights.pop("base_model.model.lm_head.weight"),
            ),
            r"lm_head\.weight: not in the adapter's file",
            id="half-of-what-was-trained-whole",
        ),
        pytest.param(
            lambda at: third_party(at, peft.PromptEncoderConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
            "P_TUNING, which learns tokens in another way than PROMPT_TUNING and PREFIX_TUNING",
            id="p-tuning",
        ),
        pytest.param(lambda at: changed(third_party(at), task_type="SEQ_CLS"), "for SEQ_CLS, not", id="classifier"),
        pytest.param(lambda at: changed(third_party(at), peft_type="MAGIC"), "MAGIC", id="unknown-kind"),
        pytest.param(lambda at: changed(third_party(at), peft_type=None), "adapter_config", id="no-kind"),
        pytest.param(lambda at: changed(third_party(at), target_modules=5), "TypeError", id="absurd-targets"),
        pytest.param(lambda at: changed(third_party(at), r="four"), "TypeError", id="absurd-rank"),
        pytest.param(
            lambda at: changed(third_party(at), r=10**15), "rank 1,000,000,000,000,000, and no", id="huge-rank"
        ),
        pytest.param(
            lambda at: changed(third_party(at), rank_pattern={"q_proj": 10**9}),
            "gives q_proj the rank",
            id="huge-rank-of-one",
        ),
        pytest.param(
            lambda at: changed(third_party(at), layers_to_transform=[0, 10**7]),
            r"layers_to_transform\.1 is 10,000,000, and 1,000,000 is the most",
            id="huge-number",
        ),
        pytest.param(
            lambda at: changed(third_party(at), megatron_config={}, megatron_core="runs.x"), "not done", id="import"
        ),
        pytest.param(lambda at: cut_off(third_party(at)), "SafetensorError", id="cut-off"),
        pytest.param(
            lambda at: edited(third_party(at), lambda weights: spoil(weights, math.nan)),
            r"weight: 1 of its numbers are NaN or infinite",
            id="nan",
        ),
        pytest.param(
            lambda at: edited(third_party(at), lambda weights: spoil(weights, -math.inf)),
            "are NaN or infinite",
            id="infinite",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_both_models_are_named(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    folder = make(tmp_path)
    with pytest.raises(ModelError, match=f"does not fit tiny-llama; it says that it was trained on (.|\n)*{reason}"):
        add_adapter(tiny.llm(), folder)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"target_modules": "(.*.*.*)*x"}, id="targets"),
        pytest.param({"target_modules": ["q_proj"], "exclude_modules": "(.*.*.*)*x"}, id="excluded"),
        pytest.param({"layers_to_transform": [0], "layers_pattern": ["(.*.*.*)*x"]}, id="layers"),
        pytest.param({"rank_pattern": {"(.*.*.*)*x": 4}}, id="ranks"),
        pytest.param({"modules_to_save": ["(.*.*.*)*x"]}, id="trained-whole"),
    ],
)
def test_patterns_that_never_end_are_refused(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_files, "_SECONDS", 0.2)
    folder = changed(third_party(tmp_path), **settings)
    with pytest.raises(ModelError, match=r"patterns take longer than 0\.2 s to be matched: \(\.\*"):
        add_adapter(tiny.llm(), folder)


def test_settings_of_endless_depth_are_refused(tmp_path: Path) -> None:
    folder = third_party(tmp_path)
    (folder / "adapter_config.json").write_text('{"a": ' * 100_000)
    with pytest.raises(ModelError, match=r"does not fit tiny-llama(.|\n)*adapter_config\.json"):
        add_adapter(tiny.llm(), folder)
    with pytest.raises(DataError, match=r"adapter_config\.json"):
        find_adapter(str(folder)).facts()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"LORA"', "{}", "\ud800"], ids=repr)
def test_settings_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (third_party(tmp_path) / "adapter_config.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ModelError, match=r"does not fit tiny-llama(.|\n)*adapter_config\.json"):
        add_adapter(tiny.llm(), tmp_path)


def test_many_reasons_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        add_adapter(tiny.llm(), third_party(tmp_path, model=sized(hidden_size=64)))
    assert len(str(caught.value).splitlines()) == 8
    assert "and 10 more" in str(caught.value)
    assert "vocabulary" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lora(), id="adapted"),
        pytest.param(lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), id="trained-whole"),
        pytest.param(lora(target_modules=["q_proj", "embed_tokens"]), id="embeddings"),
    ],
)
def test_tied_ends_are_refused_as_in_training(tmp_path: Path, config: Any) -> None:
    folder = third_party(tmp_path, config)
    llm = tiny.llm()
    llm.model = sized(tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"it adapts .*but in this model .*same weight"):
        add_adapter(llm, folder)


def test_a_tied_model_takes_an_adapter_of_its_layers(tmp_path: Path) -> None:
    llm = tiny.llm()
    llm.model = sized(tie_word_embeddings=True)
    add_adapter(llm, third_party(tmp_path, lora(target_modules=["q_proj"]), sized(tie_word_embeddings=True)))


def test_weights_as_a_pickle_are_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (third_party(tmp_path) / WEIGHTS).unlink()
    torch.save({"a": Bomb()}, tmp_path / "adapter_model.bin")
    for load in (lambda: add_adapter(tiny.llm(), tmp_path), lambda: find_adapter(str(tmp_path))):
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors.*missing.*is a pickle"):
            load()
    assert not (tmp_path / "exploded").exists()


def test_it_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    llm = tiny.llm()
    llm.model.config.save_pretrained(tmp_path / "base")  # no weights and no tokenizer: nothing else is read
    section = llm.section.model_copy(update={"model": str(tmp_path / "base")})
    require_fit(section, third_party(tmp_path / "good"))
    with pytest.raises(ModelError, match="does not fit"):
        require_fit(section, third_party(tmp_path / "bad", model=sized(hidden_size=64)))
