"""What a report says of one evaluation: results, differences, errors, slices; `report.confidence` has the rest.

Everything is computed from stored predictions, with fixed seeds, so that the same run gives the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from llm_wrapper import columns
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation import grec, mistakes
from llm_wrapper.evaluation.paired import compare_systems, paired
from llm_wrapper.evaluation.recall import recall
from llm_wrapper.evaluation.slices import UNKNOWN, by_slice, differences_by_slice
from llm_wrapper.metrics import RANKS, measure, summarize
from llm_wrapper.records import Prediction
from llm_wrapper.report.parts import Figure, Part, Section, Table, counted, number, percent, points
from llm_wrapper.report.plots import chart, of_estimates
from llm_wrapper.report.published import beside, on_same_split
from llm_wrapper.report.tables import NO_DATA
from llm_wrapper.statistics import Estimate

__all__ = ["advice", "differences", "errors", "positions", "results", "slices"]

_FEWEST = 50
"""A slice with fewer expressions is not called weak: its P@1 is mostly chance."""

_NEXT_STEP = {
    "missing": "evaluate again, so that every sample has a prediction",
    "missed": "the LLM cannot choose what is not offered: lower the detector's thresholds, raise candidates.cap, or "
    "add a second detector (make ensemble)",
    "unusable": "the detector offers nothing either: lower its thresholds; take llm.decode=score, which cannot fail",
    "fallback": "take llm.decode=score, which always gives an index",
    "near": "several boxes stand for one object: set candidates.nms_iou",
    "wrong": "the right box was offered: train on more data or longer, or take a prompt.format that says more",
}
"""Outcome -> what to do about it first."""


def advice(part: Part) -> Section:
    """Say in sentences where the main system loses most and what to do next."""
    rows = part.systems[part.main or part.base]
    lost = {name: share for name, share in mistakes.split(rows).items() if name != "right" and share.value}
    text = [
        f"{name}, {percent(share)} % of the expressions: {_NEXT_STEP[name]}."
        for name, share in sorted(lost.items(), key=lambda item: -(item[1].value or 0.0))[:2]
    ]
    known = [
        (share.value, f"{family} {name!r}: P@1 {percent(share)}, n {share.n}")
        for family, found in by_slice(rows).items()
        for name, share in found.items()
        if share.value is not None and share.n >= _FEWEST and name != UNKNOWN
    ]
    weakest = [line for _, line in sorted(known)[:3]]
    text += [f"Weakest slices: {'; '.join(weakest)}."] if weakest else []
    return Section(f"Where {part.main or part.base} fails, and what next", text or [NO_DATA])


def results(part: Part) -> Section:
    """Every system's results, with published numbers beside them."""
    tables = [_results_table(part)]
    tables += [_recall_table(part), *_grec_table(part), *_published_table(part)]
    found = [summarize(rows) for rows in part.systems.values()]
    bars = [Estimate(each.p_at_1, each.ci, each.n) for each in found]
    figure = chart(
        [of_estimates("P@1", range(len(bars)), bars)], x="", y="P@1 in percent", top=105, ticks=list(part.systems)
    )
    text = [
        "In percent, with 95 % intervals that resample images. P@1 counts a box with IoU > 0.5; the third column shows "
        "what is published for the same data, split, detector and LLM, by their names; training may differ.",
    ]
    limit = part.facts.get("limit")
    text += [f"Of the first {limit} samples only: no number is comparable with one of the whole split."] * bool(limit)
    return Section("Results", text, tables, [Figure("P@1 of each system with its 95 % interval", figure)])


def _results_table(part: Part) -> Table:
    head = ("system", "P@1 > 0.5", "published", "P@1 >= 0.5", "mean IoU", "accuracy 0.5..0.95", "n", "decided by",
            "failures")  # fmt: skip
    lines = []
    for name, rows in part.systems.items():
        summary, scores = summarize(rows), measure(columns.of_records(rows))
        known = beside(part.recipe, part.name, name)
        lines.append(
            (
                name,
                percent(scores.p_at_1),
                f"{known.p_at_1:g}" if known else "",
                percent(scores.p_at_1_ge),
                number(scores.mean_iou.value),
                percent(scores.accuracy),
                f"{summary.n}" + f" (+{summary.num_without_target} without target)" * bool(summary.num_without_target),
                counted(summary.decided_by),
                counted(summary.failures),
            )
        )
    return Table("Results", head, lines)


def _recall_table(part: Part) -> Table:
    found = recall(part.systems[part.base])
    cells = [NO_DATA if found is None else percent(found[rank]) for rank in RANKS]
    return Table("Recall of the candidates in the detector's own order", [f"@{rank}" for rank in RANKS], [cells])


def _grec_table(part: Part) -> list[Table]:
    """What GREC measures, where an expression means nothing or several objects."""
    if all(row.target is not None and not row.further_targets for row in part.systems[part.base]):
        return []
    lines = []
    for name, rows in part.systems.items():
        found = grec.measure(rows)
        cells = (found.n_acc, found.t_acc, found.precision, found.precision_giou)
        lines.append((name, *map(percent, cells)))
    head = ("system", "N-acc", "T-acc", "Pr@(F1=1)", "Pr@(F1=1), generalised IoU")
    return [Table("Expressions that mean nothing or several objects", head, lines)]


def _published_table(part: Part) -> list[Table]:
    known = on_same_split(part.recipe, part.name)
    lines = [(each.name, f"{each.p_at_1:g}", each.source) for each in known]
    return [Table("Published P@1 on this split, by other systems", ("system", "P@1", "source"), lines)] if known else []


def differences(part: Part) -> Section:
    """Each pair of systems on the same samples."""
    lines = []
    for first, second in combinations(part.judged, 2):
        try:
            found = compare_systems(part.systems[second], part.systems[first])
        except DataError as error:
            lines.append((f"{second} - {first}", f"not compared: {error}", *[""] * 5))
            continue
        test = found.mcnemar
        p_value = NO_DATA if test.p_value is None else "< 0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}"
        gains = (points(found.p_at_1), points(found.p_at_1_ge), points(found.mean_iou))
        lines.append((f"{second} - {first}", *gains, f"{test.only_a} / {test.only_b}", p_value, str(test.n)))
    head = ("systems", "P@1 > 0.5", "P@1 >= 0.5", "mean IoU x 100", "right alone", "McNemar p", "n")
    text = [
        "First minus second in points, on the same samples. The intervals draw whole images; McNemar's test takes "
        "expressions as independent, which those of one image are not, and so claims more: read both.",
    ]
    return Section("Differences between systems", text, [Table("Differences", head, lines)])


def errors(part: Part) -> Section:
    """Why each system is wrong."""
    found = {name: mistakes.split(rows) for name, rows in part.systems.items()}
    lines = [(name, *(percent(shares[outcome]) for outcome in mistakes.OUTCOMES)) for name, shares in found.items()]
    text = [
        "Percent of the expressions with a target; a row adds up to 100. Missing: no prediction. Missed: no candidate "
        "with IoU > 0.5. Unusable: no choice in the answer, and none of the detector. Fallback: no choice in the "
        "answer, and the detector's own was wrong. Near: chosen and best candidate nearly coincide (IoU >= "
        f"{mistakes.NEAR_IOU:g}). Wrong: another object was chosen among those found.",
    ]
    return Section("Errors", text, [Table("Error split", ("system", *mistakes.OUTCOMES), lines)])


def positions(part: Part) -> Section:
    """P@1 by the place at which the best candidate was shown."""
    found = {name: mistakes.by_position(rows) for name, rows in part.judged.items()}
    places = sorted({place for shares in found.values() for place in shares})
    sizes = [max(shares[place].n for shares in found.values() if place in shares) for place in places]
    empty = Estimate(None, None, 0)
    lines = [
        (str(place), *(percent(shares.get(place, empty)) for shares in found.values()), str(size))
        for place, size in zip(places, sizes, strict=True)
    ]
    series = [of_estimates(name, list(shares), list(shares.values())) for name, shares in found.items()]
    figure = chart(series, x="index of the best candidate", y="P@1 in percent", top=105)
    text = ["Over samples with at least two candidates, one of them right. A system that reads what it is shown is "
            "equally good at every index; one that prefers the first line is not."]  # fmt: skip
    table = Table("P@1 by position of the target", ("index", *found, "n"), lines)
    return Section("Position of the target", text, [table], [Figure("P@1 by position of the target", figure)])


def slices(part: Part) -> Section:
    """P@1 of every system in every slice, and what the main system gains over the base."""
    found = {name: by_slice(rows) for name, rows in part.judged.items()}
    gains = _gains(part)
    gained = [f"{part.main} - {part.base}"] if gains else []
    tables = []
    for family, own in found[part.base].items():
        lines = []
        for name, share in own.items():
            cells = [percent(shares[family][name]) for shares in found.values()]
            cells += [points(gains[family][name])] if gains else []
            lines.append((name, *cells, str(share.n)))
        tables.append(Table(f"By {family}", (family, *found, *gained, "n"), lines))
    text = [
        "P@1 in percent. An expression can be of several kinds; the other slices do not overlap. Distractors share the "
        "target's label and are other objects; length is in words; size is the target's share of the image.",
    ]
    return Section("Slices", text, tables)


def _gains(part: Part) -> dict[str, dict[str, Estimate]]:
    if part.main is None:
        return {}
    pair: Sequence[Sequence[Prediction]] = (part.systems[part.main], part.systems[part.base])
    try:
        return differences_by_slice(paired(*pair))
    except DataError:  # said in the section of differences
        return {}
