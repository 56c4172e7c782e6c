"""One evaluation report for people: a single HTML page and the same as Markdown, made of a run folder alone.

Expressions, labels and names are other people's text, and so may be the whole run. Jinja escapes all of it in the page,
the page's own policy allows no script but its own and no address but `data:`, and Markdown escapes what could become
markup. Files are read only where they lie under the run, and pictures also under the folders that the user names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import numpy as np
import yaml

from llm_wrapper import storage
from llm_wrapper.errors import DataError, listed
from llm_wrapper.readers import MIB, read_json, read_json_lines, read_text
from llm_wrapper.report import gallery, grid, sections
from llm_wrapper.report.evaluations import StoredEvaluation, facts_of_evaluation, load_evaluations
from llm_wrapper.report.formatting import Figure, PageSection, Table, escape_markdown, number
from llm_wrapper.report.gallery import Gallery
from llm_wrapper.report.plots import Chart, Series
from llm_wrapper.storage import inside
from llm_wrapper.terminal import printable

HTML = "report.html"
MARKDOWN = "report.md"

_TEMPLATES = Path(__file__).parent / "templates"

_SUMMARY = (sections.results, sections.advice)
_DETAILS = (
    sections.differences,
    sections.errors,
    sections.positions,
    sections.reorderings,
    sections.slices,
    sections.confidence,
)
"""They are folded: the page begins with the numbers, what is wrong, and its cases."""

_MOST_CASES = 12  # of each outcome in `report.md`
_MOST_LINES = 12  # of the table of a training
_LARGEST = 1e15
"""An axis to 1e300 has no ticks, and no loss or step is that large."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """One evaluation, ready to be written; `empty` names what has no data and is not shown."""

    name: str
    summary: Sequence[PageSection]
    gallery: Gallery | None
    details: Sequence[PageSection]
    empty: Sequence[str]


def write_report(folder: Path, roots: Sequence[Path] = (Path("data"),)) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into a run folder and return their paths.

    Both are made of what the folder holds, without time stamps: made again, they are the same. The gallery's pictures,
    and transfer matrices and curves that name the run, are added to the folder first, where they are at hand.

    Args:
        folder: The run.
        roots: Folders that pictures of the data set may come from.

    Raises:
        RunError: If the folder holds no predictions.
        DataError: If one of its files is damaged.
    """
    found = load_evaluations(folder)
    title = _title(found[0].recipe)
    # First what is only read: a damaged file is known before anything is computed.
    facts = facts_of_run(folder)
    grid.add_studies(folder)
    further, empty = _filled([learning_curve(folder), *grid.study_sections(folder)])
    shown = [_prepare(folder, each, roots) for each in found]
    style, script = ((_TEMPLATES / f"report.{suffix}").read_text("utf-8").strip() for suffix in ("css", "js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name == f"{HTML}.j2",
        # Write out what would turn the direction of a page's text around; markup of our own passes.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(markdown=escape_markdown, printable=printable)
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    values = {"title": title, "parts": shown, "further": further, "empty": empty, "facts": facts, "style": style,
              "script": script, "script_hash": script_hash, "most_cases": _MOST_CASES}  # fmt: skip
    for name in (HTML, MARKDOWN):
        text = environment.get_template(f"{name}.j2").render(values)
        storage.write_atomic(folder / name, f"{text.rstrip()}\n")
    return folder / HTML, folder / MARKDOWN


def _title(recipe: Mapping[str, Any]) -> str:
    """Return detector, LLM and data of a run; never the folder's name, which may change without the run."""
    detector = recipe.get("detector") or {}
    also = (recipe.get("ensemble") or {}).get("also") or {}
    vlm = "+".join(str(name) for name in (detector.get("label") or detector.get("name"), *also) if name)
    llm = recipe.get("llm") or {}
    data = (recipe.get("data") or {}).get("name")
    known = [str(name) for name in (vlm, llm.get("model") or llm.get("backend"), data) if name]
    return " / ".join(["LLM-wrapper report", *known])


def _prepare(folder: Path, evaluation: StoredEvaluation, roots: Sequence[Path]) -> _Shown:
    split = str(evaluation.facts.get("split") or evaluation.name)
    pictures = gallery.add_thumbnails(folder, evaluation.recipe, split, gallery.picture_ids(evaluation), roots)
    summary, empty = _filled([build(evaluation) for build in _SUMMARY])
    cases = gallery.choose_cases(evaluation, pictures)
    details, more = _filled([build(evaluation) for build in _DETAILS])
    return _Shown(evaluation.name, summary, cases, details, [*empty, *["Gallery"] * (cases is None), *more])


def _filled(found: Sequence[PageSection]) -> tuple[list[PageSection], list[str]]:
    """Return the sections that have data, and the names of what has none."""
    both = [section.filled() for section in found]
    return [section for section, _ in both if section], [name for _, empty in both for name in empty]


def facts_of_run(folder: Path) -> list[tuple[str, str]]:
    """Return title -> text of what the run was made by."""
    found = []
    if (folder / "recipe.yaml").exists():
        found.append(("Recipe", read_text(inside(folder, "recipe.yaml"), most=MIB)))
    if (folder / "manifest.json").exists():
        found.append(("Training", _to_yaml(read_json(inside(folder, "manifest.json"), most=64 * MIB))))
    for path in sorted(folder.glob("predictions-*.parquet")):
        facts = {key: value for key, value in facts_of_evaluation(folder, path).items() if key != "rows"}
        if facts:
            found.append((f"Evaluation {path.stem.removeprefix('predictions-')}", _to_yaml(facts)))
    return found


def _to_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def learning_curve(folder: Path) -> PageSection:
    """Loss and accuracy of the tokens against steps, from the run's own log.

    Raises:
        DataError: If the log is damaged.
    """
    logged = [row for row in _read_log(folder) if row.get("loss") is not None]
    log = [row for row in logged if _is_drawable(row["loss"])]
    steps = [row["step"] for row in log]
    # The column's name changed once.
    shares = [row.get("token_accuracy", row.get("mean_token_accuracy")) for row in log]
    known = {i: 100 * share for i, share in enumerate(shares) if _is_drawable(share)}
    right = Series("right tokens", [steps[i] for i in known], list(known.values()))
    losses = Series("loss", steps, [row["loss"] for row in log])
    accuracy = Chart([right], x="step", y="right tokens in percent", top=105)
    figures = [
        Figure("Loss in training", Chart([losses], x="step", y="loss")),
        Figure("Right tokens of the answers in training", accuracy),
    ]
    indices = np.unique(np.linspace(0, len(log) - 1, _MOST_LINES).astype(int)).tolist() if log else []
    lines = [(f"{steps[i]}", number(log[i]["loss"]), number(shares[i] if i in known else None)) for i in indices]
    text = ["Measured while training, on the batch that is learned from."] if log else []
    if len(log) < len(logged):
        text.append(f"{len(logged) - len(log)} of {len(logged)} losses are no finite number and are not drawn.")
    return PageSection("Learning curve", text, [Table("Training", ("step", "loss", "right tokens"), lines)], figures)


def _read_log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "train_log.jsonl"
    if not path.exists():
        return []
    lines, problems = read_json_lines(inside(folder, path), nan=True)
    problems += [
        f"line {place}: no object with a step"
        for place, row in lines
        if not isinstance(row, dict) or not _is_drawable(row.get("step"))
    ]
    if problems:
        raise DataError(listed(f"{path} is damaged or cut off; remove it, and the report goes without", problems))
    return [row for _, row in lines]


def _is_drawable(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
