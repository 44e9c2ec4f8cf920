"""Two threads that carry pages between the engine and a tier, so that the engine never waits for a disk.

Owns: the queues, and how much may be on its way. Must not know: which pages, or why.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from sixfold.cache import CacheKey, Tier
from sixfold.engine.transfer_speed import smooth

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20  # copies of pages on their way to the tier, and as many on their way back


END, URGENT, BEGUN, AHEAD = range(4)  # ranks


class Fetched(NamedTuple):
    whom: Hashable  # whoever it was fetched for
    key: CacheKey
    payload: bytes | None  # None: it was not there, or not what it should be; nothing follows
    seconds: float
    last: bool  # of what was asked for


class Order(NamedTuple):
    """What is read next has the lowest rank, then was asked for first. No ``whom``: the reader ends.

    The first pages that a request waits for come before the rest of others', so that one of which nothing is there is
    told so at once.
    """

    rank: int  # URGENT, BEGUN or AHEAD
    serial: int
    whom: Hashable = None
    keys: Sequence[CacheKey] = ()


class PageMover:
    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._stores: queue.SimpleQueue[tuple[int, CacheKey, bytes] | None] = queue.SimpleQueue()
        self._orders: queue.PriorityQueue[Order] = queue.PriorityQueue()
        self._arrived: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
        self._lock = threading.Condition()  # over what follows
        self._storing = 0  # bytes
        self.storing_seconds: float | None = None  # of a page, by measurement
        self._stores_given = self._dropped_stores = 0  # numbers of the last one given, and dropped
        self._returning = 0
        self._wanted: set[Hashable] = set()
        self._serial = itertools.count()
        self._closed = False
        self._threads = [
            threading.Thread(target=target, name=f"sixfold-kv-{name}", daemon=True)
            for name, target in (("writer", self._write), ("reader", self._read))
        ]
        for thread in self._threads:
            thread.start()

    def has_room(self, patient: bool) -> bool:
        """Whether one more page may be stored; ``patient`` waits until it may, or until the writer is gone."""
        with self._lock:
            if patient:
                self._lock.wait_for(lambda: self._storing < MOST_BYTES or self._closed, timeout=5.0)
            return self._storing < MOST_BYTES and not self._closed

    @property
    def rests(self) -> bool:
        """Whether nothing is on its way to the tier."""
        return self._storing == 0

    def store(self, key: CacheKey, payload: bytes) -> None:
        with self._lock:
            self._storing += len(payload)
            self._stores_given += 1
            number = self._stores_given
        self._stores.put((number, key, payload))

    def fetch(self, whom: Hashable, keys: Sequence[CacheKey], *, urgent: bool) -> None:
        """Reads the keys in order; others' urgent ones come between those that are not."""
        with self._lock:
            self._wanted.add(whom)
        self._orders.put(Order(URGENT if urgent else AHEAD, next(self._serial), whom, keys))

    def fetched(self, timeout: float) -> Iterator[Fetched]:
        """What has come; waits up to ``timeout`` seconds for the first."""
        try:
            found = self._arrived.get(timeout=timeout) if timeout else self._arrived.get_nowait()
            while True:
                with self._lock:
                    self._returning -= len(found.payload or b"")
                    wanted = found.whom in self._wanted
                    self._lock.notify_all()
                if wanted:
                    yield found
                found = self._arrived.get_nowait()
        except queue.Empty:
            return

    @property
    def expects_something(self) -> bool:
        """Whether something was asked for and not dropped (it may all have come), or lies here."""
        return bool(self._wanted) or self._returning > 0

    def drop(self, whom: Hashable) -> None:
        """What is still on its way for them is not wanted any more."""
        with self._lock:
            self._wanted.discard(whom)
            self._lock.notify_all()

    def drop_all(self) -> None:
        """Nothing that is on its way is wanted any more, in either direction."""
        with self._lock:
            self._wanted.clear()
            self._dropped_stores = self._stores_given

    def close(self, seconds: float) -> None:
        """Gives what is to be stored ``seconds``, then lets go of it."""
        deadline = time.monotonic() + seconds
        with self._lock:
            self._wanted.clear()
            self._lock.wait_for(lambda: self._storing == 0, timeout=seconds)
            self._closed = True
            self._lock.notify_all()
        self._stores.put(None)
        self._orders.put(Order(END, next(self._serial)))
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))

    # The threads. A tier does not raise; should one do so all the same, the page is lost and the thread goes on.

    def _write(self) -> None:
        while (item := self._stores.get()) is not None:
            self._write_one(*item)
            del item  # nothing is kept alive while there is nothing to do

    def _read(self) -> None:
        while (order := self._orders.get()).whom is not None:
            self._read_some(order)
            del order

    def _write_one(self, number: int, key: CacheKey, payload: bytes) -> None:
        try:
            if not self._closed and number > self._dropped_stores:
                began = time.perf_counter()
                self._tier.put(key, payload)
                self.storing_seconds = smooth(self.storing_seconds, time.perf_counter() - began)
                if number <= self._dropped_stores:  # dropped meanwhile
                    self._tier.delete(key)
        except Exception:
            log.exception("A page could not be stored")
        with self._lock:
            self._storing -= len(payload)
            self._lock.notify_all()

    def _read_some(self, order: Order) -> None:
        """A batch of the order; the rest goes back to the queue."""
        keys, rest = order.keys[: self._tier.batch], order.keys[self._tier.batch :]
        with self._lock:
            self._lock.wait_for(lambda: self._returning < MOST_BYTES or self._closed or order.whom not in self._wanted)
            if self._closed or order.whom not in self._wanted:
                return
        began = time.perf_counter()
        payloads = self._get(keys)
        seconds = (time.perf_counter() - began) / max(1, len(payloads))
        with self._lock:
            self._returning += sum(map(len, payloads))
        for key, payload in zip(keys, payloads, strict=False):
            self._arrived.put(Fetched(order.whom, key, payload, seconds, not rest and key is keys[-1]))
        if len(payloads) < len(keys):
            self._arrived.put(Fetched(order.whom, keys[len(payloads)], None, seconds, True))
        elif rest:
            self._orders.put(order._replace(rank=max(order.rank, BEGUN), keys=rest))

    def _get(self, keys: Sequence[CacheKey]) -> list[bytes]:
        try:
            return self._tier.read(keys)
        except Exception:
            log.exception("Pages could not be fetched")
            return []
