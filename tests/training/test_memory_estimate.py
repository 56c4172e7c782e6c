"""The plan of a training: published counts, measured bytes and shapes, a verdict, and nothing of it needs weights."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from rich.console import Console

from llm_wrapper.cli import train
from llm_wrapper.errors import ModelError
from llm_wrapper.llms import nf4
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, LoraSection, Recipe, TrainSection
from llm_wrapper.training import adapters, memory_estimate, trainer
from llm_wrapper.training.adapters import adapter_config
from llm_wrapper.training.examples import Group
from llm_wrapper.training.memory_estimate import BatchShape, ModelSizes, TrainingSetup
from tests.llms import tiny
from tests.training import families, test_trainer

pytestmark = pytest.mark.slow  # seconds each; CI runs them

PAPER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_PUBLISHED: dict[str, Any] = {
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
}
LLAMA3_8B = {
    **_PUBLISHED,
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    **{"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0},
}
MIXTRAL_8X7B = {
    **_PUBLISHED,
    **{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
    **{"vocab_size": 32000, "max_position_embeddings": 32768, "rope_theta": 1000000.0, "num_experts_per_tok": 2},
}
SIZES = ModelSizes(
    **{"num_parameters": 8_000_000_000, "num_packable": 7_000_000_000, "num_trainable": 300_000_000, "rank": 64},
    **{"num_layers": 32, "hidden": 4096, "inner": 14336, "attended": 4096, "num_heads": 32, "vocabulary": 128256},
    **{"adapter_inputs": 1_000_000, "num_adapters": 224, "largest_weight": 60_000_000},
)
SETUP = TrainingSetup(number_bytes=2, is_4bit=False, is_eager=False, has_dropout=False, has_checkpointing=False)
BATCH = BatchShape(num_rows=4, length=256, num_answers=8)


def section(folder: Path, settings: dict[str, Any], **changes: Any) -> LLMSection:
    """A section that names a folder with nothing but a config."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return LLMSection(
        model=str(folder), **{"dtype": "bfloat16", "quantization": "none", "attention": "sdpa", **changes}
    )


def recipe(llm: LLMSection, **train: Any) -> Recipe:
    return test_trainer.recipe(**train).model_copy(update={"llm": llm})


def lora(modules: list[str] | str, *, rank: int = 128, dropout: float = 0.1) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=modules, task_type="CAUSAL_LM"
    )


def groups(num: int, *, count: int = 3, expressions: int = 1) -> list[Group]:
    return [
        Group(
            tuple(tiny.sample(f"number {j}", image=f"image-{i}", number=j) for j in range(expressions)),
            (i % count,) * expressions,
            tiny.candidates(count, first=i % 5),
        )
        for i in range(num)
    ]


@pytest.fixture
def saved(tmp_path: Path) -> LLMSection:
    """A tiny model on disk with its tokenizer."""
    tiny.model("llama").save_pretrained(tmp_path / "tiny")
    tiny.tokenizer("chatml").save_pretrained(tmp_path / "tiny")
    return LLMSection(model=str(tmp_path / "tiny"), dtype="float32", quantization="none", attention="eager")


# counts


@pytest.mark.parametrize(
    ("settings", "quantization", "parameters", "trained", "weights"),
    [
        pytest.param(LLAMA3_8B, "none", 8_030_261_248, 352_485_376, 16.06, id="llama-3-8b"),
        # In the published training the experts have no adapter: they have none of these names.
        pytest.param(MIXTRAL_8X7B, "nf4", 46_702_792_704, 113_672_192, 24.48, id="mixtral-8x7b-4bit"),
    ],
)
def test_the_published_counts(  # 352 and 114 million, with lm_head (arXiv 2409.11919)
    settings: dict[str, Any], quantization: str, parameters: int, trained: int, weights: float, tmp_path: Path
) -> None:
    llm = section(tmp_path / "model", settings, quantization=quantization)
    model = memory_estimate.build_weightless_model(llm)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    found = memory_estimate.count_sizes(model, lora([*PAPER, "lm_head"]))
    assert (found.num_parameters, found.num_trainable) == (parameters, trained)
    memory = memory_estimate.estimate_memory(found, replace(SETUP, is_4bit=quantization == "nf4"), BATCH)
    assert memory.weights / 1e9 == pytest.approx(weights, abs=0.01)


@pytest.mark.parametrize(
    ("architecture", "modules"),
    [
        *((name, ["q_proj", "v_proj"]) for name in ("llama", "gemma2", "gpt_neo", "mixtral")),
        *((name, "all-linear") for name in ("llama", "gemma2", "gpt_neo")),  # of fused experts PEFT itself warns
    ],
    ids=str,
)
def test_counts_are_those_of_the_real_model_with_peft(architecture: str, modules: Any, tmp_path: Path) -> None:
    real = tiny.model(architecture)
    llm = section(tmp_path / "model", json.loads(real.config.to_json_string()), dtype="float32", attention="eager")
    found = memory_estimate.count_sizes(memory_estimate.build_weightless_model(llm), lora(modules, rank=4))
    assert found.num_parameters == sum(each.numel() for each in real.parameters())
    assert found.num_trainable == peft.get_peft_model(real, lora(modules, rank=4)).get_nb_trainable_parameters()[0]


def test_the_bytes_of_a_4bit_model_are_those_that_are_counted_after_loading(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from tests.llms.test_nf4 import section as loaded_section

    config = transformers.LlamaConfig(**{**tiny._SIZES, "hidden_size": 256, "intermediate_size": 512})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    llm = loaded_section(tmp_path)
    sizes = memory_estimate.count_sizes(memory_estimate.build_weightless_model(llm), lora(["q_proj"], rank=4))
    planned = memory_estimate.estimate_memory(sizes, replace(SETUP, is_4bit=True, number_bytes=4), BATCH).weights
    model = nf4.load_4bit(
        str(tmp_path),
        dtype=torch.float32,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    counted = nf4.footprint(model)
    assert sizes.num_packable == counted.num_4bit
    assert planned == pytest.approx(counted.num_bytes, rel=0.02)


def test_an_adapter_of_another_rank_is_that_of_peft() -> None:
    four, sixteen = (
        memory_estimate.count_sizes(tiny.model("llama"), lora("all-linear", rank=rank)) for rank in (4, 16)
    )
    assert memory_estimate.with_rank(four, 16) == sixteen


# activations


@contextmanager
def kept_for_backward(model: Any) -> Iterator[list[int]]:
    """Collect the bytes of each tensor that autograd keeps, parameters left out, shared memory counted once."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            found.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], "all-linear"], ids=["two", "all"])
def test_estimated_activations_are_near_what_autograd_keeps(modules: Any, dtype: torch.dtype, attention: str) -> None:
    widths = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 352}
    config = transformers.LlamaConfig(**widths, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    sizes = memory_estimate.count_sizes(model, lora(modules, rank=8, dropout=0.0))  # the adapters stay on the model
    setup = replace(SETUP, number_bytes=dtype.itemsize, is_eager=attention == "eager")
    batch = BatchShape(num_rows=4, length=96, num_answers=0)
    ids = torch.randint(64, (4, 96))
    mask = torch.zeros(4, 1, 96, 96, dtype=dtype).masked_fill(torch.ones(96, 96).triu(1).bool(), torch.finfo(dtype).min)
    with kept_for_backward(model) as kept, torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert states.last_hidden_state.requires_grad
    ratio = memory_estimate.activation_bytes(sizes, setup, batch) / sum(kept)
    assert 0.98 < ratio < (1.03 if dtype == torch.bfloat16 else 1.25)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all() -> None:
    one = memory_estimate.activation_bytes(
        replace(SIZES, num_layers=1, adapter_inputs=SIZES.adapter_inputs // 32, num_adapters=7), SETUP, BATCH
    )
    every = memory_estimate.activation_bytes(SIZES, replace(SETUP, has_checkpointing=True), BATCH)
    inputs = 32 * BATCH.num_tokens * SIZES.hidden * 2
    assert every == pytest.approx(one + inputs, rel=0.02)
    assert every < memory_estimate.activation_bytes(SIZES, SETUP, BATCH) / 5


# the epoch


@pytest.mark.parametrize(
    ("num", "expressions", "train", "steps"),
    [
        pytest.param(10, 1, {}, 5, id="even"),
        pytest.param(11, 1, {}, 6, id="last-batch-is-smaller"),
        pytest.param(11, 1, {"groups_per_step": 8, "tokens_per_batch": 128}, 2, id="in-parts"),
        pytest.param(11, 1, {"epochs": 3}, 17, id="epochs"),
        pytest.param(11, 1, {"max_steps": 2}, 2, id="stopped"),
        pytest.param(5, 3, {}, 3, id="shared-prefixes"),
    ],
)
def test_steps_and_tokens_are_those_of_the_trainer(
    num: int, expressions: int, train: dict[str, Any], steps: int, saved: LLMSection, tmp_path: Path
) -> None:
    chosen = recipe(saved, **train)
    made = groups(num, expressions=expressions)
    found = memory_estimate.estimate_training(chosen, made)
    llm = tiny.llm("llama", "chatml")
    fitted, left_out = trainer.fit_to_length(llm, made, chosen)
    assert not left_out
    training = trainer.build_trainer(llm, fitted, chosen, tmp_path)
    loader = list(training.get_train_dataloader())
    epochs = 1 if chosen.train.max_steps else chosen.train.epochs
    assert found.epoch is not None
    assert found.epoch.num_steps == steps
    assert len(loader) == steps
    parts = [part for batch in loader for part in batch["parts"]]
    if not chosen.train.max_steps:
        assert found.epoch.num_tokens * epochs == pytest.approx(
            sum(part["input_ids"].numel() for part in parts), rel=0.15 if epochs > 1 else 0
        )
    longest = max(part["input_ids"].numel() for part in parts)
    assert found.batch.num_tokens >= longest


def test_an_epoch_is_extrapolated_from_some_of_its_groups(saved: LLMSection, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory_estimate.estimate_training(recipe(saved), groups(96)).epoch
    monkeypatch.setattr(memory_estimate, "_SAMPLED", 16)
    some = memory_estimate.estimate_training(recipe(saved), groups(96)).epoch
    assert whole
    assert some
    assert some.num_steps == whole.num_steps == 48
    assert some.num_tokens == pytest.approx(whole.num_tokens, rel=0.1)


@pytest.mark.parametrize(
    "made", [pytest.param(None, id="unknown"), pytest.param([], id="none"), pytest.param("long", id="all-too-long")]
)
def test_without_prompts_the_longest_that_is_allowed_is_planned(made: Any, saved: LLMSection) -> None:
    chosen = recipe(saved, max_tokens=32, groups_per_step=3)
    found = memory_estimate.estimate_training(chosen, groups(4, count=20) if made == "long" else made)
    assert found.epoch is None
    assert found.batch == BatchShape(num_rows=3, length=32, num_answers=6)


# the verdict


def test_each_change_lowers_the_peak_and_all_together_lower_it_most() -> None:
    before = memory_estimate.estimate_memory(SIZES, SETUP, BATCH).peak
    found = list(memory_estimate.suggest_changes(SIZES, SETUP, BATCH, alpha=128))
    assert [change.overrides for change in found[:-1]] == [
        *("llm.quantization=nf4", "train.gradient_checkpointing=true"),
        *("train.tokens_per_batch=256", "train.lora.rank=16 train.lora.alpha=32"),
    ]
    assert found[-1].overrides == " ".join(change.overrides for change in found[:-1])
    assert all(change.peak < before for change in found)
    assert found[-1].peak < min(change.peak for change in found[:-1])
    setup = replace(SETUP, is_4bit=True, has_checkpointing=True)
    batch = BatchShape(num_rows=1, length=256, num_answers=2)
    assert not list(memory_estimate.suggest_changes(replace(SIZES, rank=8), setup, batch, alpha=16))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        pytest.param(0, ["yes: "], id="yes"),
        pytest.param(1, ["no: ", "  prompts may be shorter", "gradient_checkpointing=true: ", ", fits"], id="no"),
        pytest.param(10**9, ["no: ", "  none of these is enough"], id="never"),
    ],
)
def test_the_verdict_is_printed(
    missing: int, expected: list[str], saved: LLMSection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    data = DataSection(name="mine", reader="jsonl", root=tmp_path / "none.jsonl")
    chosen = recipe(saved).model_copy(update={"data": data, "detector": DetectorSection(name="import")})
    peak = memory_estimate.estimate_training(chosen, None).memory.peak
    needed = next(free for free in range(250_000_000, 10**9, 1000) if memory_estimate.fits_memory(peak, free))
    monkeypatch.setattr(
        memory_estimate,
        "find_device",
        lambda: memory_estimate.TrainingDevice("a [test] device", needed - 1000 * missing),
    )
    console = Console(width=300, record=True, file=io.StringIO())
    assert train.plan_training(chosen, console) == (missing == 0)
    printed = console.export_text()
    for text in (*expected, "unknown: ", "none.jsonl", "a [test] device", "trainable", "expected peak"):
        assert text in printed


# bad input


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(None, "cannot be loaded", id="no-folder"),
        pytest.param("", "cannot be loaded", id="no-settings"),
        pytest.param("{", "cannot be loaded", id="broken-config"),
        pytest.param('{"model_type": "no-such-model"}', "no-such-model", id="unknown-architecture"),
    ],
)
def test_settings_that_cannot_be_read(text: str | None, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "absent" if text is None else tmp_path
    if text:
        (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=reason):
        memory_estimate.build_weightless_model(LLMSection(model=str(folder), dtype="float32"))


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    llm = section(tmp_path / "model", json.loads(tiny.CONFIGS["llama"]().to_json_string()), dtype="float32")
    with pytest.raises(ModelError, match=r"llm\.model=.* cannot be loaded: .*tokenizer"):
        memory_estimate.estimate_training(recipe(llm), groups(2))
    assert memory_estimate.estimate_training(recipe(llm), None).sizes.num_layers == 2


@pytest.mark.parametrize("backend", ["rule", "openai"])
def test_only_local_models_are_planned(backend: Any, saved: LLMSection) -> None:
    llm = LLMSection(backend=backend, model="some-model")
    with pytest.raises(ModelError, match=f"llm.backend={backend} has nothing to train"):
        train.plan_training(recipe(llm), Console(quiet=True))


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory_estimate, "_LIMITS", (limit, tmp_path / "absent"))
    for text, is_less in (("max\n", False), ("1000\n", True)):
        limit.write_text(text)
        assert (memory_estimate.find_device().free == 0) == is_less


# families


@pytest.mark.parametrize(
    ("family", "inner", "attended"),
    [
        pytest.param("llama", 48, 32, id="llama"),
        pytest.param("gemma4-text", 48, 64, id="gemma4-layers-that-differ"),
        pytest.param("mixtral", 2 * 48, 32, id="mixtral"),
        pytest.param("qwen3-moe", 48, 32, id="qwen3-moe-narrow-experts"),  # 2 x 16, and 48 of layers without experts
        pytest.param("deepseek-v2", 3 * 16, 16, id="deepseek-shared-expert"),
        pytest.param("llama4-text", 64, 32, id="llama4-dense-layers"),
        pytest.param("mamba", 64, 0, id="mamba-without-attention"),
    ],
)
def test_widths_are_those_of_the_architecture(family: str, inner: int, attended: int) -> None:
    config = families.settings(family)
    assert adapters.feedforward_width(config) == inner
    assert adapters.attention_width(config) == attended


QWEN3_30B = {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
DEEPSEEK_V2 = {"moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6}


def test_published_experts_are_as_wide_as_they_are() -> None:
    qwen = transformers.Qwen3MoeConfig(hidden_size=2048, intermediate_size=6144, **QWEN3_30B)
    deepseek = transformers.DeepseekV2Config(hidden_size=2048, intermediate_size=10944, **DEEPSEEK_V2)
    assert (adapters.feedforward_width(qwen), adapters.feedforward_width(deepseek)) == (8 * 768, 8 * 1408)


def test_heads_without_a_width_are_refused() -> None:
    config = transformers.LlamaConfig(hidden_size=2, num_attention_heads=2)
    config.hidden_size = config.head_dim = 0
    with pytest.raises(ModelError, match="2 heads and no width"):
        adapters.attention_width(config)


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_adapted_experts_are_kept_whole(family: str) -> None:
    model = families.model(family)
    fused = sum(each.numel() for each in model.parameters() if each.ndim == 3)
    config = adapter_config(TrainSection(lora=LoraSection(rank=4)), model)
    assert memory_estimate.count_sizes(model, config).num_rebuilt == fused


@pytest.mark.parametrize(("family", "is_offered"), [("mixtral", True), ("qwen3-moe", False), ("llama", True)])
def test_4_bit_is_proposed_where_loading_takes_it(family: str, is_offered: bool, tmp_path: Path) -> None:
    families.settings(family).save_pretrained(tmp_path)
    llm = LLMSection(model=str(tmp_path), dtype="float32", quantization="none", attention="eager")
    found = memory_estimate.estimate_training(recipe(llm), None)
    changes = memory_estimate.suggest_changes(found.sizes, found.setup, found.batch, alpha=8)
    assert any("llm.quantization=nf4" in each.overrides for each in changes) == is_offered
    if not is_offered:
        with pytest.raises(ModelError, match=r"cannot be held in 4 bit(.|\n)*llm\.quantization=none"):
            memory_estimate.build_weightless_model(llm.model_copy(update={"quantization": "nf4"}))


def test_more_layers_than_any_model_has_are_refused(tmp_path: Path) -> None:
    config = families.settings("llama")
    config.num_hidden_layers = 1_000_000
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"num_hidden_layers: 1000000, and 1 to 1,000 are possible"):
        memory_estimate.build_weightless_model(LLMSection(model=str(tmp_path), quantization="none"))
