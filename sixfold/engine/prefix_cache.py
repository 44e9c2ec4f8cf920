"""Keeps the pages of sequences findable by their tokens, so that another sequence can begin with them.

Owns: what is kept, found and given up. Must not know: scheduling, the model, or the memory behind a page.

A full page is entered when it has filled, the partly filled last one when its sequence ends or is preempted. A new
sequence begins with the pages of its longest known prefix; the page in which it leaves that prefix is shared too, and
copied before it is written (``KVCache.append``): nobody writes into a page that the cache or a second table holds.

    A, running    [ page 4 | page 9 | page 1 . . ]     4 and 9 are entered
    B, begins     [ page 4 | page 9'. . ]              the same first page; 9' is a copy, since B leaves A within 9

KV is the same bit for bit however it was computed, so it does not matter whose page is kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Sequence as List
from typing import NamedTuple, Protocol

from sixfold.cache import CacheKey, TierCounts
from sixfold.engine.context_reuse import NO_REUSE, ContextReuse, Reuse
from sixfold.engine.eviction import EvictionOrder
from sixfold.engine.kv_cache import KVCache, PageTable, pages_for
from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.prefix_tree import NO_PAGE, PAGE_BYTES, Entry, PrefixTree
from sixfold.engine.sequence import Sequence
from sixfold.runtime.batch import ANYWHERE, PAGE_SIZE, Resumption


class Beginning(NamedTuple):
    """Pages that hold the first ``tokens`` positions of a sequence; the last one may hold others after them."""

    pages: array[int]
    tokens: int
    entry: Entry | None = None  # of the last full page: where the sequence goes on entering; None: it does not
    path: tuple[Entry, ...] = ()  # the entries that were found
    reuse: Reuse = NO_REUSE  # what is known of the tokens after them
    again: int = 0  # the first of the tokens, which the sequence runs all the same: the pages keep what they hold

    @property
    def ready(self) -> list[tuple[int, int]]:
        """The tokens [begin, end) that need not be run, in order, but for a prefix of them."""
        known = [(self.again, self.tokens)] if 0 < self.again < self.tokens else []
        return [*known, *self.reuse.intervals]

    def whole_pages(self) -> Beginning:
        """Without the page that would have to be copied."""
        full = self.tokens // PAGE_SIZE
        return Beginning(self.pages[:full], full * PAGE_SIZE, self.entry, self.path[:full], again=self.again)

    def without_reuse(self) -> Beginning:
        return self._replace(reuse=NO_REUSE)


NOTHING_FOUND = Beginning(array("i"), 0)


class Prefixes(Protocol):
    """What the scheduler asks of a prefix cache. Sequences come and go between its calls."""

    on: bool

    @property
    def queries(self) -> int:
        """Tokens looked up by sequences that began."""

    @property
    def hits(self) -> int:
        """Tokens of them that were found."""

    @property
    def evictions(self) -> int:
        """Pages."""

    @property
    def reused(self) -> int:
        """Tokens that were moved from elsewhere for sequences that began."""

    @property
    def recomputed(self) -> int:
        """Tokens found elsewhere for them that were computed all the same."""

    @property
    def tier(self) -> dict[str, TierCounts] | None:
        """What the places behind the cache have counted, by name."""

    @property
    def fetched_tokens(self) -> int:
        """That came from the tier."""

    @property
    def foreseen_tokens(self) -> int:
        """Of them, those that came before a request asked."""

    @property
    def num_entries(self) -> int: ...
    @property
    def empty_slots(self) -> int: ...
    def find(self, sequence: Sequence, limit: int, /) -> Beginning: ...
    def forked(self, source: Sequence, tokens: int, /) -> Beginning: ...
    def begun(self, sequence: Sequence, beginning: Beginning, /) -> None: ...
    def filled(self, sequence: Sequence, /) -> None: ...
    def ended(self, sequence: Sequence, /) -> None: ...
    def reset(self) -> None: ...

    # For what comes from elsewhere.
    def expect(self, sequence: Sequence, /) -> None: ...
    def arrive(self) -> None: ...
    def rest(self) -> float | None: ...
    def ready(self, sequence: Sequence, /) -> bool: ...
    def wait(self) -> None: ...
    def stepped(self, tokens: int, seconds: float, /) -> None: ...
    def close(self) -> None: ...


class NothingToCome:
    """All that can be found is here."""

    tier: dict[str, TierCounts] | None = None
    fetched_tokens = foreseen_tokens = 0

    def expect(self, sequence: Sequence, /) -> None:
        """The sequence waits for its turn."""

    def arrive(self) -> None:
        """A step is about to be scheduled: what has come is taken in."""

    def rest(self) -> float | None:
        """The engine has nothing to do: seconds after which it should ask again; None: not before something comes."""
        return None

    def ready(self, sequence: Sequence, /) -> bool:
        """Whether it should begin now if it can."""
        return True

    def wait(self) -> None:
        """No sequence can run: waits a moment for what is to come."""
        raise AssertionError("requests are unfinished but none can run")

    def stepped(self, tokens: int, seconds: float, /) -> None:
        """A step took so long."""

    def close(self) -> None:
        """The engine stops."""


class NoPrefixCache(NothingToCome):
    """Finds nothing and keeps nothing."""

    on = False
    queries = hits = evictions = reused = recomputed = 0
    num_entries = empty_slots = 0

    def __init__(self, resumption: Resumption = ANYWHERE) -> None:
        self._resumption = resumption

    def find(self, sequence: Sequence, limit: int, /) -> Beginning:
        return NOTHING_FOUND

    def forked(self, source: Sequence, tokens: int, /) -> Beginning:
        return _fork(source, tokens, None, self._resumption)

    def begun(self, sequence: Sequence, beginning: Beginning, /) -> None:
        pass

    def filled(self, sequence: Sequence, /) -> None:
        pass

    def ended(self, sequence: Sequence, /) -> None:
        pass

    def reset(self) -> None:
        pass


class PrefixCache(NothingToCome):
    on = True

    def __init__(self, cache: KVCache, root: PrefixRoot, resumption: Resumption = ANYWHERE) -> None:
        """``resumption``: where sequences may begin; pages are entered in blocks of that size."""
        self._cache = cache
        self._resumption = resumption
        self._pages_at_once = max(1, resumption.block // PAGE_SIZE)
        self._root = root
        self._tree = PrefixTree()
        self._context = ContextReuse(self._tree)
        self._order = EvictionOrder(cache.num_pages)
        self._by_page: list[Entry | None] = [None] * cache.num_pages
        self.queries = self.hits = self.evictions = self.reused = self.recomputed = 0
        self.on_evict: Callable[[Entry], None] = _ignore  # called while the page still holds the entry's content
        self.on_replace: Callable[[int, int], None] = _replaced  # (a running sequence's page, what it gets instead)
        cache.keeper = self

    @property
    def num_entries(self) -> int:
        return len(self._tree)

    @property
    def empty_slots(self) -> int:
        return self._tree.empty_slots

    # What the scheduler calls.

    def find(self, sequence: Sequence, limit: int, /) -> Beginning:
        """The longest known prefix of the sequence, at most ``limit`` tokens; takes nothing yet."""
        root = entry = self._tree.root(self.root_of(sequence))
        tokens = sequence.token_ids
        path: list[Entry] = []
        while (len(path) + 1) * PAGE_SIZE <= limit:
            at = len(path) * PAGE_SIZE
            found = self._tree.find(entry, pack(tokens[at : at + PAGE_SIZE]))
            if found is None:
                break
            entry = found
            path.append(entry)
        at = self._resumption.at_most(len(path) * PAGE_SIZE)
        if self._pages_at_once > 1:
            del path[at // PAGE_SIZE :]
            entry = path[-1] if path else root
            return Beginning(_pages_of(path), at, entry, tuple(path), again=min(at, self._resumption.again))
        last = self._tree.longest(entry, pack(tokens[at : min(at + PAGE_SIZE, limit)]))
        if last is not None:
            path.append(last[0])
            at += last[1]
        reuse = self._context.find(sequence.request.reuse, entry.root, tokens, at, limit)
        return Beginning(_pages_of(path), at, entry, tuple(path), reuse)

    def forked(self, source: Sequence, tokens: int, /) -> Beginning:
        """What a choice shares with another one of its request."""
        entry = self._live(source)
        while entry is not None and entry.depth > self._resumption.at_most(tokens) // PAGE_SIZE:
            entry = entry.parent
        return _fork(source, tokens, entry, self._resumption)

    def begun(self, sequence: Sequence, beginning: Beginning, /) -> None:
        """The sequence's table has the pages now."""
        reuse = beginning.reuse
        sequence.prefix = None if reuse.parts else beginning.entry  # what is not exact is never entered
        for entry in {*beginning.path, *reuse.entries}:
            self._order.used(entry)
        if sequence.num_cached_tokens is None:  # not when it comes back after a preemption
            known = beginning.tokens - beginning.again
            sequence.num_cached_tokens = known if sequence.index == 0 else 0
            sequence.num_reused_tokens, sequence.num_recomputed_tokens = reuse.tokens, reuse.again
            self.reused += reuse.tokens
            self.recomputed += reuse.again
            if sequence.index == 0 and sequence.skippable:  # its siblings share by forks
                self.queries += len(sequence.token_ids)
                self.hits += known

    def filled(self, sequence: Sequence, /) -> None:
        """Enters the pages that have filled up. A page that is known already is replaced by the one that is kept."""
        entry = self._live(sequence)
        full = sequence.num_computed // PAGE_SIZE // self._pages_at_once * self._pages_at_once
        while entry is not None and entry.depth < full:
            start = entry.depth * PAGE_SIZE
            entry = self._enter(entry, pack(sequence.token_ids[start : start + PAGE_SIZE]), sequence.table)
        sequence.prefix = entry

    def ended(self, sequence: Sequence, /) -> None:
        """Enters the partly filled last page; the sequence is about to let go of all."""
        entry = self._live(sequence)
        sequence.prefix = None
        if entry is None or self._pages_at_once > 1:  # nobody could begin within a block
            return
        tokens = pack(sequence.token_ids[entry.depth * PAGE_SIZE : sequence.num_computed])
        if tokens and not self._tree.extended(entry, tokens):
            self._enter(entry, tokens, sequence.table)

    def reset(self) -> None:
        """Forgets everything. Sequences that run keep their pages, and enter nothing more."""
        for entry in list(self._tree):
            self._by_page[entry.page] = None
            self._cache.forget(entry.page)
        self._tree.clear()
        self._order.clear()

    # For tiers.

    @property
    def num_pages(self) -> int:
        return self._cache.num_pages

    def usable(self, tokens: int) -> int:
        """Of so many tokens at a sequence's beginning, those that it can begin with if they are known."""
        return self._resumption.at_most(tokens)

    def root_of(self, sequence: Sequence) -> PrefixRoot:
        request = sequence.request
        return self._root.of(request.cache_salt, None if request.lora is None else request.lora.digest)

    def restore(self, root: PrefixRoot, parent_key: bytes, tokens: bytes) -> int | None:
        """A page for a full page of tokens whose content comes from elsewhere; the caller writes it at once.

        None if it is here already, what precedes it is not, or all pages are in use.
        """
        parent = self._tree.follows(root, parent_key)
        if parent is None or self._tree.find(parent, tokens) is not None:
            return None
        page = self._cache.take_kept()
        if page is None:
            return None
        if parent not in self._tree:  # it was what had to go
            self._cache.forget(page)
            return None
        entry, replaced = self._tree.enter(parent, tokens, page)
        if entry is None:
            self._cache.forget(page)
            return None
        self._by_page[page] = entry
        self._order.entered()
        if replaced is not None:
            self._by_page[replaced.page] = None
            self._cache.forget(replaced.page)
        self.idle(page)
        return page

    def absent(self, root: PrefixRoot, pages: List[CacheKey]) -> list[CacheKey]:
        """Of a chain of full pages from the beginning: those from the first on that is not here."""
        entry = self._tree.root(root)
        for index, key in enumerate(pages):
            found = self._tree.find(entry, key.content[-PAGE_BYTES:])
            if found is None:
                return list(pages[index:])
            entry = found
        return []

    def keeps(self, entry: Entry) -> bool:
        return entry in self._tree

    def full_entries(self) -> list[Entry]:
        """Of full pages, the most recently used first and none before its parent."""
        full = [entry for entry in self._tree if len(entry.tokens) == PAGE_BYTES]
        ordered: dict[Entry, None] = {}
        for entry in sorted(full, key=lambda entry: (-entry.used_at, entry.depth)):
            chain = [entry]
            while (parent := chain[-1].parent) is not None and parent.parent is not None and parent not in ordered:
                chain.append(parent)
            ordered.update(dict.fromkeys(reversed(chain)))
        return list(ordered)

    # What the KV cache calls.

    def idle(self, page: int, /) -> None:
        """No sequence reads the page any more."""
        entry = self._entry(page)
        self._order.let_go(entry)
        if not entry.children:
            self._order.push(entry)
            self._order.trim(self._cache.num_idle, self._evictable)

    def evict(self) -> None:
        """Gives up one page that no sequence reads."""
        entry = self._order.pop(self._evictable)
        self.on_evict(entry)
        parent = self._drop(entry)
        self.evictions += 1
        if parent.parent is not None and self._evictable(parent):
            self._order.push(parent)

    def check_integrity(self) -> None:
        self._tree.check_integrity()
        for page, entry in enumerate(self._by_page):
            if (entry is not None) != self._cache.keeps(page) or (entry is not None and entry.page != page):
                raise AssertionError(f"page {page} is kept without an entry, or has one and is not kept")
        known = [entry for entry in self._by_page if entry is not None]
        if set(map(id, known)) != set(map(id, self._tree)):
            raise AssertionError("the tree has other entries than the pages have")
        for entry in known:
            page, before = entry.page, NO_PAGE if entry.parent is None else entry.parent.page
            if before != NO_PAGE and self._cache.idles(before) and not self._cache.idles(page):
                raise AssertionError(f"a sequence reads page {page} and not page {before} before it")
        if self._order.missing(entry for entry in known if self._evictable(entry)):
            raise AssertionError("a page that may be evicted is not in the order")

    def _live(self, sequence: Sequence) -> Entry | None:
        """Where the sequence stands in the tree; None if the tree was cleared since it began."""
        entry = sequence.prefix
        return entry if entry is not None and entry.epoch == self._tree.epoch else None

    def _enter(self, parent: Entry, tokens: bytes, table: PageTable) -> Entry | None:
        """The entry of the table's next page, which is in the table then; None if other tokens have its key."""
        page = table.pages[parent.depth]
        entry, replaced = self._tree.enter(parent, tokens, page)
        if entry is None:
            return None
        if entry.page != page:
            self.on_replace(page, entry.page)
            self._cache.replace(table, parent.depth, entry.page)
        elif self._by_page[page] is None:
            self._by_page[page] = entry
            self._order.entered()
            self._cache.keep(page)
        if replaced is not None:
            self._by_page[replaced.page] = None
            self._cache.forget(replaced.page)
        return entry

    def _drop(self, entry: Entry) -> Entry:
        """Its parent."""
        self._by_page[entry.page] = None
        parent = self._tree.remove(entry)
        self._cache.forget(entry.page)
        return parent

    def _entry(self, page: int) -> Entry:
        entry = self._by_page[page]
        assert entry is not None
        return entry

    def _evictable(self, entry: Entry) -> bool:
        return self._by_page[entry.page] is entry and not entry.children and self._cache.idles(entry.page)


def _ignore(entry: Entry) -> None:
    pass


def _replaced(old: int, page: int) -> None:
    pass


def _pages_of(path: List[Entry]) -> array[int]:
    return array("i", [entry.page for entry in path])


def _fork(source: Sequence, tokens: int, entry: Entry | None, resumption: Resumption) -> Beginning:
    known = resumption.at_most(tokens)
    return Beginning(source.table.pages[: pages_for(known)], known, entry, again=min(known, resumption.again))
