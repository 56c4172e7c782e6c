"""Every family trains with a shipped recipe, or is refused with the line of the recipe to change."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_wrapper.errors import ModelError
from llm_wrapper.recipe import TrainSection
from llm_wrapper.recipe.files import find_recipe
from llm_wrapper.training import trainer
from llm_wrapper.training.adapters import adapt_layers, adapter_config, describe_targets
from tests.training import families
from tests.training.test_trainer import recipe, train_groups

ATTENTION = "q_proj 2, k_proj 2, v_proj 2, o_proj 2"
DENSE = f"{ATTENTION}, gate_proj 2, up_proj 2, down_proj 2"
TO_ATTENTION = r"names gate_proj, up_proj, down_proj, which match nothing[^[]*\[q_proj,k_proj,v_proj,o_proj,lm_head\]"


def section(name: str, **changes: Any) -> TrainSection:
    """The train section of a shipped recipe, cut to one step of a small rank."""
    values = yaml.safe_load(find_recipe("train", name).read_text(encoding="utf-8"))["train"]
    lora = {**values["lora"], "rank": 4, "alpha": 8, **changes}
    values |= {"lora": lora, "max_steps": 1, "groups_per_step": 2, "max_tokens": 4096, "warmup_steps": 0}
    return TrainSection.model_validate(values)


def step(family: str, train: TrainSection, run: Path) -> dict[str, Any]:
    """Train one step."""
    chosen = recipe().model_copy(update={"train": train})
    return trainer.train_adapter(families.llm(family), train_groups(4), chosen, run)


PHI3 = "o_proj 2, qkv_proj 2, gate_up_proj 2, down_proj 2"
PHI3_LAYERS = ["o_proj", "qkv_proj", "gate_up_proj", "down_proj", "lm_head"]
GEMMA4 = "per_layer_input_gate 2, per_layer_projection 2, per_layer_model_projection 1"
OUTSIDE = "; not adapted: 9 layers outside the text model"
FUSED = "and the fused experts of 2 layers; not adapted: 2 routers"
MODERNBERT = "13 layers (q_proj 2, k_proj 2, v_proj 2, Wo 4, Wi 2, dense 1)"  # its decoder is its output
DEEPSEEK = (
    "8 layers (q_proj 2, kv_a_proj_with_mqa 2, kv_b_proj 2, o_proj 2) and the fused experts of 1 layer; "
    "not adapted: gate_proj 2, up_proj 2, down_proj 2, 1 router"
)
TRAINED: list[tuple[str, str, dict[str, Any], str]] = [
    ("llama", "default", {}, f"14 layers ({DENSE})"),
    ("llama", "paper", {}, f"15 layers ({DENSE}, lm_head 1)"),
    ("phi3", "default", {}, f"8 layers ({PHI3})"),
    ("phi3", "paper", {"target_modules": PHI3_LAYERS}, f"9 layers ({PHI3}, lm_head 1)"),  # as advised
    ("gemma3-with-images", "default", {}, f"14 layers ({DENSE}){OUTSIDE}"),
    ("gemma3-with-images", "paper", {}, f"15 layers ({DENSE}, lm_head 1){OUTSIDE}"),
    ("gemma4-text", "default", {}, f"19 layers ({DENSE}, {GEMMA4})"),
    ("gemma4-text", "paper", {}, f"15 layers ({DENSE}, lm_head 1); not adapted: {GEMMA4}"),
    ("modernbert", "default", {}, MODERNBERT),
    ("phi3.5-moe", "default", {}, f"8 layers ({ATTENTION}); not adapted: the experts, 2 routers"),
    ("llama4-text", "default", {}, f"14 layers ({DENSE}); not adapted: the experts, 1 router"),
    ("llama4-text", "paper", {}, f"15 layers ({DENSE}, lm_head 1); not adapted: the experts, 1 router"),
    ("qwen3-moe", "default", {}, f"8 layers ({ATTENTION}) {FUSED}"),
    ("qwen3-moe", "paper", {"dropout": 0.0}, f"9 layers ({ATTENTION}, lm_head 1) {FUSED}"),  # as advised
    ("mixtral", "default", {}, f"8 layers ({ATTENTION}) {FUSED}"),  # with a router loss
    (
        "mixtral",
        "paper",
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]},  # as advised
        f"9 layers ({ATTENTION}, lm_head 1); not adapted: the experts, 2 routers",
    ),
    ("gpt-oss", "default", {}, f"8 layers ({ATTENTION}); not adapted: the experts, 2 routers"),
    ("deepseek-v2", "default", {}, DEEPSEEK),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "changes", "targets"), TRAINED, ids=[f"{family}-{name}" for family, name, *_ in TRAINED]
)
def test_a_step_of_a_shipped_recipe(
    family: str, name: str, changes: dict[str, Any], targets: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="llm_wrapper"):
        outcome = step(family, section(name, **changes), tmp_path)
    assert outcome["steps"] == 1
    assert outcome["loss"] > 0
    assert [row.message for row in caplog.records if row.message.startswith("adapters")] == [f"adapters: {targets}"]


REFUSED = [
    (
        "phi3",
        "paper",
        r"names q_proj, k_proj, v_proj, gate_proj, up_proj, which match nothing[^[]*"
        r"train\.lora\.target_modules=\[o_proj,qkv_proj,gate_up_proj,down_proj,lm_head\]",
    ),
    ("gpt-neox", "paper", r"match nothing[^[]*\[query_key_value,dense,dense_h_to_4h,dense_4h_to_h,lm_head\]"),
    *((name, "paper", TO_ATTENTION) for name in ("phi3.5-moe", "mixtral", "gpt-oss")),
    ("qwen3-moe", "paper", r"set train\.lora\.dropout=0 \(value: 0\.1\)"),
    (
        "deepseek-v2",
        "paper",
        r"names k_proj, v_proj, which match nothing(.|\n)*kv_b_proj(.|\n)*set train\.lora\.dropout=0",
    ),
    ("mamba", "default", r"MambaForCausalLM: .*'out_proj' is incompatible with Mamba"),
    ("mamba", "paper", r"which match nothing"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name", "reason"), REFUSED, ids=[f"{family}-{name}" for family, name, _ in REFUSED])
def test_a_recipe_that_does_not_fit_is_refused_with_the_line_to_change(
    family: str, name: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason):
        step(family, section(name), tmp_path)


@pytest.mark.parametrize("family", ["gemma3-with-images", "llama4-text", "mixtral"])
def test_every_trained_number_gets_a_gradient(family: str, tmp_path: Path) -> None:
    """Else processes that share a training wait for gradients that never come."""
    chosen = recipe().model_copy(update={"train": section("default")})
    built = trainer.build_trainer(families.llm(family), train_groups(4), chosen, tmp_path)
    batch = built.data_collator([{"epoch": 0, "group": place} for place in range(4)])["parts"][0]
    built.compute_loss(built.model, batch).backward()
    named = [(name, each) for name, each in built.model.named_parameters() if each.requires_grad]
    assert [name for name, each in named if each.grad is None] == []


def test_a_router_that_is_named_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"names gate: routers are never adapted(.|\n)*\[q_proj,k_proj,v_proj,o_proj\]"
    ):
        adapter_config(section("default", target_modules=["q_proj", "gate"]), families.model("qwen3-moe"))


@pytest.mark.parametrize(("family", "first"), [("llama", "k_proj"), ("gemma3-with-images", "q_proj")])
def test_scales_are_in_the_text_model_alone(family: str, first: str) -> None:
    model = families.model(family)
    config = adapter_config(TrainSection(method="ia3"), model)
    assert describe_targets(adapt_layers(model, config)).startswith(f"6 layers ({first} 2, v_proj 2, down_proj 2)")


def test_an_architecture_without_known_scales_is_refused() -> None:
    with pytest.raises(ModelError, match=r"train\.method=ia3: PEFT knows no layers of phi3.*train\.method=lora"):
        adapter_config(TrainSection(method="ia3"), families.model("phi3"))


@pytest.mark.slow
def test_two_processes_train_the_text_part_of_a_model_for_images(tmp_path: Path) -> None:
    """Gradients that never come would end it: `Expected to have finished reduction`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.test_adapters", "gemma3-with-images", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


if __name__ == "__main__":
    step(sys.argv[1], section("default"), Path(sys.argv[2]))
