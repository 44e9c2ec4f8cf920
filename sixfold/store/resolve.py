"""From a name to a model on this disk, without ever touching the network.

Owns: ``resolve``. Must not know: how to download.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from sixfold import config
from sixfold.errors import ModelNotFoundError
from sixfold.store import record as records
from sixfold.store.names import parse
from sixfold.store.record import Record
from sixfold.store.registry import Entry


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is here. ``path`` is a GGUF file or a directory with config.json and safetensors.

    ``chat`` is False where the registry knows that the model has no chat template; True means that it may have one
    (what the file says decides). ``license`` is None when it is not known.
    """

    name: str
    path: Path
    source: str
    license: str | None
    chat: bool


def resolve(name: str) -> ResolvedModel:
    """The model that ``name`` stands for. Costs one ``stat`` a file when nothing was altered since the pull.

    Raises :class:`ModelNotFoundError` for an unknown name and for a model that was not pulled, and
    :class:`DownloadError` for one that was altered on disk; both say what to run.
    """
    target = parse(name)
    if isinstance(target, Path):
        return ResolvedModel(name, target, "path", None, True)
    if isinstance(target, Entry):
        return _resolve_entry(target)
    record = records.read(name)
    if record is None:
        raise _not_pulled(name)
    records.verify(record)
    return resolved(record)


def resolved(record: Record) -> ResolvedModel:
    return ResolvedModel(record.name, config.home() / record.path, record.source, record.license, record.chat)


def record_of(entry: Entry, path: Path) -> Record:
    """The record of a short name whose model file was just verified."""
    stamp = records.stamp(path, entry.sha256)
    return Record(entry.name, "registry", entry.license.id, entry.chat, stamp.path, (stamp,))


def _resolve_entry(entry: Entry) -> ResolvedModel:
    path = records.directory(entry.name) / entry.file
    if not path.is_file():
        raise _not_pulled(entry.name)
    record = records.read(entry.name)
    # the registry's digest rules, not the record's: a newer Sixfold may pin another file under the same name
    if record is not None and [file.sha256 for file in record.files] == [entry.sha256]:
        records.verify(record)
        return resolved(record)
    if path.stat().st_size != entry.size or records.sha256(path) != entry.sha256:
        raise records.damaged(entry.name, f"{path} is not the file that this version of Sixfold pins")
    record = record_of(entry, path)
    with contextlib.suppress(OSError):
        records.write(record)
    return resolved(record)


def _not_pulled(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"The model {name} is not on this machine",
        cause=f"nothing under {config.home()} was pulled by this name",
        remedy=f"Run `sixfold pull {name}`",
    )
