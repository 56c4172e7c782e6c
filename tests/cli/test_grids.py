"""`transfer` and `ensemble` from run folders and recipes to files, with tiny random models as adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest

from llm_wrapper import runs
from llm_wrapper.errors import CacheError, DataError, RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.llms import load
from llm_wrapper.recipe import compose
from tests.commands import fail, invoke, run
from tests.llms import tiny

pytestmark = pytest.mark.usefixtures("own_folder")


def trained(name: str, vlm: str, toy: Path, tiny_model: Path, *more: str, seed: int = 0) -> Path:
    """A finished run whose adapter is random, so that it answers otherwise than the LLM alone."""
    names = {"vlm": vlm, "llm": "smollm2", "data": "toy", "train": "default"}
    overrides = [
        f"llm.model={tiny_model}",
        f"data.root='{toy}'",
        "prompt.format=compact",
        "llm.quantization=none",
        *more,
    ]
    folder = runs.open_run(runs.RUNS / name, compose(names, overrides))
    base = tiny.model("llama", seed=0)
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tiny.torch.manual_seed(seed)
    peft.get_peft_model(base, lora).save_pretrained(folder / "adapter")
    runs.finish(folder, {})
    return folder


def cells(path: Path) -> dict[tuple[str, str], dict[str, object]]:
    found = json.loads((path / "matrix.json").read_text(encoding="utf-8"))["cells"]
    return {(cell["system"], cell["column"]): cell for cell in found}


# one recipe for several detectors, on the whole road


def test_an_ensemble_is_cached_measured_and_evaluated_like_a_detector(toy: Path) -> None:
    both = ("--vlm", "toy+toy-gray", "--data-root", toy)
    cached = run("cache-detections", *both, "--split", "val")
    assert [line.partition(":")[0] for line in cached.splitlines()] == [
        "data/detections/toy/toy/val",
        "data/detections/toy-gray/toy/val",
    ]
    run("eval", "--llm", "rule", *both)
    folder = Path("runs/toy+toy-gray-rule-toy-untrained")
    rows = files.load_predictions(folder / "predictions-val.parquet")
    assert {candidate.detector for row in rows for candidate in row.candidates} == {"toy", "toy-gray"}
    assert {candidate.source for row in rows for candidate in row.candidates} == {"segmentation", "contrast"}
    (data,) = json.loads((folder / "report-val.json").read_text())["data"]
    assert data["dropped"]["nms"] > 0
    printed = run("detections", "headroom", *both, "candidates.cap=2")
    assert "the cap of 2 takes" in printed
    kept = json.loads(Path("runs/headroom/toy+toy-gray-toy-val.json").read_text())
    assert [identity["detector"] for identity in kept["detections"]] == ["toy", "toy-gray"]
    assert kept["headroom"]["before"]["per_sample"]["max"] > kept["headroom"]["after"]["per_sample"]["max"] == 2
    image = next((toy / "images").iterdir())
    assert "decided by:" in run("predict", image, "the star", "--llm", "rule", "--vlm", "toy+toy-gray")


def test_what_one_detector_lacks_names_its_own_command(toy: Path) -> None:
    run("cache-detections", "--data-root", toy, "--split", "val")
    told = fail(CacheError, "ensemble", "--data-root", toy)
    assert "llm-wrapper cache-detections --vlm toy-gray --data toy --split val" in told


# the matrix


@pytest.mark.slow
def test_adapters_run_on_any_detector_and_nothing_is_asked_twice(
    toy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("cache-detections", "--vlm", "toy+toy-gray", "--data-root", toy, "--split", "val")
    adapters = [trained("one", "toy", toy, tiny_model), trained("two", "toy-gray", toy, tiny_model, seed=1)]
    asked = [flag for folder in adapters for flag in ("--run", folder)]
    args = ("transfer", *asked, "--vlm", "toy", "--vlm", "toy-gray", "--data-root", toy)
    run(*args)
    folder = Path("runs/transfer/toy_toy-gray-toy")
    found = cells(folder)
    rows = [
        "detector",
        f"untrained {tiny_model.name}, compact",
        "tuned on toy / toy",
        "tuned on toy-gray / toy",
        "oracle",
    ]
    assert list(dict.fromkeys(system for system, _ in found)) == rows
    home = {key for key, cell in found.items() if cell["at_home"]}
    assert home == {("tuned on toy / toy", "toy / toy"), ("tuned on toy-gray / toy", "toy-gray / toy")}
    assert all(cell["result"] and not cell["problem"] for cell in found.values())
    assert (
        len({str(files.load_predictions(Path(str(found[row, "toy / toy"]["predictions"])))) for row in rows[1:4]}) == 3
    )
    assert "P@1 in percent (IoU > 0.5" in (folder / "matrix.md").read_text()
    assert (folder / "matrix.png").stat().st_size > 10_000

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert len(before) == 10
    picture = (folder / "matrix.png").read_bytes()
    monkeypatch.setattr(load, "load_model", None)  # whoever asks now must fail
    run(*args)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before
    assert cells(folder) == found
    assert (folder / "matrix.png").read_bytes() == picture
    assert isinstance(invoke(*args, "--limit", "5").exception, TypeError)


@pytest.mark.slow
def test_an_ensemble_is_compared_with_its_parts_and_adapters_are_combined(toy: Path, tiny_model: Path) -> None:
    run("cache-detections", "--vlm", "toy+toy-gray", "--data-root", toy, "--split", "val")
    retrained = trained("both", "toy+toy-gray", toy, tiny_model, "train.epochs=2")
    plain = trained("one", "toy", toy, tiny_model, seed=1)
    printed = run("ensemble", "--data-root", toy, "--run", plain, "--run", retrained, "--llm", "rule")
    folder = Path("runs/ensemble/toy+toy-gray-toy")
    found = cells(folder)
    columns = ["toy+toy-gray / toy", "toy / toy", "toy-gray / toy"]
    assert list(dict.fromkeys(column for _, column in found)) == columns
    systems = list(dict.fromkeys(system for system, _ in found))
    assert systems[-4:] == ["tuned on toy+toy-gray / toy", "mean of 2 adapters", "vote of 2 adapters", "oracle"]
    assert systems[:2] == ["detector", "rule"]
    assert found["tuned on toy+toy-gray / toy", columns[0]]["at_home"]
    added = json.loads((folder / "matrix.json").read_text())["contributions"]
    assert [(each["system"], each["detector"]) for each in added][:2] == [("detector", "toy"), ("detector", "toy-gray")]
    assert {each["system"] for each in added} == set(systems)
    for each in added:  # with both, minus without this one
        other = "toy-gray / toy" if each["detector"] == "toy" else "toy / toy"
        p_at_1 = [found[each["system"], column]["result"]["p_at_1"] for column in (columns[0], other)]  # type: ignore[index]
        assert each["gain"]["p_at_1"]["value"] == pytest.approx(p_at_1[0] - p_at_1[1])
    assert "is of another recipe than tuned on toy / toy: train.epochs: 1 there, 2 here" in printed
    assert "Points of P@1 that a detector adds" in (folder / "matrix.md").read_text()


@pytest.mark.slow
def test_images_that_an_adapter_was_trained_on_are_left_out(toy: Path, tiny_model: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "toy"
    shutil.copytree(toy, mixed)
    lines = [path.read_text(encoding="utf-8") for path in (toy / "val.jsonl", toy / "train.jsonl")]
    # Another data set that holds the images of both, by the same files' names in another folder: links, not copies.
    (mixed / "val.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(mixed / "images")
    (mixed / "images").symlink_to(toy / "images")
    run("cache-detections", "--data-root", mixed, "--split", "val")
    folder = trained("one", "toy", toy, tiny_model)
    printed = run("transfer", "--run", folder, "--vlm", "toy", "--data-root", mixed)
    num_train = len(lines[1].splitlines())
    assert f"toy / toy: {num_train} expressions skipped, an adapter was trained on their images" in printed
    (cell,) = {cell["result"]["n"] for cell in cells(Path("runs/transfer/toy-toy")).values()}  # type: ignore[index]
    assert cell == len(lines[0].splitlines())
    run("cache-detections", "--data-root", toy, "--split", "train")
    told = fail(DataError, "transfer", "--run", folder, "--vlm", "toy", "--data-root", toy, "--split", "train")
    assert f"no expression with a box is left to compare with ({num_train} skipped)" in told


# what is wrong


def test_one_detector_is_no_ensemble(toy: Path) -> None:
    assert "name several: make ensemble VLM=toy+another" in fail(RecipeError, "ensemble", "--vlm", "toy")


def test_unfinished_runs_are_all_named() -> None:
    recipe = compose({"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"})
    for name in ("runs/a", "runs/b"):
        runs.open_run(Path(name), recipe)
    told = fail(RunError, "transfer", "--run", "runs/a", "--run", "runs/b", "--vlm", "toy")
    assert "no finished training in runs/a, runs/b; resume it with: llm-wrapper train --run runs/a" in told
    assert "runs/c is no run folder; did you mean" in fail(RunError, "transfer", "--run", "runs/c")


def test_without_a_run_the_matrix_has_detectors_and_whatever_llm_is_named(toy: Path) -> None:
    run("cache-detections", "--data-root", toy, "--split", "val")
    run("transfer", "--vlm", "toy", "--vlm", "toy", "--data-root", toy, "--llm", "rule", "--limit", "5", "--name", "x")
    found = cells(Path("runs/transfer/x"))
    assert list(found) == [("detector", "toy / toy"), ("rule", "toy / toy"), ("oracle", "toy / toy")]
    assert "the first 5 expressions only" in Path("runs/transfer/x/matrix.md").read_text()
