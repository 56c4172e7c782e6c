"""Collect the training expressions of a recipe: groups to train on in each epoch, or few-shot examples to show.

data sets --exclude_evaluated--> --draw_samples(train.limit)--> groups --schedule_groups--> --make_examples--> prompts
                                                                groups --load_exemplars--> a PromptBuilder's examples

A group is one image: its candidates once, and some of its expressions with the index of the right candidate. A group
without targets is for generated expressions (`train.generated_steps`). No model, no tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llm_wrapper import boxes, storage
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.datasets import leaks
from llm_wrapper.detections.samples import PreparedSample, PreparedSplit, load_prepared_split
from llm_wrapper.errors import DataError, RecipeError, shell_word
from llm_wrapper.prompts.examples import FixedExamples, NearestExamples, draw_examples, fit_tfidf
from llm_wrapper.prompts.render import ExampleSelector, Exemplar, PromptBuilder, render_prompt
from llm_wrapper.prompts.text import require_instruction
from llm_wrapper.recipe import PromptSection, Recipe, TrainSection
from llm_wrapper.records import Candidate, Prompt, Sample
from llm_wrapper.training.generated_expressions import generate_absent_expression, generate_expressions

_log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class TrainingPool:
    """Groups to train on, skipped samples by reason, and the splits that both came from.

    With `train.generated_steps` there are groups without targets too, of all images whatever `train.limit` is.
    """

    groups: Sequence[Group]
    skipped: dict[str, int]
    sets: Sequence[PreparedSplit]


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A prompt and the index that answers it."""

    prompt: Prompt
    index: int


def load_training_pool(recipe: Recipe) -> TrainingPool:
    """Read all data sets that a recipe trains on and group their usable samples."""
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    samples = exclude_evaluated(recipe, sets)
    drawn, none = draw_samples(samples, recipe.train.limit, seed=recipe.train.seed), recipe.prompt.none
    groups, skipped = make_groups(drawn, recipe.train, none=none)
    skipped["image_in_an_evaluation_split"] = sum(len(each.samples) for each in sets) - len(samples)
    if recipe.train.generated_steps:
        groups += make_unlabelled_groups(samples, recipe.train, none=none)
    return TrainingPool(groups, skipped, sets)


def exclude_evaluated(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[PreparedSample]:
    """Return the samples of all sets whose image is in no evaluation split of any data set that is trained on."""
    pairs = list(zip(recipe.training_data(), (each.dataset for each in sets), strict=True))
    return [
        prepared
        for each, evaluated in zip(sets, leaks.find_evaluated_images(pairs), strict=True)
        for prepared in each.samples
        if prepared.sample.image_id not in evaluated
    ]


def draw_samples(samples: Sequence[PreparedSample], limit: int | None, *, seed: int) -> list[PreparedSample]:
    """Draw `limit` samples in their order, image by image; a smaller limit draws a subset of a larger one.

    A learning curve over nested subsets shows the effect of more samples rather than of other ones.
    """

    def key(i: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"{seed}/{samples[i].sample.image_id}".encode()).digest(), i

    if limit is None:
        return list(samples)
    return [samples[i] for i in sorted(sorted(range(len(samples)), key=key)[:limit])]


def load_prompt_builder(recipe: Recipe) -> PromptBuilder:
    """Load the prompt builder of a recipe; where it shows examples, it reads the training split and its detections."""
    section = recipe.prompt
    if not section.examples:
        return PromptBuilder(section)
    if section.instruction is not None:
        require_instruction(section.instruction)
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    pool = load_exemplars(recipe, sets)
    _log.info("%d training expressions of %s to take examples from", len(pool), recipe.data.name)
    facts = {
        "pool": len(pool),
        "sets": [
            {"name": each.dataset.name, "split": each.dataset.split, "annotations": each.dataset.digest}
            | {"detections": storage.digest_value(each.identity)}
            for each in sets
        ],
    }
    selector: ExampleSelector
    if not section.retrieve:
        selector = FixedExamples(pool, section.examples, seed=recipe.train.seed)
        shown = draw_examples(pool, section.examples + 1, seed=recipe.train.seed)  # one more, see FixedExamples
        facts["examples"] = [each.sample.sample_id for each in shown]
    elif section.embedder == "lexical":
        selector = NearestExamples(pool, section.examples, fit_tfidf([each.sample.expression for each in pool]))
    else:
        from llm_wrapper.llms.embed import SentenceEmbedder

        selector = NearestExamples(pool, section.examples, SentenceEmbedder(section.embedder))
    return PromptBuilder(section, selector, facts)


def load_exemplars(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[Exemplar]:
    """Return up to `train.limit` training expressions to show: those that could be trained on; DataError if none."""
    samples = draw_samples(exclude_evaluated(recipe, sets), recipe.train.limit, seed=recipe.train.seed)
    groups, skipped = make_groups(samples, recipe.train, none=recipe.prompt.none)
    exemplars = [
        Exemplar(sample, group.candidates, target)
        for group in groups
        for sample, target in zip(group.samples, group.targets, strict=True)
    ]
    if exemplars:
        return exemplars
    data = recipe.data
    raise DataError(
        f"none of the {sum(len(each.samples) for each in sets)} expressions of {data.name} {data.train_split} can be "
        f"shown as an example (prompt.examples={recipe.prompt.examples}): {skipped or 'all are of evaluated images'}. "
        f"See what is there with: make data-check DATA={shell_word(data.name)}; or set prompt.examples=0"
    )


def require_trainable(section: PromptSection) -> None:
    """Refuse to train with examples or reasoning (RecipeError), or with an unusable instruction (PromptError)."""
    if section.instruction is not None:
        require_instruction(section.instruction)
    if section.examples or section.reasoning_tokens:
        raise RecipeError(
            f"an LLM is trained on format and instruction alone, not with {section.summary}: train without, then "
            "evaluate the run with it: make eval RUN=... PROMPT=in-context"
        )


def find_target_index(built: BuiltCandidates, sample: Sample) -> int | None:
    """Return the index of the candidate with the highest IoU with the target; None unless that is over 0.5."""
    if sample.target is None or not built.candidates:
        return None
    overlap = boxes.pairwise_iou(boxes.array([sample.target]), boxes.array([each.box for each in built.candidates]))[0]
    best = int(overlap.argmax())
    return best if overlap[best] > 0.5 else None


def make_groups(
    samples: Sequence[PreparedSample], section: TrainSection, *, none: bool = False
) -> tuple[list[Group], dict[str, int]]:
    """Group usable samples by image and candidates; count skipped samples by reason.

    A sample is used if it has one target, at least `min_candidates` candidates, and one of them overlaps the target
    with IoU > 0.5 (paper, training details). With `none`, a sample whose target is missing or not among the candidates
    is answered by "none of these", which counts as a candidate.
    """
    skipped: Counter[str] = Counter()
    members: dict[tuple[str, tuple[Candidate, ...]], list[tuple[Sample, int]]] = defaultdict(list)
    for prepared in samples:
        sample, candidates = prepared.sample, prepared.built.candidates
        target = find_target_index(prepared.built, sample)
        if sample.target is None and not none:
            skipped["no_target"] += 1
        elif sample.further_targets:
            skipped["several_targets"] += 1
        elif not candidates or len(candidates) + none < section.min_candidates:
            skipped["too_few_candidates"] += 1
        elif target is None and not none:
            skipped["target_not_among_candidates"] += 1
        else:
            members[sample.image_id, candidates].append((sample, len(candidates) if target is None else target))
    groups = []
    size = max(1, section.expressions_per_group - section.generated_per_group)
    for (_, candidates), rows in members.items():
        for start in range(0, len(rows), size):
            chosen, targets = zip(*rows[start : start + size], strict=True)
            groups.append(Group(chosen, targets, candidates, none=none))
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
    num_warm_up = section.generated_steps * per_step
    rows: list[tuple[int, int]] = []
    for epoch in itertools.count() if unlabelled else ():
        if len(rows) >= num_warm_up:
            break
        batches = _draw_batches(groups, unlabelled, section, epoch)
        full = [batch for batch in batches if len(batch) == per_step]
        rows += [(epoch, i) for batch in full or batches for i in batch]
    del rows[num_warm_up:]
    for epoch in range(section.epochs if labelled else 0):
        rows += [(epoch, i) for batch in _draw_batches(groups, labelled, section, epoch) for i in batch]
    return rows if section.max_steps is None else rows[: section.max_steps * per_step]


def _draw_batches(
    groups: Sequence[Group], indices: Sequence[int], section: TrainSection, epoch: int
) -> list[list[int]]:
    """Return the batches of one epoch, each of groups of similar size, in random order."""
    rng = random.Random(f"{section.seed}/{epoch}")
    order, size = list(indices), section.groups_per_step
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _BUCKET):
        similar = sorted(order[start : start + size * _BUCKET], key=lambda i: groups[i].size)
        batches += [similar[first : first + size] for first in range(0, len(similar), size)]
    rng.shuffle(batches)
    # An incomplete batch in the middle would shift the boundaries of all that come after it.
    batches.sort(key=lambda batch: len(batch) < size)
    return batches


def make_examples(
    group: Group, prompt_format: str, section: TrainSection, *, epoch: int, instruction: str | None = None
) -> list[TrainingExample]:
    """Return the examples of a group in one epoch; the same epoch always gives the same examples.

    The order of candidates and the generated expressions are drawn from the seed, the epoch and the sample.
    """
    rng = random.Random(f"{section.seed}/{epoch}/{group.samples[0].sample_id}")
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
        for sample, index in [*real, *_generate_samples(group, candidates, rng, section)]
    ]


def _generate_samples(
    group: Group, candidates: Sequence[Candidate], rng: random.Random, section: TrainSection
) -> Iterator[tuple[Sample, int]]:
    """Yield generated samples that share the group's candidates; with `none` some that mean none of them."""
    first = group.samples[0]
    wanted = section.generated_per_group if group.num_labelled else section.expressions_per_group
    count = min(wanted, section.expressions_per_group - group.num_labelled)
    drawn = generate_expressions(candidates, first.image_wh, rng, count=count) if count > 0 else []
    for number, each in enumerate(drawn):
        sample_id = f"{first.sample_id}/generated-{number}"
        expression, index = each.expression, each.index
        if group.none and rng.random() < _ABSENT and (other := generate_absent_expression(candidates, rng)):
            expression, index = other, len(candidates)
        yield Sample(sample_id, sample_id, first.image_id, None, first.image_wh, expression, None), index
