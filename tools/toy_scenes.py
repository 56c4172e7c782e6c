"""Paint the toy data set: `python tools/toy_scenes.py data/toy` writes the same files each time.

Scenes are seeded by split and index, so one scene can be made again alone. They are a little unkind on purpose:
neighbors of one color touch, shapes overlap or are cut by the edge, and a few are too small for the toy detector.
"""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from toy_grammar import Expression, Thing, describe

from llm_wrapper.detectors.toy import HUES, MAX_TILT, OUTLINES, is_inside_shape
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box

__all__ = ["IMAGE_WH", "SPLIT_SIZES", "Scene", "annotation_rows", "make_scene", "write_splits"]

IMAGE_WH = (240, 180)
SPLIT_SIZES = {"train": 400, "val": 90, "test": 90}
"""Number of scenes of each split."""

_RADII = [((8, 11), 0.30), ((14, 18), 0.37), ((22, 28), 0.29), ((3, 4), 0.04)]
"""Ranges of radius in pixels with their weights: small, medium, large, and too small to be found."""
_CROWDING = 0.11
"""Share of shapes that are pushed against an earlier one; half of them also take its color."""
_LEAST_VISIBLE = 0.55
_HUE_JITTER = 7.0
_BACKGROUNDS = [(245, 245, 245), (222, 222, 226), (240, 235, 222), (214, 222, 230), (232, 240, 232), (200, 200, 200)]

IndexArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Figure:
    """One shape as it is painted: center and radius in pixels, tilt in degrees."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Scene:
    """One painted image with its things and expressions; `image` has mode P."""

    image_id: str
    image: Image.Image
    things: tuple[Thing, ...]
    expressions: tuple[Expression, ...]


def make_scene(split: str, index: int) -> Scene:
    """Make scene `index` of a split; the same arguments give the same scene."""
    for attempt in itertools.count():
        rng = random.Random(f"toy scenes 1/{split}/{index}/{attempt}")
        figures = _place(rng)
        layers = _layers(figures)
        things = _visible(figures, layers)
        expressions = describe(rng, things, IMAGE_WH) if things else None
        if things and expressions:
            image = _paint(rng, figures, layers)
            return Scene(f"toy-{split}-{index:04d}", image, tuple(things), tuple(expressions))
    raise AssertionError("itertools.count never ends")


def _place(rng: random.Random) -> list[_Figure]:
    """Draw shapes from few kinds and colors, so that most share their class with another."""
    shapes = rng.sample(sorted(OUTLINES), rng.choice((2, 3, 3)))
    colors = rng.sample(sorted(HUES), 3)
    figures: list[_Figure] = []
    num_wanted = rng.randint(5, 8)
    while len(figures) < num_wanted:
        shape, color = rng.choice(shapes), rng.choice(colors)
        (low, high), *_ = rng.choices([radii for radii, _ in _RADII], [weight for _, weight in _RADII])
        radius, tilt = rng.uniform(low, high), rng.uniform(-MAX_TILT, MAX_TILT)
        if figures and radius > 5 and rng.random() < _CROWDING:
            near = rng.choice(figures)
            angle, gap = rng.uniform(0, math.tau), (near.radius + radius) * rng.uniform(0.62, 0.82)
            x, y = near.x + gap * math.cos(angle), near.y + gap * math.sin(angle)
            figures.append(_Figure(shape, near.color if rng.random() < 0.5 else color, x, y, radius, tilt))
        else:
            x, y = _free_spot(rng, figures, radius)
            figures.append(_Figure(shape, color, x, y, radius, tilt))
    return figures


def _free_spot(rng: random.Random, figures: Sequence[_Figure], radius: float) -> tuple[float, float]:
    """Find a center away from all others; the edge may cut the shape."""
    x = y = 0.0
    for _ in range(200):
        x, y = rng.uniform(0, IMAGE_WH[0]), rng.uniform(0, IMAGE_WH[1])
        if all(math.dist((x, y), (other.x, other.y)) > radius + other.radius + 3 for other in figures):
            break
    return x, y


def _layers(figures: Sequence[_Figure]) -> IndexArray:
    """Paint in order; each pixel (height, width) holds 1 + the index of the figure on top, or 0."""
    ys, xs = np.mgrid[0 : IMAGE_WH[1], 0 : IMAGE_WH[0]] + 0.5
    layers = np.zeros(xs.shape, dtype=np.uint8)
    for number, figure in enumerate(figures, start=1):
        x, y = (xs - figure.x) / figure.radius, (ys - figure.y) / figure.radius
        layers[is_inside_shape(figure.shape, x, y, tilt=figure.tilt)] = number
    return layers


def _visible(figures: Sequence[_Figure], layers: IndexArray) -> list[Thing] | None:
    """Box what can be seen of each figure; `None` where too little of one is left."""
    things: list[Thing] = []
    for number, figure in enumerate(figures, start=1):
        ys, xs = np.nonzero(layers == number)
        if len(xs) < max(4.0, _LEAST_VISIBLE * _outline_area(figure.shape) * figure.radius**2):
            return None
        box = Box(float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        things.append(Thing(figure.shape, figure.color, box, figure.radius))
    return things


def _outline_area(shape: str) -> float:
    """Return the area of the shape's outline (for radius 1)."""
    x, y = OUTLINES[shape].T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _paint(rng: random.Random, figures: Sequence[_Figure], layers: IndexArray) -> Image.Image:
    """Color the layers; palette entries 0 and 1 are the two tones of the background."""
    tone = rng.choice(_BACKGROUNDS)
    palette = [tone, (tone[0] - 9, tone[1] - 9, tone[2] - 9), *(_shade(rng, figure.color) for figure in figures)]
    pixels = np.where(layers > 0, layers + 1, _texture(rng)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.putpalette([value for color in palette for value in color])
    return image


def _shade(rng: random.Random, color: str) -> tuple[int, int, int]:
    hue = (HUES[color] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 360 / 360
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.72, 0.95), rng.uniform(0.75, 0.95))
    return round(255 * red), round(255 * green), round(255 * blue)


def _texture(rng: random.Random) -> IndexArray:
    """Choose a background of zeros and ones (height, width): plain, stripes, checks or dots."""
    ys, xs = np.mgrid[0 : IMAGE_WH[1], 0 : IMAGE_WH[0]]
    step = rng.choice((6, 10, 15))
    plain = np.zeros(xs.shape, dtype=np.int64)
    across, down = xs // step % 2, ys // step % 2
    dots = (xs % step < 2) & (ys % step < 2)
    return rng.choice((plain, across, down, across ^ down, dots)).astype(np.uint8)


def annotation_rows(scene: Scene) -> list[dict[str, Any]]:
    """Return the annotation rows of a scene, one per expression; `box` is xyxy pixels."""
    return [
        {
            "sample_id": f"{scene.image_id}-{number}",
            "ref_id": f"{scene.image_id}-thing{expression.target}",
            "image_id": scene.image_id,
            "image": f"images/{scene.image_id}.png",
            "width": IMAGE_WH[0],
            "height": IMAGE_WH[1],
            "expression": expression.text,
            "box": [int(value) for value in scene.things[expression.target].box.xyxy],
            "kind": expression.kind,
        }
        for number, expression in enumerate(scene.expressions)
    ]


def write_splits(root: Path) -> None:
    """Write images and annotations of all splits under `root`.

    Raises:
        DataError: If two scenes have the same pixels, so that splits would overlap.
    """
    (root / "images").mkdir(parents=True, exist_ok=True)
    seen: dict[str, str] = {}
    for split, num_scenes in SPLIT_SIZES.items():
        lines: list[str] = []
        for scene in (make_scene(split, index) for index in range(num_scenes)):
            digest = hashlib.sha256(scene.image.convert("RGB").tobytes()).hexdigest()
            first_id = seen.setdefault(digest, scene.image_id)
            if first_id != scene.image_id:
                raise DataError(
                    f"scenes {first_id} and {scene.image_id} are one image. Change the seed text in make_scene."
                )
            scene.image.save(root / "images" / f"{scene.image_id}.png", optimize=True)
            lines += [json.dumps(row) for row in annotation_rows(scene)]
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {num_scenes} scenes, {len(lines)} expressions")


def main(arguments: Sequence[str]) -> int:
    """Write the data set to the folder that is the only argument."""
    if len(arguments) != 1:
        print("usage: python tools/toy_scenes.py data/toy", file=sys.stderr)
        return 2
    write_splits(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
