"""The import direction: core <- datasets, detectors, prompts, llms <- detections ... <- report <- cli, one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llm_wrapper"

LAYERS = (
    {"core"},
    {"recipe", "devices"},
    {"datasets", "detectors", "prompts", "llms"},
    {"detections", "training", "evaluation", "search"},
    {"report"},
    {"cli"},
)
RANK = {group: rank for rank, layer in enumerate(LAYERS) for group in layer}

# (importer, imported) of the same layer: each pair is a decision, and one that is no longer used must go.
SIDEWAYS = {
    ("llms", "prompts"),
    ("detectors", "datasets"),
    ("training", "detections"),
    ("evaluation", "detections"),
    ("search", "detections"),
    ("search", "evaluation"),
}

HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate"}
MAY_BE_HEAVY = {"devices", "detectors", "llms", "training", "search"}

MODULES = sorted(path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py"))


def dotted(module: str) -> str:
    """llm_wrapper/llms/rule.py -> llm_wrapper.llms.rule; a package is named by its folder."""
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def group_of(name: str) -> str:
    """The layer group of a dotted name inside the package; a module at the top is core, or the command line."""
    head = [*name.split("."), ""][1]
    if head in {"cli", "wrapper", "__main__", ""}:  # the package itself is the public face of all
        return "cli"
    if head == "devices":
        return head
    if head == "runs":  # a run folder keeps a recipe
        return "recipe"
    return head if (PACKAGE / head).is_dir() and head else "core"


def imported(source: str, module: str) -> set[str]:
    """Every dotted name that the source imports anywhere, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    package = dotted(module).split(".")
    package = package if module.endswith("/__init__.py") else package[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def inner(source: str, module: str) -> set[str]:
    """The groups of the package that the source imports."""
    return {group_of(name) for name in imported(source, module) if name.split(".")[0] == "llm_wrapper"}


def heavy(source: str, module: str) -> set[str]:
    return {name.split(".")[0] for name in imported(source, module)} & HEAVY


def wrong_way(source: str, module: str) -> set[str]:
    """The groups that the module must not import, but does."""
    group = group_of(dotted(module))
    return {
        other
        for other in inner(source, module) - {group}
        if RANK[other] >= RANK[group] and (group, other) not in SIDEWAYS
    }


def read(module: str) -> str:
    return (PACKAGE.parent / module).read_text(encoding="utf-8")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    group = group_of(dotted(module))
    assert group in RANK, f"{module} is in no layer of DESIGN.md section 3: add {group!r} to LAYERS"
    assert not wrong_way(read(module), module)


@pytest.mark.parametrize("module", [name for name in MODULES if group_of(dotted(name)) not in MAY_BE_HEAVY])
def test_heavy_libraries_stay_at_the_rim(module: str) -> None:
    assert not heavy(read(module), module)


@pytest.mark.parametrize("pair", sorted(SIDEWAYS), ids="->".join)
def test_each_sideways_import_is_in_use(pair: tuple[str, str]) -> None:
    importers = [module for module in MODULES if group_of(dotted(module)) == pair[0]]
    assert any(pair[1] in inner(read(module), module) for module in importers)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        pytest.param("llm_wrapper/boxes.py", "from llm_wrapper.records import Box", set(), id="core-core"),
        pytest.param("llm_wrapper/boxes.py", "import llm_wrapper.prompts.text", {"prompts"}, id="core-up"),
        pytest.param("llm_wrapper/boxes.py", "from llm_wrapper import llms", {"llms"}, id="core-up-by-name"),
        pytest.param(
            "llm_wrapper/boxes.py", "def f():\n    from llm_wrapper.cli.main import app", {"cli"}, id="hidden"
        ),
        pytest.param("llm_wrapper/datasets/jsonl.py", "from ..detectors import Level", {"detectors"}, id="relative"),
        pytest.param("llm_wrapper/datasets/__init__.py", "from ..llms import chat", {"llms"}, id="relative-init"),
        pytest.param("llm_wrapper/datasets/jsonl.py", "from . import base", set(), id="relative-own"),
        pytest.param("llm_wrapper/datasets/hub.py", "import datasets", set(), id="hf-datasets-is-not-ours"),
        pytest.param("llm_wrapper/llms/rule.py", "from llm_wrapper.prompts.text import clean", set(), id="sideways"),
        pytest.param("llm_wrapper/prompts/text.py", "import llm_wrapper.llms", {"llms"}, id="sideways-back"),
        pytest.param("llm_wrapper/training/trainer.py", "from llm_wrapper.llms.load import load", set(), id="down"),
        pytest.param("llm_wrapper/evaluation/run.py", "import llm_wrapper.report.page", {"report"}, id="up"),
        pytest.param("llm_wrapper/cli/main.py", "from llm_wrapper.report import page", set(), id="cli-takes-all"),
        pytest.param(
            "llm_wrapper/report/page.py", "from llm_wrapper.cli.main import app", {"cli"}, id="nobody-takes-cli"
        ),
    ],
)
def test_the_rule_itself(module: str, source: str, wrong: set[str]) -> None:
    assert wrong_way(source, module) == wrong


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("import torch.nn as nn", {"torch"}, id="submodule"),
        pytest.param("def f():\n    from transformers import AutoModel", {"transformers"}, id="inside-a-function"),
        pytest.param("import torchmetrics", set(), id="only-the-whole-name-counts"),
    ],
)
def test_the_heavy_rule_itself(source: str, found: set[str]) -> None:
    assert heavy(source, "llm_wrapper/boxes.py") == found


def test_light_modules_do_not_load_heavy_libraries() -> None:
    """Catches what the walk cannot see: a light module that imports a module that imports torch."""
    names = [dotted(name) for name in MODULES if not name.endswith("__main__.py")]
    light = [name for name in names if group_of(name) in {"core", "datasets", "prompts", "report", "cli"}]
    code = f"import importlib, sys\nfor n in {light!r}: importlib.import_module(n)\nprint({HEAVY!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"
