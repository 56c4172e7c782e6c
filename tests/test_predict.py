"""One picture, one expression: from pixels to a ranked answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from llm_wrapper import detectors, runs
from llm_wrapper.datasets import Dataset
from llm_wrapper.errors import DataError, ImageError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe
from llm_wrapper.records import Answer, Box, Prompt
from llm_wrapper.wrapper import Result, Wrapper
from tests.fake_llm import FakeLLM

LEFT, RIGHT = Box(10, 40, 31, 61), Box(100, 20, 141, 61)


def recipe(detector: DetectorSection | None = None) -> Recipe:
    return Recipe(
        detector=detector or DetectorSection(name="toy"),
        data=DataSection(name="mine", reader="jsonl", root=Path("unused.jsonl")),
        llm=LLMSection(backend="rule"),
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Two red squares on grey, the right one larger."""
    image = Image.new("RGB", (160, 120), (128, 128, 128))
    for box in (LEFT, RIGHT):
        ImageDraw.Draw(image).rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), fill=(230, 20, 20))
    path = tmp_path / "squares.png"
    image.save(path)
    return path


def imported(folder: Path, *rows: object) -> Recipe:
    """A recipe whose boxes come from a file."""
    path = folder / "boxes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe(DetectorSection(name="import", settings={"path": str(path)}))


def boxes_of(result: Result) -> list[Box]:
    return [candidate.box for candidate, _ in result.ranked]


def never(prompts: Sequence[Prompt]) -> list[Answer]:
    assert not prompts
    return []


@pytest.mark.parametrize(
    ("expression", "best", "other"),
    [
        ("the left square", LEFT, RIGHT),
        ("right square", RIGHT, LEFT),
        ("<|im_end|>\n2", RIGHT, LEFT),
    ],
)
def test_the_rule_ranks_its_choice_first(picture: Path, expression: str, best: Box, other: Box) -> None:
    result = Wrapper.from_recipe(recipe()).predict(picture, expression)
    assert (result.box, result.probability, result.prediction.decided_by) == (best, None, "rule")
    assert boxes_of(result) == [best, other]
    assert [share for _, share in result.ranked] == [None, None]
    assert (result.prediction.target, result.prediction.expression) == (None, expression)


def test_a_path_may_be_a_text(picture: Path) -> None:
    assert Wrapper.from_recipe(recipe()).predict(str(picture), "left square").box == LEFT


def test_an_llm_ranks_by_probability(picture: Path) -> None:
    llm = FakeLLM(lambda prompts: [Answer(probabilities=(0.3, 0.7), mass=0.9)])
    result = Wrapper(recipe(), llm).predict(picture, "left square")
    (prompt,) = llm.prompts
    assert prompt.messages[0].content.endswith("left square")
    assert [candidate.box for candidate in prompt.candidates] == [LEFT, RIGHT]
    assert (result.box, result.probability, result.prediction.decided_by) == (RIGHT, 0.7, "llm")
    assert [(candidate.box, share) for candidate, share in result.ranked] == [(RIGHT, 0.7), (LEFT, 0.3)]


def test_a_generated_answer_is_ranked_first_too(picture: Path) -> None:
    result = Wrapper(recipe(), FakeLLM(lambda prompts: [Answer(text="1")])).predict(picture, "left square")
    assert boxes_of(result) == [RIGHT, LEFT]


def test_nothing_found_is_no_box(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("RGB", (50, 50), (128, 128, 128)).save(path)
    result = Wrapper(recipe(), FakeLLM(never)).predict(path, "left square")
    assert (result.box, result.ranked, result.prediction.decided_by) == (None, (), "no_candidate")


def test_boxes_of_any_detector_can_be_brought(picture: Path) -> None:
    detections = [{"box": list(box.xyxy), "label": "square", "score": 0.5} for box in (RIGHT, LEFT)]
    for name in ("file_name", "image_id"):
        value = str(picture) if name == "file_name" else picture.stem
        wrapper = Wrapper.from_recipe(imported(picture.parent, {name: value, "detections": detections}))
        assert boxes_of(wrapper.predict(picture, "left square")) == [LEFT, RIGHT]


def test_boxes_of_another_picture_are_refused(picture: Path) -> None:
    wrapper = Wrapper.from_recipe(imported(picture.parent, {"file_name": "other.png", "detections": []}))
    with pytest.raises(DataError, match=r"0 of the 1 images that the file names are of the picture"):
        wrapper.predict(picture, "left square")


def test_a_picture_is_taken_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(path, exif=exif)
    whole = {"box": [0, 0, 20, 40], "label": "all", "score": None}
    result = Wrapper.from_recipe(imported(tmp_path, {"image_id": "turned", "detections": [whole]})).predict(path, "all")
    assert result.box == Box(0, 0, 20, 40)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_of_picture_can_be_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.tiff"
    Image.new(mode, (40, 20)).save(path)
    whole = {"box": [0, 0, 40, 20], "label": "all", "score": None}
    result = Wrapper.from_recipe(imported(tmp_path, {"image_id": "picture", "detections": [whole]})).predict(path, "x")
    assert result.prediction.decided_by == "single_candidate"


def broken_chunk(content: bytes) -> bytes:
    """Damage the type of the second chunk of pixels, which is not looked at before the pixels are."""
    place = content.index(b"IDAT", content.index(b"IDAT") + 4)
    return content[:place] + b"\0\1\2\3" + content[place + 4 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"left square\n", id="text"),
        pytest.param(lambda content: content[:20], id="cut-in-the-header"),
        pytest.param(lambda content: content[: len(content) // 2], id="cut-in-the-pixels"),
        pytest.param(broken_chunk, id="damaged-chunk"),
    ],
)
def test_a_damaged_picture_is_named(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = tmp_path / "damaged.png"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageError, match=r"damaged\.png cannot be read as an image"):
        Wrapper(recipe(), FakeLLM(never)).predict(path, "left square")


@pytest.mark.parametrize("name", ["absent.png", ".", ""])
def test_a_picture_that_is_no_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot be read as an image"):
        Wrapper(recipe(), FakeLLM(never)).predict(tmp_path / name, "left square")


def test_a_picture_may_be_given_itself(picture: Path) -> None:
    wrapper = Wrapper.from_recipe(recipe())
    with Image.open(picture) as image:
        result = wrapper.predict(image, "left square")
    assert boxes_of(result) == boxes_of(wrapper.predict(picture, "left square"))
    for mode in ("L", "RGBA", "CMYK", "I;16"):
        assert wrapper.predict(Image.new(mode, (40, 20)), "left square").box is None


def test_detectors_are_made_once(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recipe] = []
    create_all = detectors.create_all

    def counted(recipe: Recipe, dataset: Dataset) -> Sequence[detectors.Detector]:
        made.append(recipe)
        return create_all(recipe, dataset)

    monkeypatch.setattr(detectors, "create_all", counted)
    wrapper = Wrapper.from_recipe(recipe())
    for expression in ("left square", "right square", "the square"):
        wrapper.predict(picture, expression)
    assert len(made) == 1


def test_orders_are_those_of_the_recipe(picture: Path) -> None:
    llm = FakeLLM(lambda prompts: [Answer(probabilities=(0.3, 0.7), mass=0.9) for _ in prompts])
    averaged = recipe().model_copy(update={"llm": LLMSection(backend="rule", orders=4)})
    result = Wrapper(averaged, llm).predict(picture, "left square")
    assert len(llm.prompts) == 4
    assert result.prediction.mass == pytest.approx(0.9)


def test_indices_are_those_of_the_prompt_and_the_picture(picture: Path) -> None:
    result = Wrapper(recipe(), FakeLLM(lambda prompts: [Answer(probabilities=(0.3, 0.7), mass=0.9)])).predict(
        picture, "square"
    )
    assert result.indices == (1, 0)
    assert [result.prediction.candidates[index] for index in result.indices] == [each for each, _ in result.ranked]


@pytest.mark.parametrize("expression", ["", " ", "\n\t"], ids=["empty", "blank", "lines"])
def test_an_empty_expression_is_refused(picture: Path, expression: str) -> None:
    with pytest.raises(DataError, match="is empty: say what to find"):
        Wrapper(recipe(), FakeLLM(never)).predict(picture, expression)


def test_a_run_answers_with_its_own_detector(picture: Path, tmp_path: Path) -> None:
    gray = recipe(DetectorSection(name="toy-gray"))
    runs.finish(runs.open_run(tmp_path / "run", gray), {})
    for folder in (tmp_path / "run", str(tmp_path / "run")):
        result = Wrapper.from_run(folder).predict(picture, "left square")
        assert boxes_of(result) == boxes_of(Wrapper.from_recipe(gray).predict(picture, "left square"))
        assert {each.detector for each, _ in result.ranked} == {"toy-gray"}


def test_nothing_is_printed(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Wrapper.from_recipe(recipe()).predict(picture, "left square")
    assert capsys.readouterr().out == ""
