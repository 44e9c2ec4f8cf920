"""The prefix cache on a KV cache, beside a memory that knows what every slot holds."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sixfold.engine import prefix_tree
from sixfold.engine.kv_cache import KVCache, pages_for
from sixfold.engine.prefix_cache import PrefixCache
from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.sequence import Request, choices
from sixfold.runtime.batch import PAGE_SIZE
from sixfold.types import SamplingParams

SERIAL = count()


def make_sequence(tokens, salt=None, **params):
    made = SamplingParams(max_tokens=1000, **params)
    request = Request("r", tuple(tokens), made, 1000, 0, frozenset(), cache_salt=salt)
    return choices(request, next(SERIAL))[0]


class Pages:
    """Does with a cache what the scheduler and the executor do, for one sequence at a time.

    A slot remembers the salt and all tokens up to its own: the KV of a token depends on all of them.
    """

    def __init__(self, num_pages):
        self.cache = KVCache(num_pages)
        self.prefixes = PrefixCache(self.cache, PrefixRoot("model"))
        self.memory = [[None] * PAGE_SIZE for _ in range(num_pages)]

    def begin(self, sequence):
        """False if pages are short."""
        found = self.prefixes.find(sequence, sequence.skippable)
        if self.cost(sequence, found) > self.cache.num_free:
            found = found.whole_pages()
            if self.cost(sequence, found) > self.cache.num_free:
                return False
        self.start(sequence, found)
        return True

    def start(self, sequence, found):
        self.cache.adopt(sequence.table, found.pages)
        self.prefixes.begun(sequence, found)
        sequence.num_computed = found.tokens
        self.run(sequence, 1)

    def cost(self, sequence, found):
        missing = pages_for(len(sequence.token_ids)) - found.tokens // PAGE_SIZE
        return missing + self.cache.idle_among(found.pages)

    def run(self, sequence, tokens):
        """False if pages are short."""
        start = sequence.num_computed
        end = min(start + tokens, len(sequence.token_ids))
        copies = []
        before = sequence.table.pages.tolist(), self.cache.num_free
        if not self.cache.append(sequence.table, start, end, copies):
            assert (sequence.table.pages.tolist(), self.cache.num_free, copies) == (*before, [])
            return False
        for source, target in copies:
            self.memory[target] = list(self.memory[source])
        for position in range(start, end):
            page = sequence.table.pages[position // PAGE_SIZE]
            assert not self.cache.keeps(page), "a kept page is written"
            self.memory[page][position % PAGE_SIZE] = self.truth(sequence, position)
        sequence.num_computed = end
        self.prefixes.filled(sequence)
        return True

    def end(self, sequence):
        self.prefixes.ended(sequence)
        self.cache.free(sequence.table)

    def whole(self, tokens, salt=None):
        """A sequence that begins, runs to its end and lets go: the tokens it did not have to run."""
        sequence = make_sequence(tokens, salt)
        assert self.begin(sequence)
        while sequence.num_computed < len(sequence.token_ids):
            assert self.run(sequence, 7)
        self.check(sequence)
        self.end(sequence)
        self.cache.check_integrity()
        return sequence.num_cached_tokens

    @staticmethod
    def truth(sequence, position):
        return sequence.request.cache_salt, tuple(sequence.token_ids[: position + 1])

    def check(self, sequence):
        for position in range(sequence.num_computed):
            page = sequence.table.pages[position // PAGE_SIZE]
            assert self.memory[page][position % PAGE_SIZE] == self.truth(sequence, position)

    def known(self):
        """(salt, tokens from the beginning, page) of every entry, which must be what the page holds."""
        for entry in self.prefixes._tree:
            parts, at = [], entry
            while at.parent is not None:
                parts.insert(0, at.tokens)
                at = at.parent
            tokens = tuple(memoryview(b"".join(parts)).cast("i"))
            yield entry.root.salt, tokens, entry.page


class Machine(RuleBasedStateMachine):
    """Few tokens and few pages, so that sequences share, leave each other within pages, and push each other out."""

    @initialize(num_pages=st.integers(3, 14))
    def make(self, num_pages):
        self.pages = Pages(num_pages)
        self.running = []

    @rule(tokens=st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=70), salt=st.sampled_from([None, "a"]))
    def begin(self, tokens, salt):
        sequence = make_sequence(tokens, salt)
        found = self.pages.prefixes.find(sequence, sequence.skippable)
        best = 0
        for of, known, _ in self.pages.known():
            if of == salt:
                pairs = zip(known, tokens[:-1], strict=False)
                best = max(
                    best, next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(known), len(tokens) - 1))
                )
        assert found.tokens == best, "the longest known prefix"
        if self.pages.begin(sequence):
            self.running.append(sequence)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, 40), more=st.lists(st.sampled_from([1, 2]), max_size=3))
    def run(self, data, tokens, more):
        sequence = data.draw(st.sampled_from(self.running))
        if sequence.num_computed == len(sequence.token_ids):
            sequence.token_ids += more
        if sequence.num_computed < len(sequence.token_ids):
            self.pages.run(sequence, tokens)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), salt=st.sampled_from([None, "a"]))
    def fork(self, data, salt):
        source = data.draw(st.sampled_from(self.running))
        if source.num_computed < 2:
            return
        target = make_sequence(source.token_ids, source.request.cache_salt)
        found = self.pages.prefixes.forked(source, data.draw(st.integers(1, source.num_computed - 1)))
        if self.pages.cost(target, found) <= self.pages.cache.num_free:
            self.pages.start(target, found)
            self.running.append(target)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data):
        sequence = data.draw(st.sampled_from(self.running))
        self.running.remove(sequence)
        self.pages.end(sequence)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data):
        sequence = data.draw(st.sampled_from(self.running))
        self.running.remove(sequence)
        sequence.prefix = None
        for page in sequence.table.pages[sequence.num_computed // PAGE_SIZE :]:
            self.pages.memory[page] = [None] * PAGE_SIZE  # half written
        self.pages.end(sequence)

    @rule()
    def reset(self):
        self.pages.prefixes.reset()
        assert self.pages.prefixes.num_entries == 0 and self.pages.cache.num_idle == 0

    @invariant()
    def holds(self):
        self.pages.cache.check_integrity()
        for sequence in self.running:
            self.pages.check(sequence)
        for salt, tokens, page in self.pages.known():
            first = (len(tokens) - 1) // PAGE_SIZE * PAGE_SIZE
            for position in range(first, len(tokens)):
                assert self.pages.memory[page][position - first] == (salt, tokens[: position + 1])

    def teardown(self):
        for sequence in getattr(self, "running", ()):
            self.pages.end(sequence)
        if hasattr(self, "pages"):
            self.pages.cache.check_integrity()
            assert self.pages.cache.num_free == self.pages.cache.num_pages


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_prefix_is_found_token_by_token():
    pages = Pages(64)
    first = list(range(100))
    assert pages.whole(first) == 0
    assert pages.whole(first) == 99  # the last token is run for its logits
    assert pages.whole([*first, 7, 8, 9]) == 100
    assert pages.whole([*first[:90], -1, -2]) == 90  # leaves within a page that is partly filled
    assert pages.whole([*first[:40], -1, -2]) == 40  # leaves within a full page
    assert pages.whole([-1, *first]) == 0
    assert pages.whole(first[:40]) == 39
    assert (pages.prefixes.queries, pages.prefixes.hits) == (100 + 100 + 103 + 92 + 42 + 101 + 40, 368)


def test_running_sequences_are_found_and_equal_pages_become_one():
    pages = Pages(64)
    one, two = make_sequence(range(50)), make_sequence(range(50))
    assert pages.begin(one) and pages.begin(two)  # neither has run far enough for the other
    assert pages.run(one, 49) and pages.run(two, 49)
    assert one.table.pages[:3] == two.table.pages[:3] and one.table.pages[3] != two.table.pages[3]
    assert pages.cache.counts().shared == 3 and pages.cache.counts().used == 5
    third = make_sequence(range(48))
    assert pages.begin(third) and third.num_cached_tokens == 47
    for sequence in (one, two, third):
        pages.check(sequence)
        pages.end(sequence)
    pages.cache.check_integrity()


def test_a_partly_filled_page_is_replaced_when_a_longer_one_is_known():
    pages = Pages(8)
    for length in (3, 9, 5, 16, 20):
        pages.whole(range(length))
    assert pages.prefixes.num_entries == 2 and pages.prefixes.empty_slots == 12


@pytest.mark.parametrize("salts", [("a", "b"), (None, "a"), ("a", None), ("", None)])
def test_other_salts_share_nothing(salts):
    pages = Pages(64)
    first, second = salts
    assert pages.whole(range(50), first) == 0
    assert pages.whole(range(50), second) == 0
    assert pages.whole(range(50), first) == 49
    assert pages.whole(range(50), second) == 49
    kept = {salt: set() for salt in salts}
    for salt, _, page in pages.known():
        kept[salt].add(page)
    assert not kept[first] & kept[second] and len(kept[first]) == len(kept[second]) == 4


def test_roots_are_forgotten_with_their_last_page():
    pages = Pages(4)
    for salt in range(50):
        pages.whole(range(20), str(salt))
    assert len(pages.prefixes._tree._roots) <= 2


@pytest.mark.parametrize("colliding", [lambda parent, tokens: b"same", lambda parent, tokens: tokens[:4]])
def test_a_collision_serves_no_wrong_page(monkeypatch, colliding):
    monkeypatch.setattr(prefix_tree, "chain", colliding)
    pages = Pages(64)
    assert pages.whole(range(100)) == 0
    assert pages.whole(range(100, 200)) == 0
    assert pages.whole([*range(16), *range(50, 90)]) >= 16  # what is found is right: whole() checks it
    assert pages.whole(range(100, 200), "salt") == 0


def test_the_end_of_what_is_used_least_goes_first():
    pages = Pages(12)
    popular, once = [1] * 40, [2] * 40
    for _ in range(4):
        pages.whole(popular)
    pages.whole(once)
    for flood in range(3, 6):
        pages.whole([flood] * 40)
        assert pages.prefixes.find(make_sequence(popular), 39).tokens == 39
    assert pages.prefixes.find(make_sequence(once), 39).tokens == 0
    assert pages.prefixes.evictions > 0
    for flood in range(100, 200):  # but nothing stays for ever
        pages.whole([flood] * 40)
    assert pages.prefixes.find(make_sequence(popular), 39).tokens == 0


def test_a_sequence_is_forgotten_from_its_end():
    pages = Pages(8)
    pages.whole(range(100))  # 7 pages
    left = []
    for flood in range(3):
        pages.whole([1000 + flood] * 20)
        left.append(pages.prefixes.find(make_sequence(range(100)), 99).tokens)
    assert left == [96, 64, 32]


def test_pages_in_use_are_never_evicted():
    pages = Pages(6)
    running = make_sequence(range(48))
    assert pages.begin(running) and pages.run(running, 48)
    for flood in range(5):
        pages.whole([100 + flood] * 40)
    pages.check(running)
    assert not pages.begin(make_sequence([9] * 64))


def test_memory_for_one_is_enough_for_one_whatever_is_cached():
    pages = Pages(4)
    assert pages.whole(range(64)) == 0
    assert pages.whole(range(64)) == 48  # no room for a copy of the page in which it ends
    assert pages.whole([*range(20), *range(50, 94)]) == 16


def test_after_a_reset_running_sequences_keep_nothing_of_before():
    pages = Pages(16)
    running = make_sequence(range(60))
    assert pages.begin(running) and pages.run(running, 40)
    pages.prefixes.reset()
    assert pages.run(running, 20)
    pages.check(running)
    fork = make_sequence(range(60))
    pages.start(fork, pages.prefixes.forked(running, 59))
    for sequence in (running, fork):
        pages.end(sequence)
    assert pages.prefixes.num_entries == 0 and pages.cache.counts().free == 16
    assert pages.whole(range(60)) == 0
    assert pages.whole(range(60)) == 59


def test_prompts_to_be_scored_skip_no_row():
    pages = Pages(16)
    pages.whole(range(60))
    scored = make_sequence(range(60), prompt_logprobs=0)
    assert scored.skippable == 0 and pages.begin(scored) and scored.num_cached_tokens == 0
    assert pages.prefixes.queries == 60  # of the one before
    scored.prompt_logprobs += [None] * 39
    assert scored.skippable == 39  # row 39 says the probability of token 40
    scored.prompt_logprobs += [None] * 20
    assert scored.skippable == 59
    pages.end(scored)


@pytest.mark.parametrize("damage", ["page", "parent", "tokens", "slots", "order", "lost"])
def test_integrity_check_notices(damage):
    pages = Pages(16)
    pages.whole(range(40))
    prefixes, tree = pages.prefixes, pages.prefixes._tree
    entry = next(entry for entry in tree if entry.depth == 3)
    if damage == "page":
        entry.page = 15
    elif damage == "parent":
        entry.parent.children.clear()
    elif damage == "tokens":
        entry.tokens = pack([5])
    elif damage == "slots":
        tree.empty_slots += 1
    elif damage == "order":
        prefixes._order.clear()
    else:
        prefixes._by_page[entry.page] = None
    with pytest.raises(AssertionError):
        pages.cache.check_integrity()
