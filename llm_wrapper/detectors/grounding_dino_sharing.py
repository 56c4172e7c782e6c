"""Run once per image what a Grounding-DINO computes from the image alone, and the rest in parts that fit the cache.

What depends on the image alone is its backbone, the projections of the feature maps, and what the first encoder layer
does to them before they meet the text. All further layers mix both and cannot be shared.

Four fifths of a pass are the encoder, and on a CPU much of that is memory: for an image of 800 x 1066 pixels its
tensors have up to 300 MB, are written and read once, and given back. The core of its deformable attention treats each
place of the image by itself, so it is run on some hundred places at a time. Its feed-forward network does so too, but
is left alone: on several threads a matrix product is rounded by how many rows it has.

Both leave the model's code as it is, and every number too, to the last bit. That matters more than it seems: the model
ranks about 18,000 places and gives its queries to the first 900 by rank, so that an error of rounding can swap two of
them and move boxes by several pixels. For the time of some calls some modules are replaced by stand-ins; that is all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["one_image"]

_ROWS = 512
"""Places of the image at a time, at most: the largest tensor of the attention then has 8 MB instead of 300."""

_StandIn = tuple[nn.Module, str, nn.Module]
"""The parent of a module, the module's name, and what takes its place."""


@contextmanager
def one_image(model: Any) -> Iterator[None]:
    """Share among all calls of a model inside the block; they must be about one and the same image.

    Args:
        model: A GroundingDinoForObjectDetection or MMGroundingDinoForObjectDetection. Not for two threads at a time.
    """
    stand_ins = [*_shared(model.model)]
    if model.device.type == "cpu":
        stand_ins += [_in_parts(layer.deformable_layer.self_attn) for layer in model.model.encoder.layers]
    modules = [parent.get_submodule(name) for parent, name, _ in stand_ins]
    try:
        for parent, name, stand_in in stand_ins:
            setattr(parent, name, stand_in)
        yield
    finally:
        for (parent, name, _), module in zip(stand_ins, modules, strict=True):
            setattr(parent, name, module)


def _shared(core: Any) -> Iterator[_StandIn]:
    fusion = core.encoder.layers[0].fusion_layer
    levels = core.input_proj_vision
    places: list[tuple[nn.Module, str]] = [(core, "backbone"), *((levels, str(i)) for i in range(len(levels)))]
    places += [(fusion, "layer_norm_vision"), (fusion.attn, "vision_proj"), (fusion.attn, "values_vision_proj")]
    for parent, name in places:
        yield parent, name, _Once(parent.get_submodule(name))


def _in_parts(attention: Any) -> _StandIn:
    """Return a stand-in for the attention's core: the points where each place looks, and their weights, in parts."""
    return attention, "attn", _InParts(attention.attn, (4, 5))


class _Once(nn.Module):
    """Runs a module on the first row of the first batch and gives that answer for every row of every batch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._answer: Any = None
        if isinstance(position := getattr(module, "position_embedding", None), nn.Module):
            self.position_embedding = position  # the model asks its backbone for it

    def forward(self, *inputs: torch.Tensor) -> Any:
        if self._answer is None:
            self._answer = self._module(*(each[:1] for each in inputs))
        return _repeated(self._answer, len(inputs[0]))


def _repeated(answer: Any, num_rows: int) -> Any:
    """Repeat one row of tensors, in any nesting of lists and tuples; lists are new: the model appends to them."""
    if isinstance(answer, torch.Tensor):
        return answer.expand(num_rows, *answer.shape[1:])
    return type(answer)(_repeated(each, num_rows) for each in answer)


class _InParts(nn.Module):
    """Runs a module on some places of the image at a time; those of its inputs that have them are named by number."""

    def __init__(self, module: nn.Module, split: tuple[int, ...]) -> None:
        super().__init__()
        self._module = module
        self._split = split

    def forward(self, *inputs: Any) -> torch.Tensor:
        num_parts = -(-inputs[self._split[0]].shape[1] // _ROWS)
        found = []
        for part in zip(*(inputs[i].tensor_split(num_parts, dim=1) for i in self._split), strict=True):
            chosen = dict(zip(self._split, part, strict=True))
            found.append(self._module(*(chosen.get(i, each) for i, each in enumerate(inputs))))
        return torch.cat(found, dim=1)
