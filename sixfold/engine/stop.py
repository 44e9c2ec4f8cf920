"""When a sequence ends: stop strings in its text, stop ids, the token limit.

Owns: the search for stop strings in text that arrives in pieces. Must not know: the scheduler, or who reads the text.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

from sixfold.engine.sequence import Sequence
from sixfold.types import FinishReason


@dataclass(frozen=True, slots=True)
class Stop:
    reason: FinishReason
    detail: int | str | None = None  # the stop id or stop string; None for end of sequence and for a limit
    by_token: bool = False  # the newest token says so, and is no text


LENGTH = Stop("length")
COMPLETE = Stop("stop")


def token_stop(sequence: Sequence) -> Stop | None:
    """Whether the sequence's newest token ends it: by its id, because nothing may follow, or at ``max_tokens``."""
    request = sequence.request
    newest = sequence.token_ids[-1]
    generated = sequence.num_generated
    if newest in request.stop_ids:  # not sampled before min_tokens: see Sequence.forbidden_ids
        return Stop("stop", newest if newest in request.params.stop_token_ids else None, by_token=True)
    if sequence.constraint is not None and sequence.constraint.complete:
        return COMPLETE
    return LENGTH if generated >= request.max_tokens else None


class StopStrings:
    """Finds the first stop string in text that arrives in pieces, and holds back what may become one.

    The match that ends first counts, the longest if several end there, so the result does not depend on how the text
    is cut into pieces.

    held back:      "...the en|" waits while "end" is a stop string; it is let go when " to" instead of "d" follows
    """

    def __init__(self, stops: List[str], include: bool) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._include = include
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """(text that is safe to show, the stop string that matched or None). After a match there is no more."""
        if not self._stops:
            return text, None
        text = self._held + text
        if (match := self._first_match(text)) is not None:
            self._held = ""
            start, stop = match
            return text[: start + len(stop) if self._include else start], stop
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, text: str) -> tuple[int, str] | None:
        best: tuple[int, str] | None = None
        for stop in self._stops:  # longest first: of those that end together it stays
            start = text.find(stop)
            if start >= 0 and (best is None or start + len(stop) < best[0] + len(best[1])):
                best = (start, stop)
        return best

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop string begins with."""
        longest = min(len(text), len(self._stops[0]) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
