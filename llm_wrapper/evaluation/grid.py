"""Grids: systems (rows) on detectors and data (columns), each asked once, each compared with its baselines.

    recipes --load_columns--> Column --+
                                       +--fill--> predictions/<column>/<system>-<digest>.parquet --compare_cells--> Cell
    run folders, an LLM --> System ----+

Transfer matrices (paper: table 3), ensembles (table 2), learning curves (figure 2), comparisons of methods: all grids.
The digest in a file name is of the system and all its questions: a repeated command asks only what is missing, and
predictions of another question are never taken for these.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_wrapper import datasets, storage
from llm_wrapper.datasets import Dataset, leaks
from llm_wrapper.detections.samples import PreparedSample, load_prepared_split
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.comparison import Comparison, compare_systems
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import DataSection, PromptSection, Recipe, ServerSection
from llm_wrapper.records import Prediction

_log = logging.getLogger(__name__)

DETECTOR = "detector"
"""Name of the row of the detector's own top-1."""


@dataclass(frozen=True)
class Column:
    """One detector, or ensemble, on one split of a data set; `facts` say what the samples were made of."""

    name: str
    samples: Sequence[PreparedSample]
    facts: Mapping[str, Any] = field(default_factory=dict)


Predict = Callable[[Column], list[Prediction]]


@dataclass(frozen=True)
class System:
    """A row.

    Attributes:
        name: Not that of another row.
        identity: JSON values that decide its predictions, together with its questions.
        load: Gives the function that predicts; called once, and only where something is missing.
        builder: Builds its prompts, where it is an LLM.
        baseline: Name of the same LLM before training.
        previous: Name of the point before it on a curve.
        home: Names of the columns that it was trained for.
    """

    name: str
    identity: Mapping[str, Any]
    load: Callable[[], Predict]
    builder: PromptBuilder | None = None
    baseline: str | None = None
    previous: str | None = None
    home: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Cell:
    """One system in one column.

    Attributes:
        at_home: Whether the system was trained for this column.
        problem: Why there are no predictions, such as a prompt that shows scores to a detector that has none.
        summary: `None` where there is a problem, as everything below.
        over_detector: Gain over the detector's own top-1, on the same samples.
        over_untrained: Gain over the same LLM untrained.
        over_previous: Gain over the point before on a curve.
        path: File of the predictions.
    """

    system: str
    column: str
    at_home: bool = False
    problem: str | None = None
    summary: Summary | None = None
    over_detector: Comparison | None = None
    over_untrained: Comparison | None = None
    over_previous: Comparison | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """Gain of a system's P@1 from a detector: with all detectors, minus with all but this one."""

    system: str
    detector: str
    gain: Comparison


Filled = dict[tuple[str, str], tuple[Path, Sequence[Prediction]] | str]
"""(system, column) -> file and predictions, or why there are none."""


def fill(rows: Sequence[System], columns: Sequence[Column], folder: Path) -> Filled:
    """Predict the cells that are not in `folder` yet, system by system, so that one LLM at a time is loaded.

    A prompt that cannot be rendered leaves its cell empty with the reason.
    """
    filled: Filled = {}
    questions: dict[tuple[str, PromptBuilder | None], str] = {}
    for system in rows:
        predict: Predict | None = None
        for column in columns:
            key = (column.name, system.builder)
            try:
                if key not in questions:
                    questions[key] = _digest_questions(column.samples, system.builder)
                digest = storage.digest_value({"system": dict(system.identity), "questions": questions[key]})
                # Not the whole name of the row: that depends on which other rows there are.
                names = (column.name, system.name.split()[0])
                place, row = (re.sub(r"[^\w.+-]+", "-", text).strip("-") for text in names)
                path = folder / place / f"{row}-{digest[:16]}.parquet"
                if not path.is_file():
                    _log.info("%s: predicting on %s (%d samples)", system.name, column.name, len(column.samples))
                    predict = predict or system.load()
                    files.save_predictions(path, predict(column))
                rows_of = [replace(each, system=system.name) for each in files.load_predictions(path)]
                filled[system.name, column.name] = path, rows_of
            except PromptError as error:
                filled[system.name, column.name] = str(error)
    return filled


def compare_cells(filled: Filled, rows: Sequence[System], columns: Sequence[Column]) -> list[Cell]:
    """Compute every cell, row by row, with its gains over the detector, the untrained LLM and the point before."""
    cells = []
    for system in rows:
        for column in columns:
            found, at_home = filled[system.name, column.name], column.name in system.home
            if isinstance(found, str):
                cells.append(Cell(system.name, column.name, at_home, problem=found))
                continue
            path, rows_of = found
            others = [filled.get((name or "", column.name)) for name in (DETECTOR, system.baseline, system.previous)]
            over = [_gain(rows_of, other) for other in others]
            summary = summarize(rows_of)
            cells.append(Cell(system.name, column.name, at_home, None, summary, over[0], over[1], over[2], path))
    return cells


def _gain(rows: Sequence[Prediction], other: tuple[Path, Sequence[Prediction]] | str | None) -> Comparison | None:
    if other is None or isinstance(other, str) or other[1][0].system == rows[0].system:
        return None
    return compare_systems(rows, other[1])


def contributions(
    whole: Mapping[str, Sequence[Prediction]], without: Mapping[str, Mapping[str, Sequence[Prediction]]]
) -> list[Contribution]:
    """Compare an ensemble, system -> predictions, with itself less one detector, detector -> system -> predictions."""
    return [
        Contribution(system, detector, compare_systems(rows, others[system]))
        for system, rows in whole.items()
        for detector, others in without.items()
        if system in others
    ]


def _digest_questions(samples: Sequence[PreparedSample], builder: PromptBuilder | None) -> str:
    """Digest all that a system sees of the samples, and what it is scored by."""
    total = hashlib.sha256()
    asked = [(each.sample, each.built.candidates) for each in samples if len(each.built.candidates) > 1]
    prompts = iter(builder.build(asked) if builder else ())
    for prepared in samples:
        sample = prepared.sample
        known = (sample.sample_id, sample.image_id, sample.image_wh, sample.expression, sample.kind)
        total.update(repr((known, sample.target, sample.further_targets, prepared.built)).encode())
        if builder is not None and len(prepared.built.candidates) > 1:
            total.update(repr(next(prompts).messages).encode())
    return total.hexdigest()


def free_system(name: str, by: Callable[[Sequence[PreparedSample]], list[Prediction]]) -> System:
    """Return a row that needs no LLM."""
    return System(name, {"system": name}, lambda: lambda column: by(column.samples))


def llm_system(
    name: str, recipe: Recipe, adapter: Path | None = None, *, builder: PromptBuilder | None = None, **more: Any
) -> System:
    """Return a row of the LLM of a recipe, with the adapter of a folder; `more` are further attributes of the row.

    Without a builder, prompts are built by format and instruction alone.
    """
    builder = builder or PromptBuilder(recipe.prompt)
    return System(name, _identity(recipe, adapter), partial(_load, name, recipe, adapter, builder), builder, **more)


def _load(name: str, recipe: Recipe, adapter: Path | None, builder: PromptBuilder) -> Predict:
    from llm_wrapper.llms.base import load_llm

    llm = load_llm(recipe.llm, adapter, title=name, reasoning_tokens=recipe.prompt.reasoning_tokens)
    orders = recipe.llm.orders
    return lambda column: systems.by_llm(column.samples, name, builder, llm, orders=orders)


def _identity(recipe: Recipe, adapter: Path | None) -> dict[str, Any]:
    """Return the JSON values that decide an LLM's answers; the size of its batches does not."""
    llm = recipe.llm.model_dump(mode="json", exclude={"tokens_per_batch", "server"})
    weights = {path.name: storage.digest(path) for path in sorted(adapter.glob("adapter_*"))} if adapter else {}
    default = PromptSection(format=recipe.prompt.format).model_dump(mode="json")
    more = {key: value for key, value in recipe.prompt.model_dump(mode="json").items() if value != default[key]}
    # Only values that differ from the defaults: predictions kept by versions with fewer keys stay valid.
    found: dict[str, Any] = {"llm": llm, "format": recipe.prompt.format, "adapter": weights}
    if more:
        found["prompt"] = more
    if recipe.llm.orders > 1:  # an earlier version kept predictions in one order under the other key
        found["averaged_over"] = recipe.llm.orders
    if recipe.llm.backend == "openai":
        server = recipe.llm.server.model_dump(mode="json", include={"base_url", "tokenizer"})
        usual = ServerSection().model_dump(mode="json")
        found |= {key: value for key, value in server.items() if value != usual[key]}
    return found


def transfer_systems(
    trained: Mapping[Path, Recipe],
    untrained: Recipe | None = None,
    *,
    builder_of: Callable[[Recipe], PromptBuilder] = lambda recipe: PromptBuilder(recipe.prompt),
) -> list[System]:
    """Return the rows detector, untrained LLMs, adapters and, last, the oracle.

    Args:
        trained: Run folder -> its recipe.
        untrained: A recipe whose LLM (or rule) is evaluated untrained, beside those of the runs before training.
        builder_of: Recipe -> its prompt builder.
    """
    builders: dict[str, PromptBuilder] = {}

    def shared_builder(recipe: Recipe) -> PromptBuilder:
        key = storage.digest_value(recipe.model_dump(mode="json", exclude={"llm"}))
        if key not in builders:  # a pool of examples is read once, however many rows show examples of it
            builders[key] = builder_of(recipe)
        return builders[key]

    def untrained_row(recipe: Recipe) -> System:
        if recipe.llm.backend == "rule":
            return free_system("rule", systems.by_rule)
        llm = (recipe.llm.model or recipe.llm.backend).rstrip("/").split("/")[-1].removeprefix("gguf:")
        name = f"untrained {llm}, {recipe.prompt.summary}"
        return llm_system(name, recipe, builder=shared_builder(recipe))

    before: dict[str, System] = {}
    keys: list[str] = []
    for recipe in [*([untrained] if untrained else []), *trained.values()]:
        row = untrained_row(recipe)
        keys.append(storage.digest_value(dict(row.identity)))
        before.setdefault(keys[-1], row)
    names = _distinct([row.name for row in before.values()], [key[:8] for key in before])
    before = {key: replace(row, name=name) for (key, row), name in zip(before.items(), names, strict=True)}
    sets = ["+".join(data.name for data in each.training_data()) for each in trained.values()]
    titles = [f"tuned on {each.vlm} / {names}" for each, names in zip(trained.values(), sets, strict=True)]
    tuned = [
        llm_system(
            title,
            recipe,
            folder / "adapter",
            builder=shared_builder(recipe),
            baseline=before[key].name,
            home=frozenset(f"{recipe.vlm} / {data.name}" for data in recipe.training_data()),
        )
        for key, title, (folder, recipe) in zip(
            keys[-len(trained) :], _distinct(titles, [folder.name for folder in trained]), trained.items(), strict=False
        )
    ]
    detector, oracle = free_system(DETECTOR, systems.by_detector), free_system("oracle", systems.by_oracle)
    return [detector, *before.values(), *tuned, oracle]


def _distinct(names: Sequence[str], more: Sequence[str]) -> list[str]:
    """Add to names that occur twice something that distinguishes them."""
    return [f"{name} ({extra})" if names.count(name) > 1 else name for name, extra in zip(names, more, strict=True)]


def combined_systems(tuned: Sequence[System], filled: Filled) -> list[System]:
    """Return the rows of several adapters together, by mean probability and by vote, from their filled cells."""
    if len(tuned) < 2:
        return []

    def predict(combine: Callable[..., list[Prediction]], name: str, column: Column) -> list[Prediction]:
        cells = [filled[each.name, column.name] for each in tuned]
        parts = [cell[1] for cell in cells if not isinstance(cell, str)]
        if len(parts) < len(cells):
            raise PromptError("not every adapter can be asked about this column")
        return combine(parts, name)

    rows = []
    for way, combine in (("mean", systems.average), ("vote", systems.vote)):
        name = f"{way} of {len(tuned)} adapters"
        identity = {"way": way, "of": [dict(row.identity) for row in tuned]}
        rows.append(System(name, identity, partial(partial, predict, combine, name)))
    return rows


def load_columns(
    recipes: Sequence[Recipe], trained: Mapping[Path, Recipe], *, split: str | None = None, limit: int | None = None
) -> tuple[list[Column], list[str]]:
    """Load a column for each recipe, without the images that one of the adapters was trained on, and notes on them.

    All rows of a column are about the same samples, so these images are dropped for every row.

    Args:
        recipes: Their detectors and data, each pair once.
        trained: Run folder -> recipe of an adapter.
        split: If not the recipe's.
        limit: The first samples only.

    Raises:
        DataError: If a column has nothing to compare with.
    """
    columns: list[Column] = []
    notes: list[str] = []
    read: dict[str, Dataset | None] = {}
    known: dict[str, Dataset] = {}
    for recipe in recipes:
        key, of = recipe.data.model_dump_json(), split or recipe.data.eval_split
        found = load_prepared_split(recipe, recipe.data, of, limit=limit, dataset=known.get(key))
        known[key] = found.dataset
        name = f"{recipe.vlm} / {recipe.data.name}"
        seen: set[str] = set()
        for folder, each in trained.items():
            shared = _shared_images(each, recipe.data, found.dataset, read)
            if shared is None:
                notes.append(f"{name}: the images that {folder} was trained on could not be compared")
            seen |= shared or set()
        samples = [prepared for prepared in found.samples if prepared.sample.image_id not in seen]
        dropped = len(found.samples) - len(samples)
        if dropped:
            notes.append(f"{name}: {dropped} expressions skipped, an adapter was trained on their images")
        if not any(prepared.sample.target for prepared in samples):
            raise DataError(f"{name}: no expression with a box is left to compare with ({dropped} skipped)")
        notes += [note for note in found.dataset.notes() if note not in notes]
        if limit:
            notes.append(f"{name}: the first {limit} expressions only")
        facts = {
            "vlm": recipe.vlm,
            "data": recipe.data.model_dump(mode="json"),
            "split": found.dataset.split,
            "limit": limit,
            "candidates": [each.model_dump(mode="json") for each in recipe.detectors()],
            "ensemble_nms_iou": recipe.ensemble.nms_iou,
            "detections": found.identity,
            "left_out_as_trained_on": dropped,
        }
        if any(name == column.name for column in columns):  # such as two files of boxes
            name = f"{name} ({storage.digest_value(facts)[:8]})"
        columns.append(Column(name, samples, facts))
    return columns, notes


def _shared_images(
    trained: Recipe, data: DataSection, dataset: Dataset, read: dict[str, Dataset | None]
) -> set[str] | None:
    """Return the images of a column that a run was trained on; `None` where its data cannot be read any more."""
    sections = trained.training_data()
    # Training drops the images of every evaluation split of the data sets that it is made of.
    if dataset.has_splits and dataset.split in (data.eval_split, *leaks.HELD_OUT):
        own = (data.reader, data.settings, data.root.resolve())
        if any((each.reader, each.settings, each.root.resolve()) == own for each in sections):
            return set()
    shared: set[str] = set()
    for section in sections:
        key = section.model_dump_json()
        if key not in read:
            try:
                read[key] = datasets.load_dataset(section, section.train_split)
            except DataError as error:
                _log.warning("%s %s cannot be read: %s", section.name, section.train_split, error)
                read[key] = None
        found = read[key]
        if found is None:
            return None
        shared |= leaks.find_shared_images((data, dataset), (section, found))
    return shared
