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
from typing import Any

import jinja2
import yaml

from llm_wrapper import storage
from llm_wrapper.readers import MIB, read_json, read_text
from llm_wrapper.report import compared, confidence, gallery, sections, studies, thumbnails
from llm_wrapper.report.gallery import Gallery
from llm_wrapper.report.parts import Part, Section, Table, load
from llm_wrapper.report.tables import NO_DATA, escape_markdown
from llm_wrapper.storage import inside
from llm_wrapper.terminal import printable

__all__ = ["HTML", "MARKDOWN", "facts_of_run", "write"]

HTML = "report.html"
MARKDOWN = "report.md"

_TEMPLATES = Path(__file__).parent / "templates"

_BUILDERS = (
    sections.results,
    sections.advice,
    sections.differences,
    sections.errors,
    sections.positions,
    sections.flipped,
    sections.slices,
    confidence.confidence,
)


@dataclass(frozen=True, slots=True)
class _Shown:
    """One evaluation, ready to be written."""

    name: str
    sections: Sequence[Section]
    gallery: Gallery | None


def write(folder: Path, roots: Sequence[Path] = (Path("data"),)) -> tuple[Path, Path]:
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
    parts = load(folder)
    title = _title(parts[0].recipe)
    # First what is only read: a damaged file is known before anything is computed.
    facts = facts_of_run(folder)
    studies.add(folder)
    further = [confidence.learning(folder), *studies.sections(folder)]
    shown = [_shown(folder, part, roots) for part in parts]
    style, script = (_text(f"report.{suffix}") for suffix in ("css", "js"))
    content = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            parts=shown,
            further=further,
            facts=facts,
            no_data=NO_DATA,
            style=style,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        )
    )
    storage.write_atomic(folder / HTML, content)
    storage.write_atomic(folder / MARKDOWN, _markdown(title, shown, further, facts))
    return folder / HTML, folder / MARKDOWN


def _title(recipe: Mapping[str, Any]) -> str:
    """Return what was run on what; never the folder's name, which may change without the run."""
    detector = recipe.get("detector") or {}
    also = (recipe.get("ensemble") or {}).get("also") or {}
    vlm = "+".join(str(name) for name in (detector.get("label") or detector.get("name"), *also) if name)
    llm = recipe.get("llm") or {}
    data = (recipe.get("data") or {}).get("name")
    known = [str(name) for name in (vlm, llm.get("model") or llm.get("backend"), data) if name]
    return " / ".join(["LLM-wrapper report", *known])


def _shown(folder: Path, part: Part, roots: Sequence[Path]) -> _Shown:
    split = str(part.facts.get("split") or part.name)
    pictures = thumbnails.add_thumbnails(folder, part.recipe, split, gallery.picture_ids(part), roots)
    return _Shown(part.name, [build(part) for build in _BUILDERS], gallery.choose(part, pictures))


def facts_of_run(folder: Path) -> list[tuple[str, str]]:
    """Return title -> text of what the run was made by."""
    found = []
    if (folder / "recipe.yaml").exists():
        found.append(("Recipe", read_text(inside(folder, "recipe.yaml"), most=MIB)))
    if (folder / "manifest.json").exists():
        found.append(("Training", _yaml(read_json(inside(folder, "manifest.json"), most=64 * MIB))))
    for path in sorted(folder.glob("predictions-*.parquet")):
        facts = {key: value for key, value in compared.facts_of_evaluation(folder, path).items() if key != "rows"}
        if facts:
            found.append((f"Evaluation {path.stem.removeprefix('predictions-')}", _yaml(facts)))
    return found


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_shown_in_page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown_in_page(value: Any) -> Any:
    """Write out what would turn the direction of a page's text around; markup of our own passes."""
    return printable(value) if type(value) is str else value


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8").strip()


def _markdown(title: str, parts: Sequence[_Shown], further: Sequence[Section], facts: Sequence[tuple[str, str]]) -> str:
    lines = [f"# {escape_markdown(title)}", f"Plots and pictures are in `{HTML}` beside this file."]
    for part in parts:
        lines.append(f"## {escape_markdown(part.name)}")
        lines += [block for section in part.sections for block in _section(section)]
        lines += _cases(part.gallery)
    lines += ["## Training and more", *(block for section in further for block in _section(section))]
    for name, text in facts:
        # Indented, because no fence is longer than what foreign text can hold.
        lines += [
            f"### {escape_markdown(name)}",
            "".join(f"    {line}\n" for line in printable(text).split("\n")).rstrip(),
        ]
    return "\n\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    blocks = [f"### {escape_markdown(section.title)}", *(escape_markdown(text) for text in section.text)]
    for table in section.tables:
        blocks += [f"**{escape_markdown(table.caption)}**", _table(table)]
    if section.notes:
        blocks.append("\n".join(f"- {escape_markdown(note)}" for note in section.notes))
    return blocks


def _table(table: Table) -> str:
    if not table.rows:
        return NO_DATA
    ruler = ["---" if place in (0, *table.prose) else "---:" for place in range(len(table.head))]
    lines = [
        [escape_markdown(cell) for cell in table.head],
        ruler,
        *([escape_markdown(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cases(found: Gallery | None) -> list[str]:
    if found is None:
        return ["### Gallery", NO_DATA]
    blocks = ["### Gallery"]
    for outcome, total in found.totals.items():
        cases = [case for case in found.cases if case.outcome == outcome]
        blocks.append(f"**{outcome}** ({len(cases)} of {total} shown)")
        for case in cases:
            blocks.append(f"*{escape_markdown(case.asked.expression)}*, sample {escape_markdown(case.asked.sample_id)}")
            lines = [(str(x.index), x.label, "" if x.probability is None else f"{x.probability:.3f}", x.marks)
                     for x in case.lines]  # fmt: skip
            blocks.append(_table(Table("", ("index", "label", "probability", ""), lines)))
    return blocks
