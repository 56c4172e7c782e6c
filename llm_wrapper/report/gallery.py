"""Single cases to look at: what was right, rescued, broken and still wrong, with the boxes and a picture of each.

Pictures are kept small in the run folder, so that the page can be made again without the data set.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from llm_wrapper import datasets, images
from llm_wrapper.boxes import rowwise_iou
from llm_wrapper.datasets import hub
from llm_wrapper.errors import DataError, LLMWrapperError, PromptError, shell_word
from llm_wrapper.evaluation.comparison import OUTCOMES, outcomes, pair_predictions
from llm_wrapper.evaluation.slices import masks, weakest_slices
from llm_wrapper.metrics import IOU_THRESHOLD, ious
from llm_wrapper.prompts.render import PROMPT_FORMATS, PromptBuilder
from llm_wrapper.readers import MIB, read_json
from llm_wrapper.recipe import DataSection, PromptSection
from llm_wrapper.records import Box, Prediction, Sample
from llm_wrapper.report.evaluations import StoredEvaluation
from llm_wrapper.report.formatting import Table
from llm_wrapper.report.pictures import label_text
from llm_wrapper.storage import inside, write_json

FILE = "gallery.json"
"""Image id -> picture, in the run folder."""

_SIDE, _QUALITY = 360, 70

_OUTCOMES = {
    (False, False): "still wrong",
    (True, False): "broken",
    (False, True): "rescued",
    (True, True): "right",
}
"""(base is right, main is right) -> name; failures come first, since they are what a reader looks for."""

_MOST = {"still wrong": 48, "broken": 24, "rescued": 12, "right": 12}
"""Cases of each outcome: a reader looks for the wrong ones."""

_OF_WEAK = 6  # wrong cases of each outcome that are taken from each slice that the page calls weak

_log = logging.getLogger(__name__)

_Pair = tuple[Prediction, Prediction]
_Side = Annotated[int, Field(ge=1, le=10**6)]


class Thumbnail(NamedTuple):
    """A JPEG in base64, and the size in pixels of the image that it was made of."""

    wh: tuple[_Side, _Side]
    jpeg: str

    @property
    def uri(self) -> str:
        """The picture as an address that needs no network."""
        return f"data:image/jpeg;base64,{self.jpeg}"


@dataclass(frozen=True, slots=True)
class Line:
    """One answer in the order shown, a candidate or none; `marks` says who chose it and how well it fits."""

    index: int
    label: str
    probability: float | None
    marks: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """One box, of a class that the page gives a color, with its text."""

    box: Box
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """One sample; `slices` maps family to the slices that it is in, `wh` is the size of the canvas."""

    outcome: str
    slices: dict[str, list[str]]
    asked: Prediction
    drawn: Sequence[Drawn]
    lines: Sequence[Line]
    prompt: str | None
    wh: tuple[float, float]
    picture: str | None

    @property
    def table(self) -> Table:
        """The answers in text."""
        rows = [(str(line.index), line.label, "" if line.probability is None else f"{line.probability:.3f}", line.marks)
                for line in self.lines]  # fmt: skip
        return Table("", ("index", "label", "probability", ""), rows)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some cases of each outcome, and how many there are in all."""

    base: str
    main: str
    totals: dict[str, int]
    cases: Sequence[Case]

    @property
    def families(self) -> dict[str, list[str]]:
        """Family -> the slices that occur among the cases; a filter offers these."""
        found: dict[str, set[str]] = {}
        for case in self.cases:
            for family, names in case.slices.items():
                found.setdefault(family, set()).update(names)
        return {family: sorted(names) for family, names in found.items()}


def picture_ids(evaluation: StoredEvaluation) -> dict[str, str]:
    """Return image id -> id of a sample of it, of the images that the gallery shows."""
    return {main.image_id: main.sample_id for _, pairs in _choose_pairs(evaluation).values() for _, main in pairs}


def choose_cases(evaluation: StoredEvaluation, thumbnails: Mapping[str, Thumbnail]) -> Gallery | None:
    """Return the cases of an evaluation; `None` where there are no two systems to compare on the same samples."""
    chosen = _choose_pairs(evaluation)
    if evaluation.main is None or not chosen:
        return None
    return Gallery(
        base=evaluation.base,
        main=evaluation.main,
        totals={outcome: total for outcome, (total, _) in chosen.items()},
        cases=[
            _case(evaluation, pair, outcome, thumbnails.get(pair[1].image_id))
            for outcome, (_, pairs) in chosen.items()
            for pair in pairs
        ],
    )


def _choose_pairs(evaluation: StoredEvaluation) -> dict[str, tuple[int, list[_Pair]]]:
    """Return outcome -> how many samples have it, and those that are shown."""
    if evaluation.main is None:
        return {}
    base, main = evaluation.systems[evaluation.base], evaluation.systems[evaluation.main]
    try:
        pairs = [pair for pair in pair_predictions(base, main) if pair[0].target]
    except DataError:  # a note of the section of differences
        return {}
    by_outcome: dict[str, list[_Pair]] = {outcome: [] for outcome in _OUTCOMES.values()}
    right = ((ious([pair[side] for pair in pairs]) > IOU_THRESHOLD).tolist() for side in (0, 1))
    for pair, *is_right in zip(pairs, *right, strict=True):
        by_outcome[_OUTCOMES[is_right[0], is_right[1]]].append(pair)
    weak = [(family, name) for family, name, _ in weakest_slices(main)]
    is_wrong = ("still wrong", "broken")
    return {
        outcome: (len(found), _sample_pairs(found, _MOST[outcome], weak if outcome in is_wrong else []))
        for outcome, found in by_outcome.items()
    }


def _sample_pairs(pairs: Sequence[_Pair], most: int, weak: Sequence[tuple[str, str]]) -> list[_Pair]:
    """Take some cases of different images by a hash, not by hand: of each weak slice, of each slice, then of all."""
    ordered = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].sample_id.encode()).digest())
    slices = {
        (family, name): np.flatnonzero(mask).tolist()
        for family, found in _families([main for _, main in ordered]).items()
        for name, mask in found.items()
    }
    taken: dict[str, int] = {}

    def take(indices: Iterable[int], count: int) -> None:
        for index in indices:
            image_id = ordered[index][0].image_id
            if len(taken) >= most or count <= 0:
                return
            if taken.setdefault(image_id, index) == index:
                count -= 1

    for each in weak:
        take(slices[each], _OF_WEAK)
    for indices in slices.values():
        take(indices, 1)
    take(range(len(ordered)), most)
    return [ordered[index] for index in sorted(taken.values())]


def _families(predictions: Sequence[Prediction]) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """Return family -> slice -> mask: why the system is wrong, and the slices of the report."""
    found = outcomes(predictions)
    return {"error": {name: found == name for name in OUTCOMES if name != "right"}, **masks(predictions)}


def _case(evaluation: StoredEvaluation, pair: _Pair, outcome: str, thumbnail: Thumbnail | None) -> Case:
    base, main = pair
    families = _families([main])
    boxes = [candidate.box for each in pair for candidate in each.candidates]
    boxes += [box for each in pair for box in (each.box, each.target, *each.further_targets) if box]
    extent = (max((box.x1 for box in boxes), default=1.0), max((box.y1 for box in boxes), default=1.0))
    wh = main.image_wh or (thumbnail.wh if thumbnail else None)
    return Case(
        outcome=outcome,
        slices={family: [name for name, mask in found.items() if mask[0]] for family, found in families.items()},
        asked=main,
        drawn=_drawn_boxes(base, main, named=thumbnail is None),
        lines=_answer_lines(base, main),
        prompt=_prompt_text(evaluation, main, wh),
        wh=wh or extent,
        picture=thumbnail.uri if thumbnail else None,
    )


def _drawn_boxes(base: Prediction, main: Prediction, *, named: bool) -> list[Drawn]:
    """Return the boxes to draw, the widest line first, so that boxes that coincide can all be seen.

    Candidates are `named` where no picture shows what they are.
    """
    boxes = [
        Drawn(each.box, "candidate", f"{index} {label_text(each.label)}" if named else str(index))
        for index, each in enumerate(main.candidates)
    ]
    boxes += [Drawn(target, "target", "target") for target in (main.target, *main.further_targets) if target]
    return boxes + [Drawn(row.box, kind, row.system) for row, kind in ((main, "main"), (base, "base")) if row.box]


def _answer_lines(base: Prediction, main: Prediction) -> list[Line]:
    target = None if main.target is None else np.array([main.target.xyxy])
    probabilities = main.probabilities or [None] * len(main.candidates)
    lines = []
    for index, (candidate, probability) in enumerate(zip(main.candidates, probabilities, strict=False)):
        overlap = 0.0 if target is None else float(rowwise_iou(np.array([candidate.box.xyxy]), target)[0])
        marks = [each.system for each in (base, main) if each.box == candidate.box]
        marks += [f"IoU {overlap:.2f}"] if overlap > IOU_THRESHOLD else []
        lines.append(Line(index, candidate.label, probability, ", ".join(marks)))
    if main.none_probability is not None or main.says_none:
        lines.append(Line(len(lines), "none of these", main.none_probability, main.system * main.says_none))
    return lines


def _prompt_text(evaluation: StoredEvaluation, asked: Prediction, wh: tuple[int, int] | None) -> str | None:
    """Build the prompt again, where an LLM was asked in a shipped format about an image of known size.

    Examples that were shown before the question are training expressions, which the run's folder does not hold.
    """
    section = evaluation.recipe.get("prompt") or {}
    if wh is None or section.get("format") not in PROMPT_FORMATS or asked.decided_by not in ("llm", "fallback"):
        return None
    sample = Sample(asked.sample_id, "", asked.image_id, None, wh, asked.expression, None)
    try:
        builder = PromptBuilder(PromptSection.model_validate({**section, "examples": 0, "retrieve": False}))
        (prompt,) = builder.build([(sample, asked.candidates)])
    except (PromptError, ValidationError):
        return None
    return prompt.messages[-1].content


def load_thumbnails(folder: Path) -> dict[str, Thumbnail]:
    """Return the pictures that the run folder holds, by image id.

    Raises:
        DataError: If their file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        content = read_json(inside(folder, path), most=256 * MIB)
        found = TypeAdapter(dict[str, Thumbnail]).validate_python(content)
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
        recipe: Resolved, as plain values.
        split: Of the images.
        wanted: Image id -> id of a sample of it.
        roots: Folders that the user named.
    """
    found = load_thumbnails(folder)
    missing = {image_id: sample_id for image_id, sample_id in wanted.items() if image_id not in found}
    if not missing:
        return found
    new: dict[str, Thumbnail] = {}
    problems = []
    try:
        samples = {sample.sample_id: sample for sample in _load_samples(recipe, split, roots)}
        for image_id, sample_id in missing.items():
            try:
                new[image_id] = _make_thumbnail(samples.get(sample_id), (sample_id, image_id), roots)
            except DataError as error:
                problems.append(str(error))
    except (ValidationError, LLMWrapperError) as error:
        problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        _log.warning("%d pictures of the gallery are missing: %s%s", len(missing) - len(new), problems[0], more)
    if new:
        found = dict(sorted({**found, **new}.items()))
        write_json(folder / FILE, found)
    return found


def _load_samples(recipe: Mapping[str, Any], split: str, roots: Sequence[Path]) -> Sequence[Sample]:
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


def _make_thumbnail(sample: Sample | None, ids: tuple[str, str], roots: Sequence[Path]) -> Thumbnail:
    if sample is None or (sample.sample_id, sample.image_id) != ids:
        raise DataError(f"the data set has no sample {ids[0]!r} of image {ids[1]!r}")
    if sample.image_path is None:
        raise DataError(f"sample {ids[0]!r} has no image file")
    _require_inside(Path(sample.image_path), roots)
    image = images.read_sample(sample)
    image.thumbnail((_SIDE, _SIDE))
    content = BytesIO()
    image.save(content, format="JPEG", quality=_QUALITY)
    return Thumbnail(sample.image_wh, base64.b64encode(content.getvalue()).decode("ascii"))


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
