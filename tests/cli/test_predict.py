"""`predict`: images, folders and files of expressions in; ranked boxes, JSON lines, pictures and crops out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_wrapper import wrapper
from llm_wrapper.detectors import imported
from llm_wrapper.errors import DataError, LLMWrapperError, RecipeError
from tests.commands import fail, invoke, run
from tests.test_wrapper import recipe

pytestmark = pytest.mark.usefixtures("own_folder")

IMAGES = Path(__file__).parents[2] / "data" / "toy" / "images"
TOY = ("--vlm", "toy", "--llm", "rule")


@pytest.fixture
def picture() -> Path:
    return IMAGES / "toy-val-0000.png"


@pytest.fixture
def folder() -> Path:
    """Two images and a text, in the working folder."""
    Path("photos of mine").mkdir()
    for number in (0, 1):
        shutil.copy(IMAGES / f"toy-val-000{number}.png", Path("photos of mine") / f"{number}.png")
    Path("photos of mine/notes.txt").touch()
    return Path("photos of mine")


def answers(*args: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("predict", *args, *TOY, "--json").splitlines()]


def test_predict_ranks_prints_and_draws(picture: Path, tmp_path: Path) -> None:
    printed = run("predict", picture, "the one that is blue", *TOY, "--out", "deep/answer.png")
    lines = printed.splitlines()
    assert lines[0].startswith("* ")
    assert not [line for line in lines[1:] if line.startswith("*")]
    assert lines[-1] == "decided by: rule; picture: deep/answer.png"
    with Image.open(tmp_path / "deep" / "answer.png") as drawn, Image.open(picture) as original:
        assert drawn.format == "PNG"
        assert drawn.width >= original.width


def test_predict_takes_boxes_of_any_detector(picture: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes # of: mine.jsonl"
    rows = [{"box": [x, 20, x + 30, 60], "label": "[red]mug", "score": 0.5} for x in (150, 20)]
    boxes.write_text(json.dumps({"file_name": picture.name, "detections": rows}))
    printed = run("predict", picture, "the mug on the left", "--llm", "rule", "--boxes", boxes)
    assert printed.splitlines()[:2] == [
        "*  0   [red]mug  (20.0, 20.0, 50.0, 60.0)",
        "   1   [red]mug  (150.0, 20.0, 180.0, 60.0)",
    ]
    printed += run("predict", picture, "the mug on the right", "--llm", "rule", "--boxes", boxes)
    drawn = [line.partition("picture: ")[2] for line in printed.splitlines() if "picture: " in line]
    assert len(set(drawn)) == len(drawn) == 2
    assert all(Path(path).is_file() and path.startswith("runs/predict/toy-val-0000-") for path in drawn)


def test_predict_says_which_picture_cannot_be_read() -> None:
    told = fail(DataError, "predict", "absent.png", "x", "--llm", "rule", "--vlm", "toy")
    assert "absent.png cannot be read as an image" in told


@pytest.mark.parametrize("more", [[], ["--llm", "rule"], ["--llm", "smollm2"]], ids=["bare", "rule", "llm"])
def test_predict_never_takes_a_detector_that_cannot_see_photographs(picture: Path, more: list[str]) -> None:
    told = fail(RecipeError, "predict", picture, "the left giraffe", *more)
    assert "--vlm flo2" in told
    assert "--boxes boxes.jsonl" in told
    assert "--run runs/.." in told


@pytest.mark.parametrize("expression", ["", "  \t", "\n"], ids=["empty", "blank", "line"])
def test_predict_needs_an_expression(picture: Path, expression: str) -> None:
    assert "is empty: say what to find" in fail(
        DataError, "predict", picture, expression, "--vlm", "toy", "--llm", "rule"
    )


@pytest.mark.parametrize(
    ("out", "told"),
    [
        pytest.param("answer", "no suffix is no kind of picture", id="no-suffix"),
        pytest.param("answer.[bold]txt", ".[bold]txt is no kind of picture", id="markup"),
        pytest.param("toy-val-0000.png", "is the picture itself", id="itself"),
    ],
)
def test_predict_refuses_what_it_cannot_draw_to(picture: Path, tmp_path: Path, out: str, told: str) -> None:
    image = tmp_path / "toy-val-0000.png"
    shutil.copy(picture, image)
    before = image.read_bytes()
    args = ("predict", image, "left star", "--vlm", "toy", "--llm", "rule")
    assert told in fail(RecipeError, *args, "--out", tmp_path / out)
    assert image.read_bytes() == before


def test_a_picture_that_cannot_be_written_is_an_error_line(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    args = ("predict", picture, "left star", "--vlm", "toy", "--llm", "rule", "--out", "file/answer.png")
    assert "file/answer.png was not written" in fail(LLMWrapperError, *args)


def test_a_wrong_file_of_boxes_is_told_before_an_llm_is_loaded(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapper.Wrapper, "from_recipe", lambda *_: pytest.fail("an LLM was loaded"))
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text('{"file_name": "other.png", "detections": []}')
    assert "made for other data: it names 'other.png'" in fail(
        DataError, "predict", picture, "left star", "--boxes", boxes
    )


def test_a_file_of_boxes_is_read_once_for_all_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [{"box": [x, 20, x + 30, 60], "label": "mug"} for x in (150, 20)]
    rows = [{"file_name": "0.png", "detections": boxes[:1]}, {"file_name": "1.png", "detections": boxes}]
    Path("boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reads: list[object] = []
    read = imported.BoxFile
    monkeypatch.setattr(imported, "BoxFile", lambda *args, **more: reads.append(args) or read(*args, **more))
    printed = run("predict", folder, "the mug", "--llm", "rule", "--boxes", "boxes.jsonl", "--json")
    assert [len(json.loads(line)["ranked"]) for line in printed.splitlines()] == [1, 2]
    assert len(reads) == 1


def test_boxes_and_a_detector_are_one_too_many(picture: Path) -> None:
    assert "leave out --vlm toy" in fail(RecipeError, "predict", picture, "x", "--boxes", "b.jsonl", "--vlm", "toy")


def test_predict_names_what_is_missing(picture: Path) -> None:
    for words in ([], [picture], ["the left star"], ["llm.orders=2", picture]):
        assert "llm-wrapper predict photo.jpg 'the man on the left'" in fail(RecipeError, "predict", *words, *TOY)
    said = fail(RecipeError, "predict", picture, "the", "left star", *TOY)
    assert "there is no image 'the'. An expression of several words is written in quotes" in said
    assert said.endswith("toy-val-0000.png 'the left star'")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["photos of mine"], id="folder"),
        pytest.param(["photos of mine/*.png"], id="pattern"),
        pytest.param(["photos of mine/0.png", "photos of mine/1.png"], id="images"),
    ],
)
def test_several_images_are_answered_one_after_the_other(folder: Path, words: list[str]) -> None:
    found = answers(*words, "the left star")
    assert [each["image"] for each in found] == [str(folder / name) for name in ("0.png", "1.png")]
    assert not Path("runs").exists(), "JSON alone draws nothing"
    lines = run("predict", *words, "the left star", *TOY).splitlines()
    headers = [line for line in lines if line.endswith(".png: the left star")]
    assert len(headers) == 2
    drawn = [line.partition("picture: ")[2] for line in lines if "picture: " in line]
    assert len(set(drawn)) == 2
    assert all(Path(path).is_file() for path in drawn)


def test_a_json_line_says_all_that_is_printed(folder: Path) -> None:
    (found,) = answers(folder / "0.png", "the left star", "--out", "drawn.png", "--save-crop", "candidates.cap=3")
    ranked = found["ranked"]
    assert len(ranked) == 3
    assert sorted(each["index"] for each in ranked) == [0, 1, 2]
    assert (found["box"], found["index"], found["label"]) == tuple(ranked[0][key] for key in ("box", "index", "label"))
    assert (found["expression"], found["decided_by"], found["none"]) == ("the left star", "rule", False)
    assert found["probability"] is None
    x0, y0, x1, y1 = found["box"]
    with Image.open(found["crop"]) as crop, Image.open(folder / "0.png") as image:
        assert np.array_equal(crop, image.convert("RGB").crop((int(x0), int(y0), int(x1), int(y1))))
    assert (found["picture"], found["crop"]) == ("drawn.png", "drawn-crop.png")


def test_pictures_of_several_go_into_one_folder(folder: Path) -> None:
    found = answers(folder, "the left star", "--out", "drawn")
    assert {Path(each["picture"]).parent for each in found} == {Path("drawn")}
    assert all(Path(each["picture"]).is_file() for each in found)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param(
            "asked.jsonl",
            '{"image": "0.png", "expression": "left star"}\n'
            '{"file_name": "1.png", "expression": "right star", "box": null}\n'
            '{"image": "0.png", "expression": "the red one"}\n',
            id="jsonl",
        ),
        pytest.param("asked.txt", "0.png left star\n\n1.png\tright star\n0.png  the red one\n", id="text"),
    ],
)
def test_expressions_come_from_a_file(folder: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    from_recipe = wrapper.Wrapper.from_recipe
    monkeypatch.setattr(
        wrapper.Wrapper, "from_recipe", lambda *args, **options: loads.append(args) or from_recipe(*args, **options)
    )
    for path, words in ((folder / name, []), (Path(name), [folder]), (folder / name, [folder / "*.png"])):
        path.write_text(content)
        found = answers(*words, "--expressions", path)
        assert [(Path(each["image"]).name, each["expression"]) for each in found] == [
            ("0.png", "left star"),
            ("0.png", "the red one"),
            ("1.png", "right star"),
        ]
    assert len(loads) == 3, "once a command"
    assert len(answers(folder / "1.png", "--expressions", folder / name)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('{"expression": "left"}', "line 1 names no image", id="no-image"),
        pytest.param('{"image": "0.png", "expression": " "}', "line 1: the expression ' ' is empty", id="empty"),
        pytest.param('{"image": "0.png"}\n{', "2 problems", id="no-expression-and-no-json"),
        pytest.param('["0.png"]', "line 1 names no image", id="list"),
        pytest.param("", "it has no line", id="no-lines"),
    ],
)
def test_a_file_of_expressions_that_cannot_be_used_is_named(content: str, message: str) -> None:
    Path("asked.jsonl").write_text(content)
    said = fail(DataError, "predict", "--expressions", "asked.jsonl", *TOY)
    assert message in said
    assert "asked.jsonl cannot be used. A right line" in said


def test_an_image_that_cannot_be_read_does_not_stop_the_others(folder: Path) -> None:
    (folder / "00.png").write_text("no image")
    result = invoke("predict", folder, "the left star", *TOY, "--json")
    assert result.exit_code == 1
    assert [Path(json.loads(line)["image"]).name for line in result.stdout.splitlines()] == ["0.png", "1.png"]
    assert "1 of 3 images were skipped" in result.stderr
    assert "00.png cannot be read as an image" in result.stderr
    for name in ("0.png", "1.png"):
        (folder / name).write_text("no image")
    assert "cannot be read" in fail(DataError, "predict", folder, "the left star", *TOY)


def test_a_folder_or_pattern_without_images_is_named() -> None:
    Path("empty").mkdir()
    assert "empty holds no images" in fail(DataError, "predict", "empty", "left star", *TOY)
    assert "no file matches the pattern 'empty/*.jpg'" in fail(DataError, "predict", "empty/*.jpg", "left star", *TOY)


def test_the_toy_detector_on_a_photograph_is_warned_of(picture: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.jpg")
    said = invoke("predict", "photo.jpg", "the left giraffe", *TOY).stderr
    assert "WARNING: photo.jpg looks like a photograph, and the detector toy knows drawn shapes alone" in said
    assert "--vlm flo2" in said
    assert not invoke("predict", picture, "the left star", *TOY).stderr


def test_a_recipe_file_names_the_detector(picture: Path) -> None:
    Path("mine.yaml").write_text(recipe().to_yaml())
    assert "decided by: rule" in run("--recipe", "mine.yaml", "predict", picture, "the left star")
