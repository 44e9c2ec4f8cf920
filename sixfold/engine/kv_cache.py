"""Which KV page belongs to whom: reference counts, the free list, and copy on write.

Owns: page numbers. Must not know: requests, tokens, or the memory behind a page (the executor has it).

    table of A   [ 4 | 9 | 1 ]          page 4 and 9 are shared: references 2
    table of B   [ 4 | 9 | 7 ]          page 7 is B's copy of the partly filled page 1
    kept         4 8 9                  a reference each; page 8 is idle: no table has it, it may be evicted
    free         [ 0 2 3 5 6 ]          taken from and given back to the end, so warm pages are used first

A page may be kept by one keeper (the prefix cache), as if by one more table. It is then never written into, and when
nothing is free the keeper says which idle page goes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from sixfold.runtime.batch import PAGE_SIZE

PageCopy = tuple[int, int]  # (source page, target page)
TokenMove = tuple[int, int, int, int, int, int]  # (source page, slot, target page, slot, tokens, shift of position)
Copy = PageCopy | TokenMove  # what is done before a step, each in its turn: a later one may reuse an earlier source


class PageTable:
    """The pages of one sequence, in order. Only :class:`KVCache` changes it."""

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: array[int] = array("i")  # int32, so that a batch joins tables without a Python loop


@dataclass(frozen=True)
class KVCounts:
    """Pages; used, cached and free ones are all there are."""

    total: int
    used: int  # by sequences
    cached: int  # kept, and idle
    free: int
    shared: int  # those that more than one sequence reads


class Keeper(Protocol):
    """Who keeps pages beyond their tables."""

    def idle(self, page: int, /) -> None:
        """The last table has let go of a page that is kept."""

    def evict(self) -> None:
        """Forgets an idle page, so that it is free. There is one."""

    def check_integrity(self) -> None: ...


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE_SIZE)


class KVCache:
    """Hands out ``num_pages`` pages of 16 tokens."""

    page_size = PAGE_SIZE

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.keeper: Keeper | None = None  # sets itself
        self._references = [0] * num_pages
        self._kept = bytearray(num_pages)
        self._free = list(range(num_pages - 1, -1, -1))
        self._tables: set[PageTable] = set()
        self.num_idle = 0
        self.held = 0  # pages summed over tables; a shared page counts once for each

    @property
    def num_free(self) -> int:
        """Pages that can be had: those that are free, and those that are only kept."""
        return len(self._free) + self.num_idle

    @property
    def num_allocated(self) -> int:
        """Pages that some table has or that are kept."""
        return self.num_pages - len(self._free)

    def append(self, table: PageTable, start: int, end: int, copies: list[Copy]) -> bool:
        """Makes positions ``start`` to ``end`` of the table writable: False, and no change, if pages are short.

        New pages are added at the end; a shared or kept page in the range is replaced by an own one. When such a page
        also holds positions before ``start``, (shared, own) is added to ``copies``, to be executed before the step.
        """
        pages = table.pages
        missing = pages_for(end) - len(pages)
        first = start // PAGE_SIZE
        if missing <= 0 and first == len(pages) - 1 and self._references[pages[-1]] == 1:
            return True  # decoding inside an own page: nearly every call
        shared = [at for at in range(first, min(len(pages), pages_for(end))) if self._references[pages[at]] > 1]
        if max(missing, 0) + len(shared) > self.num_free:
            return False
        self._tables.add(table)
        for at in shared:
            own = self._take()
            if at * PAGE_SIZE < start:
                copies.append((pages[at], own))
            self._release(pages[at])
            pages[at] = own
        for _ in range(missing):
            pages.append(self._take())
            self.held += 1
        return True

    def adopt(self, table: PageTable, pages: array[int]) -> None:
        """Gives the empty table pages that other tables have or that are kept: they are shared."""
        if table.pages:
            raise AssertionError("only an empty table adopts pages")
        for page in pages:
            self._share(page)
        table.pages = pages[:]
        self.held += len(pages)
        self._tables.add(table)

    def replace(self, table: PageTable, at: int, page: int) -> None:
        """Puts a kept page of the same content in the place of the one that the table has."""
        old = table.pages[at]
        if old != page:
            self._share(page)
            table.pages[at] = page
            self._release(old)

    def free(self, table: PageTable) -> None:
        """Gives all pages of the table back; one that nobody else has is free, or idle if kept. Safe to repeat."""
        for page in reversed(table.pages):
            self._release(page)
        self.held -= len(table.pages)
        table.pages = array("i")
        self._tables.discard(table)

    @contextmanager
    def pinned(self, pages: array[int]) -> Iterator[None]:
        """Nobody evicts these meanwhile."""
        pins = PageTable()
        self.adopt(pins, pages)
        try:
            yield
        finally:
            self.free(pins)

    def keep(self, page: int) -> None:
        """A page that a table has is kept from now on."""
        if self._kept[page] or not self._references[page]:
            raise AssertionError(f"page {page} can not be kept")
        self._kept[page] = True
        self._references[page] += 1

    def take_kept(self) -> int | None:
        """A page that is kept and idle from the beginning, for content from elsewhere; None if all are in use."""
        if not self.num_free:
            return None
        page = self._take()
        self._kept[page] = True
        self.num_idle += 1
        return page

    def forget(self, page: int) -> None:
        """A kept page is kept no longer: free if it was idle."""
        self.num_idle -= self.idles(page)
        self._kept[page] = False
        self._release(page)

    def keeps(self, page: int) -> bool:
        return bool(self._kept[page])

    def idles(self, page: int) -> bool:
        """Whether the page is kept and no table has it."""
        return self._references[page] == 1 and bool(self._kept[page])

    def idle_among(self, pages: Iterable[int]) -> int:
        """How many fewer pages can be had once a table has these."""
        return sum(map(self.idles, pages))

    def counts(self) -> KVCounts:
        free, idle = len(self._free), self.num_idle
        shared = sum(count - kept > 1 for count, kept in zip(self._references, self._kept, strict=True))
        return KVCounts(self.num_pages, self.num_pages - free - idle, idle, free, shared)

    def check_integrity(self) -> None:
        """Raises AssertionError unless every page is free, or referenced as often as it is held and kept."""
        held = Counter(page for table in self._tables for page in table.pages)
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a page is in the free list twice")
        for table in self._tables:
            if len(set(table.pages)) != len(table.pages):
                raise AssertionError("a table holds a page twice")
        for page, references in enumerate(self._references):
            if held[page] + self._kept[page] != references:
                raise AssertionError(
                    f"page {page} has {references} references; {held[page]} tables hold it and kept is "
                    f"{self.keeps(page)}"
                )
            if (references == 0) != (page in free):
                raise AssertionError(f"page {page} has {references} references and free is {page in free}")
        if self.held != held.total():
            raise AssertionError(f"held is {self.held}, tables hold {held.total()}")
        if self.num_idle != self.idle_among(range(self.num_pages)):
            raise AssertionError(f"num_idle is {self.num_idle}, not {self.idle_among(range(self.num_pages))}")
        if self.keeper is not None:
            self.keeper.check_integrity()

    def _take(self) -> int:
        if not self._free:
            assert self.keeper is not None
            self.keeper.evict()
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _share(self, page: int) -> None:
        self.num_idle -= self.idles(page)
        self._references[page] += 1

    def _release(self, page: int) -> None:
        references = self._references[page] = self._references[page] - 1
        if references == 0:
            self._free.append(page)
        elif references == 1 and self._kept[page]:
            self.num_idle += 1
            assert self.keeper is not None
            self.keeper.idle(page)
