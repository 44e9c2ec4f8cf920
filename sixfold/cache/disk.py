"""Entries as files: one a file, the least recently used go first when the directory is full.

Owns: the directory. Must not know: what entries hold. Several processes may use one directory; each counts what it has
seen, so together they may exceed the capacity by what the others have written since they began.

    directory/ab/abcdef...   an entry, named by its digest; renamed into place when it is whole
    directory/new/...        entries that are being written; what a crash leaves there is removed at the next start

Entries hold what users have written, so the directory is for its owner only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from sixfold.cache.frame import CacheKey, decode, encode
from sixfold.cache.tier import TierCounts, read_each
from sixfold.errors import ConfigError

_HEX = frozenset("0123456789abcdef")
_NEW = "new"
_LEFT_BEHIND = 3600.0  # seconds after which a file under ``new`` belongs to no writer any more


class DiskCache:
    """Keeps at most ``capacity`` bytes of entries under ``directory``. Raises ConfigError if it can not be used."""

    batch = 1  # a file is as quick alone

    def __init__(self, directory: str | Path, capacity: int) -> None:
        self.directory = Path(directory).expanduser()
        self.capacity = capacity
        self.counts = TierCounts()
        self._lock = threading.Lock()  # over the index and the counts
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # by digest, least recently used first
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.directory / _NEW).mkdir(mode=0o700, exist_ok=True)
            self._read_directory()
        except OSError as error:
            raise ConfigError(
                f"{self.directory} can not hold a cache", cause=error.strerror or str(error),
                remedy="Name a directory that this user can write to",
            ) from None  # fmt: skip
        with self._lock:
            self._make_room(0)

    def known(self, keys: Sequence[CacheKey]) -> int:
        return next((index for index, key in enumerate(keys) if key not in self), len(keys))

    def __contains__(self, key: CacheKey) -> bool:
        return key.digest in self._sizes

    def get(self, key: CacheKey) -> bytes | None:
        try:
            blob = self._path(key.digest).read_bytes()
        except FileNotFoundError:
            self._missed(key)
            return None
        except OSError:
            self._missed(key, failed=1)
            return None
        payload = decode(key, blob)
        if payload is None:
            self._missed(key, rejected=1)
            return None
        with self._lock:
            self.counts.hits += 1
            with contextlib.suppress(OSError):
                os.utime(self._path(key.digest))  # the order of use outlives the process
                self._note(key.digest, len(blob))  # unless it was evicted while it was read
        return payload

    def read(self, keys: Sequence[CacheKey]) -> list[bytes]:
        return read_each(self.get, keys)

    def put(self, key: CacheKey, payload: bytes) -> bool:
        blob = encode(key, payload)
        if len(blob) > self.capacity:
            return self._count_failure()
        path, new = self._path(key.digest), self.directory / _NEW / secrets.token_hex(16)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with self._lock:
                self._make_room(len(blob))
            new.write_bytes(blob)
            with self._lock:
                new.replace(path)
                self._note(key.digest, len(blob))
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            return self._count_failure()
        with self._lock:
            self.counts.stored += 1
            self._make_room(0)
        return True

    def delete(self, key: CacheKey) -> None:
        with self._lock:
            self._forget(key.digest)
            self._unlink(key.digest)

    def clear(self) -> None:
        with self._lock:
            for digest in list(self._sizes):
                self._forget(digest)
        with contextlib.suppress(OSError):
            for file in self._entries():  # also what others have written
                with contextlib.suppress(OSError):
                    Path(file.path).unlink()

    def levels(self) -> dict[str, TierCounts]:
        return {"disk": self.counts}

    def close(self) -> None:
        pass

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.directory / name[:2] / name

    def _read_directory(self) -> None:
        for left in (self.directory / _NEW).iterdir():
            with contextlib.suppress(FileNotFoundError):  # its writer has just put it into place
                if left.stat().st_mtime < time.time() - _LEFT_BEHIND:
                    left.unlink()
        found = []
        for file in self._entries():
            with contextlib.suppress(FileNotFoundError):
                state = file.stat()
                found.append((state.st_mtime, bytes.fromhex(file.name), state.st_size))
        for _, digest, size in sorted(found):
            self._note(digest, size)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """The files that are entries, by their names."""
        for shard in self.directory.iterdir():
            if len(shard.name) == 2 and set(shard.name) <= _HEX:
                for file in os.scandir(shard):
                    if set(file.name) <= _HEX and len(file.name) % 2 == 0 and file.is_file():
                        yield file

    # With the lock held:

    def _note(self, digest: bytes, size: int) -> None:
        """The entry is there and was used just now."""
        self._forget(digest)
        self._sizes[digest] = size
        self.counts.entries += 1
        self.counts.bytes += size

    def _forget(self, digest: bytes) -> None:
        size = self._sizes.pop(digest, None)
        if size is not None:
            self.counts.entries -= 1
            self.counts.bytes -= size

    def _make_room(self, size: int) -> None:
        while self._sizes and self.counts.bytes + size > self.capacity:
            digest = next(iter(self._sizes))
            self._forget(digest)
            self._unlink(digest)
            self.counts.evicted += 1

    def _unlink(self, digest: bytes) -> None:
        with contextlib.suppress(OSError):
            self._path(digest).unlink(missing_ok=True)

    # Without it:

    def _missed(self, key: CacheKey, *, failed: int = 0, rejected: int = 0) -> None:
        with self._lock:
            self.counts.misses += 1
            self.counts.failed += failed
            self.counts.rejected += rejected
            if rejected:
                self._unlink(key.digest)
            if not failed:
                self._forget(key.digest)

    def _count_failure(self) -> bool:
        with self._lock:
            self.counts.failed += 1
        return False
