"""Paint the README's photograph: fruit, cups and a book on a wooden table, by tracing rays with numpy.

    python tools/paint_table_scene.py docs/assets/table.jpg

Writes the picture and, beside it, `table.json` with each object's label and box (xyxy pixels), read off the picture's
own visibility mask. Seeded: the same file at every call.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.float64]

WIDTH, HEIGHT, SAMPLES = 1200, 720, 2
LIGHT = np.array([-3.5, 6.0, -2.5])
LIGHT_RADIUS, SHADOW_RAYS = 0.8, 8
EYE, TARGET = np.array([0.0, 2.7, -6.2]), np.array([0.0, 0.55, 0.2])
FAR, TABLE_END = 1e9, 4.5


@dataclass(frozen=True)
class Ellipsoid:
    """A fruit: centre, radii and colour; `dimples` roughens its skin."""

    label: str
    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    color: tuple[float, float, float]
    dimples: float = 0.0
    shine: float = 0.35

    def hit(self, origin: Array, direction: Array) -> tuple[Array, Array]:
        """Return distances (FAR where missed) and normals, both per ray."""
        radii, center = np.array(self.radii), np.array(self.center)
        o, d = (origin - center) / radii, direction / radii
        a, b, c = (d * d).sum(1), (o * d).sum(1), (o * o).sum(1) - 1
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        t = np.where((root > 0) & (t > 1e-3), t, FAR)
        normal = (o + d * np.minimum(t, 1e6)[:, None]) / radii
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        if self.dimples:
            point = (o + d * np.minimum(t, 1e6)[:, None]) * 34
            normal = normal + self.dimples * np.sin(point + 1.7 * np.sin(point[:, [1, 2, 0]]))
            normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        return t, normal


@dataclass(frozen=True)
class Cup:
    """An upright cylinder that is open at the top: (x, z) of its axis, radius, height, colour."""

    label: str
    axis: tuple[float, float]
    radius: float
    height: float
    color: tuple[float, float, float]
    shine: float = 0.6

    def hit(self, origin: Array, direction: Array) -> tuple[Array, Array]:
        """Return distances (FAR where missed) and normals: the outer wall first, else the inner one."""
        o = origin[:, [0, 2]] - np.array(self.axis)
        d = direction[:, [0, 2]]
        a, b, c = (d * d).sum(1) + 1e-12, (o * d).sum(1), (o * o).sum(1) - self.radius**2
        root = b * b - a * c
        spread = np.sqrt(np.maximum(root, 0))
        best, side = np.full(len(origin), FAR), np.ones(len(origin))
        for sign in (1.0, -1.0):
            t = (-b + sign * spread) / a
            y = origin[:, 1] + t * direction[:, 1]
            valid = (root > 0) & (t > 1e-3) & (y > 0) & (y < self.height) & (t < best)
            best, side = np.where(valid, t, best), np.where(valid, -sign, side)
        flat = o + d * np.minimum(best, 1e6)[:, None]
        normal = np.stack([flat[:, 0], np.zeros(len(o)), flat[:, 1]], 1) / self.radius
        return best, normal * side[:, None]


@dataclass(frozen=True)
class Book:
    """A box that lies on the table, turned about the vertical by `angle` radians."""

    label: str
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    angle: float
    color: tuple[float, float, float]
    shine: float = 0.1

    def hit(self, origin: Array, direction: Array) -> tuple[Array, Array]:
        """Return distances (FAR where missed) and normals by the slab method."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        o, d = (origin - np.array(self.center)) @ turn.T, direction @ turn.T
        d = np.where(np.abs(d) < 1e-9, 1e-9, d)
        near, far = (-np.sign(d) * self.half - o) / d, (np.sign(d) * self.half - o) / d
        enter, leave = near.max(1), far.min(1)
        t = np.where((enter < leave) & (enter > 1e-3), enter, FAR)
        face = np.eye(3)[near.argmax(1)] * -np.sign(d)
        return t, face @ turn


Thing = Ellipsoid | Cup | Book

THINGS: tuple[Thing, ...] = (
    Ellipsoid("orange", (-2.15, 0.42, 0.15), (0.43, 0.42, 0.43), (0.95, 0.34, 0.03), dimples=0.05),
    Cup("cup", (-1.05, 0.55), 0.42, 0.95, (0.16, 0.33, 0.62)),
    Ellipsoid("orange", (0.15, 0.40, -1.05), (0.41, 0.40, 0.41), (0.94, 0.33, 0.03), dimples=0.05),
    Ellipsoid("apple", (-0.95, 0.36, -1.35), (0.38, 0.36, 0.38), (0.70, 0.06, 0.07)),
    Ellipsoid("apple", (0.75, 0.38, 0.75), (0.40, 0.38, 0.40), (0.45, 0.62, 0.12)),
    Cup("cup", (2.35, 0.45), 0.40, 0.80, (0.90, 0.88, 0.84)),
    Ellipsoid("lemon", (1.25, 0.27, -1.2), (0.40, 0.27, 0.29), (0.95, 0.80, 0.12), dimples=0.04),
    Book("book", (1.75, 0.10, 1.75), (0.95, 0.10, 0.62), 0.25, (0.35, 0.12, 0.16)),
)


def trace(origin: Array, direction: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Return for each ray the nearest distance, the index of its thing (-1 for none), and the normal there."""
    nearest, index = np.full(len(origin), FAR), np.full(len(origin), -1)
    normals = np.zeros_like(origin)
    for number, thing in enumerate(THINGS):
        t, normal = thing.hit(origin, direction)
        closer = t < nearest
        nearest, index = np.where(closer, t, nearest), np.where(closer, number, index)
        normals = np.where(closer[:, None], normal, normals)
    return nearest, index, normals


def wood(x: Array, z: Array) -> Array:
    """Return the colour of the table at points of its plane: boards with grain."""
    board = np.floor(z / 1.3)
    grain = np.sin(9 * z + 2.2 * np.sin(1.1 * x + 5 * board) + 0.8 * np.sin(7.3 * x + board))
    fine = np.sin(70 * z + 9 * np.sin(0.9 * x + board))
    tone = 0.50 + 0.055 * grain + 0.02 * fine + 0.04 * np.sin(12.9 * board)
    tone = np.where(np.abs(z / 1.3 - np.round(z / 1.3)) < 0.012, tone * 0.55, tone)
    return tone[:, None] * np.array([1.12, 0.78, 0.50])


def shade(origin: Array, direction: Array, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Return colours (linear, per ray) and the index of the thing seen."""
    t, index, normal = trace(origin, direction)
    table = np.where(direction[:, 1] < -1e-6, -origin[:, 1] / np.minimum(direction[:, 1], -1e-6), FAR)
    is_table = (table < t) & (origin[:, 2] + direction[:, 2] * np.minimum(table, 1e3) < TABLE_END)
    index = np.where(is_table, -1, index)
    t = np.where(is_table, table, t)
    solid = (t < FAR) & (is_table | (index >= 0))
    point = origin + direction * np.minimum(t, 1e3)[:, None]
    normal = np.where(is_table[:, None], np.array([0.0, 1.0, 0.0]), normal)
    color = np.where(is_table[:, None], wood(point[:, 0], point[:, 2]), 0.0)
    shine = np.where(is_table, 0.12, 0.0)
    for number, thing in enumerate(THINGS):
        color = np.where((index == number)[:, None], np.array(thing.color), color)
        shine = np.where(index == number, thing.shine, shine)
    # Light of the lamp, whose shadows are soft since it has a size, and of the sky, less where things are close.
    lit, open_sky = np.zeros(len(t)), np.zeros(len(t))
    for _ in range(SHADOW_RAYS):
        lamp = LIGHT + rng.normal(0, LIGHT_RADIUS, (len(t), 3))
        to_lamp = lamp - point
        to_lamp /= np.linalg.norm(to_lamp, axis=1, keepdims=True)
        blocked = trace(point + normal * 2e-3, to_lamp)[0] < 20
        lit += np.where(blocked, 0.0, np.maximum((normal * to_lamp).sum(1), 0.0)) / SHADOW_RAYS
        sky = normal + np.array([0.0, 1.0, 0.0]) + rng.normal(0, 0.5, normal.shape)
        sky /= np.linalg.norm(sky, axis=1, keepdims=True)
        open_sky += np.clip(trace(point + normal * 2e-3, sky)[0] / 1.6, 0.15, 1.0) / SHADOW_RAYS
    mirror = direction - 2 * (direction * normal).sum(1, keepdims=True) * normal
    to_light = LIGHT - point
    to_light /= np.linalg.norm(to_light, axis=1, keepdims=True)
    gleam = np.maximum((mirror * to_light).sum(1), 0) ** 60 * shine * (lit > 0)
    edge = (1 - np.maximum(-(direction * normal).sum(1), 0)) ** 4 * shine * 0.35
    out = color * (0.26 * open_sky + 0.95 * lit)[:, None] + (gleam + edge * open_sky)[:, None]
    height = np.clip(direction[:, 1] * 1.6 + 0.62, 0, 1)[:, None]
    wall = np.array([0.62, 0.60, 0.55]) * height + np.array([0.34, 0.31, 0.27]) * (1 - height)
    glow = np.exp(-((direction[:, 0] + 0.35) ** 2 * 6 + (direction[:, 1] - 0.02) ** 2 * 18))[:, None]
    wall = wall + 0.35 * glow * np.array([1.0, 0.95, 0.85])
    return np.where(solid[:, None], out, wall), np.where(solid, index, -2)


def paint(seed: int = 0) -> tuple[Image.Image, list[dict[str, object]]]:
    """Return the picture and its objects, each with its label and the box of its visible pixels."""
    rng = np.random.default_rng(seed)
    forward = (TARGET - EYE) / np.linalg.norm(TARGET - EYE)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    up = np.cross(forward, right)
    width, height = WIDTH * SAMPLES, HEIGHT * SAMPLES
    colors, seen = np.zeros((height, width, 3)), np.zeros((height, width), int)
    for start in range(0, height, 60):
        rows = np.arange(start, min(start + 60, height))
        x, y = np.meshgrid((np.arange(width) + 0.5) / width * 2 - 1, 1 - (rows + 0.5) / height * 2)
        flat = np.stack([x.ravel(), y.ravel()], 1)
        direction = forward + 0.52 * flat[:, :1] * right + 0.52 * HEIGHT / WIDTH * flat[:, 1:] * up
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        color, index = shade(np.broadcast_to(EYE, direction.shape), direction, rng)
        colors[rows], seen[rows] = color.reshape(len(rows), width, 3), index.reshape(len(rows), width)
    # The filmic curve of Narkowicz (2016), then the screen's gamma.
    exposed = colors * 0.74
    filmic = exposed * (2.51 * exposed + 0.03) / (exposed * (2.43 * exposed + 0.59) + 0.14)
    toned = np.clip(filmic, 0, 1) ** (1 / 2.2)
    image = Image.fromarray((toned * 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    # The wall is out of focus; then grain and darker corners, as a lens gives them.
    blurred = image.filter(ImageFilter.GaussianBlur(5))
    far = Image.fromarray(((seen == -2) * 255).astype(np.uint8)).resize((WIDTH, HEIGHT))
    image.paste(blurred, mask=far.filter(ImageFilter.GaussianBlur(2)))
    yy, xx = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    pixels = np.asarray(image, float) * (1 - 0.22 * (xx**2 + yy**2) / 2)[..., None]
    pixels += rng.normal(0, 1.6, pixels.shape[:2])[..., None]
    objects: list[dict[str, object]] = []
    for number, thing in enumerate(THINGS):
        rows, columns = np.nonzero(seen == number)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        objects.append({"label": thing.label, "box_xyxy": [round(float(value) / SAMPLES, 1) for value in box]})
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), objects


def main(out: str) -> None:
    """Paint into a file, and write the objects beside it."""
    image, objects = paint()
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=88)
    path.with_suffix(".json").write_text(json.dumps({"width": WIDTH, "height": HEIGHT, "objects": objects}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
