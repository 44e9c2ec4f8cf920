"""LoRA adapters by name, and which of them are in memory.

Owns: names, slots, and the reading of adapters behind the steps. Must not know: scheduling, HTTP, what is in a file.

A slot holds one adapter; the sequences of a step may use all slots. An adapter that a sequence waits for is read by a
thread of its own while steps go on, then put into a free slot or into that of the adapter that was used least recently
and that no running sequence uses. While a sequence waits for a slot, none behind it that has an adapter begins: so its
turn comes. An adapter whose name is taken away serves the requests that have it already, then leaves its slot.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sixfold.engine.adapter import NO_SLOT, Adapter, AdapterCounts
from sixfold.engine.sequence import Sequence
from sixfold.errors import ConfigError, InvalidRequestError, ModelFileError, ModelNotFoundError
from sixfold.runtime.batch import Executor

MAX_NAME = 256  # characters
_PATIENCE = 0.01  # seconds that one wait for a file takes at most: commands come between


@dataclass(frozen=True)
class Content:
    """What a reader gives: an adapter's digest, and what an executor takes."""

    digest: str
    rank: int
    bytes: int
    native: Any


Reader = Callable[[Path], Content]


class Adapters:
    """Names are for any thread; slots belong to the engine's."""

    def __init__(self, executor: Executor, read: Reader, slots: int) -> None:
        """``read`` reads an adapter for the executor's model and raises what is wrong with it."""
        self._executor = executor
        self._read = read
        self._lock = threading.Lock()  # over _names
        self._names: dict[str, Adapter] = {}
        self._fresh: dict[Adapter, Any] = {}  # read when they were loaded, and put into no slot yet
        self._slots = slots
        self._free = list(reversed(range(slots)))
        self._resident: dict[Adapter, int] = {}  # the slot; the least recently used first
        self._pins: Counter[Adapter] = Counter()  # running sequences
        self._reads: dict[Adapter, Future[Any]] = {}
        self._failed: dict[Adapter, Exception] = {}
        self._blocked = False  # somebody waits for a slot, in the step being scheduled
        self._pool = ThreadPoolExecutor(1, "sixfold-lora")
        self._loads = self._evictions = 0

    @classmethod
    def none(cls, executor: Executor) -> Self:
        """For an engine that takes no adapters."""

        def refuse(path: Path) -> Content:
            raise ConfigError("This engine takes no adapters", remedy="Start it with max_loras")

        return cls(executor, refuse, 0)

    # Names: any thread.

    @property
    def names(self) -> dict[str, Adapter]:
        with self._lock:
            return dict(self._names)

    def named(self, name: str | None) -> Adapter | None:
        """Raises ModelNotFoundError for a name that is not loaded."""
        if name is None:
            return None
        with self._lock:
            found = self._names.get(name)
        if found is None:
            raise ModelNotFoundError(f"No adapter {name[:80]!r} is loaded", remedy="Load it first", param="model")
        return found

    def load(self, name: str, path: Path) -> Adapter:
        """Reads the adapter once, to check it, and gives it the name. Takes a moment.

        Raises InvalidRequestError for a name in use, ModelFileError and UnsupportedModelError for the adapter.
        """
        _check_name(name)
        self._check_free(name)
        content = self._read(path)
        adapter = Adapter(name, path, content.digest, content.rank, content.bytes)
        with self._lock:
            self._check_free_locked(name)
            self._names[name] = adapter
            if len(self._names) <= self._slots:  # no use in keeping what others push out before it is asked for
                self._fresh[adapter] = content.native
        return adapter

    def unload(self, name: str) -> Adapter:
        """Takes the name away. The adapter's memory is freed by :meth:`retire`. Raises ModelNotFoundError."""
        with self._lock:
            adapter = self._names.pop(name, None)
            if adapter is None:
                raise ModelNotFoundError(f"No adapter {name[:80]!r} is loaded", remedy="Nothing is to be unloaded")
            self._fresh.pop(adapter, None)
        return adapter

    def _check_free(self, name: str) -> None:
        with self._lock:
            self._check_free_locked(name)

    def _check_free_locked(self, name: str) -> None:
        if name in self._names:
            raise InvalidRequestError(
                f"An adapter {name!r} is loaded already", remedy="Unload it first, or use another name",
                param="lora_name",
            )  # fmt: skip

    def counts(self) -> AdapterCounts:
        resident = list(self._resident)  # a copy: another thread may ask
        return AdapterCounts(
            known=len(self._names),
            resident=len(resident),
            slots=self._slots,
            bytes=sum(adapter.bytes for adapter in resident),
            loads=self._loads,
            evictions=self._evictions,
            running=tuple(sorted({adapter.name for adapter in list(self._pins)})),
            waiting=tuple(sorted({adapter.name for adapter in list(self._reads)})),
        )

    # Slots: the engine's thread.

    def arrive(self) -> None:
        self._blocked = False

    def ready(self, sequence: Sequence, /) -> bool:
        adapter = sequence.request.lora
        if adapter is None:
            return True
        if self._blocked:
            return False
        if adapter in self._resident:
            return True
        native = self._content(adapter)
        if native is None or adapter in self._failed:
            return False
        slot = self._slot()
        if slot is None:
            self._blocked = True
            return False
        try:
            self._executor.set_adapter(slot, native)
        except ValueError as error:
            self._free.append(slot)
            self._failed[adapter] = error
            return False
        self._reads.pop(adapter, None)
        with self._lock:
            self._fresh.pop(adapter, None)
        self._resident[adapter] = slot
        self._loads += 1
        return True

    def begun(self, sequence: Sequence, /) -> None:
        adapter = sequence.request.lora
        if adapter is not None:
            sequence.adapter_slot = self._resident[adapter] = self._resident.pop(adapter)  # the most recently used
            self._pins[adapter] += 1

    def ended(self, sequence: Sequence, /) -> None:
        adapter = sequence.request.lora
        if adapter is None or sequence.adapter_slot == NO_SLOT:
            return
        sequence.adapter_slot = NO_SLOT
        self._pins[adapter] -= 1
        if not self._pins[adapter]:
            del self._pins[adapter]
            self.retire(adapter)

    def retire(self, adapter: Adapter) -> None:
        """Frees its slot if its name is gone and nobody runs with it."""
        with self._lock:
            wanted = self._names.get(adapter.name) is adapter
        if not wanted and adapter not in self._pins and adapter in self._resident:
            self._empty(adapter)

    def wait(self) -> bool:
        """No sequence can run: waits a moment for a file. False if that is not for want of an adapter."""
        if not self._reads:
            return bool(self._failed)
        wait(list(self._reads.values()), timeout=_PATIENCE)
        return True

    def failed(self) -> dict[Adapter, Exception]:
        """Adapters that could not be read since the last call: their requests can not run."""
        if not self._failed:
            return self._failed
        failed, self._failed = self._failed, {}
        return failed

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _content(self, adapter: Adapter) -> Any:
        """What goes into a slot; None: it is on its way, or it has failed."""
        fresh = self._fresh.get(adapter)
        if fresh is not None:
            return fresh
        read = self._reads.get(adapter)
        if read is None:
            self._start_reading(adapter)
            return None
        if not read.done():
            return None
        error = read.exception()
        if error is None:
            return read.result()
        del self._reads[adapter]
        self._failed[adapter] = error if isinstance(error, Exception) else RuntimeError(str(error))
        return None

    def _start_reading(self, adapter: Adapter) -> None:
        """At most as many at a time as there are slots; what nobody came back for is dropped."""
        if len(self._reads) >= self._slots:
            idle = next((known for known, read in self._reads.items() if read.done()), None)
            if idle is None:
                return
            del self._reads[idle]
        self._reads[adapter] = self._pool.submit(self._reread, adapter)

    def _reread(self, adapter: Adapter) -> Any:
        content = self._read(adapter.path)
        if content.digest != adapter.digest:
            raise ModelFileError(
                f"The adapter {adapter.name!r} has changed on disk since it was loaded",
                remedy="Unload it and load it again",
            )
        return content.native

    def _slot(self) -> int | None:
        """A free slot, made by pushing out who was used least recently if need be."""
        if not self._free:
            idle = next((adapter for adapter in self._resident if adapter not in self._pins), None)
            if idle is None:
                return None
            self._empty(idle)
            self._evictions += 1
        return self._free.pop()

    def _empty(self, adapter: Adapter) -> None:
        slot = self._resident.pop(adapter)
        self._executor.set_adapter(slot, None)
        self._free.append(slot)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidRequestError(
            f"{name[:80]!r} is no name for an adapter", remedy=f"Use 1 to {MAX_NAME} printable characters",
            param="lora_name",
        )  # fmt: skip
