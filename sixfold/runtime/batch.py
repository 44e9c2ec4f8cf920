"""What one step hands to an executor: token counts and block tables, as flat arrays.

Owns: the batch and the executor's interface. Must not know: requests, sampling, or which executor runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

PAGE_SIZE = 16  # tokens in one KV page

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """One step over S sequences and T tokens; prefill, decode and recomputation differ only in ``counts``.

    tokens  | s0 s0 s0 | s1 | s2 s2 |         T = 6
    starts  | 32       | 7  | 0     |         position of each sequence's first token in this step
    counts  | 3        | 1  | 2     |
    pages   | 4 9 1    | 2  | 7     |         the KV pages of each sequence, in order
    page_offsets  0      3    4       5       S + 1
    adapters | -1       | 2  | -1    |         the slot of each sequence's adapter, -1: none; or empty
    """

    tokens: Int32
    starts: Int32
    counts: Int32
    pages: Int32
    page_offsets: Int32
    adapters: Int32 = field(default_factory=lambda: NO_ADAPTERS)


NO_ADAPTERS: Int32 = np.empty(0, np.int32)


@dataclass(frozen=True)
class Resumption:
    """How a sequence may begin with KV that is there: at a multiple of ``block`` tokens; the first ``again`` ones are
    run by itself all the same."""

    block: int = 1
    again: int = 0

    def at_most(self, tokens: int) -> int:
        """Of so many known tokens, those that a sequence may begin with."""
        return tokens // self.block * self.block


ANYWHERE = Resumption()


class Executor(Protocol):
    """Runs a model over paged KV memory. Not thread-safe: one owner calls it."""

    vocab_size: int
    num_pages: int
    approximations: tuple[str, ...]  # options that trade exactness, by name: for responses to say so
    team: Any  # the native executor whose threads the sampler may use between calls; None: there is none
    page_bytes: int  # of KV memory
    resumption: Resumption

    def forward(self, batch: Batch) -> None:
        """Writes the KV of every token and keeps the hidden rows until the next call."""

    def logits(self, rows: Int32) -> Float32:
        """Indices into ``batch.tokens`` [R] -> logits [R, vocab], valid until the next call."""

    def copy_pages(self, sources: Int32, targets: Int32) -> None:
        """Copies page ``sources[i]`` to ``targets[i]`` in that order: a later copy may reuse an earlier source."""

    def replace_page(self, old: int, page: int) -> None:
        """A sequence that has had page ``old`` goes on with another one of the same tokens."""

    def move_tokens(self, moves: Int32) -> None:
        """Rows [M, 6] of (source page, slot, target page, slot, count, shift), in that order: the KV of ``count``
        tokens goes to another page, with its keys rotated on by ``shift`` positions."""

    def set_adapter(self, slot: int, adapter: Any) -> None:
        """Puts a native adapter into a slot of :attr:`Batch.adapters`, between steps; None empties it."""

    def read_page(self, page: int) -> bytes:
        """The content of a page, ``page_bytes`` long."""

    def write_page(self, page: int, content: bytes) -> None:
        """Puts back what :meth:`read_page` gave. Raises ValueError for another length."""
