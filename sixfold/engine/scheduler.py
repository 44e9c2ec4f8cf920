"""Decides how many tokens of which sequence each step runs, and who gets pages.

Owns: the waiting and running sequences, their pages and ``num_computed``. Must not know: the model, sampling, text.

There are no phases: a step is {sequence: number of tokens}. A sequence has ``len(token_ids) - num_computed`` tokens
left to run; when a step reaches the end of ``token_ids``, a token is sampled. Prefill, its chunks, decoding, a known
prefix, a fork for n > 1 and recomputation after a preemption are all that one number. Where context is reused beyond
the prefix, those tokens lie in several gaps, and a sequence may have several rows in a step.

A sequence is admitted when pages for all its tokens can be had, and takes them chunk by chunk: until then they may hold
what the prefix cache keeps. Those admitted next see them as promised.

Two promises keep everybody going: each running sequence gets at least one token in every step (so a long prefill
never stalls decoding), and the most urgent one never loses its pages (so it finishes, then the next).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import NamedTuple

from sixfold.engine.adapter import AdapterSlots, NoAdapters
from sixfold.engine.kv_cache import Copy, KVCache, pages_for
from sixfold.engine.kv_waste import Allocation
from sixfold.engine.prefix_cache import Beginning, NoPrefixCache, Prefixes
from sixfold.engine.sequence import PROMPT_SCORE_ROWS, Sequence, Status
from sixfold.engine.speculation import NoSpeculation, Speculation
from sixfold.runtime.batch import PAGE_SIZE


class ScheduledRow(NamedTuple):
    """Run ``sequence.token_ids[start : start + count]``. (A tuple is made in half the time of a frozen dataclass.)"""

    sequence: Sequence
    start: int
    count: int  # type: ignore[assignment]  # tuple's method of this name is not missed
    samples: bool  # the last token is the sequence's last: its logits choose the next token
    drafts: tuple[int, ...] = ()  # run after it; their logits choose those after the next, as far as they come true

    @property
    def run(self) -> int:
        """Tokens, drafted ones among them."""
        return self.count + len(self.drafts)


class Schedule(NamedTuple):
    rows: tuple[ScheduledRow, ...]
    copies: tuple[Copy, ...]  # pages to copy, and tokens to move, before the step, in order


class Scheduler:
    def __init__(
        self,
        cache: KVCache,
        prefixes: Prefixes | None = None,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        adapters: AdapterSlots | None = None,
        speculation: Speculation | NoSpeculation | None = None,
    ) -> None:
        self.cache = cache
        self.adapters = adapters or NoAdapters()
        self.prefixes = prefixes or NoPrefixCache()
        self.speculation = speculation or NoSpeculation()
        self.budget = max_num_batched_tokens
        self.seats = min(max_num_seqs, max_num_batched_tokens)  # so that each running sequence gets its token
        self.watermark = max(1, cache.num_pages // 100)  # pages kept for growth when one more is admitted
        self.waiting: list[Sequence] = []  # both lists by urgency
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.computed = 0  # tokens with their KV in pages, summed over the running sequences
        self._refused: tuple[Sequence, int] | None = None  # who was last, and how many pages were not enough

    def add(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            insort(self.waiting, sequence, key=_urgency)
            self.prefixes.expect(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes the sequence out, wherever it is, and frees its pages."""
        if sequence.status is Status.FINISHED:
            return
        (self.running if sequence.status is Status.RUNNING else self.waiting).remove(sequence)
        sequence.status = Status.FINISHED
        self._let_go(sequence)

    def schedule(self) -> Schedule:
        self.prefixes.arrive()
        self.adapters.arrive()
        copies: list[Copy] = []
        rows, budget = self._continue_running(copies)
        if self.waiting:
            self._admit(rows, budget, copies)
        return Schedule(tuple(rows), tuple(copies))

    def update(self, schedule: Schedule) -> None:
        """The step has run: its tokens are in the KV pages."""
        ran = 0
        for sequence, start, count, *_ in schedule.rows:
            sequence.advance(start + count)
            ran += count
            if (start + count) % PAGE_SIZE < count:  # a page has filled
                self.prefixes.filled(sequence)
        self.computed += ran

    def accept(self, row: ScheduledRow, accepted: int) -> None:
        """So many of the row's drafts came true, and are among the sequence's tokens now: their KV counts.

        That of the others lies beyond ``num_computed``, where the next step writes over it.
        """
        sequence = row.sequence
        end = sequence.num_computed + accepted
        sequence.advance(end)
        self.computed += accepted
        if end % PAGE_SIZE < accepted:  # a page has filled
            self.prefixes.filled(sequence)
        self.speculation.verified(sequence, len(row.drafts), accepted)

    def fail(self, schedule: Schedule) -> None:
        """The step broke off: what its sequences' pages hold is not known, so none of it will be kept."""
        for row in schedule.rows:
            row.sequence.prefix = None

    @property
    def allocation(self) -> Allocation:
        """The KV memory that is allocated now. Of several tables that share a page, all but one hold it full."""
        empty = self.cache.held * PAGE_SIZE - self.computed + self.prefixes.empty_slots
        return Allocation(self.cache.num_allocated, empty, self.prefixes.num_entries)

    def _let_go(self, sequence: Sequence) -> None:
        self.prefixes.ended(sequence)
        self.adapters.ended(sequence)
        self.cache.free(sequence.table)
        self.computed -= sequence.num_held

    def _continue_running(self, copies: list[Copy]) -> tuple[list[ScheduledRow], int]:
        """Rows of the running sequences, most urgent first, and the tokens left for others.

        Only the tail of ``running`` is preempted and the loop goes towards it, so nobody loses the pages of a row
        that is already scheduled.
        """
        rows: list[ScheduledRow] = []
        budget = self.budget
        drafts = self.speculation.propose(self.running, (budget - len(self.running)) // 2)
        at = 0
        while at < len(self.running):
            sequence = self.running[at]
            room = budget - (len(self.running) - at - 1)
            new = _rows(sequence, room)
            if sequence in drafts:
                new[-1] = self._drafted(new[-1], drafts[sequence][: room - 1], copies)
            if not self._grow(sequence, new, copies):
                break
            rows += new
            budget -= sum(row.run for row in new)
            at += 1
        return rows, budget

    def _drafted(self, row: ScheduledRow, drafts: tuple[int, ...], copies: list[Copy]) -> ScheduledRow:
        """The row with drafts, if there are pages for them: nobody is preempted for a guess."""
        sequence, end = row.sequence, row.start + row.count + len(drafts)
        if not self.cache.append(sequence.table, row.start, end, copies):
            return row
        return row._replace(drafts=drafts)

    def _grow(self, sequence: Sequence, rows: list[ScheduledRow], copies: list[Copy]) -> bool:
        """Gets pages for its rows, from the least urgent if need be; False if that is itself."""
        for row in rows:
            end = row.start + row.count
            if end <= sequence.num_adopted:  # what it runs again writes what is there
                continue
            while not self.cache.append(sequence.table, row.start, end, copies):
                victim = self.running.pop()
                self._preempt(victim)
                if victim is sequence:
                    return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        """Back to waiting without pages: its tokens stay and are run again as if they were prompt."""
        self._let_go(victim)
        victim.begin(0)
        victim.status = Status.WAITING
        insort(self.waiting, victim, key=_urgency)  # it arrived before those that never ran: at their front
        self.preemptions += 1

    def _admit(self, rows: list[ScheduledRow], budget: int, copies: list[Copy]) -> None:
        """Adds rows of waiting sequences, most urgent first; nobody overtakes one that waits for pages."""
        at = 0
        promised = sum(_promised(row) for row in rows if not row.samples)
        while at < len(self.waiting) and len(self.running) < self.seats and budget > 0:
            sequence = self.waiting[at]
            shared = sequence.prompt_length - 1
            source = _fork_source(sequence) if shared else None
            if shared and source is None and _waits_for_sibling(sequence):
                at += 1
                continue
            if not self.adapters.ready(sequence) or (source is None and not self.prefixes.ready(sequence)):
                at += 1
                continue
            new = self._place(sequence, source, budget, promised, copies)
            if not new:
                return
            del self.waiting[at]
            sequence.status = Status.RUNNING
            insort(self.running, sequence, key=_urgency)
            rows += new
            budget -= sum(row.count for row in new)
            promised += _promised(new[-1])

    def _place(
        self, sequence: Sequence, source: Sequence | None, budget: int, promised: int, copies: list[Copy]
    ) -> list[ScheduledRow]:
        """The sequence's first rows, with pages for them; none if pages for all its tokens can not be had."""
        room = self.cache.num_free - promised - (self.watermark if self.running else 0)
        if self.running and self._refused is not None and self._refused[0] is sequence and room <= self._refused[1]:
            return []  # without looking its prefix up again in every step
        beginning = self._beginning(sequence, source, room)
        if beginning is None:
            self._refused = sequence, room
            return []
        reuse = beginning.reuse
        self.cache.adopt(sequence.table, beginning.pages)
        self.prefixes.begun(sequence, beginning)
        self.adapters.begun(sequence)
        sequence.begin(beginning.tokens, beginning.ready, beginning.again)
        self.computed += sequence.num_held
        rows = _rows(sequence, budget)
        end = max(rows[-1].start + rows[-1].count, reuse.end)
        with self.cache.pinned(reuse.pages):
            if not self.cache.append(sequence.table, beginning.tokens, end, copies):
                raise AssertionError("pages that were counted as free are not")
        copies += reuse.moves(sequence.table.pages)
        return rows

    def _beginning(self, sequence: Sequence, source: Sequence | None, room: int) -> Beginning | None:
        """What the sequence can begin with when ``room`` pages can be had; None if they are too few."""
        if source is not None:
            found = self.prefixes.forked(source, sequence.prompt_length - 1)
        else:
            found = self.prefixes.find(sequence, sequence.skippable)
        for leaner in (found.without_reuse, found.whole_pages):  # donors or the page to copy may be what is too much
            if self._cost(sequence, found) > room:
                found = leaner()
        return None if self._cost(sequence, found) > room else found

    def _cost(self, sequence: Sequence, beginning: Beginning) -> int:
        """Pages that can no longer be had once the sequence has all it needs."""
        missing = pages_for(len(sequence.token_ids)) - beginning.tokens // PAGE_SIZE
        return missing + self.cache.idle_among({*beginning.pages, *beginning.reuse.pages})


def _urgency(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.order


def _rows(sequence: Sequence, budget: int) -> list[ScheduledRow]:
    """What the sequence runs when ``budget`` tokens are left for it, gap by gap."""
    scores = sequence.prompt_logprobs and sequence.scores_prompt
    length = len(sequence.token_ids)
    return [
        ScheduledRow(sequence, start, count, start + count == length)
        for start, count in sequence.next_tokens(min(budget, PROMPT_SCORE_ROWS) if scores else budget)
    ]


def _promised(row: ScheduledRow) -> int:
    """Pages that the tokens after this row will need."""
    return pages_for(len(row.sequence.token_ids)) - len(row.sequence.table.pages)


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
