"""Image files -> upright RGB pixels in the coordinates of the annotations.

    file -> regular? -> one of a few formats, by content -> pixels bounded -> decoded -> turned as EXIF says -> RGB

Every size and every pixel that the package uses comes from here, so that they agree about a photograph that its camera
stored sideways.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from llm_wrapper import readers
from llm_wrapper.errors import DataError, ImageError
from llm_wrapper.records import Sample

__all__ = ["FORMATS", "MAX_PIXELS", "read", "read_sample", "read_size", "read_sizes"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is read, by content and not by name. Pillow knows forty more, of which EPS starts another program."""

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

_Result = TypeVar("_Result")


def read(path: str | Path) -> Image.Image:
    """Read an image in any mode as upright RGB; of several frames the first, on white where it is transparent.

    Raises:
        ImageError: If the file is missing, damaged (its EXIF too), none of `FORMATS`, or over `MAX_PIXELS`.
    """
    return _opened(path, lambda image: _rgb(_upright(_decoded(image))))


def read_size(source: str | Path | bytes) -> tuple[int, int]:
    """Return the (width, height) that `read` would give, from the header of a file or of its bytes.

    Raises:
        ImageError: As `read`.
    """
    return read_sizes(source)[0]


def read_sizes(source: str | Path | bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) upright and as stored; they differ where EXIF turns the picture by a quarter.

    Raises:
        ImageError: As `read`.
    """
    return _opened(source, _sizes)


def read_sample(sample: Sample) -> Image.Image:
    """Read the image of a sample, as RGB of the size that its annotations have.

    Annotations of a photograph with an EXIF rotation may be made before or after that; their size tells which.

    Raises:
        ImageError: If there is no file, it cannot be read, or is of another size.
    """
    if sample.image_path is None:
        raise ImageError(
            f"sample {sample.sample_id!r} has no image file; name the images in the annotations, "
            "or use a detector that reads none (coco, import)"
        )

    def fitting(image: Image.Image) -> Image.Image:
        stored = _decoded(image)
        for turned in (_upright(stored), stored):
            if turned.size == sample.image_wh:
                return _rgb(turned)
        found, wanted = (" x ".join(map(str, size)) for size in (stored.size, sample.image_wh))
        raise ImageError(
            f"{sample.image_path} is {found} pixels, but the annotations of sample {sample.sample_id!r} say {wanted}; "
            "use the image that was annotated"
        )

    return _opened(sample.image_path, fitting)


def _opened(source: str | Path | bytes, use: Callable[[Image.Image], _Result]) -> _Result:
    """Return what `use` makes of an open image; whatever goes wrong in it is an ImageError."""
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else readers.open_regular(source)
    except DataError as error:
        raise ImageError(f"{name} cannot be read as an image: {error}") from error
    try:
        with stream, Image.open(stream, formats=FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.size[0]} x {image.size[1]} pixels")
            return use(image)
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


def _sizes(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    width, height = int(image.size[0]), int(image.size[1])
    return (height, width) if _orientation(image) >= 5 else (width, height), (width, height)


def _decoded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    rgb = _without_alpha(image)
    # The pixels are upright now: what is saved with the old orientation would be turned again by every viewer.
    rgb.info = {}
    return rgb


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
