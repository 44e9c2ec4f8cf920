"""Models of the Hugging Face hub, with ``huggingface_hub`` replaced by a small fake of its cache."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from sixfold import store
from sixfold.errors import DownloadError, ModelNotFoundError
from sixfold.store import hub
from tests.store.conftest import digest

GGUF = {"README.md": b"-", "m-Q4_K_M.gguf": b"GGUF4", "m-Q8_0.gguf": b"GGUF88", "mmproj-m.gguf": b"eye"}
SAFETENSORS = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{ }",
    "LICENSE": b"MIT",
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"again",
    "onnx/model.safetensors": b"no",
}


@dataclass
class Hub:
    """Repositories by name. Files come to the cache as the real library puts them there: links to blobs."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    failure: Exception | None = None
    corrupt: bool = False
    fetched: list[str] = field(default_factory=list)

    def model_info(self, repo: str, *, files_metadata: bool) -> Any:
        assert files_metadata
        if self.failure:
            raise self.failure
        siblings = [
            SimpleNamespace(
                rfilename=name,
                size=len(content),
                lfs={"sha256": digest(content)} if name.endswith(("gguf", "safetensors")) else None,
            )
            for name, content in self.repos[repo].items()
        ]
        return SimpleNamespace(sha="c0ffee", siblings=siblings, card_data={"license": "mit"})

    def hf_hub_download(self, repo: str, file: str, *, revision: str, cache_dir: Path) -> str:
        self.fetched.append(file)
        content = self.repos[repo][file]
        folder = cache_dir / f"models--{repo.replace('/', '--')}"
        blob = folder / "blobs" / digest(content)
        link = folder / "snapshots" / revision / file
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            blob.write_bytes(content[::-1] if self.corrupt else content)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return str(link)


@pytest.fixture
def fake(home: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub({"org/gguf": GGUF, "org/st": SAFETENSORS, "org/one": {"only.gguf": b"GGUF1"}})
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(hub, "_POLL", 0.001)
    return fake


def failure(kind: type[Exception]) -> Exception:
    """An error of the library; its constructors differ from version to version."""
    error = kind.__new__(kind)
    error.args = ("the library's words",)
    return error


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf:org/one", "only.gguf"),
        ("hf:org/gguf:m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("hf:org/gguf:q4_k_m", "m-Q4_K_M.gguf"),
    ],
)
def test_one_gguf_is_pulled(fake: Hub, name: str, file: str) -> None:
    seen: list[tuple[str, int, int]] = []
    model = store.pull(name, lambda *report: seen.append(report))
    assert fake.fetched == [file]
    assert model.path.read_bytes() == fake.repos[name.split(":")[1]][file]
    assert (model.name, model.source, model.license) == (name, "hub", "mit")
    size = model.path.stat().st_size
    assert seen[-1] == (f"Downloading {name}", size, size)


def test_safetensors_repository_is_pulled_without_pickles(fake: Hub) -> None:
    model = store.pull("hf:org/st")
    assert sorted(fake.fetched) == ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]
    assert (model.path / "config.json").is_file()
    assert store.resolve("hf:org/st") == model


def test_pulled_model_is_found_offline(fake: Hub) -> None:
    model = store.pull("hf:org/st")
    fake.failure = failure(errors.OfflineModeIsEnabled)
    fake.fetched.clear()
    assert store.pull("hf:org/st") == model
    assert fake.fetched == []
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        store.pull("hf:org/one")


def test_incomplete_snapshot_is_mended(fake: Hub) -> None:
    path = store.pull("hf:org/st").path / "model.safetensors"
    path.unlink()
    with pytest.raises(DownloadError, match=r"is missing\. Run `sixfold pull hf:org/st`"):
        store.resolve("hf:org/st")
    assert store.pull("hf:org/st").path.joinpath("model.safetensors").read_bytes() == b"weights"


def test_file_with_another_digest_is_refused(fake: Hub) -> None:
    fake.corrupt = True
    with pytest.raises(DownloadError, match="SHA-256"):
        store.pull("hf:org/one")
    fake.corrupt = False
    assert store.pull("hf:org/one").path.read_bytes() == b"GGUF1"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:org/gguf", "FILE among m-Q4_K_M.gguf, m-Q8_0.gguf"),
        ("hf:org/gguf:Q2_K", "FILE among"),
        ("hf:org/gguf:README.md", "FILE among"),
        ("hf:org/split", "Choose a repository with an unsplit GGUF"),
        ("hf:org/pickle", "neither config.json"),
    ],
)
def test_name_that_is_not_one_model_is_explained(fake: Hub, name: str, words: str) -> None:
    fake.repos["org/split"] = {"m-00001-of-00002.gguf": b"1", "m-00002-of-00002.gguf": b"2"}
    fake.repos["org/pickle"] = {"pytorch_model.bin": b"x", "config.json": b"{}"}
    with pytest.raises(ModelNotFoundError, match=words):
        store.pull(name)
    assert fake.fetched == []


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (failure(errors.GatedRepoError), DownloadError, "HF_TOKEN"),
        (failure(errors.RepositoryNotFoundError), ModelNotFoundError, "no model org/one"),
        (RuntimeError("name resolution failed\nmore"), DownloadError, "RuntimeError: name resolution failed"),
        (OSError(errno.ENOSPC, "No space left on device"), DownloadError, "free some space"),
    ],
)
def test_errors_of_the_library_are_explained(fake: Hub, error: Exception, kind: type[Exception], words: str) -> None:
    fake.failure = error
    with pytest.raises(kind, match=f"(?i){words}"):
        store.pull("hf:org/one")


def test_remove_keeps_what_another_model_uses(fake: Hub, home: Path) -> None:
    small, large = store.pull("hf:org/gguf:Q4_K_M").path, store.pull("hf:org/gguf:Q8_0").path
    same = store.pull("hf:org/gguf:m-Q8_0.gguf").path
    assert same == large
    assert store.remove("hf:org/gguf:Q4_K_M") == 5
    assert not small.exists()
    assert store.remove("hf:org/gguf:Q8_0") == 0
    assert store.resolve("hf:org/gguf:m-Q8_0.gguf").path.read_bytes() == b"GGUF88"
    assert store.remove("hf:org/gguf:m-Q8_0.gguf") == 6
    assert list((home / "hub").iterdir()) == []
    assert store.list_models() == []
