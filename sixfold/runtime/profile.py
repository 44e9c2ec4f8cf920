"""Where the time of steps goes: an executor that notes what it ran, and the totals a kind of operator.

Owns: which steps are noted, and what their operators had to read and compute. Must not know: requests, or limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sixfold.compile.costs import OperatorCost, operator_costs
from sixfold.runtime.batch import PAGE_SIZE, Batch, Float32, Int32
from sixfold.runtime.kv_format import head_bytes, layer_formats
from sixfold.runtime.native import NativeExecutor


@dataclass(frozen=True)
class Sizes:
    """What attention reads and computes: a key and a value for every KV head."""

    query_heads: int
    kv_heads: int
    head_size: int
    formats: tuple[str, ...]  # of KV memory, a layer

    def kv_bytes(self, layer: int) -> int:
        """Of one token in one layer."""
        return self.kv_heads * head_bytes(self.formats[layer], self.head_size) // PAGE_SIZE

    @property
    def macs(self) -> int:
        """Of one row with one key in one layer: its score and its share of the sum. Counted as float ones even where
        int8 pages make them products of 16-bit integers, whose rate is about the same."""
        return 2 * self.query_heads * self.head_size


@dataclass
class KindTotal:
    """All operators of one kind in all noted steps. Seconds, bytes, multiply-accumulates."""

    kind: str
    operators: int = 0
    calls: int = 0
    seconds: float = 0.0
    weight_bytes: int = 0
    kv_bytes: int = 0
    integer_macs: int = 0
    float_macs: int = 0


@dataclass
class Steps:
    """The shapes of the noted steps."""

    starts: list[Int32] = field(default_factory=list)
    counts: list[Int32] = field(default_factory=list)
    head_rows: list[int] = field(default_factory=list)  # one entry a call of the head
    seconds: float = 0.0  # inside the executor

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def rows(self) -> int:
        return int(sum(int(counts.sum()) for counts in self.counts))

    def keys(self, window: int) -> tuple[int, int]:
        """(keys read, pairs of row and key) in one layer: a sequence's keys are read once a step, however many rows."""
        read = pairs = 0
        for starts, counts in zip(self.starts, self.counts, strict=True):
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
                seen = np.arange(start + 1, start + count + 1)
                pairs += int((np.minimum(seen, window) if window else seen).sum())
                read += start + count - (max(0, start - window + 1) if window else 0)
        return read, pairs


class Recorder:
    """An executor like any other that notes the steps which ``wanted`` picks by their batch."""

    def __init__(self, executor: NativeExecutor, wanted: Callable[[Batch], bool]) -> None:
        self._executor = executor
        self._wanted = wanted
        self.vocab_size = executor.vocab_size
        self.num_pages, self.page_bytes = executor.num_pages, executor.page_bytes
        self.resumption = executor.resumption
        self.team, self.approximations = executor.team, executor.approximations
        self.noting = False  # the last step is one of those
        self.steps = Steps()
        executor.profiled()  # what was before is not ours

    def forward(self, batch: Batch) -> None:
        self.noting = self._wanted(batch)
        self._executor.profile(self.noting)
        began = time.perf_counter()
        self._executor.forward(batch)
        if self.noting:
            self.steps.seconds += time.perf_counter() - began
            self.steps.starts.append(batch.starts)
            self.steps.counts.append(batch.counts)

    def logits(self, rows: Int32) -> Float32:
        began = time.perf_counter()
        logits = self._executor.logits(rows)
        if self.noting:
            self.steps.seconds += time.perf_counter() - began
            self.steps.head_rows.append(len(rows))
        return logits

    def copy_pages(self, sources: Int32, targets: Int32) -> None:
        self._executor.copy_pages(sources, targets)

    def replace_page(self, old: int, page: int) -> None:
        self._executor.replace_page(old, page)

    def move_tokens(self, moves: Int32) -> None:
        self._executor.move_tokens(moves)

    def set_adapter(self, slot: int, adapter: Any) -> None:
        self._executor.set_adapter(slot, adapter)

    def read_page(self, page: int) -> bytes:
        return self._executor.read_page(page)

    def write_page(self, page: int, content: bytes) -> None:
        self._executor.write_page(page, content)

    def totals(self) -> list[KindTotal]:
        """One entry a kind of operator, in the plan's order, over all steps noted so far; then it begins anew."""
        self._executor.profile(False)
        sizes = self._executor.plan.meta["sizes"]
        totals = sum_up(
            operator_costs(self._executor.plan),
            self._executor.profiled(),
            self.steps,
            Sizes(
                sizes["query_heads"],
                sizes["kv_heads"],
                sizes["head_size"],
                layer_formats(self._executor.kv_format, sizes["layers"]),
            ),
        )
        self.steps = Steps()
        return totals


def decodes(batch: Batch) -> bool:
    """Whether every sequence of a step runs one token."""
    return int(batch.counts.max()) == 1


def sum_up(
    costs: Iterable[OperatorCost], times: Iterable[tuple[int, int, int, float]], steps: Steps, sizes: Sizes
) -> list[KindTotal]:
    """Joins what operators cost with how long they took. ``times``: (section, index, calls, seconds)."""
    taken = {(section, index): (calls, seconds) for section, index, calls, seconds in times}
    head_rows, rows = sum(steps.head_rows), steps.rows
    keys: dict[int, tuple[int, int]] = {}
    totals: dict[str, KindTotal] = {}
    for cost in costs:
        total = totals.setdefault(cost.kind, KindTotal(cost.kind))
        calls, seconds = taken.get((cost.section, cost.index), (0, 0.0))
        here = head_rows if cost.section == 1 else rows
        total.operators += 1
        total.calls += calls
        total.seconds += seconds
        total.weight_bytes += cost.weight_bytes * calls + cost.row_bytes * here
        if cost.integer:
            total.integer_macs += cost.macs * here
        else:
            total.float_macs += cost.macs * here
        if cost.kind == "attention":
            read, pairs = keys.setdefault(cost.window, steps.keys(cost.window))
            total.kv_bytes += read * sizes.kv_bytes(cost.layer)
            total.float_macs += pairs * sizes.macs
    return list(totals.values())
