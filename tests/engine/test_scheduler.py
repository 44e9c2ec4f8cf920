from __future__ import annotations

from itertools import count

from sixfold.engine.kv_cache import KVCache
from sixfold.engine.prefix_cache import PrefixCache
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.scheduler import Scheduler
from sixfold.engine.sequence import Request, choices
from sixfold.types import SamplingParams

SERIAL = count()


def request(name, length, *, priority=0, arrival=0.0, n=1, prompt_logprobs=None, salt=None):
    params = SamplingParams(n=n, max_tokens=1000, prompt_logprobs=prompt_logprobs)
    tokens = (1,) * length if isinstance(length, int) else tuple(length)
    made = Request(name, tokens, params, 1000, 0, frozenset(), priority, arrival, cache_salt=salt)
    return choices(made, next(SERIAL))


def make(num_pages=100, seats=16, budget=64):
    return Scheduler(KVCache(num_pages), max_num_seqs=seats, max_num_batched_tokens=budget)


def make_caching(num_pages=100, seats=16, budget=64):
    cache = KVCache(num_pages)
    prefixes = PrefixCache(cache, PrefixRoot("model"))
    return Scheduler(cache, prefixes, max_num_seqs=seats, max_num_batched_tokens=budget)


def run(scheduler):
    """One step: tokens by request name; each sequence that reached its end gets one more token."""
    schedule = scheduler.schedule()
    check_allocation(scheduler)
    scheduler.update(schedule)
    scheduler.cache.check_integrity()
    check_allocation(scheduler)
    for row in schedule.rows:
        if row.samples:
            row.sequence.token_ids.append(1)
    return {row.sequence.request.id: row.count for row in schedule.rows}


def check_allocation(scheduler):
    """The running sums are what counting page by page gives."""
    filled = {}
    for sequence in scheduler.running:
        for at, page in enumerate(sequence.table.pages):
            filled[page] = max(filled.get(page, 0), min(16, max(0, sequence.num_computed - 16 * at)))
    for page, entry in enumerate(getattr(scheduler.prefixes, "_by_page", ())):
        if entry is not None:
            filled[page] = len(entry.tokens) // 4
    allocation = scheduler.allocation
    assert (allocation.pages, allocation.empty_slots) == (len(filled), 16 * len(filled) - sum(filled.values()))


def test_a_step_is_tokens_per_sequence_within_the_budget():
    scheduler = make(budget=64)
    scheduler.add(request("a", 100))
    assert run(scheduler) == {"a": 64}
    scheduler.add(request("b", 50, arrival=1.0))
    assert run(scheduler) == {"a": 36, "b": 28}
    assert run(scheduler) == {"a": 1, "b": 22}
    assert run(scheduler) == {"a": 1, "b": 1}


def test_a_long_prefill_never_stalls_those_that_run():
    scheduler = make(budget=8, num_pages=1000)
    for i in range(3):
        scheduler.add(request(f"short{i}", 2, arrival=1.0 + i))
    run(scheduler)
    scheduler.add(request("long", 5000, arrival=5.0))
    steps = [run(scheduler) for _ in range(20)]
    assert all(step == {"short0": 1, "short1": 1, "short2": 1, "long": 5} for step in steps)


def test_no_more_seats_than_tokens_in_a_step():
    scheduler = make(budget=3, seats=10)
    for i in range(5):
        scheduler.add(request(str(i), 1, arrival=float(i)))
    for _ in range(10):
        assert run(scheduler) == {"0": 1, "1": 1, "2": 1}


def test_arrival_orders_within_a_priority_and_lower_numbers_go_first():
    scheduler = make(seats=1)
    for name, priority, arrival in (("late", 0, 5.0), ("early", 0, 1.0), ("urgent", -1, 9.0), ("patient", 3, 0.0)):
        scheduler.add(request(name, 4, priority=priority, arrival=arrival))
    order = []
    for _ in range(4):
        order += run(scheduler)
        scheduler.finish(scheduler.running[0])
    assert order == ["urgent", "early", "late", "patient"]


def test_nobody_overtakes_one_that_waits_for_pages():
    scheduler = make(num_pages=10)
    scheduler.add(request("first", 100))
    run(scheduler)
    scheduler.add(request("large", 80, arrival=1.0))
    scheduler.add(request("small", 1, arrival=2.0))
    for _ in range(5):
        assert "large" not in run(scheduler)
        assert len(scheduler.running) == 1
    scheduler.finish(scheduler.running[0])
    assert set(run(scheduler)) == {"large"}  # its 64 tokens of budget
    assert set(run(scheduler)) == {"large", "small"}


def test_a_page_is_kept_for_growth_when_one_more_is_admitted():
    scheduler = make(num_pages=3)
    scheduler.add(request("a", 16))
    run(scheduler)
    run(scheduler)  # two pages
    scheduler.add(request("b", 1, arrival=1.0))
    assert set(run(scheduler)) == {"a"}
    scheduler.finish(scheduler.running[0])
    assert set(run(scheduler)) == {"b"}  # running alone it needs no reserve


def test_admission_promises_the_whole_prompt():
    """Two prompts that only fit one after the other: the second is not let in on pages that the first will need."""
    scheduler = make(num_pages=10, budget=16)
    scheduler.add(request("a", 96))
    scheduler.add(request("b", 96, arrival=1.0))
    for _ in range(6):
        assert set(run(scheduler)) == {"a"}
    assert scheduler.preemptions == 0


def test_the_least_urgent_is_preempted_and_comes_back_first():
    scheduler = make(num_pages=4)
    (a,), (b,) = request("a", 15), request("b", 15, arrival=1.0)
    scheduler.add([a, b])
    while len(b.table.pages) < 2:
        run(scheduler)
    scheduler.add(request("c", 1, arrival=2.0))
    while scheduler.preemptions == 0:
        run(scheduler)
    assert scheduler.waiting[0] is b
    assert (b.num_computed, len(b.table.pages)) == (0, 0)
    assert b.num_generated > 0  # kept, to be run again
    scheduler.finish(a)
    assert run(scheduler)["b"] == len(b.token_ids) - 1


def test_the_most_urgent_is_never_preempted():
    scheduler = make(num_pages=6)
    for i in range(6):
        scheduler.add(request(str(i), 8, arrival=float(i)))
    for _ in range(80):
        assert "0" in run(scheduler)
    assert scheduler.preemptions > 0


def test_everybody_finishes_when_memory_is_short():
    scheduler = make(num_pages=8, budget=32)
    left = {str(i) for i in range(12)}
    for name in left:
        scheduler.add(request(name, 20, arrival=float(name)))
    for _ in range(3000):
        run(scheduler)
        for sequence in list(scheduler.running):
            if sequence.num_generated >= 60:
                scheduler.finish(sequence)
                left.discard(sequence.request.id)
        if not left:
            break
    assert not left
    assert scheduler.preemptions > 0
    assert scheduler.cache.num_free == 8


def test_prompts_to_be_scored_come_in_chunks_of_64():
    scheduler = make(budget=512)
    (sequence,) = request("a", 200, prompt_logprobs=0)
    scheduler.add([sequence])
    assert run(scheduler) == {"a": 64}
    sequence.prompt_logprobs += [None] * 199  # scored: the rest may go at once
    assert run(scheduler) == {"a": 136}


def test_choices_wait_for_the_prompt_then_take_one_token_each():
    scheduler = make(budget=64)
    made = request("a", 100, n=3)
    scheduler.add(made)
    run(scheduler)
    assert [s.num_computed for s in made] == [64, 0, 0]
    run(scheduler)
    assert [s.num_computed for s in made] == [100, 0, 0]
    schedule = scheduler.schedule()
    assert [(row.sequence.index, row.start, row.count) for row in schedule.rows] == [
        (0, 100, 1),
        (1, 99, 1),
        (2, 99, 1),
    ]
    assert len(schedule.copies) == 2
    assert {source for source, _ in schedule.copies} == {made[0].table.pages[6]}


def test_others_pass_a_choice_that_waits_for_its_prompt():
    scheduler = make(budget=64)
    scheduler.add(request("a", 100, n=3))
    scheduler.add(request("b", 10, arrival=1.0))
    run(scheduler)
    assert run(scheduler) == {"a": 36, "b": 10}


def test_a_prompt_takes_its_pages_chunk_by_chunk():
    scheduler = make(budget=32)
    (sequence,) = request("a", 100)
    scheduler.add([sequence])
    pages = []
    for _ in range(4):
        run(scheduler)
        pages.append(len(sequence.table.pages))
    assert pages == [2, 4, 6, 7]


def test_promised_pages_are_not_promised_twice():
    scheduler = make(num_pages=12, budget=48)
    scheduler.add(request("a", 96))
    scheduler.add(request("b", 64, arrival=1.0))
    scheduler.add(request("c", 64, arrival=2.0))
    steps = [run(scheduler) for _ in range(5)]
    assert steps[1] == {"a": 48} and "b" in steps[2] and not any("c" in step for step in steps)
    assert scheduler.preemptions == 0


def test_a_prompt_that_is_scored_in_pieces_is_promised_its_pages():
    scheduler = make(num_pages=16, budget=512)
    scheduler.add(request("a", 200, prompt_logprobs=0))
    scheduler.add(request("b", 64, arrival=1.0))
    assert run(scheduler) == {"a": 64}


# With a prefix cache


def finish(scheduler, name):
    for sequence in [*scheduler.running, *scheduler.waiting]:
        if sequence.request.id == name:
            scheduler.finish(sequence)


def test_a_conversation_is_never_run_again():
    """Each turn runs its new tokens and the last token of the answer before, which was sampled and never run."""
    scheduler = make_caching(budget=512)
    history = list(range(40))
    for turn in range(6):
        (sequence,) = request(str(turn), history, arrival=float(turn))
        scheduler.add([sequence])
        tokens = sum(run(scheduler)[str(turn)] for _ in range(21))
        assert tokens == (40 if turn == 0 else 30 + 1) + 20
        assert sequence.num_cached_tokens == (0 if turn == 0 else len(history) - 30 - 1)
        finish(scheduler, str(turn))
        history = [*sequence.token_ids, *range(100 * turn, 100 * turn + 30)]
    assert scheduler.prefixes.hits > scheduler.prefixes.queries / 2


def test_a_running_prompt_is_shared_as_far_as_it_has_run():
    scheduler = make_caching(budget=64)
    scheduler.add(request("a", range(100)))
    run(scheduler)
    scheduler.add(request("b", [*range(100), 7], arrival=1.0))
    assert run(scheduler) == {"a": 36, "b": 28}  # b begins with the 64 tokens that have run
    (a, b) = scheduler.running
    assert b.num_cached_tokens == 64 and a.table.pages[:5] == b.table.pages[:5]
    assert run(scheduler) == {"a": 1, "b": 9}
    assert a.table.pages[:6] == b.table.pages[:6], "what both computed is kept once"
    assert scheduler.cache.counts().used == 6 + 2


def test_salts_are_never_mixed():
    scheduler = make_caching(budget=512)
    for turn, salt in enumerate([None, "a", "b", "a", None]):
        (sequence,) = request("x", range(100), salt=salt)
        scheduler.add([sequence])
        assert run(scheduler)["x"] == (100 if turn < 3 else 1)
        assert sequence.num_cached_tokens == (0 if turn < 3 else 99)
        finish(scheduler, "x")


def test_cached_pages_give_way_before_anybody_is_preempted():
    scheduler = make_caching(num_pages=10, budget=512)
    scheduler.add(request("a", range(100)))
    run(scheduler)
    finish(scheduler, "a")
    assert scheduler.cache.counts().cached == 7
    scheduler.add(request("b", range(500, 640)))
    assert run(scheduler) == {"b": 140}
    assert (scheduler.preemptions, scheduler.prefixes.evictions) == (0, 6)


def test_admission_counts_cached_pages_that_it_takes():
    """9 of 10 pages are cached. Whoever takes 6 of them may not count them as room for the rest."""
    scheduler = make_caching(num_pages=10, budget=512)
    scheduler.add(request("a", range(144)))
    run(scheduler)
    finish(scheduler, "a")
    scheduler.add(request("b", [*range(96), *range(500, 516)]))  # 6 cached and 1 of its own
    assert run(scheduler) == {"b": 16}
    scheduler.add(request("c", [*range(144), *range(600, 700)], arrival=1.0))
    for _ in range(3):
        assert set(run(scheduler)) == {"b"}
    finish(scheduler, "b")
    assert scheduler.cache.num_free == 10


def test_a_preempted_sequence_goes_on_where_it_was_when_its_pages_are_still_there():
    scheduler = make_caching(num_pages=5)
    (a,), (b,) = request("a", range(15)), request("b", range(100, 130), arrival=1.0)
    scheduler.add([a, b])
    while scheduler.preemptions == 0:
        run(scheduler)
    computed = len(b.token_ids) - 1
    scheduler.finish(a)
    assert run(scheduler)["b"] <= computed - 16  # at most its last page was taken
    assert b.num_cached_tokens == 0  # of the prompt, when it first began


def test_memory_for_one_is_enough_for_one_whatever_is_cached():
    scheduler = make_caching(num_pages=4, budget=512)
    for turn in range(4):
        scheduler.add(request(str(turn), [*range(16 * turn), *range(1000, 1064 - 16 * turn)]))
        assert str(turn) in run(scheduler)
        finish(scheduler, str(turn))
    for wanted in (64, 16):  # the page in which it ends is not copied: there is no room for two
        scheduler.add(request("same", range(2000, 2064)))
        assert run(scheduler) == {"same": wanted}
        finish(scheduler, "same")


def test_one_that_waits_for_pages_is_looked_up_again_only_when_there_are_more():
    scheduler = make_caching(num_pages=10, budget=512)
    scheduler.add(request("a", range(100)))
    scheduler.add(request("small", [1], arrival=0.5))
    scheduler.add(request("b", range(500, 600), arrival=1.0))
    looked = []
    find = scheduler.prefixes.find
    scheduler.prefixes.find = lambda sequence, limit: looked.append(sequence.request.id) or find(sequence, limit)
    for _ in range(10):
        assert set(run(scheduler)) == {"a", "small"}
    assert looked == ["a", "small", "b"]
    finish(scheduler, "a")
    assert set(run(scheduler)) == {"b", "small"}


def test_choices_share_with_each_other_and_with_those_before():
    scheduler = make_caching(budget=512)
    for turn in range(2):
        made = request(str(turn), range(100), n=3, arrival=float(turn))
        scheduler.add(made)
        schedules = [scheduler.schedule()]
        scheduler.update(schedules[0])
        made[0].token_ids.append(1)  # it has run its prompt
        if turn == 0:
            schedules.append(scheduler.schedule())
            scheduler.update(schedules[1])
        ran = sum(row.count for schedule in schedules for row in schedule.rows if row.sequence.index or not turn)
        assert ran == (101 + 2 if turn == 0 else 2)
        scheduler.cache.check_integrity()
        assert [sequence.num_cached_tokens for sequence in made] == [99 * turn, 0, 0]
        for sequence in made:
            scheduler.finish(sequence)


def test_a_step_that_failed_leaves_nothing_behind():
    """The copy that a fork asked for was not made, so what the choice's last page holds is not its prompt."""
    scheduler = make_caching(budget=512)
    made = request("a", range(90), n=2)
    scheduler.add(made)
    run(scheduler)
    schedule = scheduler.schedule()
    assert schedule.copies
    scheduler.fail(schedule)
    for sequence in reversed(made):
        scheduler.finish(sequence)
    scheduler.cache.check_integrity()
    assert (scheduler.prefixes.num_entries, scheduler.prefixes.empty_slots) == (5, 0)  # of the step before


def test_prompts_to_be_scored_run_whole_and_are_kept():
    scheduler = make_caching(budget=512)
    scheduler.add(request("a", range(60)))
    run(scheduler)
    finish(scheduler, "a")
    scheduler.add(request("b", range(60), prompt_logprobs=0))
    assert run(scheduler) == {"b": 60}
    finish(scheduler, "b")
    scheduler.add(request("c", range(60)))
    assert run(scheduler) == {"c": 1}
