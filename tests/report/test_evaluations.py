from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import runs
from llm_wrapper.errors import DataError, RunError
from llm_wrapper.records import Prediction
from llm_wrapper.report import evaluations, sections
from llm_wrapper.report.evaluations import StoredEvaluation, load_evaluations
from llm_wrapper.storage import write_json
from tests.report.test_html import RECIPE, WRONG, four_cases, make_run, predicted

FOREIGN: dict[str, Any] = {"candidates": (), "origins": None, "probabilities": None, "probability": None}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "mine", four_cases())


def beside(
    tmp_path: Path, run: Path, rows: list[Prediction], recipe: dict[str, Any], name: str = "other"
) -> StoredEvaluation:
    """The evaluation of a run beside another one with these rows and this recipe."""
    evaluations.add_comparison(run, make_run(tmp_path / name, rows, recipe=recipe))
    (part,) = load_evaluations(run)
    return part


def tuned(**changes: Any) -> list[Prediction]:
    return [predicted("tuned", number, right=number != 3, **changes) for number in range(4)]


@pytest.mark.parametrize(
    ("changes", "verdict", "differences"),
    [
        pytest.param({}, "same", ["the same recipe"], id="same"),
        pytest.param(
            {"llm": {**RECIPE["llm"], "model": "small"}, "evaluation": {"only": "here"}},
            "differ (other)", ['llm.model: "meta-llama/Meta-Llama-3-8B-Instruct" here, "small" there'], id="other-llm",
        ),
    ],
)  # fmt: skip
def test_another_run_is_compared_and_it_is_said_where_its_recipe_differs(
    tmp_path: Path, run: Path, changes: dict[str, Any], verdict: str, differences: list[str]
) -> None:
    part = beside(tmp_path, run, tuned(), {**RECIPE, **changes})
    assert list(part.systems) == ["detector", "tuned", "other: tuned"]
    assert (part.base, part.main) == ("detector", "tuned"), "another run is not what the report is about"
    table, recipes = sections.differences(part).tables
    assert [(row[0], row[1], row[-1]) for row in table.rows] == [
        ("tuned - detector", "same run", "4"),
        ("other: tuned - detector", verdict, "4"),
        ("other: tuned - tuned", verdict, "4"),
    ]
    assert recipes.rows == [["other", difference] for difference in differences]


def test_what_the_run_has_itself_and_the_oracle_stay_out(tmp_path: Path, run: Path) -> None:
    rows = [*four_cases()[:4], *(replace(row, system="oracle", decided_by="oracle") for row in tuned())]
    part = beside(tmp_path, run, [*rows, *tuned()], RECIPE)
    assert list(part.others) == ["other: tuned"]
    assert part.identical == ["other: detector"]
    assert sections.differences(part).text[-1] == "Not shown, because they predict the same as here: other: detector."


def test_boxes_from_elsewhere_stand_in_the_same_report(tmp_path: Path, run: Path) -> None:
    rows = [predicted("qwen", number, right=number == 0, **FOREIGN) for number in range(4)]
    part = beside(tmp_path, run, rows, {"data": RECIPE["data"]})
    recipes = sections.differences(part).tables[1]
    assert recipes.rows == [["other", "not known there: detector, prompt, llm"]]
    split, twins = sections.errors(part).tables
    assert split.rows[-1][0] == "other: qwen"
    assert split.rows[-1][-1].startswith("75.0"), "wrong, and not missed: what was offered is not known"
    assert [row[0] for row in twins.rows] == ["detector", "tuned"]
    by_number = sections.slices(part).tables[-1]
    assert [row[0] for row in by_number.rows if row[3] != "no data"] == ["unknown"]


def test_another_order_of_the_same_candidates_shows_flips(tmp_path: Path, run: Path) -> None:
    (mine,) = load_evaluations(run)
    other = [
        replace(row, candidates=row.candidates[::-1], origins=(1, 0), box=WRONG if row.sample_id == "s0" else row.box)
        for row in mine.systems["tuned"]
    ]
    ((system, order, share, points, n),) = sections.reorderings(beside(tmp_path, run, other, RECIPE)).tables[0].rows
    assert (system, order, share.split()[0], points.split()[0], n) == ("tuned", "other", "25.0", "-25.0", "4")


@pytest.mark.parametrize("changes", [{"origins": (1, 0)}, FOREIGN], ids=["same-order", "other-candidates"])
def test_the_same_order_and_other_candidates_show_no_flips(tmp_path: Path, run: Path, changes: dict[str, Any]) -> None:
    part = beside(tmp_path, run, tuned(**changes), RECIPE)
    assert part.others
    assert sections.reorderings(part).tables[0].rows == []


def test_other_samples_are_not_compared_and_it_is_said(tmp_path: Path, run: Path) -> None:
    section = sections.differences(beside(tmp_path, run, tuned()[:3], RECIPE))
    assert [row[0] for row in section.tables[0].rows] == ["tuned - detector"]
    assert sum("must be compared on the same samples" in text for text in section.notes) == 2


def test_what_is_kept_is_replaced_and_needs_the_other_run_no_more(tmp_path: Path, run: Path) -> None:
    beside(tmp_path, run, tuned(), RECIPE)
    other = make_run(tmp_path / "other", four_cases()[4:7])
    evaluations.add_comparison(run, other)
    for path in [*other.iterdir()]:
        path.unlink()
    (part,) = load_evaluations(run)
    assert len(part.systems["other: tuned"]) == 3


def names_beside(run: Path) -> list[str]:
    return sorted(path.name for path in (run / runs.COMPARED).iterdir())


def test_two_folders_of_one_name_are_kept_beside_each_other(tmp_path: Path, run: Path) -> None:
    for place in ("a", "b", "a"):
        folder = tmp_path / place / "other"
        evaluations.add_comparison(
            run, folder if folder.exists() else make_run(folder, tuned(), recipe={**RECIPE, "seed": place})
        )
    first, second = names_beside(run)
    assert (first, second.startswith("other-")) == ("other", True)


@pytest.mark.parametrize(
    ("recipe", "num_folders"),
    [
        pytest.param(RECIPE, 1, id="of-an-earlier-version"),
        pytest.param({**RECIPE, "candidates": {"order": "shuffled"}}, 2, id="asked-in-another-way"),
    ],
)
def test_what_does_not_say_where_it_is_from_is_replaced_by_its_own_question_alone(
    tmp_path: Path, run: Path, recipe: dict[str, Any], num_folders: int
) -> None:
    other = make_run(tmp_path / "other", tuned(), recipe=RECIPE)
    make_run(run / runs.COMPARED / "other", tuned(), recipe=recipe)
    evaluations.add_comparison(run, other)
    evaluations.add_comparison(run, other)
    assert len(names_beside(run)) == num_folders


@pytest.mark.parametrize(("name", "message"), [("mine", "is the run itself"), ("absent", "holds no predictions")])
def test_what_is_no_other_evaluation_is_refused(tmp_path: Path, run: Path, name: str, message: str) -> None:
    with pytest.raises(RunError, match=f"{message}; name a folder that eval or score has left"):
        evaluations.add_comparison(run, tmp_path / name)
    assert not (run / runs.COMPARED).exists()


def test_damaged_facts_beside_a_guest_are_named(tmp_path: Path, run: Path) -> None:
    beside(tmp_path, run, tuned(), RECIPE)
    write_json(run / runs.COMPARED / "other" / "report-val.json", [])
    with pytest.raises(DataError, match=r"other/report-val\.json does not hold the facts"):
        load_evaluations(run)


def test_another_split_is_refused_and_beside_the_same_one_no_guest(tmp_path: Path, run: Path) -> None:
    other = make_run(tmp_path / "other", tuned(), name="test")
    told = rf"nothing to compare: {run} is evaluated on val, {other} on test\. .*make eval RUN={other}"
    with pytest.raises(RunError, match=told):
        evaluations.add_comparison(run, other)
    assert not (run / runs.COMPARED).exists()
    make_run(other, tuned()[:2])
    evaluations.add_comparison(run, other)
    (part,) = load_evaluations(run)
    assert {guest.run for guest in part.others.values()} == {"other"}
    assert all(len(guest.rows) == 2 for guest in part.others.values())
