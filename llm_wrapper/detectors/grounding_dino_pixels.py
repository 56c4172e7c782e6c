"""Images as Grounding-DINO takes them: not too narrow to be shrunk, and with a cell for each of its queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

__all__ = ["Prepared", "widened", "with_enough_cells"]

_STRIDES = (8, 16, 32, 64)
"""Pixels per cell of the four feature maps."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as the model takes it: `pixels` (1, 3, height, width), `mask` (1, height, width), zero for padding."""

    pixels: torch.Tensor
    mask: torch.Tensor


def widened(image: Image.Image, longest: int) -> Image.Image:
    """Stretch an image that would have no width left when its length is shrunk to `longest` pixels.

    Boxes are parts of the image, so they stay right.
    """
    least = -(-max(image.size) // longest)
    return image if min(image.size) >= least else image.resize((max(image.width, least), max(image.height, least)))


def with_enough_cells(image: Prepared, num_queries: int) -> Prepared:
    """Pad an oblong image whose feature maps have fewer cells than the model has queries: it would refuse it."""
    height, width = image.pixels.shape[-2:]
    num_cells = sum(-(-height // stride) * -(-width // stride) for stride in _STRIDES)
    if num_cells >= num_queries:
        return image
    padding = (0, max(0, _STRIDES[-1] - width), 0, max(0, _STRIDES[-1] - height))
    return Prepared(nn.functional.pad(image.pixels, padding), nn.functional.pad(image.mask, padding))
