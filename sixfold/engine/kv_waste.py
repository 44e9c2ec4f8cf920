"""How much of the allocated KV memory holds no token, over time.

Owns: the arithmetic. Must not know: where pages come from, or the clock.

Allocated is what is not on the free list: pages of sequences and pages that are kept. Waste is their slots without a
token, and what the engine notes about them (:data:`PAGE_NOTES`, :data:`ENTRY_NOTES`). A page that several sequences
share counts once. Time is the time of steps. The slots that a step writes are in use while it runs, so they count as
held: pages of one token would waste nothing but notes.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.prefix_tree import NO_PAGE, PAGE_BYTES, Entry
from sixfold.runtime.batch import PAGE_SIZE

_POINTER = 8
# Bytes for a page: its reference count, free-list slot and entry slot, whether it is kept, its number in one table.
PAGE_NOTES = 3 * _POINTER + 1 + 4


def _entry_notes() -> int:
    """Bytes for an entry of the prefix cache: itself, its key and tokens, its list, and its places in three orders."""
    entry = Entry(bytes(32), None, bytes(PAGE_BYTES), NO_PAGE, PrefixRoot(), 0)
    numbers = sys.getsizeof(1.5) + 2 * sys.getsizeof(1 << 20)  # due, used_at, key of the order
    parts = (entry, entry.key, entry.tokens, entry.children, (0, 0, 0, 0))
    return sum(map(sys.getsizeof, parts)) + numbers + 3 * _POINTER + 2 * 3 * _POINTER


ENTRY_NOTES = _entry_notes()


class Allocation(NamedTuple):
    """What is allocated at one time."""

    pages: int
    empty_slots: int  # of these pages' slots, those without a token
    entries: int = 0  # of the prefix cache

    def bytes(self, page_bytes: int, page_size: int = PAGE_SIZE) -> tuple[float, float]:
        """(wasted, allocated) bytes, for pages of ``page_bytes`` and ``page_size`` tokens."""
        notes = self.pages * PAGE_NOTES + self.entries * ENTRY_NOTES
        return self.empty_slots * page_bytes / page_size + notes, self.pages * page_bytes + notes


NOTHING = Allocation(0, 0)


class WasteMeter:
    """Sums up bytes times seconds."""

    def __init__(self, page_bytes: int, page_size: int = PAGE_SIZE) -> None:
        self._page_bytes = page_bytes
        self._page_size = page_size
        self.wasted = 0.0  # byte-seconds
        self.allocated = 0.0

    def add(self, allocation: Allocation, tokens: int, seconds: float) -> None:
        """A step that began with ``allocation`` and wrote ``tokens``."""
        allocation = allocation._replace(empty_slots=allocation.empty_slots - tokens)
        wasted, allocated = allocation.bytes(self._page_bytes, self._page_size)
        self.wasted += wasted * seconds
        self.allocated += allocated * seconds

    @property
    def ratio(self) -> float:
        """Waste as a share of what was allocated, 0 to 1; 0 before anything was."""
        return self.wasted / self.allocated if self.allocated else 0.0
