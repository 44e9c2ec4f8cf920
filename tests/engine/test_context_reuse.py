"""Reused context in the engine, on a fake model to which moved KV is as good as computed: so no token may change.

The fake knows at which position each slot's token stands, so a wrong shift, page or slot is seen at once.
"""

from __future__ import annotations

import random
from array import array
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.engine.context_index import Run
from sixfold.engine.context_reuse import LEAST_AGAIN, NO_REUSE, Reuse
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.prefix_tree import Entry
from sixfold.errors import InvalidRequestError
from sixfold.runtime.batch import PAGE_SIZE
from sixfold.types import ReuseContext, SamplingParams
from tests.engine.test_core import alone, drain, same, step
from tests.fakes import FakeExecutor, make_core

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def submit(core, name, prompt, params=GREEDY, *, reuse: object = True, salt=None, arrival=0.0, priority=0):
    core.add(
        core.limits.accept(
            name, list(prompt), params, cache_salt=salt, reuse_context=reuse, arrival=arrival, priority=priority
        )
    )  # fmt: skip


def ask(core, name, prompt, params=GREEDY, **options):
    submit(core, name, prompt, params, **options)
    return drain(core)[name]


def documents(count: int, length: int = 100, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(256) for _ in range(length)] for _ in range(count)]


def entry(page: int) -> Entry:
    return Entry(b"", None, b"", page, PrefixRoot(), 0)


def test_moves_go_from_page_to_page() -> None:
    donors = tuple(map(entry, (50, 51, 52)))
    reuse = Reuse((Run(20, 60, 5, donors),), 3)
    assert (reuse.tokens, reuse.end, reuse.intervals) == (40, 60, [(20, 60)])
    moved = {}
    for source, slot, target, target_slot, count, shift in reuse.moves(array("i", [7, 8, 9, 10])):
        assert count >= 1 and max(slot, target_slot) + count <= PAGE_SIZE and shift == 15
        for i in range(count):
            moved[(target - 7) * PAGE_SIZE + target_slot + i] = (source - 50) * PAGE_SIZE + slot + i
    assert moved == {20 + i: 5 + i for i in range(40)}


def test_nothing_reused_moves_nothing() -> None:
    assert (NO_REUSE.tokens, NO_REUSE.end, NO_REUSE.moves(array("i")), len(NO_REUSE.pages)) == (0, 0, [], 0)


def test_documents_in_another_order_are_moved_and_their_beginnings_computed() -> None:
    core = make_core()
    one, two, three = documents(3)
    ask(core, "a", one + two + three, reuse=False)
    output = ask(core, "b", three + two + one + [5] * 10)
    assert same(output, alone(three + two + one + [5] * 10, GREEDY))
    assert (output.num_cached_tokens, output.num_reused_tokens, output.num_recomputed_tokens) == (0, 3 * 84, 3 * 16)
    assert core.runner.executor.moved == 3 * 84
    stats = core.stats()
    assert (stats.reused_tokens, stats.recomputed_tokens) == (3 * 84, 3 * 16)
    rows = [sum(batch.counts) for batch in core.runner.executor.batches if len(batch.counts) > 1]
    assert rows == [3 * LEAST_AGAIN + 10], "all gaps run in one step"


def test_what_is_asked_for_decides() -> None:
    one, two = documents(2)
    for reuse, reused in ((None, None), (False, None), (True, 168), ({"recompute": 0.5}, 100), ({"recompute": 1}, 0)):
        core = make_core()
        ask(core, "a", one + two)
        output = ask(core, "b", two + one + [1], reuse=reuse)
        assert output.num_reused_tokens == reused
        assert core.runner.executor.moved == (reused or 0)


def test_the_engine_may_do_so_by_default_and_a_request_refuse() -> None:
    one, two = documents(2)
    core = make_core(reuse=ReuseContext(0.5))
    ask(core, "a", one + two, reuse=None)
    assert ask(core, "b", two + one + [1], reuse=False).num_reused_tokens is None
    core = make_core(reuse=ReuseContext(0.5))
    ask(core, "a", one + two, reuse=None)
    for name, asked in (("b", None), ("c", True)):
        assert ask(core, name, two + one + [1], reuse=asked).num_reused_tokens == 100


@pytest.mark.parametrize("value", ["yes", 1, {"recompute": -0.1}, {"recompute": 1.5}, {"recompute": True}, {}, {"x": 1},
                                   {"recompute": float("nan")}, {"recompute": 10**400}])  # fmt: skip
def test_what_can_not_be_understood_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="reuse_context"):
        submit(make_core(), "a", [1], reuse=value)


def test_tenants_share_nothing() -> None:
    one, two = documents(2)
    core = make_core()
    ask(core, "a", one + two, salt="a")
    for salt in ("b", None):
        assert ask(core, f"{salt}", two + one + [1], salt=salt).num_reused_tokens == 0
    assert core.runner.executor.moved == 0
    assert ask(core, "again", two + one + [1], salt="a").num_reused_tokens == 168


def test_what_is_not_exact_is_nobodys_prefix_and_nobodys_donor() -> None:
    core = make_core(num_pages=128)
    one, two, three = documents(3)
    ask(core, "a", one + two, reuse=False)
    entries = core.prefixes.num_entries
    ask(core, "b", two + one + three)
    assert core.prefixes.num_entries == entries
    assert ask(core, "c", two + one + three, reuse=False).num_cached_tokens == 0
    moved = core.runner.executor.moved
    output = ask(core, "d", three + two + [1])
    assert output.num_reused_tokens == 168, "c has been computed, so three is known by now"
    assert core.runner.executor.moved - moved == 168


def test_a_known_prefix_comes_first() -> None:
    core = make_core()
    system, one, two = documents(3)
    ask(core, "a", system + one + two, reuse=False)
    output = ask(core, "b", system + two + one + [1])
    assert output.num_cached_tokens == 100
    assert (output.num_reused_tokens, output.num_recomputed_tokens) == (168, 32)


def test_texts_that_differ_in_a_token_share_what_is_equal() -> None:
    core = make_core()
    (text,) = documents(1, 300)
    other = [*text[:120], text[120] ^ 1, *text[121:]]
    ask(core, "a", text, reuse=False)
    output = ask(core, "b", other)
    assert same(output, alone(other, GREEDY))
    again = int(0.15 * 178)
    assert (output.num_cached_tokens, output.num_recomputed_tokens) == (120, again)
    assert output.num_reused_tokens == 300 - 121 - again - 1, "the last token is computed"


def test_short_equal_runs_between_differences_are_computed() -> None:
    core = make_core()
    (text,) = documents(1, 320)
    other = [token ^ (at % 40 == 20) for at, token in enumerate(text)]
    ask(core, "a", text, reuse=False)
    assert ask(core, "b", other).num_reused_tokens == 0


def test_prompt_logprobs_need_every_row() -> None:
    core = make_core()
    one, two = documents(2)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, prompt_logprobs=1)
    ask(core, "a", one + two, reuse=False)
    output = ask(core, "b", two + one, params)
    assert output.num_reused_tokens == 0
    assert same(output, alone(two + one, params))


def test_choices_share_what_the_first_reuses() -> None:
    core = make_core()
    one, two = documents(2)
    params = SamplingParams(max_tokens=20, seed=4, n=3, ignore_eos=True)
    ask(core, "a", one + two, reuse=False)
    output = ask(core, "b", two + one + [3] * 5, params)
    assert same(output, alone(two + one + [3] * 5, params))
    assert output.num_reused_tokens == 168
    assert core.runner.executor.moved == 168


def test_donors_that_must_go_for_the_pages_of_their_user_are_read_before() -> None:
    """As many pages as one prompt needs: the new one can not have its donors kept, so it computes all."""
    one, two = documents(2, 96)
    for num_pages, reused in ((13, 0), (26, 160)):
        core = make_core(num_pages=num_pages)
        ask(core, "a", one + two, reuse=False)
        output = ask(core, "b", two + one + [1])
        assert same(output, alone(two + one + [1], GREEDY))
        assert output.num_reused_tokens == reused


def test_what_stands_before_a_donor_stays_with_it() -> None:
    """Pages before a donor can not be had while it is kept: they are counted, or the pages would be short."""
    before, one = documents(2, 160)
    for num_pages in range(21, 40):  # 17 for the prompt, 20 for the donor and what stands before it
        core = make_core(num_pages=num_pages, max_num_batched_tokens=1000)
        ask(core, "a", before + one, reuse=False)
        output = ask(core, "b", one + [1] * 100)
        assert same(output, alone(one + [1] * 100, GREEDY))
        assert output.num_reused_tokens == (136 if num_pages >= 37 else 0)


def test_a_donor_may_go_in_the_same_schedule_after_it_was_read() -> None:
    """The second newcomer takes the first one's donors; moves and copies are made in their order."""
    one, two, other = documents(3, 96)
    core = make_core(num_pages=34, max_num_batched_tokens=600)
    ask(core, "a", one + two, reuse=False)
    submit(core, "b", two + one + [1])
    submit(core, "c", other * 2 + other[:30], arrival=1.0, reuse=False)
    collectors: dict = {}
    step(core, collectors)
    assert len(core.scheduler.running) == 2 and core.prefixes.evictions > 0
    results = drain(core, collectors)
    assert results["b"].num_reused_tokens == 160
    assert same(results["b"], alone(two + one + [1], GREEDY))
    assert same(results["c"], alone(other * 2 + other[:30], GREEDY))


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    one, two = documents(2)
    fail = [False]
    executor = FakeExecutor(64, fail_when=lambda batch: fail[0])
    core = make_core(executor=executor)
    ask(core, "a", one + two, reuse=False)
    fail[0] = True
    assert ask(core, "b", two + one).outputs[0].finish_reason == "error"
    fail[0] = False
    assert same(ask(core, "c", two + one), alone(two + one, GREEDY))


def test_an_abort_in_the_middle_gives_all_back() -> None:
    core = make_core(max_num_batched_tokens=10)
    one, two = documents(2)
    ask(core, "a", one + two, reuse=False)
    submit(core, "b", two + one + [1])
    step(core, {})
    assert core.scheduler.allocation.empty_slots >= 0
    core.abort("b")
    core.cache.check_integrity()
    assert core.cache.num_free == core.cache.num_pages
    assert core.scheduler.computed == 0


def test_without_the_copies_and_moves_tokens_would_change() -> None:
    """The fake is worth something."""
    executor = FakeExecutor(64)
    executor.move_tokens = lambda moves: None
    core = make_core(executor=executor)
    one, two = documents(2)
    ask(core, "a", one + two, reuse=False)
    with pytest.raises(AssertionError, match="another position"):
        executor.logits, wanted = lambda rows: wanted(rows), executor.logits
        submit(core, "b", two + one + [1])
        schedule = core.scheduler.schedule()
        core.runner.forward(schedule)
        core.runner.sampling_logits(schedule)


def test_gaps_are_run_in_order_and_jumped_over() -> None:
    core = make_core(max_num_batched_tokens=7)
    one, two = documents(2)
    ask(core, "a", one + two, reuse=False)
    submit(core, "b", two + one + [1])
    collectors: dict = {}
    computed = []
    while core.has_work:
        step(core, collectors)
        computed += [row.num_computed for row in core.scheduler.running]
    assert all(before < after for before, after in pairwise(computed))
    assert not any(16 <= at < 100 or 116 <= at < 200 for at in computed)


@st.composite
def prompts(draw):
    """Of few documents, in any order, with changes and insertions."""
    library = documents(4, 80, draw(st.integers(0, 1)))
    tokens = [token for which in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)) for token in library[which]]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(tokens)))
        tokens[at : at + draw(st.integers(0, 2))] = [draw(st.integers(0, 255))] * draw(st.integers(0, 2))
    params = SamplingParams(
        n=draw(st.sampled_from([1, 1, 2])), temperature=draw(st.sampled_from([0.0, 1.0])), seed=1, ignore_eos=True,
        max_tokens=draw(st.integers(1, 30)), prompt_logprobs=draw(st.sampled_from([None, None, None, 1])),
    )  # fmt: skip
    reuse = draw(st.sampled_from([True, True, {"recompute": 0.5}, False]))
    return draw(st.integers(0, 20)), tokens or [1], params, reuse, draw(st.sampled_from([None, None, "salt"]))


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(prompts(), min_size=1, max_size=7), num_pages=st.integers(18, 60),
    budget=st.integers(1, 300), seats=st.integers(1, 6),
)  # fmt: skip
def test_same_tokens_in_any_company(requests, num_pages, budget, seats):
    """Any batch, chunks, memory (small: preemptions and evictions) and changes: on the fake reuse changes nothing."""
    core = make_core(num_pages=num_pages, max_num_batched_tokens=budget, max_num_seqs=seats)
    collectors: dict = {}
    for at in range(21):
        for number, (arrival, tokens, params, reuse, salt) in enumerate(requests):
            if arrival == at:
                submit(core, str(number), tokens, params, reuse=reuse, salt=salt, arrival=float(at))
        step(core, collectors)
        assert core.scheduler.allocation.empty_slots >= 0
        assert core.scheduler.computed == sum(sequence.num_held for sequence in core.scheduler.running)
    results = drain(core, collectors)
    for number, (_, tokens, params, _, _) in enumerate(requests):
        assert same(results[str(number)], alone(tokens, params))
    assert core.scheduler.computed == 0
    assert np.all(core.runner.executor.moved >= core.stats().reused_tokens)
