"""Which cached page goes first when pages are short.

Owns: the order. Must not know: tokens, or who uses a page. Taking one costs O(log n).

The clock counts the pages that have come into the cache, so it turns once a pool. An entry is due when the clock was at
its last use, and later by half a turn for each doubling of its uses: a prompt that everybody sends outlives a flood of
prompts that come once, and is still forgotten when nobody sends it any more. Only leaves stand in the order; a parent
follows when its last child has gone, so a sequence is forgotten from its end.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable

from sixfold.engine.prefix_tree import Entry

Item = tuple[float, int, int, Entry]  # due, minus depth (of equals the deeper one), serial, entry


class EvictionOrder:
    def __init__(self, num_pages: int) -> None:
        self._half_turn = num_pages / 2
        self._clock = 0
        self._heap: list[Item] = []
        self._serial = 0

    def entered(self) -> None:
        """A page has come into the cache."""
        self._clock += 1

    def used(self, entry: Entry) -> None:
        """A new sequence begins with it."""
        entry.uses += 1

    def let_go(self, entry: Entry) -> None:
        """Its last user has let go."""
        entry.used_at = self._clock

    def push(self, entry: Entry) -> None:
        """The entry may be evicted from now on. What makes it unfit later needs no call: see :meth:`pop`."""
        entry.due = entry.used_at + self._half_turn * math.log2(1 + entry.uses)
        self._serial += 1
        heapq.heappush(self._heap, (entry.due, -entry.depth, self._serial, entry))

    def pop(self, fit: Callable[[Entry], bool]) -> Entry:
        """The first that is ``fit`` and stands where it was last put; whatever stands before it is dropped."""
        while True:
            due, _, _, entry = heapq.heappop(self._heap)
            if due == entry.due and fit(entry):
                return entry

    def trim(self, fitting: int, fit: Callable[[Entry], bool]) -> None:
        """Drops what is unfit when that is most of the order; ``fitting``: an upper bound of what is not."""
        if len(self._heap) > 2 * fitting + 64:
            kept = {item[3]: item for item in self._heap if item[0] == item[3].due and fit(item[3])}
            self._heap = list(kept.values())
            heapq.heapify(self._heap)

    def clear(self) -> None:
        self._heap.clear()

    def missing(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of ``entries`` that the order could not give (for checks)."""
        known = {id(entry) for due, _, _, entry in self._heap if due == entry.due}
        return [entry for entry in entries if id(entry) not in known]
