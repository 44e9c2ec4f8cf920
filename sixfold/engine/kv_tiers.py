"""KV pages beyond memory: what the prefix cache gives up goes to a tier, and comes back ahead of need.

Owns: which pages go and come, and who waits for them. Must not know: scheduling, or what a tier is.

    evicted page, and, a little at a time, pages of ended sequences  --copy-->  writer thread  --put-->  tier
    new sequence  --keys-->  reader thread  --get-->  here  --write into an idle page-->  prefix cache

A sequence that arrives has the pages that memory lacks and the tier has fetched while it waits for its turn. At its
turn it waits on as long as fetching is expected to be quicker than computing; both speeds are measured. Whatever goes
wrong with a page (gone, damaged, no room, too late) costs its computation and nothing else.

Idle conversations are fetched ahead of their next likely turn (``turn_prediction.py``), also while nothing runs.

Full pages only: their keys can be asked for. The key of a page is that of the prefix cache (``prefix_key.py``), so it
covers all that the page's bits depend on, this build's arithmetic included.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from sixfold.cache import CacheKey, Tier, TierCounts
from sixfold.engine.page_mover import PageMover
from sixfold.engine.prefix_cache import Beginning, PrefixCache
from sixfold.engine.prefix_key import PrefixRoot, chain, pack
from sixfold.engine.prefix_tree import PAGE_BYTES, Entry
from sixfold.engine.sequence import Sequence, Status
from sixfold.engine.transfer_speed import Speeds
from sixfold.engine.turn_prediction import TurnPrediction
from sixfold.engine.write_behind import WriteBehind
from sixfold.runtime.batch import PAGE_SIZE

MOST_AHEAD = 0.25  # of all pages, for conversations that have not asked yet, within a usual pause
CHECK = 0.25  # seconds between two looks at who may go on
WAIT = 0.002  # seconds that a step without rows waits for a page
SOON = 0.02  # seconds to the next look while pages are still to be stored
UNKNOWN = 0.05  # seconds that a page is waited for while nothing is known of computing


class PageMemory(Protocol):
    """The bytes behind page numbers."""

    page_bytes: int

    def read_page(self, page: int) -> bytes: ...
    def write_page(self, page: int, content: bytes) -> None: ...


@dataclass(frozen=True, eq=False)
class Turn:
    """A conversation's root and the tokens of its full pages: enough to bring it back."""

    root: PrefixRoot
    tokens: bytes

    def pages(self) -> list[CacheKey]:
        key, pages = self.root.key(), []
        for at in range(0, len(self.tokens), PAGE_BYTES):
            pages.append(key_of(key, self.tokens[at : at + PAGE_BYTES]))
            key = pages[-1].digest
        return pages


@dataclass
class Wait:
    """A sequence's pages on their way."""

    left: int  # pages
    until: float | None = None  # from then on they are computed; None: its turn has not come


class TieredPrefixes:
    """A prefix cache with a tier behind it; ``now`` is for tests."""

    on = True

    def __init__(
        self, prefixes: PrefixCache, memory: PageMemory, tier: Tier, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._prefixes = prefixes
        self._memory = memory
        self._tier = tier
        self._mover = PageMover(tier)
        self._behind = WriteBehind(prefixes.num_pages)
        self._asked: set[Sequence] = set()  # waiting sequences whose missing pages were looked for
        self._waits: dict[Sequence, Wait] = {}
        self._turns: TurnPrediction[Turn] = TurnPrediction()
        self._pauses: dict[Sequence, deque[float]] = {}  # before the turn that a sequence answers
        self._now = now
        self._checked = now()
        self._ahead = 0.0  # pages that came ahead within the last usual pause
        self.speeds = Speeds()
        self.fetched_tokens = self.foreseen_tokens = 0
        prefixes.on_evict = self._swap_out

    # Counters of the cache in memory.

    @property
    def queries(self) -> int:
        return self._prefixes.queries

    @property
    def hits(self) -> int:
        return self._prefixes.hits

    @property
    def evictions(self) -> int:
        return self._prefixes.evictions

    @property
    def reused(self) -> int:
        return self._prefixes.reused

    @property
    def recomputed(self) -> int:
        return self._prefixes.recomputed

    @property
    def tier(self) -> dict[str, TierCounts] | None:
        return self._tier.levels()

    @property
    def num_entries(self) -> int:
        return self._prefixes.num_entries

    @property
    def empty_slots(self) -> int:
        return self._prefixes.empty_slots

    # What the scheduler calls.

    def expect(self, sequence: Sequence, /) -> None:
        """Begins to fetch what memory lacks."""
        self._asked.add(sequence)
        if sequence.index > 0:  # a choice shares the first one's pages
            return
        here, wanted = self._known(sequence)
        if sequence.num_cached_tokens is None:  # not when it comes back after a preemption
            pages = [*here, *(key.digest for key in wanted)]
            self._pauses[sequence] = self._turns.goes_on(reversed(pages), self._now())
        if wanted and self.speeds.decide_to_fetch():
            self._waits[sequence] = Wait(len(wanted))
            self._mover.fetch(sequence, wanted, urgent=True)

    def arrive(self) -> None:
        """Before a step is scheduled: pages that have come are written now, when no page waits to be copied."""
        self._arrive(resting=False)

    def rest(self) -> float | None:
        """Nothing runs: seconds after which to ask again."""
        self._arrive(resting=True)
        return SOON if len(self._behind) else CHECK if len(self._turns) else None

    def ready(self, sequence: Sequence, /) -> bool:
        """False while pages are on their way that should be there sooner than computed."""
        if sequence not in self._asked:  # it comes back after a preemption
            self.expect(sequence)
        wait = self._waits.get(sequence)
        if wait is not None and wait.left > 0 and self._now() < self._patience(wait):
            return False
        self._stop_waiting(sequence)
        return True

    def _patience(self, wait: Wait) -> float:
        """When a sequence stops waiting: its time begins when it could run, whatever it has waited for before."""
        if wait.until is None:
            wait.until = self._now() + wait.left * (self.speeds.computing or UNKNOWN)
        return wait.until

    def wait(self) -> None:
        """Nothing can run before a page comes: a moment for it."""
        if not self._waits:
            raise AssertionError("requests are unfinished but none can run")
        self._take_in(WAIT)

    def stepped(self, tokens: int, seconds: float) -> None:
        self.speeds.computed(tokens, seconds)

    def find(self, sequence: Sequence, limit: int, /) -> Beginning:
        return self._prefixes.find(sequence, limit)

    def forked(self, source: Sequence, tokens: int, /) -> Beginning:
        return self._prefixes.forked(source, tokens)

    def begun(self, sequence: Sequence, beginning: Beginning, /) -> None:
        self._prefixes.begun(sequence, beginning)

    def filled(self, sequence: Sequence, /) -> None:
        self._prefixes.filled(sequence)

    def ended(self, sequence: Sequence, /) -> None:
        self._stop_waiting(sequence)
        self._asked.discard(sequence)
        self._behind.ended(sequence.prefix, self._is_stored)
        if sequence.status is Status.FINISHED and sequence in self._pauses:
            self._remember(sequence, self._pauses.pop(sequence))
        self._prefixes.ended(sequence)

    def reset(self) -> None:
        """Forgets what is in memory, on its way, and in the tier."""
        self._mover.drop_all()
        self._waits.clear()
        self._turns.clear()
        self._behind.clear()
        self._prefixes.reset()
        self._tier.clear()

    def close(self, seconds: float = 30.0) -> None:
        """Stores what memory keeps, most recently used first, within ``seconds``; then the threads end."""
        deadline = self._now() + seconds
        for entry in self._prefixes.full_entries():
            if self._now() >= deadline:
                break
            self._swap_out(entry, patient=True)
        self._mover.close(max(0.0, deadline - self._now()))
        self._tier.close()

    # Inside.

    def _known(self, sequence: Sequence) -> tuple[list[bytes], list[CacheKey]]:
        """Keys of the full pages in memory, and of those after them that the tier says it has, in order."""
        found = self._prefixes.find(sequence, sequence.skippable)
        assert found.entry is not None
        here = [entry.key for entry in found.path[: found.entry.depth]]
        return here, self._in_tier(sequence, found.entry)

    def _in_tier(self, sequence: Sequence, last: Entry) -> list[CacheKey]:
        """Keys of the full pages after ``last``; asked for in growing bundles, for the first may already be absent."""
        there: list[CacheKey] = []
        at, key, bundle = last.depth * PAGE_SIZE, last.key, 1
        end = self._prefixes.usable(sequence.skippable)
        while True:
            keys: list[CacheKey] = []
            for start in range(at, min(at + bundle * PAGE_SIZE, end - PAGE_SIZE + 1), PAGE_SIZE):
                keys.append(key_of(key, pack(sequence.token_ids[start : start + PAGE_SIZE])))
                key = keys[-1].digest
            known = self._tier.known(keys)
            there += keys[:known]
            if known < bundle:
                return there
            at += bundle * PAGE_SIZE
            bundle *= 2

    def _arrive(self, *, resting: bool) -> None:
        if self._mover.expects_something:
            self._take_in()
        self._look_ahead()
        if len(self._behind) and self._mover.rests:
            seconds = self._mover.storing_seconds
            for entry in self._behind.due(self._now(), seconds, resting=resting, fit=self._prefixes.keeps):
                self._swap_out(entry)

    def _remember(self, sequence: Sequence, pauses: deque[float]) -> None:
        """A turn is over: how its conversation can be brought back."""
        tokens = pack(sequence.token_ids[: sequence.num_computed // PAGE_SIZE * PAGE_SIZE])
        if tokens:
            turn = Turn(self._prefixes.root_of(sequence), tokens)
            self._turns.ended(turn.pages()[-1].digest, turn, pauses, self._now())

    def _look_ahead(self) -> None:
        """Fetches the conversations that are likely to go on soon."""
        if self._now() - self._checked < CHECK:
            return
        most, pause = self._prefixes.num_pages * MOST_AHEAD, self._turns.usual_pause
        if pause is not None:
            passed = self._now() - self._checked
            self._ahead = max(0.0, self._ahead - most * passed / max(pause, CHECK))
        self._checked = self._now()
        if not self.speeds.decide_to_fetch():
            return
        for conversation in self._turns.due(self._checked):
            turn = conversation.content
            wanted = self._prefixes.absent(turn.root, turn.pages())
            if len(wanted) <= most < self._ahead + len(wanted):
                break  # later
            conversation.foreseen = True
            if len(wanted) <= most and wanted and self._tier.known(wanted[:1]):
                self._ahead += len(wanted)
                self._mover.fetch(turn, wanted, urgent=False)

    def _take_in(self, timeout: float = 0.0) -> None:
        """Puts the pages that have come into memory."""
        for fetched in self._mover.fetched(timeout):
            if fetched.payload is None:  # so those after it are of no use
                self._drop(fetched.whom)
                continue
            self.speeds.fetched(fetched.seconds)
            if isinstance(fetched.whom, Turn):
                self.foreseen_tokens += self._swap_in(fetched.whom.root, fetched.key, fetched.payload)
                if fetched.last:
                    self._drop(fetched.whom)
                continue
            assert isinstance(fetched.whom, Sequence)
            self._swap_in(self._prefixes.root_of(fetched.whom), fetched.key, fetched.payload)
            self._waits[fetched.whom].left -= 1

    def _swap_in(self, root: PrefixRoot, key: CacheKey, payload: bytes) -> int:
        """Tokens that are in memory by it."""
        if len(payload) != self._memory.page_bytes:  # before anybody can find the page
            return 0
        page = self._prefixes.restore(root, *parts_of(key))
        if page is None:
            return 0
        self._memory.write_page(page, payload)
        self.fetched_tokens += PAGE_SIZE
        return PAGE_SIZE

    def _swap_out(self, entry: Entry, patient: bool = False) -> None:
        """Copies a page that is about to be given up, unless the tier has it or too much is on its way there."""
        assert entry.parent is not None
        if len(entry.tokens) < PAGE_BYTES:
            return
        key = key_of(entry.parent.key, entry.tokens)
        if key not in self._tier and self._mover.has_room(patient):
            self._mover.store(key, self._memory.read_page(entry.page))

    def _is_stored(self, entry: Entry) -> bool:
        assert entry.parent is not None
        return key_of(entry.parent.key, entry.tokens) in self._tier

    def _stop_waiting(self, sequence: Sequence) -> None:
        if sequence in self._waits:
            self._drop(sequence)

    def _drop(self, whom: Hashable) -> None:
        if isinstance(whom, Sequence):
            self._waits.pop(whom, None)
        self._mover.drop(whom)


def key_of(parent_key: bytes, tokens: bytes) -> CacheKey:
    return CacheKey(chain(parent_key, tokens), parent_key + tokens)


def parts_of(key: CacheKey) -> tuple[bytes, bytes]:
    """(key of the page before, tokens)."""
    return key.content[:-PAGE_BYTES], key.content[-PAGE_BYTES:]
