from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors.florence2 import Florence2Settings, create
from llm_wrapper.errors import ModelError, RecipeError
from tests.detectors import model_folders
from tests.detectors import tiny_florence2 as tiny

_RECIPES = Path(__file__).parents[2] / "recipes" / "vlm"
_DATASET = Dataset("mine", "val", [], "digest", None)


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
        create(wrong, _DATASET)
    for text in ("key 'model' is missing", "unknown key 'modle'", "tasks: rec, rec: name each task once", "num_beams"):
        assert text in str(caught.value)


@pytest.mark.parametrize("tasks", [[], ["ocr"], "rec"], ids=str)
def test_tasks_must_be_known(tasks: Any) -> None:
    with pytest.raises(RecipeError, match="tasks"):
        create({"model": "x", "tasks": tasks}, _DATASET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"device=cuda:1: PyTorch sees 0 CUDA devices; use device=auto"):
        create({"model": "x", "device": "cuda:1"}, _DATASET)


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


@pytest.mark.parametrize(("dtype", "attention"), [("auto", "auto"), ("auto", "eager"), ("bfloat16", "sdpa")])
def test_a_folder_is_loaded_as_the_settings_say(saved: Path, tmp_path: Path, dtype: str, attention: str) -> None:
    settings = {**tiny.SETTINGS, "model": str(saved), "dtype": dtype, "attention": attention, "device": "cpu"}
    detector = create(settings, _DATASET)
    identity = detector.identity()
    assert detector.name == "florence-2-tiny"
    assert (identity["model"], identity["revision"]) == (str(saved), None)
    assert identity["attention"] == ("sdpa" if attention == "auto" else attention)
    assert identity["dtype"] == ("float32" if dtype == "auto" else dtype)
    if dtype == "auto":
        questions = tiny.asked(detector, [tiny.sample(tmp_path, "a", "dog")])
        expected = tiny.detect(tiny.build(attention=identity["attention"]), questions)
        assert any(answer.items for answer in expected)
        assert tiny.detect(detector, questions) == expected


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub's local cache that holds the tiny model; returns its commit."""
    return model_folders.in_a_hub(saved, tmp_path, "tiny/Florence-2-Tiny", monkeypatch)


@pytest.mark.parametrize("by_commit", [False, True], ids=["main", "commit"])
def test_identity_holds_the_commit_that_was_loaded(hub: str, by_commit: bool) -> None:
    revision = {"revision": hub} if by_commit else {}
    detector = create({**tiny.SETTINGS, **revision, "device": "cpu"}, _DATASET)
    assert detector.identity()["revision"] == hub


@pytest.mark.parametrize("settings", [{}, {"revision": "v9"}], ids=["unknown-id", "unknown-revision"])
def test_a_model_that_is_not_there_is_named(hub: str, settings: dict[str, str]) -> None:
    model = "tiny/Florence-2-Tiny" if settings else "tiny/Florence-3"
    revision = settings.get("revision", "main")
    what = rf"detector\.settings\.model={model} \(revision {revision}\) cannot be used: .*hf download"
    with pytest.raises(ModelError, match=f"(?s){what}"):
        create({"model": model, **settings}, _DATASET)


def _not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (model_folders.without_a_weight("encoder.layers.1.fc1.weight"), "1 of the weights are missing, such as .*fc1"),
        (model_folders.of_another_kind, "it is a bert, not a florence2"),
        (model_folders.cut_short, ""),
        (model_folders.without_tokenizer, ""),
        (_not_json, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_spoiled_folder_is_named(copied: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(copied)
    with pytest.raises(
        ModelError, match=f"(?s){re.escape(str(copied))} .*cannot be used: .*{said}.*florence-community"
    ):
        create({**tiny.SETTINGS, "model": str(copied), "device": "cpu"}, _DATASET)


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
