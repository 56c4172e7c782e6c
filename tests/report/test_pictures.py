"""Candidates, choice and target are drawn where they are, legibly, whatever labels and boxes hold."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from llm_wrapper.errors import DataError, ImageError, LLMWrapperError
from llm_wrapper.records import Box, Candidate, Prediction
from llm_wrapper.report.pictures import (
    CANDIDATE_COLOR,
    CHOSEN_COLOR,
    TARGET_COLOR,
    draw_prediction,
    label_text,
    save_picture,
)

WH = (960, 720)
"""An image of this size is not enlarged."""

Pixels = npt.NDArray[np.uint8]


def candidates(*xyxy: tuple[float, float, float, float], label: str = "zebra") -> list[Candidate]:
    return [Candidate(Box(*each), label, None, "flo2", "od") for each in xyxy]


def predicted(shown: list[Candidate], chosen: int | None, **changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "system": "tuned", "sample_id": "s", "image_id": "i", "expression": "", "kind": None, "target": None,
        "box": None if chosen is None else shown[chosen].box, "decided_by": "llm", "probability": None,
        "probabilities": None, "failure": None, "candidates": tuple(shown),
    }  # fmt: skip
    return Prediction(**{**values, **changes})


def draw(shown: list[Candidate], wh: tuple[int, int] = WH, *, chosen: int | None = 0, **changes: Any) -> Pixels:
    """Draw on black; shape (height, width, 3)."""
    return np.asarray(draw_prediction(predicted(shown, chosen, **changes), Image.new("RGB", wh)))


def colored(pixels: Pixels, color: tuple[int, int, int]) -> int:
    """Number of pixels of exactly that color."""
    return int((pixels == color).all(axis=2).sum())


WALK_THROUGH = candidates((310.2, 80.0, 620.5, 420.0), (15.0, 90.5, 298.0, 405.0), (0.0, 300.0, 640.0, 480.0))


def test_chosen_is_thick_others_thin_target_apart() -> None:
    target = Box(11.0, 86.0, 302.0, 410.0)
    drawn = draw(WALK_THROUGH, chosen=1, probabilities=(0.1, 0.8, 0.1), target=target)
    assert drawn.shape == (720, 960, 3)
    assert [tuple(drawn[250, x]) for x in (15, 20)] == [CHOSEN_COLOR] * 2  # six pixels thick
    assert [tuple(drawn[250, x]) for x in (620, 618)] == [CANDIDATE_COLOR, (0, 0, 0)]  # two pixels thin
    assert tuple(drawn[250, 11]) == TARGET_COLOR


def test_nothing_is_chosen_and_no_target() -> None:
    drawn = draw(WALK_THROUGH, chosen=None)
    assert (colored(drawn, CHOSEN_COLOR), colored(drawn, TARGET_COLOR)) == (0, 0)
    assert colored(drawn, CANDIDATE_COLOR) > 1000


def test_probability_is_written_beside_the_chosen_label() -> None:
    sizes = [colored(draw(WALK_THROUGH, chosen=1, probabilities=p), CHOSEN_COLOR) for p in ((0.1, 0.8, 0.1), None)]
    assert sizes[0] > sizes[1] + 100


def test_a_small_picture_is_enlarged_with_its_boxes() -> None:
    drawn = draw(candidates((60, 90, 120, 150)), (240, 180))
    assert drawn.shape == (720, 960, 3)
    assert [tuple(drawn[y, x]) for y, x in ((450, 240), (600, 300), (480, 479))] == [CHOSEN_COLOR] * 3


def test_the_image_itself_stays_as_it_is() -> None:
    image = Image.new("RGB", WH)
    draw_prediction(predicted(WALK_THROUGH, 0), image)
    assert not np.asarray(image).any()


def test_the_expression_stands_above_the_picture() -> None:
    texts = ("", "the left man", "the left man " * 100, "\x1b]52;c;x\x07\u202e\n")
    drawn = [draw(WALK_THROUGH, chosen=1, expression=text) for text in texts]
    heights = [each.shape[0] for each in drawn]
    assert heights[0] == 720
    assert 720 < heights[1] < heights[2] < 860, "a long one is cut after three lines"
    above = heights[1] - 720
    assert tuple(drawn[1][0, -1]) == (255, 255, 255)
    assert (drawn[1][:above] < 128).any()
    assert tuple(drawn[1][250 + above, 15]) == CHOSEN_COLOR, "the picture lies below"


BOX = Box(300, 300, 420, 420)


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        pytest.param(BOX, [], id="right-choice"),
        pytest.param(Box(300, 165, 420, 297), [], id="choice-above"),
        pytest.param(Box(300, 423, 420, 495), [(285, 428, 450, 510), (150, 300, 297, 390)], id="choice-below"),
        pytest.param(Box(0, 0, 960, 720), [], id="choice-around"),
    ],
)
def test_labels_do_not_hide_the_target(chosen: Box, others: list[tuple[float, float, float, float]]) -> None:
    inner = draw(candidates(chosen.xyxy, *others), target=BOX)[311:410, 311:410]
    assert (inner == 0).all()


def test_labels_are_outside_their_boxes() -> None:
    shown = candidates((100, 100, 160, 160), (300, 100, 360, 160), (500, 300, 560, 360))
    drawn = draw(shown, probabilities=(0.5, 0.3, 0.2))
    for each in shown:
        x0, y0, x1, y1 = (int(value) for value in each.box.xyxy)
        assert not drawn[y0 + 8 : y1 - 8, x0 + 8 : x1 - 8].any()


def test_a_box_shown_twice_is_drawn_as_its_likelier_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [*WALK_THROUGH, *candidates(WALK_THROUGH[1].box.xyxy, label="animal")]
    texts: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, __, text, **___: texts.append(text))
    draw(shown, chosen=1, probabilities=(0.1, 0.2, 0.1, 0.6), target=BOX, expression="the zebra")
    assert texts == ["3 animal 60 %", "target", "2 zebra", "1 zebra", "0 zebra", "the zebra"]


def test_a_picture_from_a_file_or_an_array_is_the_same(tmp_path: Path) -> None:
    Image.new("RGB", WH).save(tmp_path / "image.png")
    row = predicted(WALK_THROUGH, 1, image_wh=WH)
    for source in (tmp_path / "image.png", np.zeros((720, 960, 3), np.uint8)):
        assert np.array_equal(draw_prediction(row, source), draw(WALK_THROUGH, chosen=1))


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "missing"])
def test_unreadable_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        draw_prediction(predicted([], None), path)


def test_a_picture_is_written_with_its_folder(tmp_path: Path) -> None:
    save_picture(Image.new("RGB", (4, 3)), tmp_path / "new" / "out.png")
    with Image.open(tmp_path / "new" / "out.png") as written:
        assert written.size == (4, 3)


@pytest.mark.parametrize("name", ["out", "out.xyz", "out.eps2", "[bold]out.[/bold]", "file/out.png"])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMWrapperError if "/" in name[:6] else DataError, match=re.escape(name)):
        save_picture(Image.new("RGB", (4, 3)), tmp_path / name)
    assert not os.path.exists(tmp_path / name)


def test_a_box_far_outside_is_drawn_as_far_as_it_is_inside_and_no_box_draws_nothing() -> None:
    assert tuple(draw(candidates((-1e300, 100, 1e300, 1e300)))[100, 300]) == CHOSEN_COLOR
    assert not draw([], chosen=None).any()


@pytest.mark.parametrize("wh", [(1, 1), (8, 300), (64, 48), (2000, 1500)], ids=str)
def test_small_and_large_images(wh: tuple[int, int]) -> None:
    inner = (wh[0] * 0.1, wh[1] * 0.1, wh[0] * 0.9, wh[1] * 0.9)
    drawn = draw(candidates(inner, (0, 0, *wh)), wh)
    height, width, _ = drawn.shape
    assert max(width, height) == max(960, *wh), "a small image is enlarged"
    assert width / height == pytest.approx(wh[0] / wh[1], rel=0.05)
    assert colored(drawn, CHOSEN_COLOR) > 0


def test_lines_and_letters_grow_with_the_image() -> None:
    shares = []
    for side in (960, 2400):
        box = (side * 0.2, side * 0.2, side * 0.8, side * 0.8)
        shares.append(colored(draw(candidates(box), (side, side)), CHOSEN_COLOR) / side**2)
    assert shares[1] == pytest.approx(shares[0], rel=0.3)


@pytest.mark.parametrize(
    "label", ["", "\x00\n\r\t", "\u202egnp.exe", "\u4e2d\u6587", "x" * 10_000, "\U0001f993"], ids=ascii
)
def test_hostile_labels_are_drawn(label: str) -> None:
    drawn = draw(candidates((10, 50, 60, 90), (900, 10, 959, 60), label=label), chosen=1)
    assert colored(drawn, CHOSEN_COLOR) > 0


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("zebra", "zebra"),
        ("  a\n\tb\u00a0c ", "a b c"),
        ("a\u202eb\x07c", "a b c"),
        ("x" * 24, "x" * 24),
        ("x" * 25, "x" * 23 + "\u2026"),
        ("y" * 22 + " zzz", "y" * 22 + "\u2026"),
        ("", ""),
    ],
    ids=ascii,
)
def test_label_text(label: str, text: str) -> None:
    assert label_text(label) == text
