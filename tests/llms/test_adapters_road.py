"""A third_party adapter by the verbs: evaluated with a template of the user's, used on one picture, merged."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner, Result

from llm_wrapper import storage
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.cli import main
from llm_wrapper.errors import LLMWrapperError, ModelError, RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.jobs import Evaluation
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.recipe import compose
from llm_wrapper.wrapper import Wrapper
from tests.first_images import TOY, copy_first_images
from tests.llms import tiny
from tests.llms.test_adapters import lora, sized, third_party

ROOT = Path(__file__).parents[2]
OURS = ["llm.model=tiny", "llm.dtype=float32"]
THEIRS = [*OURS, "prompt.format=theirs.j2"]
TEMPLATE = re.search(r"```jinja\n(.*?)```", (ROOT / "docs" / "paper.md").read_text("utf-8"), re.DOTALL)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Two images of the toy split, detected."""
    copy_first_images(tmp_path / "toy", count=2, splits=["val"])
    run("cache-detections", "--data-root", tmp_path / "toy", "--split", "val")
    return tmp_path / "toy"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny LLM, an adapter for it, and the template of the docs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm_wrapper.cli.options.CONSOLE", Console(width=400))
    llm = tiny.llm()
    llm.model.save_pretrained("tiny")
    llm.tokenizer.save_pretrained("tiny")
    third_party(Path("theirs"), base="tiny")
    assert TEMPLATE
    Path("theirs.j2").write_text(TEMPLATE[1], encoding="utf-8")


def invoke(*args: str | int | Path) -> Result:
    return CliRunner().invoke(main.app, [str(arg) for arg in args])


def run(*args: str | int | Path) -> str:
    result = invoke(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def fail(kind: type[LLMWrapperError], *args: str | int | Path) -> str:
    result = invoke(*args)
    assert isinstance(result.exception, kind), result.exception
    return str(result.exception)


def test_it_is_evaluated_and_the_report_says_which(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llm_wrapper"):
        run("eval", "--data-root", toy, "--limit", 6, "--adapter", "theirs", *THEIRS)
    assert not caplog.records
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"toy-tiny-toy-theirs-[0-9a-f]{8}", folder.name)
    report = json.loads((folder / "report-val-first-6.json").read_text())
    assert report["adapter"]["name"] == "theirs"
    assert report["adapter"]["trained_on"] == "tiny"
    weights = "adapter_model.safetensors"
    assert report["adapter"]["sha256"][weights] == storage.digest(Path("theirs") / weights)
    assert (report["run"], report["recipe"]["prompt"]["format"]) == (None, "theirs.j2")

    rows = files.load_predictions(folder / "predictions-val-first-6.parquet")
    assert {row.system for row in rows} == {"detector", "rule", "untrained", "tuned", "oracle"}
    tuned, untrained = ({r.sample_id: r.probabilities for r in rows if r.system == n} for n in ("tuned", "untrained"))
    assert tuned.keys() == untrained.keys()
    assert tuned != untrained
    assert not (Path("theirs") / "README.md").read_text().count("LLM-wrapper")  # what others wrote is left alone


def test_words_of_this_project_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    names = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}
    recipe = compose(names, OURS)
    job = Evaluation(recipe, None, adapter=find_adapter("theirs"))
    with caplog.at_level(logging.WARNING, "llm_wrapper"):
        assert job.find_adapter_folder() == Path("theirs")
    assert f"prompt.format={recipe.prompt.format}; was it trained so?" in caplog.text


def test_it_answers_for_one_picture() -> None:
    image = next((TOY / "images").iterdir())
    assert "decided by: llm" in run("predict", image, "left star", "--vlm", "toy", "--adapter", "theirs", *THEIRS)
    names = {"vlm": "toy", "llm": "smollm2", "data": "mine", "train": "default"}
    recipe = compose(names, THEIRS)
    found = {name: Wrapper.from_recipe(recipe, name).predict(image, "left star") for name in ("theirs", None)}
    assert found["theirs"].ranked != found[None].ranked


def test_it_is_merged() -> None:
    assert "merged is written" in run("export", "theirs", "merged", "--llm", "smollm2", *OURS)
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.inference_mode():
        merged = transformers.AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)(ids).logits
        expected = add_adapter(tiny.llm(), Path("theirs")).model(ids).logits
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


PICTURE = str(TOY / "images" / "toy-val-0000.png")


@pytest.mark.parametrize(
    ("kind", "args", "reason"),
    [
        pytest.param(RecipeError, ["eval", "--llm", "rule"], "llm.backend=rule takes no adapter", id="rule"),
        pytest.param(RecipeError, ["eval", "--run", "runs/a", *OURS], "runs/a has its own adapter", id="run"),
        pytest.param(ModelError, ["eval", "--adapter", "nowhere", *OURS], "'nowhere' is no folder", id="nowhere"),
        pytest.param(
            ModelError,
            ["predict", PICTURE, "x", "--vlm", "toy", "--adapter", "wide", *OURS],
            "does not fit tiny",
            id="size",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(kind: type[LLMWrapperError], args: list[str], reason: str) -> None:
    third_party(Path("wide"), lora(), sized(hidden_size=64))
    Path("tiny/model.safetensors").unlink()  # so that any loading of weights is another error
    assert reason in fail(kind, *args[:1], *([] if "--adapter" in args else ["--adapter", "theirs"]), *args[1:])


def test_evaluation_refuses_before_the_untrained_llm_is_asked(toy: Path) -> None:
    third_party(Path("wide"), lora(), sized(hidden_size=64))
    Path("tiny/model.safetensors").unlink()
    message = fail(ModelError, "eval", "--data-root", toy, "--limit", 6, "--adapter", "wide", *THEIRS)
    assert "the adapter wide does not fit tiny" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("kind", "args", "reason"),
    [
        pytest.param(RunError, ["theirs", "merged"], "llm-wrapper export theirs merged --llm", id="no-llm"),
        pytest.param(RecipeError, ["theirs", "merged", "llm.model=tiny"], "llm.model=tiny needs --llm", id="override"),
        pytest.param(ModelError, ["none", "merged", "--llm", "smollm2"], "'none' is no folder", id="nowhere"),
    ],
)
def test_a_merge_says_what_it_needs(kind: type[LLMWrapperError], args: list[str], reason: str) -> None:
    assert reason in fail(kind, "export", *args)
    assert not Path("merged").exists()
