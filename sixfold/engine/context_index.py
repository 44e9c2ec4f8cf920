"""Finds what a prompt has in common with cached sequences, wherever it stands in either.

Owns: anchors into the prefix cache's entries. Must not know: pages' owners, what is done with what is found.

An anchor is a window of 16 tokens whose hash ends in two zero bits (content-defined, so that it is one in every text
that the window stands in; Manber 1994). The index says in which entries, and at which slot, such windows end. What is
found at an anchor is compared token by token and extended both ways to the longest common run:

    donor   ...| a b c d e f g | x ...      entries of the prefix tree, backwards by their parents, forwards by children
    prompt   y | a b c d e f g | z ...
                     ^ anchor

It owns no pages and keeps nobody alive: an entry that has gone is not found any more. Each root (model, format, salt)
has an index of its own. It catches up with the tree when it is asked, so it costs nothing before it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sixfold.engine.prefix_key import PrefixRoot, pack
from sixfold.engine.prefix_tree import PAGE_BYTES, Entry, PrefixTree
from sixfold.runtime.batch import PAGE_SIZE, Int32

WINDOW = 16  # tokens; not more than a page, so that an entry and its parent hold every window that ends in it
ZEROS = np.uint64(3)  # bits of a hash that are zero at an anchor: one window in four
CANDIDATES = 4  # places kept for an anchor, the newest ones
COMPARED = 512  # places that are looked at for one prompt: bounds what texts that nearly agree can cost
SLACK = 1024  # anchors of entries that have gone that are let be

Place = tuple[Entry, int]  # a window ends at this slot of the entry's page


class Run(NamedTuple):
    """Positions [begin, end) of a prompt, whose tokens stand at ``source`` and after it in a cached sequence."""

    begin: int
    end: int
    source: int
    entries: tuple[Entry, ...]  # of that sequence, from the page of ``source`` to that of the last token

    @property
    def length(self) -> int:
        return self.end - self.begin


class ContextIndex:
    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._places: dict[PrefixRoot, dict[int, list[Place]]] = {}
        self._count = 0  # places
        # Drawn anew in every process, so that nobody can make texts whose hashes are the same.
        self._factors = np.random.default_rng().integers(1, 2**63, WINDOW, np.uint64) | np.uint64(1)

    def __len__(self) -> int:
        return self._count

    def runs(self, root: PrefixRoot, token_ids: List[int], begin: int, end: int, least: int) -> list[Run]:
        """The longest runs of at least ``least`` tokens within [begin, end), in order; they do not overlap."""
        self._catch_up()
        places = self._places.get(root)
        if places is None or end - begin < least:
            return []
        tokens = np.array(token_ids[:end], np.int32)
        search = _Search(self._tree, tokens)
        runs: list[Run] = []
        compared = 0
        for last, hash in self._anchors(tokens[begin:]):
            start = runs[-1].end if runs else begin
            if begin + last - WINDOW + 1 < start:
                continue
            alive = [place for place in places.get(hash, ()) if place[0] in self._tree]
            found = [run for place in alive if (run := search.run(place, begin + last, start)) is not None]
            best = max(found, key=lambda run: run.length, default=None)
            if best is not None and best.length >= least:
                runs.append(best)
            compared += len(alive)
            if compared >= COMPARED:
                break
        return runs

    def _anchors(self, tokens: Int32) -> Iterator[tuple[int, int]]:
        """(where a window ends, its hash)."""
        if len(tokens) >= WINDOW:
            hashes = self._hashes(np.lib.stride_tricks.sliding_window_view(tokens, WINDOW))
            for at in np.flatnonzero((hashes & ZEROS) == 0).tolist():
                yield at + WINDOW - 1, int(hashes[at])

    def _hashes(self, windows: Int32) -> npt.NDArray[np.uint64]:
        """Of windows [..., 16]."""
        mixed = (windows.astype(np.uint64) + np.uint64(1)) * self._factors
        total: npt.NDArray[np.uint64] = mixed.sum(axis=-1, dtype=np.uint64)
        total ^= total >> np.uint64(32)
        total *= np.uint64(0x9E3779B97F4A7C15)
        total >>= np.uint64(16)
        return total

    def _catch_up(self) -> None:
        """Takes in the entries that are newer than the newest one that was."""
        new: list[Entry] = []
        for entry in self._tree.newest():
            if entry.indexed:
                break
            entry.indexed = True
            if len(entry.tokens) == PAGE_BYTES:
                new.append(entry)
        if new:
            new.reverse()
            self._add(new)
        if self._count > 2 * CANDIDATES * len(self._tree) + SLACK:
            self._sweep()

    def _add(self, entries: list[Entry]) -> None:
        joined = b"".join(_before(entry) + entry.tokens for entry in entries)
        tokens = np.frombuffer(joined, np.int32).reshape(len(entries), WINDOW - 1 + PAGE_SIZE)
        hashes = self._hashes(np.lib.stride_tricks.sliding_window_view(tokens, WINDOW, axis=1))
        for at, slot in zip(*(found.tolist() for found in np.nonzero((hashes & ZEROS) == 0)), strict=True):
            entry = entries[at]
            if entry.depth > 1 or slot >= WINDOW - 1:  # nothing stands before the first page
                places = self._places.setdefault(entry.root, {}).setdefault(int(hashes[at, slot]), [])
                places.insert(0, (entry, slot))
                self._count += 1 - len(places[CANDIDATES:])
                del places[CANDIDATES:]

    def _sweep(self) -> None:
        """Forgets the places in entries that have gone."""
        kept: dict[PrefixRoot, dict[int, list[Place]]] = {}
        self._count = 0
        for root, by_hash in self._places.items():
            for hash, places in by_hash.items():
                alive = [place for place in places if place[0] in self._tree]
                if alive:
                    kept.setdefault(root, {})[hash] = alive
                    self._count += len(alive)
        self._places = kept


class _Search:
    """Compares one prompt with cached sequences."""

    def __init__(self, tree: PrefixTree, tokens: Int32) -> None:
        self._tree = tree
        self._tokens = tokens
        self._paths: dict[Entry, tuple[list[Entry], Int32]] = {}  # entries from the beginning, and their tokens

    def run(self, place: Place, last: int, start: int) -> Run | None:
        """The longest run around position ``last`` of the prompt, not before ``start``; None if it is another text."""
        entry, slot = place
        path, donor = self._path(entry)
        at = (entry.depth - 1) * PAGE_SIZE + slot  # in the donor
        back = _common(self._tokens[start : last + 1][::-1], donor[: at + 1][::-1])
        if back < WINDOW:
            return None
        ahead = _common(self._tokens[last + 1 :], donor[at + 1 :])
        begin, end, source = last + 1 - back, last + 1 + ahead, at + 1 - back
        entries = path[source // PAGE_SIZE :]
        if at + 1 + ahead == len(donor):
            end = self._follow(entries, end)
        return Run(begin, end, source, tuple(entries[: -(-(source % PAGE_SIZE + end - begin) // PAGE_SIZE)]))

    def _follow(self, entries: list[Entry], end: int) -> int:
        """Goes on through the children of the last entry: where the run ends."""
        while True:
            wanted = pack(self._tokens[end : end + PAGE_SIZE].tolist())
            found = self._tree.longest(entries[-1], wanted) if wanted else None
            if found is None:
                return end
            entries.append(found[0])
            end += found[1]
            if found[1] < PAGE_SIZE:
                return end

    def _path(self, entry: Entry) -> tuple[list[Entry], Int32]:
        known = self._paths.get(entry)
        if known is None:
            path = [entry]
            while (parent := path[-1].parent) is not None and parent.parent is not None:
                path.append(parent)
            path.reverse()
            known = self._paths[entry] = path, np.frombuffer(b"".join(one.tokens for one in path), np.int32)
        return known


def _before(entry: Entry) -> bytes:
    """The tokens of a window that stand before the entry."""
    parent = entry.parent
    assert parent is not None
    size = PAGE_BYTES // PAGE_SIZE * (WINDOW - 1)
    return parent.tokens[-size:] if parent.tokens else b"\xff" * size


def _common(one: Int32, other: Int32) -> int:
    """How many tokens two sequences have in common from their beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
