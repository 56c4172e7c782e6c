"""One image, one expression: from pixels, or from boxes of anywhere, to a ranked answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

import llm_wrapper
import llm_wrapper.llms.base as llms
from llm_wrapper import detectors, images, runs
from llm_wrapper.errors import DataError, ImageError, RecipeError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, PromptSection, Recipe, load_recipe
from llm_wrapper.records import Answer, Box, Detection, Detections, Prompt, Sample
from llm_wrapper.terminal import SHOWS_LOADING
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
    return [each.box for each in result.ranked]


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
    assert [each.probability for each in result.ranked] == [None, None]
    assert (result.prediction.target, result.prediction.expression) == (None, expression)


def test_a_path_may_be_a_text(picture: Path) -> None:
    assert Wrapper.from_recipe(recipe()).predict(str(picture), "left square").box == LEFT


def test_an_llm_ranks_by_probability(picture: Path) -> None:
    asked: list[Prompt] = []

    def ask(prompts: Sequence[Prompt]) -> list[Answer]:
        asked.extend(prompts)
        return [Answer(probabilities=(0.3, 0.7), mass=0.9)]

    result = Wrapper(recipe(), FakeLLM(ask)).predict(picture, "left square")
    (prompt,) = asked
    assert prompt.messages[0].content.endswith("left square")
    assert [candidate.box for candidate in prompt.candidates] == [LEFT, RIGHT]
    assert (result.box, result.probability, result.prediction.decided_by) == (RIGHT, 0.7, "llm")
    assert [(each.box, each.probability) for each in result.ranked] == [(RIGHT, 0.7), (LEFT, 0.3)]


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


def test_an_image_may_be_given_as_pixels(picture: Path) -> None:
    wrapper = Wrapper.from_recipe(recipe())
    expected = boxes_of(wrapper.predict(picture, "left square"))
    with Image.open(picture) as image:
        assert boxes_of(wrapper.predict(image, "left square")) == expected
        assert boxes_of(wrapper.predict(np.asarray(image), "left square")) == expected
    for mode in ("L", "RGBA", "CMYK", "I;16"):
        assert wrapper.predict(Image.new(mode, (40, 20)), "left square").box is None


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((20, 40), np.uint8), id="gray"),
        pytest.param(np.zeros((20, 40, 4), np.uint8), id="four-channels"),
        pytest.param(np.zeros((3, 20, 40), np.uint8), id="channels-first"),
        pytest.param(np.zeros((20, 40, 3), np.float32), id="floats"),
        pytest.param(np.zeros((0, 40, 3), np.uint8), id="empty"),
        pytest.param([[0, 0, 0]], id="list"),
        pytest.param(None, id="none"),
    ],
)
def test_other_pixels_are_refused(pixels: object) -> None:
    with pytest.raises(ImageError, match="is no image"):
        Wrapper(recipe(), FakeLLM(never)).predict(pixels, "left square")  # type: ignore[call-overload]


class CountingDetector:
    """Finds both squares; counts its calls, and how often its weights were loaded."""

    name, levels, reads_images = "counting", ("image", "expression"), True

    def __init__(self) -> None:
        self.loads, self.calls = 0, []

    def identity(self) -> dict[str, object]:
        return {"id": self.name}

    def prepare(self, sample: Sample) -> Image.Image:
        if not self.calls:
            self.loads += 1
            assert not SHOWS_LOADING.get(), "a bar would be shown while weights are loaded"
        return images.read_sample(sample)

    def detect(self, questions: Sequence[detectors.Question], prepared: object) -> list[Detections]:
        self.calls.append([(each.level, each.sample.expression) for each in questions])
        found = [(LEFT, "square"), (RIGHT, "square")]
        answers = {
            "image": Detections(tuple(Detection(box, label, None, "od") for box, label in found)),
            "expression": Detections((Detection(RIGHT, "answer", 0.5, "rec"),)),
        }
        return [answers[each.level] for each in questions]


def test_a_hundred_predictions_load_the_weights_once(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the detector's and the LLM's, of a run as of a recipe."""
    loaded: list[object] = []
    detector = CountingDetector()
    made: list[dict[str, object]] = []
    monkeypatch.setitem(detectors.REGISTRY, "counting", lambda settings: made.append(settings) or detector)
    answers = FakeLLM(lambda prompts: [Answer(probabilities=(0.2, 0.3, 0.5), mass=1.0) for _ in prompts])
    load = SimpleNamespace(load_model=lambda section, adapter: loaded.append((adapter, SHOWS_LOADING.get())))
    monkeypatch.setitem(sys.modules, "llm_wrapper.llms.load", load)
    local = SimpleNamespace(LocalLLM=lambda weights, *, title, progress: answers)
    monkeypatch.setitem(sys.modules, "llm_wrapper.llms.local", local)
    transformers = recipe(DetectorSection(name="counting")).model_copy(update={"llm": LLMSection(model="tiny")})
    wrapper = Wrapper.from_recipe(transformers, picture.parent)
    for number in range(100):
        assert wrapper.predict(picture, f"square {number}").prediction.decided_by == "llm"
    assert (loaded, detector.loads, len(made), len(detector.calls)) == ([(picture.parent, False)], 1, 1, 100)


def test_an_llm_that_was_not_trained_is_warned_of(
    picture: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llms, "load_llm", lambda section, adapter, **options: FakeLLM(never))
    section = recipe().model_copy(update={"llm": LLMSection(model="owner/tiny")})
    Wrapper.from_recipe(section, picture.parent)
    assert not caplog.text
    Wrapper.from_recipe(section)
    assert "owner/tiny was not trained to choose boxes" in caplog.text


def test_several_expressions_share_one_pass_of_detector_and_llm(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, asked = CountingDetector(), []
    monkeypatch.setitem(detectors.REGISTRY, "counting", lambda settings: detector)

    def ask(prompts: Sequence[Prompt]) -> list[Answer]:
        asked.append(prompts)
        return [Answer(probabilities=(0.2, 0.3, 0.5), mass=0.9) for _ in prompts]

    wrapper = Wrapper(recipe(DetectorSection(name="counting")), FakeLLM(ask))
    results = wrapper.predict(picture, ["the left one", "the right one", "the left one"])
    assert [each.expression for each in results] == ["the left one", "the right one", "the left one"]
    assert detector.calls == [[("image", "the left one"), *(("expression", each.expression) for each in results)]], (
        "one call, with the image's question once"
    )
    (prompts,) = asked
    assert [each.prompts for each in results] == [(prompt,) for prompt in prompts]
    assert [each.probability for each in results] == [0.5] * 3
    assert wrapper.predict(picture, ("one",))[0].expression == "one"


def test_orders_are_those_of_the_recipe(picture: Path) -> None:
    asked: list[Prompt] = []

    def ask(prompts: Sequence[Prompt]) -> list[Answer]:
        asked.extend(prompts)
        return [Answer(probabilities=(0.3, 0.7), mass=0.9) for _ in prompts]

    averaged = recipe().model_copy(update={"llm": LLMSection(backend="rule", orders=4)})
    result = Wrapper(averaged, FakeLLM(ask)).predict(picture, "left square")
    assert len(asked) == 4
    assert result.prediction.mass == pytest.approx(0.9)


def test_indices_are_those_of_the_prompt_and_the_picture(picture: Path) -> None:
    result = Wrapper(recipe(), FakeLLM(lambda prompts: [Answer(probabilities=(0.3, 0.7), mass=0.9)])).predict(
        picture, "square"
    )
    assert (result.index, [each.index for each in result.ranked]) == (1, [1, 0])
    assert [result.prediction.candidates[each.index].box for each in result.ranked] == boxes_of(result)


def test_the_prompt_is_what_the_llm_was_sent(picture: Path) -> None:
    result = Wrapper(recipe(), FakeLLM(lambda prompts: [Answer(probabilities=(0.3, 0.7), mass=0.9)])).predict(
        picture, "square"
    )
    assert result.prompt == result.prompts[0].messages[0].content
    assert result.prompt.endswith("square")
    assert Wrapper.from_recipe(recipe()).predict(picture, "square").prompt is None, "a rule is sent nothing"


def test_a_result_reads_as_one_line(picture: Path) -> None:
    wrapper = Wrapper.from_recipe(recipe())
    expected = "Result('left square': 'red square' at (10.0, 40.0, 31.0, 61.0), probability=None)"
    assert repr(wrapper.predict(picture, "left square")) == expected
    none = wrapper.predict(Image.new("RGB", (40, 20)), "left square")
    assert repr(none) == "Result('left square': no box, decided_by='no_candidate')"


def test_a_result_is_drawn_on_its_image(picture: Path, tmp_path: Path) -> None:
    result = Wrapper.from_recipe(recipe()).predict(picture, "the left square")
    drawn = result.draw(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as written:
        assert written.size == drawn.size
    assert drawn.size[0] == 960, "enlarged, so that labels can be read"
    with Image.open(picture) as image:
        assert np.array_equal(Wrapper.from_recipe(recipe()).predict(image, "the left square").draw(), drawn)


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
        assert {each.detector for each in result.prediction.candidates} == {"toy-gray"}


def test_nothing_is_printed(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Wrapper.from_recipe(recipe()).predict(picture, "left square")
    assert capsys.readouterr() == ("", "")


def test_recipes_are_named_or_lie_in_a_file(tmp_path: Path) -> None:
    named = load_recipe(llm="rule", vlm="toy")
    assert (named.llm.backend, named.detector.name) == ("rule", "toy")
    (tmp_path / "recipe.yaml").write_text(named.to_yaml())
    for path in (tmp_path, tmp_path / "recipe.yaml", str(tmp_path)):
        assert Wrapper.from_recipe(path).recipe == named
    assert load_recipe(tmp_path, ["llm.orders=3"], vlm="toy-gray").llm.orders == 3
    with pytest.raises(RecipeError, match="no kind of recipe is named 'model'"):
        load_recipe(model="rule")


def test_a_threshold_without_probabilities_is_refused() -> None:
    section = PromptSection(none=True, none_below=0.3)
    generating = recipe().model_copy(update={"prompt": section, "llm": LLMSection(model="x", decode="generate")})
    with pytest.raises(RecipeError, match=r"none_below=0\.3 is a probability"):
        Wrapper.from_recipe(generating)


def test_the_package_imports_no_model_and_offers_its_names() -> None:
    code = "import llm_wrapper, sys; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert llm_wrapper.Wrapper is Wrapper
    assert {getattr(llm_wrapper, name).__name__ for name in llm_wrapper.__all__} == set(llm_wrapper.__all__)
    assert set(llm_wrapper.__all__) <= set(dir(llm_wrapper))
    with pytest.raises(AttributeError, match="has no attribute 'wrap'"):
        llm_wrapper.wrap  # noqa: B018
