"""Images of every mode arrive as upright RGB in the coordinates of the annotations, or are named in an error."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_wrapper import images
from llm_wrapper.errors import ImageError
from llm_wrapper.records import Sample

RED = (200, 10, 20)
_ORIENTATION = 0x0112


def sample(path: Path | None, image_wh: tuple[int, int] = (40, 20)) -> Sample:
    return Sample("s1", "r", "i", None if path is None else str(path), image_wh, "the cat", None)


def rotated(path: Path, orientation: int) -> Path:
    """A red left half in a stored picture of 40 x 20, with an EXIF orientation."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("size", [(40, 20), (1, 1), (20_000, 2)], ids=["usual", "1x1", "wide"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "I;16", "I", "F", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / ("image.tif" if mode in ("I", "F", "CMYK") else "image.png")
    Image.new(mode, size).save(path)
    image = images.read_sample(sample(path, size))
    assert (image.mode, image.size) == ("RGB", size)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), RED).convert("CMYK").save(tmp_path / "image.tif")
    pixel = images.read_image(tmp_path / "image.tif").getpixel((3, 3))
    assert np.abs(np.subtract(pixel, RED)).max() < 4


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128 * 257, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_and_not_clipped(value: int, expected: int, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 40), value, dtype=np.uint16)).save(tmp_path / "image.png")
    assert images.read_image(tmp_path / "image.png").getpixel((3, 3)) == (expected,) * 3


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 20, 20))
    image.save(tmp_path / "image.png")
    found = images.read_image(tmp_path / "image.png")
    assert (found.getpixel((3, 3)), found.getpixel((30, 3))) == (RED, (255, 255, 255))


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    assert images.read_image(tmp_path / "image.gif").getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", [6, 8, 5, 7])
def test_a_rotation_is_undone_where_the_annotations_speak_of_the_upright_picture(
    orientation: int, tmp_path: Path
) -> None:
    path = rotated(tmp_path / "image.jpg", orientation)
    assert images.read_image(path).size == images.read_sample(sample(path, (20, 40))).size == (20, 40)


@pytest.mark.parametrize(
    ("orientation", "white_x"), [pytest.param(6, 35, id="as-stored"), pytest.param(3, 3, id="upright-where-both-fit")]
)
def test_the_size_of_the_annotations_decides(orientation: int, white_x: int, tmp_path: Path) -> None:
    found = images.read_sample(sample(rotated(tmp_path / "image.jpg", orientation), (40, 20)))
    assert (found.size, found.getpixel((white_x, 10))) == ((40, 20), (255, 255, 255))


def test_another_size_or_no_file_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (50, 30)).save(tmp_path / "image.png")
    with pytest.raises(ImageError, match=r"sample 's1': .*image\.png is 50 x 30 pixels, but its boxes are of 40 x 20"):
        images.read_sample(sample(tmp_path / "image.png"))
    with pytest.raises(ImageError, match="sample 's1' has no image file"):
        images.read_sample(sample(None))


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [lambda path: None, lambda path: path.touch(), lambda path: path.write_text("no image"), Path.mkdir, truncated],
    ids=["missing", "empty", "text", "folder", "truncated"],
)
def test_what_cannot_be_read_is_named(spoil, tmp_path: Path) -> None:
    spoil(tmp_path / "image.png")
    with pytest.raises(ImageError, match=r"image\.png cannot be read as an image"):
        images.read_image(tmp_path / "image.png")


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_exif_block_is_an_image_error_or_does_no_harm(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.update({_ORIENTATION: 6, 0x010F: "maker", 0x829A: 0.5, 0x9003: "2020:01:01 00:00:00"})
    stream = io.BytesIO()
    Image.new("RGB", (40, 20), RED).save(stream, "JPEG", exif=exif)
    content = stream.getvalue()
    start = content.index(b"Exif\0\0") + 6
    numbers = random.Random(0)
    path = tmp_path / "photo.jpg"
    read = refused = 0
    for _ in range(300):
        spoiled = bytearray(content)
        for _ in range(numbers.randint(1, 6)):
            spoiled[numbers.randrange(start, start + 110)] = numbers.randrange(256)
        path.write_bytes(spoiled)
        try:
            images.read_image(path)
            read += 1
        except ImageError:
            refused += 1
    assert read > 10
    assert refused > 10


@pytest.mark.parametrize("failure", [struct.error, KeyError, TypeError, RecursionError, ZeroDivisionError, MemoryError])
@pytest.mark.parametrize("use", [images.read_image, images.read_size, lambda path: images.read_sample(sample(path))])
def test_whatever_pillow_raises_about_exif_names_the_file(use, failure, monkeypatch, tmp_path: Path) -> None:
    def damaged(image: Image.Image) -> Image.Exif:
        raise failure("damaged")

    path = rotated(tmp_path / "photo.jpg", 6)
    monkeypatch.setattr(Image.Image, "getexif", damaged)
    with pytest.raises(ImageError, match=r"photo\.jpg cannot be read as an image: .*damaged.*; restore the file"):
        use(path)


@pytest.mark.parametrize(
    ("orientation", "upright_wh"),
    [
        pytest.param(1, (40, 20), id="upright"),
        pytest.param(3, (40, 20), id="half-turn"),
        *(pytest.param(number, (20, 40), id=f"quarter-{number}") for number in (5, 6, 7, 8)),
        pytest.param(9, (40, 20), id="no-orientation"),
    ],
)
def test_one_size_for_header_pixels_and_bytes(orientation: int, upright_wh: tuple[int, int], tmp_path: Path) -> None:
    path = rotated(tmp_path / "photo.jpg", orientation)
    assert images.read_size(path) == images.read_size(path.read_bytes()) == images.read_image(path).size == upright_wh
    assert images.read_sizes(path) == (upright_wh, (40, 20))


def test_an_upright_picture_is_not_turned_again_after_saving(tmp_path: Path) -> None:
    images.read_image(rotated(tmp_path / "photo.png", 6)).save(tmp_path / "saved.png")
    assert images.read_image(tmp_path / "saved.png").size == (20, 40)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_are_known_by_content(form: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "image.dat", form)
    assert images.read_image(tmp_path / "image.dat").size == images.read_size(tmp_path / "image.dat") == (40, 20)


@pytest.mark.parametrize("form", ["EPS", "PDF", "PCX", "TGA", "ICO", "JPEG2000"])
@pytest.mark.parametrize("use", [images.read_image, images.read_size])
def test_other_formats_are_refused_whatever_their_name(use, form: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", form)
    with pytest.raises(ImageError, match=r"a\.jpg .* none of JPEG, PNG, WEBP, BMP, GIF, TIFF; convert"):
        use(tmp_path / "a.jpg")


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header has a size, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("size", [(13_300, 13_300), (9_500, 9_400), (40_000, 40_000)], ids=["177MP", "89.3MP", "1.6GP"])
@pytest.mark.parametrize("use", [images.read_image, images.read_size])
def test_the_bound_on_pixels_is_named(use, size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(*size))
    with pytest.raises(
        ImageError, match=r"a\.png has more than the 89,000,000 pixels that are read .*: make it smaller"
    ):
        use(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("use", [images.read_image, images.read_size, lambda path: images.read_sample(sample(path))])
def test_a_pipe_is_refused_and_not_waited_for(use, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg cannot be read as an image: .*not a regular file"):
        use(tmp_path / "a.jpg")
