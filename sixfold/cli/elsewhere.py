"""Measures what reused context saves and what it costs in quality, on a loaded model.

Owns: the comparison with computing everything. Must not know: options, tables, how prompts are made.

The quality is taken from logits at the last 64 positions of the same tokens: with reused context and without, next to
each other, through the engine that serves.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sixfold.bench.contexts import Pair, Permuted
from sixfold.cli.timing import Report
from sixfold.engine.loader import LoadedEngine
from sixfold.engine.runner import Runner
from sixfold.engine.scheduler import Schedule
from sixfold.runtime.batch import Float32
from sixfold.types import RequestOutput, ReuseContext, SamplingParams

ANSWER = 64  # tokens of an answer, and of the text that is compared
EXACT = "computed"  # the salt of requests that must not be found by those that reuse


class LastRows(Runner):
    """A runner that also keeps the logits of the last rows of a prompt and of the answer."""

    wanted = 0  # positions before the end of a prompt
    rows: list[Float32]

    def sampling_logits(self, schedule: Schedule) -> Float32:
        base = 0
        for sequence, start, count, *_ in schedule.rows:
            first = max(start, sequence.prompt_length - self.wanted)
            if self.wanted and first < start + count:
                self.rows.append(self._logits(range(base + first - start, base + count)).copy())
            base += count
        return super().sampling_logits(schedule)


@dataclass(frozen=True)
class Asked:
    output: RequestOutput
    seconds: float  # to the first token
    logits: Float32  # [wanted, vocab]


class Asker:
    """Asks an engine one request after the other."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self.tokenizer = loaded.tokenizer
        self.core = loaded.core
        self._runner = LastRows(loaded.core.runner.executor)
        self.core.runner = self._runner
        self._serial = 0

    def ask(
        self, ids: Sequence[int], tokens: int = 1, *, last: int = 0, salt: str | None = None,
        recompute: float | None = None,
    ) -> Asked:  # fmt: skip
        """Greedy. ``recompute`` None: everything is computed."""
        self._serial += 1
        self._runner.wanted, self._runner.rows = last, []
        reuse = False if recompute is None else ReuseContext(recompute)
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        began = time.monotonic()
        self.core.add(
            self.core.limits.accept(str(self._serial), ids, params, cache_salt=salt, reuse_context=reuse)
        )  # fmt: skip
        first, outputs = 0.0, []
        while self.core.has_work:
            outputs += self.core.step()
            first = first or (time.monotonic() - began if outputs else 0.0)
        logits = np.concatenate(self._runner.rows) if last else np.empty((0, 0), np.float32)
        return Asked(_joined(outputs), first, logits)


def _joined(outputs: Sequence[RequestOutput]) -> RequestOutput:
    from sixfold.engine.collect import Collector

    collector = Collector()
    for output in outputs:
        collector.add(output)
    return collector.result()


@dataclass
class Quality:
    """Sums over prompts, of one share that is computed again."""

    divergence: dict[str, list[float]] = field(default_factory=dict)  # by what the 64 tokens are
    agreement: dict[str, list[float]] = field(default_factory=dict)
    faster: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)

    def compare(self, name: str, exact: Float32, other: Float32) -> None:
        self.divergence.setdefault(name, []).append(float(_divergence(exact, other).mean()))
        self.agreement.setdefault(name, []).append(float((exact.argmax(-1) == other.argmax(-1)).mean()))

    def time(self, asked: Asked, exact: Asked) -> None:
        """``asked`` has the 63 tokens of the text to compute beside, which ``exact`` has not."""
        self.seconds.append(asked.seconds)
        self.faster.append(exact.seconds / asked.seconds)
        self.reused.append(asked.output.num_reused_tokens or 0)
        self.again.append(asked.output.num_recomputed_tokens or 0)

    def result(self) -> dict[str, Any]:
        reused, again = sum(self.reused), sum(self.again)
        return {
            "prompts": len(self.faster),
            "reused_tokens": reused / len(self.faster),
            "recomputed_share": again / max(1, reused + again),
            "ttft_ms": 1000 * statistics.median(self.seconds),
            "times_faster": statistics.median(self.faster),
            **{f"kl_{name}": statistics.mean(values) for name, values in self.divergence.items()},
            **{f"agreement_{name}": statistics.mean(values) for name, values in self.agreement.items()},
        }


def permuted_chunks(
    asker: Asker, sets: Iterator[list[Permuted]], shares: Sequence[float], alone: bool, report: Report
) -> dict[str, Any]:
    """Quality and time for every share. ``alone``: chunks were known one by one, not as one prompt before."""
    qualities = {share: Quality() for share in shares}
    computed = []
    done = 0
    for prompts in sets:
        asker.core.reset_prefix_cache()
        for known in prompts[0].chunks if alone else [prompts[0].donor]:
            asker.ask(known)
        for prompt in prompts:
            exact = asker.ask(prompt.prompt, ANSWER, last=1, salt=EXACT)
            computed.append(exact.seconds)
            texts = {"answer": list(exact.output.outputs[0].token_ids), "text": prompt.text}
            logits = asker.ask(prompt.prompt + prompt.text[:-1], last=ANSWER, salt=EXACT).logits
            beginning = exact.logits[: ANSWER - len(logits)]  # where the text goes on as the answer did
            references = {"answer": exact.logits, "text": np.concatenate([beginning, logits])}
            for share, quality in qualities.items():
                for name, text in texts.items():
                    other = asker.ask(prompt.prompt + text[:-1], last=ANSWER, recompute=share)
                    quality.compare(name, references[name], other.logits)
                quality.time(other, exact)
            done += 1
            report(done)
    return {
        "ttft_computed_ms": 1000 * statistics.median(computed),
        "curve": [{"recompute": share, **quality.result()} for share, quality in qualities.items()],
    }


def _divergence(exact: Float32, other: Float32) -> Any:
    """Kullback-Leibler divergence a row, nats."""
    p, q = _logprobs(exact), _logprobs(other)
    return (np.exp(p) * (p - q)).sum(-1)


def _logprobs(logits: Float32) -> Any:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


@dataclass
class Kind:
    """What became of the pairs of one kind."""

    pairs: int = 0
    right_computed: int = 0  # the answer is the asker's own fact when all is computed
    right: int = 0  # and with reuse
    false_accepts: int = 0  # with reuse the answer is the other text's fact, and computed it is not
    different: int = 0  # answers that are not the same with reuse and without


def similar_texts(asker: Asker, pairs: Iterator[Pair], recompute: float, report: Report) -> dict[str, Any]:
    """Asks for a fact of a text when another text is known that differs in that fact."""
    kinds: dict[str, Kind] = {}
    tokens = reused = again = cached = 0
    faster = []
    wrong: list[dict[str, str]] = []
    for done, pair in enumerate(pairs, 1):
        asker.core.reset_prefix_cache()
        known, ids = asker.tokenizer.encode(pair.known), asker.tokenizer.encode(pair.asked)
        asker.ask(known)
        exact = asker.ask(ids, 8, salt=EXACT)
        asked = asker.ask(ids, 8, recompute=recompute)
        kind = kinds.setdefault(pair.kind, Kind())
        answers = [_answer(one.output) for one in (exact, asked)]
        kind.pairs += 1
        kind.right_computed += answers[0] == pair.fact
        kind.right += answers[1] == pair.fact
        kind.different += answers[0] != answers[1]
        if answers[1] == pair.known_fact != answers[0]:
            kind.false_accepts += 1
            wrong.append({"kind": pair.kind, "own": pair.fact, "answer": answers[1]})
        tokens += len(ids)
        cached += asked.output.num_cached_tokens or 0
        reused += asked.output.num_reused_tokens or 0
        again += asked.output.num_recomputed_tokens or 0
        faster.append(exact.seconds / asked.seconds)
        report(done)
    return {
        "pairs": sum(kind.pairs for kind in kinds.values()),
        "recompute": recompute,
        "false_accepts": sum(kind.false_accepts for kind in kinds.values()),
        "prompt_tokens": tokens, "cached_tokens": cached, "reused_tokens": reused, "recomputed_tokens": again,
        "computed_share": 1 - (cached + reused) / tokens,
        "times_faster": statistics.median(faster),
        "kinds": {name: vars(kind) for name, kind in kinds.items()},
        "wrong": wrong,
    }  # fmt: skip


def _answer(output: RequestOutput) -> str:
    """The fact that an answer begins with."""
    text = output.outputs[0].text
    for end in ".,\n":
        text = text.split(end)[0]
    return text.strip()


def drawn_text(asker: Asker, tokens: int, seed: int) -> list[int]:
    """Tokens of made-up prose, for want of a text."""
    from sixfold.bench.contexts import prose

    return asker.tokenizer.encode(prose(tokens // 10, random.Random(seed)))
