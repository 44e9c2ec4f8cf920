"""The disk under the store: room, errors in words, and the lock that lets one process at a time pull a model.

Owns: lock files and what an ``OSError`` means to a user. Must not know: names, networks or formats.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sixfold.errors import DownloadError

_MAKE_ROOM = "Free some space or set SIXFOLD_HOME to a directory on another disk"

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file at ``path``; calls ``waiting`` once when another process holds it, then waits.

    The kernel frees the lock when its holder ends, however it ends. The file stays: to delete it would let a third
    process lock a new file of the same name while the second still waits on the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_room(path: Path, needed: int, what: str) -> None:
    """Raises :class:`DownloadError` when the disk of ``path`` has less than ``needed`` bytes free."""
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if free < needed:
        raise DownloadError(
            f"There is no room for {what}",
            cause=f"it needs {needed / 1e6:.0f} MB more, and the disk of {path} has {free / 1e6:.0f} MB free",
            remedy=_MAKE_ROOM,
        )


@contextmanager
def errors_explained(what: str, home: Path) -> Iterator[None]:
    """Turns the ``OSError`` of a full, read-only or forbidden disk into a :class:`DownloadError` about ``what``."""
    try:
        yield
    except OSError as error:
        where = error.filename or home
        if error.errno in FULL:
            remedy = f"{_MAKE_ROOM}; what was downloaded so far is kept"
        else:
            remedy = "Check that the directory can be written to, or set SIXFOLD_HOME to one that can"
        raise DownloadError(what, cause=f"{error.strerror or error} ({where})", remedy=remedy) from error
