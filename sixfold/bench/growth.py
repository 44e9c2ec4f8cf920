"""How the time of a step grows: with the sequences in it, with their context, and with the size of the model.

Owns: the steps that are timed, straight on the executor, attention's share of them, and the fits. Must not know:
requests; how results are shown.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sixfold.bench.fit import fit
from sixfold.runtime.batch import PAGE_SIZE, Batch, Executor
from sixfold.runtime.native import NativeExecutor
from sixfold.runtime.profile import KindTotal, Recorder, decodes

AXES = ("batch", "context", "weights", "parameters")
Case = tuple[int, int]  # sequences, tokens of context each


@dataclass(frozen=True)
class StepTime:
    """The median time of a decode step: every sequence runs one token and gets logits."""

    batch: int
    context: int
    seconds: float


@dataclass(frozen=True)
class Size:
    """Of a model: bytes of weights that a step reads, and weights that a token is multiplied by."""

    weight_bytes: int
    parameters: int


def cases(batches: Iterable[int], contexts: Iterable[int]) -> list[Case]:
    """Every batch at the shortest context, and every context with one sequence."""
    contexts = sorted(set(contexts))
    found = [(batch, contexts[0]) for batch in sorted(set(batches))] + [(1, context) for context in contexts]
    return list(dict.fromkeys(found))


def pages_for(case: Case) -> int:
    batch, context = case
    return batch * -(-context // PAGE_SIZE)


def decode_batch(case: Case) -> Batch:
    """Each of ``batch`` sequences runs the last of its ``context`` tokens, in pages of its own."""
    batch, context = case
    each = -(-context // PAGE_SIZE)
    return Batch(
        tokens=np.arange(batch, dtype=np.int32) % 7,
        starts=np.full(batch, context - 1, np.int32),
        counts=np.ones(batch, np.int32),
        pages=np.arange(batch * each, dtype=np.int32),
        page_offsets=np.arange(batch + 1, dtype=np.int32) * each,
    )


def fill(executor: Executor, pages: int) -> None:
    """Writes every page once. Pages never written are all the same page of zeros to the system, and too quick."""
    executor.forward(
        Batch(
            tokens=np.zeros(1, np.int32), starts=np.zeros(1, np.int32), counts=np.ones(1, np.int32),
            pages=np.zeros(1, np.int32), page_offsets=np.array([0, 1], np.int32),
        )
    )  # fmt: skip
    targets = np.arange(1, pages, dtype=np.int32)
    executor.copy_pages(np.zeros_like(targets), targets)


def prime(executor: Executor, case: Case) -> None:
    """Runs what a decode step of the case reads from float16 pages beside int4 ones: each sequence's first tokens and
    its newest block."""
    where = executor.resumption
    if where.block == 1:
        return
    batch, context = case
    each, begin = pages_for((1, context)), where.at_most(context - 1)
    for index in range(batch):
        pages = np.arange(index * each, (index + 1) * each, dtype=np.int32)
        rows = [(0, where.again)] if begin else []
        if context - 1 > begin:
            rows.append((begin, context - 1 - begin))
        for start, count in rows:
            tokens = np.zeros(count, np.int32)
            one = np.array([start], np.int32), np.array([count], np.int32)
            executor.forward(Batch(tokens, *one, pages, np.array([0, each], np.int32)))


def measure(
    executor: Executor, wanted: Sequence[Case], rounds: int, report: Callable[[int], None] = lambda done: None
) -> list[StepTime]:
    """Every round runs all cases in turn. The executor's pages and rows must hold the largest case."""
    fill(executor, max(map(pages_for, wanted)))
    batches = [decode_batch(case) for case in wanted]
    found: list[list[float]] = [[] for _ in wanted]
    for index in range(rounds + 1):  # the first warms up
        for case, times, batch in zip(wanted, found, batches, strict=True):
            prime(executor, case)
            began = time.perf_counter()
            executor.forward(batch)
            executor.logits(np.arange(len(batch.tokens), dtype=np.int32))
            times.append(time.perf_counter() - began)
        report(index)
    return [
        StepTime(batch, context, statistics.median(times[1:]))
        for (batch, context), times in zip(wanted, found, strict=True)
    ]


def attention(executor: NativeExecutor, contexts: Iterable[int], rounds: int) -> list[dict[str, Any]]:
    """Of one sequence's decode step at each context, how much is attention. For an executor that :func:`measure` has
    filled. The stopwatch takes a stamp an operator, so these steps are a little slower than those of ``measure``."""
    found = []
    recorder = Recorder(executor, decodes)
    for context in contexts:
        batch = decode_batch((1, context))
        prime(executor, (1, context))
        for index in range(rounds + 1):
            if index == 1:  # the first warms up
                recorder.totals()
            recorder.forward(batch)
            recorder.logits(np.zeros(1, np.int32))
        seconds = recorder.steps.seconds
        found.append({"context": context, **shared(recorder.totals(), seconds, rounds)})
    return found


def shared(totals: Iterable[KindTotal], seconds: float, steps: int) -> dict[str, float]:
    """Attention's part of ``steps`` steps that took ``seconds`` together."""
    taken = sum(total.seconds for total in totals if total.kind == "attention")
    return {"step_ms": 1000 * seconds / steps, "attention_ms": 1000 * taken / steps, "attention_share": taken / seconds}


def described(model: str, size: Size, times: Sequence[StepTime]) -> dict[str, Any]:
    """One model's times as plain data."""
    steps = [{"batch": one.batch, "context": one.context, "ms": 1000 * one.seconds} for one in times]
    return {"model": model, **dataclasses.asdict(size), "steps": steps}


def points(models: Sequence[dict[str, Any]], by: str) -> tuple[list[float], list[float]]:
    """Sizes and milliseconds of described models.

    ``batch``: sequences at the shortest context of the first model. ``context``: thousands of tokens of one sequence of
    the first model. ``weights``: gigabytes that a step of each model reads, ``parameters``: billions that it multiplies
    by, both for one sequence.
    """
    steps = models[0]["steps"]
    shortest = min(step["context"] for step in steps)
    if by == "batch":
        found = [(step["batch"], step["ms"]) for step in steps if step["context"] == shortest]
    elif by == "context":
        found = [(step["context"] / 1000, step["ms"]) for step in steps if step["batch"] == 1]
    else:
        size = {"weights": "weight_bytes", "parameters": "parameters"}[by]
        alone = [(model[size] / 1e9, _alone(model["steps"], shortest)) for model in models]
        found = [(x, time) for x, time in alone if time is not None]
    return [x for x, _ in found], [y for _, y in found]


def _alone(steps: Sequence[dict[str, Any]], context: int) -> float | None:
    return next((step["ms"] for step in steps if step["batch"] == 1 and step["context"] == context), None)


def fits(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The lines in milliseconds, None where there are fewer than two sizes; see :func:`points`."""
    lines = {by: fit(*points(models, by)) for by in AXES}
    return {by: None if line is None else dataclasses.asdict(line) for by, line in lines.items()}
