"""Pictures of matplotlib: names are text, and no matrix fills the memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from llm_wrapper.report.plots import MAX_CELLS, Chart, Heat, Series, figure_text, save_plots

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


def heat(rows: int, columns: int, name: str = "x") -> Heat:
    names = [f"{name}{n}" for n in range(max(rows, columns))]
    cells = dict.fromkeys(itertools.product(range(rows), range(columns)), (50.0, "50.0"))
    return Heat(names[:rows], names[:columns], cells, frozenset({(0, 0)}))


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_text(tmp_path: Path, name: str) -> None:
    chart = Chart([Series(name, [1, 2], [3, 4]), Series("b", [1, 2], [3, 4])], "x", "y")
    plots = [heat(2, 2, name), chart, Chart([Series(name, [0], [1])], "", "y", ticks=[name])]
    for suffix in ("png", "svg"):
        save_plots(plots, tmp_path / f"all.{suffix}", title=name)
    with Image.open(tmp_path / "all.png") as image:
        assert max(image.size) < 3_600
    assert "mathdefault" not in (tmp_path / "all.svg").read_text()


def test_a_matrix_too_large_is_not_drawn_and_no_earlier_picture_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "matrix.png"
    save_plots([heat(2, 2)], out)
    assert out.is_file()
    save_plots([heat(1, MAX_CELLS + 1)], out)
    assert not out.exists()
    assert f"matrix.png is not drawn: nothing to draw, or over {MAX_CELLS} cells" in caplog.text


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
