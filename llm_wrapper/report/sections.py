"""What a report says of one evaluation: results, differences, errors, slices; `report.confidence` has the rest.

Everything is computed from stored predictions, with fixed seeds, so that the same run gives the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from llm_wrapper import metrics
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation import comparison, grec
from llm_wrapper.evaluation.comparison import compare_systems, flips, paired
from llm_wrapper.evaluation.slices import UNKNOWN, by_slice, differences_by_slice, recall
from llm_wrapper.metrics import RANKS, measure_columns, summarize
from llm_wrapper.records import Candidate, Prediction
from llm_wrapper.report.parts import Figure, Part, Section, Table, counted, number, percent, points
from llm_wrapper.report.plots import chart, of_estimates
from llm_wrapper.report.published import beside, on_same_split
from llm_wrapper.report.tables import NO_DATA
from llm_wrapper.statistics import Estimate

__all__ = ["advice", "differences", "errors", "flipped", "positions", "results", "slices"]

_FEWEST = 50
"""A slice with fewer expressions is not called weak: its P@1 is mostly chance."""

_NEXT_STEP = {
    "missing": "evaluate again, so that every sample has a prediction",
    "missed": "the LLM cannot choose what is not offered: lower the detector's thresholds, raise candidates.cap, or "
    "add a second detector (make ensemble)",
    "none": "the right box was offered, and none was answered: lower prompt.none_below, or train on more expressions "
    "that have a target",
    "unusable": "the detector offers nothing either: lower its thresholds; take llm.decode=score, which cannot fail",
    "fallback": "take llm.decode=score, which always gives an index",
    "near": "several boxes stand for one object: set candidates.nms_iou",
    "wrong": "the right box was offered: train on more data or longer, or take a prompt.format that says more",
}
"""Outcome -> what to do about it first."""

_WITHOUT_LLM = {
    "wrong": "the right box was offered, and no LLM chose: train one (llm-wrapper train), or ask one as it is "
    "(llm-wrapper eval --llm smollm2)",
}
"""The same where rules or the detector chose."""


def advice(part: Part) -> Section:
    """Say in sentences where the main system loses most and what to do next."""
    rows = part.systems[part.main or part.base]
    by_llm = any(row.decided_by in ("llm", "fallback") for row in rows)
    steps = _NEXT_STEP if by_llm else {**_NEXT_STEP, **_WITHOUT_LLM}
    lost = {name: share for name, share in comparison.outcome_shares(rows).items() if name != "right" and share.value}
    text = [
        f"{name}, {percent(share)} % of the expressions: {steps[name]}."
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
        [
            of_estimates(name, [at], [bar], place=part.place(name))
            for at, (name, bar) in enumerate(zip(part.systems, bars, strict=True))
        ],
        x="",
        y="P@1 in percent",
        top=105,
        ticks=list(part.systems),
    )
    text = ["In percent, with 95 % intervals that resample images. P@1 counts a box with IoU > 0.5."]
    if "published" in tables[0].head:
        text.append(
            "The column `published` shows what is published for the same data, split, detector and LLM, by their "
            "names; training may differ."
        )
    text += part.facts.get("notes") or []
    limit = part.facts.get("limit")
    text += [f"Of the first {limit} samples only: no number is comparable with one of the whole split."] * bool(limit)
    return Section("Results", text, tables, [Figure("P@1 of each system with its 95 % interval", figure)])


def _results_table(part: Part) -> Table:
    published = {name: beside(part.recipe, part.name, name) for name in part.systems if name not in part.guests}
    head = ["system", "P@1 > 0.5", "published", "P@1 >= 0.5", "mean IoU", "accuracy 0.5..0.95", "n", "decided by",
            "failures"]  # fmt: skip
    lines = []
    for name, rows in part.systems.items():
        summary, scores = summarize(rows), measure_columns(metrics.to_columns(rows))
        known = published.get(name)
        without = f" (+{summary.num_without_target} without target)" * bool(summary.num_without_target)
        lines.append(
            [
                name,
                percent(scores.p_at_1),
                str(known.p_at_1) if known else "",
                percent(scores.p_at_1_ge),
                number(scores.mean_iou.value),
                percent(scores.accuracy),
                f"{summary.n}{without}",
                counted(summary.decided_by),
                counted(summary.failures),
            ]
        )
    if not any(published.values()):
        for row in (head, *lines):
            del row[2]
    return Table("Results", head, lines, prose=(len(head) - 2, len(head) - 1))


def _recall_table(part: Part) -> Table:
    found = recall(part.systems[part.base])
    lines = [] if found is None else [["recall", *(percent(found[rank]) for rank in RANKS)]]
    return Table("Recall of the candidates in the detector's own order", ["", *(f"@{rank}" for rank in RANKS)], lines)


def _grec_table(part: Part) -> list[Table]:
    """What GREC measures, where an expression means nothing or several objects."""
    if all(row.target is not None and not row.further_targets for row in part.systems[part.base]):
        return []
    lines = []
    for name, rows in part.systems.items():
        found = grec.measure_grec(rows)
        cells = (found.n_acc, found.t_acc, found.precision, found.precision_giou)
        lines.append((name, *map(percent, cells)))
    head = ("system", "N-acc", "T-acc", "Pr@(F1=1)", "Pr@(F1=1), generalised IoU")
    return [Table("Expressions that mean nothing or several objects", head, lines)]


def _published_table(part: Part) -> list[Table]:
    known = on_same_split(part.recipe, part.name)
    lines = [(each.name, str(each.p_at_1), each.source) for each in known]
    head, caption = ("system", "P@1", "source"), "Published P@1 on this split, by other systems"
    return [Table(caption, head, lines, prose=(2,))] if known else []


def differences(part: Part) -> Section:
    """Each pair of systems on the same samples, and where runs that are compared have other recipes."""
    lines, refused = [], []
    for first, second in _pairs(part):
        try:
            found = compare_systems(part.systems[second], part.systems[first])
        except DataError as error:
            refused.append(f"{second} - {first} is not compared: {error}")
            continue
        test = found.mcnemar
        p_value = NO_DATA if test.p_value is None else "< 0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}"
        gains = (points(found.p_at_1), points(found.p_at_1_ge), points(found.mean_iou))
        recipes = [_recipes(part, first, second)] * bool(part.guests)
        alone = f"{test.only_a} / {test.only_b}"
        lines.append([f"{second} - {first}", *recipes, *gains, alone, p_value, str(test.n)])
    head = ["P@1 > 0.5", "P@1 >= 0.5", "mean IoU x 100", "right alone", "McNemar p", "n"]
    text = [
        "First minus second in points, on the same samples. The intervals draw whole images; McNemar's test takes "
        "expressions as independent, which those of one image are not, and so claims more: read both.",
        *refused,
    ]
    text += [f"Left out, because they predict the same as here: {', '.join(part.left_out)}."] * bool(part.left_out)
    head = ["systems", *["recipes"] * bool(part.guests), *head]
    table = Table("Differences", head, lines, prose=(1,) if part.guests else ())
    return Section("Differences between systems", text, [table, *_recipes_table(part)])


def _pairs(part: Part) -> list[tuple[str, str]]:
    """Return what is compared: all of the run, and each guest with the first, the main, and its namesake."""
    pairs = []
    for first, second in combinations(part.judged, 2):
        guest = part.guests.get(second)
        rivals = {part.base, part.main, second.removeprefix(f"{guest.run}: ")} if guest else {first}
        if first in rivals:
            pairs.append((first, second))
    return pairs


def _recipes(part: Part, first: str, second: str) -> str:
    """Say whether two systems are of runs with the same recipe; what differs stands in a table of its own."""
    runs = {name: part.guests[name].run if name in part.guests else "" for name in (first, second)}
    if runs[first] == runs[second]:
        return "same run"
    differing = [name for name in (first, second) if name in part.guests and part.guests[name].differences]
    return f"differ ({', '.join(runs[name] for name in differing)})" if differing else "same"


def _recipes_table(part: Part) -> list[Table]:
    runs = {each.run: each.differences for each in part.guests.values()}
    lines = [(run, text) for run, found in runs.items() for text in found or ["the same recipe"]]
    caption = "Where compared runs have another recipe than this one"
    return [Table(caption, ("run", "difference"), lines, prose=(1,))] if runs else []


def errors(part: Part) -> Section:
    """Why each system is wrong."""
    found = {name: comparison.outcome_shares(rows) for name, rows in part.systems.items()}
    said_none = any(shares["none"].value for shares in found.values())
    shown = [outcome for outcome in comparison.OUTCOMES if outcome != "none" or said_none]
    lines = [(name, *(percent(shares[outcome]) for outcome in shown)) for name, shares in found.items()]
    text = [
        "Percent of the expressions with a target; a row adds up to 100. Missing: no prediction. Missed: no candidate "
        "with IoU > 0.5. Unusable: no choice in the answer, and none of the detector. Fallback: no choice in the "
        "answer, and the detector's own was wrong. Near: chosen and best candidate nearly coincide (IoU >= "
        f"{comparison.NEAR_IOU:g}). Wrong: another object was chosen among those found.",
        *["None: it was answered that none is meant, and the right one was among them."] * said_none,
    ]
    table = Table("Error split", ("system", *shown), lines)
    return Section("Errors", text, [table, _twins_table(part)])


def _twins_table(part: Part) -> Table:
    found = {name: comparison.near_ties(rows) for name, rows in part.judged.items()}
    lines = [(name, *map(percent, each), str(each.share.n)) for name, each in found.items() if each.share.n]
    head = ("system", "expressions", "P@1 there", "P@1 elsewhere", "n")
    caption = f"The two best candidates nearly coincide (IoU >= {comparison.NEAR_IOU:g}), among those with a right one"
    return Table(caption, head, lines)


def flipped(part: Part) -> Section:
    """How often a system chooses another box when the same candidates stand in another order."""
    lines = []
    for name, guest in part.guests.items():
        own = name.removeprefix(f"{guest.run}: ")
        if own not in part.systems or _in_order(part.systems[own]) == _in_order(guest.rows):
            continue
        try:
            share = flips(part.systems[own], guest.rows)
            gain = compare_systems(guest.rows, part.systems[own]).p_at_1
        except DataError:  # other samples, which the section of differences says, or other candidates
            continue
        lines.append((own, guest.run, percent(share), points(gain), str(share.n)))
    text = [
        "Percent of all expressions for which another box is chosen when the same candidates are shown in another "
        "order, and what that does to P@1. A system that reads what it is shown never changes its mind."
    ]
    head = ("system", "other order", "flips", "P@1, other order - this", "n")
    return Section("Flips under reordering", text, [Table("Flips", head, lines, prose=(1,))])


def _in_order(rows: Sequence[Prediction]) -> dict[str, tuple[Candidate, ...]]:
    return {row.sample_id: row.candidates for row in rows}


def positions(part: Part) -> Section:
    """P@1 by the place at which the best candidate was shown."""
    found = {name: comparison.p_at_1_by_position(rows) for name, rows in part.judged.items()}
    places = sorted({place for shares in found.values() for place in shares})
    sizes = [max(shares[place].n for shares in found.values() if place in shares) for place in places]
    empty = Estimate(None, None, 0)
    lines = [
        (str(place), *(percent(shares.get(place, empty)) for shares in found.values()), str(size))
        for place, size in zip(places, sizes, strict=True)
    ]
    series = [
        of_estimates(name, list(shares), list(shares.values()), place=part.place(name))
        for name, shares in found.items()
    ]
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
        "target's label and are other objects; length is in words; size is the target's share of the image. "
        "Distractors and candidates are those that each system was shown; n is that of the first system.",
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
