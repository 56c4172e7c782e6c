"""What the verbs do that use an adapter without measuring it: one picture, one merged model for a server."""

from __future__ import annotations

import shlex
from pathlib import Path

from PIL import Image
from rich.console import Console

from llm_wrapper import adapter_files, artifacts, results, runs
from llm_wrapper.adapter_files import locate
from llm_wrapper.cli.asking_commands import Evaluation, notes, with_training
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.recipe import LLMSection, Recipe
from llm_wrapper.terminal import say
from llm_wrapper.wrapper import Preparer, Result, Wrapper

__all__ = ["export", "export_adapter", "predict_and_draw"]


def predict_and_draw(job: Evaluation, question: tuple[Path, str], out: Path | None, console: Console) -> None:
    """Answer one question about one picture, print the ranked candidates and draw them.

    Args:
        job: Recipe, and run or adapter.
        question: The picture's path, and the expression.
        out: Where the drawn picture goes; by default a file of this question in runs/predict.
        console: Where the candidates are printed.

    Raises:
        RecipeError: If `out` is the picture itself, or has no suffix of a picture.
        LLMWrapperError: If the picture cannot be written; else as `Preparer` and `Wrapper`.
    """
    image, expression = question
    if out is not None:
        _require_new_picture(out, image)
    recipe, adapter = with_training(job)
    # Before the LLM is loaded, so that a wrong file of boxes stops early.
    prepared = Preparer(recipe).prepare(image, [expression])
    (result,) = Wrapper.from_recipe(recipe, adapter, progress=True).answer(prepared, image)
    prediction = result.prediction
    _say_ranking(result, console)
    out = out or _default_out(recipe, adapter, question)
    result.draw(out)
    none = "none of these is meant; " if prediction.says_none else ""
    say(console, f"{none}decided by: {prediction.decided_by}; picture: {out}")
    if recipe.llm.backend == "transformers" and adapter is None:
        say(
            console,
            f"{recipe.llm.model} was not trained to choose boxes: train it (llm-wrapper train), name a run with --run, "
            "or take the rules with --llm rule",
        )
    for line in notes(job, [prediction]):
        say(console, line)


def _say_ranking(result: Result, console: Console) -> None:
    """Print a line a candidate, with the index that the picture shows."""
    for each in result.ranked:
        coordinates = ", ".join(f"{value:.1f}" for value in each.box.xyxy)
        mark = "*" if each.index == result.index else " "
        percent = "" if each.probability is None else f"{each.probability:6.3f}"
        say(console, f"{mark} {each.index:2d} {percent}  {each.label}  ({coordinates})")


def _require_new_picture(out: Path, image: Path) -> None:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if out.suffix.lower() not in known:
        raise RecipeError(f"--out {out}: {out.suffix or 'no suffix'} is no kind of picture; name it .png or .jpg")
    if out.exists() and image.exists() and out.samefile(image):
        raise RecipeError(f"--out {out} is the picture itself, which would be lost; name another file")


def _default_out(recipe: Recipe, adapter: Path | None, question: tuple[Path, str]) -> Path:
    """Return a file for the drawn picture that no other question has."""
    image, expression = question
    decides = results.evaluation_question({"recipe": recipe.model_dump(mode="json")})
    weights = adapter_files.identity(adapter) if adapter else None
    parts = {"image": artifacts.digest(image), "expression": expression, "asked": decides, "weights": weights}
    return runs.ROOT / "predict" / f"{results.plain_name(image.stem)[:60]}-{artifacts.digest_value(parts)[:8]}.png"


def export(run: Path, out: Path, console: Console) -> None:
    """Merge a run's adapter into its base model, for a server."""
    if not runs.is_complete(run):
        raise RunError(
            f"{run} holds no finished training; resume it with: {runs.resume_command(run)}. An adapter of another "
            f"program is exported with its LLM: llm-wrapper export {shlex.quote(str(run))} {shlex.quote(str(out))} "
            "--llm llama3"
        )
    from llm_wrapper.llms.export import export as merge

    merge(runs.recipe_of(run).llm, run / "adapter", out)
    say(console, f"{out} is written; serve it, then: llm-wrapper eval --llm vllm --run {shlex.quote(str(run))}")


def export_adapter(section: LLMSection, name: str, out: Path, console: Console) -> None:
    """Merge an adapter that this project did not train into its base model, for a server."""
    from llm_wrapper.llms.export import export as merge

    merge(section, locate(name).folder, out)
    say(console, f"{out} is written; serve it, then: llm-wrapper eval --llm vllm --vlm .. --data ..")
