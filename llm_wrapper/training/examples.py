"""Group prepared samples by image, schedule the groups, and make the training examples of each epoch.

A group is one image: its candidates once, and some of its expressions with the index of the right candidate. A group
without targets is for generated expressions (`train.generated_steps`). No model, no tokens.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llm_wrapper import boxes
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.prompts.render import render_prompt
from llm_wrapper.recipe import TrainSection
from llm_wrapper.records import Candidate, Prompt, Sample
from llm_wrapper.training.generated_expressions import generate_absent_expression, generate_expressions

__all__ = [
    "Group",
    "TrainingExample",
    "count_answered_none",
    "find_target_index",
    "make_examples",
    "make_groups",
    "make_unlabelled_groups",
    "schedule_groups",
]  # fmt: skip

_BUCKET = 64
"""Steps whose groups are sorted by size together, so that a batch holds groups of similar length."""
_ABSENT = 0.2
"""Share of generated expressions that mean none of the candidates, where that is an answer."""


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one image that have the same candidates, with the index of each one's target.

    Without targets its one sample gives the image. `size` is the tokens of the longest prompt, 0 before it is measured.
    With `none`, "none of these" is an answer; its index is the number of candidates.
    """

    samples: tuple[Sample, ...]
    targets: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    size: int = field(default=0, compare=False)
    none: bool = False

    @property
    def num_labelled(self) -> int:
        """Annotated expressions."""
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A prompt and the index that answers it."""

    prompt: Prompt
    index: int


def find_target_index(built: BuiltCandidates, sample: Sample) -> int | None:
    """Return the index of the candidate with the highest IoU with the target; None unless that is over 0.5."""
    if sample.target is None or not built.candidates:
        return None
    overlap = boxes.pairwise_iou(
        boxes.array([sample.target]), boxes.array([candidate.box for candidate in built.candidates])
    )[0]
    best = int(overlap.argmax())
    return best if overlap[best] > 0.5 else None


def _answer(prepared: PreparedSample, section: TrainSection, *, none: bool) -> int | str:
    """Return the index that answers a sample, or the reason to skip it."""
    sample, candidates = prepared.sample, prepared.built.candidates
    if sample.target is None and not none:
        return "no_target"
    if sample.further_targets:
        return "several_targets"
    if not candidates or len(candidates) + none < section.min_candidates:
        return "too_few_candidates"
    target = find_target_index(prepared.built, sample)
    if target is None:
        return len(candidates) if none else "target_not_among_candidates"
    return target


def make_groups(
    samples: Sequence[PreparedSample], section: TrainSection, *, none: bool = False
) -> tuple[list[Group], dict[str, int]]:
    """Group usable samples by image and candidates; count skipped samples by reason.

    A sample is used if it has one target, at least `min_candidates` candidates, and one of them overlaps the target
    with IoU > 0.5 (paper, training details). With `none`, a sample whose target is missing or not among the candidates
    is answered by "none of these", which counts as a candidate.
    """
    skipped: Counter[str] = Counter()
    usable: list[tuple[PreparedSample, int]] = []
    for prepared in samples:
        answer = _answer(prepared, section, none=none)
        if isinstance(answer, str):
            skipped[answer] += 1
        else:
            usable.append((prepared, answer))
    members: dict[tuple[str, tuple[Candidate, ...]], list[tuple[Sample, int]]] = defaultdict(list)
    for prepared, target in usable:
        members[prepared.sample.image_id, prepared.built.candidates].append((prepared.sample, target))
    groups = []
    size = max(1, section.expressions_per_group - section.generated_per_group)
    for (_, candidates), rows in members.items():
        for start in range(0, len(rows), size):
            samples, targets = zip(*rows[start : start + size], strict=True)
            groups.append(Group(samples, targets, candidates, none=none))
    return groups, dict(skipped)


def count_answered_none(groups: Sequence[Group]) -> dict[str, int]:
    """Count, by reason, the annotated expressions that are answered by "none of these"."""
    samples = [
        sample
        for group in groups
        for sample, target in zip(group.samples, group.targets, strict=False)
        if target == len(group.candidates)
    ]
    num_without = sum(sample.target is None for sample in samples)
    return {"no_target": num_without, "target_not_among_candidates": len(samples) - num_without}


def make_unlabelled_groups(
    samples: Sequence[PreparedSample], section: TrainSection, *, none: bool = False
) -> list[Group]:
    """Return one group without targets for each image that expressions can be generated for.

    Skipped are images with too few candidates, and those where no expression is true of one box alone.
    """
    found: dict[tuple[str, tuple[Candidate, ...]], Sample] = {}
    for prepared in samples:
        if len(prepared.built.candidates) >= section.min_candidates:
            found.setdefault((prepared.sample.image_id, prepared.built.candidates), prepared.sample)
    return [
        Group((sample,), (), candidates, none=none)
        for (_, candidates), sample in found.items()
        if generate_expressions(candidates, sample.image_wh, random.Random(0), count=1)
    ]


def schedule_groups(groups: Sequence[Group], section: TrainSection) -> list[tuple[int, int]]:
    """Return (epoch, index of a group) in training order: each epoch shuffled, batches of groups of similar size.

    The first `generated_steps` steps cycle through the groups without targets; then come the epochs of the others. The
    order depends on the groups and the seed alone, so that a resumed run sees the same.
    """
    labelled = [i for i, group in enumerate(groups) if group.num_labelled]
    unlabelled = [i for i, group in enumerate(groups) if not group.num_labelled]
    per_step = section.groups_per_step
    warm_up = itertools.islice(_rounds(groups, unlabelled, section), section.generated_steps * per_step)
    rows = list(warm_up)
    for epoch in range(section.epochs if labelled else 0):
        rows += [(epoch, i) for batch in _batches(groups, labelled, section, epoch) for i in batch]
    return rows if section.max_steps is None else rows[: section.max_steps * per_step]


def _rounds(groups: Sequence[Group], indices: Sequence[int], section: TrainSection) -> Iterator[tuple[int, int]]:
    """Yield (epoch, index) of full batches without end."""
    for epoch in itertools.count() if indices else ():
        batches = _batches(groups, indices, section, epoch)
        full = [batch for batch in batches if len(batch) == section.groups_per_step]
        yield from ((epoch, i) for batch in full or batches for i in batch)


def _batches(groups: Sequence[Group], indices: Sequence[int], section: TrainSection, epoch: int) -> list[list[int]]:
    """Return the batches of one epoch, each of groups of similar size, in random order."""
    rng = random.Random(f"{section.seed}/{epoch}")
    order = list(indices)
    rng.shuffle(order)
    chunk = section.groups_per_step * _BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), chunk):
        similar = sorted(order[start : start + chunk], key=lambda i: groups[i].size)
        batches += [
            similar[first : first + section.groups_per_step]
            for first in range(0, len(similar), section.groups_per_step)
        ]
    rng.shuffle(batches)
    # An incomplete batch in the middle would shift the boundaries of all that come after it.
    batches.sort(key=lambda batch: len(batch) < section.groups_per_step)
    return batches


def make_examples(
    group: Group, prompt_format: str, section: TrainSection, *, epoch: int, instruction: str | None = None
) -> list[TrainingExample]:
    """Return the examples of a group in one epoch.

    The order of candidates and the generated expressions are drawn from the seed, the epoch and the sample, so that the
    same epoch always gives the same examples.
    """
    first = group.samples[0]
    rng = random.Random(f"{section.seed}/{epoch}/{first.sample_id}")
    order = list(range(len(group.candidates)))
    if section.shuffle_candidates:
        rng.shuffle(order)
    candidates = tuple(group.candidates[i] for i in order)
    labelled = group.samples[: group.num_labelled]
    indices = [*order, len(order)]  # "none of these" is last in any order
    real = [(sample, indices.index(target)) for sample, target in zip(labelled, group.targets, strict=True)]
    return [
        TrainingExample(
            render_prompt(sample, candidates, prompt_format, instruction=instruction, none=group.none), index
        )
        for sample, index in [*real, *_company(group, candidates, rng, section)]
    ]


def _company(
    group: Group, candidates: Sequence[Candidate], rng: random.Random, section: TrainSection
) -> Iterator[tuple[Sample, int]]:
    """Yield generated samples that share the group's candidates; with `none` some that mean none of them."""
    first = group.samples[0]
    wanted = section.generated_per_group if group.num_labelled else section.expressions_per_group
    count = min(wanted, section.expressions_per_group - group.num_labelled)
    for number, drawn in enumerate(
        generate_expressions(candidates, first.image_wh, rng, count=count) if count > 0 else []
    ):
        sample_id = f"{first.sample_id}/generated-{number}"
        expression, index = drawn.expression, drawn.index
        if group.none and rng.random() < _ABSENT and (other := generate_absent_expression(candidates, rng)):
            expression, index = other, len(candidates)
        yield Sample(sample_id, sample_id, first.image_id, None, first.image_wh, expression, None), index
