from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from llm_wrapper.boxes import array, pairwise_iou
from llm_wrapper.datasets.toy import load_toy
from llm_wrapper.detectors.base import Detector, detect_sample
from llm_wrapper.detectors.toy import ToyDetector, ToyGrayDetector, create_toy_gray
from llm_wrapper.errors import ImageError, RecipeError
from llm_wrapper.records import Detections, Sample

ROOT = Path(__file__).resolve().parents[2] / "data" / "toy"
RED, BLUE, YELLOW, WHITE = (210, 20, 20), (30, 90, 220), (250, 245, 120), (250, 250, 250)


def detect(image: Image.Image, folder: Path) -> Detections:
    path = folder / "image.png"
    image.save(path)
    return detect_sample(ToyGrayDetector(), Sample("s", "r", "i", str(path), image.size, "x", None))


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (120, 90), WHITE)
    return image, ImageDraw.Draw(image)


def test_shapes_are_named_without_their_color(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.ellipse((10, 10, 39, 39), fill=RED)
    draw.rectangle((60, 50, 79, 69), fill=BLUE)
    items = detect(image, tmp_path).items
    assert [item.label for item in items] == ["circle", "square"]
    assert {item.source for item in items} == {"contrast"}
    assert items == detect(image.convert("L"), tmp_path).items
    # A pixel more on every side: that is what a blurred outline costs.
    assert items[1].box.xyxy == (59, 49, 81, 71)


def test_errs_as_documented(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.rectangle((10, 10, 29, 29), fill=RED)
    draw.rectangle((30, 10, 49, 29), fill=BLUE)
    draw.rectangle((80, 10, 84, 14), fill=BLUE)
    draw.ellipse((60, 50, 89, 79), fill=YELLOW)
    items = detect(image, tmp_path).items
    assert {item.box.xyxy for item in items} == {(9, 9, 51, 31), (79, 9, 86, 16)}


@pytest.mark.parametrize("size", [(120, 90), (1, 1)], ids=["blank", "1x1"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_a_blank_image_has_no_detections(size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    assert detect(Image.new(mode, size), tmp_path) == Detections(())


def test_it_finds_some_of_what_the_other_misses_and_misses_more() -> None:
    dataset = load_toy(ROOT, "val")
    images = dataset.images()[:30]
    kept = {image.image_id for image in images}
    held = []
    for detector in (ToyDetector(), ToyGrayDetector()):
        found = {image.image_id: array([i.box for i in detect_sample(detector, image).items]) for image in images}
        asked = [sample for sample in dataset.samples if sample.image_id in kept and sample.target is not None]
        held.append([bool((pairwise_iou(array([s.target]), found[s.image_id]) > 0.5).any()) for s in asked if s.target])
    num_toy, num_gray = (sum(each) / len(each) for each in held)
    assert 0.75 < num_gray < num_toy
    assert any(gray and not toy for toy, gray in zip(*held, strict=True))


def test_scores_fall_and_are_shares() -> None:
    for image in load_toy(ROOT, "test").images()[:5]:
        scores = [item.score or 0.0 for item in detect_sample(ToyGrayDetector(), image).items]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in scores)


def test_create_takes_no_settings_and_unreadable_images_are_named(tmp_path: Path) -> None:
    detector: Detector = create_toy_gray({})
    assert (detector.name, detector.levels, detector.reads_images) == ("toy-gray", ("image",), True)
    with pytest.raises(RecipeError, match=r"(?s)'toy-gray' cannot be built.*unknown key 'blur'; none is known here"):
        create_toy_gray({"blur": 1})
    with pytest.raises(ImageError, match=r"gone\.png"):
        detector.prepare(Sample("s", "r", "i", str(tmp_path / "gone.png"), (1, 1), "x", None))
