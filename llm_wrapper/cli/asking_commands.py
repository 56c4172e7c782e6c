"""Who is asked, and how: the recipe of a run or of a name, its adapter and its prompts. Loads the LLM and asks it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_wrapper import runs
from llm_wrapper.adapter_files import Adapter
from llm_wrapper.cli.options import overridden
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.calibration import mass_notes
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.render import PROMPT_FORMATS
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.storage import folder_name, plain_name
from llm_wrapper.wrapper import require_probabilities

__all__ = ["Evaluation", "by_llm", "notes", "require_one_adapter", "with_training"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: a recipe on a split, with the adapter of a run, or a foreign one, where there is one.

    The recipe is complete: what a run gives is in it already, see `options.chosen`. `prompt` names the prompt recipes
    that were named on the command line: their results stand beside the others.
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
        """The readable place of predictions and report; those of another prompt do not replace a run's own."""
        folder = self._folder
        return folder.with_name(f"{folder.name}-{plain_name(self.prompt).replace('+', '-')}") if self.prompt else folder

    @property
    def _folder(self) -> Path:
        llm = plain_name(self.recipe.llm.model or self.recipe.llm.backend).replace("+", "-")
        name = f"{self.recipe.vlm}-{llm}-{folder_name(self.recipe.data.name, 'data.name')}"
        if self.recipe.llm.backend == "openai":  # what a server gives does not replace what the run itself gave
            return runs.RUNS / f"{name}-served"
        if self.adapter:
            return runs.RUNS / f"{name}-{self.adapter.label}"
        return self.run or runs.RUNS / f"{name}-untrained"


def notes(job: Evaluation, rows: Sequence[Prediction]) -> list[str]:
    """Say what a reader has to know beside the results: what the command line changes of a run, what the LLM was."""
    changed = overridden(job.run, job.recipe) if job.run else []
    return [*changed, *mass_notes(rows)]


def with_training(job: Evaluation) -> tuple[Recipe, Path | None]:
    """Return the recipe to evaluate by, and the adapter.

    Raises:
        RunError: If the run is not finished.
        RecipeError: If an adapter is named that does not go with the rest.
    """
    if job.adapter:
        _require_use(job, job.adapter)
        return job.recipe, job.adapter.folder
    if job.run is None:
        return job.recipe, None
    if not runs.is_complete(job.run):
        raise RunError(f"{job.run} holds no finished training; resume it with: {runs.resume_command(job.run)}")
    # A server has the weights; how it was asked in training is all it lacks.
    return job.recipe, job.run / "adapter" if job.recipe.llm.backend == "transformers" else None


def require_one_adapter(run: Path | None, adapter: str | None) -> None:
    """Refuse a run and an adapter at once."""
    if run and adapter:
        raise RecipeError(f"{run} has an adapter of its own; name it or {adapter}, not both")


def _require_use(job: Evaluation, adapter: Adapter) -> None:
    """Refuse what a foreign adapter does not go with; warn where it is asked in words of this project."""
    backend, prompt_format = job.recipe.llm.backend, job.recipe.prompt.format
    require_one_adapter(job.run, adapter.name)
    if backend != "transformers":
        raise RecipeError(f"llm.backend={backend} takes no adapter; name a local LLM, such as LLM=llama3")
    if prompt_format in PROMPT_FORMATS:
        _log.warning("the adapter is asked in prompt.format=%s; was it trained so? docs/paper.md", prompt_format)


def by_llm(
    recipe: Recipe,
    builder: PromptBuilder,
    adapter: Path | None,
    samples: Sequence[PreparedSample],
    *,
    with_untrained: bool,
) -> list[Prediction]:
    """Load the LLM of a recipe and predict with it.

    Args:
        recipe: `LLM=rule` gives nothing.
        builder: Builds its prompts.
        adapter: Folder of its adapter, where it has one.
        samples: What is asked about.
        with_untrained: Whether the LLM is asked without its adapter too.

    Raises:
        RecipeError: If answers without a probability are to be held against one.
    """
    if recipe.llm.backend == "rule":
        return []
    require_probabilities(recipe)
    from llm_wrapper.llms.adapters import add_adapter, require_fit
    from llm_wrapper.llms.base import LLM, LocalLLM, add_reasoning, load_llm
    from llm_wrapper.llms.load import LoadedLLM, load_model

    num_tokens = recipe.prompt.reasoning_tokens

    def predicted(name: str, answering: LLM) -> list[Prediction]:
        return systems.by_llm(samples, name, builder, answering, orders=recipe.llm.orders)

    def loaded(name: str, llm: LoadedLLM) -> list[Prediction]:
        return predicted(name, add_reasoning(LocalLLM(llm, title=name), num_tokens))

    if recipe.llm.backend == "openai":
        return predicted("served", load_llm(recipe.llm, title="served", reasoning_tokens=num_tokens))
    if adapter is not None:
        require_fit(recipe.llm, adapter)
    llm, rows = load_model(recipe.llm), []
    if with_untrained or adapter is None:
        rows += loaded("untrained", llm)
    return rows if adapter is None else [*rows, *loaded("tuned", add_adapter(llm, adapter))]
