"""`search-prompts`: let an LLM search for a better prompt, without training.

runs/prompts/<name>/   recipe.yaml  history.jsonl      what was measured; the same command resumes from it
                       confirmed-*.parquet  confirmed.json  best.yaml  history.png
                       manifest.json                   written last
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from llm_wrapper import runs, storage
from llm_wrapper.cli import options
from llm_wrapper.errors import RunError, shell_word
from llm_wrapper.recipe import Recipe
from llm_wrapper.report import search as shown
from llm_wrapper.search.history import EvaluatedPrompt, History, Leaderboard
from llm_wrapper.search.search import ConfirmedPrompt, confirm_prompts, search_prompts
from llm_wrapper.search.setup import build_search_problem, check_search, load_search_data
from llm_wrapper.terminal import say

__all__ = ["HISTORY", "run_search", "search_prompts_verb", "show_history"]

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
    console.print(shown.confirmed_table(rows))
    first = next(row for row in rows if row.name == "best 1")
    assert first.row is not None
    say(console, f"the best prompt, of round {first.row.iteration}:\n{first.row.prompt}")
    if first.row.iteration == 0:
        say(console, "no proposal was better than the seed prompt")
    elif first.gain.ci is None or first.gain.ci.low <= 0:
        say(console, "on the second slice it is not surely better than the seed prompt: its interval holds 0")
    for line in [*shown.refused(past), shown.costs(past), f"kept in {folder}; the prompt as a recipe: best.yaml"]:
        say(console, line)
    return rows


def show_history(folder: Path, console: Console) -> None:
    """Print the ranking of a search, finished or not, and draw best so far as history.png in its folder."""
    found = History(folder / HISTORY)
    if not found.evaluated:
        raise RunError(f"{found.path} holds no measured prompt yet; resume with the command that started it")
    console.print(shown.ranking(found, None))
    for line in [*shown.refused(found), shown.costs(found)]:
        say(console, line)
    shown.plot(found, folder / "history.png")
    say(console, f"drawn in {folder / 'history.png'}")


def _save(recipe: Recipe, folder: Path, rows: Sequence[ConfirmedPrompt]) -> None:
    """Write what came of a search, the manifest last."""
    found = History(folder / HISTORY)
    best = Leaderboard(found.rows).best()
    assert best is not None  # the seed prompt at least
    storage.write_json(folder / "confirmed.json", {"rows": [row.facts() for row in rows]})
    storage.write_atomic(folder / "best.yaml", _best(recipe, best, folder / "best.yaml"))
    shown.plot(found, folder / "history.png")
    facts = {"prompts": len({row.prompt for row in found.evaluated}), "refused": len(found.refused)}
    runs.finish(folder, {**facts, "best": best.prompt, "cost": shown.costs(found)})


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
