"""`eval`: compare the detector, the rule, the LLM before and after training, and the oracle on one split.

runs/<run>/  predictions-<split>.parquet  report-<split>.json  report-<split>.md
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from llm_wrapper import adapter_files, results, runs, storage
from llm_wrapper.adapter_files import Adapter, find_adapter
from llm_wrapper.cli import options
from llm_wrapper.cli.options import (
    AdapterName,
    Data,
    DataRoot,
    Limit,
    Llm,
    Overrides,
    PromptName,
    Run,
    Split,
    Vlm,
    choose_recipe,
    name_of,
    overridden,
    require_one_adapter,
)
from llm_wrapper.datasets import Dataset, leaks
from llm_wrapper.detections.samples import PreparedSample, load_prepared_split
from llm_wrapper.errors import DataError, RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.calibration import mass_notes
from llm_wrapper.metrics import Summary, summarize_systems
from llm_wrapper.prompts.render import PROMPT_FORMATS, PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.report import card, evaluations, formatting
from llm_wrapper.storage import folder_name, plain_name
from llm_wrapper.terminal import say
from llm_wrapper.training.examples import load_prompt_builder
from llm_wrapper.wrapper import require_probabilities

__all__ = ["Evaluation", "evaluate", "evaluate_verb", "notes", "predict_with_llm", "with_training"]


_log = logging.getLogger(__name__)


def evaluate_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    split: Split = None,
    run: Run = None,
    limit: Limit = None,
    adapter: AdapterName = None,
    prompt: PromptName = None,
    untrained: Annotated[bool, typer.Option(help="Also score the LLM before training.")] = True,
) -> None:
    """Measure P@1 of detector, rule, LLM and oracle on a split; write predictions and report to the run's folder.

    By a run's own recipe: llm-wrapper eval --run runs/flo2-llama3-refcocog-..

    On another split: llm-wrapper eval --run runs/flo2-llama3-refcocog-.. --split test

    Before any training: llm-wrapper eval --vlm flo2 --llm llama3 --data refcocog
    """
    require_one_adapter(run, adapter)
    names = options.names_by_kind(vlm, llm, data, prompt=prompt)
    if run is None and adapter is None and (run := runs.latest(name_of(names))) is not None:
        say(options.CONSOLE, f"the newest finished run of these names is evaluated: {run}")
        # The names have chosen the run; its own recipe is used from here.
        names = options.names_by_kind(None, None, None, prompt=prompt)
    recipe = choose_recipe(names, overrides, data_root, run=run)
    job = Evaluation(recipe, run, split, limit, untrained=untrained, prompt=prompt)
    if adapter:
        job = dataclasses.replace(job, adapter=find_adapter(adapter))
    evaluate(job, options.CONSOLE)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation to do: a recipe on a split, with the adapter of a run or a third-party one, where there is one.

    The recipe is complete: a run's values are in it already, see `options.choose_recipe`. `prompt` names the prompt
    recipes of the command line: their results are written beside the others.
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


def _require_use(job: Evaluation, adapter: Adapter) -> None:
    """Refuse an LLM that takes no adapter; warn where a third-party adapter gets a prompt format of this project."""
    backend, prompt_format = job.recipe.llm.backend, job.recipe.prompt.format
    require_one_adapter(job.run, adapter.name)
    if backend != "transformers":
        raise RecipeError(f"llm.backend={backend} takes no adapter; name a local LLM, such as LLM=llama3")
    if prompt_format in PROMPT_FORMATS:
        _log.warning("the adapter is asked in prompt.format=%s; was it trained so? docs/paper.md", prompt_format)


def predict_with_llm(
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
        RecipeError: If answers without a probability are to be compared with a threshold.
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


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation: a summary a system, and `predictions-<name>.parquet` in a folder."""

    summaries: Sequence[Summary]
    folder: Path
    name: str
    question: Mapping[str, Any]


def evaluate(job: Evaluation, console: Console) -> Evaluated:
    """Predict with every system, print the table, keep predictions and report."""
    recipe, adapter = with_training(job)
    split = folder_name(job.split or recipe.data.eval_split, "the split")
    prepared_split = load_prepared_split(recipe, recipe.data, split, limit=job.limit)
    if not any(prepared.sample.target for prepared in prepared_split.samples):
        raise DataError(f"{recipe.data.name} {split} has no box to compare with; use: llm-wrapper predict")
    builder = None if recipe.llm.backend == "rule" else load_prompt_builder(recipe)
    rows = [*systems.by_detector(prepared_split.samples), *systems.by_rule(prepared_split.samples)]
    if builder is not None:
        rows += predict_with_llm(recipe, builder, adapter, prepared_split.samples, with_untrained=job.untrained)
    rows += systems.by_oracle(prepared_split.samples)
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "split": split,
        "limit": job.limit,
        "data": [prepared_split.facts()],
        "run": str(job.run) if job.run else None,
        "adapter": job.adapter.facts() if job.adapter else None,
        "weights": adapter_files.digest_adapter(adapter) if adapter else None,
        "model_files": storage.digest_model(recipe.llm.model),
        "prompt": builder.facts if builder else {},
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    facts["notes"] = [*prepared_split.notes(), *_own_training_data(job, recipe, prepared_split.dataset)]
    facts["question"] = json.loads(storage.canonical(results.evaluation_question(facts)))
    folder, name = _place(job, recipe, facts["question"])
    if not job.untrained:
        rows = _with_known_untrained(rows, folder / f"predictions-{name}.parquet")
    summaries = summarize_systems(rows)
    files.save_predictions(folder / f"predictions-{name}.parquet", rows)
    storage.write_json(folder / f"report-{name}.json", {"rows": formatting.summary_values(summaries), **facts})
    bullets = "".join(f"\n- {formatting.escape_markdown(each)}" for each in facts["notes"])
    storage.write_atomic(
        folder / f"report-{name}.md", formatting.summary_markdown(summaries) + (bullets and f"{bullets}\n")
    )
    if adapter is not None and folder == job.run:
        card.write_card(job.run)
    console.print(formatting.summary_table(summaries))
    how = "" if recipe.llm.backend == "rule" else f"; asked with {recipe.prompt.summary}"
    first = f", the first {job.limit} expressions" if job.limit else ""
    what = f"{recipe.vlm} on {recipe.data.name} {split}{first}{how}"
    say(console, f"kept in {folder / f'report-{name}.json'}: {what}")
    for line in [*facts["notes"], *notes(job, rows)]:
        say(console, line)
    return Evaluated(summaries, folder, name, facts["question"])


def _own_training_data(job: Evaluation, recipe: Recipe, dataset: Dataset) -> list[str]:
    """Say whether a run is evaluated on images that it was trained on."""
    trained = runs.recipe_of(job.run).training_data() if job.run else []
    if not dataset.has_splits and not trained:
        return []
    note = leaks.describe_own_training_data((recipe.data, dataset), trained)
    return [note] if note else []


def _place(job: Evaluation, recipe: Recipe, question: dict[str, Any]) -> tuple[Path, str]:
    """Return the folder of an evaluation and its name there; see `results`.

    Results of a run with another detector, candidates, prompt or LLM than in training go into a folder inside the
    run, where its report finds them; results on other data get the name of the data.
    """
    first = f"-first-{job.limit}" if job.limit else ""
    name = f"{question['split']}{first}"
    folder = job.folder
    if job.run is None or recipe.llm.backend == "openai":
        return results.free_folder(folder, (f"report-{name}.json", f"predictions-{name}.parquet"), question), name
    trained = runs.recipe_of(job.run)
    if _data(recipe) != _data(trained):
        name = f"{storage.plain_name(recipe.data.name)}-{name}"
    if others := _otherwise(job, recipe, trained):
        place = "-".join(others)
        folder = folder.with_name(f"{folder.name}-{place}") if job.prompt else folder / evaluations.COMPARED / place
        return results.free_folder(folder, (f"report-{name}.json", f"predictions-{name}.parquet"), question), name
    return folder, results.free_name(folder, name, question)


def _data(recipe: Recipe) -> dict[str, Any]:
    """Return the identity of the evaluated data; its place and its training split do not count."""
    return recipe.data.model_dump(mode="json", include={"name", "reader", "settings"})


def _otherwise(job: Evaluation, recipe: Recipe, trained: Recipe) -> list[str]:
    """Name in what a run is asked otherwise than it was trained, as parts of a folder's name."""
    others = []
    if (recipe.detector, recipe.ensemble) != (trained.detector, trained.ensemble):
        others.append(f"vlm-{storage.plain_name(recipe.vlm)}")
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
        others.append(f"prompt-{storage.plain_name(Path(recipe.prompt.format).stem)}")
    a, b = (results.evaluation_question({"recipe": each.model_dump(mode="json")})["llm"] for each in (recipe, trained))
    if a != b:
        others.append(f"llm-{storage.plain_name(recipe.llm.model or recipe.llm.backend)}-{recipe.llm.decode}")
    return others


def _with_known_untrained(rows: list[Prediction], path: Path) -> list[Prediction]:
    """Keep the untrained LLM's answers to the same question, which this time was not asked."""
    if any(row.system == "untrained" for row in rows) or not path.is_file():
        return rows
    known = [row for row in files.load_predictions(path) if row.system == "untrained"]
    last = next((i for i, row in enumerate(rows) if row.system == "tuned"), len(rows))
    return [*rows[:last], *known, *rows[last:]]
