"""What is in the store, and removing it.

Owns: listing and removal. Must not know: how models get here.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sixfold import config
from sixfold.errors import ModelNotFoundError
from sixfold.store import disk, hub, record, registry
from sixfold.store.download import Pinned
from sixfold.store.names import HubName, parse
from sixfold.store.record import Record
from sixfold.store.registry import Entry
from sixfold.store.resolve import ResolvedModel


@dataclass(frozen=True)
class StoredModel(ResolvedModel):
    """A model on this machine with its size in bytes."""

    size: int


def short_names() -> tuple[Entry, ...]:
    """Every short name that can be pulled, pulled or not."""
    return tuple(registry.entries().values())


def list_models() -> list[StoredModel]:
    """The models that were pulled, by name. Looks at sizes, not at contents."""
    return sorted((_stored(found) for found in _records()), key=lambda model: model.name)


def remove(name: str) -> int:
    """Deletes a pulled model and what an interrupted pull of it left; returns the bytes freed.

    Raises :class:`ModelNotFoundError` when there is nothing of it in the store, and for a path: what the store did not
    download it does not delete.
    """
    target = parse(name)
    if isinstance(target, Path):
        raise ModelNotFoundError(
            f"{name} is a file of yours, not a model in the store", remedy="Delete it yourself if you want it gone"
        )
    with disk.errors_explained(f"Could not remove the model {name}", config.home()), _lock(target):
        doomed = _files_of(target)
        directory = record.directory(name)
        if not doomed and not directory.exists():
            raise ModelNotFoundError(f"The model {name} is not on this machine", remedy=_present_names())
        freed = sum(_delete(path) for path in doomed)
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(target, HubName):
            _sweep(target)
    return freed


def _lock(target: HubName | Entry) -> AbstractContextManager[None]:
    return disk.exclusive(record.lock_file(target), lambda: None)


def _records() -> list[Record]:
    paths = (config.home() / "models").glob("*/record.json")
    found = [record.read_file(path) for path in paths]
    return [one for one in found if one is not None and (config.home() / one.path).exists()]


def _stored(found: Record) -> StoredModel:
    path, size = config.home() / found.path, sum(file.size for file in found.files)
    return StoredModel(found.name, path, found.source, found.license, found.chat, size)


def _files_of(target: HubName | Entry) -> list[Path]:
    """The files that only this model uses, and unfinished ones."""
    if isinstance(target, Entry):
        pins = [Pinned(target.file, target.size, target.sha256)]
        pins += [Pinned(wheel.file, wheel.size, wheel.sha256) for wheel in target.wheels]
        files = [pin.part for pin in pins] + list(record.directory(target.name).glob("*"))
    else:
        found = record.read(target.name)
        shared = {file.path for other in _records() if other.name != target.name for file in other.files}
        files = [config.home() / file.path for file in found.files if file.path not in shared] if found else []
    return [path for path in files if path.exists()]


def _delete(path: Path) -> int:
    """Deletes a file, and what it points to in the hub's cache (there the named files are links to blobs)."""
    content = path.resolve()
    size = content.stat().st_size if content.exists() else 0  # two links to one blob: the first took it
    path.unlink()
    if content != path.absolute() and content.is_relative_to(hub.cache_directory().resolve()):
        content.unlink(missing_ok=True)
    return size


def _sweep(target: HubName) -> None:
    """Deletes the hub cache's folder of a repository that no pulled model uses any more."""
    if not any(one.source == "hub" and one.name.split(":")[1] == target.repo for one in _records()):
        shutil.rmtree(hub.repository(target.repo), ignore_errors=True)


def _present_names() -> str:
    names = ", ".join(model.name for model in list_models())
    return f"Present are: {names}" if names else "Nothing was pulled yet"
