"""What may come next: the interface between whatever constrains a sequence's tokens and the step.

Owns: :class:`TokenConstraint` and the stage that asks all constraints of a step for their masks while the model runs.
Must not know: grammars, how a token is drawn, the scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as List
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sixfold.errors import SixfoldError

Words = NDArray[np.uint32]  # [rows, ceil(vocabulary / 32)], a bit an id: set if it is allowed


class TokenConstraint(Protocol):
    """The state of one sequence; it depends on the tokens it was told of and on nothing else."""

    @property
    def complete(self) -> bool:
        """Nothing may follow: the sequence ends here."""

    @property
    def error(self) -> SixfoldError | None:
        """Why it can not go on, if it can not."""

    @property
    def forced(self) -> int | None:
        """The only token that may come next, if that is known without the model and may be taken at once."""

    def accept(self, token_id: int, /) -> None:
        """A token has been appended, an allowed one. Raises what became ``error``."""


Fill = Callable[[List[TokenConstraint], Words], None]  # writes the mask of each into its row


class Masks(NamedTuple):
    """Masks of the rows that are sampled in a step; ``of[i]`` is the mask of row i, -1 if it has none."""

    words: Words | None
    of: list[int]


NO_MASKS = Masks(None, [])


class Pending(NamedTuple):
    """Masks under way on another thread."""

    future: Future[None] | None
    masks: Masks

    def result(self) -> Masks:
        if self.future is not None:
            self.future.result()
        return self.masks


class MaskStage:
    """``begin`` before the model runs, ``result`` of what it returns after. One step at a time.

    ``fill`` works on another thread, so it costs a step only what it takes of the processor, and nothing of its time if
    a core is free. Its result has to be waited for before the next ``begin``.
    """

    def __init__(self, fill: Fill, vocab_size: int) -> None:
        self.seconds = 0.0  # spent by fill, in all
        self.filled = 0  # masks
        self._fill = fill
        self._width = (vocab_size + 31) // 32
        self._words = np.empty((0, self._width), np.uint32)
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def begin(self, constraints: List[TokenConstraint | None]) -> Pending:
        """Of the sequences that get a token in this step, in order."""
        if not any(constraints):
            return Pending(None, NO_MASKS)
        if self._last is not None:  # of a step that broke off
            self._last.exception()
        given = [constraint for constraint in constraints if constraint is not None]
        places = iter(range(len(given)))
        of = [-1 if constraint is None else next(places) for constraint in constraints]
        if len(given) > len(self._words):
            self._words = np.empty((2 * len(given), self._width), np.uint32)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "sixfold-masks")
        words = self._words[: len(given)]
        self._last = self._pool.submit(self._timed, given, words)
        return Pending(self._last, Masks(words, of))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _timed(self, constraints: List[TokenConstraint], words: Words) -> None:
        began = time.perf_counter()
        self._fill(constraints, words)
        self.seconds += time.perf_counter() - began
        self.filled += len(constraints)
