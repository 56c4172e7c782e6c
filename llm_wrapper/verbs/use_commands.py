"""What the verbs do that use an adapter without measuring it: one picture, one merged model for a server."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.adapter_files import locate
from llm_wrapper.errors import RunError
from llm_wrapper.predict import Wrapper
from llm_wrapper.recipe import LLMSection
from llm_wrapper.report import pictures
from llm_wrapper.verbs.asking_commands import Evaluation, with_training

__all__ = ["export", "export_adapter", "predict_and_draw"]


def predict_and_draw(job: Evaluation, question: tuple[Path, str], out: Path, console: Console) -> None:
    """Answer one question about one picture, print the ranked candidates and draw them."""
    image, expression = question
    recipe, adapter = with_training(job)
    result = Wrapper.from_recipe(recipe, adapter).predict(image, expression)
    prediction = result.prediction
    for candidate, share in result.ranked:
        mark = "*" if candidate.box == result.box else " "
        coordinates = ", ".join(f"{value:.1f}" for value in candidate.box.xyxy)
        text = f"{mark} {'' if share is None else f'{share:6.3f}'}  {candidate.label}  ({coordinates})"
        console.print(text, markup=False, highlight=False)
    chosen = next((i for i, candidate in enumerate(prediction.candidates) if candidate.box == result.box), None)
    pictures.draw(image, prediction.candidates, out=out, chosen=chosen, probabilities=prediction.probabilities)
    none = "none of these is meant; " if prediction.says_none else ""
    console.print(f"{none}decided by: {prediction.decided_by}; picture: {out}", highlight=False)


def export(run: Path, out: Path, console: Console) -> None:
    """Merge a run's adapter into its base model, for a server."""
    if not runs.is_complete(run):
        raise RunError(
            f"{run} holds no finished training; go on with it: make train RUN={run}. An adapter of another program is "
            f"exported with its LLM: llm-wrapper export {run} {out} --llm llama3"
        )
    from llm_wrapper.llms.export import export as merge

    merge(runs.recipe_of(run).llm, run / "adapter", out)
    console.print(f"{out} is written; serve it, then: make eval LLM=vllm RUN={run}", markup=False, highlight=False)


def export_adapter(section: LLMSection, name: str, out: Path, console: Console) -> None:
    """Merge an adapter that this project did not train into its base model, for a server."""
    from llm_wrapper.llms.export import export as merge

    merge(section, locate(name).folder, out)
    console.print(f"{out} is written; serve it, then: make eval LLM=vllm", markup=False, highlight=False)
