"""Each method by the verbs: planned, trained, asked, told, merged or refused; and which soft prompts are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

from llm_wrapper.cli import main
from llm_wrapper.errors import ModelError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.llms.load import load_model
from llm_wrapper.llms.local import score_prompts
from llm_wrapper.recipe import LLMSection, LoraSection, TrainSection
from llm_wrapper.report.card import card
from llm_wrapper.training import memory_estimate, trainer
from llm_wrapper.training.adapters import adapter_config, create_adapter
from tests.llms import tiny
from tests.training.test_trainer import log_of, recipe, train_groups

pytestmark = pytest.mark.slow

TOY = Path(__file__).parents[2] / "data" / "toy"
METHODS = ("lora", "dora", "ia3", "prompt-tuning", "prefix-tuning")
SOFT = METHODS[3:]

methods = pytest.mark.parametrize("method", METHODS)


# --- the road --------------------------------------------------------------------------------------------------------


def run(*args: str | Path | int, code: int = 0) -> str:
    result = CliRunner().invoke(main.app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.stdout or str(result.exception)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny LLM and all that the toy detector finds."""
    folder = tmp_path_factory.mktemp("road")
    llm = tiny.llm()
    llm.model.save_pretrained(folder / "tiny")
    llm.tokenizer.save_pretrained(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("cache-detections", "--data-root", TOY)
    return folder


@methods
def test_a_run_of_each_method(method: str, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cached)
    monkeypatch.setattr("llm_wrapper.cli.options.CONSOLE", Console(width=400))
    folder, merged = Path("runs") / method, Path("merged") / method
    chosen = ["llm.model=tiny", "llm.dtype=float32", "train.limit=16", "train.groups_per_step=4", "train.max_steps=2"]
    train = "default" if method == "lora" else method
    assert "2 steps" in run("train", "--data-root", TOY, "--train", train, "--run", folder, *chosen)

    run("eval", "--data-root", TOY, "--run", folder, "--limit", 4)
    rows = files.load_predictions(folder / "predictions-val-first-4.parquet")
    tuned, untrained = ({r.sample_id: r.probabilities for r in rows if r.system == n} for n in ("tuned", "untrained"))
    assert tuned.keys() == untrained.keys()
    assert tuned != untrained
    told = (folder / "adapter" / "README.md").read_text()
    assert f"tags:\n- llm-wrapper\n- {method}\n" in told

    if method in SOFT:
        assert "llm-wrapper export" not in told
        assert "No weight is changed, so nothing can be merged" in run("export", folder, merged, code=1)
        assert not merged.exists()
        return
    run("export", folder, merged)
    plain = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.inference_mode():
        adapter = add_adapter(tiny.llm(), folder / "adapter").model
        torch.testing.assert_close(plain(ids).logits, adapter(ids).logits, atol=1e-4, rtol=1e-4)


RANK = "of rank 4, alpha 8, dropout 0"
SHOWN = (f"LoRA {RANK}", f"DoRA {RANK}", "(IA)3", "prompt-tuning of 7 tokens", "prefix-tuning of 7 tokens")


@pytest.mark.parametrize(("method", "words"), list(zip(METHODS, SHOWN, strict=True)), ids=METHODS)
def test_the_model_card_names_the_method(method: str, words: str) -> None:
    text = card(recipe(method=method, virtual_tokens=7), {}, {})
    assert f"| method | {words} |" in text
    assert f"An adapter ({words}) with which" in text


# --- the plan --------------------------------------------------------------------------------------------------------


TWO = {"lora": LoraSection(rank=4, target_modules=["q_proj", "v_proj"])}


@pytest.mark.parametrize(
    ("architecture", "train"),
    [
        *((name, {"method": each}) for name in ("llama", "gemma2", "gpt_neo") for each in METHODS),
        *((name, TWO) for name in ("llama", "gemma2", "gpt_neo", "mixtral")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("method", "lora-of-two"),
)
def test_the_plan_counts_what_is_trained(architecture: str, train: dict[str, Any], tmp_path: Path) -> None:
    llm = tiny.llm(architecture)
    llm.model.save_pretrained(tmp_path)
    chosen = recipe(virtual_tokens=7, **train)
    section = LLMSection(model=str(tmp_path), dtype="float32", quantization="none", attention="eager")
    skeleton = memory_estimate.build_weightless_model(section)
    found = memory_estimate.count_sizes(skeleton, adapter_config(chosen.train, skeleton))
    assert found.num_parameters == sum(parameter.numel() for parameter in llm.model.parameters())
    assert found.num_trainable == create_adapter(llm, chosen).get_nb_trainable_parameters()[0]


def planned(folder: Path, **train: Any) -> memory_estimate.TrainingEstimate:
    tiny.model("llama").save_pretrained(folder)
    llm = LLMSection(model=str(folder), dtype="float32", quantization="none", attention="eager")
    update = {"llm": llm, "train": TrainSection(max_tokens=256, **train)}
    return memory_estimate.estimate_training(recipe().model_copy(update=update), None)


@pytest.mark.parametrize("method", SOFT)
def test_learned_tokens_are_planned_for(method: str, tmp_path: Path) -> None:
    assert planned(tmp_path, method=method, virtual_tokens=7).batch.length == 256 + 7
    assert planned(tmp_path, method="ia3").batch.length == 256


@pytest.mark.parametrize("method", ["ia3", *SOFT])
def test_no_change_is_proposed_that_the_method_does_not_know(method: str, tmp_path: Path) -> None:
    found = planned(tmp_path, method=method)
    changes = list(memory_estimate.suggest_changes(found.sizes, found.setup, found.batch, alpha=32))
    assert changes
    assert not [change for change in changes if "rank" in change.overrides]
    proposed = [change for change in changes if "gradient_checkpointing" in change.overrides]
    assert bool(proposed) == (method != "prefix-tuning")


def test_dora_of_fused_experts_is_refused() -> None:
    with pytest.raises(ModelError, match=r"fused experts take no DoRA: set train\.method=lora"):
        create_adapter(tiny.llm("mixtral"), recipe(method="dora"))


# --- soft prompts of others ------------------------------------------------------------------------------------------


def saved(folder: Path, config: peft.PeftConfig, architecture: str = "llama") -> Path:
    peft.get_peft_model(tiny.model(architecture), config).save_pretrained(folder)
    return folder


def edited(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    path = folder / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)
    return folder


def changed(folder: Path, **settings: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def prompt() -> peft.PeftConfig:
    """Settings of prompt tuning, new ones each time: PEFT writes the model's sizes into them."""
    return peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")


def prefix() -> peft.PeftConfig:
    return peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")


@pytest.mark.parametrize("config", [prompt(), prefix()], ids=SOFT)
def test_a_soft_prompt_that_peft_saved_is_taken(config: peft.PeftConfig, tmp_path: Path) -> None:
    folder = saved(tmp_path, config)
    (weight,) = safetensors.torch.load_file(folder / "adapter_model.safetensors").values()
    model = add_adapter(tiny.llm(), folder).model
    torch.testing.assert_close(model.prompt_encoder["default"].embedding.weight.detach(), weight)


UNFIT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "prefix of another model": (
        lambda at: saved(at, prefix(), "gpt_neo"),
        r"token_dim: 32, and 16 for this model; num_attention_heads: 4, and 2 for this model; weights",
    ),
    "more layers": (lambda at: changed(saved(at, prefix()), num_layers=3), "num_layers: 3, and 2 for this model"),
    "fewer tokens than it says": (
        lambda at: changed(saved(at, prompt()), num_virtual_tokens=5),
        r"'prompt_embeddings': \(4, 32\)}, and {'prompt_embeddings': \(5, 32\)} for this model",
    ),
    "one weight too many": (
        lambda at: edited(saved(at, prompt()), lambda weights: weights.update(other=torch.zeros(2))),
        r"'other': \(2,\)",
    ),
    "under another name": (
        lambda at: edited(saved(at, prompt()), lambda weights: weights.update(x=weights.pop("prompt_embeddings"))),
        r"{'x': \(4, 32\)}",
    ),
    "many tokens that it does not hold": (
        lambda at: changed(saved(at, prompt()), num_virtual_tokens=900_000),
        r"'prompt_embeddings': \(900000, 32\)} for this model",
    ),
    "nan": (
        lambda at: edited(saved(at, prompt()), lambda weights: weights["prompt_embeddings"].fill_(torch.nan)),
        "prompt_embeddings: 128 of its numbers are NaN or infinite",
    ),
    "absurd number": (lambda at: changed(saved(at, prompt()), num_virtual_tokens="four"), "TypeError"),
}


@pytest.mark.parametrize(("make", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_soft_prompt_that_does_not_fit_is_refused(make: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"does not fit tiny-llama(.|\n)*{reason}"):
        add_adapter(tiny.llm(), make(tmp_path))


def test_a_soft_prompt_cannot_have_a_tokenizer_fetched(tmp_path: Path) -> None:
    words = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x", "tokenizer_name_or_path": "no/where"}
    add_adapter(tiny.llm(), changed(saved(tmp_path, prompt()), inference_mode=False, **words))


# --- 4 bit -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the import of bitsandbytes
@pytest.mark.filterwarnings("ignore:.*kernels:UserWarning")
@methods
def test_each_method_trains_a_4bit_model(method: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    llm = tiny.llm()
    llm.model.save_pretrained(tmp_path / "tiny")
    llm.tokenizer.save_pretrained(tmp_path / "tiny")
    section = LLMSection(model=str(tmp_path / "tiny"), dtype="float32", quantization="nf4", attention="eager")
    chosen = recipe(method=method, virtual_tokens=5, epochs=3)
    trainer.train_adapter(load_model(section), train_groups(), chosen, tmp_path)
    losses = [row["loss"] for row in log_of(tmp_path) if "loss" in row]
    assert sum(losses[-5:]) < sum(losses[:5])
    question = [tiny.prompt("number 1", 3)]
    untrained, tuned = (
        dict(score_prompts(each, question))[0]
        for each in (load_model(section), load_model(section, tmp_path / "adapter"))
    )
    assert (tuned.mass or 0) > (untrained.mass or 0)
