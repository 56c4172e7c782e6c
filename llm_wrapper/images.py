"""Image files -> upright RGB pixels in the coordinates of the annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from llm_wrapper.errors import ImageError
from llm_wrapper.records import Sample

__all__ = ["read", "read_sample"]

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read(path: str | Path) -> Image.Image:
    """Read an image in any mode as upright RGB; of several frames the first, on white where it is transparent.

    Raises:
        ImageError: If the file is missing, truncated, no image, or too large to be decoded safely.
    """
    return _rgb(ImageOps.exif_transpose(_open(path)))


def read_sample(sample: Sample) -> Image.Image:
    """Read the image of a sample, as RGB of the size that its annotations speak of.

    Annotations of a photograph with an EXIF rotation may speak of it before or after that; their size tells.

    Raises:
        ImageError: If there is no file, it cannot be read, or is of another size.
    """
    if sample.image_path is None:
        raise ImageError(
            f"sample {sample.sample_id!r} has no image file; name the images in the annotations, "
            "or use a detector that reads none (coco, import)"
        )
    stored = _open(sample.image_path)
    for image in (ImageOps.exif_transpose(stored), stored):
        if image.size == sample.image_wh:
            return _rgb(image)
    found, wanted = (" x ".join(map(str, size)) for size in (stored.size, sample.image_wh))
    raise ImageError(
        f"{sample.image_path} is {found} pixels, but the annotations of sample {sample.sample_id!r} say {wanted}; "
        "use the image that was annotated"
    )


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            decoded: Image.Image = image.copy()
            return decoded
    except _UNREADABLE as error:
        raise ImageError(f"{path} cannot be read as an image: {error}; restore the file") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL clips what is above 255 instead of scaling it: a 16-bit photograph would be white.
        values = np.asarray(image, dtype=np.int64).clip(0, 65535) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
