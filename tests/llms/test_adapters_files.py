"""Where an adapter is found: a folder, a repository of the hub, or nowhere, and by what it is known again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import adapter_files
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.errors import ModelError
from tests.llms.test_adapters import changed, lora, third_party

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub that has one adapter; each call is noted."""
    folder, calls = third_party(tmp_path / "cache" / "snapshots" / "abc"), []

    def download(repo: str, **options: Any) -> str:
        calls.append((repo, options))
        if repo != "some/adapter":
            raise OSError("no such repository")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


@pytest.mark.parametrize(
    ("name", "revision"), [("some/adapter", None), ("some/adapter@v1.0", "v1.0")], ids=["main", "revision"]
)
def test_a_repository_is_fetched(hub: list[Any], name: str, revision: str | None) -> None:
    found = find_adapter(name)
    patterns = ["adapter_config.json", "adapter_model.safetensors"]
    assert hub == [("some/adapter", {"revision": revision, "allow_patterns": patterns})]
    assert found.label == f"{name.replace('/', '-').replace('@', '-')}-{found.label[-8:]}"
    assert found.facts()["name"] == name
    assert found.facts()["trained_on"] == "tiny-llama"
    assert found.facts()["sha256"].keys() == set(patterns)


def test_a_folder_is_not_looked_for_on_the_hub(hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (
        find_adapter(str(third_party(Path("some/adapter")))),
        find_adapter(str(third_party(Path("other/adapter"), lora(r=2)))),
    )
    assert hub == []
    assert (first.folder, first.label[:8], second.label[:8]) == (Path("some/adapter"), "adapter-", "adapter-")
    assert first.label != second.label


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/adapter", "cannot be fetched from the hub: no such repository.*hf download no/adapter --revision main"),
        ("no/adapter@x", "hf download no/adapter --revision x"),
        ("./no/adapter", "no folder, and no repository"),
        ("a/b/c", "no folder, and no repository"),
        ("", "holds no adapter|no folder"),
        ("../x", "no folder, and no repository"),
    ],
)
def test_what_is_nowhere_is_named(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        find_adapter(name)


def test_a_file_changes_the_identity(tmp_path: Path) -> None:
    before = adapter_files.digest_adapter(third_party(tmp_path))
    changed(tmp_path, lora_alpha=99)
    after = adapter_files.digest_adapter(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["adapter_config.json"]
