r"""Which image or expression of a data set a line of another program's file is about.

Files of boxes and of predictions name images in many ways: by id, by the name that the data has or any unambiguous
tail of its path, by the stem alone, or by a COCO number in any spelling. One matcher answers for all of them:

    COCO_train2014_000000380440_491042.jpg   000000380440.jpg   380440.jpg   380440   train2014\000000380440.JPG

A name of no image is `NotInDataError` (a file may cover more than one split: skip and count it), a name of several is
`AmbiguousNameError` (an error of the file).
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llm_wrapper.errors import nearest
from llm_wrapper.records import Sample

_IMAGE_ENDINGS = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"}

_COCO_STEM = re.compile(r"COCO_\w+?_(\d{12})(?:_\d+)?|(\d{12})(?:_\d+)?", re.IGNORECASE)
"""`COCO_train2014_000000380440_491042` or `000000380440`: image 380440; what follows belongs to the ref."""

_INTEGER = re.compile(r"(\d{1,18})(?:\.0)?")
"""An id as a number, which some programs write as a float."""


class NotInDataError(ValueError):
    """A name that no image or sample of the data has."""


class AmbiguousNameError(ValueError):
    """A name that several images or samples have, or that contradicts another one beside it."""


@dataclass(frozen=True, slots=True)
class _Image:
    """An image with its path (the data's own name for it is the last `own` parts) and its number, if it has one."""

    image_id: str
    parts: tuple[str, ...]
    own: int


class Matcher:
    """Finds the images and samples of one split that names mean.

    Args:
        samples: Of the split.
        place: The data set and split, as messages name it.
        spellings: All image names of the file. Where folders set two of them apart, they count.
        file_names: Image id -> the data's own name, for data without image files.
    """

    def __init__(
        self, samples: Sequence[Sample], place: str, *,
        spellings: Iterable[str] = (), file_names: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.place = place
        self._by_id = {sample.sample_id: sample for sample in samples}
        numbered = [(int(match[1]), each) for name, each in self._by_id.items() if (match := _INTEGER.fullmatch(name))]
        counts = Counter(number for number, _ in numbered)
        self._by_number = {number: sample for number, sample in numbered if counts[number] == 1}
        self._by_ref: defaultdict[str, list[Sample]] = defaultdict(list)
        self._by_image: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._by_ref[sample.ref_id].append(sample)
            self._by_image[sample.image_id].append(sample)
        self._images: defaultdict[tuple[str, str], list[_Image]] = defaultdict(list)
        self._matches: dict[str, str] = {}
        for image in _images([each[0] for each in self._by_image.values()], file_names or {}):
            for key in _keys_of_image(image):
                self._images[key].append(image)
        self._spellings: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
        for name in set(spellings):
            parts = _parts(name)
            self._spellings[parts[-1]].add(parts)

    def image_of(self, name: str) -> str:
        """Return the id of the image that a name means."""
        if name in self._by_image:
            return name
        if name not in self._matches:
            self._matches[name] = self._search(name)
        return self._matches[name]

    def sample_of(self, sample_id: str, expression: str | None = None) -> Sample:
        """Return the sample of an id; with an expression, only if that is the sample's.

        Ids are small numbers that overlap between data sets, so the id of another expression is an AmbiguousNameError.
        """
        number = _INTEGER.fullmatch(sample_id)
        sample = self._by_id.get(sample_id) or (self._by_number.get(int(number[1])) if number else None)
        if sample is None:
            raise NotInDataError(f"sample {sample_id!r} is not in {self.place}")
        if expression is not None and letters(expression) != letters(sample.expression):
            raise AmbiguousNameError(
                f"sample {sample_id!r} of {self.place} is {sample.expression!r}, the prediction is for {expression!r}"
            )
        return sample

    def samples_of_image(self, name: str, expression: str | None) -> tuple[Sample, ...]:
        """Return the samples with an expression about an image: several only where both are the same."""
        return self._with_expression(self._by_image[self.image_of(name)], expression, f"image {name!r}")

    def samples_of_ref(self, ref_id: str, expression: str | None) -> tuple[Sample, ...]:
        """Return the samples with an expression of a ref, as `samples_of_image`."""
        if ref_id not in self._by_ref:
            raise NotInDataError(f"ref {ref_id!r} is not in {self.place}")
        return self._with_expression(self._by_ref[ref_id], expression, f"ref {ref_id!r}")

    def _search(self, name: str) -> str:
        parts = _parts(name)
        for key in _keys_of_name(parts[-1]):
            tails = [(_common_tail(image.parts, parts), image) for image in self._images.get(key, ())]
            best = max((tail for tail, image in tails if tail >= min(len(parts), image.own)), default=0)
            # An image to whose path another spelling of the file is nearer is not meant.
            others = self._spellings.get(parts[-1], ())
            fitting = {
                image.image_id
                for tail, image in tails
                if tail == best and all(_common_tail(image.parts, other) <= tail for other in others)
            }
            image_ids = sorted(fitting)
            if len(image_ids) > 1:
                raise AmbiguousNameError(f"{name!r} is shared by images {', '.join(image_ids[:5])}: use image_id")
            if image_ids:
                return image_ids[0]
        raise NotInDataError(f"image {name!r} is not in {self.place}")

    def _with_expression(self, pool: Sequence[Sample], expression: str | None, named: str) -> tuple[Sample, ...]:
        if expression is None:
            if len(pool) == 1:
                return tuple(pool)
            raise AmbiguousNameError(
                f"{named} alone does not say which of its {len(pool)} expressions is meant; "
                "add 'sample_id' or 'expression'"
            )
        samples = tuple(sample for sample in pool if sample.expression == expression)
        if not samples:
            samples = tuple(sample for sample in pool if letters(sample.expression) == letters(expression))
            if len({sample.expression for sample in samples}) > 1:
                raise AmbiguousNameError(f"{named} has several expressions like {expression!r}: use 'sample_id'")
        if not samples:
            close = nearest(expression, list(dict.fromkeys(sample.expression for sample in pool)))
            raise AmbiguousNameError(f"{named} has no expression {expression!r} in {self.place}{close}")
        return samples


def is_other_data(num_named: int, num_matched: int, num_known: int) -> bool:
    """Tell whether so few of a file's distinct names (under 1 %) are in the data that it was made for other data."""
    return num_named > 0 and num_matched < max(1.0, 0.01 * min(num_named, num_known))


def letters(text: str) -> str:
    """Keep letters and digits alone: cleaned and typed text of one expression have them in common."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _images(samples: Sequence[Sample], file_names: Mapping[str, str]) -> list[_Image]:
    """Return the images of samples, one each, with the data's own names for them."""
    folders = [os.path.dirname(sample.image_path.replace("\\", "/")) for sample in samples if sample.image_path]
    try:
        folder = os.path.commonpath(folders)
    except ValueError:  # relative and absolute paths, or none
        folder = ""
    shared = len(_parts(folder)) if folder else 0
    images = []
    for sample in samples:
        name = _parts(file_names.get(sample.image_id, sample.image_id))
        path = _parts(sample.image_path) if sample.image_path else name
        # Where the id is the name, the data has it so; else it is what lies under the folder of all images.
        is_name = path[-len(name) :] == name
        images.append(_Image(sample.image_id, path, len(name) if is_name else max(1, len(path) - shared)))
    return images


def _parts(name: str) -> tuple[str, ...]:
    """Split a path at either slash, less what means the same folder."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".")]
    return tuple(parts) or (name,)


def _common_tail(path: tuple[str, ...], name: tuple[str, ...]) -> int:
    """Count the last parts that are the same; the very last is the image itself, however it is spelled."""
    count = 1
    while count < min(len(path), len(name)) and path[-count - 1] == name[-count - 1]:
        count += 1
    return count


def _stem(name: str) -> tuple[str, str]:
    """Return a name without the ending of an image, and that ending in lower case."""
    stem, _, ending = name.rpartition(".")
    ending = ending.lower()
    return (stem, ending.replace("jpeg", "jpg")) if stem and ending in _IMAGE_ENDINGS else (name, "")


def _number(stem: str) -> str | None:
    match = _COCO_STEM.fullmatch(stem) or _INTEGER.fullmatch(stem)
    return str(int(next(filter(None, match.groups())))) if match else None


def _keys_of_image(image: _Image) -> set[tuple[str, str]]:
    """Return the keys under which an image is found; the kinds are those of `_keys_of_name`."""
    stem, ending = _stem(image.parts[-1])
    number = _number(stem)
    keys = {("name", f"{stem}.{ending}"), ("stem", stem), ("id", _number(image.image_id) or image.image_id)}
    if number is not None:
        keys |= {("number.", f"{number}.{ending}"), ("number", number)}
    if not ending:
        keys |= {("bare", stem), ("bare number", number or stem)}
    return keys


def _keys_of_name(name: str) -> list[tuple[str, str]]:
    """Return the keys to search for a name, the most exact first; only a name without an ending may be an id."""
    stem, ending = _stem(name)
    number = _number(stem)
    keys = [("name", f"{stem}.{ending}"), ("bare", stem)] if ending else [("stem", stem)]
    if number is not None and ending:
        keys += [("number.", f"{number}.{ending}"), ("bare number", number)]
    elif number is not None:
        keys += [("number", number), ("id", number)]
    return keys
