"""`search-prompts`: let an LLM search for a better prompt, without training.

runs/prompts/<name>/   recipe.yaml  history.jsonl      what was measured; the same command resumes from it
                       confirmed-*.parquet  confirmed.json  best.yaml  history.png
                       manifest.json                   written last
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from llm_wrapper import datasets, runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Llm,
    Overrides,
    Vlm,
    choose_recipe,
    name_of,
)
from llm_wrapper.datasets import Dataset, leaks
from llm_wrapper.detections.samples import PreparedSample, load_prepared_split
from llm_wrapper.errors import RecipeError, RunError, listed, shell_word
from llm_wrapper.recipe import LLMSection, Recipe, SearchSection
from llm_wrapper.records import Sample
from llm_wrapper.report import search as shown
from llm_wrapper.search.fitness import CaptionFitness, Fitness, SearchSlices, SelectorFitness, cut_slices, mark_right
from llm_wrapper.search.history import EvaluatedPrompt, History, Leaderboard
from llm_wrapper.search.proposals import ForbiddenText, LocalProposer, Proposer, ServedProposer
from llm_wrapper.search.search import (
    ConfirmedPrompt,
    SearchProblem,
    choose_seed_prompt,
    confirm_prompts,
    search_prompts,
)
from llm_wrapper.search.tasks import search_task
from llm_wrapper.storage import locked
from llm_wrapper.terminal import say

__all__ = ["HISTORY", "run_search", "search_prompts_verb", "show_history"]


_log = logging.getLogger(__name__)


HISTORY = "history.jsonl"


_SEARCH = "glov"


def search_prompts_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    search: Annotated[
        str | None, typer.Option(help=f"How to search: a file of recipes/search; {_SEARCH} unless --run says it.")
    ] = None,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Annotated[str | None, typer.Option(help="Format of the prompt: a file of recipes/train.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Where to begin: a file of recipes/prompt, or the path of one.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder, if not one in runs/prompts."),
    ] = None,
) -> None:
    """Search for a better prompt with an LLM, without training; write best.yaml and the history to runs/prompts.

    It searches on one slice of the training data and confirms on another. The same command resumes a search.
    """
    begun = run if run and (run / "recipe.yaml").is_file() else None
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train, "prompt": prompt}
    names["search"] = search or (None if begun else _SEARCH)
    recipe = choose_recipe(names, overrides, data_root, run=begun)
    folder = run or runs.RUNS / "prompts" / f"{name_of(names)}-{names['search']}"
    run_search(recipe, folder, options.CONSOLE)


def run_search(recipe: Recipe, folder: Path, console: Console) -> list[ConfirmedPrompt]:
    """Search on one slice of the training split, confirm on another, and keep the best prompt in best.yaml.

    Raises:
        RecipeError: If the recipe cannot be searched with.
        DataError: If the training split is smaller than the slices.
        CacheError: If detections are missing; the message names the command.
        RunError: If the folder holds a finished search, or one of another recipe.
        ModelError: If an LLM cannot be loaded, or a server does not answer; what was measured is kept.
    """
    section = _section(recipe)
    dataset = datasets.load_dataset(recipe.data, recipe.data.train_split)
    (evaluated,) = leaks.find_evaluated_images([(recipe.data, dataset)])
    sizes = (section.slice, section.confirm)
    slices = cut_slices(dataset.samples, sizes, without=evaluated, seed=section.seed)
    prepared_samples = _prepared_samples(recipe, section, dataset)
    runs.open_run(folder, recipe)
    with locked(folder):
        fitness, propose, special = _parties(recipe, section, dataset, prepared_samples)
        known = _known(dataset, slices, prepared_samples, special)
        ground = _ground(recipe, section, fitness, (slices.search, known, propose))
        past = History(folder / HISTORY)
        try:
            leaderboard = search_prompts(section, ground, past, lambda line: say(console, line))
        except KeyboardInterrupt:
            say(console, f"interrupted; {past.path} holds what was measured, and the same command resumes from it")
            raise
        rows = confirm_prompts(section, fitness, slices.confirm, leaderboard, folder)
        _keep(recipe, folder, rows)
    console.print(shown.confirmed_table(rows))
    _tell(folder, past, rows, console)
    return rows


def show_history(folder: Path, console: Console) -> None:
    """Print the ranking of a search, finished or not, and draw best so far as history.png in its folder.

    Raises:
        RunError: If there is no history, or it is damaged.
    """
    path = folder / HISTORY
    if not path.is_file():
        raise RunError(f"{folder} holds no {HISTORY}; search with: make search-prompts SEARCH=glov")
    found = History(path)
    if not found.evaluated:
        raise RunError(f"{path} holds no measured prompt yet; resume with the command that started it")
    console.print(shown.ranking(found, None))
    for line in [*shown.refused(found), shown.costs(found)]:
        say(console, line)
    shown.plot(found, folder / "history.png")
    say(console, f"drawn in {folder / 'history.png'}")


def _section(recipe: Recipe) -> SearchSection:
    """Return the recipe's section; refuse what cannot be searched with or must not be."""
    section, data = recipe.search, recipe.data
    if section is None:
        raise RecipeError("the recipe has no section search; name a file of recipes/search: --search glov")
    proposer = section.proposer or recipe.llm
    problems = []
    if proposer.backend == "rule":
        problems.append("LLM=rule writes no prompts; name an LLM, or set search.proposer")
    if section.target == "instruction" and recipe.llm.backend == "rule":
        problems.append("LLM=rule reads no prompt; name the LLM that is to be asked")
    if recipe.prompt.examples or recipe.prompt.reasoning_tokens:
        problems.append(
            "an instruction is searched for without prompt.examples and prompt.reasoning_tokens; add them after"
        )
    if data.train_split == data.eval_split or data.train_split in leaks.HELD_OUT:
        problems.append(f"data.train_split={data.train_split} is evaluated on; prompts are searched on training data")
    if problems:
        raise RecipeError(listed("a prompt cannot be searched for by this recipe", problems))
    if section.seed_prompt is None and section.target == "instruction":
        section = section.model_copy(update={"seed_prompt": recipe.prompt.instruction})
    choose_seed_prompt(section, search_task(section.target))
    return section


def _prepared_samples(recipe: Recipe, section: SearchSection, dataset: Dataset) -> Sequence[PreparedSample] | None:
    """Return the prepared training samples; a caption search needs none, as it detects for each prompt."""
    if section.target == "caption":
        return None
    return load_prepared_split(recipe, recipe.data, dataset.split, dataset=dataset).samples


def _parties(
    recipe: Recipe, section: SearchSection, dataset: Dataset, prepared_samples: Sequence[PreparedSample] | None
) -> tuple[Fitness, Proposer, Sequence[str]]:
    """Return who measures, who proposes, and the special tokens of all; an LLM that does both is loaded once."""
    from llm_wrapper.llms.base import LocalLLM, load_llm
    from llm_wrapper.llms.load import LoadedLLM, load_model

    llms: dict[str, LoadedLLM] = {}

    def local(each: LLMSection) -> LoadedLLM | None:
        key = each.model_dump_json()
        if each.backend == "transformers" and key not in llms:
            llms[key] = load_model(each)
        return llms.get(key)

    fitness: Fitness
    if prepared_samples is None:
        fitness = CaptionFitness(recipe, dataset)
    else:
        selector = local(recipe.llm)
        llm = LocalLLM(selector, title="selector") if selector else load_llm(recipe.llm, title="selector")
        fitness = SelectorFitness(prepared_samples, recipe.prompt, llm, orders=recipe.llm.orders)
    proposing = section.proposer or recipe.llm
    propose = _proposer(proposing, section, local(proposing))
    return fitness, propose, [token for llm in llms.values() for token in llm.tokenizer.all_special_tokens]


def _proposer(proposing: LLMSection, section: SearchSection, llm: Any) -> Proposer:
    if llm is not None:
        return LocalProposer(llm, section)
    if section.alphas:
        _log.warning(
            "the proposing LLM is on a server, whose hidden states cannot be reached: it is asked without guidance"
        )
    return ServedProposer(proposing, section.sampling)


def _known(
    dataset: Dataset, slices: SearchSlices, prepared_samples: Sequence[PreparedSample] | None, special: Sequence[str]
) -> ForbiddenText:
    """Return the text that no proposal may hold: expressions and labels of both slices, and special tokens."""
    places = [*slices.search, *slices.confirm]
    samples = [dataset.samples[place] for place in places]
    labels = (
        {each.label for place in places for each in prepared_samples[place].built.candidates}
        if prepared_samples
        else set()
    )
    objects = dataset.objects or {}
    labels |= {each.label for sample in samples for each in objects.get(sample.image_id, ())}
    return ForbiddenText({sample.expression for sample in samples}, labels, special)


def _ground(
    recipe: Recipe, section: SearchSection, fitness: Fitness, parts: tuple[Sequence[int], ForbiddenText, Proposer]
) -> SearchProblem:
    places, known, propose = parts

    def measure(prompt: str, start: int, end: int) -> Sequence[bool]:
        return mark_right(fitness.predictions(prompt, places[start:end]), section.fitness)

    return SearchProblem(
        task=search_task(section.target),
        description=section.description or _description(recipe, [fitness.samples[place] for place in places]),
        images=[fitness.samples[place].image_id for place in places],
        identity=storage.digest_value(fitness.identity(places)),
        known=known,
        measure=measure,
        propose=propose,
    )


def _description(recipe: Recipe, samples: Sequence[Sample]) -> str:
    """Say what is known of the data without giving an example."""
    words = sum(len(sample.expression.split()) for sample in samples) / len(samples)
    return f"It is called {recipe.data.name}. Its expressions have {words:.0f} words on average."


def _keep(recipe: Recipe, folder: Path, rows: Sequence[ConfirmedPrompt]) -> None:
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


def _tell(folder: Path, past: History, rows: Sequence[ConfirmedPrompt], console: Console) -> None:
    """Print what a reader should know of the winner, and where it is."""
    first = next(row for row in rows if row.name == "best 1")
    assert first.row is not None
    say(console, f"the best prompt, of round {first.row.iteration}:\n{first.row.prompt}")
    if first.row.iteration == 0:
        say(console, "no proposal was better than the seed prompt")
    elif first.gain.ci is None or first.gain.ci.low <= 0:
        say(console, "on the second slice it is not surely better than the seed prompt: its interval holds 0")
    for line in [*shown.refused(past), shown.costs(past), f"kept in {folder}; the prompt as a recipe: best.yaml"]:
        say(console, line)
