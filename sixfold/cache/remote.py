"""Entries in a place on the network that several servers share: it may be slow, gone, full, or hold what it likes.

Owns: when the place is asked, and what its answers are worth. Must not know: its protocol (``redis.py``, ``s3.py``).

An entry is the same as on disk (``frame.py``), so a value that is torn, stale, foreign or flipped is a miss. A place
that fails is left alone for a moment, and for twice as long each time it fails again: a dead one costs one timeout now
and then, in a thread of its own. How much it holds and what it drops when it is full is its own business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sixfold.cache.frame import CacheKey, decode, encode
from sixfold.cache.tier import TierCounts

log = logging.getLogger(__name__)
T = TypeVar("T")

SHORTEST_REST, LONGEST_REST = 0.5, 30.0  # seconds that a place is left alone
MOST_NOTED = 1 << 17  # digests of entries that were seen there


class Unreachable(Exception):
    """The place did not answer, or not in time."""


class Refused(Exception):
    """The place answers and would not store it: it is full, or for reading only."""


class Store(Protocol):
    """Values under names. Raises nothing but Unreachable, and ``put`` and ``has`` Refused; says no secrets in them."""

    def check(self) -> None:
        """Raises ConfigError for what will never work."""

    def get(self, names: Sequence[bytes]) -> list[bytes | None]: ...
    def put(self, name: bytes, value: bytes) -> None: ...
    def has(self, name: bytes) -> bool: ...
    def delete(self, name: bytes) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class Rest:
    """How long something that fails is left alone. ``shortest`` of 0: not at all."""

    def __init__(self, now: Callable[[], float], shortest: float = SHORTEST_REST) -> None:
        self._now = now
        self._shortest = self._next = shortest
        self._until = 0.0

    @property
    def over(self) -> bool:
        return self._now() >= self._until

    def failed(self) -> float:
        """Seconds that it rests from now on."""
        seconds = self._next
        self._until = self._now() + seconds
        self._next = min(2 * seconds, LONGEST_REST)
        return seconds

    def worked(self) -> None:
        self._next = self._shortest


class RemoteCache:
    """``name``: of the kind of place, for metrics; ``where``: for messages, without secrets."""

    def __init__(
        self,
        name: str,
        where: str,
        store: Store,
        *,
        batch: int,
        shortest_rest: float = SHORTEST_REST,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = where
        self.batch = batch
        self.counts = TierCounts()
        self._name = name
        self._store = store
        self._lock = threading.Lock()  # over the counts and what follows
        self._asking, self._writing = Rest(now, shortest_rest), Rest(now, shortest_rest)
        self._noted: OrderedDict[bytes, None] = OrderedDict()  # digests that were there when we last looked
        self._clearing = threading.Lock()  # around a clear, for which all who ask wait
        self._clears_wanted = self._clears_done = 0  # they differ while it is to be cleared

    def greet(self) -> None:
        """Asks the place for the first time. Raises ConfigError for what will never work; one that does not answer
        now is asked again when it is needed."""
        self._ask(self._store.check)

    def known(self, keys: Sequence[CacheKey]) -> int:
        return len(keys) if self._asking.over else 0

    def __contains__(self, key: CacheKey) -> bool:
        """Also what can not be put now, so that it is not copied for nothing."""
        return key.digest in self._noted or not (self._asking.over and self._writing.over)

    def get(self, key: CacheKey) -> bytes | None:
        found = self.read([key])
        return found[0] if found else None

    def read(self, keys: Sequence[CacheKey]) -> list[bytes]:
        blobs = self._ask(lambda: self._store.get([key.digest for key in keys]))
        found: list[bytes] = []
        for key, blob in zip(keys, blobs or [], strict=False):
            payload = None if blob is None else decode(key, blob)
            if payload is None:
                self._missed(key, rejected=blob is not None)
                break
            found.append(payload)
        with self._lock:
            self.counts.hits += len(found)
            self.counts.misses += blobs is None
            for key in keys[: len(found)]:
                self._note(key)
        return found

    def put(self, key: CacheKey, payload: bytes) -> bool:
        if not self._writing.over:
            return False
        try:
            if not self._ask(lambda: self._put(key, payload)):
                return False
        except Refused as error:
            with self._lock:
                self.counts.failed += 1
                seconds = self._writing.failed()
            log.warning("%s does not take KV pages, next try in %.1f s: %s", self.where, seconds, error)
            return False
        with self._lock:
            self._writing.worked()
            self._note(key)
        return True

    def delete(self, key: CacheKey) -> None:
        with self._lock:
            self._noted.pop(key.digest, None)
        self._ask(lambda: self._store.delete(key.digest))

    def clear(self) -> None:
        """What can not be reached now is cleared before it is read again."""
        with self._lock:
            self._noted.clear()
            self._clears_wanted += 1
        self._ask(lambda: True)

    def levels(self) -> dict[str, TierCounts]:
        return {self._name: self.counts}

    def close(self) -> None:
        self._store.close()

    def _put(self, key: CacheKey, payload: bytes) -> bool:
        if not self._store.has(key.digest):  # another server may have been quicker, and asking is a small message
            self._store.put(key.digest, encode(key, payload))
            with self._lock:
                self.counts.stored += 1
        return True

    def _ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None if the place is left alone, or fails now."""
        if not self._asking.over:
            return None
        try:
            self._clear_if_wanted()
            answer = question()
        except Unreachable as error:
            with self._lock:
                self.counts.failed += 1
                seconds = self._asking.failed()
            log.warning("%s does not answer, next try in %.1f s: %s", self.where, seconds, error)
            return None
        self._asking.worked()
        return answer

    def _clear_if_wanted(self) -> None:
        """One that is wanted while another is under way makes one more: that may have passed what came since."""
        with self._clearing:
            wanted = self._clears_wanted
            if wanted != self._clears_done:
                self._store.clear()
                self._clears_done = wanted

    def _missed(self, key: CacheKey, *, rejected: bool) -> None:
        with self._lock:
            self.counts.misses += 1
            self.counts.rejected += rejected
            self._noted.pop(key.digest, None)
        if rejected:
            self._ask(lambda: self._store.delete(key.digest))

    def _note(self, key: CacheKey) -> None:
        self._noted[key.digest] = None
        self._noted.move_to_end(key.digest)
        if len(self._noted) > MOST_NOTED:
            self._noted.popitem(last=False)
