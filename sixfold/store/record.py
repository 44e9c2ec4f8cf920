"""The record beside a pulled model: which files it consists of, with their digests, sizes and times.

A record is written after every digest was checked, so a model with a record is complete. Looking at it again costs one
``stat`` a file; only a file whose size or time has changed is hashed again.

Owns: where a model's files live and whether they are whole. Must not know: where they came from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sixfold import config
from sixfold.errors import DownloadError
from sixfold.store.names import HubName, slug
from sixfold.store.registry import Entry

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Stamp:
    """One file as it was when it was verified. ``path`` is relative to the home, so that the home can move."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """A pulled model. ``path`` (relative to the home) is the GGUF file or the directory to open."""

    name: str
    source: str
    license: str | None
    chat: bool
    path: str
    files: tuple[Stamp, ...]


def directory(name: str) -> Path:
    """Where the record of ``name`` lives, and for a short name the model itself."""
    return config.home() / "models" / slug(name)


def lock_file(target: HubName | Entry) -> Path:
    """The file whose lock guards a model; one for all models of a repository, which share a folder of the cache."""
    name = f"hf:{target.repo}" if isinstance(target, HubName) else target.name
    return config.home() / "models" / ".locks" / f"{slug(name)}.lock"


def stamp(path: Path, sha256: str) -> Stamp:
    """A stamp of a file whose digest was just found to be ``sha256``."""
    status = path.stat()
    home = config.home()
    relative = path.relative_to(home) if path.is_relative_to(home) else path.absolute()
    return Stamp(str(relative), status.st_size, status.st_mtime_ns, sha256)


def write(record: Record) -> None:
    target = directory(record.name) / "record.json"
    write_atomically(target, json.dumps(asdict(record), indent=1).encode())


def read(name: str) -> Record | None:
    """The record of ``name``, or None when there is none that can be understood (then the model is pulled again)."""
    return read_file(directory(name) / "record.json")


def read_file(path: Path) -> Record | None:
    try:
        data = json.loads(path.read_bytes())
        return Record(**{**data, "files": tuple(Stamp(**file) for file in data["files"])})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None


def verify(record: Record) -> None:
    """Returns when every file is what was recorded; raises :class:`DownloadError` when one is missing or altered."""
    fresh = tuple(_verify_file(record, file) for file in record.files)
    if fresh != record.files:
        with contextlib.suppress(OSError):  # a home that cannot be written to is hashed again next time
            write(replace(record, files=fresh))


def _verify_file(record: Record, file: Stamp) -> Stamp:
    path = config.home() / file.path
    try:
        status = path.stat()
    except FileNotFoundError:
        raise damaged(record.name, f"{path} is missing") from None
    if (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns):
        return file
    if status.st_size != file.size or sha256(path) != file.sha256:
        raise damaged(record.name, f"{path} has been altered since it was downloaded")
    return replace(file, mtime_ns=status.st_mtime_ns)


def damaged(name: str, cause: str) -> DownloadError:
    return DownloadError(f"The model {name} is damaged", cause=cause, remedy=f"Run `sixfold pull {name}`")


def sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The digest of a file in hex; ``advance`` is told the bytes read since the last call."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance:
                advance(len(chunk))
    return digest.hexdigest()


def write_atomically(target: Path, content: bytes) -> None:
    """Puts ``content`` at ``target`` such that a reader or a crash sees the old file or the new one, never half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
