"""Pictures of matplotlib: names are text, and no matrix fills the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from llm_wrapper.evaluation.transfer import Cell, Matrix
from llm_wrapper.report import matrix, methods
from llm_wrapper.report.plots import MAX_CELLS, figure_text
from tests.evaluation.test_methods import measured
from tests.report.test_tables import FULL

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]  # matplotlib takes seconds a picture

NAMES = [
    pytest.param(r"$\frac{1}{", id="math"),
    pytest.param("$x$ ^_{}", id="math-closed"),
    pytest.param("a\x1b[2J\x00\nb", id="control"),
    pytest.param("\u540d\u524d \U0001f993", id="other-scripts"),
    pytest.param("\u202egnp", id="direction"),
    pytest.param("x" * 10_000, id="long"),
    pytest.param("", id="empty"),
    pytest.param("_hidden", id="underscore"),
]


def grid(rows: int, columns: int, name: str = "x") -> Matrix:
    systems, places = ([f"{name}{number}" for number in range(count)] for count in (rows, columns))
    return Matrix(systems, places, {(s, c): Cell(s, c, at_home=False, summary=FULL) for s in systems for c in places})


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_text(tmp_path: Path, name: str) -> None:
    matrix.heat_map(grid(2, 2, name), tmp_path / "matrix.png")
    found = measured()
    methods.plot(
        replace(found, column=name, rows=[replace(row, name=f"{name}{row.name}") for row in found.rows]), tmp_path
    )
    for path in (tmp_path / "matrix.png", tmp_path / "methods.png"):
        with Image.open(path) as image:
            assert max(image.size) < 3_000
    assert {path.name for path in tmp_path.iterdir()} == {"matrix.png", "methods.png", "methods.svg"}


def test_a_matrix_too_large_is_not_drawn_and_no_earlier_picture_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "matrix.png"
    matrix.heat_map(grid(2, 2), out)
    assert out.is_file()
    matrix.heat_map(grid(1, MAX_CELLS + 1), out)
    assert not out.exists()
    assert f"matrix.png is not drawn: {MAX_CELLS + 1} cells, and {MAX_CELLS} is the most" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("tuned", "tuned", id="plain"),
        pytest.param("a\x1b]52;c\n b", r"a\x1b]52;c b", id="escape"),
        pytest.param("caf\u00e9 \u72d7", "caf? ?", id="letters-that-the-font-may-lack"),
        pytest.param("a" * 20 + "b" * 20, "a" * 14 + "..." + "b" * 14, id="long"),
    ],
)
def test_figure_text(name: str, text: str) -> None:
    assert figure_text(name) == text
