"""`search-prompts`: let an LLM search for a better prompt, without training.

runs/prompts/<name>/   recipe.yaml  history.jsonl      what was measured; the same command resumes from it
                       confirmed-*.parquet  confirmed.json  best.yaml  history.png
                       manifest.json                   written last
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llm_wrapper import runs, storage
from llm_wrapper.cli import options
from llm_wrapper.errors import RunError, shell_word
from llm_wrapper.recipe import Recipe
from llm_wrapper.report.formatting import NO_DATA, number, percent, points
from llm_wrapper.report.plots import drawing_settings
from llm_wrapper.search.history import EvaluatedPrompt, History, Leaderboard, RefusedProposal
from llm_wrapper.search.search import ConfirmedPrompt, confirm_prompts, search_prompts
from llm_wrapper.search.setup import build_search_problem, check_search, load_search_data
from llm_wrapper.terminal import as_cell, printable, say

HISTORY = "history.jsonl"

_SEARCH = "glov"


def search_prompts_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    search: Annotated[
        str | None, typer.Option(help=f"How to search: a file of recipes/search; {_SEARCH} unless --run says it.")
    ] = None,
    vlm: options.Vlm = None,
    llm: options.Llm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    train: Annotated[str | None, typer.Option(help="Format of the prompt: a file of recipes/train.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Where to begin: a file of recipes/prompt, or the path of one.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder, if not one in runs/prompts.")] = None,
) -> None:
    """Search for a better prompt with an LLM, without training; write best.yaml and the history to runs/prompts.

    It searches on one slice of the training data and confirms on another. The same command resumes a search.
    """
    begun = run if run and (run / "recipe.yaml").is_file() else None
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train, "prompt": prompt}
    names["search"] = search or (None if begun else _SEARCH)
    recipe = options.choose_recipe(names, overrides, data_root, run=begun)
    folder = run or runs.RUNS / "prompts" / f"{options.name_of(names)}-{names['search']}"
    run_search(recipe, folder, options.CONSOLE)


def run_search(recipe: Recipe, folder: Path, console: Console) -> list[ConfirmedPrompt]:
    """Search on one slice of the training split, confirm on another, and keep the best prompt in best.yaml.

    Measurements are kept whatever happens, and the same call resumes from them.
    """
    section = check_search(recipe)
    data = load_search_data(recipe, section)
    runs.open_run(folder, recipe)
    with storage.locked(folder):
        problem, fitness = build_search_problem(recipe, section, data)
        past = History(folder / HISTORY)
        try:
            leaderboard = search_prompts(section, problem, past, lambda line: say(console, line))
        except KeyboardInterrupt:
            say(console, f"interrupted; {past.path} holds what was measured, and the same command resumes from it")
            raise
        rows = confirm_prompts(section, fitness, data.slices.confirm, leaderboard, folder)
        _save(recipe, folder, rows)
    console.print(confirmed_table(rows))
    first = next(row for row in rows if row.name == "best 1")
    assert first.row is not None
    say(console, f"the best prompt, of round {first.row.iteration}:\n{first.row.prompt}")
    if first.row.iteration == 0:
        say(console, "no proposal was better than the seed prompt")
    elif first.gain.ci is None or first.gain.ci.low <= 0:
        say(console, "on the second slice it is not surely better than the seed prompt: its interval holds 0")
    for line in [*refusal_lines(past), cost_line(past), f"kept in {folder}; the prompt as a recipe: best.yaml"]:
        say(console, line)
    return rows


def show_history(folder: Path, console: Console) -> None:
    """Print the ranking of a search, finished or not, and draw best so far as history.png in its folder."""
    found = History(folder / HISTORY)
    if not found.evaluated:
        raise RunError(f"{found.path} holds no measured prompt yet; resume with the command that started it")
    console.print(ranking_table(found))
    for line in [*refusal_lines(found), cost_line(found)]:
        say(console, line)
    plot_history(found, folder / "history.png")
    say(console, f"drawn in {folder / 'history.png'}")


def _save(recipe: Recipe, folder: Path, rows: Sequence[ConfirmedPrompt]) -> None:
    """Write what came of a search, the manifest last."""
    found = History(folder / HISTORY)
    best = Leaderboard(found.rows).best()
    assert best is not None  # the seed prompt at least
    storage.write_json(folder / "confirmed.json", {"rows": [row.facts() for row in rows]})
    storage.write_atomic(folder / "best.yaml", _best(recipe, best, folder / "best.yaml"))
    plot_history(found, folder / "history.png")
    facts = {"prompts": len({row.prompt for row in found.evaluated}), "refused": len(found.refused)}
    runs.finish(folder, {**facts, "best": best.prompt, "cost": cost_line(found)})


def _best(recipe: Recipe, best: EvaluatedPrompt, path: Path) -> str:
    """Return the best prompt as a recipe: of recipes/prompt, or, a caption, of recipes/vlm."""
    if recipe.search is not None and recipe.search.target == "instruction":
        head = f"# Found by a search in round {best.iteration}: make eval PROMPT={shell_word(path)}\n"
        values: dict[str, Any] = {"prompt": {"format": recipe.prompt.format, "instruction": best.prompt}}
    else:
        head = f"# Found by a search in round {best.iteration}. Copy it to recipes/vlm and cache its detections.\n"
        settings = {**recipe.detector.settings, "caption": best.prompt}
        detector = {"name": recipe.detector.name, "label": f"{recipe.vlm}-captioned", "settings": settings}
        values = {"detector": detector, "candidates": recipe.candidates.model_dump(mode="json")}
    return head + yaml.safe_dump(values, sort_keys=False)


def ranking_table(history: History, most: int | None = None) -> Table:
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


def refusal_lines(history: History) -> list[str]:
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


def cost_line(history: History) -> str:
    """Return the cost of the search so far."""
    rows: list[EvaluatedPrompt | RefusedProposal] = [*history.evaluated, *history.refused]
    tokens = [row.cost.tokens for row in rows if row.cost.tokens is not None]
    questions, seconds = sum(row.cost.questions for row in rows), sum(row.cost.seconds for row in rows)
    return f"{questions:,} questions asked, {sum(tokens):,} tokens of proposals, {seconds:,.0f} s"


def confirmed_table(rows: Sequence[ConfirmedPrompt]) -> Table:
    """Lay out the best prompts on both slices, in percent."""
    table = Table("prompt", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("first slice", "second slice", "drop", "over the seed prompt", "p"):
        table.add_column(name, justify="right", no_wrap=name in ("second slice", "over the seed prompt"))
    for each in rows:
        first = NO_DATA if each.row is None else f"{100 * each.row.fitness:.1f}"
        drop = NO_DATA if each.drop is None else f"{100 * each.drop:+.1f}"
        shares = (first, percent(each.fitness), drop, points(each.gain))
        table.add_row(as_cell(each.name), *shares, number(each.p_value))
    return table


def plot_history(history: History, out: Path) -> None:
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
