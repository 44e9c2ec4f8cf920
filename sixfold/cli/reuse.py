"""Times what a known prefix saves on a loaded model, and counts how much of a load of conversations is known.

Owns: the conversations and the numbers. Must not know: options, tables.
"""

from __future__ import annotations

import contextlib
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sixfold.cli.timing import Bench, Report


@dataclass(frozen=True)
class Conversations:
    """Conversations that begin with the same system prompt and take their turns together."""

    count: int = 8
    turns: int = 5
    system: int = 64  # tokens
    question: int = 32
    answer: int = 32

    @property
    def longest(self) -> int:
        return self.system + self.turns * (self.question + self.answer)


def first_token(bench: Bench, history: int, new: int, repeats: int, report: Report) -> dict[str, Any]:
    """Medians of the time to the first token after ``history + new`` tokens, all new or with a known history.

    Each round asks once without and once with; the two differ in their last ``new`` tokens. Times in milliseconds.
    """
    bench.check(history + new + 1)
    cold, warm, cached = [], [], []
    for index in range(repeats + 1):  # the first one warms up
        source = random.Random(index)
        known, one, other = (bench.tokens(length, source) for length in (history, new, new))
        bench.forget_prefixes()
        cold.append(bench.first_token([*known, *one])[0])
        seconds, found = bench.first_token([*known, *other])
        warm.append(seconds)
        cached.append(found)
        report(index)
    without, with_cache = (1000 * statistics.median(times[1:]) for times in (cold, warm))
    return {
        "history_tokens": history,
        "new_tokens": new,
        "repeats": repeats,
        "cached_tokens": int(statistics.median(cached[1:])),
        "ttft_ms": with_cache,
        "ttft_without_ms": without,
        "times_faster": without / with_cache,
    }


def after_restart(
    start: Callable[[], Bench], history: int, new: int, repeats: int, report: Report
) -> dict[str, Any]:  # fmt: skip
    """Medians of the time to the first token after ``history + new`` tokens, all new, and with the history on disk.

    ``start`` loads the model on one and the same tier; each round computes the history, stops, and asks a new engine.
    Times in milliseconds.
    """
    computed, fetched, found = [], [], []
    for index in range(repeats):
        source = random.Random(index)
        with contextlib.closing(start()) as bench:
            bench.check(history + new + 1)
            known, one, other = (bench.tokens(length, source) for length in (history, new, new))
            bench.first_token(bench.tokens(8, source))
            computed.append(bench.first_token([*known, *one])[0])
        with contextlib.closing(start()) as bench:
            bench.first_token(bench.tokens(8, source))
            seconds, cached = bench.first_token([*known, *other])
            fetched.append(seconds)
            found.append(cached)
        report(index + 1)
    without, with_tier = (1000 * statistics.median(times) for times in (computed, fetched))
    return {
        "history_tokens": history,
        "new_tokens": new,
        "repeats": repeats,
        "fetched_tokens": int(statistics.median(found)),
        "ttft_ms": with_tier,
        "ttft_without_ms": without,
        "times_faster": without / with_tier,
    }


def hit_rate(bench: Bench, load: Conversations, seed: int, report: Report) -> dict[str, Any]:
    """Runs the load on an empty cache. ``best``: what a cache that forgets nothing would have found."""
    bench.check(load.longest)
    source = random.Random(seed)
    system = bench.tokens(load.system, source)
    histories = [list(system) for _ in range(load.count)]
    bench.forget_prefixes()
    before = bench.stats()
    for turn in range(load.turns):
        for history in histories:
            history += bench.tokens(load.question, source)
        for history, answer in zip(histories, _answers(bench, histories, load.answer), strict=True):
            history += answer
        report(turn + 1)
    after = bench.stats()
    queries = after.prefix_queries - before.prefix_queries
    hits = after.prefix_hits - before.prefix_hits
    best = sum(
        load.system * (index > 0) if turn == 0 else load.system + turn * (load.question + load.answer) - 1
        for turn in range(load.turns)
        for index in range(load.count)
    )
    return {
        "conversations": load.count,
        "turns": load.turns,
        "system_tokens": load.system,
        "question_tokens": load.question,
        "answer_tokens": load.answer,
        "looked_up": queries,
        "found": hits,
        "hit_rate": hits / queries,
        "best_hit_rate": best / queries,
        "evictions": after.prefix_evictions - before.prefix_evictions,
    }


def _answers(bench: Bench, prompts: Sequence[Sequence[int]], length: int) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in bench.run(prompts, [length] * len(prompts))]
