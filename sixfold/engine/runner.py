"""Turns a schedule into a batch and asks the executor for the logits that are wanted.

Owns: the batch's layout. Must not know: why these tokens run, or what is done with the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from sixfold.engine.scheduler import Schedule
from sixfold.engine.sequence import PROMPT_SCORE_ROWS, Sequence
from sixfold.runtime.batch import Batch, Executor, Float32


class Runner:
    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def forward(self, schedule: Schedule) -> None:
        """Copies the pages and moves the tokens that are to be, then runs the rows."""
        for width, copies in groupby(schedule.copies, key=len):
            table = np.array(list(copies), dtype=np.int32)
            if width == 2:
                self.executor.copy_pages(np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]))
            else:
                self.executor.move_tokens(table)
        self.executor.forward(_batch(schedule))

    def sampling_logits(self, schedule: Schedule) -> Float32:
        """Logits [R, vocab] of the last token of each row that samples, and of its drafts, until the next call."""
        rows: list[int] = []
        end = 0
        for row in schedule.rows:
            end += row.run
            if row.samples:
                rows += range(end - 1 - len(row.drafts), end)
        return self._logits(rows)

    def prompt_logits(self, schedule: Schedule) -> Iterator[tuple[Sequence, int, Float32]]:
        """(sequence, position, logits [R, vocab]) for prompt rows to be scored: row i predicts position + i."""
        base = 0
        for row in schedule.rows:
            sequence = row.sequence
            if sequence.prompt_logprobs is not None and sequence.scores_prompt:
                first = len(sequence.prompt_logprobs)  # computed by the row before it; recomputed rows are skipped
                last = min(row.start + row.count, sequence.prompt_length - 1)
                for position in range(first, last + 1, PROMPT_SCORE_ROWS):
                    stop = min(position + PROMPT_SCORE_ROWS, last + 1)
                    at = base - row.start - 1
                    yield sequence, position, self._logits(range(at + position, at + stop))
            base += row.run

    def _logits(self, rows: list[int] | range) -> Float32:
        if not rows:
            return np.empty((0, self.executor.vocab_size), dtype=np.float32)
        return self.executor.logits(np.array(rows, dtype=np.int32))


def _batch(schedule: Schedule) -> Batch:
    tokens: list[int] = []
    starts: list[int] = []
    counts: list[int] = []
    tables = []
    offsets = [0]
    adapters: list[int] = []
    end = 0
    for sequence, start, count, _, drafts in schedule.rows:
        table = sequence.table.pages
        end += len(table)
        tokens += sequence.token_ids[start : start + count]
        tokens += drafts
        starts.append(start)
        counts.append(count + len(drafts))
        tables.append(table)
        offsets.append(end)
        adapters.append(sequence.adapter_slot)
    # One array for all but the pages (they are many, so joined as bytes): the calls into numpy are what costs.
    t, s = len(tokens), len(starts)
    flat = np.array(tokens + starts + counts + adapters + offsets, dtype=np.int32)
    pages = np.frombuffer(b"".join(tables), np.int32)
    columns = (flat[t + i * s : t + (i + 1) * s] for i in range(3))
    return Batch(flat[:t], next(columns), next(columns), pages, flat[t + 3 * s :], next(columns))
