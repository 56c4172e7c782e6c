"""Image files -> upright RGB pixels in the coordinates of the annotations.

    file -> regular? -> one of a few formats, by content -> pixels bounded -> decoded -> turned as EXIF says -> RGB

Every size and every pixel that the package uses comes from here, so that they agree about a photograph that its camera
stored sideways.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from llm_wrapper import readers
from llm_wrapper.errors import DataError, ImageError
from llm_wrapper.records import Sample

ImageSource: TypeAlias = str | Path | Image.Image | npt.NDArray[np.uint8]
"""Path of an image, a PIL image in any mode, or RGB pixels of shape (height, width, 3), uint8."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are read, known by content. Pillow knows forty more, of which EPS starts another program."""

MAX_PIXELS = 89_000_000
"""A photograph of 89 megapixels takes 0.3 GB as RGB, and a detector makes several copies; above it Pillow warns."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a stored picture upright, by its EXIF orientation; 5 to 8 swap width and height."""


def read_image(source: ImageSource, image_wh: tuple[int, int] | None = None) -> Image.Image:
    """Return an image as upright RGB; of several frames the first, on white where it is transparent.

    Args:
        source: A path, a PIL image in any mode, or RGB pixels of shape (height, width, 3), uint8.
        image_wh: (width, height) that its boxes refer to. Photographs with an EXIF rotation may be annotated before or
            after it: the size decides, and upright wins where both fit.

    Raises:
        ImageError: If a file is missing, damaged (its EXIF too), none of `FORMATS` or over `MAX_PIXELS`; if pixels are
            of another shape or type; or if the size is another one.
    """
    if isinstance(source, (str, Path)):
        with _opened(source) as image:
            return _fitting(image, image_wh, str(source))
    return _fitting(source if isinstance(source, Image.Image) else _from_pixels(source), image_wh, "the image")


def read_sample(sample: Sample) -> Image.Image:
    """Read the image of a sample, as RGB of the size that its annotations have; ImageError where there is none."""
    if sample.image_path is None:
        raise ImageError(
            f"sample {sample.sample_id!r} has no image file; name the images in the annotations, "
            "or use a detector that reads none (coco, import)"
        )
    try:
        return read_image(sample.image_path, sample.image_wh)
    except ImageError as error:
        raise ImageError(f"sample {sample.sample_id!r}: {error}") from error


def read_size(source: str | Path | bytes) -> tuple[int, int]:
    """Return the (width, height) that `read_image` would give, from the header of a file or of its bytes."""
    return read_sizes(source)[0]


def read_sizes(source: str | Path | bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) upright and as stored; they differ where EXIF turns the picture by a quarter."""
    with _opened(source) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height), (width, height)


def _from_pixels(pixels: Any) -> Image.Image:
    """Return RGB pixels as an image."""
    if not isinstance(pixels, np.ndarray):
        raise ImageError(f"{type(pixels).__name__} is no image: pass a path, a PIL image or a NumPy array")
    shape, dtype = pixels.shape, pixels.dtype
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape or pixels.dtype != np.uint8:
        raise ImageError(
            f"an array of shape {shape} and type {dtype} is no image: pass RGB pixels of shape (height, width, 3), "
            "uint8 (of OpenCV: image[:, :, ::-1])"
        )
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise ImageError(f"an array of shape {shape} has more than the {MAX_PIXELS:,} pixels that are read")
    return Image.fromarray(np.ascontiguousarray(pixels))


@contextmanager
def _opened(source: str | Path | bytes) -> Iterator[Image.Image]:
    """Open an image; any failure to open or to use it is an ImageError."""
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else readers.open_regular(source)
    except DataError as error:
        raise ImageError(f"{name} cannot be read as an image: {error}") from error
    try:
        with stream, Image.open(stream, formats=FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.size[0]} x {image.size[1]} pixels")
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} has more than the {MAX_PIXELS:,} pixels that are read ({error}): make it smaller, and its boxes "
            "with it"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} cannot be read as an image: its content is none of {', '.join(FORMATS)}; convert or restore it"
        ) from error
    # Damaged files, and EXIF blocks above all, raise nearly anything inside Pillow.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} cannot be read as an image: {reason}; restore the file") from error


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(_ORIENTATION, 1)
    return found if found in _TURNS else 1


def _fitting(stored: Image.Image, image_wh: tuple[int, int] | None, name: str) -> Image.Image:
    """Return an image as RGB, upright or as stored, whichever has that size."""
    stored.load()
    turn = _TURNS.get(_orientation(stored))
    upright = stored if turn is None else stored.transpose(turn)
    for turned in (upright, stored):
        if image_wh is None or turned.size == image_wh:
            rgb = _without_alpha(turned)
            # The pixels are upright now: what is saved with the old orientation would be turned again by every viewer.
            rgb.info = {}
            return rgb
    size, wanted = (" x ".join(map(str, each)) for each in (stored.size, image_wh or ()))
    raise ImageError(f"{name} is {size} pixels, but its boxes are of {wanted}; use the image that was annotated")


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL clips what is above 255 instead of scaling it: a 16-bit photograph would be white.
        values = np.asarray(image, dtype=np.int64).clip(0, 65535) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
