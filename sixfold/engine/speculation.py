"""Speculation: how many tokens are drafted for which sequence, so that a step may yield several of each.

Owns: the interface of whoever drafts, and whether a draft pays. Must not know: where drafts come from, how they are
run, or how tokens are drawn.

A draft is run after a sequence's last token. Each of its positions is drawn as it would be without a draft, and counts
as long as what was drawn is what was drafted: so tokens, and log-probabilities, are those of the plain path. (The rule
of Leviathan et al. 2023 keeps only the distribution; here draws are keyed by position, so that the tokens stay too.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as List
from typing import Protocol

from sixfold.engine.prompt_lookup import Draft, PromptLookup
from sixfold.engine.sequence import Sequence
from sixfold.engine.step_cost import StepCost

LONGEST_DRAFT = 16  # tokens
DRAFT_ROWS = 64  # tokens drafted in one step at most: bounds the logits that are kept at once
LONG_MATCHES = (6, 12)  # tokens: where matches begin to be of another class
PROBE_EVERY = 32  # tokens, at first: a draft is tried all the same, to see whether it pays now
RAREST_PROBE = 512
DOUBT = 1.15  # a drafted token must bring so much more than it costs

Drafts = Mapping[Sequence, tuple[int, ...]]


class Drafter(Protocol):
    """Guesses what comes next: prompt lookup here; a draft model or an early exit of the model would be others."""

    def propose(self, sequence: Sequence, count: int, /) -> Draft:
        """At most ``count`` tokens to follow ``sequence.token_ids``, and how sure they are."""


class Row(Protocol):
    """What is read of a scheduled row."""

    @property
    def count(self) -> int: ...
    @property
    def samples(self) -> bool: ...
    @property
    def run(self) -> int: ...


class Acceptance:
    """How often drafted tokens came true, the newer ones counting more."""

    __slots__ = ("_right", "_tried")

    def __init__(self, share: float, weight: float) -> None:
        self._right = share * weight
        self._tried = weight

    @property
    def share(self) -> float:
        return self._right / self._tried

    def add(self, drafted: int, accepted: int, keep: float) -> None:
        seen = accepted + (accepted < drafted)  # those after a wrong one were not tried
        self._right = self._right * keep + accepted
        self._tried = self._tried * keep + seen


class _History:
    """What is known of one sequence."""

    __slots__ = ("by_match", "match", "pause", "wait")

    def __init__(self, all_by_match: List[Acceptance]) -> None:
        self.by_match = [Acceptance(known.share, 2.0) for known in all_by_match]
        self.match = 0  # the class of the draft that runs
        self.pause = PROBE_EVERY
        self.wait = 0  # tokens before the next probe


class NoSpeculation:
    """Nobody drafts."""

    on = False
    drafted = accepted = drafts = 0

    def propose(self, running: List[Sequence], most: int) -> Drafts:
        return {}

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        raise AssertionError("nothing was drafted")

    def stepped(self, rows: Iterable[Row], seconds: float) -> None:
        pass


class Speculation:
    """``propose`` before a step, ``verified`` for each draft that ran, ``stepped`` after it."""

    on = True

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._all = [Acceptance(share, 4.0) for share in (0.5, 0.7, 0.85)]  # by class of match; a new one begins here
        self._cost = StepCost()
        self.drafted = self.accepted = 0  # tokens
        self.drafts = 0

    def propose(self, running: List[Sequence], most: int) -> Drafts:
        """Drafts for those of the running sequences for whom they pay, of at most ``most`` tokens together."""
        worth = DOUBT * self._cost.share_of_a_row(len(running))
        found: dict[Sequence, tuple[int, ...]] = {}
        left = min(most, DRAFT_ROWS)
        if worth >= 1.0:  # not even sure ones
            return found
        for sequence in running:
            room = min(sequence.draft_room, LONGEST_DRAFT, left)
            if room > 0 and (tokens := self._draft(sequence, room, worth)):
                found[sequence] = tokens
                left -= len(tokens)
        return found

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        history: _History = sequence.speculation_state
        history.by_match[history.match].add(drafted, accepted, 0.85)
        self._all[history.match].add(drafted, accepted, 0.98)
        if accepted == drafted:
            history.pause = PROBE_EVERY
        self.drafts += 1
        self.drafted += drafted
        self.accepted += accepted

    def stepped(self, rows: Iterable[Row], seconds: float) -> None:
        """A step of these rows took so long."""
        run = 0
        for row in rows:
            if row.count > 1 or not row.samples:
                return  # a prompt is among them
            run += row.run
        self._cost.add(run, seconds)

    def _draft(self, sequence: Sequence, room: int, worth: float) -> tuple[int, ...]:
        history = sequence.speculation_state
        if history is None:
            history = sequence.speculation_state = _History(self._all)
        draft = self._drafter.propose(sequence, room)
        if not draft.tokens:
            return ()
        history.match = sum(draft.match >= long for long in LONG_MATCHES)
        count = _worthwhile(history.by_match[history.match].share, worth, len(draft.tokens))
        if count == 0:
            count = self._probe(history)
        return draft.tokens[:count]

    def _probe(self, history: _History) -> int:
        """Whether a draft that does not seem to pay is run all the same: each time less often."""
        history.wait -= 1
        if history.wait > 0:
            return 0
        history.wait = history.pause
        history.pause = min(2 * history.pause, RAREST_PROBE)
        return 1


def _worthwhile(share: float, worth: float, most: int) -> int:
    """How many drafted tokens are likely enough, each with all before it, to be worth their rows."""
    likely = share
    count = 0
    while count < most and likely > worth:
        count += 1
        likely *= share
    return count


DRAFTERS = {"prompt-lookup": PromptLookup}


def speculation(name: str) -> Speculation | NoSpeculation:
    """By the name of the drafter; "off": there is none."""
    return NoSpeculation() if name == "off" else Speculation(DRAFTERS[name]())
