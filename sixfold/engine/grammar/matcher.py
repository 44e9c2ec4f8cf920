"""Where one sequence is in its grammar.

Owns: llguidance's matcher and the tokens that the grammar forces. Must not know: how grammars are compiled, the step.

When a grammar allows one text only, its tokens are those that the tokenizer makes of it, one after the other: first
they are the only ones allowed (the mask has one bit), and with jump-ahead they are appended at once. Both give the same
tokens, because both follow the same list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sixfold.errors import InvalidRequestError

if TYPE_CHECKING:
    from sixfold.engine.grammar.compiler import Grammar, Grammars


@dataclass(frozen=True)
class Ends:
    """The ids that end a sequence, when they are to wait: others are taken as long as the grammar allows any."""

    unwanted: frozenset[int] = frozenset()  # always (ignore_eos)
    early: frozenset[int] = frozenset()  # before min_tokens
    min_tokens: int = 0


class GrammarMatcher:
    """A :class:`~sixfold.engine.constraint.TokenConstraint`. ``jumps``: whether forced tokens may be taken at once."""

    __slots__ = (
        "_ends", "_forced", "_grammar", "_grammars", "_prototype", "_raw", "_recovered", "_taken", "complete", "error",
        "jumps",
    )  # fmt: skip

    def __init__(self, grammar: Grammar, ends: Ends, grammars: Grammars, *, jumps: bool = True) -> None:
        self._grammar = grammar
        self._grammars = grammars
        self._ends = ends
        self._prototype: Any = None  # what _raw is a copy of
        self._raw: Any = None  # made when it is needed: a queue of requests holds none
        self._recovered = False
        self._taken: list[int] = []
        self._forced: deque[int] = deque()  # known to come, not taken yet
        self.complete = False
        self.error: InvalidRequestError | None = None
        self.jumps = jumps

    @property
    def raw(self) -> Any:
        """llguidance's matcher, after the tokens taken so far."""
        if self._raw is None:
            self._prototype = self._grammar.prototype
            self._raw = self._prototype.deep_copy()
            self._look_ahead()
        return self._raw

    @property
    def forced(self) -> int | None:
        return self._forced[0] if self._forced and self.jumps and self._grammars.jump_ahead else None

    def accept(self, token_id: int) -> None:
        raw = self.raw
        self._taken.append(token_id)
        if not raw.consume_token(token_id) and not self.recover():
            raise self.error or AssertionError("a matcher that failed has an error")
        if self._forced:
            expected = self._forced.popleft()
            assert expected == token_id, "the mask left one token only"
        if not self._forced:
            self._look_ahead()
        self.complete = bool(self._raw.is_stopped())

    def recover(self) -> bool:
        """After an error of llguidance: all taken tokens again, on a copy of a newer prototype. Once a sequence, since
        the step waits while that is compiled. False if that fails too; then ``error`` says why."""
        if not self._recovered:
            self._recovered = True
            self._prototype = self._grammars.fresh(self._grammar, self._prototype)
            self._raw = self._prototype.deep_copy()
            if self._raw.consume_tokens(self._taken):
                return True
        self._give_up()
        return False

    def fill(self, row: NDArray[np.uint32]) -> None:
        """Writes what may come next, a bit an id; nothing if it can not go on."""
        raw = self.raw
        if self._forced:
            row.fill(0)
            _set(row, self._forced[0])
            return
        raw.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if raw.is_error() and self.recover():
            self._raw.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._raw.is_error():
            self._give_up()
            row.fill(0)
            return
        self._delay_ends(row)

    def _delay_ends(self, row: NDArray[np.uint32]) -> None:
        """Takes the ends out of a mask while they are to wait."""
        ends = self._ends
        waiting = ends.unwanted | ends.early if len(self._taken) < ends.min_tokens else ends.unwanted
        if waiting:
            whole = row.copy()
            _clear(row, waiting)
            if not row.any():
                row[:] = whole

    def _look_ahead(self) -> None:
        self._forced.extend(self._raw.compute_ff_tokens())

    def _give_up(self) -> None:
        detail = str(self._raw.get_error()).partition("\n")[0][:300]
        self.error = InvalidRequestError(
            "The grammar can not be followed any further", cause=detail, remedy="Simplify the grammar",
            param="structured_outputs",
        )  # fmt: skip


def _set(row: NDArray[np.uint32], token_id: int) -> None:
    row[token_id >> 5] |= np.uint32(1 << (token_id & 31))


def _clear(row: NDArray[np.uint32], ids: Iterable[int]) -> None:
    for token_id in ids:
        if token_id >> 5 < len(row):
            row[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
