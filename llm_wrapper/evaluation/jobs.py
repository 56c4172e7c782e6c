"""An evaluation to do: the recipe and adapter to answer with, the LLM's predictions, and where results go."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_wrapper import runs, storage
from llm_wrapper.adapter_files import Adapter
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.prompts.render import PROMPT_FORMATS, PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.storage import folder_name, plain_name

_log = logging.getLogger(__name__)

_ANSWERS = {"detector", "candidates", "ensemble", "data", "prompt", "llm"}


@dataclass(frozen=True)
class Evaluation:
    """A recipe on a split, with the adapter of a run or a third-party one, where there is one.

    The recipe is complete: a run's values are in it already. `prompt` names the prompt recipes of the command line:
    their results are written beside the others.
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
        llm = plain_name(self.recipe.llm.model or self.recipe.llm.backend).replace("+", "-")
        name = f"{self.recipe.vlm}-{llm}-{folder_name(self.recipe.data.name, 'data.name')}"
        if self.recipe.llm.backend == "openai":  # what a server gives does not replace what the run itself gave
            folder = runs.RUNS / f"{name}-served"
        elif self.adapter:
            folder = runs.RUNS / f"{name}-{self.adapter.label}"
        else:
            folder = self.run or runs.RUNS / f"{name}-untrained"
        return folder.with_name(f"{folder.name}-{plain_name(self.prompt).replace('+', '-')}") if self.prompt else folder

    def notes(self, rows: Sequence[Prediction]) -> list[str]:
        """Say what is not as the run was trained, and how probable any valid answer of the LLM was."""
        changed = list_overrides(self.run, self.recipe) if self.run else []
        return [*changed, *files.mass_notes(rows)]

    def find_adapter_folder(self) -> Path | None:
        """Return the folder of the adapter to answer with, if there is one.

        Raises:
            RunError: If the run is not finished.
            RecipeError: If an adapter is named that does not go with the rest.
        """
        llm, prompt_format = self.recipe.llm, self.recipe.prompt.format
        if self.adapter:
            require_one_adapter(self.run, self.adapter.name)
            if llm.backend != "transformers":
                raise RecipeError(f"llm.backend={llm.backend} takes no adapter; name a local LLM, such as LLM=llama3")
            if prompt_format in PROMPT_FORMATS:  # one of this project
                _log.warning(
                    "the adapter is asked in prompt.format=%s; was it trained so? docs/paper.md", prompt_format
                )
            return self.adapter.folder
        if self.run is None:
            return None
        if not runs.is_complete(self.run):
            raise RunError(f"{self.run} holds no finished training; resume it with: {runs.resume_command(self.run)}")
        # A server has the weights; how it was asked in training is all it lacks.
        return self.run / runs.ADAPTER if llm.backend == "transformers" else None


def require_one_adapter(run: Path | None, adapter: str | None) -> None:
    """Refuse a run and an adapter at once."""
    if run and adapter:
        raise RecipeError(f"{run} has its own adapter; name it or {adapter}, not both")


def require_probabilities(recipe: Recipe) -> None:
    """Refuse a threshold for "none of these" where answers have no probability."""
    if recipe.prompt.none_below is not None and recipe.llm.decode in ("choice", "generate"):
        raise RecipeError(
            f"prompt.none_below={recipe.prompt.none_below:g} is a probability, which llm.decode={recipe.llm.decode} "
            "does not give: set llm.decode=score, or prompt.none=true and no threshold"
        )


def list_overrides(run: Path, recipe: Recipe) -> list[str]:
    """Say what the command line changes of a run's recipe that decides answers, one sentence each."""
    parts = [each.model_dump(mode="json", include=_ANSWERS) for each in (runs.recipe_of(run), recipe)]
    found = storage.describe_differences(parts[0], parts[1], places=(f"in {run}", "here"))
    return [f"not as the run was trained: {each}" for each in found]


def predict_with_llm(
    recipe: Recipe,
    builder: PromptBuilder,
    adapter: Path | None,
    samples: Sequence[PreparedSample],
    *,
    with_untrained: bool,
) -> list[Prediction]:
    """Load the LLM of a recipe and predict: `untrained` (if wanted, or without an adapter) and `tuned`, or `served`."""
    require_probabilities(recipe)
    from llm_wrapper.llms.adapters import add_adapter, require_fit
    from llm_wrapper.llms.base import add_reasoning, load_llm
    from llm_wrapper.llms.load import LoadedLLM, load_model
    from llm_wrapper.llms.local import LocalLLM

    num_tokens, orders = recipe.prompt.reasoning_tokens, recipe.llm.orders

    def ask_local(name: str, llm: LoadedLLM) -> list[Prediction]:
        local = add_reasoning(LocalLLM(llm, title=name), num_tokens)
        return systems.by_llm(samples, name, builder, local, orders=orders)

    if recipe.llm.backend == "openai":
        served = load_llm(recipe.llm, title="served", reasoning_tokens=num_tokens)
        return systems.by_llm(samples, "served", builder, served, orders=orders)
    if adapter is not None:
        require_fit(recipe.llm, adapter)
    llm = load_model(recipe.llm)
    rows = ask_local("untrained", llm) if with_untrained or adapter is None else []
    return rows if adapter is None else [*rows, *ask_local("tuned", add_adapter(llm, adapter))]


def choose_place(job: Evaluation, question: dict[str, Any]) -> tuple[Path, str]:
    """Return the folder of an evaluation and its name there; see `runs`.

    Results of a run with another detector, candidates, prompt or LLM than in training go into a folder inside the
    run, where its report finds them; results on other data get the name of the data.
    """
    name = f"{question['split']}{f'-first-{job.limit}' if job.limit else ''}"
    folder = job.folder
    if job.run is not None and job.recipe.llm.backend != "openai":
        trained = runs.recipe_of(job.run)
        # The place of the data and its training split do not count.
        data, own = (
            each.data.model_dump(mode="json", include={"name", "reader", "settings"}) for each in (job.recipe, trained)
        )
        if data != own:
            name = f"{plain_name(job.recipe.data.name)}-{name}"
        others = _list_differences(job, trained)
        if not others:
            return folder, runs.free_name(folder, name, question)
        place = "-".join(others)
        folder = folder.with_name(f"{folder.name}-{place}") if job.prompt else folder / runs.COMPARED / place
    return runs.free_folder(folder, (f"report-{name}.json", f"predictions-{name}.parquet"), question), name


def _list_differences(job: Evaluation, trained: Recipe) -> list[str]:
    """Name in what a run is asked otherwise than it was trained, as parts of a folder's name."""
    recipe, others = job.recipe, []
    if (recipe.detector, recipe.ensemble) != (trained.detector, trained.ensemble):
        others.append(f"vlm-{plain_name(recipe.vlm)}")
    if recipe.candidates.order != trained.candidates.order:
        others.append(f"order-{recipe.candidates.order}")
    same_order = {"order": trained.candidates.order}
    if recipe.candidates.model_copy(update=same_order) != trained.candidates and not others:
        others.append("candidates")
    below = recipe.prompt.none_below
    if below not in (None, trained.prompt.none_below):
        others.append(f"none-below-{below:g}")
    same_threshold = {"none_below": trained.prompt.none_below}
    if recipe.prompt.model_copy(update=same_threshold) != trained.prompt and not job.prompt:
        others.append(f"prompt-{plain_name(Path(recipe.prompt.format).stem)}")
    a, b = (runs.evaluation_question({"recipe": each.model_dump(mode="json")})["llm"] for each in (recipe, trained))
    if a != b:
        others.append(f"llm-{plain_name(recipe.llm.model or recipe.llm.backend)}-{recipe.llm.decode}")
    return others


def add_known_untrained(rows: list[Prediction], path: Path) -> list[Prediction]:
    """Keep the untrained LLM's answers to the same question, which this time was not asked."""
    if any(row.system == "untrained" for row in rows) or not path.is_file():
        return rows
    known = [row for row in files.load_predictions(path) if row.system == "untrained"]
    last = next((i for i, row in enumerate(rows) if row.system == "tuned"), len(rows))
    return [*rows[:last], *known, *rows[last:]]
