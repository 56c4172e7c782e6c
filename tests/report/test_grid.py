"""Reports of grids: their JSON, tables and pictures, and their copies in the folders of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.grid import Cell, Column, Filled, System, compare_cells
from llm_wrapper.evaluation.methods import Cost, MethodResult
from llm_wrapper.metrics import summarize
from llm_wrapper.readers import read_json
from llm_wrapper.records import Prediction
from llm_wrapper.report import grid
from llm_wrapper.report.formatting import PageSection
from llm_wrapper.report.grid_values import CurvePoint, curve_values, methods_values
from llm_wrapper.storage import write_json
from tests.evaluation.made import TARGET, WRONG, made
from tests.report.test_html import four_cases, make_run, written


def result(name: str, p_at_1: float | None) -> dict[str, Any]:
    ci = None if p_at_1 is None else [p_at_1 - 0.1, p_at_1 + 0.1]
    return {"name": name, "n": 60, "p_at_1": p_at_1, "ci": ci, "by_kind": {}}


def gain(value: float) -> dict[str, Any]:
    estimate = {"value": value, "ci": [value - 0.05, value + 0.05], "n": 60}
    return {"a": "x", "b": "y", "p_at_1": estimate, "mcnemar": {"n": 60, "only_a": 1, "only_b": 2, "p_value": 0.0001}}


def cell(system: str, column: str, p_at_1: float, **changes: Any) -> dict[str, Any]:
    empty = {"at_home": False, "problem": None, "over_detector": None, "over_untrained": None, "predictions": "x"}
    return {"system": system, "column": column, "result": result(system, p_at_1), **empty, **changes}


def matrix(run: str) -> dict[str, Any]:
    cells = [
        cell("detector", "a / d", 0.25),
        cell("detector", "b / d", 0.5),
        cell("tuned", "a / d", 0.75, at_home=True, over_detector=gain(0.5)),
        cell("tuned", "b / d", 0.0, result=None, problem="scores are not shown <b>"),
    ]
    contributions = [{"system": "tuned", "detector": "a", "gain": gain(0.0625)}]
    return {"cells": cells, "contributions": contributions, "runs": {f"runs/{run}": {}}, "notes": ["first 60 only"]}


def curve(run: str | None) -> dict[str, Any]:
    points = [
        {"name": f"step-{n}", "series": "one training", "samples": n, "steps": n, "result": result("t", 0.5 + n / 1000),
         "over_untrained": gain(0.25)}
        for n in (100, 300)
    ]  # fmt: skip
    others = [result("detector", 0.25), result("untrained", 0.125), result("oracle", None)]
    return {"column": "a / d", "others": others, "points": points, "run": run, "notes": []}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, and what was made of the first."""
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "transfer" / "t" / "matrix.json", matrix("mine"))
    write_json(tmp_path / "ensemble" / "e" / "matrix.json", matrix("mine"))
    write_json(tmp_path / "curve" / "c" / "curve.json", curve("runs/mine"))
    write_json(tmp_path / "curve" / "nobodys" / "curve.json", curve(None))
    return tmp_path


def test_a_run_tells_of_what_it_is_in_and_of_nothing_else(runs: Path) -> None:
    grid.add_studies(runs / "other")
    assert grid.study_sections(runs / "other") == []
    assert not (runs / "other" / grid.STUDIES).exists()
    grid.add_studies(runs / "mine")
    found = grid.study_sections(runs / "mine")
    assert [each.title for each in found] == ["Curve: c", "Ensemble: e", "Transfer: t"]
    assert all(figure.svg.startswith("<svg") for each in found for figure in each.figures)
    drawn, _, transfer = found
    p_at_1, over, adds = transfer.tables
    assert p_at_1.rows == [
        ["detector", "25.0 (15.0 to 35.0)", "50.0 (40.0 to 60.0)"],
        ["tuned", "75.0 (65.0 to 85.0) *", "no data"],
    ]
    assert over.rows == [["tuned", "+50.0 (+45.0 to +55.0), p < 0.001", ""]]
    assert adds.rows == [("tuned", "a", "+6.2 (+1.2 to +11.2), p < 0.001")]
    assert {"tuned on b / d: scores are not shown <b>", "first 60 only"} <= set(transfer.notes)
    assert [(row[0], row[1], row[3].split()[0]) for row in drawn.tables[0].rows] == [
        ("detector", "", "25.0"),
        ("untrained", "", "12.5"),
        ("oracle", "", "no"),
        ("step-100", "100", "60.0"),
        ("step-300", "300", "80.0"),
    ]


def test_what_is_kept_needs_the_study_no_more_and_is_renewed_while_it_is_there(runs: Path) -> None:
    grid.add_studies(runs / "mine")
    write_json(runs / "transfer" / "t" / "matrix.json", {**matrix("mine"), "notes": ["made again"]})
    grid.add_studies(runs / "mine")
    (runs / "transfer" / "t" / "matrix.json").unlink()
    grid.add_studies(runs / "mine")
    kept = runs / "mine" / grid.STUDIES / "transfer-t.json"
    assert read_json(kept)["notes"] == ["made again"]


def test_a_comparison_of_another_question_is_found_beside_the_first(tmp_path: Path) -> None:
    rows = [{"name": "lora", "result": None, "over_untrained": None, "tokens": None, "took": None}]
    found = {"column": "a / d", "others": [], "said": []}
    for name, run in (("mine", "mine"), ("mine-1a2b3c4d", "mine"), ("mine-2", "mine-2")):
        folder = f"runs/methods/{run}/lora"
        write_json(tmp_path / name / "methods.json", {**found, "rows": [{**rows[0], "run": folder}]})
    (tmp_path / "mine" / "lora").mkdir()
    grid.add_studies(tmp_path / "mine" / "lora")
    titles = [each.title for each in grid.study_sections(tmp_path / "mine" / "lora")]
    assert titles == ["Methods: mine-1a2b3c4d", "Methods: mine"]


@pytest.mark.parametrize("content", [[], {"cells": 3}, {}], ids=["list", "other-type", "empty"])
def test_a_damaged_study_is_named(runs: Path, content: object) -> None:
    write_json(runs / "mine" / grid.STUDIES / "transfer-x.json", content)
    with pytest.raises(DataError, match=r"transfer-x\.json is no result of `transfer`"):
        grid.study_sections(runs / "mine")


# Curves and comparisons of methods, from cells to tables and pictures

NUM = 10
OTHERS = {"detector": 3, "rule": 4, "oracle": 10, "untrained": 1}
POINTS = [
    CurvePoint("step-1", "one", 100, 1, Path("a")),
    CurvePoint("step-2", "one", 200, 2, Path("b")),
    CurvePoint("samples-50", "each", 50, 1, Path("c")),
]


def rows(system: str, num_right: int) -> list[Prediction]:
    return [made(f"s{i}", TARGET if i < num_right else WRONG, system=system) for i in range(NUM)]


def grid_cells(right: dict[str, int | str], *, previous: dict[str, str] | None = None) -> list[Cell]:
    """Cells of one column, from the number of right predictions of each system, or its problem."""
    column = Column("toy / toy", [])
    filled: Filled = {
        (name, column.name): found if isinstance(found, str) else (Path(f"{name}.parquet"), rows(name, found))
        for name, found in right.items()
    }
    systems = [
        System(name, {}, lambda: lambda _: [], baseline="untrained", previous=(previous or {}).get(name))
        for name in right
    ]
    return compare_cells(filled, systems, [column])


def drawn_curve(points: list[CurvePoint] = POINTS) -> dict[str, Any]:
    right: dict[str, int | str] = {**OTHERS, "step-1": 5, "step-2": 8, "samples-50": 2}
    return curve_values("toy / toy", grid_cells(right, previous={"step-2": "step-1"}), points)


def done(name: str, *, tokens: int | None = 100, notes: tuple[str, ...] = ()) -> MethodResult:
    costs = (Cost(3_000, 61.0), Cost(tokens, 5.0))
    return MethodResult(Path("x") / name, [], 8, *costs, NUM, None if tokens is None else 12.5, notes)


def compared_methods() -> dict[str, Any]:
    right: dict[str, int | str] = {"untrained": 4, "glov": 9, "retrieved": 4, "ia3": 0, "dora": 5, "lora": "no | room"}
    results: dict[str, MethodResult | str] = {name: done(name) for name in right}
    results |= {"glov": done("glov", notes=("found <in> round 3",)), "dora": done("dora", tokens=None)}
    results["lora"] = "no | room"
    others = [summarize(rows(name, count)) for name, count in (("detector", 3), ("rule", 4), ("oracle", 10))]
    return methods_values("toy / toy val", others, grid_cells(right), results)


def cells_of(section: PageSection, table: int = 0) -> dict[str, list[str]]:
    return {row[0]: [*row[1:]] for row in section.tables[table].rows}


def test_a_curve_has_a_line_for_each_point_with_its_gains() -> None:
    values = drawn_curve()
    section = grid.study_section("curve", "c", {**values, "notes": ["a | note"]})
    assert "on toy / toy: 10 expressions with a target, 10 images" in section.text[0]
    lines = cells_of(section)
    assert [*lines] == ["detector", "rule", "oracle", "untrained", "step-1", "step-2", "samples-50"]
    assert lines["step-2"][:2] == ["200", "2"]
    assert [lines["step-2"][place].partition(" ")[0] for place in (2, 3, 4)] == ["80.0", "+70.0", "+30.0"]
    assert lines["samples-50"][4] == lines["step-1"][4] == ""
    assert section.markdown().endswith("- a \\| note\n")
    assert [(row["samples"], row["result"]["p_at_1"]) for row in values["points"]] == [
        (100, 0.5),
        (200, 0.8),
        (50, 0.2),
    ]
    assert values["points"][1]["over_previous"]["b"] == "step-1"


def test_methods_that_do_not_help_or_fail_are_called_so() -> None:
    section = grid.study_section("methods", "m", {**compared_methods(), "notes": ["the first 10 only"]})
    gives, costs = cells_of(section), cells_of(section, 1)
    assert [*gives][:4] == ["detector", "rule", "oracle", "untrained"]
    assert [cell.partition(" ")[0] for cell in gives["glov"]] == ["90.0", "+50.0", "8"]
    assert costs["glov"] == ["3,000", "100", "12", "61", "0.500"]
    assert costs["dora"] == ["3,000", "no data", "no data", "61", "0.500"]
    assert gives["lora"] == ["failed", "", ""]
    assert "lora" not in costs
    assert section.notes == [
        "glov: found <in> round 3",
        "retrieved: not surely better than the untrained LLM",
        "ia3: worse than the untrained LLM",
        "dora: not surely better than the untrained LLM",
        "lora failed: no | room; the same command tries it again",
        "the first 10 only",
    ]
    levels, compute = (figure.svg for figure in section.figures)
    assert "lora (failed)" in levels
    assert "dora" in levels
    assert "dora" not in compute, "its tokens are not known"


def test_without_the_untrained_llm_there_are_no_gains() -> None:
    others = [summarize(rows("detector", 3))]
    values = methods_values("x", others, grid_cells({"untrained": "no LLM"}), {"untrained": "no LLM"})
    assert values["rows"] == [
        {"name": "untrained", "problem": "no LLM", "result": None, "over_untrained": None, "tokens": None, "took": None,
         "run": None}
    ]  # fmt: skip
    assert values["said"][-1] == "there are no gains, as there is no untrained LLM to compare with"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transfer", "curve", "methods"])
def test_a_grid_is_written_the_same_each_time_whatever_the_style(tmp_path: Path, kind: str) -> None:
    import matplotlib

    values = {"transfer": matrix("mine"), "curve": drawn_curve(), "methods": compared_methods()}[kind]
    grid.write_study(kind, tmp_path / "a" / "x", values, Console(quiet=True))
    with matplotlib.rc_context({"font.size": 20, "figure.facecolor": "red"}):
        grid.write_study(kind, tmp_path / "b" / "x", values, Console(quiet=True))
    written = {path.name: path.read_bytes() for path in (tmp_path / "a" / "x").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "b" / "x").iterdir()} == written
    suffixes = {"md", "json", "png", "svg"} if kind == "methods" else {"md", "json", "png"}
    assert {name.partition(".")[2] for name in written} == suffixes
    assert all(content.startswith(b"\x89PNG") for name, content in written.items() if name.endswith("png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "points",
    [
        pytest.param([], id="none"),
        pytest.param([CurvePoint("step-1", "of dóts_$ _^", 0, 1, Path("a"))], id="nothing-seen"),
        pytest.param([replace(POINTS[0], samples=1000), replace(POINTS[1], samples=1001)], id="close"),
    ],
)
def test_hard_curves_can_be_drawn(points: list[CurvePoint], tmp_path: Path) -> None:
    grid.write_study("curve", tmp_path, drawn_curve(points), Console(quiet=True))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def method_run(tmp_path: Path) -> Path:
    """The folder of a row, under its comparison."""
    write_json(tmp_path / "small" / "methods.json", {**compared_methods(), "notes": ["first <b> only"]})
    found = tmp_path / "small" / "glov"
    found.mkdir()
    return found


def test_a_row_shows_its_comparison_and_other_folders_beside_it_do_not(method_run: Path) -> None:
    other = method_run.parent / "other"
    other.mkdir()
    for folder in (method_run, other):
        grid.add_studies(folder)
    (found,) = grid.study_sections(method_run)
    assert found.title == "Methods: small"
    assert "first <b> only" in found.notes
    assert grid.study_sections(other) == []
    kept = method_run / grid.STUDIES / "methods-small.json"
    write_json(kept, {**read_json(kept), "rows": 3})
    with pytest.raises(DataError, match=r"methods-small\.json is no result of `methods`"):
        grid.study_sections(method_run)


@pytest.mark.slow
def test_notes_of_a_comparison_are_under_its_table_in_both_pages(method_run: Path) -> None:
    make_run(method_run, four_cases())
    text, markdown = written(method_run)
    for page, note in ((text, "<li>first &lt;b&gt; only</li>"), (markdown, "- first &lt;b> only")):
        assert page.count(note) == 1
        assert page.index("P@1 of each method") < page.index(note)
