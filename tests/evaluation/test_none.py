"""No box because none is meant: who decides it, and that every metric counts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation import ensemble, grec, mistakes, none_below, orders, systems
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.paired import compare_systems
from llm_wrapper.metrics import summarize
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Prediction
from tests.evaluation.test_systems import LEFT_ZEBRA, ZEBRAS, Script, prepared_sample

NONE = PromptSection(format="relations", none=True)


def asked(samples: list[PreparedSample], answers: dict[str, Answer], prompt: PromptSection = NONE) -> list[Prediction]:
    return systems.by_llm(samples, "llm", PromptBuilder(prompt), Script(answers))


@pytest.mark.parametrize(
    ("answer", "probability", "shares", "none"),
    [
        (Answer((0.1, 0.2, 0.1, 0.6), 0.9), 0.6, (0.1, 0.2, 0.1), 0.6),
        (Answer(text="3", finish_reason="stop"), None, None, None),
    ],
    ids=["scored", "generated"],
)
def test_none_is_an_answer_and_no_fallback(
    answer: Answer, probability: float | None, shares: tuple[float, ...] | None, none: float | None, tmp_path: Path
) -> None:
    rows = asked([prepared_sample("1", target=None)], {"left zebra": answer})
    (row,) = rows
    assert (row.box, row.decided_by, row.failure, row.says_none) == (None, "llm", None, True)
    assert (row.probability, row.probabilities, row.none_probability) == (probability, shares, none)
    files.save(tmp_path / "p.parquet", rows)
    assert files.load(tmp_path / "p.parquet") == rows


def test_one_candidate_is_asked_about_where_none_is_an_answer() -> None:
    samples = [
        prepared_sample("yes", "grass", candidates=ZEBRAS[:1]),
        prepared_sample("no", "left zebra", candidates=ZEBRAS[:1]),
        prepared_sample("unusable", "zebra", candidates=ZEBRAS[:1]),
        prepared_sample("nothing", candidates=()),
    ]
    answers = {"grass": Answer((0.7, 0.3)), "left zebra": Answer((0.4, 0.6)), "zebra": Answer(text="what?")}
    rows = asked(samples, answers)
    assert [row.decided_by for row in rows] == ["llm", "llm", "single_candidate", "no_candidate"]
    assert [row.box for row in rows] == [ZEBRAS[0].box, None, ZEBRAS[0].box, None]
    assert [row.probability for row in rows] == [0.7, 0.6, None, None]
    assert [row.says_none for row in rows] == [False, True, False, False]


def four(prompt: PromptSection = NONE) -> list[Prediction]:
    """Right, falsely none, rightly none, falsely a box."""
    shares = {"a": (0.1, 0.8, 0.1), "b": (0.1, 0.3, 0.1), "c": (0.2, 0.2, 0.1), "d": (0.5, 0.1, 0.1)}
    answers = {
        name: Answer((*each, 1 - sum(each)) if prompt.none else tuple(one / sum(each) for one in each))
        for name, each in shares.items()
    }
    targets = (LEFT_ZEBRA, LEFT_ZEBRA, None, None)
    samples = [
        prepared_sample(name, name, target=target, image_id=name) for name, target in zip("abcd", targets, strict=True)
    ]
    return asked(samples, answers, prompt)


def test_no_metric_drops_a_sample() -> None:
    rows = four()
    found, summary = grec.measure(rows), summarize(rows)
    assert (found.n_acc.value, found.n_acc.n, found.t_acc.value, found.t_acc.n) == (0.5, 2, 0.5, 2)
    assert (found.precision.value, found.precision.n) == (0.5, 4)
    assert (summary.n, summary.num_without_target, summary.p_at_1) == (2, 2, 0.5)
    assert (summary.decided_by, summary.failures) == ({"llm": 4}, {})
    shares = mistakes.split(rows)
    assert {name: share.value for name, share in shares.items() if share.value} == {"right": 0.5, "none": 0.5}
    compared = compare_systems(rows, [replace(row, system="other") for row in rows])
    assert compared.mcnemar.n == summary.n
    oracle = grec.measure(systems.by_oracle([prepared_sample("e"), prepared_sample("f", target=None)]))
    assert (oracle.n_acc.value, oracle.t_acc.value, oracle.precision.value) == (1, 1, 1)
    first, *others = none_below.thresholds(rows)
    assert others
    assert {each.grec.precision.n for each in (first, *others)} == {4}
    assert first.grec == found


@given(st.sampled_from([True, False]), st.floats(0, 1))
def test_a_threshold_afterwards_is_the_threshold_in_the_recipe(none: bool, below: float) -> None:
    prompt = NONE.model_copy(update={"none": none})
    later = none_below.applied(four(prompt), below)
    at_once = four(prompt.model_copy(update={"none_below": below}))
    assert later == at_once


def test_thresholds_give_up_boxes_one_way_only() -> None:
    found = none_below.thresholds(four(NONE.model_copy(update={"none": False})))
    assert found[0].below == 0
    assert (found[0].answered.value, found[0].risk.value) == (1.0, 0.5)
    n_acc, t_acc = ([getattr(each.grec, name).value for each in found] for name in ("n_acc", "t_acc"))
    assert n_acc == sorted(n_acc)
    assert t_acc == sorted(t_acc, reverse=True)
    assert n_acc[-1] == 1


@pytest.mark.parametrize("rows", [[], four()[1:3]], ids=["nothing", "no box"])
def test_a_threshold_over_nothing_has_no_risk(rows: list[Prediction]) -> None:
    (found,) = none_below.thresholds(rows)
    assert (found.below, found.risk.value) == (0.0, None)


def test_orders_leave_none_at_the_end() -> None:
    answers = [Answer((0.5, 0.2, 0.3), 1.0), Answer((0.1, 0.4, 0.5), 0.5)]
    mean = orders.averaged(answers, [(0, 1), (1, 0)])
    assert mean.probabilities == pytest.approx((0.45, 0.15, 0.4))
    assert mean.mass == 0.75


@pytest.mark.parametrize("combine", [ensemble.average, ensemble.vote], ids=["mean", "vote"])
def test_adapters_say_none_together(combine: object) -> None:
    assert callable(combine)
    rows = four()
    sure = asked([prepared_sample("d", "d", target=None, image_id="d")], {"d": Answer((0.0, 0.1, 0.0, 0.9))})
    (both,) = combine([sure, rows[3:]], "both")
    assert (both.box, both.decided_by, both.says_none) == (None, "llm", True)
    assert both.probability == both.none_probability == pytest.approx(0.6)
    assert both.probabilities == pytest.approx((0.25, 0.1, 0.05))
    # One that was not asked with it gives it no probability.
    without = four(NONE.model_copy(update={"none": False}))[3:]
    (mixed,) = combine([rows[3:], without], "both")
    assert mixed.box == ZEBRAS[0].box
    assert sum(mixed.probabilities or ()) + (mixed.none_probability or 0) == pytest.approx(1)


def test_one_candidate_that_was_asked_about_is_decided_together() -> None:
    one, other = (
        asked([prepared_sample("a", candidates=ZEBRAS[:1])], {"left zebra": Answer((share, 1 - share))})
        for share in (0.1, 0.6)
    )
    (both,) = ensemble.average([one, other], "both")
    assert both.box is None
    assert both.probability == pytest.approx(0.65)
