"""Times decoding with drafted tokens beside plain decoding, on text that is copied and on text that never repeats.

Owns: the load and the numbers. Must not know: options, tables.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from importlib import resources
from typing import Any

from sixfold.cli.timing import Bench, Report
from sixfold.engine.speculation import Speculation, speculation
from sixfold.types import SamplingParams

Prompts = Callable[[Bench, int, random.Random], list[list[int]]]
QUOTED = 1200  # characters of a passage
BEGUN = 40  # of them the answer begins with, so that a small model quotes rather than talks about it
ADVERSARIAL = 128  # tokens of a prompt


def measure(bench: Bench, batch: int, new_tokens: int, repeats: int, report: Report) -> dict[str, Any]:
    """Batch 1 and ``batch``; each round runs plain and drafted, in turns. Decode only: from the last first token on."""
    bench.check(1024 + new_tokens)
    cases = [_Case(*kind, size, new_tokens) for size in sorted({1, batch}) for kind in KINDS]
    for index in range(repeats + 1):  # the first one warms up
        for case in cases:
            case.run(bench, index)
        report(index)
    return {
        "new_tokens": new_tokens,
        "repeats": repeats,
        "same_tokens": all(case.same for case in cases),
        "cases": [case.found() for case in cases],
    }


class _Case:
    def __init__(self, text: str, prompts: Prompts, temperature: float, batch: int, new_tokens: int) -> None:
        self._text, self._prompts, self._batch, self._new_tokens = text, prompts, batch, new_tokens
        self._params = [
            SamplingParams(temperature=temperature, seed=i, max_tokens=new_tokens, ignore_eos=True)
            for i in range(batch)
        ]  # fmt: skip
        self._drafting = speculation("prompt-lookup")
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self.same = True

    def run(self, bench: Bench, index: int) -> None:
        prompts = self._prompts(bench, self._batch, random.Random(index))
        tokens = {}
        for drafts in (False, True) if index % 2 else (True, False):
            used = self._drafting if drafts else speculation("off")
            bench.core.speculation = bench.core.scheduler.speculation = used
            outputs, seconds = bench.answers(prompts, self._params)
            tokens[drafts] = [output.outputs[0].token_ids for output in outputs]
            if index:
                self._seconds[drafts].append(seconds)
        self.same = self.same and tokens[False] == tokens[True]

    def found(self) -> dict[str, Any]:
        assert isinstance(self._drafting, Speculation)
        tokens = self._batch * (self._new_tokens - 1)
        plain, drafted = (statistics.median(self._seconds[drafts]) for drafts in (False, True))
        ratios = [a / b for a, b in zip(self._seconds[False], self._seconds[True], strict=True)]
        return {
            "text": self._text,
            "batch": self._batch,
            "plain_tokens_per_second": tokens / plain,
            "tokens_per_second": tokens / drafted,
            "times_faster": statistics.median(ratios),
            "by_round": ratios,
            "drafted_tokens": self._drafting.drafted,
            "accepted_tokens": self._drafting.accepted,
            "mean_accepted_length": self._drafting.accepted / max(self._drafting.drafts, 1),
            "same_tokens": self.same,
        }


def _quotes(bench: Bench, count: int, draw: random.Random) -> list[list[int]]:
    text = resources.files("sixfold.engine").joinpath("calibration.txt").read_text("utf-8")
    prompts = []
    for _ in range(count):
        start = draw.randrange(max(1, len(text) - QUOTED))
        passage = text[start : start + QUOTED].split(" ", 1)[-1]
        message = f"Quote this document word for word, from its beginning:\n\n{passage}"
        prompts.append(bench.chat_prompt(message, passage[:BEGUN].rsplit(" ", 1)[0]))
    return prompts


def _random(bench: Bench, count: int, draw: random.Random) -> list[list[int]]:
    return [bench.tokens(ADVERSARIAL, draw) for _ in range(count)]


KINDS: tuple[tuple[str, Prompts, float], ...] = (("quoted", _quotes, 0.0), ("random", _random, 1.0))
