from __future__ import annotations

import threading
from collections.abc import Sequence

from sixfold.cache.frame import encode
from sixfold.cache.remote import RemoteCache
from tests.cache.faults import key_of, payload_of


class SlowToClear:
    """Keeps values in a dictionary. A clear lists them, waits for ``go_on``, and then deletes what it has listed."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.listed, self.go_on = threading.Event(), threading.Event()
        self.clears = self.most_at_once = self._under_way = 0

    def check(self) -> None:
        pass

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        return [self.values.get(name) for name in names]

    def put(self, name: bytes, value: bytes) -> None:
        self.values[name] = value

    def has(self, name: bytes) -> bool:
        return name in self.values

    def delete(self, name: bytes) -> None:
        self.values.pop(name, None)

    def clear(self) -> None:
        self.clears += 1
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        found = list(self.values)
        self.listed.set()
        assert self.go_on.wait(5)
        for name in found:
            self.values.pop(name, None)
        self._under_way -= 1

    def close(self) -> None:
        pass


def test_a_clear_that_is_wanted_during_another_is_not_lost() -> None:
    store = SlowToClear()
    cache = RemoteCache("slow", "slow://", store, batch=1)
    clears = [threading.Thread(target=cache.clear) for _ in range(2)]
    clears[0].start()
    assert store.listed.wait(5)
    late = key_of(0)
    store.put(late.digest, encode(late, payload_of(0)))  # by another server, after the first clear has listed
    clears[1].start()
    while cache._clears_wanted < 2:
        pass
    read: list[bytes | None] = []
    reader = threading.Thread(target=lambda: read.append(cache.get(late)))
    reader.start()
    store.go_on.set()
    for thread in (*clears, reader):
        thread.join(5)
    assert read == [None] and not store.values and (store.clears, store.most_at_once) == (2, 1)
