"""Small pictures of the gallery, kept in the run folder, so that the page can be made again without the data set."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from llm_wrapper import datasets, images
from llm_wrapper.artifacts import read_json, write_json
from llm_wrapper.errors import DataError, ImageError, LLMWrapperError
from llm_wrapper.recipe import DataSection
from llm_wrapper.records import Sample

__all__ = ["FILE", "Thumbnail", "add", "load"]

FILE = "gallery.json"
"""Image id -> picture, in the run folder."""

_SIDE = 360
_QUALITY = 70

_log = logging.getLogger(__name__)


class Thumbnail(NamedTuple):
    """A JPEG in base64, and the size in pixels of the image that it was made of."""

    wh: tuple[int, int]
    jpeg: str

    @property
    def uri(self) -> str:
        """The picture as an address that needs no network."""
        return f"data:image/jpeg;base64,{self.jpeg}"


_ADAPTER = TypeAdapter(dict[str, Thumbnail])


def load(folder: Path) -> dict[str, Thumbnail]:
    """Return the pictures that the run folder holds, by image id.

    Raises:
        DataError: If their file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found = _ADAPTER.validate_python(read_json(path))
        for each in found.values():
            base64.b64decode(each.jpeg, validate=True)
    except (ValidationError, binascii.Error) as error:
        raise DataError(f"{path} does not hold pictures: {error}. Remove it, and it is made again.") from error
    return found


def add(folder: Path, recipe: Mapping[str, Any], split: str, wanted: Mapping[str, str]) -> dict[str, Thumbnail]:
    """Return the pictures of the run folder, and add those that are wanted and still to be had from the data set.

    A data set that is not on this machine is neither fetched nor missed: boxes are then drawn on nothing.

    Args:
        folder: The run.
        recipe: The resolved recipe, as plain values.
        split: Where the images belong to.
        wanted: Image id -> id of a sample of it.
    """
    found = load(folder)
    missing = {image_id: sample_id for image_id, sample_id in wanted.items() if image_id not in found}
    new = _made(recipe, split, missing) if missing else {}
    if new:
        found = dict(sorted({**found, **new}.items()))
        write_json(folder / FILE, found)
    return found


def _made(recipe: Mapping[str, Any], split: str, wanted: Mapping[str, str]) -> dict[str, Thumbnail]:
    try:
        section = DataSection.model_validate(recipe.get("data"))
        samples = datasets.load(section, split).samples if Path(section.root).exists() else ()
    except (ValidationError, LLMWrapperError) as error:
        _log.warning("no new pictures for the gallery, the data set cannot be read: %s", error)
        return {}
    by_id = {sample.sample_id: sample for sample in samples}
    pairs = [(image_id, by_id.get(sample_id)) for image_id, sample_id in wanted.items()]
    found = {image_id: _thumbnail(sample) for image_id, sample in pairs if sample and sample.image_id == image_id}
    return {image_id: each for image_id, each in found.items() if each is not None}


def _thumbnail(sample: Sample) -> Thumbnail | None:
    if sample.image_path is None:
        return None
    try:
        image = images.read_sample(sample)
    except ImageError as error:
        _log.warning("no picture in the gallery: %s", error)
        return None
    image.thumbnail((_SIDE, _SIDE))
    content = BytesIO()
    image.save(content, format="JPEG", quality=_QUALITY)
    return Thumbnail(sample.image_wh, base64.b64encode(content.getvalue()).decode("ascii"))
