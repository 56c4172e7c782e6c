"""Detectors are found by name, never by a recipe's word; raw rows become detections, and what is no box is counted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llm_wrapper import detectors
from llm_wrapper.cli.main import app
from llm_wrapper.datasets import Dataset
from llm_wrapper.detectors import create_detector, detections_from_raw, load_plugin, register_detector
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import DetectorSection

ROOT = Path(__file__).parents[2]
DATASET = Dataset("mine", "val", [], "digest")

PLUGIN = """
from llm_wrapper import register_detector

class Mine:
    name, levels, reads_images = "mine", ("image",), True
    def __init__(self, settings): self.settings = settings
    def identity(self): return {"id": "mine", **self.settings}

@register_detector("mine")
def create(settings):
    return Mine(settings)

DETECTORS = {"mine-too": Mine}
"""


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test starts with the built-in detectors, in an empty folder."""
    monkeypatch.setattr(detectors, "REGISTRY", dict(detectors.REGISTRY))
    monkeypatch.setattr(detectors, "_plugins", [])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)


def name_of(name: str, *plugins: str) -> dict[str, object]:
    return create_detector(DetectorSection(name=name, settings={"size": 3}), DATASET, plugins).identity()


@pytest.mark.parametrize("plugin", ["detectors_of_mine", "detectors_of_mine.py", "folder/detectors_of_mine.py"])
def test_a_plugin_registers_by_decorator_and_dictionary(plugin: str) -> None:
    for folder in (Path(), Path("folder")):
        folder.mkdir(exist_ok=True)
        (folder / "detectors_of_mine.py").write_text(PLUGIN)
    before = list(sys.path)
    load_plugin(plugin)
    load_plugin(plugin)  # once more does no harm
    assert name_of("mine") == name_of("mine-too") == {"id": "mine", "size": 3}
    assert sys.path == before, "nothing else is imported from the working folder"
    assert detectors.loaded_plugins() == (plugin,)


def test_another_process_loads_the_plugin_itself() -> None:
    Path("mine_for_workers.py").write_text(PLUGIN)
    assert name_of("mine", "mine_for_workers") == {"id": "mine", "size": 3}


def test_the_command_line_names_a_plugin() -> None:
    Path("mine_for_cli.py").write_text(PLUGIN)
    result = CliRunner().invoke(app, ["--plugin", "mine_for_cli", "predict", "--help"])
    assert (result.exit_code, "mine" in detectors.REGISTRY) == (0, True)


def test_a_plugin_detects_on_the_command_line() -> None:
    """The journey of the documentation: a file of a few lines, a recipe that names it, and an answer."""
    Path("mine_on_the_way.py").write_text(
        "from llm_wrapper import ImageDetector, register_detector\n"
        '@register_detector("mine")\n'
        "def create(settings):\n"
        "    rows = [((5, 5, 9, 9), 'mug', 0.9), ((20, 5, 29, 9), 'mug', 0.8), ((9, 9, 5, 5), 'no box', None)]\n"
        '    return ImageDetector("mine", lambda image: rows, settings)\n'
    )
    Path("recipes/vlm").mkdir(parents=True)
    Path("recipes/vlm/mine.yaml").write_text("detector:\n  name: mine\n  settings: {size: 3}\n")
    Image.new("RGB", (40, 20)).save("photo.png")
    words = ["predict", "photo.png", "the right mug", "--vlm", "mine", "--llm", "rule", "--json"]
    result = CliRunner().invoke(app, ["--plugin", "mine_on_the_way.py", *words])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["box"] == [20, 5, 29, 9]
    assert name_of("mine") == {"id": "mine", "size": 3}
    del detectors.REGISTRY["mine"]
    with pytest.raises(RecipeError, match="no detector is named 'mine'"):
        name_of("mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "ModuleNotFoundError", id="missing"),
        pytest.param("raise ValueError('no')", "ValueError: no", id="raises"),
        pytest.param("DETECTORS = {'toy': dict}", "named 'toy' already", id="built-in-name"),
        pytest.param("DETECTORS = {'../toy': dict}", "becomes a folder's name", id="no-folder-name"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(content: str | None, message: str) -> None:
    if content is not None:
        Path("unusable_plugin.py").write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_plugin("unusable_plugin")
    with pytest.raises(RecipeError, match=r"--plugin absent\.py cannot be imported: .*there is no such file"):
        load_plugin("absent.py")


def test_an_installed_package_offers_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("installed_detectors.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(".")
    points = [EntryPoint("installed", "installed_detectors:create", detectors.PLUGIN_GROUP)]
    monkeypatch.setattr(detectors, "entry_points", lambda *, group: points)
    assert name_of("installed") == {"id": "mine", "size": 3}
    with pytest.raises(RecipeError, match=r"named 'instaled'; did you mean 'installed'.*--plugin MODULE"):
        name_of("instaled")


@pytest.mark.parametrize("name", ["os:getcwd", "llm_wrapper.detectors.toy:create", "stranger"])
def test_a_recipe_names_no_code(name: str) -> None:
    Path("stranger.py").write_text("raise SystemExit('code of a recipe ran')")
    with pytest.raises(RecipeError, match="no detector is named"):
        create_detector(DetectorSection.model_construct(name=name, settings={}), DATASET)


def test_a_name_is_registered_once() -> None:
    register_detector("mine", dict)
    register_detector("mine", dict)  # the same factory again: a module that is imported twice
    with pytest.raises(RecipeError, match="named 'mine' already"):
        register_detector("mine", list)


BOX = [1.0, 2.0, 30.0, 40.0]


@pytest.mark.parametrize(
    ("score", "expected", "is_logged"),
    [
        pytest.param(0.5, 0.5, False, id="number"),
        pytest.param(None, None, False, id="none"),
        pytest.param(math.nan, None, True, id="nan"),
        pytest.param(math.inf, None, True, id="infinite"),
    ],
)
def test_a_box_stays_whatever_its_score(
    score: float | None, expected: float | None, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = detections_from_raw([(BOX, "cat", score), (BOX, "dog", 0.25)], "od")
    assert [(each.label, each.score) for each in found.items] == [("cat", expected), ("dog", 0.25)]
    assert found.num_dropped == 0
    assert ("od: scores that are not finite: 1;" in caplog.text) == is_logged


@pytest.mark.parametrize(
    "numbers",
    [[30, 2, 1, 40], [1, 2, 1, 40], [math.nan, 2, 3, 4], [1, 2, 3]],
    ids=["reversed", "no-area", "nan", "three"],
)
def test_what_is_no_box_is_dropped_and_counted(numbers: list[float]) -> None:
    found = detections_from_raw([(numbers, "cat", 0.5), (BOX, "dog", None)], "od")
    assert ([each.label for each in found.items], found.num_dropped) == (["dog"], 1)


def test_the_identity_of_a_cache_needs_neither_weights_nor_torch() -> None:
    code = f"""
import sys, yaml
from pathlib import Path
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections import cache  # reads a cache
from llm_wrapper.detections.contents import identity_of
from llm_wrapper.detectors import create_detector
from llm_wrapper.recipe import DetectorSection
dataset = Dataset("mine", "val", [], "digest")
for name in ("flo2", "kosmos2", "gd", "gdrec", "gd-py"):
    recipe = yaml.safe_load((Path({str(ROOT)!r}) / "recipes" / "vlm" / f"{{name}}.yaml").read_text(encoding="utf-8"))
    detector = create_detector(DetectorSection(**recipe["detector"]), dataset)
    assert identity_of(detector, dataset)["settings"]["revision"] == recipe["detector"]["settings"]["revision"]
print({{"torch", "transformers"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr
