"""Set up a search by a recipe: slices of the training data, the LLM that is measured, and the one that proposes.

recipe --check_search--> section --load_search_data--> slices --build_search_problem--> fitness, problem
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llm_wrapper import datasets
from llm_wrapper.datasets import Dataset, leaks
from llm_wrapper.detections.samples import PreparedSample, load_prepared_split
from llm_wrapper.errors import RecipeError, listed
from llm_wrapper.recipe import LLMSection, Recipe, SearchSection
from llm_wrapper.search.fitness import CaptionFitness, Fitness, SearchSlices, SelectorFitness, cut_slices, mark_right
from llm_wrapper.search.proposals import ForbiddenText, LocalProposer, Proposer, ServedProposer
from llm_wrapper.search.search import SearchProblem, choose_seed_prompt
from llm_wrapper.search.tasks import search_task
from llm_wrapper.storage import digest_value

_log = logging.getLogger(__name__)


def check_search(recipe: Recipe) -> SearchSection:
    """Return the recipe's section, with its seed prompt; refuse what cannot be searched with or must not be."""
    section, data = recipe.search, recipe.data
    if section is None:
        raise RecipeError("the recipe has no section search; name a file of recipes/search: --search glov")
    problems = []
    if (section.proposer or recipe.llm).backend == "rule":
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


@dataclass(frozen=True)
class SearchData:
    """The training split and its two slices; a caption search has no candidates, as it detects for each prompt."""

    dataset: Dataset
    slices: SearchSlices
    prepared_samples: Sequence[PreparedSample] | None


def load_search_data(recipe: Recipe, section: SearchSection) -> SearchData:
    """Load the training split and cut it into slices, without the images that are evaluated on.

    Raises:
        DataError: If the training split is smaller than the slices.
        CacheError: If detections are missing; the message names the command.
    """
    dataset = datasets.load_dataset(recipe.data, recipe.data.train_split)
    (evaluated,) = leaks.find_evaluated_images([(recipe.data, dataset)])
    sizes = (section.slice, section.confirm)
    slices = cut_slices(dataset.samples, sizes, without=evaluated, seed=section.seed)
    if section.target == "caption":
        return SearchData(dataset, slices, None)
    prepared_split = load_prepared_split(recipe, recipe.data, dataset.split, dataset=dataset)
    return SearchData(dataset, slices, prepared_split.samples)


def build_search_problem(recipe: Recipe, section: SearchSection, data: SearchData) -> tuple[SearchProblem, Fitness]:
    """Load the LLMs; one that both answers and proposes is loaded once."""
    from llm_wrapper.llms.base import load_llm
    from llm_wrapper.llms.load import LoadedLLM, load_model
    from llm_wrapper.llms.local import LocalLLM

    loaded: dict[str, LoadedLLM] = {}

    def load_local(each: LLMSection) -> LoadedLLM | None:
        key = each.model_dump_json()
        if each.backend == "transformers" and key not in loaded:
            loaded[key] = load_model(each)
        return loaded.get(key)

    fitness: Fitness
    if data.prepared_samples is None:
        fitness = CaptionFitness(recipe, data.dataset)
    else:
        selector = load_local(recipe.llm)
        llm = LocalLLM(selector, title="selector") if selector else load_llm(recipe.llm, title="selector")
        fitness = SelectorFitness(data.prepared_samples, recipe.prompt, llm, orders=recipe.llm.orders)
    proposing = section.proposer or recipe.llm
    proposer: Proposer
    if (local := load_local(proposing)) is not None:
        proposer = LocalProposer(local, section)
    else:
        proposer = ServedProposer(proposing, section.sampling)
        if section.alphas:
            _log.warning(
                "the proposing LLM is on a server, whose hidden states cannot be reached: it is asked without guidance"
            )
    places = data.slices.search
    samples = [fitness.samples[place] for place in places]
    num_words = sum(len(sample.expression.split()) for sample in samples) / len(samples)
    about = f"It is called {recipe.data.name}. Its expressions have {num_words:.0f} words on average."

    def measure(prompt: str, start: int, end: int) -> Sequence[bool]:
        return mark_right(fitness.predictions(prompt, places[start:end]), section.fitness)

    problem = SearchProblem(
        task=search_task(section.target),
        description=section.description or about,
        images=[sample.image_id for sample in samples],
        identity=digest_value(fitness.identity(places)),
        known=_find_forbidden_text(data, [t for each in loaded.values() for t in each.tokenizer.all_special_tokens]),
        measure=measure,
        propose=proposer,
    )
    return problem, fitness


def _find_forbidden_text(data: SearchData, special: Sequence[str]) -> ForbiddenText:
    """Return the text that no proposal may hold: expressions and labels of both slices, and special tokens."""
    places = [*data.slices.search, *data.slices.confirm]
    samples = [data.dataset.samples[place] for place in places]
    objects = data.dataset.objects or {}
    labels = {each.label for sample in samples for each in objects.get(sample.image_id, ())}
    if data.prepared_samples:
        labels |= {each.label for place in places for each in data.prepared_samples[place].built.candidates}
    return ForbiddenText({sample.expression for sample in samples}, labels, special)
