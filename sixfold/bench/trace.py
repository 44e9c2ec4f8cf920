"""Traces of requests: when each came, how long its prompt was, and how long its answer.

Owns: reading, drawing and scaling them. Must not know: how they are run or shown.
"""

from __future__ import annotations

import csv
import datetime
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sixfold.errors import ConfigError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")  # of the Azure LLM inference traces

# (share, median, spread of the logarithm) of a mixture shaped like the conversations of the 2023 trace, and their rate.
_PROMPTS = ((0.35, 370, 0.5), (0.45, 1080, 0.15), (0.20, 2700, 0.35))
_ANSWERS = ((0.60, 100, 0.45), (0.40, 405, 0.15))
_ARRIVALS_PER_SECOND = 5.5


@dataclass(frozen=True)
class Arrival:
    seconds: float  # since the first
    prompt: int  # tokens
    answer: int


def read(path: Path, count: int) -> list[Arrival]:
    """The first ``count`` requests of a CSV with the columns of the Azure traces. Raises ConfigError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for _, row in zip(range(count), csv.DictReader(file), strict=False)]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}", cause=str(error), remedy="Name another --trace") from None
    try:
        times = [datetime.datetime.fromisoformat(row[COLUMNS[0]]) for row in rows]
        lengths = [(int(row[COLUMNS[1]]), int(row[COLUMNS[2]])) for row in rows]
        if not rows or min(min(pair) for pair in lengths) < 1:
            raise ValueError("there are no requests, or one without tokens")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no trace", cause=str(error), remedy=f"The columns are {', '.join(COLUMNS)}"
        ) from None
    first = min(times)
    return [
        Arrival((time - first).total_seconds(), prompt, answer)
        for time, (prompt, answer) in sorted(zip(times, lengths, strict=True))
    ]


def draw(count: int, seed: int) -> list[Arrival]:
    """A mixture of short, middling and long prompts and answers that come at random; the same for the same seed."""
    source = random.Random(seed)
    seconds = 0.0
    found = []
    for _ in range(count):
        found.append(Arrival(seconds, _length(_PROMPTS, source), _length(_ANSWERS, source)))
        seconds += source.expovariate(_ARRIVALS_PER_SECOND)
    return found


def scaled(trace: Sequence[Arrival], context: int) -> list[Arrival]:
    """All lengths by one factor, so that the longest request fits into the context; as it is if it does."""
    factor = min(1.0, context / max(one.prompt + one.answer for one in trace))
    found = []
    for one in trace:
        prompt = max(1, math.floor(one.prompt * factor))
        found.append(Arrival(one.seconds, min(prompt, context - 1), max(1, math.floor(one.answer * factor))))
    return found


def _length(mixture: Sequence[tuple[float, int, float]], source: random.Random) -> int:
    (_, median, spread) = source.choices(mixture, [share for share, _, _ in mixture])[0]
    return max(1, round(source.lognormvariate(math.log(median), spread)))
