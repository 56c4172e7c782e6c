"""Which samples are trained on, in which groups and order, and what an epoch shows of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.recipe import TrainSection
from llm_wrapper.records import Box, Candidate, Sample
from llm_wrapper.training.examples import (
    Group,
    TrainingExample,
    draw_samples,
    find_target_index,
    make_examples,
    make_groups,
    make_unlabelled_groups,
    schedule_groups,
)
from tests.prompts.made import ZEBRAS

WH = (640, 480)
LEFT_ZEBRA = Box(12.0, 88.0, 300.0, 410.0)
NOWHERE = Box(600.0, 0.0, 640.0, 20.0)


def section(**changes: Any) -> TrainSection:
    return TrainSection.model_validate({"expressions_per_group": 4, **changes})


def built(candidates: tuple[Candidate, ...] = ZEBRAS) -> BuiltCandidates:
    return BuiltCandidates(candidates, tuple(range(len(candidates))), {})


def prepared_sample(
    sample_id: str,
    target: Box | None = LEFT_ZEBRA,
    *,
    image_id: str = "zebras",
    candidates: tuple[Candidate, ...] = ZEBRAS,
    expression: str = "left zebra",
) -> PreparedSample:
    return PreparedSample(Sample(sample_id, sample_id, image_id, None, WH, expression, target), built(candidates))


# targets


CAT = (Candidate(Box(0, 0, 10, 10), "cat", None, "d", "od"),)


@pytest.mark.parametrize(
    ("target", "candidates", "expected"),
    [
        pytest.param(LEFT_ZEBRA, ZEBRAS, 1, id="walk-through"),
        pytest.param(ZEBRAS[2].box, ZEBRAS, 2, id="exact"),
        pytest.param(NOWHERE, ZEBRAS, None, id="none-overlaps"),
        pytest.param(Box(0.0, 0.0, 640.0, 480.0), ZEBRAS, None, id="best-is-too-little"),
        pytest.param(None, ZEBRAS, None, id="no-target"),
        pytest.param(LEFT_ZEBRA, (), None, id="no-candidate"),
        pytest.param(LEFT_ZEBRA, (ZEBRAS[0], ZEBRAS[1], ZEBRAS[1]), 1, id="first-of-equals"),
        pytest.param(Box(0, 0, 10, 20.0), CAT, None, id="exactly-one-half"),
        pytest.param(Box(0, 0, 10, 19.99), CAT, 0, id="just-over-one-half"),
    ],
)
def test_the_target_is_the_candidate_with_the_highest_iou(
    target: Box | None, candidates: tuple[Candidate, ...], expected: int | None
) -> None:
    each = prepared_sample("1", target, candidates=candidates)
    assert find_target_index(each.built, each.sample) == expected


# `train.limit`: nested subsets of whole images, drawn by the seed


DRAWN_FROM = [prepared_sample(f"{image}/{n}", None, image_id=f"image-{image}") for n in range(3) for image in range(20)]
"""Three expressions of each of twenty images, those of one image far apart."""


def ids(limit: int | None, seed: int = 0) -> list[str]:
    return [prepared.sample.sample_id for prepared in draw_samples(DRAWN_FROM, limit, seed=seed)]


@pytest.mark.parametrize("limit", [1, 3, 7, 30, 59, 60, 1000])
def test_as_many_are_taken_as_asked_for_in_their_own_order(limit: int) -> None:
    everything = [prepared.sample.sample_id for prepared in DRAWN_FROM]
    taken = ids(limit)
    assert len(taken) == min(limit, len(DRAWN_FROM))
    assert taken == [sample_id for sample_id in everything if sample_id in set(taken)]


@pytest.mark.parametrize("limit", [3, 7, 31])
def test_images_are_whole_but_for_the_last(limit: int) -> None:
    counts = Counter(sample_id.partition("/")[0] for sample_id in ids(limit))
    assert sorted(counts.values(), reverse=True)[: limit // 3] == [3] * (limit // 3)
    assert len(counts) == -(-limit // 3)


def test_a_smaller_subset_is_part_of_a_larger_one_and_no_limit_is_all() -> None:
    sizes = [ids(limit) for limit in (1, 2, 5, 20, 21, 60)]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(sizes))
    assert ids(None) == ids(60) == [prepared.sample.sample_id for prepared in DRAWN_FROM]


def test_the_seed_draws_and_the_place_in_the_file_does_not() -> None:
    assert set(ids(12)) != set(ids(12, seed=1))
    turned = draw_samples(DRAWN_FROM[::-1], 12, seed=0)
    assert {prepared.sample.sample_id for prepared in turned} == set(ids(12))
    assert set(ids(12)) != {prepared.sample.sample_id for prepared in DRAWN_FROM[:12]}


# groups


def test_what_is_left_out_is_counted_by_its_first_reason() -> None:
    several = replace(prepared_sample("several").sample, further_targets=(ZEBRAS[0].box,))
    samples = [
        prepared_sample("good"),
        prepared_sample("no box", None),
        prepared_sample("no box, no candidates", None, candidates=()),
        prepared_sample("none", candidates=()),
        prepared_sample("one", candidates=ZEBRAS[1:2]),
        prepared_sample("one, elsewhere", NOWHERE, candidates=ZEBRAS[1:2]),
        prepared_sample("elsewhere", NOWHERE),
        prepared_sample("too large", Box(0.0, 0.0, 640.0, 480.0)),
        PreparedSample(several, built()),
        PreparedSample(several, built(())),
    ]
    groups, left_out = make_groups(samples, section())
    assert [sample.sample_id for group in groups for sample in group.samples] == ["good"]
    expected = {"no_target": 2, "several_targets": 2, "too_few_candidates": 3, "target_not_among_candidates": 2}
    assert left_out == expected
    assert make_groups(samples[:1], section(min_candidates=4)) == ([], {"too_few_candidates": 1})
    assert make_groups([], section()) == ([], {})


def test_samples_of_one_image_with_the_same_candidates_share_a_group() -> None:
    samples = [
        prepared_sample("1"),
        prepared_sample("2", image_id="other"),
        prepared_sample("3", ZEBRAS[0].box),
        prepared_sample("4", candidates=ZEBRAS[::-1]),
    ]
    groups, _ = make_groups(samples, section())
    assert [[sample.sample_id for sample in group.samples] for group in groups] == [["1", "3"], ["2"], ["4"]]
    assert [group.targets for group in groups] == [(1, 0), (1,), (1,)]
    assert groups[2].candidates == ZEBRAS[::-1]


@pytest.mark.parametrize(
    ("expressions", "generated", "sizes"),
    [
        pytest.param(4, 0, [4, 4, 1], id="full-groups-and-a-rest"),
        pytest.param(4, 1, [3, 3, 3], id="room-for-generated"),
        pytest.param(9, 0, [9], id="all-in-one"),
        pytest.param(1, 0, [1] * 9, id="one-each"),
        pytest.param(3, 5, [1] * 9, id="more-generated-than-room"),
    ],
)
def test_groups_hold_a_limited_number_of_expressions(expressions: int, generated: int, sizes: list[int]) -> None:
    chosen = section(expressions_per_group=expressions, generated_per_group=generated)
    groups, _ = make_groups([prepared_sample(str(number)) for number in range(9)], chosen)
    assert [len(group.samples) for group in groups] == sizes
    assert [sample.sample_id for group in groups for sample in group.samples] == [str(number) for number in range(9)]


# order of training


def many(count: int) -> list[Group]:
    """Groups whose size goes round from 2 to 11."""
    return [
        Group((prepared_sample(str(number)).sample,), (1,), ZEBRAS, size=2 + number % 10) for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 130, 600])
def test_each_epoch_is_a_permutation(count: int) -> None:
    rows = schedule_groups(many(count), section(epochs=3))
    assert [epoch for epoch, _ in rows] == [epoch for epoch in range(3) for _ in range(count)]
    for epoch in range(3):
        assert sorted(place for each, place in rows if each == epoch) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    groups = many(40)
    rows = schedule_groups(groups, section(epochs=2))
    first, second = ([place for epoch, place in rows if epoch == each] for each in range(2))
    other = [place for _, place in schedule_groups(groups, section(seed=1))]
    assert first != second
    assert first != other
    assert first != list(range(40))
    assert schedule_groups(groups, section(epochs=2)) == rows


def test_the_groups_of_a_step_are_of_similar_size() -> None:
    groups = many(512)
    rows = schedule_groups(groups, section(groups_per_step=8))
    sizes = [groups[place].size for _, place in rows]
    steps = [sizes[start : start + 8] for start in range(0, len(sizes), 8)]
    assert max(max(step) - min(step) for step in steps) <= 1
    # Not sorted as a whole: long and short steps take turns.
    means = [sum(step) / len(step) for step in steps]
    assert means != sorted(means)


@pytest.mark.parametrize(("max_steps", "expected"), [(3, 12), (1, 4), (1000, 60), (None, 60)])
def test_max_steps_cuts_the_end_off(max_steps: int | None, expected: int) -> None:
    groups = many(30)
    rows = schedule_groups(groups, section(max_steps=max_steps, groups_per_step=4, epochs=2))
    assert rows == schedule_groups(groups, section(groups_per_step=4, epochs=2))[:expected]
    assert len(rows) == expected


# what an epoch shows


GROUP = Group(
    (prepared_sample("1").sample, prepared_sample("2", ZEBRAS[2].box, expression="the grass").sample),
    (1, 2),
    ZEBRAS,
)


def targets(examples: list[TrainingExample]) -> list[Box]:
    return [example.prompt.candidates[example.index].box for example in examples]


def test_examples_ask_in_the_order_of_the_group() -> None:
    examples = make_examples(GROUP, "coords", section(), epoch=0)
    assert examples == make_examples(GROUP, "coords", section(), epoch=1)  # without shuffling all are alike
    assert [example.index for example in examples] == [1, 2]
    assert [example.prompt.sample_id for example in examples] == ["1", "2"]
    assert {example.prompt.candidates for example in examples} == {ZEBRAS}
    assert "left zebra" in examples[0].prompt.messages[0].content


def test_shuffled_candidates_take_their_labels_with_them_in_another_order_for_each_group() -> None:
    chosen = section(shuffle_candidates=True)
    orders = set()
    for epoch in range(20):
        examples = make_examples(GROUP, "coords", chosen, epoch=epoch)
        assert targets(examples) == [ZEBRAS[1].box, ZEBRAS[2].box]
        assert len({example.prompt.candidates for example in examples}) == 1
        assert examples == make_examples(GROUP, "coords", chosen, epoch=epoch)
        orders.add(tuple(ZEBRAS.index(candidate) for candidate in examples[0].prompt.candidates))
    assert len(orders) == 6
    groups = [Group((prepared_sample(str(number)).sample,), (1,), ZEBRAS) for number in range(20)]
    shown = {make_examples(group, "coords", chosen, epoch=0)[0].prompt.candidates for group in groups}
    assert len(shown) > 1


@pytest.mark.parametrize(
    ("expressions", "generated", "expected"), [(8, 6, 6), (8, 3, 3), (4, 7, 2), (2, 7, 0), (8, 0, 0)]
)
def test_generated_company_fills_the_group_up(expressions: int, generated: int, expected: int) -> None:
    chosen = section(expressions_per_group=expressions, generated_per_group=generated)
    examples = make_examples(GROUP, "relations", chosen, epoch=0)
    company = [example for example in examples if "generated" in example.prompt.sample_id]
    assert examples[:2] == make_examples(GROUP, "relations", section(), epoch=0)
    assert (len(company), len(examples)) == (expected, 2 + expected)
    assert len({example.prompt.sample_id for example in examples}) == len(examples)
    assert {example.prompt.candidates for example in company} <= {ZEBRAS}


def test_generated_company_is_true_of_the_shuffled_candidates_and_new_in_each_epoch() -> None:
    chosen = section(expressions_per_group=8, generated_per_group=6, shuffle_candidates=True)
    contents = set()
    for epoch in range(10):
        examples = make_examples(GROUP, "coords", chosen, epoch=epoch)
        assert examples == make_examples(GROUP, "coords", chosen, epoch=epoch)
        for example in examples[2:]:
            expression = example.prompt.messages[0].content.rpartition("Expression: ")[2]
            box = example.prompt.candidates[example.index].box
            contents.add(expression)
            if "grass" in expression and "zebra" not in expression:
                assert box == ZEBRAS[2].box
            elif "left" in expression.split():
                assert box == ZEBRAS[1].box
            elif "right" in expression.split():
                assert box == ZEBRAS[0].box
    assert len(contents) > 12


_IN_ANOTHER_PROCESS = """
import json
from llm_wrapper.training.examples import make_examples, schedule_groups
from tests.training.test_examples import GROUP, many, section
chosen = section(expressions_per_group=8, generated_per_group=6, shuffle_candidates=True, epochs=2)
shown = [[e.prompt.messages[0].content, e.index] for e in make_examples(GROUP, "relations", chosen, epoch=1)]
print(json.dumps([schedule_groups(many(30), chosen), shown]))
"""


@pytest.mark.slow
def test_another_process_trains_on_the_same() -> None:
    chosen = section(expressions_per_group=8, generated_per_group=6, shuffle_candidates=True, epochs=2)
    shown = [[e.prompt.messages[0].content, e.index] for e in make_examples(GROUP, "relations", chosen, epoch=1)]
    here = json.loads(json.dumps([schedule_groups(many(30), chosen), shown]))
    options: dict[str, Any] = {"cwd": Path(__file__).parents[2], "env": {**os.environ, "PYTHONHASHSEED": "1"}}
    command = [sys.executable, "-c", _IN_ANOTHER_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


# generated expressions alone


ALIKE = (ZEBRAS[1], ZEBRAS[1])


def test_images_are_talked_about_whatever_their_annotations_say() -> None:
    samples = [
        prepared_sample("1", None),
        prepared_sample("2"),
        prepared_sample("3", NOWHERE, image_id="other"),
        prepared_sample("4", image_id="one box", candidates=ZEBRAS[:1]),
        prepared_sample("5", image_id="none can be told apart", candidates=ALIKE),
    ]
    groups = make_unlabelled_groups(samples, section())
    assert [(group.samples[0].image_id, group.num_labelled) for group in groups] == [("zebras", 0), ("other", 0)]


def test_the_first_steps_are_generated_and_the_epochs_follow() -> None:
    labelled = many(30)
    groups = [
        *labelled,
        *make_unlabelled_groups([prepared_sample(str(n), None, image_id=str(n)) for n in range(10)], section()),
    ]
    chosen = section(generated_steps=10, groups_per_step=4)
    rows = schedule_groups(groups, chosen)
    first, rest = rows[:40], rows[40:]
    assert {place for _, place in first} == set(range(30, 40))
    assert max(epoch for epoch, _ in first) == 4  # eight of the ten, in full batches, each time
    assert rest == schedule_groups(labelled, chosen)
    assert schedule_groups(groups, chosen.model_copy(update={"max_steps": 6})) == rows[:24]


def test_without_annotations_only_the_generated_steps_are_left() -> None:
    groups = make_unlabelled_groups([prepared_sample("1", None)], section())
    rows = schedule_groups(groups, section(generated_steps=3, groups_per_step=2, epochs=4))
    assert rows == [(epoch, 0) for epoch in range(6)]


def test_a_group_without_targets_is_filled_with_expressions_that_differ_by_epoch() -> None:
    group = make_unlabelled_groups([prepared_sample("1", NOWHERE, expression="secret")], section())[0]
    epochs = [make_examples(group, "relations", section(expressions_per_group=4), epoch=epoch) for epoch in range(3)]
    assert [len(examples) for examples in epochs] == [4, 4, 4]
    asked = {example.prompt.messages[0].content for examples in epochs for example in examples}
    assert len(asked) > 4
    assert not any("secret" in text for text in asked)
