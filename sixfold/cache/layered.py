"""Several tiers as one: the nearest answers first, and all get what is stored.

Owns: who is asked when. Must not know: what any of them is.

    read   disk -- a miss --> Redis -- found --> also to the disk, by a thread of its own
    put    disk and Redis, each only if it does not hold the entry already

So another server that shares the Redis can go on with what this one has stored.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from sixfold.cache.frame import CacheKey
from sixfold.cache.tier import Tier, TierCounts

MOST_CLIMBING = 64 << 20  # bytes on their way from a far tier to a nearer one; more stays where it is

Climb = tuple[Sequence[Tier], CacheKey, bytes, int]  # to which, what, and how often all was cleared before


class LayeredCache:
    """``tiers``: the nearest first."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = tuple(tiers)
        self.batch = max(tier.batch for tier in tiers)
        self._climbs: queue.SimpleQueue[Climb | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over what follows
        self._climbing = 0
        self._cleared = 0  # times
        self._thread = threading.Thread(target=self._climb, name="sixfold-kv-climb", daemon=True)
        self._thread.start()

    def known(self, keys: Sequence[CacheKey]) -> int:
        count = 0
        while more := max(tier.known(keys[count:]) for tier in self._tiers):
            count += more
        return count

    def __contains__(self, key: CacheKey) -> bool:
        return all(key in tier for tier in self._tiers)

    def get(self, key: CacheKey) -> bytes | None:
        found = self.read([key])
        return found[0] if found else None

    def read(self, keys: Sequence[CacheKey]) -> list[bytes]:
        found: list[bytes] = []
        cleared = self._cleared
        while len(found) < len(keys):
            more = self._read_some(keys[len(found) :], cleared)
            if not more:
                break
            found += more
        return found

    def put(self, key: CacheKey, payload: bytes) -> bool:
        stored = [tier.put(key, payload) for tier in self._tiers if key not in tier]
        return any(stored) or not stored

    def delete(self, key: CacheKey) -> None:
        for tier in self._tiers:
            tier.delete(key)

    def clear(self) -> None:
        with self._lock:
            self._cleared += 1
        for tier in self._tiers:
            tier.clear()

    def levels(self) -> dict[str, TierCounts]:
        return {name: counts for tier in self._tiers for name, counts in tier.levels().items()}

    def close(self) -> None:
        self._climbs.put(None)
        self._thread.join(10.0)
        for tier in self._tiers:
            tier.close()

    def _read_some(self, keys: Sequence[CacheKey], cleared: int) -> list[bytes]:
        """From the first tier that has the first key."""
        for level, tier in enumerate(self._tiers):
            found = tier.read(keys)
            if found:
                for key, payload in zip(keys, found, strict=False):
                    self._send_up(self._tiers[:level], key, payload, cleared)
                return found
        return []

    def _send_up(self, nearer: Sequence[Tier], key: CacheKey, payload: bytes, cleared: int) -> None:
        with self._lock:
            if not nearer or self._climbing + len(payload) > MOST_CLIMBING:
                return
            self._climbing += len(payload)
        self._climbs.put((nearer, key, payload, cleared))

    def _climb(self) -> None:
        while (climb := self._climbs.get()) is not None:
            nearer, key, payload, cleared = climb
            for tier in nearer:
                if cleared == self._cleared:
                    tier.put(key, payload)
                if cleared != self._cleared:  # meanwhile
                    tier.delete(key)
            with self._lock:
                self._climbing -= len(payload)
            del climb, payload  # nothing is kept alive while there is nothing to do
