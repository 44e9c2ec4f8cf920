"""Tiers under attack, against a model that knows what may be answered.

``python -m tests.cache.faults 1000000`` runs so many operations on each tier that this machine can have (``--tier``:
on one) and prints what was injected; the tests run fewer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from redis.exceptions import ConnectionError, RedisError

from sixfold.cache import CacheKey, DiskCache, Tier
from sixfold.cache.frame import encode
from sixfold.cache.layered import LayeredCache
from sixfold.cache.redis import open_redis
from tests.cache.redis_server import RedisServer, redis_server

KEYS = 300
CONNECTIONS = 550_000  # bytes that a Redis takes for some, and for itself once it has worked


def key_of(number: int) -> CacheKey:
    content = f"everything that entry {number} depends on".encode()
    return CacheKey(hashlib.sha256(content).digest(), content)


def payload_of(number: int) -> bytes:
    """The one right answer of a key."""
    return hashlib.sha256(b"payload %d" % number).digest() * (16 + 16 * (number % 5))


class Place(Protocol):
    """What lies behind a tier, to be damaged. Raises OSError where there is nothing to damage."""

    def open(self) -> Tier:
        """A tier on it, beside those that are open."""

    def load(self, name: bytes) -> bytes: ...
    def store(self, name: bytes, value: bytes) -> None: ...
    def remove(self, name: bytes) -> None: ...
    def refuse(self, tier: Tier, key: CacheKey, payload: bytes) -> bool:
        """A put that the place refuses: whether the tier said that it is stored."""

    def fail(self) -> None:
        """Whatever is under way fails, where that can be."""

    def evicted(self) -> int:
        """Entries that the place has given up by itself."""


class DiskPlace:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> Tier:
        return DiskCache(self.directory, capacity=KEYS * 800)  # about half of the entries fit

    def _file(self, name: bytes) -> Path:
        return self.directory / name.hex()[:2] / name.hex()

    def load(self, name: bytes) -> bytes:
        return self._file(name).read_bytes()

    def store(self, name: bytes, value: bytes) -> None:
        self._file(name).write_bytes(value)

    def remove(self, name: bytes) -> None:
        self._file(name).unlink()

    def refuse(self, tier: Tier, key: CacheKey, payload: bytes) -> bool:
        """A directory stands where the file should go."""
        with contextlib.suppress(OSError):
            self._file(key.digest).unlink()  # in two layers it may have been stored when the other one refused
        (self._file(key.digest) / "in the way").mkdir(parents=True, exist_ok=True)
        return tier.put(key, payload)

    def fail(self) -> None:
        pass

    def evicted(self) -> int:
        return 0  # the tier counts them itself


class RedisPlace:
    """A Redis with room for about half of the entries, which loses its connections now and then."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.client = server.client(patient=True)
        self.client.config_set("maxmemory-policy", "allkeys-random")
        self._room = int(self.client.info("memory")["used_memory"]) + KEYS * 900 + CONNECTIONS
        self.client.config_set("maxmemory", self._room)
        self._one_at_a_time = threading.Lock()

    def open(self) -> Tier:
        return open_redis(self.server.url, shortest_rest=0.0)

    def load(self, name: bytes) -> bytes:
        value = self.client.get(b"sixfold:kv:" + name)
        if value is None:
            raise FileNotFoundError
        return value

    def store(self, name: bytes, value: bytes) -> None:
        self.client.set(b"sixfold:kv:" + name, value)

    def remove(self, name: bytes) -> None:
        self.client.delete(b"sixfold:kv:" + name)

    def refuse(self, tier: Tier, key: CacheKey, payload: bytes) -> bool:
        """No memory, and nothing may be evicted."""
        with self._one_at_a_time:
            self._set("maxmemory-policy", "noeviction")
            self._set("maxmemory", 1)
            try:
                return tier.put(key, payload)
            finally:
                self._set("maxmemory", self._room)  # first, or all would be evicted
                self._set("maxmemory-policy", "allkeys-random")

    def _set(self, name: str, value: object) -> None:
        """Although our connections are cut too, one that waits in the pool more than once."""
        for _ in range(1000):
            with contextlib.suppress(ConnectionError):
                self.client.config_set(name, value)
                return
        raise AssertionError("the Redis under attack is gone")

    def fail(self) -> None:
        """Cuts everybody's connections but ours: in the middle of an answer, for whoever waits for one."""
        self.client.client_kill_filter(_type="normal", skipme=True)

    def evicted(self) -> int:
        return int(self.client.info("stats")["evicted_keys"])


class LayeredPlace:
    """Damages now one place, now the other."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self._turn = 0

    def open(self) -> Tier:
        return LayeredCache([place.open() for place in self.places])

    @property
    def _next(self) -> Place:
        self._turn += 1
        return self.places[self._turn % len(self.places)]

    def load(self, name: bytes) -> bytes:
        return self._next.load(name)

    def store(self, name: bytes, value: bytes) -> None:
        self._next.store(name, value)

    def remove(self, name: bytes) -> None:
        self._next.remove(name)

    def refuse(self, tier: Tier, key: CacheKey, payload: bytes) -> bool:
        """One place refuses, the other does not: so it may be stored."""
        self._next.refuse(tier, key, payload)
        return False

    def fail(self) -> None:
        for place in self.places:
            place.fail()

    def evicted(self) -> int:
        return sum(place.evicted() for place in self.places)


@contextlib.contextmanager
def places(kind: str, directory: Path) -> Iterator[Place]:
    """``kind``: disk, redis or layered."""
    if kind == "disk":
        yield DiskPlace(directory / "kv")
        return
    with redis_server(directory) as server:
        redis = RedisPlace(server)
        yield redis if kind == "redis" else LayeredPlace([DiskPlace(directory / "kv"), redis])


class Attack:
    """Threads that use a tier while its entries are damaged, swapped, torn and removed, and its writes fail."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self.cache = place.open()
        self.opened = [self.cache]
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        for cache in self.opened:
            cache.close()

    def counted(self, name: str) -> int:
        """By all tiers that were opened."""
        return sum(getattr(counts, name) for cache in self.opened for counts in cache.levels().values())

    def run(self, operations: int, threads: int = 3) -> None:
        with ThreadPoolExecutor(threads) as pool:
            workers = [
                pool.submit(self._work, random.Random(self.random.random()), operations // threads)
                for _ in range(threads)
            ]
        for worker in workers:
            worker.result()

    def _work(self, draw: random.Random, operations: int) -> None:
        actions = [self._get] * 12 + [self._put] * 5 + [
            self._flip, self._tear, self._swap, self._remove, self._stale, self._refused, self._reopen, self._fail,
            self._read, self._delete,
        ]  # fmt: skip
        rare = {self._reopen: 0.002, self._fail: 0.05, self._refused: 0.3}
        done: Counter[str] = Counter()
        for _ in range(operations):
            action = draw.choice(actions)
            if draw.random() >= rare.get(action, 1.0):
                action = self._get
            done[action.__name__.strip("_")] += 1
            done[f"found: {action(draw)}"] += 1
        with self._lock:
            self.done += done

    def _get(self, draw: random.Random) -> str:
        number = draw.randrange(KEYS)
        return self._judged([number], [self.cache.get(key_of(number))])

    def _read(self, draw: random.Random) -> str:
        """Several at once, as pages are fetched."""
        numbers = [draw.randrange(KEYS) for _ in range(draw.randrange(1, 6))]
        return self._judged(numbers, [*self.cache.read([key_of(number) for number in numbers])])

    def _judged(self, numbers: list[int], found: list[bytes | None]) -> str:
        for number, payload in zip(numbers, found, strict=False):
            if payload is not None and payload != payload_of(number):
                self.wrong += 1
                return "a wrong answer"
        return "nothing" if not found or found[0] is None else "the right answer"

    def _put(self, draw: random.Random) -> str:
        number = draw.randrange(KEYS)
        self.cache.put(key_of(number), payload_of(number))
        return "-"

    def _delete(self, draw: random.Random) -> str:
        self.cache.delete(key_of(draw.randrange(KEYS)))
        return "-"

    def _flip(self, draw: random.Random) -> str:
        return self._damage(draw, _flipped)

    def _tear(self, draw: random.Random) -> str:
        return self._damage(draw, lambda blob, draw: blob[: draw.randrange(len(blob) + 1)])

    def _damage(self, draw: random.Random, how) -> str:
        name = key_of(draw.randrange(KEYS)).digest
        return self._done(lambda: self.place.store(name, how(self.place.load(name), draw)))

    def _swap(self, draw: random.Random) -> str:
        """A whole entry under the name of another key."""
        one, other = (key_of(draw.randrange(KEYS)).digest for _ in range(2))
        return self._done(lambda: self.place.store(other, self.place.load(one)))

    def _stale(self, draw: random.Random) -> str:
        """An entry of the same digest whose key says something else, with another payload."""
        key = key_of(draw.randrange(KEYS))
        yesterday = encode(CacheKey(key.digest, key.content + b" yesterday"), b"stale")
        return self._done(lambda: self.place.store(key.digest, yesterday))

    def _remove(self, draw: random.Random) -> str:
        return self._done(lambda: self.place.remove(key_of(draw.randrange(KEYS)).digest))

    def _done(self, damage) -> str:
        try:
            damage()
        except (OSError, RedisError):
            return "nothing to damage"
        return "-"

    def _refused(self, draw: random.Random) -> str:
        number = draw.randrange(KEYS, 2 * KEYS)  # keys that nobody asks for
        if self.place.refuse(self.cache, key_of(number), payload_of(number)):
            self.wrong += 1
        return "refused"

    def _fail(self, draw: random.Random) -> str:
        return self._done(self.place.fail)

    def _reopen(self, draw: random.Random) -> str:
        """A restart beside the others."""
        self.cache = self.place.open()
        self.opened.append(self.cache)
        return "-"


def _flipped(blob: bytes, draw: random.Random) -> bytes:
    changed = bytearray(blob)
    if changed:
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tier", choices=("disk", "redis", "layered"))
    options = parser.parse_args()
    logging.disable()  # every failure is said, and here are thousands
    kinds = (options.tier,) if options.tier else ("disk", "redis", "layered")
    wrong = 0
    for kind in kinds:
        if kind != "disk" and shutil.which("redis-server") is None:
            print(f"{kind}: no redis-server on this machine")
            continue
        wrong += attacked(kind, options.operations, options.seed)
    raise SystemExit(wrong > 0)


def attacked(kind: str, operations: int, seed: int) -> int:
    """Wrong answers; prints what was done."""
    began = time.monotonic()
    shared_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as directory, places(kind, Path(directory)) as place:
        attack = Attack(place, seed)
        attack.run(operations)
        attack.close()
        evicted = attack.counted("evicted") + place.evicted()
    print(f"{kind}, {time.monotonic() - began:.0f} s")
    for name, count in sorted(attack.done.items()):
        print(f"{count:9d} {name}")
    print(f"{attack.counted('rejected'):9d} rejected, {attack.counted('failed')} failed, {evicted} evicted")
    print(f"{attack.wrong:9d} wrong answers in {operations} operations on the tier {kind}\n", flush=True)
    return attack.wrong


if __name__ == "__main__":
    main()
