"""The benchmark of memory writes a random Mixtral, measures its load in a fresh process, and leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import memory
import pytest
import torch
import transformers

from llm_wrapper.errors import LLMWrapperError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*kernels:UserWarning"),
]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    memory.write_random_mixtral(folder, num_layers=2, width=256)
    return folder


def test_the_random_model_is_a_mixtral(small: Path) -> None:
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(small, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = sum(each.numel() for each in model.parameters())
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * weights
    assert sorted(path.name for path in small.glob("*.safetensors")) == sorted(set(index["weight_map"].values()))


def test_measuring(small: Path) -> None:
    facts = memory.measure(small)
    assert facts["quantized_share"] > 0.99
    assert 0 < facts["baseline_bytes"] <= facts["peak_bytes"] <= facts["peak_bytes_with_forward"]
    json.dumps(facts)


def test_the_default_model_is_large_enough() -> None:
    shapes = dict(memory._shapes(memory._config(memory._NUM_LAYERS, 2048)))
    assert sum(torch.Size(shape).numel() for part in shapes.values() for shape in part.values()) > 3e9


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(LLMWrapperError, match=r"0\.0 GB free.*takes 6\.\d GB.*TMPDIR"):
        memory.compare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_comparing_deletes_what_it_wrote(tmp_path: Path) -> None:
    facts = memory.compare(tmp_path, num_layers=2, width=256)
    assert facts["ratio"] == facts["peak_bytes"] / facts["bf16_bytes"]
    assert list(tmp_path.iterdir()) == []
    json.dumps(facts)
