"""Draw what a system could choose from, and what it chose."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from llm_wrapper.errors import ImageError
from llm_wrapper.records import Box, Candidate

__all__ = ["CANDIDATE_COLOR", "CHOSEN_COLOR", "TARGET_COLOR", "draw", "label_text", "load_rgb"]

Color = tuple[int, int, int]

CANDIDATE_COLOR: Color = (128, 128, 128)
# Vermilion and blue can be told apart with every kind of color blindness.
CHOSEN_COLOR: Color = (213, 94, 0)
TARGET_COLOR: Color = (0, 114, 178)

_MOST_CHARACTERS = 24


def draw(
    image_path: Path,
    candidates: Sequence[Candidate],
    *,
    out: Path,
    chosen: int | None,
    probabilities: Sequence[float] | None = None,
    target: Box | None = None,
) -> None:
    """Write the image with its candidates to `out`; the suffix of `out` decides the format.

    Candidates are thin grey with index and label, the target is blue, and the chosen one is thick, on top of all, with
    its probability where there is one.

    Args:
        image_path: The image, in any mode that PIL reads.
        candidates: In the order shown; boxes in pixels of the upright image.
        out: Where to write; its folder is made if need be.
        chosen: Index of the chosen candidate; `None` where none was.
        probabilities: One per candidate.
        target: The annotated box.

    Raises:
        ImageError: If the image cannot be read.
        ValueError: If `chosen` or `probabilities` do not fit the candidates, or the suffix of `out` is unknown.
    """
    if chosen is not None and not 0 <= chosen < len(candidates):
        raise ValueError(f"chosen index {chosen} is not among {len(candidates)} candidates")
    if probabilities is not None and len(probabilities) != len(candidates):
        raise ValueError(f"{len(probabilities)} probabilities for {len(candidates)} candidates")
    image = load_rgb(image_path)
    pen = _Pen(image)
    for index, candidate in enumerate(candidates):
        if index != chosen:
            pen.box(candidate.box, f"{index} {label_text(candidate.label)}", color=CANDIDATE_COLOR, thickness=1)
    if target is not None:
        pen.box(target, "target", color=TARGET_COLOR, thickness=2, below=True)
    if chosen is not None:
        share = "" if probabilities is None else f" {100 * probabilities[chosen]:.0f} %"
        text = f"{chosen} {label_text(candidates[chosen].label)}{share}"
        pen.box(candidates[chosen].box, text, color=CHOSEN_COLOR, thickness=3)
    out.parent.mkdir(parents=True, exist_ok=True)
    image.save(out)


def label_text(label: str) -> str:
    """Return a label that can be drawn on one line: no control characters, single spaces, at most 24 characters."""
    # Category C holds line breaks and the marks that turn the direction of text around.
    visible = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in label)
    text = " ".join(visible.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1].rstrip()}…"


def load_rgb(path: Path) -> Image.Image:
    """Read an image upright (EXIF orientation applied) as RGB; what is transparent becomes white.

    Raises:
        ImageError: If the file is missing, no image, cut off, or too large to be one.
    """
    try:
        with Image.open(path) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as an image: {error}. Replace the file or leave it out.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        # PIL cuts values beyond 8 bits off instead of scaling them.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        span = np.ptp(values) or 1.0
        return Image.fromarray(np.uint8(255 * (values - values.min()) / span)).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        upright = image.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return image.convert("RGB")


class _Pen:
    """Draws labelled boxes with lines and letters in proportion to the image."""

    def __init__(self, image: Image.Image) -> None:
        self._size = image.size
        self._draw = ImageDraw.Draw(image)
        self._line = max(1, round(max(image.size) / 500))
        self._font = ImageFont.load_default(size=max(10, round(max(image.size) / 45)))

    def box(self, box: Box, text: str, *, color: Color, thickness: int, below: bool = False) -> None:
        """Outline a box, `thickness` times the thin line, its label above or below, at the edge within it."""
        self._draw.rectangle(box.xyxy, outline=color, width=self._line * thickness)
        left, top, right, bottom = self._draw.textbbox((0, 0), text, font=self._font)
        width, height = right - left + 4, bottom - top + 4
        x = max(0.0, min(box.x0, self._size[0] - width))
        # The target's label goes below, or a right choice would hide it.
        y = box.y1 if below else box.y0 - height
        y = max(0.0, min(y, self._size[1] - height))
        self._draw.rectangle((x, y, x + width, y + height), fill=color)
        self._draw.text((x + 2 - left, y + 2 - top), text, fill="white", font=self._font)
