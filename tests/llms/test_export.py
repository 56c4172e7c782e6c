"""An exported model answers as the base with its adapter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm_wrapper.errors import ModelError, RunError
from llm_wrapper.llms import load as loading
from llm_wrapper.llms.adapters import export_model
from llm_wrapper.recipe import LLMSection
from tests.llms import tiny


@pytest.fixture
def section(tmp_path: Path) -> LLMSection:
    llm = tiny.llm(style="chatml")
    tiny.save(llm, tmp_path / "base")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(3)
    peft.get_peft_model(llm.model, lora).save_pretrained(tmp_path / "adapter")
    return LLMSection(model=str(tmp_path / "base"), dtype="float32", attention="eager")


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([[40, 41, 42, 43, 44]])).logits
    return found


def test_a_merged_model_answers_as_the_adapter_does(section: LLMSection, tmp_path: Path) -> None:
    export_model(section, tmp_path / "adapter", tmp_path / "deep" / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "merged", dtype=torch.float32)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(merged), logits(tiny.model("llama")), atol=1e-2)
    assert not list((tmp_path / "deep").glob(".merged-*"))


def test_the_template_of_the_recipe_goes_with_it(section: LLMSection, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{{ '\n' if m.role == 'user' else eos_token }}{% endfor %}"
    chosen = section.model_copy(update={"chat_template": template})
    export_model(chosen, tmp_path / "adapter", tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello\n"


def test_what_exists_is_kept(section: LLMSection, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("x")
    with pytest.raises(RunError, match="merged exists"):
        export_model(section, tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "mine").read_text() == "x"


def test_a_missing_adapter_leaves_nothing(section: LLMSection, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter"):
        export_model(section, tmp_path / "none", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_it_is_written_in_the_type_of_the_checkpoint(section: LLMSection, tmp_path: Path) -> None:
    path = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    export_model(section.model_copy(update={"dtype": "auto"}), tmp_path / "adapter", tmp_path / "merged")
    assert {each.dtype for each in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_gpu_is_left_alone(section: LLMSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "choose_device", lambda: torch.device("cuda"))
    export_model(section.model_copy(update={"quantization": "auto"}), tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_full_disk_leaves_nothing(section: LLMSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(RunError, match=r"merged cannot be written \(I/O error: No space left .*Free space"):
        export_model(section, tmp_path / "adapter", tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
