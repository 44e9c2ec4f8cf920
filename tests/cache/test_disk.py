import os
import threading
import time
from pathlib import Path

import pytest

from sixfold.cache import DiskCache
from sixfold.cache.frame import overhead
from sixfold.errors import ConfigError
from tests.cache.faults import key_of, payload_of


def size(number: int) -> int:
    return overhead(key_of(number)) + len(payload_of(number))


def fill(cache: DiskCache, numbers: range) -> None:
    for number in numbers:
        assert cache.put(key_of(number), payload_of(number))


def test_what_is_put_is_there_and_outlives_the_process(tmp_path: Path) -> None:
    fill(DiskCache(tmp_path / "kv", 1 << 20), range(20))
    cache = DiskCache(tmp_path / "kv", 1 << 20)
    assert cache.counts.entries == 20 and cache.counts.bytes == sum(map(size, range(20)))
    for number in range(20):
        assert key_of(number) in cache and cache.get(key_of(number)) == payload_of(number)
    assert cache.get(key_of(20)) is None and key_of(20) not in cache
    assert (cache.counts.hits, cache.counts.misses) == (20, 1)


def test_the_directory_is_its_owners(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "kv", 1 << 20)
    fill(cache, range(1))
    assert (tmp_path / "kv").stat().st_mode & 0o077 == 0


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, sum(map(size, range(4))))
    fill(cache, range(4))
    cache.get(key_of(0))
    cache.put(key_of(5), payload_of(5))
    assert key_of(0) in cache and key_of(1) not in cache and key_of(5) in cache
    assert cache.counts.bytes <= cache.capacity and cache.counts.evicted >= 1
    assert cache.counts.bytes == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())


def test_the_order_of_use_outlives_the_process(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    fill(cache, range(3))
    for number, age in enumerate((30, 20, 10)):
        name = key_of(number).digest.hex()
        os.utime(tmp_path / name[:2] / name, (time.time() - age,) * 2)
    cache.get(key_of(0))  # now it is the youngest
    again = DiskCache(tmp_path, size(0) + size(2))
    assert key_of(0) in again and key_of(1) not in again


def test_too_large_an_entry_is_refused_and_drives_nobody_out(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, size(0) + 10)
    fill(cache, range(1))
    assert not cache.put(key_of(1), bytes(1000))
    assert key_of(0) in cache and cache.counts.failed == 1


def test_a_damaged_entry_is_rejected_once_and_gone(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    fill(cache, range(1))
    name = key_of(0).digest.hex()
    file = tmp_path / name[:2] / name
    file.write_bytes(file.read_bytes()[:-1])
    assert cache.get(key_of(0)) is None and cache.get(key_of(0)) is None
    assert cache.counts.rejected == 1 and not file.exists() and cache.counts.bytes == 0


def test_what_a_crash_left_is_cleared_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    DiskCache(tmp_path, 1 << 20)
    for name, age in (("old", 7200), ("fresh", 0)):
        (tmp_path / "new" / name).write_bytes(b"half")
        os.utime(tmp_path / "new" / name, (time.time() - age,) * 2)
    cache = DiskCache(tmp_path, 1 << 20)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["fresh"]
    assert cache.counts.entries == 0


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "notes.txt").write_text("mine")
    cache = DiskCache(tmp_path, 10)
    cache.clear()
    assert (tmp_path / "ab" / "notes.txt").read_text() == "mine" and cache.counts.entries == 0


def test_clear_and_delete(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    fill(cache, range(3))
    cache.delete(key_of(1))
    assert cache.get(key_of(1)) is None and cache.get(key_of(0)) is not None
    cache.clear()
    assert cache.get(key_of(0)) is None and cache.counts.bytes == 0


def test_a_directory_that_can_not_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="can not hold a cache"):
        DiskCache(tmp_path / "file", 1 << 20)


def test_threads_agree_on_what_is_there(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 40 * 200)
    threads = [threading.Thread(target=fill, args=(cache, range(i, 100, 4))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.counts.bytes == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) <= cache.capacity


def test_an_entry_that_is_evicted_while_it_is_read_is_not_counted(tmp_path: Path, monkeypatch) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    fill(cache, range(2))
    read = Path.read_bytes

    def read_and_lose(self: Path) -> bytes:
        blob = read(self)
        cache.delete(key_of(0))
        return blob

    monkeypatch.setattr(Path, "read_bytes", read_and_lose)
    assert cache.get(key_of(0)) == payload_of(0)
    assert key_of(0) not in cache and cache.counts.bytes == size(1)
