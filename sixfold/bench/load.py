"""Loads on a server: requests of drawn lengths, so many clients at a time, and what came of them.

Owns: the draw, the clients, the sums. Must not know: sockets; how results are shown.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sixfold.bench.client import Client, Outcome, Request, Server
from sixfold.bench.percentiles import milliseconds

# For prompts of text: words that are one token, or nearly, in every vocabulary in common use.
_TEXT = (
    "the of and to in is that it was for on are as with they at be this have from or one had by word but not what all "
    "were we when your can said there use an each which she do how their if will up other about out many then them "
    "these so some her would make like him into time has look two more write go see number no way could people my than "
    "first water been call who oil its now find long down day did get come made may part"
)
WORDS = _TEXT.split()
Range = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """What requests look like; lengths are drawn evenly. ``ids``: the range of token ids, None for text.

    ``prefix_tokens``: tokens that all prompts begin with, beside the drawn ones; a server with a prefix cache knows
    them from the first request on.
    """

    prompt_tokens: Range
    new_tokens: Range
    ids: Range | None
    prefix_tokens: int = 0


def draw(shape: Shape, count: int, seed: int) -> list[Request]:
    """The same requests for the same seed; beyond the prefix no two share a beginning but by chance."""
    source = random.Random(seed)
    return [
        Request(prompt(shape, source.randint(*shape.prompt_tokens), source), source.randint(*shape.new_tokens))
        for _ in range(count)
    ]


def prompt(shape: Shape, length: int, source: random.Random) -> list[int] | str:
    prefix = random.Random("prefix")
    sources = [prefix] * shape.prefix_tokens + [source] * length
    if shape.ids is None:
        return " ".join(one.choice(WORDS) for one in sources)
    return [one.randint(*shape.ids) for one in sources]


async def run(
    server: Server, requests: Sequence[Request], clients: int, report: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """``clients`` ask at the same time, each its next request when its last one has ended."""
    waiting = iter(requests)
    outcomes: list[Outcome] = []

    async def work(client: Client) -> None:
        for request in waiting:
            outcomes.append(await client.ask(request))
            report(len(outcomes))

    several = [Client(server) for _ in range(clients)]
    began, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(client) for client in several))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    for client in several:
        await client.close()
    return {"clients": clients, **summed(outcomes, seconds), "client_cpu_share": busy / seconds}


def summed(outcomes: Iterable[Outcome], seconds: float) -> dict[str, Any]:
    """Rates are of what succeeded; what failed is counted and its reasons are named."""
    outcomes = list(outcomes)
    good = [one for one in outcomes if one.error is None]
    reasons: dict[str, int] = {}
    for one in outcomes:
        if one.error is not None:
            reasons[one.error] = reasons.get(one.error, 0) + 1
    tokens = sum(one.output_tokens for one in good)
    paced = [one for one in good if one.output_tokens > 1 and one.first is not None]
    return {
        "requests": len(outcomes),
        "seconds": seconds,
        "output_tokens": tokens,
        "prompt_tokens": sum(one.prompt_tokens or 0 for one in good),
        "output_tokens_per_second": tokens / seconds,
        "requests_per_second": len(good) / seconds,
        "ttft_ms": milliseconds([one.first for one in good if one.first is not None]),
        "inter_token_ms": milliseconds([gap for one in good for gap in one.gaps]),
        "time_per_output_token_ms": milliseconds(
            [(one.total - (one.first or 0)) / (one.output_tokens - 1) for one in paced]
        ),
        "request_ms": milliseconds([one.total for one in good]),
        "failures": len(outcomes) - len(good),
        "failure_reasons": reasons,
        "wrong_lengths": sum(one.output_tokens != one.wanted for one in good),
    }


async def cold(
    server: Server, shape: Shape, lengths: Sequence[int], repeats: int, seed: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time to the first token of prompts that no cache has seen beyond the prefix: one by one, all lengths in turn."""
    source = random.Random(f"cold {seed}")
    client = Client(server)
    found: dict[int, list[Outcome]] = {length: [] for length in lengths}
    for index in range(repeats):
        for place, length in enumerate(lengths):
            found[length].append(await client.ask(Request(prompt(shape, length, source), 1)))
            report(index * len(lengths) + place + 1)
    await client.close()
    return [
        {"prompt_tokens": length, "requests": repeats,
         **{name: value for name, value in summed(outcomes, 1.0).items()
            if name in ("ttft_ms", "failures", "failure_reasons")}}
        for length, outcomes in found.items()
    ]  # fmt: skip


def tokens_within(measured: Sequence[dict[str, Any]], milliseconds: float) -> int | None:
    """How many cold tokens have their answer begun in so many milliseconds, at the median: between the measured lengths
    in proportion, never beyond the longest; None if the shortest takes longer."""
    points = sorted(
        (one["prompt_tokens"], one["ttft_ms"]["p50"]) for one in measured if one["ttft_ms"]["p50"] is not None
    )
    within: float | None = None
    for index, (length, time_) in enumerate(points):
        if time_ <= milliseconds:
            within = length
        elif index and within is not None:
            before, earlier = points[index - 1]
            if earlier <= milliseconds:
                within = before + (length - before) * (milliseconds - earlier) / (time_ - earlier)
            break
        else:
            break
    return None if within is None else int(within)
