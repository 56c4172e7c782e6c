"""Names of categories from the files that people have: COCO's instances, ultralytics' data.yaml, lists and mappings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from llm_wrapper import readers
from llm_wrapper.errors import DataError, listed

__all__ = ["CategoryNames", "read_category_names"]


@dataclass(frozen=True, slots=True)
class CategoryNames:
    """Names by id, of the file `source`.

    `is_from_zero` is true of lists and of mappings with an id 0, as ultralytics writes them.
    """

    source: str
    by_id: Mapping[int, str]
    is_from_zero: bool

    def offset(self, ids: Collection[int], *, is_from_one: bool) -> int:
        """Return the number to add to a file's ids, so that they are the ids of these names.

        ultralytics counts classes from 0 in `names` and from 1 in `predictions.json`; others write class indices where
        COCO's ids count from 1.

        Args:
            ids: All that a file uses.
            is_from_one: Whether files of its kind count from 1.
        """
        if not ids:
            return 0
        fits = {offset: all(number + offset in self.by_id for number in ids) for offset in (-1, 0, 1)}
        if self.is_from_zero and is_from_one and 0 not in ids and fits[-1]:
            return -1
        if fits[0]:
            return 0
        return 1 if not self.is_from_zero and 0 in ids and fits[1] else 0


class _Category(BaseModel):
    id: int
    name: str


def read_category_names(path: Path) -> CategoryNames:
    """Read names of categories.

    Args:
        path: JSON or YAML: `{"categories": [{id, name}]}`, `{"names": ..}`, `{id: name}`, or a list of names or of
            `{id, name}`.

    Raises:
        DataError: If the file holds none of these.
    """
    if path.suffix in (".yaml", ".yml"):
        content = readers.parse_yaml(readers.read_text(path), str(path))
    else:
        content = readers.read_json(path)
    for key in ("categories", "names"):
        if isinstance(content, dict) and isinstance(content.get(key), list | dict):
            content = content[key] or {}  # a file without a category is no error of it
            break
    try:
        names = _names(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        remedy = "write {id: name}, a list of names, or COCO's categories"
        raise DataError(listed(f"{path} names no categories: {remedy}", problems)) from error
    is_from_zero = not _is_coco(content) and 0 in names
    return CategoryNames(path.name, {number: name.strip() for number, name in names.items()}, is_from_zero)


def _is_coco(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict)


def _names(content: Any) -> dict[int, str]:
    if _is_coco(content):
        return {entry.id: entry.name for entry in TypeAdapter(list[_Category]).validate_python(content)}
    if isinstance(content, list) and content:
        return dict(enumerate(TypeAdapter(list[str]).validate_python(content)))
    return TypeAdapter(dict[int, str]).validate_python(content)
