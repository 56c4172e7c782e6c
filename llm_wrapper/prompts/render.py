"""Render samples with their candidates as prompts of an LLM, and convert its answers to choices.

(Sample, Candidates) --render_prompt--> question ---+
examples of the question --render_prompt--> turns --+--> Prompt --LLM--> Answer --choose--> Choice
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.sandbox

from llm_wrapper.bounded_templates import TEMPLATES
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.relations import Rank, Relations, compute_relations, spell_cardinal, spell_ordinal
from llm_wrapper.prompts.text import clean_label, clean_text, fill_instruction, require_expression, require_instruction
from llm_wrapper.readers import read_text
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Box, Candidate, Choice, Message, Prompt, Sample
from llm_wrapper.terminal import printable

PROMPT_FORMATS = ("coords", "coords_scores", "compact", "relations", "hints")
"""Names of the shipped formats; each is a file in `prompts/templates`. A path to a `.j2` file is a format too."""

PromptInput = tuple[Sample, Sequence[Candidate]]
"""A sample, and its candidates in the order to be shown."""

_MAX_PROMPT = 200_000
"""Characters of one question; with 20 candidates it has 2,000."""

NO_PROBABILITY = "no_probability"
"""Reason where a server was asked for probabilities and gave none that can be used."""

NONE_OF_THESE = "none_of_these"
"""Reason of a choice that is an answer all the same: none of the candidates is meant."""

_TEMPLATES = Path(__file__).parent / "templates"
_OBJECTS = "objects"
"""The block of a template that holds the lines of the candidates, and what explains their columns."""
_NONE = "none_index"
"""The variable of a template that is the index of "none of these", or none where that is no answer."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A training expression that can be shown: its candidates in shown order, and the index of the right one."""

    sample: Sample
    candidates: tuple[Candidate, ...]
    index: int


class ExampleSelector(Protocol):
    """Chooses the examples that are shown before each question."""

    def select(self, questions: Sequence[PromptInput]) -> list[list[Exemplar]]:
        """Return the examples of each question in the order to be shown; never one of the question's own image."""
        ...


@dataclass(frozen=True)
class PromptBuilder:
    """Build prompts of samples and their candidates; equal sections without examples give equal builders.

    Raises:
        PromptError: If the instruction cannot be used, or the section asks for examples and there is no selector.
    """

    section: PromptSection
    selector: ExampleSelector | None = None  # see `training.examples.load_prompt_builder`
    facts: dict[str, Any] = field(default_factory=dict, compare=False)  # where the examples came from, for the report

    def __post_init__(self) -> None:
        if self.section.examples and self.selector is None:
            raise PromptError(f"prompt.examples={self.section.examples}: there are no training expressions to show")
        if self.section.instruction is not None:
            require_instruction(self.section.instruction)

    def build(self, questions: Sequence[PromptInput]) -> list[Prompt]:
        """Return one prompt for each question, in order."""
        prompts = self._questions(questions)
        if self.selector is None:
            return prompts
        built = []
        for prompt, examples in zip(prompts, self.selector.select(questions), strict=True):
            turns: list[Message] = []
            shown = self._questions([(each.sample, each.candidates) for each in examples])
            for question, example in zip(shown, examples, strict=True):
                turns += [*question.messages, Message("assistant", str(example.index))]
            built.append(replace(prompt, messages=(*turns, *prompt.messages)))
        return built

    def _questions(self, questions: Sequence[PromptInput]) -> list[Prompt]:
        section = self.section
        return [
            render_prompt(sample, candidates, section.format, instruction=section.instruction, none=section.none)
            for sample, candidates in questions
        ]


@dataclass(frozen=True, slots=True)
class ShownCandidate:
    """One candidate as a template sees it, with clean text.

    Attributes:
        grid: The box in integers 0..99 of the image's sides.
        origin: A space and the name of the detector where several are mixed, else nothing.
        position: top left ... center ... bottom right.
        kind: Extent and label: `big zebra`.
        left_of_all: Rank from the left among all candidates, from 1.
        size_of_all: Rank by area among all candidates, 1 is the largest.
        order_words: Order, size and depth among candidates of the same label; `only` where there is no other.
    """

    index: int
    label: str
    box: Box
    score: float | None
    grid: tuple[int, int, int, int]
    relations: Relations
    origin: str
    position: str
    kind: str
    left_of_all: int
    size_of_all: int
    order_words: str

    @property
    def required_score(self) -> float:
        """The score; a PromptError where the detector has none."""
        if self.score is None:
            raise PromptError(
                f"candidate {self.index} ({self.label}) has no score, and this prompt format shows scores. "
                "Use prompt.format=coords, compact or relations with this detector."
            )
        return self.score


def _describe_candidates(candidates: Sequence[Candidate], image_wh: tuple[int, int]) -> list[ShownCandidate]:
    mixed = len({candidate.detector for candidate in candidates}) > 1
    sides, shown = (*image_wh, *image_wh), []
    for index, relations in enumerate(compute_relations(candidates, image_wh)):
        candidate = candidates[index]
        label = clean_label(candidate.label)
        x0, y0, x1, y1 = (
            min(99, max(0, int(100 * value / side))) for value, side in zip(candidate.box.xyxy, sides, strict=True)
        )
        shown.append(
            ShownCandidate(
                index=index,
                label=label,
                box=candidate.box,
                score=candidate.score,
                grid=(x0, y0, x1, y1),
                relations=relations,
                origin=f" {clean_text(candidate.detector)}" if mixed else "",
                position=relations.position,
                kind=f"{relations.extent} {label}",
                left_of_all=relations.left_of_all.rank,
                size_of_all=relations.size_of_all.rank,
                order_words=_order_words(relations),
            )
        )
    return shown


def _order_words(own: Relations) -> str:
    if own.left.count == 1:
        return "only"
    order = _extreme(own.left, "leftmost", "rightmost") or spell_ordinal(own.left.rank)
    size = _extreme(own.size, "largest", "smallest") or f"size {spell_cardinal(own.size.rank)}"
    depth = _extreme(own.near, "front", "back")
    return " ".join(word for word in (order, "of", spell_cardinal(own.left.count), size, depth) if word)


def _extreme(rank: Rank, first: str, last: str) -> str:
    return first if rank.is_first else last if rank.is_last else ""


@cache
def _shipped_template(name: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    return environment.from_string((_TEMPLATES / f"{name}.j2").read_text(encoding="utf-8"))


@cache
def _read_template(name: str, _folder: str) -> str:
    """Read a user's template; the working folder is part of the cache's key, as a name may be relative to it."""
    try:
        if not name.endswith(".j2"):
            raise DataError("its name does not end in .j2")
        return read_text(name, most=1 << 16)
    except DataError as error:
        raise PromptError(
            f"prompt format {name!r} is neither one of {', '.join(PROMPT_FORMATS)} nor a readable template file "
            f"({error}). A recipe's own template lies beside it: copy it there"
        ) from error


def _render_content(prompt_format: str, instruction: str | None, known: Mapping[str, Any]) -> str:
    """Render a template, or fill the instruction with its block of objects."""
    block = None if instruction is None else _OBJECTS
    if prompt_format not in PROMPT_FORMATS:
        text = _render_user_template(prompt_format, block, known)
    elif block is None:
        text = _shipped_template(prompt_format).render(known)
    else:
        template = _shipped_template(prompt_format)
        text = "".join(template.blocks[block](template.new_context(dict(known))))
    return text if instruction is None else fill_instruction(instruction, objects=text, expression=known["expression"])


def _render_user_template(prompt_format: str, block: str | None, known: Mapping[str, Any]) -> str:
    """Render a user's template in a process with limits: it may run without end, or fill the memory."""
    shown = {name: [_plain(each) for each in known[name]] for name in ("candidates", "likely")}
    try:
        reply = TEMPLATES.render_prompt(_read_template(prompt_format, os.getcwd()), {**known, **shown}, block)
    except (OSError, ValueError) as error:
        raise PromptError(f"prompt format {prompt_format!r}: {error}") from error
    if "missing" in reply:
        raise PromptError(
            f"prompt format {prompt_format!r} does not say which of its lines are the objects, and prompt.instruction "
            f"needs them: put {{% block {_OBJECTS} %}} before and {{% endblock %}} behind those lines"
        )
    if "line" in reply:
        raise PromptError(f"{prompt_format}, line {reply['line']}: {printable(reply['error'])}")
    if "error" in reply:
        for each in known["candidates"] if "required_score" in reply["error"] else ():
            _ = each.required_score
        raise PromptError(f"prompt format {prompt_format!r}: {printable(reply['error'] or reply['kind'])}")
    return str(reply["text"])


def _plain(shown: ShownCandidate) -> dict[str, Any]:
    """Return a candidate as plain values, with the properties that a template may use."""
    values = asdict(shown)
    values["box"] |= {name: getattr(shown.box, name) for name in ("xyxy", "center", "area")}
    for name, rank in values["relations"].items():
        own = getattr(shown.relations, name)
        if isinstance(own, Rank):
            rank |= {"is_first": own.is_first, "is_last": own.is_last}
    return values if shown.score is None else {**values, "required_score": shown.score}


def render_prompt(
    sample: Sample,
    candidates: Sequence[Candidate],
    prompt_format: str,
    *,
    instruction: str | None = None,
    none: bool = False,
) -> Prompt:
    """Render the question that asks for the index of one candidate.

    The expression comes last, so that all expressions of an image with the same candidates share their prefix.

    Args:
        sample: Gives the expression and the image's size; its target is never looked at.
        candidates: In the order to be shown; index i is the i-th line.
        prompt_format: One of `PROMPT_FORMATS`, or the path of a Jinja template that gets `candidates`
            (`ShownCandidate`), `likely` (those that the rule puts in question, best first), `company` (index of a
            likely one -> labels of what the expression names and it is closest to), `expression`, `width`, `height`,
            and `none_index`, see `none`.
        instruction: Replaces all text of the template but its block `objects`, see `prompts.text`.
        none: Whether one more line says "none of these"; its index is the number of candidates.

    Raises:
        PromptError: If anything of it cannot be used or shown, or the prompt is longer than any model's limit.
    """
    expression = require_expression(sample.expression)
    if instruction is not None:
        require_instruction(instruction)
    shown = _describe_candidates(candidates, sample.image_wh)
    likely = rule.rank_by_rule(sample.expression, candidates)
    company = rule.find_companions(sample.expression, candidates, likely)
    known = {
        "candidates": shown,
        "likely": [shown[index] for index in likely],
        "company": {index: [clean_label(label) for label in labels] for index, labels in company.items()},
        "expression": expression,
        "width": sample.image_wh[0],
        "height": sample.image_wh[1],
        _NONE: len(shown) if none else None,
    }
    try:
        content = _render_content(prompt_format, instruction, known)
        if none and content == _render_content(prompt_format, instruction, {**known, _NONE: None}):
            raise PromptError(
                f"prompt.none=true asks for an answer that prompt format {prompt_format!r} has no line for: write "
                f"{{% if {_NONE} is not none %}}{{{{ {_NONE} }}}} none of these{{% endif %}} behind those of its "
                f"candidates{', in its block objects' if instruction is not None else ''}; or set prompt.none=false"
            )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PromptError(f"prompt format {prompt_format!r}: {error}") from error
    if len(content) > _MAX_PROMPT:
        raise PromptError(
            f"the prompt of sample {sample.sample_id} has {len(content)} characters for {len(candidates)} candidates; "
            f"{_MAX_PROMPT} is the most: lower candidates.cap, or take a shorter prompt.format"
        )
    return Prompt(sample.sample_id, (Message("user", content.strip()),), tuple(candidates), prompt_format, none)


def choose(answer: Answer, num_candidates: int, *, none: bool = False, none_below: float | None = None) -> Choice:
    """Return the most probable index (the first of equals), or the first integer of a generated text.

    With `none`, the index behind the candidates is "none of these"; a choice less probable than `none_below` becomes
    that too, but a text has no probability, and stays. Where none is meant, or the text has no integer or one out of
    range, the choice has no index but the reason.
    """
    if answer.probabilities is not None:
        if len(answer.probabilities) != num_candidates + none:
            asked = f"{num_candidates} candidates{' and none of these' if none else ''}"
            raise ValueError(f"{len(answer.probabilities)} probabilities for {asked}")
        best = max(answer.probabilities)
        index = answer.probabilities.index(best)
        if index == num_candidates or (none_below is not None and best < none_below):
            return Choice(None, answer.probabilities[-1] if none else None, NONE_OF_THESE)
        return Choice(index, best)
    if answer.text is None:
        return Choice(None, reason=NO_PROBABILITY)
    found = re.search(r"-?\d+", answer.text, flags=re.ASCII)
    if found is None:
        return Choice(None, reason="no_number")
    index = int(found[0][:1000])  # Python refuses to read numbers of more than 4,300 digits
    if none and index == num_candidates:
        return Choice(None, reason=NONE_OF_THESE)
    return Choice(index) if 0 <= index < num_candidates else Choice(None, reason="index_out_of_range")
