from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llm_wrapper.detectors.kosmos2 import Kosmos2Settings, create_kosmos2
from llm_wrapper.errors import ModelError, RecipeError
from tests.detectors import model_folders
from tests.detectors import tiny_kosmos2 as tiny

_RECIPE = Path(__file__).parents[2] / "recipes" / "vlm" / "kosmos2.yaml"


def test_identity_holds_what_decides_the_answers() -> None:
    detector = tiny.build(max_prompts=3)
    assert detector.name == "kosmos-2-tiny"
    assert detector.identity() == {
        "detector": "kosmos2",
        "model": "tiny/Kosmos-2-Tiny",
        "revision": None,
        "tasks": ["rec", "caption"],
        "num_beams": 1,
        "max_new_tokens": 40,
        "reading": 1,
    }
    assert tiny.build(dtype=torch.bfloat16).identity() == detector.identity()
    assert tiny.build(max_prompts=1, device="cpu").identity() == detector.identity()


@pytest.mark.parametrize(
    ("changed", "key"),
    [({"tasks": ["caption"]}, "tasks"), ({"num_beams": 2}, "num_beams"), ({"max_new_tokens": 5}, "max_new_tokens")],
    ids=str,
)
def test_identity_changes_with_the_settings(changed: dict[str, Any], key: str) -> None:
    one, other = tiny.build().identity(), tiny.build(**changed).identity()
    assert {name for name in one if one[name] != other[name]} == {key}


def test_tokens_that_leave_no_room_for_a_question_are_refused() -> None:
    most = tiny.POSITIONS - 67 - 32
    with pytest.raises(
        RecipeError, match=rf"max_new_tokens={most + 1}: .* {tiny.POSITIONS} positions.* set it to {most}"
    ):
        tiny.build(max_new_tokens=most + 1)
    tiny.build(max_new_tokens=most)


def test_every_wrong_setting_is_listed() -> None:
    wrong = {
        "modle": "x",
        "tasks": ["rec", "rec"],
        "num_beams": 0,
        "dtype": "int4",
        "device": "gpu",
        "max_prompts": 0,
        "max_new_tokens": "many",
    }
    with pytest.raises(RecipeError, match=r"the detector 'kosmos2' cannot be built \(8 problems\)") as caught:
        create_kosmos2(wrong)
    for text in ("key 'model' is missing", "unknown key 'modle'", "tasks: rec, rec: name each task once", "num_beams"):
        assert text in str(caught.value)


@pytest.mark.parametrize("tasks", [[], ["od"], "rec"], ids=str)
def test_tasks_must_be_known(tasks: Any) -> None:
    with pytest.raises(RecipeError, match="tasks"):
        create_kosmos2({"model": "x", "tasks": tasks})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_the_first_answer(tmp_path: Path) -> None:
    detector = create_kosmos2({"model": "x", "device": "cuda:1"})
    with pytest.raises(RecipeError, match=r"device=cuda:1: PyTorch sees 0 CUDA devices; use device=auto"):
        detector.prepare(tiny.sample(tmp_path, "a", "dog"))


def test_identity_needs_no_weights() -> None:
    detector = create_kosmos2({"model": "no/such-model", "revision": "a" * 40, "device": "cuda:7"})
    assert (detector.identity()["model"], detector.identity()["revision"]) == ("no/such-model", "a" * 40)
    assert detector.recorded() == {}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "Kosmos-2-Tiny"
    processor = tiny.processor()
    tiny.model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # As in the checkpoint. transformers drops it, and would refuse to generate with it.
    config["text_config"]["no_repeat_ngram_size"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_loaded_as_the_settings_say(saved: Path, tmp_path: Path, dtype: str) -> None:
    detector = create_kosmos2({**tiny.SETTINGS, "model": str(saved), "dtype": dtype, "device": "cpu"})
    assert detector.name == "kosmos-2-tiny"
    assert (detector.identity()["model"], detector.identity()["revision"]) == (str(saved), None)
    detector.prepare(tiny.sample(tmp_path, "a", "dog"))
    assert (detector.recorded()["dtype"], detector.recorded()["device"]) == (dtype, "cpu")
    if dtype != "float32":
        return
    tiny.speaking_in_format(detector._model, detector._processor.tokenizer)
    questions = tiny.all_questions(detector, [tiny.sample(tmp_path, "a", "dog")])
    found = tiny.detect(detector, questions)
    assert any(answer.items for answer in found)
    assert found == tiny.detect(tiny.build(), questions)


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub's local cache that holds the tiny model; returns its commit."""
    return model_folders.in_a_hub(saved, tmp_path, "tiny/Kosmos-2-Tiny", monkeypatch)


def test_the_commit_that_was_loaded_is_recorded(hub: str, tmp_path: Path) -> None:
    detector = create_kosmos2({**tiny.SETTINGS, "device": "cpu"})
    detector.prepare(tiny.sample(tmp_path, "a", "dog"))
    assert detector.recorded()["commit"] == hub
    assert detector.identity()["revision"] is None


@pytest.mark.parametrize("settings", [{}, {"revision": "v9"}], ids=["unknown-id", "unknown-revision"])
def test_a_model_that_is_not_there_is_named(hub: str, settings: dict[str, str], tmp_path: Path) -> None:
    model = "tiny/Kosmos-2-Tiny" if settings else "tiny/Kosmos-3"
    revision = settings.get("revision", "main")
    what = rf"detector\.settings\.model={model} \(revision {revision}\) cannot be used: .*hf download"
    with pytest.raises(ModelError, match=f"(?s){what}"):
        create_kosmos2({"model": model, **settings}).prepare(tiny.sample(tmp_path, "a", "dog"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (model_folders.without_a_weight("layers.1.ffn.fc1.weight"), "1 of the weights are missing, such as .*fc1"),
        (model_folders.without_tokenizer, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_spoiled_folder_is_named(copied: Path, spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    spoil(copied)
    detector = create_kosmos2({**tiny.SETTINGS, "model": str(copied), "device": "cpu"})
    message = f"(?s){re.escape(str(copied))} .*cannot be used: .*{said}.*microsoft/kosmos-2-patch14-224"
    with pytest.raises(ModelError, match=message):
        detector.prepare(tiny.sample(tmp_path, "a", "dog"))


def test_the_recipe_names_the_model_its_commit_and_its_licence() -> None:
    text = _RECIPE.read_text(encoding="utf-8")
    section = yaml.safe_load(text)["detector"]
    assert section["name"] == "kosmos2"
    chosen = Kosmos2Settings(**section["settings"])
    assert chosen.model == "microsoft/kosmos-2-patch14-224"
    assert re.fullmatch("[0-9a-f]{40}", chosen.revision or "")
    assert (chosen.tasks, chosen.num_beams, chosen.max_new_tokens) == (("rec", "caption"), 1, 128)
    assert "MIT licence" in text
