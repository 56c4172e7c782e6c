"""Recipes: every shipped file composes, and every problem is listed at once, with its place."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llm_wrapper import datasets, detectors
from llm_wrapper.errors import RecipeError, nearest
from llm_wrapper.prompts.render import PROMPT_FORMATS
from llm_wrapper.recipe import RECIPE_KINDS, Recipe, available, compose, load_resolved, prompt_of, schema
from llm_wrapper.recipe.schema import LLMSection, LoraSection, SamplingSection, SearchSection, Section, TrainSection

SHIPPED = Path(__file__).parents[1] / "recipes"
NAMES = {"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"}

# Sections are disjoint, so it is enough that every file occurs; every LLM with every training, which read each other.
_TRAINED = list(product(available("llm"), available("train")))
_OTHERS = [kind for kind in RECIPE_KINDS if kind not in ("llm", "train")]
COMBINATIONS = [
    {"llm": llm, "train": train, **dict(zip(_OTHERS, others, strict=True))}
    for (llm, train), *others in zip(_TRAINED, *(cycle(available(kind)) for kind in _OTHERS), strict=False)
]
VLMS = ", ".join(available("vlm"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the shipped recipes, to add broken ones to."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "recipes"))


def refused(names: dict[str, str], *overrides: str) -> list[str]:
    return problems(SHIPPED, names, *overrides)


def problems(root: Path, names: dict[str, str], *overrides: str) -> list[str]:
    """Compose what must fail; return the headline and the problems, one a line, without the root."""
    with pytest.raises(RecipeError) as caught:
        compose(names, overrides, folders=[root])
    return [line.removeprefix("  - ").replace(f"{root}/", "") for line in str(caught.value).splitlines()]


def with_file(root: Path, kind: str, content: str | bytes) -> dict[str, str]:
    """Add a recipe called `new` and return the names that use it."""
    (root / kind / "new.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    return {**NAMES, kind: "new"}


def test_every_kind_has_files_and_every_yaml_file_is_of_a_kind() -> None:
    found = {path.relative_to(SHIPPED).parts[0] for path in SHIPPED.rglob("*.yaml")}
    assert found - {"paper", "accelerate"} == set(RECIPE_KINDS)  # test_paper.py and test_processes.py are about those
    assert all(available(kind) for kind in RECIPE_KINDS)


def test_the_combinations_hold_every_file_and_every_llm_with_every_training() -> None:
    assert all({names[kind] for names in COMBINATIONS} == set(available(kind)) for kind in RECIPE_KINDS)
    assert {(names["llm"], names["train"]) for names in COMBINATIONS} == set(_TRAINED)


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "-".join(names.values()))
def test_shipped_files_compose_and_read_back_equal(names: dict[str, str], tmp_path: Path) -> None:
    recipe = compose(names)
    assert recipe.detector.name in detectors.REGISTRY
    assert {data.reader for data in recipe.training_data()} <= set(datasets.READERS)
    assert recipe.prompt.format in PROMPT_FORMATS
    assert (recipe.llm.backend == "rule") == (recipe.llm.model is None)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_resolved(path) == recipe


@pytest.mark.parametrize(
    "path",
    sorted(path for kind in RECIPE_KINDS for path in (SHIPPED / kind).rglob("*.yaml")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_shipped_file_gives_the_sections_of_its_kind_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)) == set(RECIPE_KINDS[path.parent.name])
    assert text.startswith("# ")


def test_also_keeps_root_and_reader_of_the_data_set() -> None:
    recipe = compose({**NAMES, "data": "refcocog", "train": "mixed"}, ["data.root=here"])
    first, second = recipe.training_data()
    assert (first, first.name, second.name) == (recipe.data, "refcocog", "refcoco")
    assert (second.reader, second.root) == ("refer", Path("here"))
    assert second.settings["split_by"] == "unc"


@pytest.mark.parametrize("name", available("train"))
def test_the_values_are_those_of_the_file(name: str) -> None:
    written = yaml.safe_load((SHIPPED / "train" / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe = compose({**NAMES, "train": name})
    assert recipe.train == TrainSection.model_validate(written["train"])
    assert recipe.prompt.model_dump(exclude_unset=True) == prompt_of(written["prompt"])


# prompts


def test_a_prompt_recipe_adds_to_what_the_training_says() -> None:
    recipe = compose({**NAMES, "prompt": "retrieved+chain-of-thought"})
    words = recipe.prompt
    assert (words.format, words.examples, words.retrieve, words.reasoning_tokens) == ("hints", 4, True, 64)
    assert compose({**NAMES, "prompt": "in-context"}, ["prompt.examples=2"]).prompt.examples == 2


def test_a_prompt_recipe_may_be_any_file_and_comes_before_the_training(root: Path, tmp_path: Path) -> None:
    best = tmp_path / "a+b" / "best.yaml"
    best.parent.mkdir()
    best.write_text("prompt: {format: coords, instruction: '{objects} {expression}'}\n", encoding="utf-8")
    words = compose({**NAMES, "prompt": str(best)}, folders=[root]).prompt
    assert (words.format, words.instruction) == ("coords", "{objects} {expression}")
    assert prompt_of(str(best), [root]) == {"format": "coords", "instruction": "{objects} {expression}"}


def test_prompts_that_contradict_each_other_are_refused_with_both_places(root: Path) -> None:
    with_file(root, "prompt", "prompt:\n  reasoning_tokens: 8\n  examples: 2\n")
    names = {**NAMES, "prompt": "in-context+new+chain-of-thought"}
    first = "prompt/new.yaml:3: prompt.examples is 2 here and 4 in prompt/in-context.yaml:3: name one of the two"
    second = (
        "prompt/chain-of-thought.yaml:3: prompt.reasoning_tokens is 64 here and 8 in prompt/new.yaml:2: "
        "name one of the two"
    )
    assert problems(root, names)[1:] == [first, second]
    with pytest.raises(RecipeError, match=r"prompt\.examples is 2 here"):
        prompt_of(names["prompt"], [root])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        pytest.param("in-contxt", "", "did you mean 'in-context'?", id="unknown"),
        pytest.param("in-context+in-context", "", "names the prompt 'in-context' twice", id="twice"),
        pytest.param("absent.yaml", "", "absent.yaml cannot be read: No such file", id="no-such-file"),
        pytest.param("new", "prompt: [1]\n", "prompt is not a mapping", id="list"),
        pytest.param("new", "train: {epochs: 1}\n", "a prompt recipe has no section 'train'", id="section"),
        pytest.param("new", "prompt:\n  exmples: 1\n", "new.yaml:2: unknown key 'prompt.exmples'", id="key"),
        pytest.param("new", "prompt: {retrieve: true}\n", "prompt.examples is 0", id="retrieve-nothing"),
        pytest.param("new", "prompt: {examples: -1}\n", "greater than or equal to 0", id="less-than-none"),
    ],
)
def test_an_unusable_prompt_says_why(root: Path, name: str, content: str, problem: str) -> None:
    with_file(root, "prompt", content or "prompt: {}\n")
    assert any(problem in line for line in problems(root, {**NAMES, "prompt": name})[1:])


# overrides


def test_overrides_win_over_files_and_later_ones_over_earlier_ones() -> None:
    overrides = ["train.epochs=2", "train.epochs=3", "train.lora.rank=8", "detector.settings.a.b=[1, x]"]
    recipe = compose(NAMES, overrides)
    assert (recipe.train.epochs, recipe.train.lora.rank, recipe.train.lora.alpha) == (3, 8, 32)
    assert recipe.detector.settings == {"a": {"b": [1, "x"]}}


@pytest.mark.parametrize(("text", "expected"), [("null", None), ("", None), ("7", 7)])
def test_values_are_yaml_behind_the_first_equals_sign(text: str, expected: int | None) -> None:
    recipe = compose(NAMES, [f"train.max_steps={text}", "llm.model='a=b'"])
    assert (recipe.train.max_steps, recipe.llm.model) == (expected, "a=b")


@pytest.mark.parametrize(
    "override", ["", "train.epochs", "epochs=2", ".epochs=2", "train.=2", "train..epochs=2", "=2", "--epochs 2"]
)
def test_a_malformed_override_is_quoted(override: str) -> None:
    assert refused(NAMES, override)[1] == f"override {override!r} is not of the form section.key=value"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        pytest.param("train.epochs=[", "the value is not valid YAML", id="broken"),
        pytest.param("train.epochs=@x", "the value is not valid YAML", id="reserved"),
        pytest.param("train.epochs=2024-13-45", "the value is not valid YAML", id="no-date"),
        pytest.param("train.epochs=" + "[" * 200, "the value is not valid YAML", id="deep"),
        pytest.param("train.lora={a: &x [1], b: *x}", "the value is not valid YAML", id="alias"),
        pytest.param("train.lora={rank: 1, rank: 2}", "the value is not valid YAML", id="repeated-key"),
        pytest.param("train.lora=" + "9" * 5000, "the value is not valid YAML", id="digits"),
        pytest.param("train.epochs.x=1", "epochs is not a section", id="below-a-value"),
    ],
)
def test_an_unusable_override_says_why(override: str, reason: str) -> None:
    problem = refused(NAMES, override)[1]
    assert problem.startswith(f"override {override!r}"[:300])
    assert problem.endswith(f": {reason}")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        pytest.param("trian.epochs=2", "unknown key 'trian'; did you mean 'train'?", id="section"),
        pytest.param("train.lora.rnk=8", "unknown key 'train.lora.rnk'; did you mean 'rank'?", id="key"),
        pytest.param("train.epochs=x", "train.epochs: Input should be a valid integer", id="type"),
        pytest.param("train.lora={rank: x}", "train.lora.rank: Input should be a valid integer", id="whole-section"),
    ],
)
def test_the_place_of_an_override_is_the_command_line(override: str, problem: str) -> None:
    (line,) = refused(NAMES, override)[1:]
    assert line.startswith(f"override {override!r}: {problem}")


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a/b", "", ".hidden", "a b", "x" * 5000, "nul", "a\0b"])
@pytest.mark.parametrize("key", ["data.name", "data.train_split", "data.eval_split", "detector.label", "detector.name"])
def test_a_name_that_becomes_a_folder_is_plain(key: str, name: str) -> None:
    override = f"{key}={json.dumps(name)}"
    with pytest.raises(RecipeError, match=re.escape(key)) as caught:
        compose(NAMES, [override])
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".yaml", "../" * 2000 + "x", "a+" * 3000, "a\0b"])
@pytest.mark.parametrize("kind", ["vlm", "llm", "data", "train", "prompt", "search"])
def test_a_name_that_no_file_can_have_is_refused(kind: str, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        compose({**NAMES, kind: name})
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("root", ["x" * 5000, "a/" * 3000, "a/" + "x" * 256])
def test_a_root_that_no_folder_can_have_is_refused(root: str) -> None:
    assert "so long a name" in refused(NAMES, f"data.root={root}")[1]


def test_every_name_that_leaves_its_folder_is_listed_at_once() -> None:
    keys = ("data.name", "data.train_split", "data.eval_split", "detector.label")
    found = refused(NAMES, *(f"{key}=../x" for key in keys), "train.also=[{name: ../x}]")
    assert found[0] == "the recipe cannot be used (5 problems):"
    assert all(any(f"{key}: " in row for row in found) for key in (*keys, "train.also.0.name"))


# the user's templates

OWN = "{{ expression }} {{ candidates | length }}"


def test_a_file_names_a_template_beside_it(root: Path) -> None:
    (root / "prompt" / "own.j2").write_text(OWN, encoding="utf-8")
    (root / "prompt" / "own.yaml").write_text("prompt: {format: own.j2}", encoding="utf-8")
    assert compose({**NAMES, "prompt": "own"}, folders=[root]).prompt.format == str(root / "prompt" / "own.j2")


@pytest.mark.parametrize("place", ["/etc/secret.j2", "../../secret.j2", "~/secret.j2"])
def test_a_file_names_no_template_elsewhere(root: Path, place: str) -> None:
    (root / "prompt" / "own.yaml").write_text(f"prompt: {{format: {place}}}", encoding="utf-8")
    assert compose({**NAMES, "prompt": "own"}, folders=[root]).prompt.format == str(root / "prompt" / "secret.j2")


def test_a_template_that_is_a_link_to_a_file_elsewhere_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the user", encoding="utf-8")
    (root / "prompt" / "own.j2").symlink_to(tmp_path / "secret")
    (root / "prompt" / "own.yaml").write_text("prompt: {format: own.j2}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"prompt\.format: .*lies outside"):
        compose({**NAMES, "prompt": "own"}, folders=[root])


def test_a_template_is_named_by_its_path_on_the_command_line() -> None:
    assert compose(NAMES, ["prompt.format=some/own.j2"]).prompt.format == "some/own.j2"


# problems of files

BROKEN_TRAIN = """\
train:
  epoks: 2
  lora:
    rnk: 1
  learning_rate: fast
  epochs: 0
  dropout: 0.1
  scheduler: sawtooth
  also:
    - settings: 3
prompts:
  format: 1
"""


def test_all_problems_of_a_file_are_listed_with_their_lines(root: Path) -> None:
    found = problems(root, with_file(root, "train", BROKEN_TRAIN))
    assert found[0] == "the recipe cannot be used (9 problems):"
    for start in (
        "train/new.yaml:12: a train recipe has no section 'prompts'; did you mean 'prompt'?",
        "train/new.yaml:2: unknown key 'train.epoks'; did you mean 'epochs'?",
        "train/new.yaml:4: unknown key 'train.lora.rnk'; did you mean 'rank'?",
        "train/new.yaml:7: unknown key 'train.dropout'",
        "train/new.yaml:5: train.learning_rate: Input should be a valid number",
        "train/new.yaml:6: train.epochs: Input should be greater than or equal to 1 (value: 0)",
        "train/new.yaml:8: train.scheduler: Input should be 'linear', 'cosine' or 'constant'",
        "train/new.yaml:10: train.also.0.name: Field required",
        "train/new.yaml:10: train.also.0.settings: Input should be a valid dictionary (value: 3)",
    ):
        assert any(line.startswith(start) for line in found), (start, found)


def test_problems_of_all_files_names_and_overrides_are_told_together(root: Path) -> None:
    names = {**with_file(root, "train", "train:\n  epoks: 2\n"), "vlm": "tyo", "llm": "rul"}
    (root / "data" / "bad.yaml").write_text("data:\n  name: x\n  reader: toy\n", encoding="utf-8")
    found = problems(root, {**names, "data": "bad"}, "train.epochs", "detector.settings.path=x")
    assert found == [
        "the recipe cannot be used (5 problems):",
        f"no vlm recipe is named 'tyo'; did you mean 'toy'? (there are: {VLMS}; files in vlm)",
        next(line for line in found if line.startswith("no llm recipe is named 'rul'; did you mean 'rule'?")),
        "override 'train.epochs' is not of the form section.key=value",
        "data/bad.yaml:2: data.root: Field required (value: {'name': 'x', 'reader': 'toy'})",
        "train/new.yaml:2: unknown key 'train.epoks'; did you mean 'epochs'?",
    ]


@pytest.mark.parametrize("name", ["TOY", "toy.yaml", "", "../llm/rule", "zebra", "tooy", "toy\0"])
def test_a_wrong_name_says_which_exist(name: str) -> None:
    near = "; did you mean 'toy'?" if name in ("tooy", "toy\0") else ""
    (line,) = refused({**NAMES, "vlm": name})[1:]
    assert line == f"no vlm recipe is named {name!r}{near} (there are: {VLMS}; files in vlm)"


def test_without_any_file_the_error_says_so(tmp_path: Path) -> None:
    assert problems(tmp_path, {"vlm": "toy"})[1].startswith("no vlm recipe is named 'toy' (there are: none;")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("", ": expected a mapping of sections, found NoneType", id="empty"),
        pytest.param("# nothing\n", ": expected a mapping of sections, found NoneType", id="comment-only"),
        pytest.param("- train\n", ": expected a mapping of sections, found list", id="list"),
        pytest.param("train\n", ": expected a mapping of sections, found str", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n\xff\xfe", ", line 1: byte 0x89 is not UTF-8", id="binary"),
        pytest.param("train: \0", " cannot be read as YAML: unacceptable character", id="nul"),
        pytest.param("train: {epochs: 2", " cannot be read as YAML: while parsing a flow mapping", id="truncated"),
        pytest.param("train:\n\tepochs: 2", " cannot be read as YAML: while scanning for the next token", id="tab"),
        pytest.param("train: !!python/object:os.system {}", " cannot be read as YAML: could not determine", id="tag"),
        pytest.param("train: {seed: 2024-13-45}", " cannot be read as YAML: month must be in 1..12", id="no-date"),
        pytest.param("train: &a {lora: *a}", " cannot be read as YAML: it holds an alias", id="endless"),
        pytest.param("a: 1\n---\nb: 2\n", " cannot be read as YAML: expected a single document", id="two-documents"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(root: Path, content: str | bytes, reason: str) -> None:
    found = problems(root, with_file(root, "train", content))
    assert found[0] == "the recipe cannot be used (1 problem):"
    assert found[1].startswith(f"train/new.yaml{reason}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param("1: 2\n", "train/new.yaml: a train recipe has no section 1", id="number-as-section"),
        pytest.param("detector: {name: x}\n", "train/new.yaml:1: a train recipe has no section 'detector'", id="other"),
        pytest.param("train: 3\n", "train/new.yaml:1: train: Input should be a valid dictionary", id="no-section"),
        pytest.param("train:\n", "train/new.yaml:1: train: Input should be a valid dictionary", id="empty-section"),
        pytest.param("train: [a]\n", "train/new.yaml:1: train: Input should be a valid dictionary", id="list"),
        pytest.param("\ntrain: {1: 2}\n", "train/new.yaml:2: train.1: Keys should be strings", id="number-as-key"),
        pytest.param("train: {seed: 0.5}\n", "train/new.yaml:1: train.seed: Input should be a valid integer", id="int"),
        pytest.param("train: {epochs: .nan}\n", "train/new.yaml:1: train.epochs: Input should be a finite", id="nan"),
    ],
)
def test_a_wrong_section_or_type_is_named(root: Path, content: str, problem: str) -> None:
    found = problems(root, with_file(root, "train", content))
    assert any(line.startswith(problem) for line in found[1:]), found


def test_nearest_names_only_what_is_close() -> None:
    assert nearest("epoks", ["epochs", "seed"]) == "; did you mean 'epochs'?"
    assert nearest("zebra", ["epochs", "seed"]) == nearest("x", []) == ""


# the resolved recipe


@example(text="ü🦓", number=1e-5, modules=["\x85", "\u2028\u2029", "\r\n", " x ", "1e3", "no", "~", ""])
@settings(max_examples=15, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    number=st.floats(allow_nan=False, min_value=1e-12, max_value=1e6),
    modules=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_any_text_survives_the_resolved_recipe(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float, modules: list[str]
) -> None:
    values = compose(NAMES).model_dump(mode="json")
    values["llm"]["chat_template"] = values["data"]["settings"]["text"] = values["prompt"]["format"] = text
    values["train"]["learning_rate"] = number
    values["train"]["lora"]["target_modules"] = modules
    recipe = Recipe.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_bytes(recipe.to_yaml().encode())
    assert load_resolved(path) == recipe


def test_the_resolved_recipe_names_file_and_line_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = compose(NAMES).to_yaml().replace("epochs: 1", "epochs: one")
    path.write_text(text, encoding="utf-8")
    line = text.splitlines().index("  epochs: one") + 1
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{line}: train\.epochs: Input should be a valid integer"):
        load_resolved(path)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = compose(NAMES)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3  # type: ignore[misc]


def test_a_detector_is_labelled_by_its_file_unless_it_says_otherwise() -> None:
    assert compose({**NAMES, "vlm": "gd15"}).detector.label == "gd15"
    assert compose({**NAMES, "vlm": "gd15"}, ["detector.label=gd16"]).detector.label == "gd16"


# --vlm a+b

TOGETHER = {**NAMES, "vlm": "gdrec+flo2+toy"}


def test_each_detector_keeps_its_settings_and_its_candidates(tmp_path: Path) -> None:
    recipe = compose(TOGETHER)
    assert [each.detector.label for each in recipe.detectors()] == ["gdrec", "flo2", "toy"]
    assert recipe.vlm == "gdrec+flo2+toy"
    for name, each in zip(("gdrec", "flo2", "toy"), recipe.detectors(), strict=True):
        alone = compose({**NAMES, "vlm": name})
        assert (each.detector, each.candidates) == (alone.detector, alone.candidates)
        assert (alone.vlm, alone.ensemble.also) == (name, {})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_resolved(path) == recipe


def test_overrides_reach_every_detector() -> None:
    overrides = ["candidates.cap=7", "ensemble.nms_iou=null", "ensemble.also.flo2.detector.settings.num_beams=1",
                 "ensemble.also.toy.candidates.cap=5"]  # fmt: skip
    recipe = compose(TOGETHER, overrides)
    first, second, third = recipe.detectors()
    assert (first.candidates.cap, second.candidates.cap, third.candidates.cap) == (7, 20, 5)
    assert (recipe.ensemble.nms_iou, second.detector.settings["num_beams"]) == (None, 1)
    assert {each.candidates.cap for each in recipe.without_cap().detectors()} == {sys.maxsize}


def test_parts_of_an_ensemble_are_the_recipes_of_their_names() -> None:
    recipe = compose(TOGETHER)
    _, second, third = recipe.detectors()
    assert recipe.with_detectors([second, third]) == compose({**NAMES, "vlm": "flo2+toy"})
    assert recipe.with_detectors([third]) == compose({**NAMES, "vlm": "toy"})


@pytest.mark.parametrize(
    ("vlm", "told"),
    [
        pytest.param("toy+tooy", "no vlm recipe is named 'tooy'; did you mean 'toy'", id="unknown"),
        pytest.param("toy+", "no vlm recipe is named ''", id="empty"),
        pytest.param("toy+coco+toy", "'toy+coco+toy' names the detector 'toy' twice", id="twice"),
    ],
)
def test_what_is_no_ensemble_is_told(vlm: str, told: str) -> None:
    assert told in "\n".join(refused({**NAMES, "vlm": vlm}))


def test_problems_of_a_further_file_have_its_place(root: Path) -> None:
    with_file(root, "vlm", "detector:\n  name: toy\ncandidates:\n  cap: 1\nmore: 1\n")
    told = "\n".join(problems(root, {**NAMES, "vlm": "toy+new"}, "ensemble.nms_iou=2"))
    assert "vlm/new.yaml:5: a vlm recipe has no section 'more'" in told
    assert "vlm/new.yaml:4: ensemble.also.new.candidates.cap: Input should be greater than or equal to 2" in told
    assert "override 'ensemble.nms_iou=2': ensemble.nms_iou" in told


def test_a_file_whose_name_has_a_plus_is_itself(root: Path) -> None:
    shutil.copy(root / "vlm" / "toy.yaml", root / "vlm" / "toy+coco.yaml")
    recipe = compose({**NAMES, "vlm": "toy+coco"}, folders=[root])
    assert (recipe.vlm, recipe.ensemble.also) == ("toy+coco", {})


def test_other_kinds_may_have_a_plus() -> None:
    assert compose({**NAMES, "vlm": "coco", "data": "refcoco+"}).data.name == "refcoco+"


# values that every section refuses: infinite numbers, and numbers that would make anything without bound


def float_fields() -> list[Any]:
    """Each field of each section that takes a number with a fraction."""
    return [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind in (getattr(schema, name) for name in vars(schema))
        if isinstance(kind, type) and issubclass(kind, Section)
        for name, field in kind.model_fields.items()
        if "float" in str(field.annotation)
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize(("kind", "name"), float_fields())
def test_numbers_are_finite(kind: type[Section], name: str, value: float) -> None:
    assert len(float_fields()) >= 8
    given: Any = [value] if name == "alphas" else value
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({name: given})
    assert any(row["loc"][0] == name for row in caught.value.errors())


BOUNDED = {
    LoraSection: "rank",
    TrainSection: "virtual_tokens epochs max_steps groups_per_step expressions_per_group generated_steps "
    "generated_per_group max_tokens tokens_per_batch seed",
    SamplingSection: "max_new_tokens",
    SearchSection: "iterations samples shown seed",
}


@pytest.mark.parametrize("value", [10**12, -1])
@pytest.mark.parametrize("kind", BOUNDED)
def test_numbers_that_things_are_made_by_are_bounded(kind: type[Section], value: int) -> None:
    names = BOUNDED[kind].split()
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(dict.fromkeys(names, value))
    assert {row["loc"][0] for row in caught.value.errors()} == set(names)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        pytest.param(LLMSection, "model", "x" * 1001, id="model"),
        pytest.param(LLMSection, "revision", "x" * 1001, id="revision"),
        pytest.param(LoraSection, "target_modules", ["x" * 1001], id="module"),
        pytest.param(LoraSection, "target_modules", ["x"] * 1001, id="modules"),
        pytest.param(SearchSection, "alphas", [0.5] * 1001, id="alphas"),
    ],
)
def test_texts_and_lists_are_bounded(kind: type[Section], name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="1000"):
        kind(**{name: value})


def test_a_seed_is_what_numpy_takes() -> None:
    seed = TypeAdapter(schema.Seed)
    assert seed.validate_python(2**32 - 1) == 2**32 - 1
    with pytest.raises(ValidationError):
        seed.validate_python(2**32)
