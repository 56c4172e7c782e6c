"""Training on expressions that mean none of the candidates."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llm_wrapper.records import Box, Candidate
from llm_wrapper.training.examples import count_answered_none, make_examples, make_groups, make_unlabelled_groups
from llm_wrapper.training.generated_expressions import generate_absent_expression
from tests.training.test_examples import LEFT_ZEBRA, NOWHERE, ZEBRAS, prepared_sample, section

SAMPLES = [
    prepared_sample("right"),
    prepared_sample("no target", None),
    prepared_sample("not offered", NOWHERE),
    prepared_sample("nothing offered", None, image_id="empty", candidates=()),
    prepared_sample("one right", ZEBRAS[0].box, image_id="one", candidates=ZEBRAS[:1]),
    prepared_sample("one wrong", None, image_id="one", candidates=ZEBRAS[:1]),
]


def test_what_has_no_target_among_the_candidates_is_answered_by_none() -> None:
    several = prepared_sample("several")
    several = replace(several, sample=replace(several.sample, further_targets=(ZEBRAS[0].box,)))
    groups, left_out = make_groups([*SAMPLES, several], section(), none=True)
    rows = [row for each in groups for row in zip(each.samples, each.targets, strict=True)]
    found = {sample.sample_id: target for sample, target in rows}
    assert found == {"right": 1, "no target": 3, "not offered": 3, "one right": 0, "one wrong": 1}
    assert left_out == {"too_few_candidates": 1, "several_targets": 1}
    assert all(each.none for each in groups)
    assert count_answered_none(groups) == {"no_target": 2, "target_not_among_candidates": 1}


def test_without_it_nothing_changes() -> None:
    groups, left_out = make_groups(SAMPLES, section())
    assert [(each.samples[0].sample_id, each.targets, each.none) for each in groups] == [("right", (1,), False)]
    assert left_out == {"no_target": 3, "target_not_among_candidates": 1, "too_few_candidates": 1}
    assert count_answered_none(groups) == {"no_target": 0, "target_not_among_candidates": 0}


@pytest.mark.parametrize("epoch", range(4))
def test_none_keeps_its_index_in_any_order(epoch: int) -> None:
    shuffled = section(shuffle_candidates=True)
    (group,) = make_groups(SAMPLES[:3], shuffled, none=True)[0]
    right, *others = make_examples(group, "compact", shuffled, epoch=epoch)
    assert right.prompt.candidates[right.index].box == ZEBRAS[1].box
    for each in others:
        assert each.index == 3 == each.prompt.num_answers - 1
        assert "\n3 none of these\n" in each.prompt.messages[0].content
    assert len({each.prompt.messages[0].content.rpartition("\n")[0] for each in (right, *others)}) == 1, "one prefix"


def test_generated_expressions_name_what_is_not_there() -> None:
    zebras = tuple(replace(each, label=label) for each, label in zip(ZEBRAS, ("zebra", "bus", "car"), strict=True))
    drawn = section(expressions_per_group=30, generated_steps=1)
    (group,) = make_unlabelled_groups([prepared_sample("1", candidates=zebras)], drawn, none=True)
    found = make_examples(group, "compact", drawn, epoch=0)
    none = [each for each in found if each.index == 3]
    assert 0 < len(none) < len(found) / 2
    for each in none:
        expression = each.prompt.messages[0].content.rpartition("\n")[2]
        assert not {"zebra", "zebras", "bus", "car", "vehicle", "coach"} & set(expression.split()), expression
    plain = replace(group, none=False)
    assert all(each.index < 3 for each in make_examples(plain, "compact", drawn, epoch=0))


def labelled(*labels: str) -> list[Candidate]:
    return [Candidate(Box(0, 0, 9, 9), label, None, "d", "od") for label in labels]


@pytest.mark.parametrize(
    ("labels", "drawn"),
    [(["zebra"], True), (["Dining Table", "person"], True), (["zebra", "striped animal"], False), ([""], False)],
    ids=["one", "written otherwise", "a free word", "no word"],
)
def test_only_words_that_are_known_can_be_absent(labels: list[str], drawn: bool) -> None:
    found = [generate_absent_expression(labelled(*labels), random.Random(seed)) for seed in range(50)]
    assert all((each is not None) == drawn for each in found)
    assert not any("table" in each.split() or "man" in each.split() for each in found if each and "person" in labels)


def test_a_group_of_one_candidate_gets_company() -> None:
    with_company = section(generated_per_group=2)
    groups, _ = make_groups([prepared_sample("1", LEFT_ZEBRA, candidates=ZEBRAS[1:2])], with_company, none=True)
    found = make_examples(groups[0], "compact", with_company, epoch=0)
    assert [each.prompt.num_answers for each in found] == [2] * len(found)
    assert len(found) > 1
    assert {each.index for each in found} <= {0, 1}
