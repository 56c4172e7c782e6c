"""The verbs with a tiny LLM that may answer "none of these", with a threshold, and asked in another order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_wrapper import runs
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.evaluation import calibration, jobs
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.recipe import compose
from tests.commands import fail, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folder")]

TOY = Path(__file__).parents[1] / "data" / "toy"
RUN = Path("runs/mine")


def half_without(split: str, num_images: int) -> list[str]:
    """Lines of the toy split, each second one without a target."""
    rows = [json.loads(line) for line in (TOY / f"{split}.jsonl").read_text("utf-8").splitlines()]
    images = list(dict.fromkeys(row["image_id"] for row in rows))[:num_images]
    kept = [{**row, "split": split, "image": Path(row["image"]).name} for row in rows if row["image_id"] in images]
    return [json.dumps({**row, "box": None} if place % 2 else row) for place, row in enumerate(kept)]


@pytest.fixture
def data(own_folder: Path, tiny_model: Path) -> list[str]:
    """Data of which every second expression has no target, and the options that choose them."""
    Path("mine.jsonl").write_text("\n".join([*half_without("train", 8), *half_without("val", 4)]), encoding="utf-8")
    return ["--vlm", "toy", "--data", "mine", "--data-root", "mine.jsonl", f"data.settings.images={TOY / 'images'}"]


def test_trained_to_say_none_then_asked_with_a_threshold_and_in_another_order(
    data: list[str], tiny_model: Path
) -> None:
    run("cache-detections", *data)
    options = [f"llm.model={tiny_model}", "llm.dtype=float32", "train.max_steps=2", "train.groups_per_step=4"]
    printed = run("train", *data, "--train", "demo", "--run", RUN, *options, "prompt.none=true")
    manifest = json.loads((RUN / "manifest.json").read_text())
    lines = [json.loads(line) for line in half_without("train", 8)]
    num_without = sum(line["box"] is None for line in lines)
    assert manifest["answered_none"]["no_target"] == num_without
    assert (manifest["samples"], manifest["left_out"].get("no_target", 0)) == (len(lines), 0)
    assert f"answered by none of these: {manifest['answered_none']}" in printed

    run("eval", *data, "--run", RUN)
    tuned = [row for row in files.load_predictions(RUN / "predictions-val.parquet") if row.system == "tuned"]
    assert len(tuned) == len(half_without("val", 4))
    for row in tuned:
        assert row.none_probability is not None
        assert sum(row.probabilities or ()) + row.none_probability == pytest.approx(1)
        assert row.says_none == (row.none_probability > max(row.probabilities or ()))

    table = run("report", RUN / "predictions-val.parquet", "--none-below", "tuned")
    assert f"{len(tuned)} samples of val" in table
    assert "N-acc" in table
    run("eval", *data, "--run", RUN, "prompt.none_below=0.99")
    beside = RUN / runs.COMPARED / "none-below-0.99" / "predictions-val.parquet"
    below = [row for row in files.load_predictions(beside) if row.system == "tuned"]
    assert below == calibration.apply_threshold(tuned, 0.99)
    assert calibration.measure_grec(below).n_acc.n == sum(row.target is None for row in tuned)
    assert "prompt.none_below=0.99" in fail(RunError, "report", beside, "--none-below", "tuned")

    run("eval", *data, "--run", RUN, "candidates.order=shuffled")
    assert (RUN / runs.COMPARED / "order-shuffled" / "predictions-val.parquet").is_file()
    assert [row for row in files.load_predictions(RUN / "predictions-val.parquet") if row.system == "tuned"] == tuned
    run("report", RUN)
    page = (RUN / "report.md").read_text(encoding="utf-8")
    flips = page.partition("Flips under reordering")[2].partition("\n## ")[0]
    assert "| tuned | order-shuffled |" in flips.replace("\\_", "_")
    assert "none-below-0.99: tuned" in page


def test_a_threshold_needs_probabilities(data: list[str], tiny_model: Path) -> None:
    run("cache-detections", *data, "--split", "val")
    options = [f"llm.model={tiny_model}", "prompt.none_below=0.5", "llm.decode=generate"]
    assert "llm.decode=generate does not give" in fail(RecipeError, "eval", *data, *options)
    run("eval", *data, "--llm", "rule")
    path = Path("runs/toy-rule-mine-untrained/predictions-val.parquet")
    assert "'rule' has no probabilities" in fail(RunError, "report", path, "--none-below", "rule")
    assert "'tuned' is not in it" in fail(RunError, "report", path, "--none-below", "tuned")
    assert "without --with" in fail(RunError, "report", path, "--none-below", "tuned", "--with", path)


def test_a_report_takes_other_runs_beside_it(data: list[str]) -> None:
    run("cache-detections", *data, "--split", "val")
    run("eval", *data, "--llm", "rule")
    own = Path("runs/toy-rule-mine-untrained")
    other = own.rename("runs/the-same")
    run("eval", *data, "--llm", "rule", "candidates.order=shuffled")
    run("report", own, "--with", other)
    assert "the-same: rule" in (own / "report.md").read_text(encoding="utf-8")
    assert "is a predictions file" in fail(RunError, "report", own / "predictions-val.parquet", "--with", other)
    assert "is the run itself" in fail(RunError, "report", own, "--with", own)


def test_a_run_that_is_asked_as_it_was_trained_keeps_its_place() -> None:
    recipe = compose({"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"})
    runs.open_run(RUN, recipe)
    assert jobs.choose_place(jobs.Evaluation(recipe, RUN), {"split": "val"}) == (RUN, "val")
    without = jobs.Evaluation(recipe, None)
    assert jobs.choose_place(without, {"split": "val"}) == (without.folder, "val")
