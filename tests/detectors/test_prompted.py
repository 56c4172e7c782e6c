"""What the prompted detectors share: settings, identity, loading, hostile images, nothing asked with nothing."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors import Question, create_detector, detect_sample
from llm_wrapper.errors import ImageError, ModelError, RecipeError
from llm_wrapper.recipe import DetectorSection
from llm_wrapper.records import Detections, Sample
from llm_wrapper.storage import digest_model
from tests.detectors import model_folders, tiny_florence2, tiny_kosmos2

_RECIPES = Path(__file__).parents[2] / "recipes" / "vlm"

TINY = {"florence2": tiny_florence2, "kosmos2": tiny_kosmos2}


@pytest.fixture(scope="module", params=TINY)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tiny(kind: str) -> ModuleType:
    return TINY[kind]


def create(kind: str, **settings: Any) -> Any:
    return create_detector(DetectorSection(name=kind, settings=settings), Dataset("mine", "val", [], "digest"))


# Settings and identity


def test_every_wrong_setting_is_listed(kind: str) -> None:
    wrong = {"modle": "x", "tasks": ["rec", "rec"], "num_beams": 0, "dtype": "int4", "device": "gpu", "max_prompts": 0}
    with pytest.raises(RecipeError, match=rf"the detector '{kind}' cannot be built \(8 problems\)") as caught:
        create(kind, **wrong, max_new_tokens="many")
    for text in ("key 'model' is missing", "unknown key 'modle'", "tasks: rec, rec: name each task once", "num_beams"):
        assert text in str(caught.value)


@pytest.mark.parametrize("tasks", [[], ["ocr"], "rec"], ids=str)
def test_tasks_must_be_known(kind: str, tasks: Any) -> None:
    with pytest.raises(RecipeError, match="tasks"):
        create(kind, model="x", tasks=tasks)


@pytest.mark.parametrize("attention", ["flash", ""], ids=str)
def test_an_attention_must_be_known(attention: str) -> None:
    with pytest.raises(RecipeError, match="attention"):
        create("florence2", model="x", attention=attention)


def test_identity_holds_what_decides_the_answers(kind: str, tiny: ModuleType) -> None:
    detector = tiny.build(max_prompts=3)
    model = tiny.SETTINGS["model"]
    assert detector.name == model.rpartition("/")[2].lower()
    assert detector.identity() == {
        "detector": kind,
        "model": model,
        "revision": None,
        "tasks": tiny.SETTINGS["tasks"],
        "num_beams": {"florence2": 3, "kosmos2": 1}[kind],
        "max_new_tokens": 40,
        "reading": 1,
    }
    assert tiny.build(dtype=torch.bfloat16).identity() == detector.identity()
    assert tiny.build(max_prompts=1, device="cpu").identity() == detector.identity()


@pytest.mark.parametrize(
    ("changed", "key"),
    [({"tasks": ["rec"]}, "tasks"), ({"num_beams": 2}, "num_beams"), ({"max_new_tokens": 5}, "max_new_tokens")],
    ids=str,
)
def test_identity_changes_with_the_settings(tiny: ModuleType, changed: dict[str, Any], key: str) -> None:
    one, other = tiny.build().identity(), tiny.build(**changed).identity()
    assert {name for name in one if one[name] != other[name]} == {key}


def test_identity_needs_no_weights(kind: str) -> None:
    detector = create(kind, model="no/such-model", revision="a" * 40, device="cuda:7")
    assert (detector.identity()["model"], detector.identity()["revision"]) == ("no/such-model", "a" * 40)
    assert detector.recorded() == {}


@pytest.mark.parametrize(
    ("kind", "most", "positions"),
    [
        ("florence2", tiny_florence2.POSITIONS, tiny_florence2.POSITIONS),
        ("kosmos2", tiny_kosmos2.POSITIONS - 67 - 32, tiny_kosmos2.POSITIONS),
    ],
)
def test_more_tokens_than_there_is_room_for_are_refused(kind: str, most: int, positions: int) -> None:
    with pytest.raises(RecipeError, match=rf"max_new_tokens={most + 1}: .* {positions} positions.* set it to {most} "):
        TINY[kind].build(max_new_tokens=most + 1)
    TINY[kind].build(max_new_tokens=most)


@pytest.mark.parametrize("name", ["flo2", "flo2-ft", "flo2-base", "kosmos2"])
def test_recipes_name_a_model_its_commit_and_its_licence(name: str) -> None:
    text = (_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    detector = create_detector(
        DetectorSection(**yaml.safe_load(text)["detector"]), Dataset("mine", "val", [], "digest")
    )
    identity = detector.identity()
    is_kosmos = name == "kosmos2"
    model = "microsoft/kosmos-2-patch14-224" if is_kosmos else "florence-community/Florence-2-"
    assert identity["model"].startswith(model)
    assert re.fullmatch("[0-9a-f]{40}", identity["revision"])
    chosen = (identity["tasks"], identity["num_beams"], identity["max_new_tokens"])
    assert chosen == ((["rec", "caption"], 1, 128) if is_kosmos else (["rec", "grounding"], 3, 1024))
    assert "MIT licence" in text


# Loading


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_the_first_answer(kind: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"device=cuda:1: PyTorch sees 0 CUDA devices; use device=auto"):
        create(kind, model="x", device="cuda:1").prepare(tiny.sample(tmp_path, "a", "dog"))


@pytest.fixture(scope="module")
def saved(kind: str, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / tiny.SETTINGS["model"].rpartition("/")[2]
    processor = tiny.processor()
    tiny.model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind == "kosmos2":
        # As in the checkpoint. transformers drops it, and would refuse to generate with it.
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["no_repeat_ngram_size"] = 3
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "attention": "eager"}], ids=["usual", "chosen"])
def test_a_folder_is_loaded_as_the_settings_say(
    kind: str, tiny: Any, saved: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    options = {name: value for name, value in options.items() if kind == "florence2" or name == "dtype"}
    detector = create(kind, **{**tiny.SETTINGS, "model": str(saved), "device": "cpu", **options})
    assert detector.name == saved.name.lower()
    assert (detector.identity()["model"], detector.identity()["revision"]) == (str(saved), None)
    questions = tiny.all_questions(detector, [tiny.sample(tmp_path, "a", "dog")])
    detector.prepare(questions[0].sample)
    recorded = detector.recorded()
    assert recorded == {
        "attention": options.get("attention", recorded["attention"]),
        "device": "cpu",
        "dtype": options.get("dtype", "float32"),
        "files": digest_model(str(saved)),
        "image_processor": "CLIPImageProcessorPil",
    }
    if options:
        return
    if kind == "florence2":
        assert recorded["attention"] == "sdpa"
        built = tiny.build(attention="sdpa")
    else:
        tiny.speaking_in_format(detector._model, detector._processor.tokenizer)
        built = tiny.build()
    expected = tiny.detect(built, questions)
    assert any(answer.items for answer in expected)
    assert tiny.detect(detector, questions) == expected


@pytest.fixture
def hub(tiny: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub's local cache that holds the tiny model; returns its commit."""
    return model_folders.in_a_hub(saved, tmp_path, tiny.SETTINGS["model"], monkeypatch)


@pytest.mark.parametrize("by_commit", [False, True], ids=["main", "commit"])
def test_the_commit_that_was_loaded_is_recorded(
    kind: str, tiny: Any, hub: str, by_commit: bool, tmp_path: Path
) -> None:
    revision = {"revision": hub} if by_commit else {}
    detector = create(kind, **tiny.SETTINGS, **revision, device="cpu")
    detector.prepare(tiny.sample(tmp_path, "a", "dog"))
    assert detector.recorded()["commit"] == hub
    assert detector.identity()["revision"] == revision.get("revision")


@pytest.mark.parametrize("revision", [None, "v9"], ids=["unknown-id", "unknown-revision"])
def test_a_model_that_is_not_there_is_named(
    kind: str, tiny: Any, hub: str, revision: str | None, tmp_path: Path
) -> None:
    model = tiny.SETTINGS["model"] if revision else "tiny/no-such-model"
    what = rf"detector\.settings\.model={model} \(revision {revision or 'main'}\) cannot be used: .*hf download"
    with pytest.raises(ModelError, match=f"(?s){what}"):
        create(kind, model=model, revision=revision).prepare(tiny.sample(tmp_path, "a", "dog"))


def _not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (model_folders.without_a_weight("layers.1.fc1.weight", "layers.1.ffn.fc1.weight"), "1 of the weights .*fc1"),
        (model_folders.of_another_kind, r"it is a bert, not a (florence2|kosmos-2)"),
        (model_folders.cut_short, ""),
        (model_folders.without_tokenizer, ""),
        (_not_json, ""),
    ],
    ids=["without-a-weight", "of-another-kind", "cut-short", "without-tokenizer", "not-json"],
)
def test_a_spoiled_folder_is_named(
    kind: str, tiny: Any, saved: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    spoil(folder)
    detector = create(kind, **{**tiny.SETTINGS, "model": str(folder), "device": "cpu"})
    remedy = {"florence2": "florence-community", "kosmos2": "microsoft/kosmos-2-patch14-224"}[kind]
    with pytest.raises(ModelError, match=f"(?s){re.escape(str(folder))} .*cannot be used: .*{said}.*{remedy}"):
        detector.prepare(tiny.sample(tmp_path, "a", "dog"))


# Images, and nothing to ask


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (1, 700)], ids=str)
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_unusual_images(tiny: Any, tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.new("RGB", size, "red").convert(mode).save(path)
    detector = tiny.build(tasks=tiny.SETTINGS["tasks"][-1:], num_beams=1)
    answer = detect_sample(detector, Sample("s", "r", "i", str(path), size, "dog", None))
    assert answer.items or answer.num_dropped


def test_an_image_that_cannot_be_read_is_named(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=re.escape(str(path))):
        tiny.build().prepare(Sample("s", "r", "i", str(path), (4, 4), "dog", None))


@pytest.mark.parametrize("expression", ["", "  \n", "\u200b"], ids=["empty", "blank", "invisible"])
def test_nothing_is_asked_with_nothing(
    tiny: Any, tmp_path: Path, expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = tiny.build(tasks=["rec"])
    monkeypatch.setattr(detector._model, "generate", lambda **_: pytest.fail("asked"))
    assert detect_sample(detector, tiny.sample(tmp_path, "a", expression)) == Detections(())
    assert detector.detect([], {}) == []


@pytest.mark.slow
def test_an_image_is_seen_alike_whatever_the_expression(tiny: Any, tmp_path: Path) -> None:
    detector = tiny.build()
    texts = ("dog", "the old lady <OD> <grounding>", "")
    samples = [tiny.sample(tmp_path, "a", text) for text in texts]
    one, two, three = (tiny.detect(detector, [Question(sample, "image")]) for sample in samples)
    assert one[0].items
    assert one == two == three


@pytest.mark.slow
def test_an_answer_depends_on_its_own_question_alone(tiny: Any, tmp_path: Path) -> None:
    detector = tiny.build()
    questions = tiny.all_questions(detector, tiny.samples(tmp_path))
    together = tiny.detect(detector, questions)
    assert any(answer.items for answer in together)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = tiny.detect(detector, [question])
        boxes = [(item.source, item.label, pytest.approx(item.box.xyxy, abs=1e-3)) for item in answer.items]
        assert [(item.source, item.label, item.box.xyxy) for item in alone.items] == boxes
        assert alone.num_dropped == answer.num_dropped


@pytest.mark.slow
def test_a_cut_expression_is_logged_once(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = tiny.build(tasks=["rec"])
    samples = [tiny.sample(tmp_path, "a", "the dog left of " * 1250, number) for number in range(2)]
    with caplog.at_level(logging.WARNING, logger="llm_wrapper"):
        for _ in range(2):
            answers = tiny.detect(detector, tiny.all_questions(detector, samples))
    (record,) = caplog.records
    reads = f"{detector.name} reads {tiny.ROOM} tokens: longer expressions are cut, as 'the dog left"
    assert reads in record.getMessage()
    assert answers[0].items or answers[0].num_dropped


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["dog ", "a", "🐕 ", "é "], ids=["words", "word", "emoji", "accents"])
@pytest.mark.parametrize("task", ["rec", "grounding"])
def test_a_long_expression_is_cut_no_further_than_needed(tiny: Any, unit: str, task: str) -> None:
    if task not in tiny.SETTINGS["tasks"]:
        pytest.skip("not a task of this model")
    expression, ids = tiny.build()._fit(task, unit * 1000)
    assert tiny.ROOM - 6 < len(ids) <= tiny.ROOM
    assert (unit * 1000).startswith(expression)
