"""What a prompt reuses beyond its prefix, and what of that is computed again.

Owns: the choice. Must not know: scheduling, how KV is moved, who asks.

    prompt    | prefix | new | r r R R R R R R R R | new | r R R R R R | new (the question) |
                         ^     ^ run: a donor has it, elsewhere          ^ the last token is always computed
                               r computed again, R moved from the donor's pages

A token's KV depends on all that stands before it, so what is moved is an approximation: its keys stand at the right
positions (they are rotated on), but a donor's other context has left its traces. Most of what is wrong is at the
beginning of a run, where tokens have seen the least of their own text: these are computed again (EPIC, Hu et al. 2024).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as List
from itertools import chain
from typing import NamedTuple

from sixfold.engine.context_index import ContextIndex, Run
from sixfold.engine.kv_cache import TokenMove
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.prefix_tree import Entry, PrefixTree
from sixfold.runtime.batch import PAGE_SIZE
from sixfold.types import ReuseContext

LEAST_RUN = 64  # tokens; what is shorter is computed
LEAST_AGAIN = 16  # tokens of each run that are computed again at least


class Reuse(NamedTuple):
    """Parts of a sequence whose KV is moved from donors' pages."""

    parts: tuple[Run, ...] = ()  # what is moved
    again: int = 0  # tokens that were found, and are computed all the same

    @property
    def tokens(self) -> int:
        """That are moved."""
        return sum(part.length for part in self.parts)

    @property
    def end(self) -> int:
        """Where the last part ends."""
        return self.parts[-1].end if self.parts else 0

    @property
    def intervals(self) -> list[tuple[int, int]]:
        return [(part.begin, part.end) for part in self.parts]

    @property
    def entries(self) -> set[Entry]:
        return set(chain.from_iterable(part.entries for part in self.parts))

    @property
    def pages(self) -> array[int]:
        """That must stay until they are read, each once: the donors', and those before them, since none goes before
        what follows it."""
        held = self.entries
        for part in self.parts:
            before = part.entries[0].parent
            while before is not None and before.parent is not None and before not in held:
                held.add(before)
                before = before.parent
        return array("i", [entry.page for entry in held])

    def moves(self, table: array[int]) -> list[TokenMove]:
        """From the donors' pages to those of a sequence."""
        return [move for part in self.parts for move in _moves(part, table)]


NO_REUSE = Reuse()


class ContextReuse:
    def __init__(self, tree: PrefixTree) -> None:
        self.index = ContextIndex(tree)

    def find(self, ask: ReuseContext | None, root: PrefixRoot, token_ids: List[int], begin: int, end: int) -> Reuse:
        """What can be reused of positions [begin, end)."""
        if ask is None:
            return NO_REUSE
        runs = self.index.runs(root, token_ids, begin, end, LEAST_RUN)
        parts = [part for run in runs if (part := _kept(run, ask.recompute)) is not None]
        found = sum(run.length for run in runs)
        return Reuse(tuple(parts), found - sum(part.length for part in parts))


def _kept(run: Run, recompute: float) -> Run | None:
    """The run without its beginning."""
    again = max(LEAST_AGAIN, int(recompute * run.length))
    if again >= run.length:
        return None
    source = run.source + again
    return Run(run.begin + again, run.end, source, run.entries[source // PAGE_SIZE - run.source // PAGE_SIZE :])


def _moves(part: Run, table: array[int]) -> list[TokenMove]:
    """Piece by piece: no move crosses the end of a page."""
    moves: list[TokenMove] = []
    shift, first = part.begin - part.source, part.source // PAGE_SIZE
    at = part.begin
    while at < part.end:
        source = at - shift
        count = min(PAGE_SIZE - at % PAGE_SIZE, PAGE_SIZE - source % PAGE_SIZE, part.end - at)
        page = part.entries[source // PAGE_SIZE - first].page
        moves.append((page, source % PAGE_SIZE, table[at // PAGE_SIZE], at % PAGE_SIZE, count, shift))
        at += count
    return moves
