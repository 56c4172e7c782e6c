"""Commands resolve to the recipes that they always did: digests of all values that are not the default."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import Recipe, RecipeFile, compose, load_resolved, read_recipe_file

DEFAULTS = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}

CHOICES = {
    "": "c8a8295a0bfe",
    "train=default": "c8a8295a0bfe",
    "train=demo": "1c04fdf293ad",
    "train=dora": "754b4f696f26",
    "train=fast": "77d221a39c87",
    "train=generated": "0fffe4b32cdf",
    "train=ia3": "f01278d10cd4",
    "train=mixed": "980de709733f",
    "train=paper": "34bc4589fcfa",
    "train=prefix-tuning": "c543c1098f31",
    "train=prompt-tuning": "ee622177bb6c",
    "prompt=chain-of-thought": "8a70cdda37c6",
    "train=paper prompt=chain-of-thought": "7f4a65a77554",
    "prompt=in-context": "c2fcc40252c2",
    "train=paper prompt=in-context": "2891b920ee15",
    "prompt=instruction": "73716261b5cc",
    "train=paper prompt=instruction": "2770eec6b3b4",
    "prompt=retrieved": "b90459f4dfee",
    "train=paper prompt=retrieved": "292649d5c151",
    "vlm=flo2 llm=llama3": "952d5be2fd34",
    "vlm=flo2 llm=llama3 data=refcocog": "66781dd6b999",
    "vlm=coco data=refcocog train=mixed": "f2b11183f408",
    "vlm=toy+toy-gray": "8f6ee4c417be",
    "vlm=gd llm=mixtral data=talk2car train=fast": "ae3310d5c201",
    "train=generated prompt=retrieved+chain-of-thought": "3d1158b2a2a1",
    "search=glov": "92365807384b",
    "llm=rule vlm=toy-gray": "0971e2ce5152",
}

PAPER = {
    "flo2-llama3-refcoco+": "baccd281b662",
    "flo2-llama3-refcoco": "dede2b686e9e",
    "flo2-llama3-refcocog": "3bb489c32ae6",
    "flo2-llama3-talk2car": "f76f57a101f4",
    "flo2-mixtral-refcoco+": "aff0c1e7789b",
    "flo2-mixtral-refcoco": "ae061b7e34ed",
    "flo2-mixtral-refcocog": "990da302b3a8",
    "flo2-mixtral-talk2car": "6210a689be91",
    "gd-llama3-refcocog": "d3ff3e5de960",
    "gd-mixtral-refcocog": "101f7988c455",
    "gdrec-llama3-refcocog": "37458ff91991",
    "gdrec-mixtral-refcocog": "6722c4ccf3e0",
}


def digest(recipe: Recipe) -> str:
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def from_file(path: Path, text: str, names: dict[str, str], *overrides: str) -> Recipe:
    """Compose as a verb does that is given `--recipe`."""
    path.write_text(text, encoding="utf-8")
    start = read_recipe_file(str(path))
    missing = {kind: name for kind, name in DEFAULTS.items() if not start.gives(kind)}
    return compose({**missing, **names}, overrides, start=start)


@pytest.mark.parametrize("choices", CHOICES)
def test_names_resolve_as_ever(choices: str) -> None:
    names = dict(word.split("=") for word in choices.split())
    assert digest(compose({**DEFAULTS, **names})) == CHOICES[choices]


@pytest.mark.parametrize("row", PAPER)
def test_rows_of_the_paper_resolve_as_ever(row: str) -> None:
    assert digest(compose({}, start=read_recipe_file(row))) == PAPER[row]


# --recipe


def test_a_resolved_recipe_starts_the_same_again(tmp_path: Path) -> None:
    recipe = compose({**DEFAULTS, "vlm": "toy+toy-gray", "train": "paper", "prompt": "in-context"}, ["train.seed=3"])
    assert from_file(tmp_path / "recipe.yaml", recipe.to_yaml(), {}) == recipe
    assert load_resolved(tmp_path / "recipe.yaml") == recipe
    other = from_file(tmp_path / "recipe.yaml", recipe.to_yaml(), {"vlm": "toy", "prompt": "coords"}, "train.seed=4")
    assert (other.vlm, other.prompt.format, other.prompt.examples, other.train.seed) == ("toy", "coords", 4, 4)
    assert other.train.lora == recipe.train.lora


def test_words_name_recipes_and_mappings_are_sections(tmp_path: Path) -> None:
    text = """\
vlm: toy-gray
llm: {model: gguf:some_llm, orders: 2}
train: paper
prompt: {examples: 3}
candidates: {cap: 9}
overrides: train.epochs=5 llm.orders=3
"""
    recipe = from_file(tmp_path / "mine.yaml", text, {"data": "mine"}, "train.epochs=6")
    assert (recipe.vlm, recipe.data.name) == ("toy-gray", "mine")
    assert (recipe.llm.model, recipe.llm.orders) == ("gguf:some_llm", 3)
    assert (recipe.prompt.format, recipe.prompt.examples, recipe.candidates.cap) == ("coords", 3, 9)
    assert (recipe.train.lora.rank, recipe.train.epochs) == (128, 6)


def test_a_training_without_a_prompt_has_the_default_one(tmp_path: Path) -> None:
    recipe = from_file(tmp_path / "mine.yaml", "train: {epochs: 2}", {"prompt": "in-context"})
    assert (recipe.prompt.format, recipe.prompt.examples, recipe.train.epochs) == ("hints", 4, 2)


def test_typed_names_win_over_the_file_and_its_prompt_stays(tmp_path: Path) -> None:
    row = "vlm: gd\nllm: llama3\ndata: refcocog\ntrain: paper\nprompt: coords-scores\n"
    recipe = from_file(tmp_path / "row.yaml", row, {"vlm": "toy", "prompt": "in-context"})
    assert (recipe.vlm, recipe.prompt.format, recipe.prompt.examples) == ("toy", "coords_scores", 4)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("vlm: [a]", r"mine.yaml:1: vlm is the name of a recipe", id="list"),
        pytest.param("vlm: toy\ncmd: $(touch pwned)", r"mine.yaml:2: unknown key 'cmd'", id="unknown"),
        pytest.param("overrides: {a: 1}", "overrides are words", id="mapping"),
        pytest.param("overrides: prompt.format=/etc/secret.j2", "named by the one who types", id="template"),
        pytest.param("llm: {modle: x}", r"mine.yaml:1: unknown key 'llm.modle'; did you mean 'model'", id="key"),
        pytest.param("llm: lama3", r"no llm recipe is named 'lama3'; did you mean 'llama3'", id="name"),
        pytest.param("train: {epochs: x}", r"mine.yaml:1: train.epochs: Input should be a valid integer", id="value"),
    ],
)
def test_a_file_that_gives_no_recipe_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=problem):
        from_file(tmp_path / "mine.yaml", text, {})


def test_a_training_that_holds_words_is_refused_with_the_place_for_them(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.yaml").write_text("train: {epochs: 1}\nprompt:\n  format: coords\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine.yaml:3: a train recipe names its prompt .* recipes/prompt/NAME.yaml"):
        compose({"train": "mine"}, start=compose(DEFAULTS), folders=[tmp_path])


def test_a_start_without_a_file_gives_nothing() -> None:
    assert not any(RecipeFile().gives(kind) for kind in DEFAULTS)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        pytest.param("vlm: gd\nllm: llama3\n", ("gd", "llama3", None), id="names"),
        pytest.param("detector: {name: toy}\nllm: {model: a/b c}\ndata: {name: x}", ("toy", "a-b-c", "x"), id="parts"),
        pytest.param("train: {epochs: 1}\n", (None, None, None), id="neither"),
    ],
)
def test_a_file_names_the_folder_of_its_results(text: str, labels: tuple[str | None, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    start = read_recipe_file(str(tmp_path / "mine.yaml"))
    assert tuple(start.label(kind) for kind in ("vlm", "llm", "data")) == labels
