from __future__ import annotations

from itertools import count

from sixfold.engine.kv_cache import KVCache
from sixfold.engine.scheduler import Scheduler
from sixfold.engine.sequence import Request, choices
from sixfold.types import SamplingParams

SERIAL = count()


def request(name, length, *, priority=0, arrival=0.0, n=1, prompt_logprobs=None):
    params = SamplingParams(n=n, max_tokens=1000, prompt_logprobs=prompt_logprobs)
    made = Request(name, (1,) * length, params, 1000, 0, frozenset(), priority, arrival)
    return choices(made, next(SERIAL))


def make(num_pages=100, seats=16, budget=64):
    return Scheduler(KVCache(num_pages), max_num_seqs=seats, max_num_batched_tokens=budget)


def run(scheduler):
    """One step: tokens by request name; each sequence that reached its end gets one more token."""
    schedule = scheduler.schedule()
    scheduler.update(schedule)
    scheduler.cache.check_integrity()
    for row in schedule.rows:
        if row.samples:
            row.sequence.token_ids.append(1)
    return {row.sequence.request.id: row.count for row in schedule.rows}


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


def test_admission_reserves_the_whole_prompt():
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
