"""Listing and removing what was pulled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sixfold import store
from sixfold.errors import DownloadError, ModelNotFoundError


def test_empty_store_lists_nothing(home: Path) -> None:
    assert store.list_models() == []
    assert [entry.name for entry in store.short_names()] == ["smollm2", "gemma3-270m"]


def test_pulled_models_are_listed_with_their_sizes(index: Any, known: Any) -> None:
    store.pull("small")
    store.pull("parts", accept_license=True)
    listed = store.list_models()
    assert [(model.name, model.size, model.license) for model in listed] == [
        ("parts", 8000, "X"),
        ("small", len(known.small), "Apache-2.0"),
    ]
    assert all(model.path.stat().st_size == model.size for model in listed)


def test_removed_model_is_gone_and_can_be_pulled_again(index: Any, known: Any, home: Path) -> None:
    store.pull("parts", accept_license=True)
    path = store.pull("small").path
    assert store.remove("small") >= len(known.small)
    assert not path.parent.exists()
    assert [model.name for model in store.list_models()] == ["parts"]
    with pytest.raises(ModelNotFoundError, match="Present are: parts"):
        store.remove("small")
    assert store.pull("small").path.read_bytes() == known.small


def test_remove_clears_an_interrupted_pull(index: Any, known: Any, home: Path) -> None:
    index.cuts = [1000] + [0] * 9
    with pytest.raises(DownloadError):
        store.pull("small")
    assert store.remove("small") == 1000
    assert list((home / "partial").iterdir()) == []


def test_files_of_the_user_are_not_removed(home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="Delete it yourself"):
        store.remove(str(mine))
    assert mine.exists()
