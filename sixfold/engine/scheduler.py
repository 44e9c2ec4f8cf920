"""Decides how many tokens of which sequence each step runs, and who gets pages.

Owns: the waiting and running sequences, their pages and ``num_computed``. Must not know: the model, sampling, text.

There are no phases: a step is {sequence: number of tokens}. A sequence has ``len(token_ids) - num_computed`` tokens
left to run; when a step reaches the end of ``token_ids``, a token is sampled. Prefill, its chunks, decoding, a fork
for n > 1 and recomputation after a preemption are all that one number.

Two promises keep everybody going: each running sequence gets at least one token in every step (so a long prefill
never stalls decoding), and the most urgent one never loses its pages (so it finishes, then the next).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import NamedTuple

from sixfold.engine.kv_cache import KVCache, PageCopy, pages_for
from sixfold.engine.sequence import PROMPT_SCORE_ROWS, Sequence, Status


class ScheduledRow(NamedTuple):
    """Run ``sequence.token_ids[start : start + count]``. (A tuple is made in half the time of a frozen dataclass.)"""

    sequence: Sequence
    start: int
    count: int  # type: ignore[assignment]  # tuple's method of this name is not missed
    samples: bool  # the last token is the sequence's last: its logits choose the next token


class Schedule(NamedTuple):
    rows: tuple[ScheduledRow, ...]
    copies: tuple[PageCopy, ...]  # pages to copy before the step, in order


class Scheduler:
    def __init__(self, cache: KVCache, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.cache = cache
        self.budget = max_num_batched_tokens
        self.seats = min(max_num_seqs, max_num_batched_tokens)  # so that each running sequence gets its token
        self.watermark = max(1, cache.num_pages // 100)  # pages kept for growth when one more is admitted
        self.waiting: list[Sequence] = []  # both lists by urgency
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            insort(self.waiting, sequence, key=_urgency)

    def finish(self, sequence: Sequence) -> None:
        """Takes the sequence out, wherever it is, and frees its pages."""
        if sequence.status is Status.FINISHED:
            return
        (self.running if sequence.status is Status.RUNNING else self.waiting).remove(sequence)
        sequence.status = Status.FINISHED
        self.cache.free(sequence.table)

    def schedule(self) -> Schedule:
        copies: list[PageCopy] = []
        rows, budget = self._continue_running(copies)
        if self.waiting:
            self._admit(rows, budget, copies)
        return Schedule(tuple(rows), tuple(copies))

    def update(self, schedule: Schedule) -> None:
        """The step has run: its tokens are in the KV pages."""
        for row in schedule.rows:
            row.sequence.num_computed = row.start + row.count

    def _continue_running(self, copies: list[PageCopy]) -> tuple[list[ScheduledRow], int]:
        """Rows of the running sequences, most urgent first, and the tokens left for others.

        Only the tail of ``running`` is preempted and the loop goes towards it, so nobody loses the pages of a row
        that is already scheduled.
        """
        rows: list[ScheduledRow] = []
        budget = self.budget
        at = 0
        while at < len(self.running):
            sequence = self.running[at]
            count = _wanted(sequence, budget - (len(self.running) - at - 1))
            if not self._grow(sequence, count, copies):
                break
            rows.append(_row(sequence, count))
            budget -= count
            at += 1
        return rows, budget

    def _grow(self, sequence: Sequence, count: int, copies: list[PageCopy]) -> bool:
        """Gets pages for ``count`` more tokens, from the least urgent if need be; False if that is itself."""
        start = sequence.num_computed
        while not self.cache.append(sequence.table, start, start + count, copies):
            victim = self.running.pop()
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        """Back to waiting without pages: its tokens stay and are run again as if they were prompt."""
        self.cache.free(victim.table)
        victim.num_computed = 0
        victim.status = Status.WAITING
        insort(self.waiting, victim, key=_urgency)  # it arrived before those that never ran: at their front
        self.preemptions += 1

    def _admit(self, rows: list[ScheduledRow], budget: int, copies: list[PageCopy]) -> None:
        """Adds rows of waiting sequences, most urgent first; nobody overtakes one that waits for pages."""
        at = 0
        while at < len(self.waiting) and len(self.running) < self.seats and budget > 0:
            sequence = self.waiting[at]
            shared = sequence.prompt_length - 1
            source = _fork_source(sequence) if shared else None
            if shared and source is None and _waits_for_sibling(sequence):
                at += 1
                continue
            if not self._place(sequence, source, shared, copies):
                return
            del self.waiting[at]
            sequence.status = Status.RUNNING
            insort(self.running, sequence, key=_urgency)
            count = _wanted(sequence, budget)
            rows.append(_row(sequence, count))
            budget -= count

    def _place(self, sequence: Sequence, source: Sequence | None, shared: int, copies: list[PageCopy]) -> bool:
        """Reserves pages for all tokens of the sequence now, so that those admitted next see them taken."""
        length = len(sequence.token_ids)
        start = 0 if source is None else shared
        missing = pages_for(length) - start // self.cache.page_size
        if missing + (self.watermark if self.running else 0) > self.cache.num_free:
            return False
        if source is not None:
            self.cache.fork(source.table, start, sequence.table)
            sequence.num_computed = start
        if not self.cache.append(sequence.table, start, length, copies):
            raise AssertionError("pages that were counted as free are not")
        return True


def _urgency(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.order


def _wanted(sequence: Sequence, budget: int) -> int:
    """How many tokens the sequence runs when ``budget`` are left for it."""
    count = min(len(sequence.token_ids) - sequence.num_computed, budget)
    return min(count, PROMPT_SCORE_ROWS) if sequence.prompt_logprobs and sequence.scores_prompt else count


def _row(sequence: Sequence, count: int) -> ScheduledRow:
    start = sequence.num_computed
    return ScheduledRow(sequence, start, count, samples=start + count == len(sequence.token_ids))


def _fork_source(sequence: Sequence) -> Sequence | None:
    """A running choice of the same request whose pages hold the prompt but for its last token.

    That last token is run again by each choice: its logits are what the first token is sampled from.
    """
    for other in sequence.siblings:
        if other.status is Status.RUNNING and other.num_computed >= other.prompt_length - 1:
            return other
    return None


def _waits_for_sibling(sequence: Sequence) -> bool:
    """Whether an earlier choice will run the prompt; without one (all finished) the sequence does so itself."""
    return any(other.status is not Status.FINISHED for other in sequence.siblings[: sequence.index])
