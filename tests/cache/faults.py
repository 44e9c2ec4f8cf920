"""A disk cache under attack, against a model that knows what may be answered.

``python -m tests.cache.faults 1000000`` runs so many operations and prints what was injected; the tests run fewer.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import threading
from collections import Counter
from pathlib import Path

from sixfold.cache import CacheKey, DiskCache
from sixfold.cache.frame import encode

KEYS = 300


def key_of(number: int) -> CacheKey:
    content = f"everything that entry {number} depends on".encode()
    return CacheKey(hashlib.sha256(content).digest(), content)


def payload_of(number: int) -> bytes:
    """The one right answer of a key."""
    return hashlib.sha256(b"payload %d" % number).digest() * (1 + number % 5)


class Attack:
    """Threads that use a cache while its files are damaged, swapped, torn and removed, and its writes fail."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.cache = DiskCache(directory, capacity=KEYS * 80)  # about half of the entries fit
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong = 0
        self._lock = threading.Lock()

    def run(self, operations: int, threads: int = 3) -> None:
        workers = [
            threading.Thread(target=self._work, args=(random.Random(self.random.random()), operations // threads))
            for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _work(self, draw: random.Random, operations: int) -> None:
        actions = [self._get] * 12 + [self._put] * 5 + [
            self._flip, self._tear, self._swap, self._remove, self._stale, self._full_disk, self._reopen
        ]  # fmt: skip
        done: Counter[str] = Counter()
        for _ in range(operations):
            action = draw.choice(actions)
            if action == self._reopen and draw.random() < 0.98:
                action = self._get
            done[action.__name__.strip("_")] += 1
            done[f"found: {action(draw)}"] += 1
        with self._lock:
            self.done += done

    def _get(self, draw: random.Random) -> str:
        number = draw.randrange(KEYS)
        found = self.cache.get(key_of(number))
        if found is None:
            return "nothing"
        if found != payload_of(number):
            self.wrong += 1
            return "a wrong answer"
        return "the right answer"

    def _put(self, draw: random.Random) -> str:
        number = draw.randrange(KEYS)
        self.cache.put(key_of(number), payload_of(number))
        return "-"

    def _file(self, draw: random.Random) -> Path:
        name = key_of(draw.randrange(KEYS)).digest.hex()
        return self.directory / name[:2] / name

    def _flip(self, draw: random.Random) -> str:
        return self._damage(draw, _flipped)

    def _tear(self, draw: random.Random) -> str:
        return self._damage(draw, lambda blob, draw: blob[: draw.randrange(len(blob) + 1)])

    def _damage(self, draw: random.Random, how) -> str:
        file = self._file(draw)
        try:
            file.write_bytes(how(file.read_bytes(), draw))
        except OSError:
            return "no file"
        return "-"

    def _swap(self, draw: random.Random) -> str:
        """A whole entry under the name of another key."""
        one, other = self._file(draw), self._file(draw)
        try:
            other.write_bytes(one.read_bytes())
        except OSError:
            return "no file"
        return "-"

    def _stale(self, draw: random.Random) -> str:
        """An entry of the same digest whose key says something else, with another payload."""
        number = draw.randrange(KEYS)
        key = key_of(number)
        file = self.directory / key.digest.hex()[:2] / key.digest.hex()
        try:
            file.write_bytes(encode(CacheKey(key.digest, key.content + b" yesterday"), b"stale"))
        except OSError:
            return "no file"
        return "-"

    def _remove(self, draw: random.Random) -> str:
        try:
            self._file(draw).unlink()
        except OSError:
            return "no file"
        return "-"

    def _full_disk(self, draw: random.Random) -> str:
        """A write that is refused: a directory stands where the file should go."""
        number = draw.randrange(KEYS, 2 * KEYS)  # keys that nobody asks for
        name = key_of(number).digest.hex()
        (self.directory / name[:2] / name / "in the way").mkdir(parents=True, exist_ok=True)
        stored = self.cache.put(key_of(number), payload_of(number))
        if stored:
            self.wrong += 1
        return "refused"

    def _reopen(self, draw: random.Random) -> str:
        """A restart beside the others."""
        self.cache = DiskCache(self.directory, self.cache.capacity)
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        attack = Attack(Path(directory), options.seed)
        attack.run(options.operations)
    for name, count in sorted(attack.done.items()):
        print(f"{count:9d} {name}")
    print(f"{attack.wrong:9d} wrong answers in {options.operations} operations")
    raise SystemExit(attack.wrong > 0)


if __name__ == "__main__":
    main()
