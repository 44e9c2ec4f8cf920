from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time

import pytest

from sixfold.engine.collect import Collector
from sixfold.errors import ContextLengthError, EngineDeadError, InvalidRequestError, OverloadedError
from sixfold.types import SamplingParams
from tests.engine.test_core import alone, same
from tests.fakes import FakeExecutor, make_async_engine

LONG = SamplingParams(max_tokens=900, ignore_eos=True, seed=1)


class SlowExecutor(FakeExecutor):
    """Takes a millisecond a step, or waits while the gate is closed."""

    def __init__(self, num_pages=256, **options):
        super().__init__(num_pages, **options)
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, batch):
        assert self.gate.wait(10)
        time.sleep(0.001)
        super().forward(batch)


@pytest.fixture
def executor():
    return SlowExecutor()


@pytest.fixture
def engine(executor):
    made = make_async_engine(executor=executor, max_queue=4, max_num_seqs=2)
    yield made
    executor.gate.set()
    made.shutdown()


@pytest.fixture
def broad():
    """An engine with room for many."""
    made = make_async_engine(num_pages=256)
    yield made
    made.shutdown()


async def collect(stream):
    collector = Collector()
    async for delta in stream:
        collector.add(delta)
    return collector.result()


async def until(condition, timeout=5.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.002)


def all_free(engine):
    return engine.stats().kv_pages_used == 0 and engine.stats().requests == 0


def ended_early(engine):
    """All pages are free, and not because the request ran to its end."""
    return all_free(engine) and engine.stats().generation_tokens < 600


async def test_many_at_once_get_what_each_gets_alone(broad):
    params = [SamplingParams(n=1 + i % 2, max_tokens=20, seed=i, logprobs=1, ignore_eos=True) for i in range(32)]
    streams = [broad.generate([i] * (1 + 3 * i), params[i]) for i in range(32)]
    results = await asyncio.gather(*map(collect, streams))
    for i, result in enumerate(results):
        assert same(result, alone([i] * (1 + 3 * i), params[i]))
    assert all_free(broad)


async def test_a_reset_comes_before_what_is_submitted_later(broad):
    params = SamplingParams(max_tokens=3, ignore_eos=True, seed=1)
    for wanted in (0, 49, 49):
        assert (await collect(broad.generate([5] * 50, params))).num_cached_tokens == wanted
    broad.reset_prefix_cache()
    assert (await collect(broad.generate([5] * 50, params))).num_cached_tokens == 0
    broad.shutdown()
    with pytest.raises(EngineDeadError):
        broad.reset_prefix_cache()


async def test_deltas_come_one_token_at_a_time(engine):
    deltas = [delta async for delta in engine.generate([1], SamplingParams(max_tokens=5, ignore_eos=True))]
    assert [len(delta.outputs[0].token_ids) for delta in deltas] == [1] * 5
    assert [delta.finished for delta in deltas] == [False] * 4 + [True]


async def test_several_streams_are_awaited_with_one_future(broad):
    params = [SamplingParams(max_tokens=5 + i, seed=i, ignore_eos=True) for i in range(3)]
    streams = [broad.generate([i], params[i]) for i in range(3)]
    collectors = [Collector() for _ in streams]
    while not all(stream.over for stream in streams):
        waiter = asyncio.get_running_loop().create_future()
        for stream in streams:
            stream.notify(waiter)
        await asyncio.wait_for(waiter, 5)
        for stream, collector in zip(streams, collectors, strict=True):
            for delta in stream.take():
                collector.add(delta)
    for i, collector in enumerate(collectors):
        assert same(collector.result(), alone([i], params[i]))
    assert [stream.take() for stream in streams] == [[], [], []]


async def test_a_stream_gives_what_came_before_the_engine_died(engine, executor):
    stream = engine.generate([1], LONG)
    await until(lambda: engine.stats().generation_tokens > 2)
    engine.shutdown()
    await asyncio.sleep(0.01)
    assert len(stream.take()) > 2
    assert stream.over
    assert isinstance(stream.error, EngineDeadError)


async def test_closing_a_stream_frees_its_pages(engine):
    stream = engine.generate([1] * 50, LONG)
    await anext(stream)
    assert engine.stats().kv_pages_used > 0
    await stream.aclose()
    await until(lambda: ended_early(engine))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_cancelling_the_reader_frees_its_pages(engine):
    task = asyncio.create_task(collect(engine.generate([1] * 50, LONG)))
    await until(lambda: engine.stats().generation_tokens > 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: ended_early(engine))


async def test_dropping_a_stream_frees_its_pages(engine):
    stream = engine.generate([1] * 50, LONG)
    await anext(stream)
    del stream
    gc.collect()
    await until(lambda: ended_early(engine))


async def test_a_queue_that_is_full_refuses(engine, executor):
    executor.gate.clear()
    streams = [engine.generate([1], LONG) for _ in range(2)]
    await until(lambda: engine.stats().queued <= 1)  # what the first step takes has left the queue
    with pytest.raises(OverloadedError, match="max_queue"):
        for _ in range(5):
            streams.append(engine.generate([1], LONG))
    executor.gate.set()
    for stream in streams:
        await stream.aclose()
    await until(lambda: all_free(engine))
    assert (await collect(engine.generate([1], SamplingParams(max_tokens=2, ignore_eos=True)))).finished


async def test_bad_requests_raise_before_they_are_queued(engine):
    with pytest.raises(InvalidRequestError):
        engine.generate([], LONG)
    with pytest.raises(ContextLengthError):
        engine.generate([1] * 2000, LONG)
    with pytest.raises(ContextLengthError):
        engine.validate([1] * 2000, LONG)
    assert engine.stats().requests == 0


async def test_an_id_in_use_is_refused_and_its_owner_goes_on(engine):
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=1)
    first = engine.generate([1], params, request_id="same")
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.generate([1], params, request_id="same")
    gc.collect()
    assert same(await collect(first), alone([1], params))


async def test_closing_a_finished_stream_does_not_end_its_successor(engine):
    params = SamplingParams(max_tokens=20, ignore_eos=True, seed=1)
    old = engine.generate([1], params, request_id="same")
    await until(lambda: engine.stats().finished == 1)
    new = engine.generate([1], params, request_id="same")
    await old.aclose()
    assert len((await collect(new)).outputs[0].token_ids) == 20


async def test_drain_lets_requests_finish_and_refuses_new_ones(engine):
    task = asyncio.create_task(collect(engine.generate([1], SamplingParams(max_tokens=50, ignore_eos=True))))
    await asyncio.sleep(0.01)
    drained = asyncio.create_task(engine.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="shutting down"):
        engine.generate([1], LONG)
    assert await drained
    assert len((await task).outputs[0].token_ids) == 50


async def test_drain_aborts_what_takes_too_long(engine):
    task = asyncio.create_task(collect(engine.generate([1], LONG)))
    await asyncio.sleep(0.01)
    assert not await engine.drain(0.05)
    assert (await task).outputs[0].finish_reason == "abort"
    assert all_free(engine)


async def test_an_internal_failure_kills_the_engine_and_says_so(engine, caplog):
    streams = [engine.generate([1], LONG) for _ in range(3)]

    def break_down():
        raise AssertionError("a page is missing")

    with caplog.at_level(logging.CRITICAL, logger="sixfold"):
        engine.core.scheduler.schedule = break_down
        for stream in streams:
            with pytest.raises(EngineDeadError, match="a page is missing"):
                await collect(stream)
    assert engine.dead
    with pytest.raises(EngineDeadError):
        engine.generate([1], LONG)


async def test_shutdown_ends_streams_and_may_be_repeated(engine):
    stream = engine.generate([1], LONG)
    await anext(stream)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        await collect(stream)


async def test_the_thread_sleeps_when_idle(engine):
    await collect(engine.generate([1], SamplingParams(max_tokens=3, ignore_eos=True)))
    steps = engine.stats().steps
    used = time.process_time()
    await asyncio.sleep(0.2)
    assert engine.stats().steps == steps
    assert time.process_time() - used < 0.1


def test_a_closed_event_loop_ends_its_requests(engine):
    kept = []

    async def leave():
        kept.append(engine.generate([1] * 50, LONG))
        await anext(kept[0])

    asyncio.run(leave())
    asyncio.run(until(lambda: ended_early(engine)))


def test_several_event_loops_may_share_an_engine(broad):
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=4)
    results = []

    async def ask(number):
        return await collect(broad.generate([number], params))

    threads = [threading.Thread(target=lambda n=n: results.append((n, asyncio.run(ask(n))))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(same(result, alone([number], params)) for number, result in results)
