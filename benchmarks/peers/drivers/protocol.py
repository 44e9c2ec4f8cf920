"""What the drivers share: one JSON command a line in, one JSON answer a line out.

A driver is started with ``--model PATH --threads N --sequences N --context N``, loads its engine, prints
``{"ready": true, ...}`` and then answers commands until its input ends:

``{"prompts": [[ids], ...], "new_tokens": n}``
    All prompts at once, greedy, end-of-sequence ignored, n tokens each. Answer: ``prefill_seconds`` (until the last
    prompt has its first token), ``decode_seconds`` and ``decode_tokens`` (see :class:`Steps`).
``{"windows": [[ids], ...]}``
    Perplexity's sums over the second half of each window: ``loss``, ``tokens``.

It runs under each engine's own Python, so it imports the standard library only.

Owns: the protocol and the two rates. Must not know: any engine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Steps:
    """Turns the steps of an engine into a prefill time and a decode rate.

    Engines that batch continuously begin to decode the first prompts while the last ones are still being read, and
    their batch shrinks before the end. To compare like with like, decoding is timed from the step in which the last
    prompt got its first token to the step in which the first request finishes: exactly the time when all requests of
    the batch decode together.
    """

    def __init__(self, requests: int) -> None:
        self._waiting = requests  # those without a first token
        self._finished = False
        self._tokens = 0
        self._begin = self._first = self._last = time.monotonic()

    def step(self, first: int, later: int, finished: int) -> None:
        """A step ended now: how many first tokens and later tokens it gave, and how many requests it finished."""
        now = time.monotonic()
        if self._waiting:
            if finished and self._waiting > first:
                raise RuntimeError("a request finished before all had begun: ask for more new tokens")
            self._waiting -= first
            self._first = self._last = now
        elif not self._finished:
            self._tokens += later
            self._last = now
        self._finished |= finished > 0

    def result(self) -> dict[str, float]:
        assert self._waiting == 0 and self._finished
        return {
            "prefill_seconds": self._first - self._begin,
            "decode_seconds": self._last - self._first,
            "decode_tokens": self._tokens,
        }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto", help="auto, or the widest instructions allowed: avx2")
    parser.add_argument("--sequences", type=int, default=64, help="at most at once")
    parser.add_argument("--context", type=int, default=8192, help="tokens of a sequence at most")
    parser.add_argument("--dtype", default="auto", help="for engines that choose one at load")
    return parser.parse_args()


Generate = Callable[[list[list[int]], int], dict[str, float]]
Score = Callable[[list[list[int]]], dict[str, float]]


def answer_stdin(ready: dict[str, Any], generate: Generate, score: Score, out: Any) -> None:
    """Answers commands until the input ends. An error is an answer, too: the driver lives on."""
    print(json.dumps({"ready": True, **ready}), file=out, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "windows" in command:
                answer = score(command["windows"])
            else:
                answer = generate(command["prompts"], command["new_tokens"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


def take_stdout() -> Any:
    """The real stdout for answers; whatever a library prints goes to stderr from now on, from C++ as well."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
