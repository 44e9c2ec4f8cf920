"""Names, and models on disk that were altered since they were pulled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sixfold import store
from sixfold.errors import DownloadError, ModelNotFoundError
from sixfold.store import names, record, registry


def test_shipped_registry_is_sound() -> None:
    entries = registry.entries()
    assert list(entries) == ["smollm2", "gemma3-270m"]
    assert not entries["smollm2"].license.accept
    assert entries["gemma3-270m"].license.accept
    assert not entries["gemma3-270m"].chat
    for entry in entries.values():
        assert all(len(pin) == 64 for pin in [entry.sha256, *(wheel.sha256 for wheel in entry.wheels)])
        assert sum(wheel.member_size for wheel in entry.wheels) == entry.size


def test_resolve_never_downloads(index: Any, known: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="Run `sixfold pull small`"):
        store.resolve("small")
    with pytest.raises(ModelNotFoundError, match="Run `sixfold pull hf:org/repo`"):
        store.resolve("hf:org/repo")
    assert index.requests == []


def test_paths_are_themselves(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gguf = tmp_path / "some model.gguf"
    gguf.write_bytes(b"GGUF")
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for name in (str(gguf), "some model.gguf", "./some model.gguf", "model", str(directory)):
        model = store.resolve(name)
        assert model == store.pull(name)
        assert (model.name, model.source, model.path) == (name, "path", Path(name))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.resolve("~/model").path == directory


def test_short_name_wins_over_a_file_of_that_name(
    known: Any, index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_bytes(b"GGUF")
    assert store.pull("small").source == "registry"
    assert store.resolve("./small").source == "path"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smolm2", "Did you mean smollm2"),
        ("SmolLM2", "Did you mean smollm2"),
        ("gemma", "Did you mean gemma3-270m"),
        ("zzzz", "Known names: smollm2, gemma3-270m"),
        ("", "empty"),
        ("a\0b", "NUL"),
        ("org/repo", "hf:org/repo for the Hugging Face hub"),
        ("absent.gguf", "There is no model at absent.gguf"),
        ("hf:", "Write hf:org/repo"),
        ("hf:repo", "Write hf:org/repo"),
        ("hf:org/repo:", "Write hf:org/repo"),
        ("hf:org/re--po", "Write hf:org/repo"),
        ("hf:../../etc:x", "Write hf:org/repo"),
        ("hf:org/repo:../x.gguf", "Write hf:org/repo"),
        ("hf:org/a/b", "Write hf:org/repo"),
    ],
)
def test_names_that_fit_nothing_are_explained(home: Path, name: str, words: str) -> None:
    for ask in (store.resolve, store.pull, store.remove):
        with pytest.raises(ModelNotFoundError, match=words):
            ask(name)


def test_directory_without_config_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        store.resolve(str(tmp_path))


def test_slugs_are_one_safe_name_each() -> None:
    given = ["smollm2", "hf:a/b", "hf:a/b:c.gguf", "hf:a/b:d/c.gguf", "hf:a/b:d%2Fc.gguf", "hf:a/b:d--c.gguf"]
    slugs = [names.slug(name) for name in given]
    assert len(set(slugs)) == len(given)
    assert not any("/" in slug for slug in slugs)


def test_altered_content_is_found_and_pulled_again(index: Any, known: Any) -> None:
    path = store.pull("small").path
    path.write_bytes(known.small[:-1] + b"!")
    with pytest.raises(DownloadError, match=r"altered .* Run `sixfold pull small`"):
        store.resolve("small")
    assert store.pull("small").path.read_bytes() == known.small


def test_cut_file_is_found_and_pulled_again(index: Any, known: Any) -> None:
    path = store.pull("small").path
    os.truncate(path, 100)
    with pytest.raises(DownloadError, match="sixfold pull small"):
        store.resolve("small")
    assert store.pull("small").path.read_bytes() == known.small


def test_touched_file_is_hashed_once(index: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.pull("small").path
    hashed: list[Path] = []
    real = record.sha256
    monkeypatch.setattr(record, "sha256", lambda path, *rest: hashed.append(path) or real(path, *rest))
    store.resolve("small")
    assert hashed == []
    os.utime(path, ns=(1, 1))
    store.resolve("small")
    store.resolve("small")
    assert hashed == [path]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": 3}', '{"files": [{"path": 1}]}'])
def test_lost_or_unreadable_record_is_written_anew(index: Any, known: Any, content: str | None) -> None:
    model = store.pull("small")
    path = model.path.parent / "record.json"
    good = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    before = len(index.requests)
    assert store.pull("small") == model
    assert path.read_bytes() == good
    assert len(index.requests) == before


def test_another_pin_in_a_newer_registry_rules(index: Any, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = store.pull("small")
    newer = known.registry.with_name("newer.toml")
    newer.write_text(known.registry.read_text().replace(record.sha256(model.path), "f" * 64))
    monkeypatch.setattr(registry, "FILE", newer)
    with pytest.raises(DownloadError, match="this version of Sixfold pins"):
        store.resolve("small")
