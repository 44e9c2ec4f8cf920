"""Which pages of ended sequences have not been stored yet, and when the next may be: so that a crash loses little.

Owns: the list and the pace. Must not know: tiers, or what is in a page.

While the engine rests, pages go as quickly as they are taken. While it runs, storing a page costs the steps some time
of a core, so it may take a small share of the time: both are measured where the writing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sixfold.engine.prefix_tree import Entry

SHARE = 0.01  # of the time, for storing while sequences run
UNKNOWN = 0.005  # seconds that storing a page takes while none was stored
AT_ONCE = 16  # pages copied in one go while the engine rests


class WriteBehind:
    """``most``: entries that are remembered; of more, the oldest are left to their eviction."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[Entry, None] = {}  # in the order in which they go
        self._next = 0.0  # when a page may go while sequences run

    def __len__(self) -> int:
        return len(self._waiting)

    def ended(self, last: Entry | None, stored: Callable[[Entry], bool]) -> None:
        """A sequence is over; ``last``: of its full pages that were entered. What precedes a stored page is stored."""
        chain: list[Entry] = []
        while last is not None and last.parent is not None and last not in self._waiting and not stored(last):
            chain.append(last)
            last = last.parent
        self._waiting.update(dict.fromkeys(reversed(chain)))
        while len(self._waiting) > self._most:
            del self._waiting[next(iter(self._waiting))]

    def due(self, now: float, seconds: float | None, *, resting: bool, fit: Callable[[Entry], bool]) -> Iterator[Entry]:
        """Those that may be stored now; ``seconds``: what storing one takes; ``fit``: whether it is there still."""
        if not resting and now < self._next:
            return
        left = AT_ONCE if resting else 1
        while self._waiting and left:
            entry = next(iter(self._waiting))
            del self._waiting[entry]
            if fit(entry):
                left -= 1
                yield entry
        self._next = now + (UNKNOWN if seconds is None else seconds) / SHARE

    def clear(self) -> None:
        self._waiting.clear()
