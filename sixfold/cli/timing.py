"""Runs loads on an engine in this process and times them.

Owns: the loads and the numbers. Must not know: options or tables.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sixfold.compile.costs import weight_bytes
from sixfold.config import EngineConfig
from sixfold.engine.llm import LLM
from sixfold.engine.loader import LoadedEngine, load_engine
from sixfold.errors import InvalidRequestError
from sixfold.runtime.limits import Meter
from sixfold.runtime.native import NativeExecutor
from sixfold.runtime.profile import KindTotal, Recorder, decodes
from sixfold.types import FinishedStats, RequestOutput, SamplingParams, StepStats

Report = Callable[[int], None]
Phase = Literal["decode", "prefill"]


@dataclass(frozen=True)
class Profile:
    """Where the time of the steps of one phase went. Seconds over all of them."""

    steps: int
    rows: int
    step_seconds: float
    executor_seconds: float
    totals: list[KindTotal]


class Watch:
    """Collects the latencies that the engine reports."""

    def __init__(self) -> None:
        self.report: Report = lambda finished: None
        self.duration: Callable[[float], None] = lambda seconds: None  # told of every step
        self.stepped: Callable[[StepStats], None] = lambda stats: None  # all of it
        self.reset()

    def reset(self) -> None:
        self.first: list[float] = []  # seconds
        self.between: list[float] = []
        self.finished = 0

    def on_step(self, stats: StepStats, /) -> None:
        self.first += stats.first_token_latencies
        self.between += stats.inter_token_latencies
        self.duration(stats.duration)
        self.stepped(stats)

    def on_request_finished(self, stats: FinishedStats, /) -> None:
        self.finished += 1
        self.report(self.finished)


class Bench:
    """A loaded model and what is measured with it."""

    def __init__(self, config: EngineConfig) -> None:
        watch = Watch()
        self._start(load_engine(config, watch), watch)

    @classmethod
    def on(cls, loaded: LoadedEngine, watch: Watch) -> Bench:
        """On an engine whose listener is ``watch``."""
        self = cls.__new__(cls)
        self._start(loaded, watch)
        return self

    def _start(self, loaded: LoadedEngine, watch: Watch) -> None:
        executor = loaded.core.runner.executor
        self.model = loaded.name
        self.threads = getattr(executor, "threads", None)
        self.isa = getattr(executor, "isa", None)
        self.stats = loaded.core.stats
        self.forget_prefixes = loaded.core.reset_prefix_cache
        self.core = loaded.core
        self._runner = loaded.core.runner
        self._limits = loaded.core.limits
        self._llm = LLM.from_loaded(loaded)
        self._watch = watch

    def latency(self, length: int, batch: int, new_tokens: int, repeats: int, report: Report) -> dict[str, float]:
        """Medians over ``repeats`` runs of ``batch`` requests that begin together. Times in milliseconds."""
        self.check(length + new_tokens)
        self._warm()
        first, prefill, between, decode = [], [], [], []
        for index in range(repeats):
            prompts = self._prompts([length] * batch, random.Random(index))
            began = time.monotonic()
            self.run(prompts, [new_tokens] * batch)
            seconds = time.monotonic() - began
            last_first = max(self._watch.first)
            first.append(statistics.median(self._watch.first))
            prefill.append(batch * length / last_first)
            between.append(statistics.median(self._watch.between))
            decode.append(batch * (new_tokens - 1) / max(seconds - last_first, 1e-9))
            report(index + 1)
        return {
            "ttft_ms": 1000 * statistics.median(first),
            "inter_token_ms": 1000 * statistics.median(between),
            "prompt_tokens_per_second": statistics.median(prefill),
            "decode_tokens_per_second": statistics.median(decode),
        }

    def answers(self, prompts: list[list[int]], params: list[SamplingParams]) -> tuple[list[RequestOutput], float]:
        """Finished answers of requests that begin together, and the seconds from the last first token to the end."""
        self._watch.reset()
        began = time.monotonic()
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
        return outputs, time.monotonic() - began - max(self._watch.first)

    def chat_prompt(self, message: str, answer: str) -> list[int]:
        """A user's message and the beginning of the answer, as tokens."""
        template, tokenizer = self._llm.chat_template, self._llm.tokenizer
        text = message + "\n\n" + answer
        if template is not None:
            text = template.render([{"role": "user", "content": message}], add_generation_prompt=True) + answer
        return tokenizer.encode_chat(text)

    def throughput(
        self, requests: int, prompts: tuple[int, int], answers: tuple[int, int], seed: int, report: Report
    ) -> dict[str, Any]:
        """All requests are there from the beginning; the lengths are drawn evenly from the two ranges."""
        self.check(prompts[1] + answers[1])
        draw = random.Random(seed)
        lengths = [draw.randint(*prompts) for _ in range(requests)]
        wanted = [draw.randint(*answers) for _ in range(requests)]
        ids = self._prompts(lengths, draw)
        self._warm()
        self._watch.report = report
        began = time.monotonic()
        self.run(ids, wanted)
        seconds = time.monotonic() - began
        return {
            "requests": requests,
            "seconds": seconds,
            "prompt_tokens": sum(lengths),
            "new_tokens": sum(wanted),
            "requests_per_second": requests / seconds,
            "prompt_tokens_per_second": sum(lengths) / seconds,
            "new_tokens_per_second": sum(wanted) / seconds,
            "total_tokens_per_second": (sum(lengths) + sum(wanted)) / seconds,
            "ttft_ms": 1000 * statistics.median(self._watch.first),
            "inter_token_ms": 1000 * statistics.median(self._watch.between or [0.0]),
        }

    def meter(self) -> Meter:
        """Of this machine's limits with the threads and the size of this model."""
        executor = self._executor()
        return Meter(executor.threads, weight_bytes(executor.plan))

    def profile(self, phase: Phase, length: int, batch: int, new_tokens: int, repeats: int) -> Profile:
        """Steps of one phase: those in which every sequence runs one token (decode), or all others (prefill)."""
        self.check(length + new_tokens)
        self._warm()
        executor = self._executor()
        recorder = Recorder(executor, decodes if phase == "decode" else lambda batch: not decodes(batch))
        durations: list[float] = []
        self._watch.duration = lambda seconds: durations.append(seconds) if recorder.noting else None
        self._runner.executor = recorder
        try:
            for index in range(repeats):
                prompts = self._prompts([length] * batch, random.Random(index))
                self.run(prompts, [new_tokens if phase == "decode" else 1] * batch)
        finally:
            self._runner.executor = executor
            self._watch.duration = lambda seconds: None
        steps = recorder.steps
        if not steps:
            raise InvalidRequestError(
                f"No {phase} step was run", cause="a prompt of one token is run like a decode step",
                remedy="Use --prompt-tokens of at least 2",
            )  # fmt: skip
        return Profile(len(steps), steps.rows, sum(durations), steps.seconds, recorder.totals())

    def _executor(self) -> NativeExecutor:
        executor = self._runner.executor
        assert isinstance(executor, NativeExecutor)
        return executor

    def _warm(self) -> None:
        """Starts the threads and reads the weights from disk."""
        self.run(self._prompts([8], random.Random(0)), [2])

    def run(
        self, prompts: Sequence[Sequence[int]], wanted: Sequence[int], loras: Sequence[str | None] | None = None
    ) -> list[RequestOutput]:
        """Requests that begin together, each with so many new tokens."""
        params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in wanted]
        return self.generate(prompts, params, loras)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        loras: Sequence[str | None] | None = None,
    ) -> list[RequestOutput]:
        """Requests that begin together, ``loras`` names their adapters. Raises InvalidRequestError if one fails."""
        self._watch.reset()
        adapters = loras or [None] * len(prompts)
        asked = [{"prompt_token_ids": ids, "lora": lora} for ids, lora in zip(prompts, adapters, strict=True)]
        outputs = self._llm.generate(asked, params)
        for output in outputs:
            if output.outputs[0].finish_reason == "error":
                raise InvalidRequestError("A request failed", cause=str(output.outputs[0].stop_reason))
        return outputs

    def steps(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[StepStats]:
        """The steps that these requests take."""
        steps: list[StepStats] = []
        self._watch.stepped = steps.append
        try:
            self.generate(prompts, params)
        finally:
            self._watch.stepped = lambda stats: None
        return steps

    def decode_rate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, loras: Sequence[str | None]
    ) -> tuple[float, float]:
        """(new tokens a second of the median step between tokens, the same over the run once all have their first)."""
        began = time.monotonic()
        self.run(prompts, [new_tokens] * len(prompts), loras)
        seconds = time.monotonic() - began
        run = len(prompts) * (new_tokens - 1) / max(seconds - max(self._watch.first), 1e-9)
        return len(prompts) / statistics.median(self._watch.between), run

    def load_lora(self, name: str, path: Path) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        self._llm.load_lora(name, path)
        return time.monotonic() - began

    @property
    def sizes(self) -> dict[str, int]:
        """Of the model, as its plan names them."""
        return dict(self._executor().plan.meta["sizes"])

    def close(self) -> None:
        self._llm.close()

    def first_token(self, prompt: Sequence[int]) -> tuple[float, int]:
        """(seconds to the first token of a request that runs alone, tokens of its prompt that were cached)."""
        (output,) = self.run([prompt], [1])
        return self._watch.first[0], output.num_cached_tokens or 0

    def tokens(self, length: int, draw: random.Random) -> list[int]:
        return [draw.randrange(self._limits.vocab_size) for _ in range(length)]

    def _prompts(self, lengths: Sequence[int], draw: random.Random) -> list[list[int]]:
        return [self.tokens(length, draw) for length in lengths]

    def check(self, tokens: int) -> None:
        if tokens > self._limits.max_model_len:
            raise InvalidRequestError(
                f"{tokens} tokens a request are too many", cause=f"the context is {self._limits.max_model_len} tokens",
                remedy="Ask for fewer tokens of prompt or answer",
            )  # fmt: skip
