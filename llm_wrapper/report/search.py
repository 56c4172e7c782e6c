"""A prompt search for people: the ranking as a table, why proposals were refused, and a plot of best so far."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from rich.table import Table

from llm_wrapper import storage
from llm_wrapper.report.formatting import NO_DATA, number, percent, points
from llm_wrapper.report.plots import drawing_settings
from llm_wrapper.search.history import EvaluatedPrompt, History, Leaderboard, RefusedProposal
from llm_wrapper.search.search import ConfirmedPrompt
from llm_wrapper.terminal import as_cell, printable

__all__ = ["confirmed_table", "costs", "plot", "ranking", "refused"]


def ranking(history: History, most: int | None = None) -> Table:
    """Lay out the prompts, the best first; fitness in percent with its 95 % interval over images."""
    table = Table()
    for name in ("rank", "fitness", "95 % interval", "n", "round"):
        table.add_column(name, justify="right", no_wrap=name == "95 % interval")
    table.add_column("prompt")
    for rank, row in enumerate(Leaderboard(history.rows).ranked()[:most], start=1):
        fitness = f"{100 * row.fitness:.1f}" + (f" ({row.verdict})" if row.verdict != "complete" else "")
        ends = NO_DATA if row.interval is None else "{:.1f} to {:.1f}".format(*(100 * end for end in row.interval))
        iteration = str(row.iteration) + (f" (alpha {row.alpha:g})" if row.alpha is not None else "")
        table.add_row(str(rank), fitness, ends, str(row.n), iteration, as_cell(row.prompt))
    return table


def refused(history: History) -> list[str]:
    """Return how many proposals were refused, and for which reasons, most frequent first.

    Quotations in reasons are dropped, so that reasons of one kind are counted together.
    """
    kinds = Counter(kind for row in history.refused for kind in dict.fromkeys(map(_kind, row.reasons)))
    num_refused = len(history.refused)
    num_usable = len({(row.iteration, row.number) for row in history.evaluated if row.iteration})
    head = f"{num_refused} of {num_refused + num_usable} proposals were refused"
    return [head, *(f"  {count} x {printable(kind)}" for kind, count in kinds.most_common())]


def _kind(reason: str) -> str:
    reason = re.sub(r"the prompt \d+ of round \d+", "an earlier prompt", reason)
    if reason.startswith(("it leaks", "it holds", "it lists", "it asks", "it cannot", "control")):
        return reason.partition(": ")[0]
    reason = re.sub(r" \d+ (times|characters)", r" .. \1", reason)
    return re.sub(r"^'.*' is no", "there is a word in braces that is no", reason)


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
        shares = (first, percent(each.fitness), drop, points(each.gain))
        table.add_row(as_cell(each.name), *shares, number(each.p_value))
    return table


def plot(history: History, out: Path) -> None:
    """Draw each prompt's fitness, and the best so far with its interval, over evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only this needs it
    from matplotlib.figure import Figure

    ended = [row for row in history.evaluated if row.verdict != "open"]
    with drawing_settings():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        for verdict, marker, color in (("complete", "o", "#0072b2"), ("stopped", "x", "#999999")):
            indices = [index for index, row in enumerate(ended) if row.verdict == verdict]
            values = [100 * ended[index].fitness for index in indices]
            axes.plot(indices, values, marker, color=color, markersize=4, linestyle="none", label=verdict)
        best: list[EvaluatedPrompt] = []
        for row in ended:
            is_better = row.verdict == "complete" and (not best or row.fitness > best[-1].fitness)
            best += [row] if is_better else best[-1:]
        axes.step(
            range(len(best)), [100 * row.fitness for row in best], where="post", color="#d55e00", label="best so far"
        )
        ends = [row.interval or (row.fitness, row.fitness) for row in best]
        low, high = ([100 * pair[side] for pair in ends] for side in (0, 1))
        axes.fill_between(range(len(best)), low, high, step="post", color="#d55e00", alpha=0.15, linewidth=0)
        axes.set_xlabel("prompts measured")
        axes.set_ylabel("fitness in percent (95 % interval)")
        axes.grid(color="#80808040")
        axes.legend(fontsize=8)
        content = BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    storage.write_atomic(out, content.getvalue())
