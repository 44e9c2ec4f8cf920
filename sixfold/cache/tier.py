"""What a place for entries has to offer, be it a disk, Redis, an object store, or several of them.

Owns: the interface. Must not know: any of them. No call raises because of what the place does: a read that fails is a
miss, a write that fails is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sixfold.cache.frame import CacheKey


@dataclass
class TierCounts:
    """Since the start, but for entries and bytes, which are now (0 of a place on the network, which counts itself)."""

    hits: int = 0
    misses: int = 0
    rejected: int = 0  # entries that were there and did not prove themselves
    stored: int = 0
    failed: int = 0  # reads and writes that the place refused
    evicted: int = 0
    entries: int = 0
    bytes: int = 0


class Tier(Protocol):
    """Calls may come from several threads at once.

    ``known`` and ``in`` answer from what is known here, without a round trip: the engine asks them between two steps.
    Everything else may take its time.
    """

    batch: int  # keys that are best read together

    def known(self, keys: Sequence[CacheKey]) -> int:
        """How many of the keys, from the first on, are worth a read; it may be wrong either way.

        A place that others fill too can not say: all, as long as it is reachable. Reading stops at the first miss, so
        that costs one round trip.
        """

    def __contains__(self, key: CacheKey) -> bool:
        """Whether a put would add nothing; it may be wrong either way."""

    def get(self, key: CacheKey) -> bytes | None:
        """The payload that was put under exactly this key."""

    def read(self, keys: Sequence[CacheKey]) -> list[bytes]:
        """The payloads from the first key on, up to the first that is not there."""

    def put(self, key: CacheKey, payload: bytes) -> bool:
        """Whether the entry is there now. It may be gone again at any time."""

    def delete(self, key: CacheKey) -> None: ...

    def clear(self) -> None:
        """Forgets every entry."""

    def levels(self) -> dict[str, TierCounts]:
        """What each place has counted, by its name, the nearest first."""

    def close(self) -> None: ...


def read_each(get: Callable[[CacheKey], bytes | None], keys: Sequence[CacheKey]) -> list[bytes]:
    """:meth:`Tier.read` of a place that is asked key by key."""
    found: list[bytes] = []
    for key in keys:
        payload = get(key)
        if payload is None:
            break
        found.append(payload)
    return found
