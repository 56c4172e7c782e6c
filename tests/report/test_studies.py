from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.errors import DataError
from llm_wrapper.report import studies
from llm_wrapper.storage import read_json, write_json


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


def test_a_run_tells_of_what_it_is_in(runs: Path) -> None:
    studies.add(runs / "mine")
    found = studies.sections(runs / "mine")
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
    assert [(row[0], row[1], row[2].split()[0]) for row in drawn.tables[0].rows] == [
        ("detector", "", "25.0"),
        ("untrained", "", "12.5"),
        ("oracle", "", "no"),
        ("step-100", "100", "60.0"),
        ("step-300", "300", "80.0"),
    ]


def test_what_is_kept_needs_the_study_no_more_and_is_renewed_while_it_is_there(runs: Path) -> None:
    studies.add(runs / "mine")
    write_json(runs / "transfer" / "t" / "matrix.json", {**matrix("mine"), "notes": ["made again"]})
    studies.add(runs / "mine")
    (runs / "transfer" / "t" / "matrix.json").unlink()
    studies.add(runs / "mine")
    kept = runs / "mine" / studies.FOLDER / "transfer-t.json"
    assert read_json(kept)["notes"] == ["made again"]


def test_a_comparison_of_another_question_is_found_beside_the_first(tmp_path: Path) -> None:
    rows = [{"name": "lora", "result": None, "over_untrained": None, "tokens": None, "took": None}]
    found = {"column": "a / d", "others": [], "said": []}
    for name, run in (("mine", "mine"), ("mine-1a2b3c4d", "mine"), ("mine-2", "mine-2")):
        folder = f"runs/methods/{run}/lora"
        write_json(tmp_path / name / "methods.json", {**found, "rows": [{**rows[0], "run": folder}]})
    (tmp_path / "mine" / "lora").mkdir()
    studies.add(tmp_path / "mine" / "lora")
    titles = [each.title for each in studies.sections(tmp_path / "mine" / "lora")]
    assert titles == ["Methods: mine-1a2b3c4d", "Methods: mine"]


def test_a_run_is_not_told_of_what_it_is_not_in(runs: Path) -> None:
    studies.add(runs / "other")
    assert studies.sections(runs / "other") == []
    assert not (runs / "other" / studies.FOLDER).exists()


@pytest.mark.parametrize("content", [[], {"cells": 3}, {}], ids=["list", "other-type", "empty"])
def test_a_damaged_study_is_named(runs: Path, content: object) -> None:
    write_json(runs / "mine" / studies.FOLDER / "transfer-x.json", content)
    with pytest.raises(DataError, match=r"transfer-x\.json is no result of `transfer`"):
        studies.sections(runs / "mine")
