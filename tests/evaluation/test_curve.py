"""The points of a curve, held against the untrained LLM and against the point before, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.errors import PromptError
from llm_wrapper.evaluation.curve import Curve, Point, measure
from llm_wrapper.evaluation.transfer import Column, Filled
from llm_wrapper.records import Prediction
from llm_wrapper.report import curve as drawn
from tests.evaluation.made import TARGET, WRONG, made

COLUMN = Column("toy / toy", [])
NUM = 10


def rows(system: str, num_right: int) -> list[Prediction]:
    return [made(f"s{i}", TARGET if i < num_right else WRONG, system=system) for i in range(NUM)]


def filled(**right: int) -> Filled:
    return {(name, COLUMN.name): (Path(f"{name}.parquet"), rows(name, count)) for name, count in right.items()}


OTHERS = {"detector": 3, "rule": 4, "oracle": 10, "untrained": 1}
POINTS = [
    Point("step-1", "one", 100, 1, Path("a")),
    Point("step-2", "one", 200, 2, Path("b")),
    Point("samples-50", "each", 50, 1, Path("c")),
]


def measured(points: list[Point] = POINTS) -> Curve:
    return measure(filled(**OTHERS, **{"step-1": 5, "step-2": 8, "samples-50": 2}), points, COLUMN)


def test_gains_are_over_the_untrained_and_over_the_point_before_in_the_series() -> None:
    found = measured()
    assert {name: each.p_at_1 for name, each in found.others.items()} == {n: c / NUM for n, c in OTHERS.items()}
    assert [each.summary.p_at_1 for each in found.points] == [0.5, 0.8, 0.2]
    assert [each.over_untrained.p_at_1.value for each in found.points] == pytest.approx([0.4, 0.7, 0.1])
    assert [
        each.over_previous and (each.over_previous.b, each.over_previous.p_at_1.value) for each in found.points
    ] == [
        None,
        ("step-1", pytest.approx(0.3)),
        None,
    ]


def test_a_prompt_that_cannot_be_rendered_says_so() -> None:
    cells = {**filled(**OTHERS), ("step-1", COLUMN.name): "no scores to show"}
    with pytest.raises(PromptError, match="step-1 on toy / toy: no scores to show"):
        measure(cells, POINTS[:1], COLUMN)


def test_the_table_has_a_line_for_each_point_and_the_notes() -> None:
    text = drawn.markdown(measured(), ["a | note"])
    lines = text.splitlines()
    assert "toy / toy: 10 expressions with a target, 10 images" in lines[0]
    assert [line.split(" | ")[0] for line in lines[4:11]] == [
        *(f"| {name}" for name in ("detector", "rule", "oracle", "untrained")),
        *(f"| {point.name}" for point in POINTS),
    ]
    assert lines[9].startswith("| step-2 | 200 | 2 | 80.0 (")
    assert "| +70.0 (" in lines[9]
    assert "| +30.0 (" in lines[9]
    assert lines[10].endswith("|  |")
    assert text.endswith("- a \\| note\n")


def test_json_has_the_numbers_of_the_table() -> None:
    found = drawn.plain(measured())
    assert [row["name"] for row in found["others"]] == ["detector", "rule", "oracle", "untrained"]
    assert [(row["samples"], row["result"]["p_at_1"]) for row in found["points"]] == [(100, 0.5), (200, 0.8), (50, 0.2)]
    assert found["points"][1]["over_previous"]["b"] == "step-1"


def test_the_plot_is_the_same_each_time_whatever_the_style(tmp_path: Path) -> None:
    import matplotlib

    drawn.plot(measured(), tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 20, "figure.facecolor": "red"}):
        drawn.plot(measured(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn.plot(measured(POINTS[:1]), tmp_path / "c.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([], id="none"),
        pytest.param([Point("step-1", "of dóts_$ _^", 0, 1, Path("a"))], id="nothing-seen"),
        pytest.param([Point("step-1", "x", 1000, 1, Path("a")), Point("step-2", "x", 1001, 2, Path("b"))], id="close"),
    ],
)
def test_hard_curves_can_be_drawn(points: list[Point], tmp_path: Path) -> None:
    drawn.plot(measured(points), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
