"""Sections of a report on one evaluation: results, differences, errors, slices, confidence.

Everything is computed from stored predictions, with fixed seeds, so that the same run gives the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from llm_wrapper.errors import DataError
from llm_wrapper.evaluation import calibration, comparison
from llm_wrapper.evaluation.comparison import compare_systems, flips, pair_predictions
from llm_wrapper.evaluation.predictions import mass_notes
from llm_wrapper.evaluation.slices import by_slice, differences_by_slice, recall, weakest_slices
from llm_wrapper.metrics import IOU_THRESHOLD, RANKS, ious, mean_accuracy, summarize, to_columns
from llm_wrapper.records import Candidate, Prediction
from llm_wrapper.report.evaluations import StoredEvaluation, beside, on_same_split
from llm_wrapper.report.formatting import CaseLink, Figure, PageSection, Table, counted, number, percent, points
from llm_wrapper.report.plots import Chart, Series, series_of
from llm_wrapper.statistics import Estimate

_NEXT_STEP = {
    "missing": "evaluate again, so that every sample has a prediction",
    "missed": "the LLM cannot choose what is not offered: lower the detector's thresholds, raise candidates.cap, or "
    "add a second detector (make ensemble)",
    "none": "the right box was offered, and none was answered: lower prompt.none_below, or train on more expressions "
    "that have a target",
    "unusable": "the detector has no top-1 either: lower its thresholds; take llm.decode=score, which cannot fail",
    "fallback": "take llm.decode=score, which always gives an index",
    "near": "several boxes stand for one object: set candidates.nms_iou",
    "wrong": "the right box was offered: train on more data or longer, or take a prompt.format that says more",
}
"""Outcome -> what to do about it first."""

_TRAIN_ONE = "train an LLM (llm-wrapper train), or take one as it is (llm-wrapper eval --llm smollm2)"

_WITHOUT_LLM = {
    "missed": "no system can choose a box that is not offered: lower the detector's thresholds, raise candidates.cap, "
    "or add a second detector (make ensemble)",
    "none": f"the right box was offered, and no rule chose it: {_TRAIN_ONE}",
    "unusable": f"no rule fits, and the detector has no top-1: {_TRAIN_ONE}",
    "fallback": f"no rule fits, and the detector's own top-1 is wrong: {_TRAIN_ONE}",
    "wrong": f"the right box was offered, and no LLM chose: {_TRAIN_ONE}",
}
"""The same where rules or the detector chose."""


_RISKS = (0.05, 0.1, 0.2)

_FEWEST = 20
"""Expressions in a bin of the calibration; the share of fewer that is right is mostly chance."""

_MOST_POINTS = 200
"""More points of a curve coincide on the page."""


def advice(evaluation: StoredEvaluation) -> PageSection:
    """Say where the main system loses most, and what to do next; each sentence leads to its cases in the gallery."""
    rows = evaluation.systems[evaluation.main or evaluation.base]
    chosen_by = {row.decided_by for row in rows}
    by_llm = chosen_by & {"llm", "fallback"} and not chosen_by & {"rule", "detector"}
    steps = _NEXT_STEP if by_llm else {**_NEXT_STEP, **_WITHOUT_LLM}
    lost = {name: share for name, share in comparison.outcome_shares(rows).items() if name != "right" and share.value}
    links = [
        CaseLink(f"{name}, {percent(share)} % of the expressions: {steps[name]}.", {"error": name})
        for name, share in sorted(lost.items(), key=lambda item: -(item[1].value or 0.0))[:2]
    ]
    links += [
        CaseLink(f"Weak: {family} {name!r}, P@1 {percent(share)}, n {share.n}.", {family: name})
        for family, name, share in weakest_slices(rows)
    ]
    text = [] if links else ["No expression with a target is answered wrong."]
    return PageSection(f"Where {evaluation.main or evaluation.base} fails, and what next", text, links=links)


def results(evaluation: StoredEvaluation) -> PageSection:
    """Every system's results, with published numbers beside them."""
    summaries = {name: summarize(rows) for name, rows in evaluation.systems.items()}
    published = {
        name: beside(evaluation.recipe, evaluation.name, name) for name in summaries if name not in evaluation.others
    }
    is_published = any(published.values())
    lines = []
    bars: list[Series] = []
    for name, summary in summaries.items():
        known, accuracy = published.get(name), mean_accuracy(to_columns(evaluation.systems[name]))
        without = f" (+{summary.num_without_target} without target)" if summary.num_without_target else ""
        at_1 = Estimate(summary.p_at_1, summary.ci, summary.n)
        bars.append(series_of(name, [len(bars)], [at_1], place=evaluation.place(name)))
        cells = [percent(at_1), *[str(known.p_at_1) if known else ""] * is_published]
        at_1_ge = Estimate(summary.p_at_1_ge, summary.ci_ge, summary.n)
        cells += [percent(at_1_ge), number(summary.mean_iou), percent(accuracy)]
        cells += [f"{summary.n}{without}", counted(summary.decided_by), counted(summary.failures)]
        lines.append([name, *cells])
    head = ["system", "P@1 > 0.5", *["published"] * is_published, "P@1 >= 0.5", "mean IoU", "accuracy 0.5..0.95", "n",
            "decided by", "failures"]  # fmt: skip
    tables = [Table("Results", head, lines, prose=(len(head) - 2, len(head) - 1))]
    recalls = recall(evaluation.systems[evaluation.base])
    cells = [] if recalls is None else [percent(recalls[rank]) for rank in RANKS]
    caption = "Recall of the candidates in the detector's own order"
    tables.append(Table(caption, ["", *(f"@{rank}" for rank in RANKS)], [["recall", *cells]] if cells else []))
    tables += [*_grec_table(evaluation), *_published_table(evaluation)]
    chart = Chart(bars, x="", y="P@1 in percent", top=105, ticks=list(summaries))
    text = ["In percent, with 95 % intervals that resample images. P@1 counts a box with IoU > 0.5."]
    if is_published:
        text.append(
            "The column `published` shows what is published for the same data, split, detector and LLM, by their "
            "names; training may differ."
        )
    text += evaluation.facts.get("notes") or []
    if limit := evaluation.facts.get("limit"):
        text.append(f"Of the first {limit} samples only: no number is comparable with one of the whole split.")
    return PageSection("Results", text, tables, [Figure("P@1 of each system with its 95 % interval", chart)])


def _grec_table(evaluation: StoredEvaluation) -> list[Table]:
    """Return the metrics of GREC, where an expression means nothing or several objects."""
    if all(row.target is not None and not row.further_targets for row in evaluation.systems[evaluation.base]):
        return []
    found = {name: calibration.measure_grec(rows) for name, rows in evaluation.systems.items()}
    lines = [
        (name, *map(percent, (each.n_acc, each.t_acc, each.precision, each.precision_giou)))
        for name, each in found.items()
    ]
    head = ("system", "N-acc", "T-acc", "Pr@(F1=1)", "Pr@(F1=1), generalised IoU")
    return [Table("Expressions that mean nothing or several objects", head, lines)]


def _published_table(evaluation: StoredEvaluation) -> list[Table]:
    known = on_same_split(evaluation.recipe, evaluation.name)
    lines = [(each.name, str(each.p_at_1), each.source) for each in known]
    head, caption = ("system", "P@1", "source"), "Published P@1 on this split, by other systems"
    return [Table(caption, head, lines, prose=(2,))] if known else []


def differences(evaluation: StoredEvaluation) -> PageSection:
    """Each pair of systems on the same samples, and where runs that are compared have other recipes."""
    lines, refused = [], []
    for first, second in _pairs(evaluation):
        try:
            found = compare_systems(evaluation.systems[second], evaluation.systems[first])
        except DataError as error:
            refused.append(f"{second} - {first} is not compared: {error}")
            continue
        test = found.mcnemar
        p_value = "< 0.001" if test.p_value is not None and test.p_value < 0.001 else number(test.p_value)
        gains = (points(found.p_at_1), points(found.p_at_1_ge), points(found.mean_iou))
        recipes = [_recipes(evaluation, first, second)] * bool(evaluation.others)
        alone = f"{test.only_a} / {test.only_b}"
        lines.append([f"{second} - {first}", *recipes, *gains, alone, p_value, str(test.n)])
    text = [
        "First minus second in points, on the same samples. The intervals draw whole images; McNemar's test takes "
        "expressions as independent, which those of one image are not, and so claims more: read both.",
    ]
    if evaluation.identical:
        text.append(f"Not shown, because they predict the same as here: {', '.join(evaluation.identical)}.")
    head = ["systems", *["recipes"] * bool(evaluation.others), "P@1 > 0.5", "P@1 >= 0.5", "mean IoU x 100",
            "right alone", "McNemar p", "n"]  # fmt: skip
    tables = [Table("Differences", head, lines, prose=(1,) if evaluation.others else ())]
    runs = {each.run: each.differences for each in evaluation.others.values()}
    if runs:
        lines = [[run, text] for run, found in runs.items() for text in found or ["the same recipe"]]
        caption = "Where compared runs have another recipe than this one"
        tables.append(Table(caption, ("run", "difference"), lines, prose=(1,)))
    return PageSection("Differences between systems", text, tables, notes=refused)


def _pairs(evaluation: StoredEvaluation) -> list[tuple[str, str]]:
    """Return the pairs to compare: all of the run, and each system of another run with base, main and its namesake."""
    pairs = []
    for first, second in combinations(evaluation.judged, 2):
        other = evaluation.others.get(second)
        baselines = {evaluation.base, evaluation.main, second.removeprefix(f"{other.run}: ")} if other else {first}
        if first in baselines:
            pairs.append((first, second))
    return pairs


def _recipes(evaluation: StoredEvaluation, first: str, second: str) -> str:
    """Say whether two systems are of runs with the same recipe; the differences are in another table."""
    runs = {name: evaluation.others[name].run if name in evaluation.others else "" for name in (first, second)}
    if runs[first] == runs[second]:
        return "same run"
    differing = [name for name in (first, second) if name in evaluation.others and evaluation.others[name].differences]
    return f"differ ({', '.join(runs[name] for name in differing)})" if differing else "same"


def errors(evaluation: StoredEvaluation) -> PageSection:
    """Why each system is wrong."""
    found = {name: comparison.outcome_shares(rows) for name, rows in evaluation.systems.items()}
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
    tables = [Table("Error split", ("system", *shown), lines)]
    ties = {name: comparison.near_ties(rows) for name, rows in evaluation.judged.items()}
    lines = [
        (name, percent(each.share), *(percent(p) if p.n else "" for p in each[1:]), str(each.share.n))
        for name, each in ties.items()
        if each.share.n
    ]
    caption = f"The two best candidates nearly coincide (IoU >= {comparison.NEAR_IOU:g}), among those with a right one"
    tables.append(Table(caption, ("system", "expressions", "P@1 there", "P@1 elsewhere", "n"), lines))
    return PageSection("Errors", text, tables)


def reorderings(evaluation: StoredEvaluation) -> PageSection:
    """How often a system chooses another box when the same candidates are in another order."""
    lines = []
    for name, other in evaluation.others.items():
        own = name.removeprefix(f"{other.run}: ")
        if own not in evaluation.systems or _in_order(evaluation.systems[own]) == _in_order(other.rows):
            continue
        try:
            share = flips(evaluation.systems[own], other.rows)
            gain = compare_systems(other.rows, evaluation.systems[own]).p_at_1
        except DataError:  # other samples, which the section of differences says, or other candidates
            continue
        lines.append((own, other.run, percent(share), points(gain), str(share.n)))
    text = [
        "Percent of all expressions for which another box is chosen when the same candidates are shown in another "
        "order, and what that does to P@1. A system that reads what it is shown never changes its mind."
    ]
    head = ("system", "other order", "flips", "P@1, other order - this", "n")
    return PageSection("Flips under reordering", text, [Table("Flips", head, lines, prose=(1,))])


def _in_order(rows: Sequence[Prediction]) -> dict[str, tuple[Candidate, ...]]:
    return {row.sample_id: row.candidates for row in rows}


def positions(evaluation: StoredEvaluation) -> PageSection:
    """P@1 by the place at which the best candidate was shown."""
    found = {name: comparison.p_at_1_by_position(rows) for name, rows in evaluation.judged.items()}
    places = sorted({place for shares in found.values() for place in shares})
    sizes = [max(shares[place].n for shares in found.values() if place in shares) for place in places]
    empty = Estimate(None, None, 0)
    lines = [
        (str(place), *(percent(shares.get(place, empty)) for shares in found.values()), str(size))
        for place, size in zip(places, sizes, strict=True)
    ]
    series = [
        series_of(name, list(shares), list(shares.values()), place=evaluation.place(name))
        for name, shares in found.items()
    ]
    figure = Chart(series, x="index of the best candidate", y="P@1 in percent", top=105)
    text = ["Over samples with at least two candidates, one of them right. A system that reads what it is shown is "
            "equally good at every index; one that prefers the first line is not."]  # fmt: skip
    table = Table("P@1 by position of the target", ("index", *found, "n"), lines)
    return PageSection("Position of the target", text, [table], [Figure("P@1 by position of the target", figure)])


def slices(evaluation: StoredEvaluation) -> PageSection:
    """P@1 of every system in every slice, and what the main system gains over the base."""
    found = {name: by_slice(rows) for name, rows in evaluation.judged.items()}
    gains: dict[str, dict[str, Estimate]] = {}
    if evaluation.main is not None:
        try:
            pairs = pair_predictions(evaluation.systems[evaluation.main], evaluation.systems[evaluation.base])
            gains = differences_by_slice(pairs)
        except DataError:  # said in the section of differences
            pass
    gained = [f"{evaluation.main} - {evaluation.base}"] if gains else []
    tables, empty = [], []
    for family, own in found[evaluation.base].items():
        lines = []
        for name, share in own.items():
            if not any(shares[family][name].n for shares in found.values()):
                empty.append(f"{family} {name}")
                continue
            cells = [percent(shares[family][name]) for shares in found.values()]
            cells += [points(gains[family][name])] if gains else []
            lines.append((name, *cells, str(share.n)))
        tables.append(Table(f"By {family}", (family, *found, *gained, "n"), lines))
    text = [
        "P@1 in percent. An expression can be of several kinds; the other slices do not overlap. Distractors share the "
        "target's label and are other objects; length is in words; size is the target's share of the image. "
        "Distractors and candidates are those that each system was shown; n is that of the first system.",
        *[f"{len(empty)} slices have no expression and are not shown: {', '.join(empty)}."] * bool(empty),
    ]
    return PageSection("Slices", text, tables)


def confidence(evaluation: StoredEvaluation) -> PageSection:
    """Calibration and risk against coverage of every system that gives probabilities."""
    lines, reliability, risks = [], [], []
    for name, rows in evaluation.judged.items():
        scored = [row for row in rows if row.target is not None]
        certain, right = calibration.confidences(scored), ious(scored) > IOU_THRESHOLD
        if np.isnan(certain).all():
            continue
        num_bins = max(1, min(calibration.NUM_BINS, len(scored) // _FEWEST))
        found = calibration.calibrate(certain, right, num_bins=num_bins)
        curve = calibration.risk_coverage(certain, right)
        answered = []
        for risk in _RISKS:
            threshold = calibration.threshold_for_risk(certain, right, risk)
            share = None if threshold is None else (np.nan_to_num(certain, nan=-np.inf) >= threshold).mean()
            answered.append("nothing" if share is None else f"{100 * share:.1f} %")
        ece = f"{number(found.ece)} ({len(found.bins)} bins)"
        lines.append((name, ece, number(curve.aurc), *answered, str(found.n), str(found.num_unknown)))
        bins = 100 * np.array([[each.confidence, each.accuracy] for each in found.bins]).T
        reliability.append(Series(name, bins[0].tolist(), bins[1].tolist(), place=evaluation.place(name)))
        kept = np.unique(np.linspace(0, len(curve.risk) - 1, _MOST_POINTS).astype(int))
        covered, wrong = ((100 * values[kept]).tolist() for values in (curve.coverage, curve.risk))
        risks.append(Series(name, covered, wrong, place=evaluation.place(name)))
    if reliability:
        reliability.insert(0, Series("as it should be", [0, 100], [0, 100], place=None))
    at_risks = [f"answered at risk <= {100 * risk:g} %" for risk in _RISKS]
    head = ("system", "ECE", "AURC", *at_risks, "n", "no probability")
    text = [
        "Over the expressions with a target. A choice without a probability says nothing of calibration, and counts as "
        "the least confident where it comes to answering. Thresholds are chosen on the samples they are shown for, so "
        "what is answered at a risk is a little too good. ECE is over bins of equal mass, of at least "
        f"{_FEWEST} expressions each.",
    ]
    bins_chart = Chart(reliability, x="confidence in percent", y="right in percent", top=105)
    risk_chart = Chart(risks, x="answered in percent, most confident first", y="wrong of these in percent", top=100)
    figures = [
        Figure("Calibration: confidence against what is right", bins_chart),
        Figure("Risk against coverage", risk_chart),
    ]
    notes = mass_notes([row for rows in evaluation.judged.values() for row in rows])
    return PageSection("Confidence", text, [Table("Confidence", head, lines)], figures, notes)
