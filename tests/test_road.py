"""The whole road by its verbs with a tiny LLM: cached, trained, evaluated, told in the model card, merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.evaluation import predictions as files
from tests.commands import fail, run

pytestmark = pytest.mark.slow

TOY = Path(__file__).parents[1] / "data" / "toy"
RUN = Path("runs/mine")


@pytest.fixture
def options(own_folder: Path, tiny_model: Path) -> list[str]:
    """A link to the tiny LLM, and the overrides that choose it."""
    Path("tiny").symlink_to(tiny_model)
    training = ["train.limit=16", "train.groups_per_step=4", "train.max_steps=2"]
    return ["llm.model=tiny", "llm.dtype=float32", *training]


def test_a_run_is_trained_evaluated_told_and_merged(options: list[str]) -> None:
    run("cache-detections", "--data-root", TOY)
    printed = run("train", "--data-root", TOY, "--train", "demo", "--run", RUN, *options)
    assert "2 steps" in printed

    adapter = RUN / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    manifest = json.loads((RUN / "manifest.json").read_text())
    card = (adapter / "README.md").read_text()
    assert f"| expressions | {manifest['samples']} |" in card
    assert manifest["data"][0]["annotations"][:12] in card
    assert "Not evaluated yet" in card
    assert "More Information Needed" not in card  # PEFT's own form

    printed = run("eval", "--data-root", TOY, "--run", RUN, "--limit", 6)
    rows = files.load_predictions(RUN / "predictions-val-first-6.parquet")
    assert {row.system for row in rows} == {"detector", "rule", "untrained", "tuned", "oracle"}
    tuned, untrained = ({r.sample_id: r.probabilities for r in rows if r.system == n} for n in ("tuned", "untrained"))
    assert tuned.keys() == untrained.keys()
    assert tuned != untrained
    card = (adapter / "README.md").read_text()
    assert (RUN / "report-val-first-6.md").read_text() in card
    assert "Not evaluated yet" not in card

    assert "llm-wrapper eval --llm vllm --run runs/mine" in run("export", RUN, "merged")
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.inference_mode():
        merged, base = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
            for folder in ("merged", "tiny")
        )
    assert not torch.equal(merged, base)


def test_an_adapter_is_trained_without_any_annotation(options: list[str]) -> None:
    names = [f"toy-train-{number:04}.png" for number in range(12)]
    lines = [json.dumps({"image": name, "expression": "what to find later"}) for name in names]
    Path("mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    chosen = ["--vlm", "toy", "--data", "mine", "--data-root", "mine.jsonl", f"data.settings.images={TOY / 'images'}"]
    run("cache-detections", *chosen, "--split", "train")
    training = ["train", *chosen, "--train", "demo", *options]

    assert "train.generated_steps" in fail(LLMWrapperError, *training)
    printed = run(*training, "train.generated_steps=2", "--run", RUN)
    assert "0 samples in 0 groups, 12 images to generate expressions for" in printed
    assert "2 steps" in printed
    assert json.loads((RUN / "manifest.json").read_text())["samples"] == 0
