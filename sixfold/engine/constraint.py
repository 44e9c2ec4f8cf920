"""What may come next: the interface between whatever constrains a sequence's tokens and the step.

Owns: :class:`TokenConstraint` and the stage that asks all constraints of a step for their masks while the model runs.
Must not know: grammars, how a token is drawn, the scheduler.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor
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


Fill = Callable[[TokenConstraint, NDArray[np.uint32]], None]  # writes a mask into a row


class Masks(NamedTuple):
    """Masks of the rows that are sampled in a step; ``of[i]`` is the mask of row i, -1 if it has none."""

    words: Words | None
    of: list[int]


NO_MASKS = Masks(None, [])


class Pending:
    """Masks under way on another thread, if one helps. Whoever comes first takes the next: so what that thread has not
    begun when the model has run, the waiting thread does itself."""

    def __init__(
        self, stage: MaskStage, tasks: Iterable[tuple[TokenConstraint, NDArray[np.uint32]]], masks: Masks
    ) -> None:
        self._tasks = deque(tasks)
        self._stage = stage
        self._masks = masks
        self._helper = stage.pool.submit(self._work) if stage.ahead else None

    def result(self) -> Masks:
        """Raises what filling a mask raised."""
        began = time.perf_counter()
        self._stage.own += self._work()
        if self._helper is not None and not self._helper.cancel():  # it has begun, so it ends soon
            self._helper.result()
        self._stage.waited += time.perf_counter() - began
        return self._masks

    def drop(self) -> None:
        """The step broke off: nobody writes any more when this returns."""
        self._tasks.clear()
        if self._helper is not None and not self._helper.cancel():
            self._helper.exception()

    def _work(self) -> int:
        """Fills until nothing is left; how many."""
        done = 0
        began = time.perf_counter()
        while True:
            try:
                constraint, row = self._tasks.popleft()  # atomic
            except IndexError:
                self._stage.seconds += time.perf_counter() - began if done else 0.0
                return done
            self._stage.fill(constraint, row)
            done += 1


class NothingPending:
    """No row has a constraint."""

    def result(self) -> Masks:
        return NO_MASKS


NOTHING_PENDING = NothingPending()


class MaskStage:
    """``begin`` before the model runs, ``result`` of what it returns after. One step at a time.

    ``ahead``: another thread fills masks while the model runs. Worth it only if a core is free for it: woken among
    threads that have all cores, it takes one from the model, which costs more than the masks (docs/decoding.md).
    """

    def __init__(self, fill: Fill, vocab_size: int, *, ahead: bool = True) -> None:
        self.ahead = ahead
        self.seconds = 0.0  # spent on masks by both threads
        self.waited = 0.0  # of the step's own time
        self.filled = 0  # masks
        self.own = 0  # of them, by the step's thread
        self.fill = fill
        self._width = (vocab_size + 31) // 32
        self._words = np.empty((0, self._width), np.uint32)
        self._pool: ThreadPoolExecutor | None = None
        self._last: Pending | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "sixfold-masks")
        return self._pool

    def begin(self, constraints: List[TokenConstraint | None]) -> Pending | NothingPending:
        """Of the sequences that get a token in this step, in order."""
        if not any(constraints):
            return NOTHING_PENDING
        if self._last is not None:
            self._last.drop()
        given = [constraint for constraint in constraints if constraint is not None]
        places = iter(range(len(given)))
        of = [-1 if constraint is None else next(places) for constraint in constraints]
        if len(given) > len(self._words):
            self._words = np.empty((2 * len(given), self._width), np.uint32)
        words = self._words[: len(given)]
        self.filled += len(given)
        self._last = Pending(self, zip(given, words, strict=True), Masks(words, of))
        return self._last

    def reset_counts(self) -> None:
        self.seconds = self.waited = 0.0
        self.filled = self.own = 0

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
