"""What the verbs that measure speed do: ratios against a named rival, with equal results checked in the same run."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from llm_wrapper import artifacts, detection_commands, runs
from llm_wrapper.detections.scenes import load_scenes
from llm_wrapper.prompts.render import render
from llm_wrapper.recipe import Recipe

__all__ = ["bench"]


def bench(recipe: Recipe, console: Console, *, num_expressions: int = 60) -> None:
    """Time index scoring on toy validation expressions, print ratios, keep runs/bench/score.json.

    With the adapter of a finished `make demo`: an untrained model seldom generates a number at all.
    """
    detection_commands.cache(recipe, [recipe.data.eval_split], console)
    scenes = load_scenes(recipe, recipe.data, recipe.data.eval_split, limit=num_expressions).scenes
    from llm_wrapper.llms.bench import compare
    from llm_wrapper.llms.load import load

    demo_run = runs.ROOT / "demo"
    adapter = demo_run / "adapter" if runs.is_complete(demo_run) else None
    llm = load(recipe.llm.model_copy(update={"dtype": "float32"}), adapter)
    prompts = [render(each.sample, each.built.candidates, recipe.prompt.format) for each in scenes]
    timings = compare(llm, [prompt for prompt in prompts if len(prompt.candidates) > 1])
    table = Table(
        "way",
        "expressions/s",
        "times slower",
        "same choice",
        "largest difference",
        title=f"index scoring, {'tuned' if adapter else 'untrained'}",
    )
    for each in timings:
        rate, ratio = len(prompts) / each.seconds, each.seconds / timings[0].seconds
        difference = "" if each.largest_difference is None else f"{each.largest_difference:.1e}"
        table.add_row(each.name, f"{rate:.2f}", f"{ratio:.1f}", f"{each.agreement:.3f}", difference)
    console.print(table)
    facts = {"ways": [asdict(each) for each in timings], "n": len(prompts), "versions": artifacts.versions()}
    artifacts.write_json(runs.ROOT / "bench" / "score.json", facts)
