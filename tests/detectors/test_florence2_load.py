from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm_wrapper.detectors.florence2 import Florence2Settings, create_florence2
from llm_wrapper.errors import ModelError, RecipeError
from llm_wrapper.storage import digest_model
from tests.detectors import model_folders
from tests.detectors import tiny_florence2 as tiny

_RECIPES = Path(__file__).parents[2] / "recipes" / "vlm"


def test_every_wrong_setting_is_listed() -> None:
    wrong = {
        "modle": "x",
        "tasks": ["rec", "rec"],
        "num_beams": 0,
        "dtype": "int4",
        "attention": "flash",
        "device": "gpu",
        "max_prompts": 0,
        "max_new_tokens": "many",
    }
    with pytest.raises(RecipeError, match=r"the detector 'florence2' cannot be built \(9 problems\)") as caught:
        create_florence2(wrong)
    for text in ("key 'model' is missing", "unknown key 'modle'", "tasks: rec, rec: name each task once", "num_beams"):
        assert text in str(caught.value)


@pytest.mark.parametrize("tasks", [[], ["ocr"], "rec"], ids=str)
def test_tasks_must_be_known(tasks: Any) -> None:
    with pytest.raises(RecipeError, match="tasks"):
        create_florence2({"model": "x", "tasks": tasks})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_the_first_answer(tmp_path: Path) -> None:
    detector = create_florence2({"model": "x", "device": "cuda:1"})
    with pytest.raises(RecipeError, match=r"device=cuda:1: PyTorch sees 0 CUDA devices; use device=auto"):
        detector.prepare(tiny.sample(tmp_path, "a", "dog"))


def test_identity_needs_no_weights() -> None:
    detector = create_florence2({"model": "no/such-model", "revision": "a" * 40, "device": "cuda:7"})
    assert (detector.identity()["model"], detector.identity()["revision"]) == ("no/such-model", "a" * 40)
    assert detector.recorded() == {}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "Florence-2-Tiny"
    processor = tiny.processor()
    tiny.model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize(("dtype", "attention"), [("auto", "auto"), ("bfloat16", "eager")])
def test_a_folder_is_loaded_as_the_settings_say(saved: Path, tmp_path: Path, dtype: str, attention: str) -> None:
    settings = {**tiny.SETTINGS, "model": str(saved), "dtype": dtype, "attention": attention, "device": "cpu"}
    detector = create_florence2(settings)
    assert detector.name == "florence-2-tiny"
    assert (detector.identity()["model"], detector.identity()["revision"]) == (str(saved), None)
    questions = tiny.all_questions(detector, [tiny.sample(tmp_path, "a", "dog")])
    detector.prepare(questions[0].sample)
    assert detector.recorded() == {
        "attention": "sdpa" if attention == "auto" else attention,
        "device": "cpu",
        "dtype": "float32" if dtype == "auto" else dtype,
        "files": digest_model(str(saved)),
        "image_processor": "CLIPImageProcessorPil",
    }
    if dtype == "auto":
        expected = tiny.detect(tiny.build(attention=detector.recorded()["attention"]), questions)
        assert any(answer.items for answer in expected)
        assert tiny.detect(detector, questions) == expected


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub's local cache that holds the tiny model; returns its commit."""
    return model_folders.in_a_hub(saved, tmp_path, "tiny/Florence-2-Tiny", monkeypatch)


@pytest.mark.parametrize("by_commit", [False, True], ids=["main", "commit"])
def test_the_commit_that_was_loaded_is_recorded(hub: str, by_commit: bool, tmp_path: Path) -> None:
    revision = {"revision": hub} if by_commit else {}
    detector = create_florence2({**tiny.SETTINGS, **revision, "device": "cpu"})
    detector.prepare(tiny.sample(tmp_path, "a", "dog"))
    assert detector.recorded()["commit"] == hub
    assert detector.identity()["revision"] == revision.get("revision")


@pytest.mark.parametrize("settings", [{}, {"revision": "v9"}], ids=["unknown-id", "unknown-revision"])
def test_a_model_that_is_not_there_is_named(hub: str, settings: dict[str, str], tmp_path: Path) -> None:
    model = "tiny/Florence-2-Tiny" if settings else "tiny/Florence-3"
    revision = settings.get("revision", "main")
    what = rf"detector\.settings\.model={model} \(revision {revision}\) cannot be used: .*hf download"
    with pytest.raises(ModelError, match=f"(?s){what}"):
        create_florence2({"model": model, **settings}).prepare(tiny.sample(tmp_path, "a", "dog"))


def _not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (model_folders.without_a_weight("encoder.layers.1.fc1.weight"), "1 of the weights are missing, such as .*fc1"),
        (model_folders.of_another_kind, "it is a bert, not a florence2"),
        (model_folders.cut_short, ""),
        (_not_json, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_spoiled_folder_is_named(copied: Path, spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    spoil(copied)
    detector = create_florence2({**tiny.SETTINGS, "model": str(copied), "device": "cpu"})
    with pytest.raises(
        ModelError, match=f"(?s){re.escape(str(copied))} .*cannot be used: .*{said}.*florence-community"
    ):
        detector.prepare(tiny.sample(tmp_path, "a", "dog"))


@pytest.mark.parametrize("name", ["flo2", "flo2-ft", "flo2-base"])
def test_recipes_name_a_model_its_commit_and_its_licence(name: str) -> None:
    text = (_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    section = yaml.safe_load(text)["detector"]
    assert section["name"] == "florence2"
    chosen = Florence2Settings(**section["settings"])
    assert chosen.model.startswith("florence-community/Florence-2-")
    assert re.fullmatch("[0-9a-f]{40}", chosen.revision or "")
    assert (chosen.tasks, chosen.num_beams, chosen.max_new_tokens) == (("rec", "grounding"), 3, 1024)
    assert "MIT licence" in text
