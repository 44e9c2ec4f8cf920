"""A tier behind the prefix cache: pages go when memory is short, come back ahead of need, and are never wrong."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.cache import DiskCache, TierCounts, open_tier
from sixfold.cache.tier import read_each
from sixfold.engine.kv_tiers import SOON
from sixfold.engine.transfer_speed import Speeds
from sixfold.types import SamplingParams
from tests.cache.redis_server import needs_redis, redis_server
from tests.engine.test_core import alone, drain, same, step, submit
from tests.fakes import make_core

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)


class MemoryTier:
    """Keeps entries in a dictionary. ``gate``: reads wait until it is set."""

    def __init__(self, batch=1):
        self.batch = batch
        self.counts = TierCounts()
        self.entries = {}
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def __contains__(self, key):
        return key.digest in self.entries

    def get(self, key):
        self.gate.wait(10)
        if self.broken:
            raise OSError("the cable is out")
        content, payload = self.entries.get(key.digest, (None, None))
        return payload if content == key.content else None

    def known(self, keys):
        return next((index for index, key in enumerate(keys) if key not in self), len(keys))

    def read(self, keys):
        return read_each(self.get, keys)

    def levels(self):
        return {"memory": self.counts}

    def put(self, key, payload):
        if self.broken:
            raise OSError("the cable is out")
        self.entries[key.digest] = (key.content, payload)
        return True

    def delete(self, key):
        self.entries.pop(key.digest, None)

    def clear(self):
        self.entries.clear()

    def close(self):
        pass


class Patient(Speeds):
    """Waits for pages however long they take; steps of fakes take no time that means anything."""

    def computed(self, tokens, seconds):
        self.computing = 100.0


def tiered(tier, num_pages=24, **options):
    core = make_core(num_pages=num_pages, tier=tier, **options)
    core.prefixes.speeds = Patient(computing=100.0)
    return core


def prompt_of(seed, length=150):
    return np.random.default_rng(seed).integers(0, 255, length).tolist()


def ask(core, name, prompt, params=GREEDY, salt=None):
    submit(core, name, prompt, params, salt=salt)
    return drain(core)[name]


def stored(core):
    """Once the writer has nothing left to do."""
    deadline = time.monotonic() + 10
    while core.prefixes._mover._storing and time.monotonic() < deadline:
        time.sleep(0.001)


def flood(core, seed=1000):
    """Takes all of the memory for other prompts."""
    for other in range(4):
        ask(core, f"flood {seed + other}", prompt_of(seed + other))
    stored(core)


def test_a_conversation_comes_back_from_the_tier():
    core = tiered(MemoryTier())
    prompt = prompt_of(1)
    first = ask(core, "first", prompt)
    flood(core)
    history = prompt + list(first.outputs[0].token_ids) + prompt_of(2, 20)
    before = core.prefixes.fetched_tokens
    again = ask(core, "again", history)
    assert same(again, alone(history, GREEDY))
    assert again.num_cached_tokens >= 160 and core.prefixes.fetched_tokens - before >= 144


def test_pages_outlive_the_engine(tmp_path):
    prompt = prompt_of(1)
    core = tiered(DiskCache(tmp_path, 1 << 20))
    wanted = ask(core, "a", prompt)
    core.close()
    again = tiered(DiskCache(tmp_path, 1 << 20))
    found = ask(again, "a", prompt)
    assert same(found, wanted) and found.num_cached_tokens == 144
    again.close()


def test_tenants_do_not_meet_in_the_tier():
    tier = MemoryTier()
    core = tiered(tier)
    prompt = prompt_of(1)
    ask(core, "a", prompt, salt="a")
    core.close()
    other = tiered(tier)
    assert ask(other, "b", prompt, salt="b").num_cached_tokens == 0
    assert ask(other, "c", prompt, salt="a").num_cached_tokens == 144


def test_a_page_that_is_gone_or_wrong_is_computed():
    tier = MemoryTier()
    core = tiered(tier)
    prompt = prompt_of(1)
    wanted = ask(core, "a", prompt)
    core.close()
    for digest in list(tier.entries)[3:5]:
        tier.entries[digest] = (b"another key", tier.entries[digest][1])
    again = tiered(tier)
    found = ask(again, "a", prompt)
    assert same(found, wanted) and found.num_cached_tokens == 48


def test_a_page_of_another_length_is_computed_and_not_kept():
    tier = MemoryTier()
    core = tiered(tier)
    prompt = prompt_of(1)
    wanted = ask(core, "a", prompt)
    core.close()
    for digest, (content, payload) in list(tier.entries.items()):
        tier.entries[digest] = (content, payload[:-1])
    again = tiered(tier)
    found = ask(again, "a", prompt)
    assert same(found, wanted) and found.num_cached_tokens == 0
    again.cache.check_integrity()
    again.close()


def test_a_page_on_its_way_to_the_tier_does_not_survive_a_reset():
    tier = MemoryTier()
    core = tiered(tier)
    held = threading.Event()
    put = tier.put

    def slow_put(key, payload):
        held.wait(10)
        return put(key, payload)

    tier.put = slow_put
    for seed in range(4):
        ask(core, f"{seed}", prompt_of(seed))
    core.reset_prefix_cache()
    held.set()
    stored(core)
    assert not tier.entries
    core.close()


def test_a_broken_tier_costs_computation_only(caplog):
    tier = MemoryTier()
    core = tiered(tier)
    prompt = prompt_of(1)
    wanted = ask(core, "a", prompt)
    flood(core)
    tier.broken = True
    found = ask(core, "a", prompt)
    assert same(found, wanted) and found.num_cached_tokens < 144
    flood(core)
    assert "could not be stored" in caplog.text and "could not be fetched" in caplog.text
    core.close()


def test_nobody_waits_longer_than_computing_takes():
    tier = MemoryTier()
    core = tiered(tier)
    prompt = prompt_of(1)
    wanted = ask(core, "a", prompt)
    flood(core)
    tier.gate.clear()
    core.prefixes.speeds = Speeds(computing=0.001)
    assert same(ask(core, "b", prompt), wanted)
    tier.gate.set()
    core.close()


def test_others_run_while_pages_come():
    tier = MemoryTier()
    core = tiered(tier)
    ask(core, "a", prompt_of(1))
    flood(core)
    tier.gate.clear()
    submit(core, "waits", prompt_of(1), GREEDY)
    submit(core, "runs", prompt_of(7, 20), GREEDY)
    collectors = {}
    for _ in range(60):
        step(core, collectors)
    assert set(collectors) == {"runs"}
    tier.gate.set()
    outputs = drain(core, collectors)
    assert same(outputs["waits"], alone(prompt_of(1), GREEDY)) and outputs["waits"].num_cached_tokens == 144


def test_a_request_that_leaves_while_it_waits_for_pages():
    tier = MemoryTier()
    core = tiered(tier)
    ask(core, "a", prompt_of(1))
    flood(core)
    tier.gate.clear()
    submit(core, "leaves", prompt_of(1), GREEDY)
    core.step()
    core.abort("leaves")
    tier.gate.set()
    assert not core.has_work
    assert same(ask(core, "b", prompt_of(3)), alone(prompt_of(3), GREEDY))
    core.close()


def test_reset_forgets_the_tier_too():
    tier = MemoryTier()
    core = tiered(tier)
    ask(core, "a", prompt_of(1))
    flood(core)
    core.reset_prefix_cache()
    stored(core)
    assert not tier.entries
    assert ask(core, "a", prompt_of(1)).num_cached_tokens == 0


def test_an_idle_conversation_is_there_before_its_next_turn():
    tier = MemoryTier()
    core = tiered(tier, num_pages=48)
    now = [0.0]
    core.prefixes._now, core.prefixes._checked = lambda: now[0], 0.0
    history = prompt_of(1)
    for turn in range(4):  # a turn every 60 seconds
        answer = ask(core, f"turn {turn}", history, SamplingParams(temperature=0.0, max_tokens=4))
        history = history + list(answer.outputs[0].token_ids) + prompt_of(10 + turn, 3)
        now[0] += 60.0
    now[0] -= 55.0
    for other in range(8):
        flood(core, 1000 + 10 * other)
    assert core.rest() is not None and core.prefixes.foreseen_tokens == 0  # not so early
    now[0] += 55.0
    fetched_by_requests = core.prefixes.fetched_tokens
    deadline = time.monotonic() + 10
    while core.prefixes.foreseen_tokens < 144 and time.monotonic() < deadline:
        now[0] += 0.3
        core.rest()
        core.cache.check_integrity()
        time.sleep(0.002)
    assert core.prefixes.foreseen_tokens == core.prefixes.fetched_tokens - fetched_by_requests >= 144
    before = core.prefixes.fetched_tokens
    found = ask(core, "next", history)
    assert same(found, alone(history, GREEDY)) and found.num_cached_tokens >= 144
    assert core.prefixes.fetched_tokens - before <= 16
    assert not core.prefixes._mover.expects_something  # nothing is held on to
    core.close()


@settings(max_examples=40, deadline=None)
@given(
    turns=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60), st.booleans()), min_size=1, max_size=14),
    num_pages=st.integers(14, 30),
    restart=st.integers(0, 14),
    together=st.integers(1, 4),
)
def test_same_tokens_whatever_goes_and_comes(turns, num_pages, restart, together):
    """Conversations take turns over a memory that holds about one of them, with a restart in between."""
    tier = MemoryTier()
    core = tiered(tier, num_pages=num_pages, max_num_batched_tokens=64, max_num_seqs=together)
    histories = {who: prompt_of(who, 30) for who in range(5)}
    for number, (who, length, greedy) in enumerate(turns):
        if number == restart:
            core.close()
            core = tiered(tier, num_pages=num_pages, max_num_batched_tokens=64, max_num_seqs=together)
        params = SamplingParams(temperature=0.0 if greedy else 1.0, seed=number, max_tokens=9)
        histories[who] = (histories[who] + prompt_of(100 + number, length))[-150:]
        names = []
        for copy in range(together):
            asked = histories[(who + copy) % 5]
            submit(core, f"{number} {copy}", asked, params)
            names.append((f"{number} {copy}", asked))
        outputs = drain(core)
        for name, asked in names:
            assert same(outputs[name], alone(asked, params))
    core.close()


def test_patience_begins_when_a_request_could_run():
    """However long it has waited for its turn, and for others' pages before its own."""
    tier = MemoryTier()
    core = tiered(tier, max_num_seqs=1)
    now = [0.0]
    core.prefixes._now = lambda: now[0]
    ask(core, "a", prompt_of(1))
    flood(core)
    tier.gate.clear()
    submit(core, "runs", prompt_of(7, 20), GREEDY)
    collectors = {}
    step(core, collectors)
    core.prefixes.speeds = Speeds(computing=1.0)
    submit(core, "waits", prompt_of(1), GREEDY)
    now[0] += 1000.0
    for _ in range(60):
        step(core, collectors)
    assert set(collectors) == {"runs"}
    tier.gate.set()
    outputs = drain(core, collectors)
    assert outputs["waits"].num_cached_tokens == 144
    core.close()


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_pages_are_read_in_bundles(batch):
    tier = MemoryTier(batch)
    core = tiered(tier)
    wanted = ask(core, "a", prompt_of(1))
    flood(core)
    read, bundles = tier.read, []
    tier.read = lambda keys: bundles.append(len(keys)) or read(keys)
    found = ask(core, "b", prompt_of(1))
    assert same(found, wanted) and found.num_cached_tokens == 144
    assert bundles == {1: [1] * 9, 4: [4, 4, 1], 100: [9]}[batch]
    core.close()


def test_a_request_of_which_nothing_is_there_does_not_wait_for_the_rest_of_anothers():
    tier = MemoryTier()
    tier.known = len  # like a place that others fill: only a read tells
    core = tiered(tier)
    ask(core, "a", prompt_of(1))
    flood(core)
    order, get = [], tier.get
    tier.get = lambda key: order.append(key in tier) or get(key)
    tier.gate.clear()
    submit(core, "known", prompt_of(1), GREEDY)
    deadline = time.monotonic() + 10
    while not order and time.monotonic() < deadline:
        time.sleep(0.001)
    submit(core, "new", prompt_of(5), GREEDY)
    tier.gate.set()
    outputs = drain(core)
    assert order[:2] == [True, False] and outputs["known"].num_cached_tokens == 144
    assert same(outputs["new"], alone(prompt_of(5), GREEDY))
    core.close()


def test_what_has_ended_is_stored_while_the_engine_rests():
    tier = MemoryTier()
    core = tiered(tier, num_pages=48)
    for seed in (1, 2):
        ask(core, f"{seed}", prompt_of(seed))
    assert core.prefixes.evictions == 0
    rested(core)
    assert len(tier.entries) == 20  # 150 + 20 tokens each
    assert len(core.prefixes._behind) == 0
    again = tiered(tier, num_pages=48)  # nothing was closed: as after a crash
    found = ask(again, "1", prompt_of(1))
    assert same(found, alone(prompt_of(1), GREEDY)) and found.num_cached_tokens == 144
    puts = len(tier.entries)
    rested(again)
    assert len(tier.entries) == puts
    for one in (core, again):
        one.close()


def rested(core):
    deadline = time.monotonic() + 10
    while (core.rest() == SOON or not core.prefixes._mover.rests) and time.monotonic() < deadline:
        time.sleep(0.001)


def test_what_has_ended_is_stored_slowly_while_others_run():
    tier = MemoryTier()
    core = tiered(tier, num_pages=48)
    now = [0.0]
    core.prefixes._now = lambda: now[0]
    ask(core, "a", prompt_of(1))
    stored(core)
    core.prefixes._mover.storing_seconds = 0.005  # a page in 0.5 seconds
    core.prefixes._behind._next = 0.0
    before = len(tier.entries)
    submit(core, "b", prompt_of(2, 30), SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))
    collectors = {}
    for _ in range(80):
        step(core, collectors)
        stored(core)
        core.prefixes._mover.storing_seconds = 0.005
        now[0] += 0.025  # two seconds in all
    assert len(tier.entries) - before in (4, 5)
    core.close()


def test_what_was_forgotten_is_not_stored():
    tier = MemoryTier()
    core = tiered(tier, num_pages=48)
    ask(core, "a", prompt_of(1))
    core.reset_prefix_cache()
    rested(core)
    assert not tier.entries
    core.close()


@needs_redis
def test_a_second_engine_goes_on_with_what_the_first_one_has_computed(tmp_path):
    with redis_server(tmp_path) as server:
        one, other = (
            tiered(open_tier(disk=tmp_path / name, redis=server.url), num_pages=48) for name in ("one", "other")
        )
        wanted = ask(one, "a", prompt_of(1))
        rested(one)
        found = ask(other, "a", prompt_of(1))
        assert same(found, wanted) and found.num_cached_tokens == 144
        assert other.prefixes.fetched_tokens == 144
        counts = other.prefixes.tier
        assert list(counts) == ["disk", "redis"] and counts["redis"].hits == 9
        one.close()
        other.close()


@needs_redis
@pytest.mark.parametrize("with_disk", [False, True])
def test_a_redis_that_dies_costs_nothing_but_speed(tmp_path, with_disk):
    with redis_server(tmp_path) as server:
        core = tiered(open_tier(disk=tmp_path / "kv" if with_disk else None, redis=server.url))
        histories = {who: prompt_of(who, 60) for who in range(4)}
        for turn in range(6):
            if turn == 2:
                server.kill()
            if turn == 4:
                server.start()
            for who in histories:
                submit(core, f"{turn} {who}", histories[who], GREEDY)
            outputs = drain(core)
            for who, asked in histories.items():
                answer = outputs[f"{turn} {who}"]
                assert same(answer, alone(asked, GREEDY))
                histories[who] = (asked + list(answer.outputs[0].token_ids) + prompt_of(turn, 3))[:150]
        assert core.prefixes.tier["redis"].failed > 0
        core.close()
