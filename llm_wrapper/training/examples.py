"""Scenes -> groups of training examples. Pure: no model, no tokens.

A group is one image: its candidates once, and some of its expressions with the index of the right candidate.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llm_wrapper import boxes
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.scenes import Scene
from llm_wrapper.prompts.render import render
from llm_wrapper.recipe import TrainSection
from llm_wrapper.records import Candidate, Prompt, Sample
from llm_wrapper.training.generated import generate

__all__ = ["Example", "Group", "examples_of", "make_groups", "schedule", "target_index"]

_BUCKET = 64
"""Steps whose groups are sorted by size together, so that one batch holds groups of similar length."""


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one image that have the same candidates, with the index of each one's target.

    `size` says how long its prompts are: tokens of the longest, 0 before they are measured.
    """

    samples: tuple[Sample, ...]
    targets: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    size: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the index that answers it."""

    prompt: Prompt
    index: int


def target_index(built: BuiltCandidates, sample: Sample) -> int | None:
    """Return the index of the candidate with the highest IoU with the target; None unless that is over 0.5."""
    if sample.target is None or not built.candidates:
        return None
    overlap = boxes.pairwise_iou(
        boxes.array([sample.target]), boxes.array([candidate.box for candidate in built.candidates])
    )[0]
    best = int(overlap.argmax())
    return best if overlap[best] > 0.5 else None


def _left_out(scene: Scene, section: TrainSection) -> str | None:
    if scene.sample.target is None:
        return "no_target"
    if scene.sample.further_targets:
        return "several_targets"
    if len(scene.built.candidates) < section.min_candidates:
        return "too_few_candidates"
    return None if target_index(scene.built, scene.sample) is not None else "target_not_among_candidates"


def make_groups(scenes: Sequence[Scene], section: TrainSection) -> tuple[list[Group], dict[str, int]]:
    """Group usable samples by image and candidates; count those left out by reason.

    A sample is used if it has one target, at least `min_candidates` candidates, and one of them overlaps the target
    with IoU > 0.5 (paper, training details).
    """
    left_out: Counter[str] = Counter()
    usable: list[tuple[Scene, int]] = []
    for scene in scenes:
        reason = _left_out(scene, section)
        target = target_index(scene.built, scene.sample)
        if reason is not None or target is None:
            left_out[reason or "no_target"] += 1
        else:
            usable.append((scene, target))
    members: dict[tuple[str, tuple[Candidate, ...]], list[tuple[Sample, int]]] = defaultdict(list)
    for scene, target in usable:
        members[scene.sample.image_id, scene.built.candidates].append((scene.sample, target))
    groups = []
    size = max(1, section.expressions_per_group - section.generated_per_group)
    for (_, candidates), rows in members.items():
        for start in range(0, len(rows), size):
            samples, targets = zip(*rows[start : start + size], strict=True)
            groups.append(Group(samples, targets, candidates))
    return groups, dict(left_out)


def schedule(groups: Sequence[Group], section: TrainSection) -> list[tuple[int, int]]:
    """Return (epoch, place of a group) in training order: each epoch shuffled, batches of groups of similar size.

    The order depends on the groups and the seed alone, so a resumed run sees what an uninterrupted one would have seen.
    """
    rows: list[tuple[int, int]] = []
    chunk = section.groups_per_step * _BUCKET
    for epoch in range(section.epochs):
        rng = random.Random(f"{section.seed}/{epoch}")
        order = list(range(len(groups)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), chunk):
            similar = sorted(order[start : start + chunk], key=lambda place: groups[place].size)
            batches += [
                similar[first : first + section.groups_per_step]
                for first in range(0, len(similar), section.groups_per_step)
            ]
        rng.shuffle(batches)
        # An incomplete batch in the middle would shift the boundaries of all that come after it.
        batches.sort(key=lambda batch: len(batch) < section.groups_per_step)
        rows += [(epoch, place) for batch in batches for place in batch]
    if section.max_steps is not None:
        rows = rows[: section.max_steps * section.groups_per_step * section.accumulation]
    return rows


def examples_of(group: Group, prompt_format: str, section: TrainSection, *, epoch: int) -> list[Example]:
    """Return the examples of a group as they are seen in one epoch.

    Order augmentation and generated expressions are drawn afresh for each epoch, from the seed, the epoch and the
    sample, so the same epoch always gives the same examples.
    """
    first = group.samples[0]
    rng = random.Random(f"{section.seed}/{epoch}/{first.sample_id}")
    order = list(range(len(group.candidates)))
    if section.shuffle_candidates:
        rng.shuffle(order)
    candidates = tuple(group.candidates[place] for place in order)
    real = [(sample, order.index(target)) for sample, target in zip(group.samples, group.targets, strict=True)]
    return [
        Example(render(sample, candidates, prompt_format), index)
        for sample, index in [*real, *_company(group, candidates, rng, section)]
    ]


def _company(
    group: Group, candidates: Sequence[Candidate], rng: random.Random, section: TrainSection
) -> Iterator[tuple[Sample, int]]:
    """Yield generated samples that share the group's candidates."""
    first = group.samples[0]
    count = min(section.generated_per_group, section.expressions_per_group - len(group.samples))
    for number, drawn in enumerate(generate(candidates, first.image_wh, rng, count=count) if count > 0 else []):
        sample_id = f"{first.sample_id}/generated-{number}"
        yield (
            Sample(sample_id, sample_id, first.image_id, None, first.image_wh, drawn.expression, None),
            drawn.index,
        )
