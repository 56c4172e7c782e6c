"""Render candidates and an expression as the prompt of an LLM."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from llm_wrapper.bounded_templates import TEMPLATES
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.relations import Rank, Relations, compute_relations, spell_cardinal, spell_ordinal
from llm_wrapper.prompts.text import clean_label, clean_text, fill_instruction, require_expression, require_instruction
from llm_wrapper.readers import read_text
from llm_wrapper.records import Box, Candidate, Message, Prompt, Sample
from llm_wrapper.terminal import printable

__all__ = ["MAX_PROMPT", "PROMPT_FORMATS", "PromptInput", "ShownCandidate", "render_prompt"]

PROMPT_FORMATS = ("coords", "coords_scores", "compact", "relations", "hints")
"""Names of the shipped formats; each is a file in `prompts/templates`. A path to a `.j2` file is a format too."""

PromptInput = tuple[Sample, Sequence[Candidate]]
"""A sample, and its candidates in the order to be shown."""

_TEMPLATES = Path(__file__).parent / "templates"
_OBJECTS = "objects"
"""The block of a template that holds the lines of the candidates, and what explains their columns."""
MAX_PROMPT = 200_000
"""Characters of one question; with 20 candidates it has 2,000."""
_MOST_BYTES = 1 << 16
_NONE = "none_index"
"""The variable of a template that is the index of "none of these", or none where that is no answer."""


@dataclass(frozen=True, slots=True)
class ShownCandidate:
    """One candidate as a template sees it, with clean text.

    `grid` is the box in integers 0..99 of the image's sides; `origin` names the detector where several are mixed.
    """

    index: int
    label: str
    box: Box
    score: float | None
    grid: tuple[int, int, int, int]
    relations: Relations
    origin: str

    @property
    def required_score(self) -> float:
        """The score; a PromptError where the detector has none."""
        if self.score is None:
            raise PromptError(
                f"candidate {self.index} ({self.label}) has no score, and this prompt format shows scores. "
                "Use prompt.format=coords, compact or relations with this detector."
            )
        return self.score

    @property
    def position(self) -> str:
        """Position word in the image: top left ... center ... bottom right."""
        return self.relations.position

    @property
    def kind(self) -> str:
        """Extent and label: `big zebra`."""
        return f"{self.relations.extent} {self.label}"

    @property
    def left_of_all(self) -> int:
        """Rank from the left among all candidates, from 1."""
        return self.relations.left_of_all.rank

    @property
    def size_of_all(self) -> int:
        """Rank by area among all candidates, 1 is the largest."""
        return self.relations.size_of_all.rank

    @property
    def order_words(self) -> str:
        """Order, size and depth among candidates of the same label, in words; `only` where there is no other."""
        own = self.relations
        if own.left.count == 1:
            return "only"
        order = _extreme(own.left, "leftmost", "rightmost") or spell_ordinal(own.left.rank)
        size = _extreme(own.size, "largest", "smallest") or f"size {spell_cardinal(own.size.rank)}"
        depth = _extreme(own.near, "front", "back")
        return " ".join(word for word in (order, "of", spell_cardinal(own.left.count), size, depth) if word)


def _extreme(rank: Rank, first: str, last: str) -> str:
    return first if rank.is_first else last if rank.is_last else ""


@cache
def _shipped(name: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    return environment.from_string((_TEMPLATES / f"{name}.j2").read_text(encoding="utf-8"))


@cache
def _own(name: str, _folder: str) -> str:
    """Read a user's template; the working folder is part of the cache's key, as a name may be relative to it."""
    try:
        if not name.endswith(".j2"):
            raise DataError("its name does not end in .j2")
        return read_text(name, most=_MOST_BYTES)
    except DataError as error:
        raise PromptError(
            f"prompt format {name!r} is neither one of {', '.join(PROMPT_FORMATS)} nor a readable template file "
            f"({error}). A recipe's own template lies beside it: copy it there"
        ) from error


def _grid(box: Box, image_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    sides = (*image_wh, *image_wh)
    x0, y0, x1, y1 = (min(99, max(0, int(100 * value / side))) for value, side in zip(box.xyxy, sides, strict=True))
    return x0, y0, x1, y1


def _describe_candidates(candidates: Sequence[Candidate], image_wh: tuple[int, int]) -> list[ShownCandidate]:
    mixed = len({candidate.detector for candidate in candidates}) > 1
    return [
        ShownCandidate(
            index=index,
            label=clean_label(candidate.label),
            box=candidate.box,
            score=candidate.score,
            grid=_grid(candidate.box, image_wh),
            relations=relations,
            origin=f" {clean_text(candidate.detector)}" if mixed else "",
        )
        for index, (candidate, relations) in enumerate(
            zip(candidates, compute_relations(candidates, image_wh), strict=True)
        )
    ]


def _content(prompt_format: str, instruction: str | None, known: Mapping[str, Any]) -> str:
    if instruction is None:
        return _rendered(prompt_format, None, known)
    require_instruction(instruction)
    objects = _rendered(prompt_format, _OBJECTS, known)
    return fill_instruction(instruction, objects=objects, expression=known["expression"])


def _rendered(prompt_format: str, block: str | None, known: Mapping[str, Any]) -> str:
    """Render a template, or one of its blocks."""
    if prompt_format not in PROMPT_FORMATS:
        return _rendered_apart(prompt_format, block, known)
    template = _shipped(prompt_format)
    if block is None:
        return template.render(known)
    return "".join(template.blocks[block](template.new_context(dict(known))))


def _rendered_apart(prompt_format: str, block: str | None, known: Mapping[str, Any]) -> str:
    """Render a user's template in a process with limits: it may run without end, or fill the memory."""
    shown = {name: [_plain(each) for each in known[name]] for name in ("candidates", "likely")}
    try:
        reply = TEMPLATES.render_prompt(_own(prompt_format, os.getcwd()), {**known, **shown}, block)
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
    """Return a candidate as plain values, with all attributes that a template may use."""
    values = asdict(shown)
    box = {name: getattr(shown.box, name) for name in ("xyxy", "center", "area")}
    relations = {
        name: {**rank, "is_first": own.is_first, "is_last": own.is_last} if isinstance(own, Rank) else own
        for name, rank in values["relations"].items()
        for own in [getattr(shown.relations, name)]
    }
    words = {name: getattr(shown, name) for name in ("position", "kind", "left_of_all", "size_of_all", "order_words")}
    score = {} if shown.score is None else {"required_score": shown.score}
    return {**values, "box": {**values["box"], **box}, "relations": relations, **words, **score}


def _require_none(content: str, prompt_format: str, instruction: str | None, known: Mapping[str, Any]) -> None:
    """Refuse a template that ignores that "none of these" is an answer."""
    if content == _content(prompt_format, instruction, {**known, _NONE: None}):
        raise PromptError(
            f"prompt.none=true asks for an answer that prompt format {prompt_format!r} has no line for: write "
            f"{{% if {_NONE} is not none %}}{{{{ {_NONE} }}}} none of these{{% endif %}} behind those of its "
            f"candidates{', in its block objects' if instruction is not None else ''}; or set prompt.none=false"
        )


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
        prompt_format: One of `FORMATS`, or the path of a Jinja template that gets `candidates`
            (`ShownCandidate`), `likely` (those that the rule puts in question, best first), `company` (index of a
            likely one -> labels of what the expression names and it is closest to), `expression`, `width`, `height`,
            and `none_index`, see `none`.
        instruction: Replaces all text of the template but its block `objects`, see `prompts.text`.
        none: Whether one more line says "none of these"; its index is the number of candidates.

    Raises:
        PromptError: If the template or the instruction cannot be used, a score to be shown is missing, the template has
            no line for none, the expression is empty, or the prompt is longer than any model's limit.
    """
    expression = require_expression(sample.expression)
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
        content = _content(prompt_format, instruction, known)
        if none:
            _require_none(content, prompt_format, instruction, known)
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PromptError(f"prompt format {prompt_format!r}: {error}") from error
    if len(content) > MAX_PROMPT:
        raise PromptError(
            f"the prompt of sample {sample.sample_id} has {len(content)} characters for {len(candidates)} candidates; "
            f"{MAX_PROMPT} is the most: lower candidates.cap, or take a shorter prompt.format"
        )
    return Prompt(sample.sample_id, (Message("user", content.strip()),), tuple(candidates), prompt_format, none)
