"""What a place for entries has to offer, be it a disk, Redis or an object store.

Owns: the interface. Must not know: any of them. No call raises because of what the place does: a read that fails is a
miss, a write that fails is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sixfold.cache.frame import CacheKey


@dataclass
class TierCounts:
    """Since the start, but for entries and bytes, which are now."""

    hits: int = 0
    misses: int = 0
    rejected: int = 0  # entries that were there and did not prove themselves
    stored: int = 0
    failed: int = 0  # reads and writes that the place refused
    evicted: int = 0
    entries: int = 0
    bytes: int = 0


class Tier(Protocol):
    """Calls may come from several threads at once."""

    counts: TierCounts

    def __contains__(self, key: CacheKey) -> bool:
        """Whether a read is worth trying, without one: cheap, and it may be wrong either way."""

    def get(self, key: CacheKey) -> bytes | None:
        """The payload that was put under exactly this key."""

    def put(self, key: CacheKey, payload: bytes) -> bool:
        """Whether the entry is there now. It may be gone again at any time."""

    def delete(self, key: CacheKey) -> None: ...

    def clear(self) -> None:
        """Forgets every entry."""

    def close(self) -> None: ...
