"""Draw the candidates that a system could choose from, and its choice, with the expression above."""

from __future__ import annotations

import textwrap
import unicodedata
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from llm_wrapper import images, storage
from llm_wrapper.errors import DataError
from llm_wrapper.images import ImageSource
from llm_wrapper.records import Box, Prediction

Color = tuple[int, int, int]
_Rectangle = tuple[float, float, float, float]

CANDIDATE_COLOR: Color = (128, 128, 128)
# Vermilion and blue differ for every kind of color blindness.
CHOSEN_COLOR: Color = (213, 94, 0)
TARGET_COLOR: Color = (0, 114, 178)

_MOST_CHARACTERS = 24  # of a label
_MOST_LINES = 3  # of the expression
_LEAST_SIDE = 960
"""Pixels of the longer side; smaller images are enlarged, so that labels are legible beside small boxes."""
_FAR = 1e6


def draw_prediction(prediction: Prediction, image: ImageSource) -> Image.Image:
    """Return the image with the candidates of a prediction under its expression; a small image is enlarged.

    Candidates are thin and grey with index and label, the target is blue, and the chosen one is thick, on top of all,
    with its probability. Labels are outside their boxes where there is room, and hide least of target and choice.

    Raises:
        ImageError: If the image cannot be read, or is of another size.
        ValueError: If there are more or fewer probabilities than candidates.
    """
    pen = _Pen(images.read_image(image, prediction.image_wh))
    shares = prediction.probabilities
    if shares and len(shares) != len(prediction.candidates):
        raise ValueError(f"{len(shares)} probabilities for {len(prediction.candidates)} candidates")
    same = [index for index, each in enumerate(prediction.candidates) if each.box == prediction.box]
    chosen = max(same, key=lambda index: shares[index] if shares else 0.0, default=None)
    labels = [f"{index} {label_text(each.label)}" for index, each in enumerate(prediction.candidates)]
    for index, candidate in enumerate(prediction.candidates):
        if index != chosen:
            pen.box(candidate.box, labels[index], color=CANDIDATE_COLOR, thickness=1)
    if prediction.target is not None:
        pen.box(prediction.target, "target", color=TARGET_COLOR, thickness=2, clear=True)
    if chosen is not None:
        share = f" {100 * shares[chosen]:.0f} %" if shares else ""
        box = prediction.candidates[chosen].box
        pen.box(box, f"{labels[chosen]}{share}", color=CHOSEN_COLOR, thickness=3, clear=True)
    return pen.finished(prediction.expression)


def save_picture(image: Image.Image, out: Path) -> None:
    """Write a picture whole or not at all, in the format of the suffix of `out`.

    Raises:
        DataError: If it cannot be written in that format.
        LLMWrapperError: If `out` cannot be written.
    """
    kind = Image.registered_extensions().get(out.suffix.lower(), "")
    content = BytesIO()
    try:
        image.save(content, format=kind)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{out}: no picture can be written as {out.suffix or 'a file without suffix'}; name it .png"
        ) from error
    storage.write_atomic(out, content.getvalue())


def label_text(label: str) -> str:
    """Return a label that can be drawn on one line: no control characters, single spaces, at most 24 characters."""
    text = _to_line(label)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1].rstrip()}…"


def _to_line(text: str) -> str:
    # Category C holds line breaks and the marks that turn the direction of text around.
    return " ".join("".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text).split())


class _Pen:
    """Draws boxes at once, and their labels at the end, when it is known what they must not hide."""

    def __init__(self, image: Image.Image) -> None:
        scale = max(1.0, _LEAST_SIDE / max(image.size))
        width, height = (max(1, round(scale * side)) for side in image.size)
        self._scale = (width / image.size[0], height / image.size[1])
        self._image = image.resize((width, height), Image.Resampling.LANCZOS) if scale > 1 else image.copy()
        self._draw = ImageDraw.Draw(self._image)
        self._line = max(1, round(max(width, height) / 500))
        self._font = ImageFont.load_default(size=max(10, round(max(width, height) / 60)))
        self._labels: list[tuple[_Rectangle, str, Color]] = []
        self._clear: list[_Rectangle] = []

    def box(self, box: Box, text: str, *, color: Color, thickness: int, clear: bool = False) -> None:
        """Outline a box, `thickness` times the thin line; labels keep `clear` of it where they can."""
        # Far outside, the library's integers overflow.
        x0, y0, x1, y1 = (min(max(each, -_FAR), _FAR) for each in box.xyxy)
        x, y = self._scale
        scaled = (x * x0, y * y0, x * x1, y * y1)
        self._draw.rectangle(scaled, outline=color, width=self._line * thickness)
        self._labels.append((scaled, text, color))
        if clear:
            self._clear.append(scaled)

    def finished(self, expression: str) -> Image.Image:
        """Write all labels, the last box's first, and the expression above the image."""
        placed: list[_Rectangle] = []
        for box, text, color in reversed(self._labels):
            left, top, right, bottom = self._draw.textbbox((0, 0), text, font=self._font)
            hidden = [*self._clear, *placed, box]
            # A place that hides nothing, else the one that hides least.
            spot = min(
                self._places(box, right - left + 4, bottom - top + 4),
                key=lambda place: sum(_shared_area(place, other) for other in hidden),
            )
            placed.append(spot)
            self._draw.rectangle(spot, fill=color)
            self._draw.text((spot[0] + 2 - left, spot[1] + 2 - top), text, fill="white", font=self._font)
        width, height = self._image.size
        size = self._font.size if isinstance(self._font, ImageFont.FreeTypeFont) else 10
        chars = max(8, int(1.9 * width / size))
        lines = textwrap.wrap(_to_line(expression), chars, max_lines=_MOST_LINES, placeholder=" …")
        if not lines:
            return self._image
        step = round(1.4 * size)
        sheet = Image.new("RGB", (width, height + step * len(lines) + step // 2), "white")
        pen = ImageDraw.Draw(sheet)
        for number, line in enumerate(lines):
            pen.text((step // 4, step // 4 + number * step), line, fill="black", font=self._font)
        sheet.paste(self._image, (0, sheet.size[1] - height))
        return sheet

    def _places(self, box: _Rectangle, width: float, height: float) -> list[_Rectangle]:
        """Return possible places of a box's label, the usual one first: above, below, beside, within."""
        x0, y0, x1, y1 = box
        corners = [(x0, y0 - height), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1), (x1, y0), (x0 - width, y0)]
        corners += [(x1, y1 - height), (x0 - width, y1 - height), (x0, y0), (x0, y1 - height)]
        most_x, most_y = self._image.size[0] - width, self._image.size[1] - height
        inside = [(max(0.0, min(x, most_x)), max(0.0, min(y, most_y))) for x, y in corners]
        return [(x, y, x + width, y + height) for x, y in inside]


def _shared_area(a: _Rectangle, b: _Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
