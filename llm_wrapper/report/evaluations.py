"""The evaluations that a run folder holds, systems of other folders to compare with them, and published numbers.

`<run>/compared/<name>/` holds a copy of what `eval` or `score` wrote in another folder, predictions and facts, so that
the report needs nothing else. Their systems are called `<name>: <system>`; the tables say where their recipe differs.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from llm_wrapper import readers, storage
from llm_wrapper.errors import DataError, RunError, listed, shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.records import Box, Candidate, Prediction
from llm_wrapper.runs import COMPARED, is_same, stored_question
from llm_wrapper.storage import inside, plain_name

_SOURCE = "source.json"
"""Beside what is kept of another folder: which folder that was."""

_DECIDE = ("detector", "candidates", "ensemble", "data", "prompt", "llm", "train")
"""Sections that decide numbers; the rest of a recipe is about machines."""

_MAX_SYSTEMS = 64  # each is compared with each other, by resampling
_FARTHEST = 1e9  # the area of a box far beyond any image overflows, and its IoU is not finite
_ROUNDING = 1e-6


@dataclass(frozen=True)
class OtherSystem:
    """A system of another run; `differences` lists where its recipe is another one."""

    run: str
    rows: Sequence[Prediction]
    differences: Sequence[str]


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation: a split or its first samples.

    Attributes:
        name: `val`, or `val-first-60`.
        systems: System -> its predictions, in the order of the file; then those of other runs.
        facts: What `report-<name>.json` says; empty where there is none.
        others: System -> what is known of it, of those from other runs.
        identical: Systems of other runs that predict the same as one of this run.
    """

    name: str
    systems: Mapping[str, Sequence[Prediction]]
    facts: Mapping[str, Any]
    others: Mapping[str, OtherSystem] = field(default_factory=dict)
    identical: Sequence[str] = ()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe as plain values; empty where it is not known."""
        found: Mapping[str, Any] = self.facts.get("recipe") or {}
        return found

    @property
    def judged(self) -> dict[str, Sequence[Prediction]]:
        """The systems without the oracle, which is right wherever anything can be."""
        return {name: rows for name, rows in self.systems.items() if any(row.decided_by != "oracle" for row in rows)}

    @property
    def base(self) -> str:
        """The system that the others shall beat: the first."""
        return next(iter(self.judged))

    @property
    def main(self) -> str | None:
        """The system that the report is about: the last that is not the base; the tuned LLM where there is one."""
        own = [name for name in self.judged if name not in self.others and name != self.base]
        return own[-1] if own else None

    def place(self, system: str) -> int:
        """Return the place of a system, which decides its color; the oracle, if shown at all, comes last."""
        return [*self.judged, *(name for name in self.systems if name not in self.judged)].index(system)


def load_evaluations(folder: Path) -> list[StoredEvaluation]:
    """Read every evaluation of a run folder.

    Raises:
        RunError: If there is none.
        DataError: If a file is damaged, or holds the oracle's predictions alone.
    """
    paths = sorted(folder.glob("predictions-*.parquet"))
    if not paths:
        raise RunError(f"{folder} holds no predictions; make some with: make eval RUN={shell_word(folder)}")
    return [_load_evaluation(folder, path) for path in paths]


def _load_evaluation(folder: Path, path: Path) -> StoredEvaluation:
    name, facts = _split_of(path), facts_of_evaluation(folder, path)
    systems = _load_systems(folder, path)
    if not StoredEvaluation(name, systems, facts).judged:
        raise DataError(f"{path} holds no predictions but the oracle's. Make it again: make eval")
    others: dict[str, OtherSystem] = {}
    identical = []
    for other in sorted((folder / COMPARED).glob(f"*/predictions-{glob.escape(name)}.parquet")):
        run = other.parent.name
        recipe = facts_of_evaluation(folder, other).get("recipe") or {}
        differences = _differences(facts.get("recipe") or {}, recipe)
        for system, rows in _load_systems(folder, other).items():
            called = f"{run}: {system}"
            if all(row.decided_by == "oracle" for row in rows):
                continue
            if _answers(rows) == _answers(systems.get(system, ())):
                identical.append(called)
                continue
            others[called] = OtherSystem(run, [replace(row, system=called) for row in rows], differences)
    together = {**systems, **{name: other.rows for name, other in others.items()}}
    if len(together) > _MAX_SYSTEMS:
        raise DataError(
            f"{path} holds predictions of {len(together)} systems; a report compares at most {_MAX_SYSTEMS}"
        )
    wrong = [
        f"sample {row.sample_id!r} of {system!r}: {problem}"
        for system, rows in together.items()
        for row in rows
        if (problem := _problem(row))
    ]
    if wrong:
        raise DataError(listed(f"{path} holds what no evaluation writes; make it again: make eval", wrong))
    return StoredEvaluation(name, together, facts, others, identical)


def _load_systems(folder: Path, path: Path) -> dict[str, list[Prediction]]:
    systems: dict[str, list[Prediction]] = {}
    for row in files.load_predictions(inside(folder, path)):
        systems.setdefault(row.system, []).append(row)
    return systems


def _answers(rows: Sequence[Prediction]) -> dict[str, tuple[Box | None, tuple[Candidate, ...]]]:
    return {row.sample_id: (row.box, row.candidates) for row in rows}


def _differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List where two recipes differ; what one of them does not say (boxes from elsewhere) is said once."""
    unsaid = [name for name in _DECIDE if name in own and name not in other]
    here, there = ({name: each[name] for name in _DECIDE if name in own and name in other} for each in (own, other))
    found = storage.describe_differences(here, there, places=("here", "there"))
    return [*found, *([f"not known there: {', '.join(unsaid)}"] if unsaid else [])]


def _problem(row: Prediction) -> str:
    """Say what of a prediction no evaluation writes, and no number could be computed from."""
    known = (row.probability, row.none_probability, row.mass, *(row.probabilities or ()))
    if not all(0 <= share <= 1 + _ROUNDING for share in known if share is not None):
        return "a probability that is not within 0 and 1"
    if row.probabilities is not None and len(row.probabilities) != len(row.candidates):
        return f"{len(row.probabilities)} probabilities of {len(row.candidates)} candidates"
    boxes = [row.box, row.target, *row.further_targets, *(each.box for each in row.candidates)]
    if any(max(map(abs, box.xyxy)) > _FARTHEST for box in boxes if box):
        return f"a box over {_FARTHEST:g} pixels away"
    if row.image_wh is not None and min(row.image_wh) < 1:
        return f"an image of {row.image_wh[0]} x {row.image_wh[1]} pixels"
    return ""


class _Data(BaseModel):
    settings: dict[str, Any] | None = None


class _Ensemble(BaseModel):
    also: dict[str, Any] | None = None


class _Recipe(BaseModel):
    data: _Data | None = None
    ensemble: _Ensemble | None = None
    detector: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    llm: dict[str, Any] | None = None


class _Facts(BaseModel):
    """The shape of what the report looks up in the facts of an evaluation; the rest of them is shown as it is."""

    recipe: _Recipe | None = None
    split: str | None = None
    limit: int | None = None
    notes: list[str] | None = None


def add_comparison(folder: Path, other: Path) -> None:
    """Keep the predictions of another folder in a run's own; what was kept of it before is replaced.

    Another folder of the same name is kept beside it, under a name with a digest.

    Raises:
        RunError: If the other is the run itself, holds no predictions, or none of an evaluation that the run has.
    """
    found = sorted(other.glob("predictions-*.parquet"))
    if other.resolve() == folder.resolve() or not found:
        what = "is the run itself" if found else "holds no predictions"
        raise RunError(
            f"{other} {what}; name a folder that eval or score has left: make report RUN={shell_word(folder)}"
        )
    here, there = ({_split_of(path) for path in paths} for paths in (folder.glob("predictions-*.parquet"), found))
    if not here & there:
        raise RunError(
            f"nothing to compare: {folder} is evaluated on {', '.join(sorted(here)) or 'nothing'}, {other} on "
            f"{', '.join(sorted(there))}. Evaluate both on the same: make eval RUN={shell_word(other)}"
        )
    source = {"folder": str(other.resolve())}
    kept = folder / COMPARED / plain_name(other.resolve().name)
    if kept.exists() and not _is_copy(folder, kept, other, source):
        kept = kept.with_name(f"{kept.name}-{storage.digest_value(source)[:8]}")
    storage.write_json(inside(folder, kept / _SOURCE), source)
    for path in found:
        for each in (path, _facts_beside(path)):
            if each.is_file():
                storage.write_atomic(inside(folder, kept / each.name), readers.read_bytes(inside(other, each)))


def _is_copy(folder: Path, kept: Path, other: Path, source: Mapping[str, str]) -> bool:
    """Tell whether a folder that a run keeps holds the predictions of `other`, and not those of a third folder."""
    path = inside(folder, kept / _SOURCE)
    if path.exists():
        return bool(readers.read_json(path, most=readers.MIB) == source)
    # Kept by an earlier version, or left in the run itself by an evaluation in another way.
    names = [_facts_beside(path).name for path in other.glob("predictions-*.parquet")]
    pairs = [(inside(folder, kept / name), inside(other, name)) for name in names if (kept / name).exists()]
    return bool(pairs) and all(is_same(stored_question(mine), stored_question(its) or {}) for mine, its in pairs)


def _facts_beside(path: Path) -> Path:
    return path.with_name(f"report-{_split_of(path)}.json")


def _split_of(path: Path) -> str:
    """Return the evaluation that a predictions file belongs to, such as `val` or `val-first-100`."""
    return path.stem.removeprefix("predictions-")


def facts_of_evaluation(folder: Path, path: Path) -> dict[str, Any]:
    """Return the facts that a run holds about one of its predictions files; empty where it holds none.

    Raises:
        DataError: If the facts are damaged, or of other types than an evaluation writes.
    """
    beside = _facts_beside(path)
    if not beside.exists():
        return {}
    facts: Any = readers.read_json(inside(folder, beside), most=64 * readers.MIB)
    try:
        _Facts.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{beside} does not hold the facts of an evaluation: {where}: {first['msg']}. Make it again: make eval"
        ) from error
    return dict(facts)


_PAPER = "LLM-wrapper (arXiv 2409.11919)"
_CHART = f"{_PAPER}, first version, read off a bar chart, +-0.4"
_WHITE_BOX = "white box, as published for it"
_PROPOSALS = "chooses among ground-truth boxes"


class Published(NamedTuple):
    """P@1 in percent on the whole of RefCOCOg (umd) val; no number here was measured by this project.

    `detector` and `llm` are names of `recipes/vlm` and `recipes/llm`, `system` is ours; all are `None` where the number
    is of a model that this project does not run.
    """

    name: str
    p_at_1: float
    source: str
    system: str | None = None
    detector: str | None = None
    llm: str | None = None


PUBLISHED = (
    Published("Grounding-DINO", 60.09, _PAPER, "detector", "gd"),
    Published("Grounding-DINO, subject scores", 67.61, _PAPER, "detector", "gdrec"),
    Published("Florence-2-L", 68.28, _PAPER, "detector", "flo2"),
    Published("Grounding-DINO, untrained Llama 3", 58.05, _PAPER, "untrained", "gd", "llama3"),
    Published("Grounding-DINO, subject scores, untrained Llama 3", 67.48, _PAPER, "untrained", "gdrec", "llama3"),
    Published("Florence-2-L, untrained Llama 3", 67.69, _PAPER, "untrained", "flo2", "llama3"),
    Published("Grounding-DINO, tuned Mixtral", 77.3, _CHART, "tuned", "gd", "mixtral"),
    Published("Grounding-DINO, tuned Llama 3", 77.9, _CHART, "tuned", "gd", "llama3"),
    Published("Florence-2-L, tuned Mixtral", 77.4, _CHART, "tuned", "flo2", "mixtral"),
    Published("Florence-2-L, tuned Llama 3", 77.6, _CHART, "tuned", "flo2", "llama3"),
    Published("ReCLIP", 67.9, f"as published for it; {_PROPOSALS}"),
    Published("VLM-R1-3B", 84.8, _WHITE_BOX),
    Published("MM-GDINO-T, fine-tuned", 85.5, _WHITE_BOX),
    Published("Qwen3-VL-8B", 88.0, _WHITE_BOX),
    Published("Florence-2-L-FT", 91.2, _WHITE_BOX),
)
"""By rising number within each origin."""

_MODELS = {"llama3": "Meta-Llama-3-8B-Instruct", "mixtral": "Mixtral-8x7B-Instruct-v0.1"}
"""Name of an LLM -> how its model's name ends."""


def on_same_split(recipe: Mapping[str, Any], split: str) -> tuple[Published, ...]:
    """Return the published numbers on the data and split of a resolved recipe; a part of a split is another split."""
    data = recipe.get("data") or {}
    split_by = (data.get("settings") or {}).get("split_by")
    same = (data.get("name"), split_by, split) == ("refcocog", "umd", "val")
    return PUBLISHED if same else ()


def beside(recipe: Mapping[str, Any], split: str, system: str) -> Published | None:
    """Return the number that is published for a system of a run: same data, split, detector and LLM, by their names.

    Settings that were changed on the command line keep the name, and are for the reader of the recipe to judge.
    """
    if (recipe.get("ensemble") or {}).get("also"):
        return None
    detector = (recipe.get("detector") or {}).get("label")
    model = str((recipe.get("llm") or {}).get("model"))
    for each in on_same_split(recipe, split):
        same_llm = each.llm is None or model.endswith(_MODELS[each.llm])
        if detector and (each.system, each.detector) == (system, detector) and same_llm:
            return each
    return None
