from __future__ import annotations

import threading
import time
from pathlib import Path

from sixfold.cache import DiskCache
from sixfold.cache.layered import LayeredCache
from tests.cache.faults import key_of, payload_of


def layers(tmp_path: Path, near: int = 1 << 20) -> tuple[LayeredCache, DiskCache, DiskCache]:
    one, other = DiskCache(tmp_path / "near", near), DiskCache(tmp_path / "far", 1 << 20)
    return LayeredCache([one, other]), one, other


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_put_goes_to_all_and_only_where_it_is_not(tmp_path: Path) -> None:
    both, near, far = layers(tmp_path)
    far.put(key_of(0), payload_of(0))
    assert key_of(0) not in both and both.put(key_of(0), payload_of(0)) and key_of(0) in both
    assert (near.counts.stored, far.counts.stored) == (1, 1)
    assert [counts.entries for counts in both.levels().values()] == [1]  # of one name here
    both.close()


def test_what_lies_in_several_is_read_in_order_and_brought_nearer(tmp_path: Path) -> None:
    both, near, far = layers(tmp_path)
    for number, tier in enumerate((near, far, near, far)):
        tier.put(key_of(number), payload_of(number))
    keys = [key_of(number) for number in range(5)]
    assert both.known(keys) == 4
    assert both.read(keys) == [payload_of(number) for number in range(4)]
    until(lambda: key_of(1) in near and key_of(3) in near)
    assert both.get(keys[4]) is None
    both.close()


def test_what_is_on_its_way_when_all_is_cleared_does_not_arrive(tmp_path: Path) -> None:
    both, near, far = layers(tmp_path)
    far.put(key_of(0), payload_of(0))
    held, put = threading.Event(), near.put

    def slow_put(key, payload):
        held.wait(10)
        return put(key, payload)

    near.put = slow_put
    assert both.get(key_of(0)) == payload_of(0)
    both.clear()
    held.set()
    until(lambda: both._climbing == 0)
    assert both.get(key_of(0)) is None
    both.close()


def test_a_near_tier_that_is_full_costs_nothing(tmp_path: Path) -> None:
    both, near, far = layers(tmp_path, near=10)
    assert both.put(key_of(0), payload_of(0)) and key_of(0) in far and key_of(0) not in near
    assert both.get(key_of(0)) == payload_of(0)
    both.close()
