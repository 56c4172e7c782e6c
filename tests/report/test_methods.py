"""A comparison of methods in the reports of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.artifacts import read_json, write_json
from llm_wrapper.errors import DataError
from llm_wrapper.report import methods, studies
from tests.evaluation.test_methods import measured


@pytest.fixture
def row(tmp_path: Path) -> Path:
    """The folder of a row, under the comparison."""
    write_json(tmp_path / "small" / "methods.json", {**methods.plain(measured()), "notes": ["first <b> only"]})
    found = tmp_path / "small" / "glov"
    found.mkdir()
    return found


def test_a_row_tells_of_its_comparison(row: Path) -> None:
    studies.add(row)
    (found,) = studies.sections(row)
    assert found.title == "Methods: small"
    (table,) = found.tables
    assert {len(line) for line in table.rows} == {len(table.head)}
    assert [line[0] for line in table.rows][:5] == ["detector", "rule", "oracle", "untrained", "glov"]
    cells = {line[0]: line for line in table.rows}
    assert [*cells["glov"][3:]] == ["8", "3,000", "61", "0.500", "12"]
    assert cells["lora"][1] == "failed"
    assert "retrieved: not surely better than the untrained LLM" in found.text
    assert "first <b> only" in found.text
    assert found.figures[0].svg.startswith("<svg")
    assert "dora" not in found.figures[0].svg, "its tokens are not known"


def test_other_folders_beside_the_rows_are_none(row: Path) -> None:
    other = row.parent / "other"
    other.mkdir()
    studies.add(other)
    assert studies.sections(other) == []


def test_a_damaged_comparison_is_named(row: Path) -> None:
    studies.add(row)
    kept = row / studies.FOLDER / "methods-small.json"
    write_json(kept, {**read_json(kept), "rows": 3})
    with pytest.raises(DataError, match=r"methods-small\.json is no result of `methods`"):
        studies.sections(row)
