"""Small pictures of the gallery, kept in the run folder, so that the page can be made again without the data set."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from llm_wrapper import datasets, images
from llm_wrapper.datasets import hub
from llm_wrapper.errors import DataError, LLMWrapperError, shell_word
from llm_wrapper.readers import MIB, read_json
from llm_wrapper.recipe import DataSection
from llm_wrapper.records import Sample
from llm_wrapper.storage import inside, write_json

__all__ = ["FILE", "Thumbnail", "add_thumbnails", "load_thumbnails"]

FILE = "gallery.json"
"""Image id -> picture, in the run folder."""

_SIDE = 360
_QUALITY = 70

_log = logging.getLogger(__name__)


_Side = Annotated[int, Field(ge=1, le=10**6)]


class Thumbnail(NamedTuple):
    """A JPEG in base64, and the size in pixels of the image that it was made of."""

    wh: tuple[_Side, _Side]
    jpeg: str

    @property
    def uri(self) -> str:
        """The picture as an address that needs no network."""
        return f"data:image/jpeg;base64,{self.jpeg}"


_ADAPTER = TypeAdapter(dict[str, Thumbnail])


def load_thumbnails(folder: Path) -> dict[str, Thumbnail]:
    """Return the pictures that the run folder holds, by image id.

    Raises:
        DataError: If their file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        found = _ADAPTER.validate_python(read_json(inside(folder, path), most=256 * MIB))
        for each in found.values():
            base64.b64decode(each.jpeg, validate=True)
    except (ValidationError, ValueError) as error:
        raise DataError(f"{path} does not hold pictures: {error}. Remove it, and it is made again.") from error
    return found


def add_thumbnails(
    folder: Path, recipe: Mapping[str, Any], split: str, wanted: Mapping[str, str], roots: Sequence[Path]
) -> dict[str, Thumbnail]:
    """Return the pictures of the run folder, and add those that are wanted and still to be had from the data set.

    The run may be a stranger's: a data set that its recipe names is used only where it lies under one of `roots`, with
    its pictures, and is never fetched. Without a picture, boxes are drawn on nothing; the log says why.

    Args:
        folder: The run.
        recipe: The resolved recipe, as plain values.
        split: Where the images belong to.
        wanted: Image id -> id of a sample of it.
        roots: Folders that the user named.
    """
    found = load_thumbnails(folder)
    missing = {image_id: sample_id for image_id, sample_id in wanted.items() if image_id not in found}
    if not missing:
        return found
    problems: list[str] = []
    new = _make_thumbnails(recipe, split, missing, roots, problems)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        _log.warning("%d pictures of the gallery are missing: %s%s", len(missing) - len(new), problems[0], more)
    if new:
        found = dict(sorted({**found, **new}.items()))
        write_json(folder / FILE, found)
    return found


def _make_thumbnails(
    recipe: Mapping[str, Any], split: str, wanted: Mapping[str, str], roots: Sequence[Path], problems: list[str]
) -> dict[str, Thumbnail]:
    try:
        samples = _samples(recipe, split, roots)
    except (ValidationError, LLMWrapperError) as error:
        problems.append(str(error))
        return {}
    by_id = {sample.sample_id: sample for sample in samples}
    found = {}
    for image_id, sample_id in wanted.items():
        sample = by_id.get(sample_id)
        if sample is None or sample.image_id != image_id:
            problems.append(f"the data set has no sample {sample_id!r} of image {image_id!r}")
        elif sample.image_path is None:
            problems.append(f"sample {sample_id!r} has no image file")
        else:
            try:
                _require_inside(Path(sample.image_path), roots)
                found[image_id] = _thumbnail(sample)
            except DataError as error:
                problems.append(str(error))
    return found


def _samples(recipe: Mapping[str, Any], split: str, roots: Sequence[Path]) -> Sequence[Sample]:
    section = DataSection.model_validate(recipe.get("data"))
    root = section.folder
    if not os.path.exists(root):  # of any text false, where Path.exists raises
        raise DataError(f"the data set lay in {root}, which does not exist here")
    _require_inside(root, roots)
    if "repo" in section.settings and not hub.is_fetched(root):
        raise DataError(f"{root} holds no Parquet files, and a report fetches nothing")
    try:
        return datasets.load_dataset(section, split).samples
    # A reader is made for the settings of a recipe that its user wrote; these are anybody's.
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"data.settings of the run's recipe cannot be used: {error!r}") from error


def _require_inside(path: Path, roots: Sequence[Path]) -> None:
    """Refuse a path that lies under none of the folders that the user named, with links resolved."""
    for root in roots:
        try:
            inside(root, path.absolute())
        except DataError:
            continue
        return
    named = ", ".join(map(str, roots)) or "any folder that was named"
    command = f"llm-wrapper report RUN --data-root {shell_word(path if path.is_dir() else path.parent)}"
    raise DataError(f"{path} does not lie under {named}; if it is yours to show: {command}")


def _thumbnail(sample: Sample) -> Thumbnail:
    image = images.read_sample(sample)
    image.thumbnail((_SIDE, _SIDE))
    content = BytesIO()
    image.save(content, format="JPEG", quality=_QUALITY)
    return Thumbnail(sample.image_wh, base64.b64encode(content.getvalue()).decode("ascii"))
