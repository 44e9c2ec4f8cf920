"""What a request and the scheduler know of LoRA adapters.

Owns: an adapter's identity, and what the scheduler asks of those who hold adapters. Must not know: files, memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sixfold.engine.sequence import Sequence

NO_SLOT = -1


@dataclass(frozen=True, eq=False)
class Adapter:
    """One that was loaded under a name. Another loaded under the same name later is another adapter."""

    name: str
    path: Path
    digest: str  # of its configuration and weights
    rank: int
    bytes: int  # of memory while it is resident


@dataclass(frozen=True, slots=True)
class AdapterCounts:
    """A snapshot for metrics."""

    known: int = 0  # loaded by name
    resident: int = 0  # in a slot
    slots: int = 0
    bytes: int = 0  # of the resident ones
    loads: int = 0  # into a slot, since the start
    evictions: int = 0  # from a slot, for another
    running: tuple[str, ...] = ()  # names in use by running sequences
    waiting: tuple[str, ...] = ()  # names that are being read


NO_ADAPTERS = AdapterCounts()


class AdapterSlots(Protocol):
    """What the scheduler asks. Sequences come and go between its calls."""

    def arrive(self) -> None:
        """A step is about to be scheduled."""

    def ready(self, sequence: Sequence, /) -> bool:
        """Whether the sequence's adapter is in a slot, so that it can begin; asked in order of urgency."""

    def begun(self, sequence: Sequence, /) -> None:
        """It runs: its adapter stays where it is."""

    def ended(self, sequence: Sequence, /) -> None:
        """It no longer runs, or never did."""


class NoAdapters:
    """For an engine without them."""

    def arrive(self) -> None:
        pass

    def ready(self, sequence: Sequence, /) -> bool:
        return True

    def begun(self, sequence: Sequence, /) -> None:
        pass

    def ended(self, sequence: Sequence, /) -> None:
        pass
