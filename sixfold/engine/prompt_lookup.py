"""Prompt lookup: what followed the last time the newest tokens stood in the same text is what may follow now.

Owns: the index of one sequence's tokens, and the longest earlier match of their end. Must not know: whether a draft is
worth its cost, or how it is verified. (Saxena 2023, "Prompt Lookup Decoding"; the chains of equal beginnings are those
of LZ77 compressors.)

    tokens   ... the quick brown fox ........ the quick brown
                 ^---- match ----^            ^--- newest ---^
                                 | fox ...    is the draft
"""

from __future__ import annotations

from collections.abc import Sequence as List
from typing import NamedTuple

from sixfold.engine.sequence import Sequence

SHORTEST = 3  # tokens of a match; shorter ones are seldom right
LONGEST = 64  # longer matches are not told apart when one is searched
TRIED = 16  # earlier places that are compared in a search, the newest first


class Draft(NamedTuple):
    tokens: tuple[int, ...]
    match: int  # how many tokens before it are known to stand before its source too


NO_DRAFT = Draft((), 0)


class TokenIndex:
    """Finds the longest earlier match of the end of a growing text. A token costs a dictionary's entry and a number.

    While the text goes on as the match does, the match just grows; it is searched for anew only when it breaks. A match
    that grew is still the longest: one that is longer would have been longer before.
    """

    def __init__(self, tried: int = TRIED) -> None:
        self._tried = tried
        self._newest: dict[tuple[int, ...], int] = {}  # SHORTEST tokens -> where the newest of them ends
        self._before: list[int] = []  # by such an end: the end of the same tokens before it, -1: none
        self._known = 0  # tokens that are indexed
        self._source = -1  # where the match goes on; -1: there is none
        self.match = 0  # its length

    def follow(self, tokens: List[int]) -> int:
        """Takes in what ``tokens`` has grown by; where the text goes on that ends like it, -1 if nowhere."""
        while self._known < len(tokens):
            self._take(tokens, self._known)
            self._known += 1
        if self._source < 0:
            self._search(tokens)
        return self._source

    def _take(self, tokens: List[int], at: int) -> None:
        if self._source >= 0 and tokens[self._source] == tokens[at]:
            self._source += 1
            self.match += 1
        else:
            self._source, self.match = -1, 0
        end = at + 1
        self._before.append(-1)
        if end >= SHORTEST:
            key = tuple(tokens[end - SHORTEST : end])
            self._before[at] = self._newest.get(key, -1)
            self._newest[key] = end

    def _search(self, tokens: List[int]) -> None:
        length = len(tokens)
        if length < SHORTEST:
            return
        place = self._before[length - 1]
        for _ in range(self._tried):
            if place < 0:
                return
            match = _common_end(tokens, place, length)
            if match > self.match:
                self._source, self.match = place, match
            place = self._before[place - 1]


def _common_end(tokens: List[int], place: int, end: int) -> int:
    """How many tokens before ``place`` and ``end`` are the same, which ``SHORTEST`` are; at most LONGEST are seen."""
    match = SHORTEST
    limit = min(LONGEST, place)
    while match < limit and tokens[place - match - 1] == tokens[end - match - 1]:
        match += 1
    return match


class PromptLookup:
    """A drafter. What it knows of a sequence lies with the sequence, and goes with it."""

    def propose(self, sequence: Sequence, count: int, /) -> Draft:
        index = sequence.drafter_state
        if index is None:
            index = sequence.drafter_state = TokenIndex()
        tokens = sequence.token_ids
        source = index.follow(tokens)
        if source < 0:
            return NO_DRAFT
        drafted = tokens[source : source + count]
        while len(drafted) < count:  # the match runs into what it is to go on: a repeated piece, so it repeats
            drafted.append(drafted[len(drafted) - (len(tokens) - source)])
        return Draft(tuple(drafted), index.match)
