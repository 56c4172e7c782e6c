"""A prompt search for people: the ranking as a table, why proposals were refused, and a plot of best so far."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from rich.table import Table

from llm_wrapper import storage
from llm_wrapper.report.formatting import NO_DATA
from llm_wrapper.report.plots import drawing_settings
from llm_wrapper.search.history import EvaluatedPrompt, History, Leaderboard, RefusedProposal
from llm_wrapper.search.search import ConfirmedPrompt
from llm_wrapper.statistics import Estimate
from llm_wrapper.terminal import as_cell, printable

__all__ = ["confirmed_table", "costs", "plot", "ranking", "refused"]


def ranking(history: History, most: int | None = None) -> Table:
    """Lay out the prompts, the best first; fitness in percent with its 95 % interval over images."""
    leaderboard = Leaderboard(history.rows)
    table = Table()
    for name in ("rank", "fitness", "95 % interval", "n", "round"):
        table.add_column(name, justify="right", no_wrap=name == "95 % interval")
    table.add_column("prompt")
    for rank, row in enumerate(leaderboard.ranked()[:most], start=1):
        table.add_row(str(rank), _fitness(row), _interval(row.interval), str(row.n), _round(row), as_cell(row.prompt))
    return table


def _fitness(row: EvaluatedPrompt) -> str:
    return f"{100 * row.fitness:.1f}{'' if row.verdict == 'complete' else f' ({row.verdict})'}"


def _interval(ends: Sequence[float] | None) -> str:
    return NO_DATA if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _round(row: EvaluatedPrompt) -> str:
    return f"{row.iteration}" if row.alpha is None else f"{row.iteration} (alpha {row.alpha:g})"


def refused(history: History) -> list[str]:
    """Return how many proposals were refused, and for which reasons, most frequent first.

    Quotations in reasons are dropped, so that reasons of one kind are counted together.
    """
    kinds = Counter(kind for row in history.refused for kind in dict.fromkeys(map(_kind, row.reasons)))
    total = len(history.refused)
    found = len({(row.iteration, row.number) for row in history.evaluated if row.iteration})
    head = f"{total} of {total + found} proposals were refused"
    return [head, *(f"  {count} x {printable(kind)}" for kind, count in kinds.most_common())]


def _kind(reason: str) -> str:
    reason = re.sub(r"the prompt \d+ of round \d+", "an earlier prompt", reason)
    if reason.startswith(("it leaks", "it holds", "it lists", "it asks", "it cannot", "control")):
        return reason.partition(": ")[0]
    return re.sub(
        r"^'.*' is no", "there is a word in braces that is no", re.sub(r" \d+ (times|characters)", r" .. \1", reason)
    )


def costs(history: History) -> str:
    """Return the cost of the search so far."""
    rows: list[EvaluatedPrompt | RefusedProposal] = [*history.evaluated, *history.refused]
    tokens = [row.cost.tokens for row in rows if row.cost.tokens is not None]
    questions, seconds = sum(row.cost.questions for row in rows), sum(row.cost.seconds for row in rows)
    return f"{questions:,} questions asked, {sum(tokens):,} tokens of proposals, {seconds:,.0f} s"


def confirmed_table(rows: Sequence[ConfirmedPrompt]) -> Table:
    """Lay out the best prompts on both slices, in percent."""
    table = Table("prompt")
    for name in ("first slice", "second slice", "drop", "over the seed prompt", "p"):
        table.add_column(name, justify="right", no_wrap=name in ("second slice", "over the seed prompt"))
    for each in rows:
        first = NO_DATA if each.row is None else f"{100 * each.row.fitness:.1f}"
        drop = NO_DATA if each.drop is None else f"{100 * each.drop:+.1f}"
        p_value = NO_DATA if each.p_value is None else f"{each.p_value:.3f}"
        table.add_row(as_cell(each.name), first, _estimate(each.fitness), drop, _estimate(each.gain, sign="+"), p_value)
    return table


def _estimate(found: Estimate, sign: str = "") -> str:
    if found.value is None:
        return NO_DATA
    ends = "no CI" if found.ci is None else f"{100 * found.ci.low:{sign}.1f} to {100 * found.ci.high:{sign}.1f}"
    return f"{100 * found.value:{sign}.1f} ({ends})"


def plot(history: History, out: Path) -> None:
    """Draw each prompt's fitness, and the best so far with its interval, over evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only this needs it
    from matplotlib.figure import Figure

    ended = [row for row in history.evaluated if row.verdict != "open"]
    with drawing_settings():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        for verdict, marker, color in (("complete", "o", "#0072b2"), ("stopped", "x", "#999999")):
            places = [place for place, row in enumerate(ended) if row.verdict == verdict]
            values = [100 * ended[place].fitness for place in places]
            axes.plot(places, values, marker, color=color, markersize=4, linestyle="none", label=verdict)
        best = _best_so_far(ended)
        axes.step(
            range(len(best)), [100 * row.fitness for row in best], where="post", color="#d55e00", label="best so far"
        )
        low, high = (
            zip(*[row.interval or (row.fitness, row.fitness) for row in best], strict=True) if best else ((), ())
        )
        ends = ([100 * each for each in low], [100 * each for each in high])
        axes.fill_between(range(len(best)), *ends, step="post", color="#d55e00", alpha=0.15, linewidth=0)
        axes.set_xlabel("prompts measured")
        axes.set_ylabel("fitness in percent (95 % interval)")
        axes.grid(color="#80808040")
        axes.legend(fontsize=8)
        content = BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    storage.write_atomic(out, content.getvalue())


def _best_so_far(ended: Sequence[EvaluatedPrompt]) -> list[EvaluatedPrompt]:
    """Return for each measured prompt the best one that was complete by then."""
    found: list[EvaluatedPrompt] = []
    for row in ended:
        better = row.verdict == "complete" and (not found or row.fitness > found[-1].fitness)
        if better or found:
            found.append(row if better else found[-1])
    return found
