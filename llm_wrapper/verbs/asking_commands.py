"""Who is asked, and how: the recipe of a run or of a name, its adapter and its prompts. Loads the LLM and asks it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_wrapper import runs
from llm_wrapper.adapter_files import Adapter
from llm_wrapper.detections.scenes import Scene
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.evaluation import systems
from llm_wrapper.prompts.render import FORMATS
from llm_wrapper.prompts.words import Worder
from llm_wrapper.recipe import PromptSection, Recipe, prompt_of
from llm_wrapper.recipe_files import folder as recipes_folder
from llm_wrapper.records import Prediction

__all__ = ["Evaluation", "by_llm", "with_training"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: a recipe on a split, with the adapter of a run, or a foreign one, where there is one.

    `prompt` names the prompt recipes that were asked for by name: a trained LLM is then asked with them too.
    """

    recipe: Recipe
    run: Path | None
    split: str | None = None
    limit: int | None = None
    untrained: bool = True
    adapter: Adapter | None = None
    prompt: str | None = None

    @property
    def folder(self) -> Path:
        """Where predictions and report go; those of another wording do not replace a run's own."""
        folder = self._folder
        return folder.with_name(f"{folder.name}-{_plain(self.prompt)}") if self.prompt else folder

    @property
    def _folder(self) -> Path:
        llm = _plain(self.recipe.llm.model or self.recipe.llm.backend)
        name = f"{self.recipe.vlm}-{llm}-{self.recipe.data.name}"
        if self.recipe.llm.backend == "openai":  # what a server gives does not replace what the run itself gave
            return runs.ROOT / f"{name}-served"
        if self.adapter:
            return runs.ROOT / f"{name}-{self.adapter.label}"
        return self.run or runs.ROOT / f"{name}-untrained"


def with_training(job: Evaluation) -> tuple[Recipe, Path | None]:
    """Return the recipe to evaluate by, and the adapter: a trained LLM is asked as it was trained.

    Where prompt recipes are named, what they set is put on top of that, and a warning says so.
    """
    if job.adapter:
        _require_use(job, job.adapter)
        return job.recipe, job.adapter.folder
    if job.run is None:
        return job.recipe, None
    if not runs.is_complete(job.run):
        raise RunError(f"{job.run} holds no finished training; go on with it: make train RUN={job.run}")
    trained = runs.recipe_of(job.run)
    if job.recipe.candidates != trained.candidates:
        _log.warning("candidates are built by %s; training had %s", job.recipe.candidates, trained.candidates)
    prompt = _reworded(job, trained.prompt)
    if (below := job.recipe.prompt.none_below) is not None:  # it changes no question
        prompt = prompt.model_copy(update={"none_below": below})
    if job.recipe.llm.backend == "openai":  # the server has the weights; how it was asked in training is all it lacks
        return job.recipe.model_copy(update={"prompt": prompt}), None
    asked = {"decode": job.recipe.llm.decode, "orders": job.recipe.llm.orders}
    update = {"prompt": prompt, "llm": trained.llm.model_copy(update=asked)}
    return job.recipe.model_copy(update=update), job.run / "adapter"


def _reworded(job: Evaluation, trained: PromptSection) -> PromptSection:
    """Return how a run is asked: as it was trained, and on top of that by the prompt recipes that were named.

    The format of a training recipe is none that was asked for; that of a prompt recipe is.
    """
    if job.prompt is None:
        return trained
    asked = job.recipe.prompt
    named = {key: getattr(asked, key) for key in prompt_of(recipes_folder(), job.prompt)}
    chosen = asked.model_dump(exclude_defaults=True, exclude={"format"}) | named
    prompt = PromptSection.model_validate({**trained.model_dump(), **chosen})
    if prompt != trained:
        _log.warning("%s was trained with %s; it is asked with %s", job.run, trained.summary, prompt.summary)
    return prompt


def _require_use(job: Evaluation, adapter: Adapter) -> None:
    """Refuse what a foreign adapter does not go with; warn where it is asked in words of this project."""
    backend, prompt_format = job.recipe.llm.backend, job.recipe.prompt.format
    if job.run:
        raise RecipeError(f"{job.run} has an adapter of its own; name it or {adapter.name}, not both")
    if backend != "transformers":
        raise RecipeError(f"llm.backend={backend} takes no adapter; name a local LLM, such as LLM=llama3")
    if prompt_format in FORMATS:
        _log.warning("the adapter is asked in prompt.format=%s; was it trained so? docs/paper.md", prompt_format)


def by_llm(
    recipe: Recipe, word: Worder, adapter: Path | None, scenes: Sequence[Scene], *, with_untrained: bool
) -> list[Prediction]:
    """Load the LLM of a recipe and predict with it.

    Args:
        recipe: `LLM=rule` gives nothing.
        word: Words its questions.
        adapter: Folder of its adapter, where it has one.
        scenes: What is asked about.
        with_untrained: Whether the LLM is asked without its adapter too.

    Raises:
        RecipeError: If answers without a probability are to be held against one.
    """
    if recipe.llm.backend == "rule":
        return []
    if recipe.prompt.none_below is not None and recipe.llm.decode in ("choice", "generate"):
        raise RecipeError(
            f"prompt.none_below={recipe.prompt.none_below:g} is a probability, which llm.decode={recipe.llm.decode} "
            "does not give: set llm.decode=score, or prompt.none=true and no threshold"
        )
    from llm_wrapper.llms.ask import asked_by, asker
    from llm_wrapper.llms.load import LoadedLLM, load, require_fit, with_adapter

    num_tokens = recipe.prompt.reasoning_tokens

    def predicted(name: str, asked: systems.Ask) -> list[Prediction]:
        return systems.by_llm(scenes, name, word, asked, orders=recipe.llm.orders, prompt=recipe.prompt)

    def loaded(name: str, llm: LoadedLLM) -> list[Prediction]:
        return predicted(name, asked_by(llm, title=name, reasoning_tokens=num_tokens))

    if recipe.llm.backend == "openai":
        return predicted("served", asker(recipe.llm, title="served", reasoning_tokens=num_tokens))
    if adapter is not None:
        require_fit(recipe.llm, adapter)
    llm, rows = load(recipe.llm), []
    if with_untrained or adapter is None:
        rows += loaded("untrained", llm)
    return rows if adapter is None else [*rows, *loaded("tuned", with_adapter(llm, adapter))]


def _plain(name: str) -> str:
    """Return a name as a part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", name)
