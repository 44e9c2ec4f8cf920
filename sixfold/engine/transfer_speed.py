"""How quick pages are fetched, computed and stored, by measurement: what decides whether a page is worth fetching.

Owns: the measurements and the decision. Must not know: pages, tiers, or who asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sixfold.runtime.batch import PAGE_SIZE

LEAST_TOKENS = 64  # of a step that tells how quick computing is
SMOOTHING = 0.2  # weight of a new measurement
PROBE = 16  # fetching that seems too slow is tried once in so many times


@dataclass
class Speeds:
    """Seconds a page, by measurement; nothing is known at first."""

    fetching: float | None = None
    computing: float | None = None
    declined: int = 0  # times that fetching was not worth it

    def fetched(self, seconds: float) -> None:
        self.fetching = smooth(self.fetching, seconds)

    def computed(self, tokens: int, seconds: float) -> None:
        if tokens >= LEAST_TOKENS:
            self.computing = smooth(self.computing, seconds * PAGE_SIZE / tokens)

    def decide_to_fetch(self) -> bool:
        """True until it is known to be slower; and now and then, to see whether it still is."""
        if self.fetching is None or self.computing is None or self.fetching < self.computing:
            return True
        self.declined += 1
        return self.declined % PROBE == 0


def smooth(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)
