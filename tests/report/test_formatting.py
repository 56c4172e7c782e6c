import json
from dataclasses import replace

import pytest
from rich.console import Console

from llm_wrapper.metrics import KindSummary, Summary
from llm_wrapper.report.formatting import escape_markdown, summary_markdown, summary_table, summary_values
from llm_wrapper.statistics import Interval

FULL = Summary(
    system="flo2-llama3",
    n=4896,
    num_images=1300,
    num_without_target=0,
    p_at_1=0.68284,
    ci=Interval(0.6712, 0.69449),
    p_at_1_ge=0.6829,
    ci_ge=Interval(0.671, 0.6951),
    mean_iou=0.64449,
    oracle_p_at_1=0.96,
    decided_by={"llm": 4800, "fallback": 96},
    failures={"not_a_number": 96},
    by_kind={"spatial": KindSummary(10, 0.5, Interval(0.2, 0.8)), "color": KindSummary(1, 1.0, None)},
)
EMPTY = Summary("nothing", 0, 0, 3, None, None, None, None, None, None, {}, {}, {})


def shown(*summaries: Summary, width: int = 200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(summary_table(summaries))
    return capture.get()


def test_markdown_is_pinned() -> None:
    assert summary_markdown([FULL, EMPTY]) == (
        "| system | P@1 > 0.5 (95 % CI) | P@1 >= 0.5 | mean IoU | n | decisions | failures |\n"
        "| --- | ---: | ---: | ---: | ---: | --- | --- |\n"
        "| flo2-llama3 | 68.3 (67.1 to 69.4) | 68.3 | 0.644 | 4896 | llm 4800, fallback 96 | not_a_number 96 |\n"
        "| nothing | no data | no data | no data | 0 (+3 without target) | none | none |\n"
    )


def test_terminal_table_holds_the_same_cells() -> None:
    text = shown(FULL, EMPTY)
    for line in summary_markdown([FULL, EMPTY]).splitlines()[2:]:
        assert all(cell.strip() in text for cell in line.strip("|").split("|"))


@pytest.mark.parametrize(
    ("p_at_1", "ci", "cell"),
    [(0.68284, None, "68.3 (no CI)"), (0.0, Interval(0.0, 0.0), "0.0 (0.0 to 0.0)")],
    ids=["a-single-image", "a-true-zero"],
)
def test_no_interval_and_no_hit_are_not_missing(p_at_1: float, ci: Interval | None, cell: str) -> None:
    assert f"| {cell} |" in summary_markdown([replace(FULL, p_at_1=p_at_1, ci=ci)])


def test_hostile_names_stay_in_their_cell() -> None:
    assert r"[/x]a\x1b]52;c;x\x07\u202eb" in shown(replace(FULL, system="[/x]a\x1b]52;c;x\x07\u202eb"))
    hostile = replace(FULL, system="[bold]a|b\n<img>[/]", failures={"x|y": 1})
    assert "[bold]a|b" in shown(hostile)
    (line,) = summary_markdown([hostile]).splitlines()[2:]
    assert line.startswith("| \\[bold\\]a\\|b &lt;img>\\[/\\] |")
    assert line.replace("\\|", "").count("|") == 8


def test_rows_are_json_with_every_number_unrounded() -> None:
    full, empty = json.loads(json.dumps(summary_values([FULL, EMPTY]), allow_nan=False))
    assert full["name"] == "flo2-llama3"
    assert (full["p_at_1"], full["ci"], full["ci_ge"]) == (0.68284, [0.6712, 0.69449], [0.671, 0.6951])
    assert (full["n"], full["num_images"], full["oracle_p_at_1"]) == (4896, 1300, 0.96)
    assert full["by_kind"] == {
        "spatial": {"n": 10, "p_at_1": 0.5, "ci": [0.2, 0.8]},
        "color": {"n": 1, "p_at_1": 1.0, "ci": None},
    }
    assert (empty["p_at_1"], empty["ci"], empty["mean_iou"], empty["num_without_target"]) == (None, None, None, 3)
    assert set(full) == {"name", *Summary.__dataclass_fields__} - {"system"}


def test_tables_of_nothing_have_a_header_only() -> None:
    assert summary_markdown([]).count("\n") == 2
    assert summary_values([]) == []
    assert "system" in shown()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        pytest.param("not_a_number 96", "not_a_number 96", id="underscores-in-words"),
        pytest.param("_x_ *y* `z`", r"\_x\_ \*y\* \`z\`", id="emphasis"),
        pytest.param("+5.0 (1.2 to 3.4), P@1", "+5.0 (1.2 to 3.4), P@1", id="numbers"),
        pytest.param("-", "-", id="nothing-to-say"),
        pytest.param("http://evil.example/x", r"http\://evil\.example/x", id="address"),
        pytest.param("www.evil.example", r"www\.evil\.example", id="address-without-scheme"),
        pytest.param("me@evil.example", r"me\@evil\.example", id="mail"),
        pytest.param("<img src=x> &amp;", "&lt;img src=x> &amp;amp;", id="html"),
        pytest.param("![a](b)", r"\!\[a\](b)", id="picture"),
        pytest.param("a|b\nc", r"a\|b c", id="cell"),
        pytest.param(r"\|", r"\\\|", id="backslash"),
        pytest.param(r"$\frac{1}{2}$", r"\$\\frac{1}{2}\$", id="math"),
        pytest.param("- a", r"\- a", id="list"),
        pytest.param("1. a", r"1\. a", id="numbered-list"),
        pytest.param("---", r"\---", id="line"),
        pytest.param("a\x1b]52;c;x\x07\u202e", r"a\\x1b\]52;c;x\\x07\\u202e", id="escapes"),
    ],
)
def test_escape_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_no_interval_breaks_over_two_lines_at_80_columns() -> None:
    wide = replace(FULL, system="another-run-with-a-long-name: tuned", num_without_target=3)
    text = shown(FULL, wide, width=80)
    assert sum("68.3 (67.1 to 69.4)" in line for line in text.splitlines()) == 2
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "fallback" in text, "what breaks is not cut off"
