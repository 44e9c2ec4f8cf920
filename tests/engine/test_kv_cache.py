from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.engine.kv_cache import KVCache, PageTable, pages_for
from sixfold.runtime.batch import PAGE_SIZE


class Mirror:
    """Random operations on a cache, beside a memory that shows whether anybody's tokens are lost or overwritten."""

    def __init__(self, num_pages: int, seed: int) -> None:
        self.cache = KVCache(num_pages)
        self.random = random.Random(seed)
        self.memory = [[None] * PAGE_SIZE for _ in range(num_pages)]
        self.content: dict[PageTable, list[int]] = {}
        self.written = 0
        self.refused = 0

    def allocate(self) -> None:
        self._write(PageTable(), 0)

    def append(self) -> None:
        if self.content:
            table = self.random.choice(list(self.content))
            self._write(table, len(self.content[table]))

    def rewrite(self) -> None:
        """What recomputing the last prompt token does: writing again where the page may be shared."""
        if self.content:
            table = self.random.choice(list(self.content))
            self._write(table, self.random.randrange(len(self.content[table])))

    def fork(self) -> None:
        if self.content:
            source = self.random.choice(list(self.content))
            tokens = self.random.randint(1, len(self.content[source]))
            target = PageTable()
            self.cache.fork(source, tokens, target)
            self.content[target] = self.content[source][:tokens]

    def free(self) -> None:
        if self.content:
            table = self.random.choice(list(self.content))
            del self.content[table]
            self.cache.free(table)

    def _write(self, table: PageTable, start: int) -> None:
        end = start + self.random.choice((1, 1, 1, 5, 16, 40))
        copies: list[tuple[int, int]] = []
        before = (table.pages.tolist(), self.cache.num_free)
        if not self.cache.append(table, start, end, copies):
            self.refused += 1
            assert (table.pages.tolist(), self.cache.num_free, copies) == (*before, [])
            return
        for source, target in copies:
            self.memory[target] = list(self.memory[source])
        content = self.content.get(table, [])[:start]
        for position in range(start, end):
            self.written += 1
            content.append(self.written)
            self.memory[table.pages[position // PAGE_SIZE]][position % PAGE_SIZE] = self.written
        self.content[table] = content

    def check(self) -> None:
        self.cache.check_integrity()
        for table, content in self.content.items():
            assert len(table.pages) >= pages_for(len(content))
            for position, token in enumerate(content):
                assert self.memory[table.pages[position // PAGE_SIZE]][position % PAGE_SIZE] == token


OPERATIONS = ("allocate", "append", "append", "append", "rewrite", "fork", "free")


def test_ten_thousand_random_operations_lose_no_page():
    mirror = Mirror(num_pages=48, seed=1)
    for step in range(10_000):
        getattr(mirror, mirror.random.choice(OPERATIONS))()
        mirror.cache.check_integrity()
        if step % 50 == 0:
            mirror.check()
    assert mirror.refused > 100  # the pool was full now and then
    for table in list(mirror.content):
        mirror.cache.free(table)
    mirror.cache.check_integrity()
    assert mirror.cache.num_free == 48
    assert mirror.cache.held == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    num_pages=st.integers(1, 12),
    operations=st.lists(st.sampled_from(OPERATIONS), max_size=60),
)
def test_random_operations_never_damage_tokens(seed, num_pages, operations):
    mirror = Mirror(num_pages, seed)
    for operation in operations:
        getattr(mirror, operation)()
        mirror.check()


def test_fork_shares_full_pages_and_copies_the_partial_one():
    cache = KVCache(8)
    parent, child, copies = PageTable(), PageTable(), []
    assert cache.append(parent, 0, 40, copies)
    cache.fork(parent, 40, child)
    assert cache.counts().shared == 3
    assert cache.append(child, 40, 41, copies)
    assert copies == [(parent.pages[2], child.pages[2])]
    assert list(parent.pages[:2]) == list(child.pages[:2])
    assert parent.pages[2] != child.pages[2]
    assert cache.counts().shared == 2
    cache.free(parent)
    cache.check_integrity()
    assert cache.counts().used == 3


def test_fork_at_a_page_boundary_copies_nothing():
    cache = KVCache(8)
    parent, child, copies = PageTable(), PageTable(), []
    assert cache.append(parent, 0, 40, copies)
    cache.fork(parent, 32, child)
    assert cache.append(child, 32, 33, copies)
    assert copies == []
    assert len(child.pages) == 3


def test_free_may_be_repeated():
    cache = KVCache(2)
    table = PageTable()
    assert cache.append(table, 0, 20, [])
    cache.free(table)
    cache.free(table)
    cache.check_integrity()
    assert cache.num_free == 2


@pytest.mark.parametrize("damage", ["leak", "double free", "lost reference", "held"])
def test_integrity_check_notices(damage):
    cache = KVCache(4)
    table = PageTable()
    assert cache.append(table, 0, 20, [])
    if damage == "leak":
        table.pages.pop()
    elif damage == "double free":
        cache._free.append(table.pages[0])
    elif damage == "lost reference":
        cache._references[table.pages[0]] += 1
    else:
        cache.held += 1
    with pytest.raises(AssertionError):
        cache.check_integrity()
