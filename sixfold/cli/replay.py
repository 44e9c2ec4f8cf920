"""Runs a trace through the scheduler in simulated time: where KV memory goes, without running a model.

Owns: the simulated clock and tokens. Must not know: options, tables, or how waste is computed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sixfold.bench.trace import Arrival
from sixfold.engine.kv_cache import KVCache
from sixfold.engine.kv_waste import Allocation, WasteMeter
from sixfold.engine.prefix_cache import PrefixCache
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.scheduler import Schedule, Scheduler
from sixfold.engine.sequence import Request, choices
from sixfold.engine.sequence import Sequence as Running
from sixfold.runtime.batch import PAGE_SIZE
from sixfold.types import SamplingParams


@dataclass(frozen=True)
class Machine:
    """What is simulated. A step takes ``step`` seconds, and ``token`` more for each token in it."""

    num_pages: int
    page_bytes: int  # of KV memory
    seats: int
    budget: int
    step: float
    token: float


class Replay:
    """No two tokens of a trace are the same, so nothing is shared: it is the hardest case."""

    def __init__(self, machine: Machine, page_sizes: Sequence[int]) -> None:
        cache = KVCache(machine.num_pages)
        prefixes = PrefixCache(cache, PrefixRoot("replay"))
        self._machine = machine
        self._scheduler = Scheduler(
            cache, prefixes, max_num_seqs=machine.seats, max_num_batched_tokens=machine.budget
        )  # fmt: skip
        self._ids = itertools.count()
        self._live = WasteMeter(machine.page_bytes)
        self._by_size = {size: WasteMeter(machine.page_bytes * size // PAGE_SIZE, size) for size in page_sizes}
        self._answers: dict[Running, int] = {}
        self._seconds = self._busy = self._pages = 0.0
        self._steps = 0

    def run(self, trace: Sequence[Arrival], report: Callable[[int], None]) -> dict[str, Any]:
        waiting = deque(trace)
        while waiting or self._answers:
            if not self._answers:
                self._seconds = max(self._seconds, waiting[0].seconds)
            while waiting and waiting[0].seconds <= self._seconds:
                self._add(waiting.popleft())
            self._step()
            if self._steps % 256 == 0:
                report(len(trace) - len(waiting) - len(self._answers))
        return {
            "requests": len(trace),
            "prompt_tokens": sum(one.prompt for one in trace),
            "new_tokens": sum(one.answer for one in trace),
            "pages": self._machine.num_pages,
            "steps": self._steps,
            "simulated_seconds": self._seconds,
            "mean_pages_of_sequences": self._pages / self._busy,
            "preemptions": self._scheduler.preemptions,
            "waste": self._live.ratio,
            "by_page_size": [{"tokens": size, "waste": meter.ratio} for size, meter in self._by_size.items()],
        }

    def _add(self, arrival: Arrival) -> None:
        tokens = tuple(next(self._ids) for _ in range(arrival.prompt))
        params = SamplingParams(max_tokens=arrival.answer)
        serial = len(tokens) and tokens[0]
        request = Request(str(serial), tokens, params, arrival.answer, 0, frozenset(), 0, arrival.seconds)
        (sequence,) = choices(request, serial)
        self._answers[sequence] = arrival.answer
        self._scheduler.add([sequence])

    def _step(self) -> None:
        schedule = self._scheduler.schedule()
        tokens = sum(row.count for row in schedule.rows)
        duration = self._machine.step + self._machine.token * tokens
        self._measure(tokens, duration)
        self._seconds += duration
        self._busy += duration
        self._steps += 1
        self._scheduler.update(schedule)
        self._extend(schedule)

    def _extend(self, schedule: Schedule) -> None:
        for row in schedule.rows:
            if row.samples:
                row.sequence.token_ids.append(next(self._ids))
                if row.sequence.num_generated == self._answers[row.sequence]:
                    del self._answers[row.sequence]
                    self._scheduler.finish(row.sequence)

    def _measure(self, tokens: int, duration: float) -> None:
        self._live.add(self._scheduler.allocation, tokens, duration)
        slots = [len(sequence.table.pages) * PAGE_SIZE for sequence in self._scheduler.running]
        self._pages += duration * sum(slots) / PAGE_SIZE
        for size, meter in self._by_size.items():
            pages = sum(-(-count // size) for count in slots)
            meter.add(Allocation(pages, pages * size - self._scheduler.computed), tokens, duration)
