"""A comparison of methods in the reports of its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.errors import DataError
from llm_wrapper.report import methods, studies
from llm_wrapper.storage import read_json, write_json
from tests.evaluation.test_methods import measured
from tests.report.test_html import four_cases, make_run, written


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
    gives = found.tables[0]
    assert all({len(line) for line in table.rows} == {len(table.head)} for table in found.tables)
    assert [line[0] for line in gives.rows][:5] == ["detector", "rule", "oracle", "untrained", "glov"]
    given, taken = ({line[0]: line[1:] for line in table.rows} for table in found.tables)
    assert given["glov"][2] == "8"
    assert [*taken["glov"]] == ["3,000", "100", "12", "61", "0.500"]
    assert given["lora"][0] == "failed"
    assert "lora" not in taken
    assert "retrieved: not surely better than the untrained LLM" in found.notes
    assert "first <b> only" in found.notes
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


def test_what_is_said_stands_under_the_table_in_both_pages(row: Path) -> None:
    make_run(row, four_cases())
    text, markdown = written(row)
    for page, note in ((text, "<li>first &lt;b&gt; only</li>"), (markdown, "- first &lt;b> only")):
        assert page.count(note) == 1
        assert page.index("P@1 of each method") < page.index(note)
