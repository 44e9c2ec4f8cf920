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
            self.cache.adopt(target, source.pages[: pages_for(tokens)])
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


def test_adoption_shares_full_pages_and_copies_the_partial_one():
    cache = KVCache(8)
    parent, child, copies = PageTable(), PageTable(), []
    assert cache.append(parent, 0, 40, copies)
    cache.adopt(child, parent.pages)
    assert cache.counts().shared == 3
    assert cache.append(child, 40, 41, copies)
    assert copies == [(parent.pages[2], child.pages[2])]
    assert list(parent.pages[:2]) == list(child.pages[:2])
    assert parent.pages[2] != child.pages[2]
    assert cache.counts().shared == 2
    cache.free(parent)
    cache.check_integrity()
    assert cache.counts().used == 3


def test_adoption_at_a_page_boundary_copies_nothing():
    cache = KVCache(8)
    parent, child, copies = PageTable(), PageTable(), []
    assert cache.append(parent, 0, 40, copies)
    cache.adopt(child, parent.pages[:2])
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


class Oldest:
    """A keeper that gives up pages in the order in which they became idle."""

    def __init__(self, cache: KVCache) -> None:
        self.cache, self.pages = cache, []
        cache.keeper = self

    def idle(self, page: int) -> None:
        self.pages.append(page)

    def evict(self) -> None:
        self.cache.forget(self.pages.pop(0))

    def check_integrity(self) -> None:
        assert len(self.pages) == self.cache.num_idle


def test_kept_pages_can_be_had_but_free_ones_go_first():
    cache = KVCache(4)
    keeper, table, copies = Oldest(cache), PageTable(), []
    assert cache.append(table, 0, 32, copies)
    kept = table.pages.tolist()
    for page in kept:
        cache.keep(page)
    assert (cache.num_free, cache.counts().used, cache.counts().shared) == (2, 2, 0)
    cache.free(table)
    counts = cache.counts()
    assert (counts.used, counts.cached, counts.free, cache.num_free) == (0, 2, 2, 4)
    cache.check_integrity()
    other = PageTable()
    assert cache.append(other, 0, 32, copies)
    assert not set(kept) & set(other.pages)
    assert not cache.append(PageTable(), 0, 48, copies)
    assert cache.append(other, 32, 33, copies)
    assert other.pages[-1] in kept and cache.num_idle == 1 and len(keeper.pages) == 1
    cache.check_integrity()


def test_nobody_writes_into_a_kept_page():
    cache = KVCache(4)
    Oldest(cache)
    table, copies = PageTable(), []
    assert cache.append(table, 0, 20, copies)
    kept = table.pages[1]
    cache.keep(kept)
    assert cache.append(table, 20, 21, copies)
    assert copies == [(kept, table.pages[1])] and table.pages[1] != kept
    assert cache.idles(kept)
    cache.check_integrity()


def test_a_page_is_replaced_by_the_kept_one():
    cache = KVCache(4)
    Oldest(cache)
    one, two = PageTable(), PageTable()
    assert cache.append(one, 0, 16, []) and cache.append(two, 0, 17, [])
    cache.keep(one.pages[0])
    cache.replace(two, 0, one.pages[0])
    cache.replace(one, 0, one.pages[0])
    assert one.pages[0] == two.pages[0] and cache.counts().shared == 1 and cache.num_free == 2
    cache.check_integrity()


@pytest.mark.parametrize("damage", ["leak", "double free", "lost reference", "held", "kept", "idle"])
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
    elif damage == "held":
        cache.held += 1
    elif damage == "kept":
        cache._kept[table.pages[0]] = True
    else:
        cache.num_idle += 1
    with pytest.raises(AssertionError):
        cache.check_integrity()
