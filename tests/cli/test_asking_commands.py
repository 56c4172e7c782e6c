"""What is printed beside results: how probable any valid answer was, what was not as trained, what the data are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_wrapper import runs
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.predictions import mass_notes
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.records import Answer, Prediction, Prompt
from tests.commands import run
from tests.evaluation.test_predictions import FULL
from tests.fake_llm import FakeLLM

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(
    ("masses", "text", "warns"),
    [
        pytest.param([0.9, 0.8, 0.1], "a: median probability of all valid answers together 0.8", False, id="usual"),
        pytest.param([0.01], "together 0.01", False, id="bound"),
        pytest.param([0.0099], "together 0.0099", True, id="below"),
        pytest.param([2.8e-9, 1.0, 1e-9], "together 2.8e-09", True, id="thinking"),
    ],
)
def test_the_mass_of_answers_is_told(masses: list[float], text: str, warns: bool) -> None:
    rows = [replace(FULL, system="a", sample_id=str(place), mass=mass) for place, mass in enumerate(masses)]
    (note,) = mass_notes([*rows, replace(FULL, system="oracle")])
    assert text in note
    assert note.startswith("warning: ") == warns
    assert ("llm.chat_template" in note) == warns


def asked_with_mass(mass: float) -> object:
    def ask(prompts: Sequence[Prompt]) -> list[Answer]:
        even = [Answer(probabilities=(1 / each.num_answers,) * each.num_answers, mass=mass) for each in prompts]
        return even

    def predict_with_llm(
        recipe: Recipe,
        builder: PromptBuilder,
        adapter: Path | None,
        samples: Sequence[PreparedSample],
        *,
        with_untrained: bool,
    ) -> list[Prediction]:
        return systems.by_llm(samples, "untrained", builder, FakeLLM(ask))

    return predict_with_llm


@pytest.mark.parametrize(("mass", "warns"), [(0.75, False), (1e-9, True)], ids=["usual", "never"])
def test_an_evaluation_keeps_and_prints_the_mass(
    toy: Path, monkeypatch: pytest.MonkeyPatch, mass: float, warns: bool
) -> None:
    monkeypatch.setattr("llm_wrapper.cli.evaluate.predict_with_llm", asked_with_mass(mass))
    run("cache-detections", "--data-root", toy, "--split", "val")
    printed = run("eval", "--data-root", toy, "--llm", "smollm2")
    (path,) = Path("runs").glob("*/predictions-val.parquet")
    kept = {row.mass for row in files.load_predictions(path) if row.system == "untrained" and row.decided_by == "llm"}
    assert kept == {mass}
    assert f"untrained: median probability of all valid answers together {mass:.2g}" in printed
    assert ("warning: untrained" in printed) == warns


def test_data_without_splits_are_said_to_be_trained_on(toy: Path) -> None:
    rows = [json.loads(line) for line in (toy / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [
        {**{key: value for key, value in row.items() if key != "split"}, "image": Path(row["image"]).name}
        for row in rows
    ]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    images = f"data.settings.images={json.dumps(str(toy / 'images'))}"
    own = ["--vlm", "toy", "--data", "mine", "--data-root", "mine.jsonl", images]
    names = {"vlm": "toy", "llm": "rule", "data": "mine", "train": "default"}
    recipe = compose(names, ["data.root=mine.jsonl", images])
    runs.finish(runs.open_run(Path("runs/mine"), recipe), {})
    run("cache-detections", *own, "--split", "val")
    printed = run("eval", "--run", "runs/mine")
    assert "evaluated on its own training data: 4 of 4 images" in printed
    assert "evaluated on its own training data" in Path("runs/mine/report-val.md").read_text(encoding="utf-8")
    notes = json.loads(Path("runs/mine/report-val.json").read_text(encoding="utf-8"))["notes"]
    assert any("own training data" in note for note in notes)


def test_images_that_a_file_of_boxes_does_not_name_are_counted(toy: Path) -> None:
    first = json.loads((toy / "val.jsonl").read_text(encoding="utf-8").splitlines()[0])
    line = {"image_id": first["image_id"], "detections": [{"box": [1, 1, 50, 50], "label": "mug", "score": None}]}
    Path("boxes.jsonl").write_text(json.dumps(line), encoding="utf-8")
    args = ["--vlm", "import", "--data-root", str(toy), "detector.settings.path=boxes.jsonl"]
    printed = run("cache-detections", *args, "--split", "val")
    assert "its file names 1 of 4 images, and the others count as without detections" in printed
    for verb in (["eval", "--llm", "rule"], ["detections", "headroom"]):
        assert "toy val: 3 of 4 images have no candidate at all" in run(*verb, *args)
