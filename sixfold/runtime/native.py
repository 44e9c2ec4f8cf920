"""The C++ executor behind the Executor interface.

Owns: its logits buffer and the translation of its errors. Must not know: requests or sampling.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from sixfold import _native
from sixfold.compile.adapter import PackedAdapter
from sixfold.compile.plan import Plan
from sixfold.errors import PlanError
from sixfold.runtime.batch import ANYWHERE, Batch, Float32, Int32, Resumption
from sixfold.runtime.kv_format import BLOCK_TOKENS, EXACT, FIRST_TOKENS, check_usable, layer_formats


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NativeExecutor:
    """Runs a plan on the CPU. ``max_tokens`` a step; ``num_pages`` of 16 tokens in ``kv_format`` (see kv_format.py).

    With int4 layers, ``key_centres`` [layers, kv_heads, head_size] make their keys more exact (csrc/kv_centre.hpp); at
    most ``max_sequences`` may be under way (csrc/kv_exact.hpp).

    Raises :class:`PlanError` when the plan is invalid or the instruction set is not there.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        num_pages: int,
        max_tokens: int,
        threads: int | None = None,
        isa: str = "auto",
        kv_format: str = EXACT,
        key_centres: Float32 | None = None,
        max_sequences: int = 64,
    ) -> None:
        formats = layer_formats(kv_format, int(plan.meta["sizes"]["layers"]))
        check_usable(formats, int(plan.meta["sizes"]["head_size"]))
        centres = np.empty(0, np.float32) if key_centres is None else np.ascontiguousarray(key_centres, np.float32)
        try:
            self._executor = _native.Executor(
                plan.data, isa, threads or usable_cores(), max_tokens, num_pages, formats, centres.reshape(-1),
                max_sequences,
            )  # fmt: skip
        except ValueError as error:
            raise PlanError("The model can not be run here", cause=str(error), remedy="Try isa=auto") from None
        self._centres_digest = hashlib.sha256(centres.tobytes()).hexdigest() if len(centres) else ""
        self.plan = plan
        self.team = self._executor
        self.vocab_size = self._executor.vocab_size
        self.num_pages = num_pages
        self.page_bytes = self._executor.page_bytes
        self.kv_format = kv_format
        self.resumption = Resumption(BLOCK_TOKENS, FIRST_TOKENS) if "int4" in formats else ANYWHERE
        self.approximations: tuple[str, ...] = () if set(formats) == {EXACT} else (f"kv_{kv_format}",)
        self.threads = self._executor.threads
        self.isa = self._executor.isa
        self._logits = np.empty((0, self._executor.logits_width), np.float32)

    def forward(self, batch: Batch) -> None:
        b = batch
        self._executor.forward(b.tokens, b.starts, b.counts, b.pages, b.page_offsets, b.adapters)

    def logits(self, rows: Int32) -> Float32:
        if len(rows) > len(self._logits):
            self._logits = np.empty((len(rows), self._executor.logits_width), np.float32)
        self._executor.logits(rows, self._logits)
        return self._logits[: len(rows), : self.vocab_size]

    def copy_pages(self, sources: Int32, targets: Int32) -> None:
        self._executor.copy_pages(sources, targets)

    def replace_page(self, old: int, page: int) -> None:
        self._executor.replace_page(old, page)

    def move_tokens(self, moves: Int32) -> None:
        self._executor.move_tokens(moves)

    def set_adapter(self, slot: int, adapter: _native.Adapter | None) -> None:
        """Raises ValueError for an adapter that does not fit the plan."""
        self._executor.set_adapter(slot, adapter)

    def read_page(self, page: int) -> bytes:
        return self._executor.read_page(page)

    def write_page(self, page: int, content: bytes) -> None:
        self._executor.write_page(page, content)

    @property
    def numerics(self) -> str:
        """What the bits of KV depend on beside the model's file: instruction set, this very build, compiled plan."""
        return f"{self.isa} {_build_digest()} {self.plan.content_digest} {self._centres_digest}".rstrip()

    def key_means(self, pages: Int32, tokens: int) -> Float32:
        """Mean keys [layers, kv_heads, head_size] at positions [1, tokens) of a sequence, without rope; f16 pages."""
        sizes = self.plan.meta["sizes"]
        means = np.empty((sizes["layers"], sizes["kv_heads"], sizes["head_size"]), np.float32)
        self._executor.key_means(pages, tokens, means.reshape(-1))
        return means

    def profile(self, on: bool) -> None:
        """Times every operator from now on, or no longer."""
        self._executor.profile(on)

    def profiled(self) -> list[tuple[int, int, int, float]]:
        """(section, operator, calls, seconds) since the last call; section 0 is the body, 1 the head."""
        return self._executor.profiled()


def native_adapter(packed: PackedAdapter) -> _native.Adapter:
    """An adapter in memory, for :meth:`NativeExecutor.set_adapter`. Any thread may make one."""
    return _native.Adapter(packed.values, packed.data, packed.scales, packed.records)


@functools.cache
def _build_digest() -> str:
    return hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()
