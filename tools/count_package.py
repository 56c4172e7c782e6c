"""Print the size of the package and the modules that one sample and one `eval` pass through.

    python tools/count_package.py                  modules, lines, verbs, repeated public names, chains with LLM=rule
    python tools/count_package.py --tiny           the chains with a tiny random LLM too (seconds)

A module is in the chain of a sample if one of its functions is called between the reading of data set and cache and the
P@1; the chain of `eval` is that of the whole verb. Everything runs twice, and the second run counts.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PACKAGE = ROOT / "llm_wrapper"


def modules() -> list[Path]:
    """List the files of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.stat().st_size)


def verbs(command: Any, prefix: str = "") -> list[str]:
    """List the verbs of a group of the command line."""
    found = []
    for name, inner in command.commands.items():
        found += verbs(inner, f"{prefix}{name} ") if hasattr(inner, "commands") else [f"{prefix}{name}"]
    return found


def repeated_names() -> dict[str, list[str]]:
    """Map each public name that several modules define to these modules."""
    places = defaultdict(list)
    for path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = [*getattr(node, "targets", []), *([node.target] if isinstance(node, ast.AnnAssign) else [])]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            for name in names:
                if not name.startswith("_"):
                    places[name].append(path.relative_to(PACKAGE).as_posix())
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def chain(work: Callable[[], object]) -> list[str]:
    """Run `work` twice, and list the modules of the package of which the second run calls a function."""
    work()
    found: dict[str, None] = {}

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # bodies of modules and classes are not
        if event == "call" and is_function and code.co_filename.startswith(str(PACKAGE)):
            found.setdefault(Path(code.co_filename).relative_to(PACKAGE).as_posix())

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(found)


def run_verb(*words: str) -> None:
    """Run a verb in this process, without its output."""
    from llm_wrapper.cli.main import app

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app(args=list(words))


def follow_sample(recipe: Any, llm: Any) -> Callable[[], None]:
    """Return the work of one sample, from its record and the opened cache of detections to its P@1."""
    from llm_wrapper.detections.samples import PreparedSample, load_prepared_split, prepare_candidates
    from llm_wrapper.evaluation import systems
    from llm_wrapper.metrics import summarize
    from llm_wrapper.training.examples import load_prompt_builder

    split = load_prepared_split(recipe, recipe.data, recipe.data.eval_split, limit=1)
    sample, cache = split.samples[0].sample, split.caches[0]
    builder = load_prompt_builder(recipe) if llm else None

    def work() -> None:
        built = prepare_candidates(recipe, sample, [cache.lookup(sample)], [cache.identity["detector"]])
        prepared = [PreparedSample(sample, built)]
        if builder is None:
            rows = systems.by_rule(prepared)
        else:
            rows = systems.by_llm(prepared, "untrained", builder, llm, orders=recipe.llm.orders)
        assert summarize(rows).p_at_1 is not None

    return work


@contextlib.contextmanager
def toy_folder() -> Iterator[list[str]]:
    """Change into an empty folder with cached toy detections; yield the words that choose them."""
    words = ["--data-root", str(ROOT / "data" / "toy")]
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            run_verb("cache-detections", *words, "--split", "val")
            yield words
        finally:
            os.chdir(before)


def print_chain(name: str, found: list[str]) -> None:
    """Print how many modules a chain has, and which."""
    print(f"{name}: {len(found)} modules\n  {', '.join(found)}")


def print_chains(*, tiny: bool) -> None:
    """Print the chains of one sample and of `eval`, by the rule and, if wanted, with a tiny LLM."""
    from llm_wrapper.recipe import compose

    with toy_folder() as words:
        overrides = [f"data.root={words[1]}"]
        recipe = compose({"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"}, overrides)
        print_chain("one sample, LLM=rule", chain(follow_sample(recipe, None)))
        rule = ("eval", "--llm", "rule", "--limit", "1", *words)
        print_chain("eval, LLM=rule", chain(lambda: run_verb(*rule)))
        if not tiny:
            return
        from llm_wrapper.llms.local import LocalLLM
        from tests.llms.tiny import llm as make_tiny

        loaded = make_tiny()
        loaded.model.save_pretrained("tiny")
        loaded.tokenizer.save_pretrained("tiny")
        local = [*overrides, "llm.model=tiny", "llm.dtype=float32"]
        recipe = compose({"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}, local)
        print_chain("one sample, tiny LLM", chain(follow_sample(recipe, LocalLLM(loaded, progress=False))))
        ask = ("eval", "--llm", "smollm2", "--limit", "1", *words, *local[1:])
        print_chain("eval, tiny LLM", chain(lambda: run_verb(*ask)))


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="also follow a sample with a tiny random LLM")
    options = parser.parse_args()
    paths = modules()
    lines = [path.read_text(encoding="utf-8").count("\n") for path in paths]
    print(f"modules: {len(paths)}, lines: {sum(lines):,}, longest: {max(lines)}")
    from llm_wrapper.cli.main import app

    names = verbs(typer.main.get_command(app))
    print(f"verbs: {len(names)}\n  {', '.join(names)}")
    repeated = repeated_names()
    print(f"public names of several modules: {len(repeated)}")
    for name, places in repeated.items():
        print(f"  {name}: {', '.join(places)}")
    print_chains(tiny=options.tiny)


if __name__ == "__main__":
    main()
