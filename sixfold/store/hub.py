"""Models of the Hugging Face hub: ``hf:org/repo`` (safetensors or the only GGUF) and ``hf:org/repo:file.gguf``.

``huggingface_hub`` does the transport: tokens, resuming, its cache layout under ``home()/hub``. The commit and every
digest are recorded by the pull, so a model that was pulled is found again without the network and never changes.

Owns: which files of a repository make a model. Must not know: the format of the files.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sixfold import config
from sixfold.errors import DownloadError, ModelNotFoundError, SixfoldError
from sixfold.store import disk, record
from sixfold.store.names import HubName
from sixfold.store.record import Record
from sixfold.store.wheel import Progress

# pickles (*.bin, *.pt) are never fetched: loading one runs code
_WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "LICENSE*", "NOTICE*")
_UNWANTED = ("consolidated*",)  # Mistral's second copy of the weights
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_POLL = 0.25  # seconds between looks at how much has arrived


@dataclass(frozen=True)
class _File:
    path: str
    size: int
    sha256: str | None  # known to the hub for large files only


def cache_directory() -> Path:
    return config.home().absolute() / "hub"


def repository(repo: str) -> Path:
    """The folder of one repository in the cache, by huggingface_hub's layout."""
    return cache_directory() / f"models--{repo.replace('/', '--')}"


def download(name: HubName, progress: Progress) -> Record:
    """Fetches the model and returns its record, not yet written. Raises DownloadError or ModelNotFoundError."""
    try:
        return _download(name, progress)
    except SixfoldError:
        raise
    except Exception as error:  # the library's errors come from requests, httpx or httpx2, depending on its version
        raise _in_words(name, error) from error


def _download(name: HubName, progress: Progress) -> Record:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(name.repo, files_metadata=True)
    files = _choose(name, [_file_of(sibling) for sibling in info.siblings or ()])
    total = sum(file.size for file in files)
    cache, folder = cache_directory(), repository(name.repo)
    disk.require_room(cache, total - _bytes_in(folder), f"the model {name.name}")
    stamps, paths = [], []
    with _metered(folder, progress, f"Downloading {name.name}", total):
        for file in files:
            path = Path(hf_hub_download(name.repo, file.path, revision=info.sha, cache_dir=cache))
            paths.append(path)
            stamps.append(record.stamp(path, _verified(name, file, path)))
    opened = paths[0] if len(files) == 1 else paths[[file.path for file in files].index("config.json")].parent
    home = config.home().absolute()
    relative = opened.relative_to(home) if opened.is_relative_to(home) else opened
    return Record(name.name, "hub", _license_of(info), True, str(relative), tuple(stamps))


def _file_of(sibling: Any) -> _File:
    lfs = sibling.lfs
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return _File(sibling.rfilename, sibling.size or 0, sha256)


def _license_of(info: Any) -> str | None:
    card = info.card_data
    value = card.get("license") if card is not None else None
    return value if isinstance(value, str) else None


def _verified(name: HubName, file: _File, path: Path) -> str:
    digest = record.sha256(path)
    if file.sha256 is not None and digest != file.sha256:
        path.resolve().unlink()
        raise DownloadError(
            f"{name.repo}/{file.path} was refused",
            cause="what arrived does not have the SHA-256 digest that the hub names, and was deleted",
            remedy=f"Run `sixfold pull {name.name}` again",
        )
    return digest


def _choose(name: HubName, files: list[_File]) -> list[_File]:
    """The files of the model: one GGUF, or config.json with the safetensors and what belongs to the tokenizer."""
    models = [file for file in files if file.path.lower().endswith(".gguf") and "mmproj" not in file.path.lower()]
    if name.selector is None:
        top = [file for file in files if "/" not in file.path]
        if any(f.path == "config.json" for f in top) and any(f.path.endswith(".safetensors") for f in top):
            return [file for file in top if _belongs(file.path)]
        found = models
    else:
        # a file by its name, else a tag as in model-Q4_K_M.gguf
        tag = re.compile(rf"(?:^|[-._/]){re.escape(name.selector)}\.gguf$", re.IGNORECASE)
        found = [file for file in models if file.path == name.selector] or [f for f in models if tag.search(f.path)]
    if len(found) == 1 and not _SPLIT.search(found[0].path):
        return found
    raise _no_choice(name, found, models)


def _belongs(path: str) -> bool:
    return any(fnmatch(path, wanted) for wanted in _WANTED) and not any(fnmatch(path, bad) for bad in _UNWANTED)


def _no_choice(name: HubName, found: list[_File], models: list[_File]) -> ModelNotFoundError:
    whole = [file.path for file in models if not _SPLIT.search(file.path)]
    what = f"{name.name} does not name one model"
    if not models:
        cause = "the repository has neither config.json with *.safetensors nor a GGUF file at its top"
        return ModelNotFoundError(what, cause=cause, remedy="Choose a repository with one of these")
    cause = "the file is one part of a split GGUF" if len(found) == 1 else f"{len(found)} GGUF files match"
    if not whole:
        return ModelNotFoundError(what, cause=cause, remedy="Choose a repository with an unsplit GGUF file")
    listed = ", ".join(sorted(whole)[:20])
    return ModelNotFoundError(what, cause=cause, remedy=f"Name one file: hf:{name.repo}:FILE with FILE among {listed}")


@contextmanager
def _metered(folder: Path, progress: Progress, label: str, total: int) -> Iterator[None]:
    """Reports how much has arrived by looking at the cache: the one way that every version of the library allows."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    done = threading.Event()
    silenced = not are_progress_bars_disabled()
    if silenced:  # our caller draws; two bars on one terminal garble each other
        disable_progress_bars()

    def watch() -> None:
        while not done.wait(_POLL):
            progress(label, min(_bytes_in(folder), total), total)

    watcher = threading.Thread(target=watch, name="sixfold-hub-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        if silenced:
            enable_progress_bars()
    progress(label, total, total)


def _bytes_in(folder: Path) -> int:
    total = 0
    for blob in (folder / "blobs").glob("*"):
        try:
            total += blob.stat().st_size
        except FileNotFoundError:  # renamed from *.incomplete while we look
            continue
    return total


def _in_words(name: HubName, error: Exception) -> SixfoldError:
    from huggingface_hub import errors

    url = f"https://huggingface.co/{name.repo}"
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{name.repo} is gated",
            cause="its owner asks everybody to accept a licence first",
            remedy=f"Accept it at {url}, then set HF_TOKEN to a token of that account and pull again",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"The Hugging Face hub has no model {name.repo} that you may see",
            remedy="Correct the name; for a private model set HF_TOKEN",
        )
    if isinstance(error, OSError) and error.errno in disk.FULL + disk.FORBIDDEN:
        raise error  # the disk, not the network: the caller has the words for it
    return DownloadError(
        f"Could not download {name.name}",
        cause=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}",
        remedy="Check the network (HF_HUB_OFFLINE must not be set, HF_ENDPOINT names a mirror); "
        "pulling again goes on where this stopped",
    )
