from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from llm_wrapper.errors import ImageError
from llm_wrapper.records import Box, Candidate
from llm_wrapper.report.pictures import CANDIDATE_COLOR, CHOSEN_COLOR, TARGET_COLOR, draw, label_text, load_rgb


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


def test_no_candidates_leave_the_image_as_it_was(tmp_path: Path) -> None:
    path, out = image_file(tmp_path), tmp_path / "out.png"
    draw(path, [], out=out, chosen=None)
    assert np.array_equal(pixels(out), pixels(path))


@pytest.mark.parametrize("wh", [(1, 1), (8, 300), (64, 48), (4000, 3000)], ids=str)
def test_small_and_large_images(tmp_path: Path, wh: tuple[int, int]) -> None:
    out = tmp_path / "out.bmp"
    inner = (wh[0] * 0.1, wh[1] * 0.1, wh[0] * 0.9, wh[1] * 0.9)
    draw(image_file(tmp_path, wh), candidates(inner, (0, 0, *wh)), out=out, chosen=0)
    assert pixels(out).shape == (wh[1], wh[0], 3)
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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tiff"
    Image.new(mode, (20, 10)).save(path)
    image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 1000, 2000]], dtype=np.uint16)).save(path)
    assert np.asarray(load_rgb(path))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["index", "bytes"])
def test_transparent_palette_becomes_white(tmp_path: Path, transparency: int | bytes) -> None:
    path = tmp_path / "image.png"
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=transparency)
    assert np.asarray(load_rgb(path)).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert load_rgb(path).size == (20, 40)


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "missing"])
def test_unreadable_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        draw(path, [], out=tmp_path / "out.png", chosen=None)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_truncated_images_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"broken.{suffix}"):
        load_rgb(path)


def test_an_image_too_large_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image_file(tmp_path, (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"image\.png"):
        load_rgb(path)


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
