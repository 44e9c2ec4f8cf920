"""When an idle conversation is likely to go on, judged by how long others, and it itself, have paused before.

Owns: pauses and conversations. Must not know: pages, tiers, clocks (times are given).

A conversation is known by the last full page of its last turn; a request that has this page among its own goes on with
it. It is due from a little before a tenth of all pauses are over until well after nine tenths are: before, its pages
would only be in the way, and after that it has probably been left. Once it has paused several times itself, its own
pauses count.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MOST_CONVERSATIONS = 1024
MOST_PAUSES = 256
EARLIER, LATER = 0.9, 1.5  # of those two times
OWN_PAUSES = 3  # from so many on, a conversation's own pauses are what counts

T = TypeVar("T")


@dataclass
class Conversation(Generic[T]):
    """``content``: whatever it takes to bring it back."""

    content: T
    ended: float
    pauses: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    foreseen: bool = False  # it was brought back since its last turn


class TurnPrediction(Generic[T]):
    def __init__(self) -> None:
        self._conversations: OrderedDict[bytes, Conversation[T]] = OrderedDict()  # by last page, oldest turn first
        self._pauses: deque[float] = deque(maxlen=MOST_PAUSES)

    def __len__(self) -> int:
        return len(self._conversations)

    def goes_on(self, pages: Iterable[bytes], now: float) -> deque[float]:
        """A request with these pages begins: the pauses of the conversation that it continues, if it is one."""
        for page in pages:
            found = self._conversations.pop(page, None)
            if found is not None:
                pause = now - found.ended
                self._pauses.append(pause)
                found.pauses.append(pause)
                return found.pauses
        return deque(maxlen=8)

    def ended(self, last_page: bytes, content: T, pauses: deque[float], now: float) -> None:
        """A turn is over; ``pauses``: those before it, from :meth:`goes_on`."""
        self._conversations.pop(last_page, None)
        self._conversations[last_page] = Conversation(content, now, pauses)
        while len(self._conversations) > MOST_CONVERSATIONS:
            self._conversations.popitem(last=False)

    @property
    def usual_pause(self) -> float | None:
        """Median; None while too few have been seen."""
        return statistics.median(self._pauses) if len(self._pauses) >= OWN_PAUSES else None

    def due(self, now: float) -> Iterator[Conversation[T]]:
        """Those likely to go on soon and not yet ``foreseen``, which the caller sets; the longest idle first."""
        usual = _span(self._pauses)
        for page, conversation in list(self._conversations.items()):
            own = _span(conversation.pauses)
            if (expected := own or usual) is None:
                continue
            first, last = expected
            if now > conversation.ended + last:
                del self._conversations[page]  # it has probably been left
            elif now >= conversation.ended + first and not conversation.foreseen:
                yield conversation

    def clear(self) -> None:
        self._conversations.clear()


def _span(pauses: Sequence[float]) -> tuple[float, float] | None:
    """(earliest, latest) likely pause; None while too few have been seen."""
    if len(pauses) < OWN_PAUSES:
        return None
    ordered = sorted(pauses)
    return EARLIER * ordered[len(ordered) // 10], LATER * ordered[-1 - len(ordered) // 10]
