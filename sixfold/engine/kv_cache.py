"""Which KV page belongs to whom: reference counts, the free list, and copy on write.

Owns: page numbers. Must not know: requests, tokens, or the memory behind a page (the executor has it).

    table of A   [ 4 | 9 | 1 ]          page 4 and 9 are shared after fork(A, 40): references 2
    table of B   [ 4 | 9 | 7 ]          page 7 is B's copy of the partly filled page 1
    free         [ 0 2 3 5 6 8 ]        taken from and given back to the end, so warm pages are used first
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass

from sixfold.runtime.batch import PAGE_SIZE

PageCopy = tuple[int, int]  # (source page, target page)


class PageTable:
    """The pages of one sequence, in order. Only :class:`KVCache` changes it."""

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: array[int] = array("i")  # int32, so that a batch joins tables without a Python loop


@dataclass(frozen=True)
class KVCounts:
    total: int
    used: int
    free: int
    shared: int  # pages that more than one sequence reads


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE_SIZE)


class KVCache:
    """Hands out ``num_pages`` pages of 16 tokens."""

    page_size = PAGE_SIZE

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._tables: set[PageTable] = set()
        self.held = 0  # pages summed over tables; a shared page counts once for each

    @property
    def num_free(self) -> int:
        return len(self._free)

    def append(self, table: PageTable, start: int, end: int, copies: list[PageCopy]) -> bool:
        """Makes positions ``start`` to ``end`` of the table writable: False, and no change, if pages are short.

        New pages are added at the end; a shared page in the range is replaced by an own one. When such a page also
        holds positions before ``start``, (shared, own) is added to ``copies``, to be executed before the step.
        """
        pages = table.pages
        missing = pages_for(end) - len(pages)
        first = start // PAGE_SIZE
        if missing <= 0 and first == len(pages) - 1 and self._references[pages[-1]] == 1:
            return True  # decoding inside an own page: nearly every call
        shared = [at for at in range(first, min(len(pages), pages_for(end))) if self._references[pages[at]] > 1]
        if max(missing, 0) + len(shared) > len(self._free):
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

    def fork(self, source: PageTable, tokens: int, target: PageTable) -> None:
        """Gives the empty ``target`` the pages of the first ``tokens`` positions of ``source``, shared."""
        if target.pages:
            raise AssertionError("a fork needs an empty table")
        shared = source.pages[: pages_for(tokens)]
        for page in shared:
            self._references[page] += 1
        target.pages = shared
        self.held += len(shared)
        self._tables.add(target)

    def free(self, table: PageTable) -> None:
        """Gives all pages of the table back; a page is free when its last table has let go. Safe to repeat."""
        for page in reversed(table.pages):
            self._release(page)
        self.held -= len(table.pages)
        table.pages = array("i")
        self._tables.discard(table)

    def counts(self) -> KVCounts:
        free = len(self._free)
        shared = sum(1 for count in self._references if count > 1)
        return KVCounts(self.num_pages, self.num_pages - free, free, shared)

    def check_integrity(self) -> None:
        """Raises AssertionError unless every page is either free or referenced exactly as often as tables hold it."""
        held = Counter(page for table in self._tables for page in table.pages)
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a page is in the free list twice")
        for table in self._tables:
            if len(set(table.pages)) != len(table.pages):
                raise AssertionError("a table holds a page twice")
        for page, references in enumerate(self._references):
            if held[page] != references:
                raise AssertionError(f"page {page} is held by {held[page]} tables but has {references} references")
            if (references == 0) != (page in free):
                raise AssertionError(f"page {page} has {references} references and free is {page in free}")
        if self.held != held.total():
            raise AssertionError(f"held is {self.held}, tables hold {held.total()}")

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)
