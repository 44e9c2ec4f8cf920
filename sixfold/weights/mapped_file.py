"""A file mapped read-only into memory, and the sha256 of its content, remembered between starts.

Owns: opening, mapping, and the digest cache under ``home()/digests``. Must not know: what the bytes mean.

A file that another program shortens while it is mapped kills the process with SIGBUS when the lost part is touched;
no reader of a mapping can prevent that. Replace model files by renaming a complete one over them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import stat
import tempfile
import time
from pathlib import Path

from sixfold.config import home
from sixfold.errors import ModelFileError

RACY_NS = 2_000_000_000  # a file younger than this may still change without its times showing it


class MappedFile:
    """``bytes`` is the whole content; slices of it are copies, ``np.frombuffer`` on it is a read-only view."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`ModelFileError` when the file cannot be opened, is not a regular file, or is empty."""
        self.path = path
        try:
            # O_NONBLOCK: opening a pipe must not wait for a writer
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            try:
                self._stat = os.fstat(descriptor)
                if not stat.S_ISREG(self._stat.st_mode):
                    raise ModelFileError(f"{path} is not a regular file", remedy="Give the path of a model file")
                if self._stat.st_size == 0:
                    raise ModelFileError(f"{path} is empty", remedy="Download it again")
                self.bytes = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise ModelFileError(
                f"{path} cannot be read",
                cause=str(getattr(error, "strerror", None) or error),
                remedy="Check that it is there and may be read",
            ) from None

    @property
    def size(self) -> int:
        return len(self.bytes)

    def close(self) -> None:
        """Unmaps the file, or leaves that to the last array that still looks into it."""
        with contextlib.suppress(BufferError):
            self.bytes.close()

    def digest(self) -> str:
        """The sha256 of the content in hex: from the cache when path, size and times are those it was taken at."""
        path = str(self.path.resolve())
        # the change time as well: a file put in place of another with its old times kept would pass otherwise
        key = {"path": path, "size": self.size, "mtime_ns": self._stat.st_mtime_ns, "ctime_ns": self._stat.st_ctime_ns}
        entry = home() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
        if (known := _read_entry(entry, key)) is not None:
            return known
        digest = hashlib.sha256(self.bytes).hexdigest()
        newest = max(self._stat.st_mtime_ns, self._stat.st_ctime_ns)
        if time.time_ns() - newest > RACY_NS:
            _write_entry(entry, {**key, "sha256": digest})
        return digest


def _read_entry(entry: Path, key: dict[str, object]) -> str | None:
    """The digest that a cache entry records for exactly this key; None when there is none or it is damaged."""
    try:
        found = json.loads(entry.read_bytes())
        digest = found.pop("sha256")
        if found == key and len(digest) == 64:
            return bytes.fromhex(digest).hex()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _write_entry(entry: Path, content: dict[str, object]) -> None:
    """Writes to a temporary file and renames it, so that no reader meets half an entry. Failure costs only time."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=entry.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
            Path(name).replace(entry)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
