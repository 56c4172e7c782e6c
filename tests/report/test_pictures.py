import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from llm_wrapper.errors import DataError, ImageError, LLMWrapperError
from llm_wrapper.records import Box, Candidate
from llm_wrapper.report.pictures import CANDIDATE_COLOR, CHOSEN_COLOR, TARGET_COLOR, draw, label_text


def image_file(folder: Path, wh: tuple[int, int] = (640, 480)) -> Path:
    path = folder / "image.png"
    Image.new("RGB", wh, "black").save(path)
    return path


def candidates(*xyxy: tuple[float, float, float, float], label: str = "zebra") -> list[Candidate]:
    return [Candidate(Box(*each), label, None, "flo2", "od") for each in xyxy]


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Shape (height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def colored(path: Path, color: tuple[int, int, int]) -> int:
    """Number of pixels of exactly that color."""
    return int((pixels(path) == color).all(axis=2).sum())


WALK_THROUGH = candidates((310.2, 80.0, 620.5, 420.0), (15.0, 90.5, 298.0, 405.0), (0.0, 300.0, 640.0, 480.0))


def test_chosen_is_thick_others_thin_target_apart(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.png"
    target = Box(12.0, 88.0, 300.0, 410.0)
    draw(image_file(tmp_path), WALK_THROUGH, out=out, chosen=1, probabilities=(0.1, 0.8, 0.1), target=target)
    drawn = pixels(out)
    assert drawn.shape == (480, 640, 3)
    assert tuple(drawn[250, 15]) == CHOSEN_COLOR
    assert tuple(drawn[250, 17]) == CHOSEN_COLOR  # three pixels thick
    assert tuple(drawn[250, 620]) == CANDIDATE_COLOR
    assert tuple(drawn[250, 618]) == (0, 0, 0)  # one pixel thin
    assert tuple(drawn[250, 12]) == TARGET_COLOR


def test_nothing_is_chosen_and_no_target(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    draw(image_file(tmp_path), WALK_THROUGH, out=out, chosen=None)
    assert (colored(out, CHOSEN_COLOR), colored(out, TARGET_COLOR)) == (0, 0)
    assert colored(out, CANDIDATE_COLOR) > 1000


def test_probability_is_written_beside_the_chosen_label(tmp_path: Path) -> None:
    sizes = []
    for name, probabilities in (("with", (0.1, 0.8, 0.1)), ("without", None)):
        out = tmp_path / f"{name}.png"
        draw(image_file(tmp_path), WALK_THROUGH, out=out, chosen=1, probabilities=probabilities)
        sizes.append(colored(out, CHOSEN_COLOR))
    assert sizes[0] > sizes[1] + 100


def test_a_small_picture_is_enlarged_with_its_boxes(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    draw(image_file(tmp_path, (240, 180)), candidates((60, 90, 120, 150)), out=out, chosen=0)
    drawn = pixels(out)
    assert drawn.shape == (480, 640, 3)
    assert [tuple(drawn[y, x]) for y, x in ((300, 160), (400, 200), (320, 319))] == [CHOSEN_COLOR] * 3


def test_the_expression_stands_above_the_picture(tmp_path: Path) -> None:
    heights = []
    for number, expression in enumerate((None, "the left man", "the left man " * 100, "\x1b]52;c;x\x07\u202e\n")):
        out = tmp_path / f"{number}.png"
        draw(image_file(tmp_path), WALK_THROUGH, out=out, chosen=1, expression=expression)
        heights.append(pixels(out).shape[0])
    assert heights[0] == 480
    assert 480 < heights[1] < heights[2] < 600, "a long one is cut after three lines"
    drawn = pixels(tmp_path / "1.png")
    assert tuple(drawn[0, -1]) == (255, 255, 255)
    assert (drawn[: heights[1] - 480] < 128).any()
    assert tuple(drawn[250 + heights[1] - 480, 15]) == CHOSEN_COLOR, "the picture lies below"


BOX = Box(200, 200, 280, 280)


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        pytest.param(BOX, [], id="right-choice"),
        pytest.param(Box(200, 110, 280, 198), [], id="choice-above"),
        pytest.param(Box(200, 282, 280, 330), [(190, 285, 300, 340), (100, 200, 198, 260)], id="choice-below"),
        pytest.param(Box(0, 0, 640, 480), [], id="choice-around"),
    ],
)
def test_labels_do_not_hide_the_target(
    tmp_path: Path, chosen: Box, others: list[tuple[float, float, float, float]]
) -> None:
    out = tmp_path / "out.png"
    draw(image_file(tmp_path), candidates(chosen.xyxy, *others), out=out, chosen=0, target=BOX)
    inner = pixels(out)[207:274, 207:274]
    assert (inner == 0).all()


@pytest.mark.parametrize("name", ["out", "out.xyz", "out.eps2", "[bold]out.[/bold]"])
def test_a_format_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=re.escape(name)):
        draw(image_file(tmp_path), WALK_THROUGH, out=tmp_path / name, chosen=0)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMWrapperError, match=r"out\.png"):
        draw(image_file(tmp_path), WALK_THROUGH, out=tmp_path / "file" / "out.png", chosen=0)


def test_a_box_far_outside_is_drawn_as_far_as_it_is_inside(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    draw(image_file(tmp_path), candidates((-1e300, 100, 1e300, 1e300)), out=out, chosen=0)
    assert tuple(pixels(out)[100, 300]) == CHOSEN_COLOR


def test_no_candidates_leave_the_image_as_it_was(tmp_path: Path) -> None:
    path, out = image_file(tmp_path), tmp_path / "out.png"
    draw(path, [], out=out, chosen=None)
    assert np.array_equal(pixels(out), pixels(path))


@pytest.mark.parametrize("wh", [(1, 1), (8, 300), (64, 48), (4000, 3000)], ids=str)
def test_small_and_large_images(tmp_path: Path, wh: tuple[int, int]) -> None:
    out = tmp_path / "out.bmp"
    inner = (wh[0] * 0.1, wh[1] * 0.1, wh[0] * 0.9, wh[1] * 0.9)
    draw(image_file(tmp_path, wh), candidates(inner, (0, 0, *wh)), out=out, chosen=0)
    height, width, _ = pixels(out).shape
    assert max(width, height) == max(640, *wh), "a small image is enlarged"
    assert width / height == pytest.approx(wh[0] / wh[1], rel=0.05)
    assert colored(out, CHOSEN_COLOR) > 0


def test_lines_and_letters_grow_with_the_image(tmp_path: Path) -> None:
    shares = []
    for side in (600, 3000):
        out = tmp_path / f"{side}.bmp"
        box = (side * 0.2, side * 0.2, side * 0.8, side * 0.8)
        draw(image_file(tmp_path, (side, side)), candidates(box), out=out, chosen=0)
        shares.append(colored(out, CHOSEN_COLOR) / side**2)
    assert shares[1] == pytest.approx(shares[0], rel=0.3)


@pytest.mark.parametrize(
    "label", ["", "\x00\n\r\t", "\u202egnp.exe", "\u4e2d\u6587", "x" * 10_000, "\U0001f993"], ids=ascii
)
def test_hostile_labels_are_drawn(tmp_path: Path, label: str) -> None:
    out = tmp_path / "out.png"
    draw(image_file(tmp_path), candidates((10, 50, 60, 90), (600, 10, 639, 60), label=label), out=out, chosen=1)
    assert colored(out, CHOSEN_COLOR) > 0


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


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "missing"])
def test_unreadable_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        draw(path, [], out=tmp_path / "out.png", chosen=None)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("chosen", "probabilities", "message"),
    [(3, None, "chosen index 3 is not among 3"), (-1, None, "-1"), (0, (1.0,), "1 probabilities for 3")],
    ids=["beyond", "negative", "lengths"],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, chosen: int, probabilities: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(image_file(tmp_path), WALK_THROUGH, out=tmp_path / "o.png", chosen=chosen, probabilities=probabilities)
