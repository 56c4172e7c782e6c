from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from llm_wrapper.boxes import array, pairwise_iou
from llm_wrapper.datasets.jsonl import load_toy
from llm_wrapper.detectors import Detector, detect_sample
from llm_wrapper.detectors.toy import ToyDetector, ToyGrayDetector, create_toy, create_toy_gray
from llm_wrapper.errors import ImageError, RecipeError
from llm_wrapper.records import Detections, Sample

ROOT = Path(__file__).resolve().parents[2] / "data" / "toy"
RED, BLUE, YELLOW, WHITE = (210, 20, 20), (30, 90, 220), (250, 245, 120), (250, 250, 250)


def sample_of(path: Path | None, image_wh: tuple[int, int] = (120, 90), expression: str = "x") -> Sample:
    return Sample("s", "r", "i", str(path) if path else None, image_wh, expression, None)


def detect(image: Image.Image, folder: Path, detector: Detector | None = None) -> Detections:
    path = folder / "image.png"
    image.save(path)
    return detect_sample(detector or ToyDetector(), sample_of(path, image.size))


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (120, 90), WHITE)
    return image, ImageDraw.Draw(image)


def test_finds_boxes_labels_and_scores(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.ellipse((10, 10, 39, 39), fill=RED)
    draw.rectangle((60, 50, 79, 69), fill=BLUE)
    draw.polygon([(90, 40), (110, 40), (100, 22)], fill=RED)
    found = detect(image, tmp_path)
    by_label = {item.label: item.box.xyxy for item in found.items}
    assert by_label["red circle"] == (10, 10, 40, 40)
    assert by_label["blue square"] == (60, 50, 80, 70)
    assert set(by_label) == {"red circle", "blue square", "red triangle"}
    scores = [item.score for item in found.items if item.score is not None]
    assert len(set(scores)) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(0.8 < score <= 1 for score in scores)
    assert {item.source for item in found.items} == {"segmentation"}


def test_errs_as_documented(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.rectangle((10, 10, 29, 29), fill=RED)
    draw.rectangle((30, 10, 49, 29), fill=RED)
    draw.rectangle((80, 10, 85, 15), fill=BLUE)
    draw.ellipse((105, 60, 134, 89), fill=BLUE)
    items = detect(image, tmp_path).items
    assert {item.box.xyxy for item in items} == {(10, 10, 50, 30), (105, 60, 120, 90)}
    merged = next(item for item in items if item.box.x0 == 10)
    assert merged.score is not None
    assert merged.score < 0.8


@pytest.mark.parametrize("size", [(120, 90), (1, 1)], ids=["blank", "1x1"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16", "LA", "CMYK"])
@pytest.mark.parametrize("detector", [ToyDetector(), ToyGrayDetector()], ids=lambda value: value.name)
def test_a_blank_image_has_no_detections(detector: Detector, size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, size).save(path)
    assert detect_sample(detector, sample_of(path, size)) == Detections(())


def test_one_colored_pixel_is_missed(tmp_path: Path) -> None:
    assert detect(Image.new("RGB", (1, 1), RED), tmp_path).items == ()


def test_an_image_of_one_color_is_one_box(tmp_path: Path) -> None:
    (item,) = detect(Image.new("RGB", (120, 90), RED), tmp_path).items
    assert item.box.xyxy == (0, 0, 120, 90)


def test_gray_shapes_are_background_and_alpha_is_no_color(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.ellipse((10, 10, 39, 39), fill=RED)
    assert detect(image.convert("L"), tmp_path).items == ()
    assert detect(image.convert("RGBA"), tmp_path) == detect(image, tmp_path)


def test_reads_nothing_but_pixels(tmp_path: Path) -> None:
    samples = load_toy(ROOT, "val").images()[:3]
    copies = []
    for number, sample in enumerate(samples):
        assert sample.image_path is not None
        copy = tmp_path / f"{number}.png"
        shutil.copy(sample.image_path, copy)
        copies.append(sample_of(copy, sample.image_wh, "nothing of the kind"))
    found = [detect_sample(ToyDetector(), sample) for sample in samples]
    assert [detect_sample(ToyDetector(), copy) for copy in copies] == found
    assert all(detections.items for detections in found)
    assert len(set(found)) == 3


def test_the_detectors_find_most_and_err_in_different_places() -> None:
    dataset = load_toy(ROOT, "val")
    images = dataset.images()[:30]
    samples = [sample for sample in dataset.samples if sample.image_id in {image.image_id for image in images}]
    hits: list[list[bool]] = []
    for detector in (ToyDetector(), ToyGrayDetector()):
        answers = {image.image_id: detect_sample(detector, image).items for image in images}
        for items in answers.values():
            scores = [item.score or 0.0 for item in items]
            assert scores == sorted(scores, reverse=True)
            assert all(0 < score <= 1 for score in scores)
        boxes = {image_id: array([item.box for item in items]) for image_id, items in answers.items()}
        targets = [(array([sample.target]), boxes[sample.image_id]) for sample in samples if sample.target]
        hits.append([bool((pairwise_iou(target, found) > 0.5).any()) for target, found in targets])
    share, gray_share = (sum(each) / len(each) for each in hits)
    assert 0.75 < gray_share < share
    assert 0.90 <= share < 1
    assert any(gray and not colored for colored, gray in zip(*hits, strict=True))


def test_no_questions_give_no_answers() -> None:
    assert ToyDetector().detect([], {}) == []


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_an_unreadable_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.png cannot be read"):
        ToyDetector().prepare(sample_of(path))


def test_missing_images_and_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png"):
        ToyDetector().prepare(sample_of(tmp_path / "gone.png"))
    with pytest.raises(ImageError, match="sample 's' has no image file"):
        ToyDetector().prepare(sample_of(None))
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"sample 's': .* is 50 x 40 pixels, but its boxes are of 120 x 90"):
        ToyDetector().prepare(sample_of(tmp_path / "a.png"))


def test_create_takes_no_settings() -> None:
    detector: Detector = create_toy({})
    assert (detector.name, detector.levels, detector.reads_images) == ("toy", ("image",), True)
    assert detector.identity() == create_toy({}).identity()
    gray: Detector = create_toy_gray({})
    assert (gray.name, gray.levels, gray.reads_images) == ("toy-gray", ("image",), True)
    with pytest.raises(RecipeError, match=r"(?s)'toy-gray' cannot be built.*unknown key 'blur'; none is known here"):
        create_toy_gray({"blur": 1})
    with pytest.raises(RecipeError, match=r"unknown keys .*min_area"):
        create_toy({"threshold": 0.3, "min_area": 1})


# --- toy-gray ---


def test_shapes_are_named_without_their_color(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.ellipse((10, 10, 39, 39), fill=RED)
    draw.rectangle((60, 50, 79, 69), fill=BLUE)
    items = detect(image, tmp_path, ToyGrayDetector()).items
    assert [item.label for item in items] == ["circle", "square"]
    assert {item.source for item in items} == {"contrast"}
    assert items == detect(image.convert("L"), tmp_path, ToyGrayDetector()).items
    # A pixel more on every side: that is what a blurred outline costs.
    assert items[1].box.xyxy == (59, 49, 81, 71)


def test_gray_errs_as_documented(tmp_path: Path) -> None:
    image, draw = canvas()
    draw.rectangle((10, 10, 29, 29), fill=RED)
    draw.rectangle((30, 10, 49, 29), fill=BLUE)
    draw.rectangle((80, 10, 84, 14), fill=BLUE)
    draw.ellipse((60, 50, 89, 79), fill=YELLOW)
    items = detect(image, tmp_path, ToyGrayDetector()).items
    assert {item.box.xyxy for item in items} == {(9, 9, 51, 31), (79, 9, 86, 16)}
