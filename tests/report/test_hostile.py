"""A run folder of a stranger: the report of it is a safe page or a typed error, and holds no file from elsewhere."""

from __future__ import annotations

import base64
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_wrapper import datasets, runs
from llm_wrapper.errors import DataError, LLMWrapperError
from llm_wrapper.records import Box, Candidate
from llm_wrapper.report import evaluations, gallery, grid, page
from llm_wrapper.report.formatting import escape_markdown
from llm_wrapper.report.plots import MAX_CELLS
from llm_wrapper.storage import write_json
from tests.report.test_grid import cell, curve, matrix, result
from tests.report.test_html import RECIPE, WH, Seen, data_set, four_cases, make_run, predicted, written

SECRET = "secret-of-the-user"
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000

TEXTS = [
    pytest.param("<script>alert(1)</script>", id="script"),
    pytest.param("</pre></svg></title><img src=x onerror=alert(1)>", id="end-tags"),
    pytest.param('</pre></script><script>alert(1)</script><img src=x onerror="a(2)">\'"|\n![x](http://evil.example/x)',
                 id="all-at-once"),
    pytest.param(r"$\frac{1}{", id="math"),
    pytest.param("[bold]x[/nothing]", id="rich-markup"),
    pytest.param("\x1b]52;c;ZXZpbA==\x07", id="clipboard"),
    pytest.param("a\n\n# b\r\n| c | d |", id="lines"),
    pytest.param("\u202egnp.exe\u2066", id="direction"),
    pytest.param("https://evil.example/x www.evil.example", id="address"),
    pytest.param("[x](javascript:alert(1)) ![y](//evil.example/y.png)", id="links"),
    pytest.param("\\", id="backslash"),
    pytest.param("_" + "x" * 5_000, id="long"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "run", four_cases())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret.txt"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


# names and texts


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", TEXTS)
def test_text_of_a_run_stays_text_in_every_output(tmp_path: Path, text: str) -> None:
    named = {"text": text, "kind": text, "failure": text, "reasoning": text}
    rows = [*four_cases(**named), *(predicted("z", number, right=True, **named) for number in range(4))]
    rows = [replace(row, system=f"{row.system}{text}") for row in rows]
    recipe = {**RECIPE, "llm": {"model": text}, "detector": {"name": text}}
    folder = make_run(tmp_path / "run", rows, recipe=recipe)
    (folder / "recipe.yaml").write_text(f"# {text}", "utf-8")
    write_json(folder / "manifest.json", {"git": text})
    found = matrix("run")
    found["cells"][0] |= {"system": text, "column": f"{text} / b"}
    write_json(folder / grid.STUDIES / "transfer-x.json", {**found, "notes": [text]})
    html, markdown = written(folder)
    seen = Seen(html)
    assert (seen.count("script"), seen.count("img")) == (1, 0)
    assert not [name for _, each in seen.tags for name in each if name.startswith("on")]
    for output in (html, markdown):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", output)
    prose = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert not re.search(r"<script|<img|https?://|www\.e|(?<!\\)\]\(|\n# b", prose)
    if "<script>" in text:  # it is shown, not left out
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert "alert(1)" in prose.replace("\\", "")
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("| ")]
    assert all(len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 for lines in tables)


def test_a_reader_finds_no_link_and_no_html_in_the_markdown() -> None:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    for param in TEXTS:
        (text,) = param.values
        tokens = parser.parse(f"- {escape_markdown(str(text))}\n\n| a |\n| --- |\n| {escape_markdown(str(text))} |\n")
        inline = [child.type for token in tokens for child in token.children or ()]
        assert set(inline) <= {"text", "text_special"}, (text, inline)
        assert [token.type for token in tokens].count("td_open") == 1
        assert not {"html_block", "heading_open", "hr"} & {token.type for token in tokens}


# files that lead elsewhere

LINKS = [
    pytest.param("recipe.yaml", id="recipe"),
    pytest.param("manifest.json", id="manifest"),
    pytest.param("report-val.json", id="facts"),
    pytest.param("predictions-val.parquet", id="predictions"),
    pytest.param("train_log.jsonl", id="log"),
    pytest.param(gallery.FILE, id="gallery"),
    pytest.param(f"{grid.STUDIES}/curve-x.json", id="study"),
    pytest.param(f"{runs.COMPARED}/other/predictions-val.parquet", id="compared"),
    pytest.param(f"{runs.COMPARED}/other/report-val.json", id="compared-facts"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leaves_the_run_is_not_followed(folder: Path, secret: Path, name: str) -> None:
    evaluations.add_comparison(folder, make_run(folder.parent / "other", four_cases()[4:]))
    path = folder / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(os.path.relpath(secret, path.parent))
    with pytest.raises(DataError, match="lies outside"):
        page.write_report(folder)
    assert not (folder / page.HTML).exists()


@pytest.mark.parametrize("kind", ["studies", "compared"])
def test_nothing_is_written_through_a_linked_folder(folder: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / kind).symlink_to(elsewhere)
    write_json(folder.parent / "curve" / "c" / "curve.json", curve("runs/run"))
    other = make_run(tmp_path / "other", four_cases())
    with pytest.raises(DataError, match="lies outside"):
        grid.add_studies(folder) if kind == "studies" else evaluations.add_comparison(folder, other)
    assert list(elsewhere.iterdir()) == []


def pictures(run: Path, data: dict[str, Any], *roots: Path) -> dict[str, gallery.Thumbnail]:
    return gallery.add_thumbnails(run, {"data": data}, "val", {f"i{n}": f"s{n}" for n in range(4)}, roots)


@pytest.mark.parametrize("how", ["absolute", "relative", "link", "images-folder", "data-set-elsewhere"])
def test_no_picture_from_outside_the_named_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    private, named = tmp_path / "home", tmp_path / "data"
    private.mkdir()
    Image.new("RGB", WH, "red").save(private / "secret.png")
    image = str(private / "secret.png") if how == "absolute" else "../home/secret.png"
    data = data_set(private if how == "data-set-elsewhere" else named, image)
    if how == "link":
        data = data_set(named, "here.png")
        (named / "here.png").symlink_to(private / "secret.png")
    if how == "images-folder":
        data = {**data_set(named, "secret.png"), "settings": {"images": str(private)}}
    assert pictures(tmp_path, data, named) == {}
    assert not (tmp_path / gallery.FILE).exists()
    assert "4 pictures of the gallery are missing: " in caplog.text
    assert re.search(
        f"does not lie under {named}; .*llm-wrapper report RUN --data-root|lies outside {named}", caplog.text
    )


def test_pictures_come_from_every_folder_that_is_named(tmp_path: Path) -> None:
    elsewhere, named = tmp_path / "images", tmp_path / "data"
    elsewhere.mkdir()
    Image.new("RGB", WH, "red").save(elsewhere / "a.png")
    data = {**data_set(named, "a.png"), "settings": {"images": str(elsewhere)}}
    assert len(pictures(tmp_path, data, named, elsewhere)) == 4


SETTINGS = [
    pytest.param({"reader": "hub_refs", "settings": {"repo": "evil/data"}}, "a report fetches nothing", id="hub"),
    pytest.param({"reader": "ref_l4", "settings": {"repo": "evil/data"}}, "a report fetches nothing", id="hub-images"),
    pytest.param({"reader": "hub_refs", "settings": {"repo": 7}}, "a report fetches nothing", id="hub-number"),
    pytest.param({"reader": "refer", "settings": {"name": 7, "split_by": []}}, "", id="wrong-types"),
    pytest.param({"reader": "jsonl", "settings": {"images": ["a"]}}, "", id="list-of-folders"),
    pytest.param({"reader": "none"}, "no data reader is named", id="no-reader"),
    pytest.param({"reader": "toy", "root": "a\x00b"}, "", id="nul"),
    pytest.param({"reader": "toy", "root": "x" * 5_000}, "", id="long-name"),
    pytest.param({"reader": "toy", "root": 7}, "", id="root-number"),
    pytest.param({"reader": []}, "", id="reader-list"),
]


@pytest.mark.parametrize(("section", "message"), SETTINGS)
def test_a_recipe_that_names_a_strange_data_set_gives_no_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    section: dict[str, Any],
    message: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network is used")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    (tmp_path / "data" / "x").mkdir(parents=True)
    data = {"name": "x", "root": str(tmp_path / "data" / "x"), **section}
    assert pictures(tmp_path, data, tmp_path / "data") == {}
    assert "4 pictures of the gallery are missing: " in caplog.text
    assert message in caplog.text


def test_a_report_needs_no_data_set_that_would_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the data set is read"))
    assert pictures(tmp_path, {"name": "x", "reader": "hub_refs", "root": str(tmp_path / "no")}, tmp_path) == {}


# files of wrong content

CONTENTS = [
    pytest.param(name, content, id=f"{name}-{kind}")
    for name in ("manifest.json", "report-val.json", gallery.FILE, f"{grid.STUDIES}/curve-x.json")
    for kind, content in {
        "cut-off": '{"a": ',
        "not-utf8": b"\xff\xfe\x00",
        "deep": DEEP,
        "digits": f'{{"a": {LONG}}}',
        "repeated": '{"a": 1, "a": 2}',
        "nan": '{"a": NaN}',
        "empty": "",
    }.items()
]
CONTENTS += [
    pytest.param("recipe.yaml", b"\xff\xfe\x00a", id="recipe.yaml-utf16"),
    pytest.param("recipe.yaml", b"a" * (1 << 20) + b"a", id="recipe.yaml-large"),
    pytest.param("train_log.jsonl", DEEP, id="log-deep"),
    pytest.param("train_log.jsonl", "[1]\n7\n", id="log-lists"),
    pytest.param("train_log.jsonl", '{"step": 1, "lo', id="log-cut-off"),
    pytest.param("train_log.jsonl", '{"loss": 1}\n', id="log-without-step"),
    pytest.param("train_log.jsonl", '{"step": "1"}', id="log-step-text"),
    pytest.param("train_log.jsonl", f'{{"step": {LONG}}}', id="log-step-digits"),
    pytest.param("predictions-val.parquet", "PAR1", id="predictions-cut-off"),
    pytest.param("predictions-val.parquet", "", id="predictions-empty"),
    pytest.param("report-val.json", "[]", id="facts-list"),
    pytest.param("report-val.json", '{"recipe": []}', id="facts-recipe-list"),
    pytest.param("report-val.json", '{"recipe": {"candidates": {"cap": 1e999}}}', id="facts-infinite"),
    pytest.param("report-val.json", '{"notes": "x"}', id="facts-notes-text"),
    pytest.param("report-val.json", '{"recipe": {"detector": "x"}}', id="facts-detector-text"),
    pytest.param("report-val.json", '{"recipe": {"ensemble": {"also": 3}}}', id="facts-also-number"),
    pytest.param("report-val.json", '{"recipe": {"data": {"settings": []}}}', id="facts-settings-list"),
    pytest.param("report-val.json", '{"limit": "many"}', id="facts-limit-text"),
    pytest.param("report-val.json", '{"split": {"a": 1}}', id="facts-split-object"),
    pytest.param(gallery.FILE, '{"i0": [[0, 1], "aaaa"]}', id="picture-without-width"),
    pytest.param(gallery.FILE, '{"i0": [[1, 1], "\u00e9"]}', id="picture-not-ascii"),
    pytest.param(gallery.FILE, '{"i0": [[1, 1], "not base64!"]}', id="picture-not-base64"),
    pytest.param(gallery.FILE, "[]", id="pictures-list"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content"), CONTENTS)
def test_wrong_content_is_an_error_that_names_the_file(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(path.name)):
        page.write_report(folder)
    assert not (folder / page.HTML).exists()


@pytest.mark.parametrize("name", ["recipe.yaml", "manifest.json", "train_log.jsonl", "predictions-val.parquet"])
def test_a_pipe_in_place_of_a_file_does_not_block(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    read: Callable[[], object] = {
        "train_log.jsonl": lambda: page.learning_curve(folder),
        "predictions-val.parquet": lambda: evaluations.load_evaluations(folder),
    }.get(name, lambda: page.facts_of_run(folder))
    with pytest.raises(DataError, match="not a regular file"):
        read()


ROWS: list[Any] = [
    pytest.param({"probabilities": (float("nan"), 0.5)}, "a probability that is not within 0 and 1", id="nan"),
    pytest.param({"probabilities": (1e300, 0.5)}, "a probability that is not within 0 and 1", id="huge"),
    pytest.param({"probability": -1.0}, "a probability that is not within 0 and 1", id="negative"),
    pytest.param({"none_probability": float("inf")}, "a probability that is not within 0 and 1", id="infinite"),
    pytest.param({"probabilities": (1.0,)}, "1 probabilities of 2 candidates", id="too-few"),
    pytest.param({"box": Box(0, 0, 1e300, 1)}, "a box over 1e\\+09 pixels away", id="far-away"),
    pytest.param({"mass": 7.0}, "a probability that is not within 0 and 1", id="mass"),
    pytest.param({"image_wh": (0, 80)}, "an image of 0 x 80 pixels", id="no-width"),
]


@pytest.mark.parametrize(("changes", "message"), ROWS)
def test_predictions_that_no_evaluation_writes_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    first, *others = four_cases()
    make_run(tmp_path, [replace(first, **changes), *others])
    with pytest.raises(DataError, match=message) as raised:
        evaluations.load_evaluations(tmp_path)
    assert "sample 's0' of 'detector'" in str(raised.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_boxes_of_any_size_make_a_page(tmp_path: Path) -> None:
    far = Box(-1e9, -1e9, 1e9, 1e9)
    thin = Box(0, 0, 1e-150, 1e-150)
    rows = four_cases(candidates=tuple(Candidate(box, "x", 1e300, "d", "s") for box in (far, thin)), origins=(0, 1))
    text, _ = written(make_run(tmp_path, [replace(row, box=far, target=thin) for row in rows]))
    assert "nan" not in text.partition("<script>")[0].lower().replace("finance", "")


def test_too_many_systems_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, [replace(four_cases()[0], system=f"s{n}") for n in range(65)])
    with pytest.raises(DataError, match="65 systems; a report compares at most 64"):
        evaluations.load_evaluations(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["*", "[a", "x\x1b]52;c;x\x07", "<b>", "?" * 200])
def test_an_evaluation_of_any_name_makes_a_page(tmp_path: Path, name: str) -> None:
    text, markdown = written(make_run(tmp_path / "run", four_cases(), name=name))
    assert "\x1b" not in text + markdown
    assert "<b>" not in re.sub("<b>[a-z ]*</b>", "", text).partition('<p class="key">')[0]


# studies

NUMBERS = [
    pytest.param({"p_at_1": 1e300}, id="huge-share"),
    pytest.param({"ci": [0.1]}, id="one-end"),
    pytest.param({"ci": [-1e999, 1]}, id="infinite-end"),
    pytest.param({"n": 10**90}, id="huge-count"),
    pytest.param({"name": 3}, id="name-number"),
]


@pytest.mark.parametrize("changes", NUMBERS)
@pytest.mark.parametrize("kind", ["curve", "transfer"])
def test_numbers_that_no_study_holds_are_refused(folder: Path, kind: str, changes: dict[str, Any]) -> None:
    values = curve("runs/run") if kind == "curve" else matrix("run")
    wrong = {**result("detector", 0.5), **changes}
    values["others" if kind == "curve" else "cells"][0] = (
        wrong if kind == "curve" else cell("a", "b", 0.5, result=wrong)
    )
    path = folder / grid.STUDIES / f"{kind}-x.json"
    path.parent.mkdir()
    path.write_text(json.dumps(values).replace("-Infinity", "-1e999"))
    with pytest.raises(DataError, match=rf"{kind}-x\.json"):
        grid.study_sections(folder)


def test_a_matrix_too_large_to_draw_is_a_table_and_it_is_said(folder: Path) -> None:
    cells = [cell(f"s{y}", f"c{x}", 0.5) for y in range(21) for x in range(20)]
    write_json(folder / grid.STUDIES / "transfer-x.json", {"cells": cells})
    (found,) = grid.study_sections(folder)
    assert found.figures[0].svg == ""
    assert f"The heat map is not drawn: 420 cells, and {MAX_CELLS} is the most; the tables have all" in found.notes
    assert len(found.tables[0].rows) == 21


def test_a_sparse_matrix_cannot_fill_the_memory(folder: Path) -> None:
    write_json(folder / grid.STUDIES / "transfer-x.json", {"cells": [cell(f"{n}", f"{n}", 0.5) for n in range(200)]})
    with pytest.raises(DataError, match="200 rows and 200 columns: too many"):
        grid.study_sections(folder)


@pytest.mark.parametrize("rows", [3, [3], [{"run": []}], None], ids=str)
@pytest.mark.parametrize("runs", [3, ["x"], {"a": 1}, None], ids=str)
def test_a_study_that_names_runs_wrongly_is_of_no_run(folder: Path, rows: object, runs: object) -> None:
    write_json(folder.parent / "methods.json", {"rows": rows, "runs": runs, "run": 7})
    grid.add_studies(folder)
    assert not (folder / grid.STUDIES).exists()


# the log of a training


def test_losses_that_are_no_number_are_counted(folder: Path) -> None:
    losses = ["2.5", "NaN", "1e999", "0.5", '"x"', "1e300"]
    lines = [f'{{"step": {step}, "loss": {loss}}}\n' for step, loss in enumerate(losses)]
    (folder / "train_log.jsonl").write_text("".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = page.learning_curve(folder)
    assert [row[1] for row in found.tables[0].rows] == ["2.500", "0.500"]
    assert found.text[-1] == "4 of 6 losses are no finite number and are not drawn."


def test_a_picture_that_the_run_brings_is_a_picture_and_nothing_else(folder: Path) -> None:
    content = base64.b64encode(b"<svg onload=alert(1)>").decode()
    write_json(folder / gallery.FILE, {"i0": [[100, 80], content]})
    assert gallery.load_thumbnails(folder)["i0"].uri.startswith("data:image/jpeg;base64,")
    write_json(folder / gallery.FILE, {"i0": [[100, 80], '"/><script>']})
    with pytest.raises(DataError, match=re.escape(gallery.FILE)):
        gallery.load_thumbnails(folder)


@pytest.mark.slow
def test_a_page_that_cannot_be_written_is_a_typed_error(folder: Path) -> None:
    (folder / page.HTML).mkdir()
    (folder / page.HTML / "x").write_text("")
    with pytest.raises(LLMWrapperError, match=r"report\.html"):
        page.write_report(folder)
