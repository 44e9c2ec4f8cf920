"""The engine step: schedule, run, sample, extend. One thread owns a core.

Owns: the order of the stages and the answers under way. Must not know: threads, asyncio, HTTP, how a model runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from typing import Protocol, TypeVar

import numpy as np

from sixfold.cache import Tier
from sixfold.engine.adapter import Adapter
from sixfold.engine.completion import Answer, Completion, TokenDecoder
from sixfold.engine.constraint import MaskStage
from sixfold.engine.grammar import Grammars
from sixfold.engine.kv_cache import KVCache
from sixfold.engine.kv_tiers import TieredPrefixes
from sixfold.engine.kv_waste import WasteMeter
from sixfold.engine.limits import Limits
from sixfold.engine.lora import Adapters
from sixfold.engine.prefix_cache import NoPrefixCache, PrefixCache, Prefixes
from sixfold.engine.prefix_key import PrefixRoot
from sixfold.engine.request_rules import RequestRules
from sixfold.engine.runner import Runner
from sixfold.engine.sampler import Sampled, Sampler, SamplingFailure, SamplingRow
from sixfold.engine.scheduler import Schedule, Scheduler
from sixfold.engine.sequence import Request, Status, choices
from sixfold.engine.speculation import NoSpeculation, Speculation
from sixfold.engine.stats import EngineStats, StepRecord, Totals
from sixfold.engine.verification import drawn_positions, holding
from sixfold.errors import InvalidRequestError, SixfoldError
from sixfold.runtime.batch import ANYWHERE, Executor
from sixfold.runtime.native import usable_cores
from sixfold.types import CompletionOutput, FinishedStats, FinishReason, RequestOutput, ReuseContext, StepStats

log = logging.getLogger(__name__)
T = TypeVar("T")


class StepListener(Protocol):
    """Watches an engine, on its thread: be quick. What it raises is logged and otherwise ignored."""

    def on_step(self, stats: StepStats, /) -> None: ...
    def on_request_finished(self, stats: FinishedStats, /) -> None: ...  # one a choice


class EngineCore:
    def __init__(
        self,
        executor: Executor,
        tokenizer: TokenDecoder,
        *,
        max_model_len: int,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        seed: int = 0,
        prefix_root: PrefixRoot | None = None,
        tier: Tier | None = None,
        reuse: ReuseContext | None = None,
        speculation: Speculation | NoSpeculation | None = None,
        listener: StepListener | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """``prefix_root``: what all cached prefixes of this engine depend on; None: nothing is cached. ``tier``: where
        they go when memory is short, and come back from. ``reuse``: of context beyond prefixes, for requests that do
        not say. ``speculation``: who drafts tokens, if anybody. ``adapters``: None: the engine takes none."""
        self.cache = KVCache(executor.num_pages)
        self.prefixes = _prefixes(self.cache, executor, prefix_root, tier)
        self.grammars = Grammars(tokenizer, executor.vocab_size)
        self.limits = Limits(
            executor.vocab_size, tokenizer.eos_ids, max_model_len, executor.num_pages, seed,
            rules=RequestRules(tokenizer, executor.vocab_size, self.grammars),
            reuse=reuse, can_reuse=executor.resumption == ANYWHERE,
        )  # fmt: skip
        self.adapters = adapters or Adapters.none(executor)
        self.speculation = speculation or NoSpeculation()
        self.scheduler = Scheduler(
            self.cache, self.prefixes, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            adapters=self.adapters, speculation=self.speculation,
        )  # fmt: skip
        self.approximations: tuple[str, ...] = executor.approximations  # what makes tokens differ from the plain path
        self.runner = Runner(executor)
        self.masks = MaskStage(self.grammars.fill, executor.vocab_size, ahead=_spare_core(executor))
        self.sampler = Sampler(executor.team)
        self.totals = Totals()
        self.waste = WasteMeter(executor.page_bytes)
        self.listener = listener
        self.tokenizer = tokenizer
        self._answers: dict[str, Answer] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._answers)

    def add(self, request: Request) -> None:
        if request.id in self._answers:
            raise InvalidRequestError(
                f"The request id {request.id!r} is in use", remedy="Use a fresh one", param="request_id"
            )
        sequences = choices(request, self.totals.requests)
        self._answers[request.id] = Answer(request, sequences, self.tokenizer)
        self.totals.requests += 1
        self.scheduler.add(sequences)

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request and frees its pages at once: its last output, or None if it has finished before."""
        answer = self._answers.get(request_id)
        return None if answer is None else self._end(answer, [], "abort")

    def step(self) -> list[RequestOutput]:
        """Runs one step and returns what is new, one output a request that advanced."""
        if not self._answers:
            return []
        if failed := self.adapters.failed():
            return self._end_unadapted(failed)
        record = StepRecord(time.monotonic(), self.scheduler.preemptions)
        schedule = self.scheduler.schedule()
        if not schedule.rows:
            if not self.adapters.wait():
                self.prefixes.wait()
            return []
        record.allocation = self.scheduler.allocation
        self._mark_started(schedule, record)
        try:
            positions = _drawn(schedule)
            masks = self.masks.begin([position.constraint for position in positions])
            self.runner.forward(schedule)
            self._score_prompts(schedule)
            logits = self.runner.sampling_logits(schedule)
            drawn = self.sampler.sample(positions, logits, masks.result())
        except Exception as error:
            log.exception("A step failed; the %d sequences in it end with an error", len(schedule.rows))
            outputs = self._fail(schedule, error)
        else:
            self.scheduler.update(schedule)
            outputs = self._extend(schedule, drawn, record)
            self.speculation.stepped(schedule.rows, time.monotonic() - record.began)
        self._publish(record)
        return outputs

    def stats(self) -> EngineStats:
        """The state now. Other threads may ask: it reads counters and copies, never iterates what a step changes."""
        return EngineStats.of(self.scheduler, self.totals, self.waste, len(self._answers), self.adapters.counts())

    def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes. Running sequences go on, and what they have computed so far is not kept."""
        self.prefixes.reset()

    def rest(self) -> float | None:
        """There is nothing to do: seconds after which to call again; None: not before there is."""
        return self.prefixes.rest()

    def close(self) -> None:
        """The engine stops; what is cached may be stored for the next one. May take seconds."""
        self.masks.close()
        self.grammars.close()
        self.prefixes.close()
        self.adapters.close()

    def _end_unadapted(self, failed: Mapping[Adapter, Exception]) -> list[RequestOutput]:
        """Ends the requests whose adapters could not be read."""
        return [
            self._end(answer, [], "error", _message(failed[adapter]))
            for answer in list(self._answers.values())
            if (adapter := answer.request.lora) in failed and adapter is not None
        ]

    def _fail(self, schedule: Schedule, error: Exception) -> list[RequestOutput]:
        """The step did not run to its end: so end the requests that were in it."""
        self.scheduler.fail(schedule)
        answers = {self._answers[row.sequence.request.id]: None for row in schedule.rows}
        return [self._end(answer, [], "error", _message(error)) for answer in answers]

    def _mark_started(self, schedule: Schedule, record: StepRecord) -> None:
        for row in schedule.rows:
            record.tokens += row.count
            answer = self._answers[row.sequence.request.id]
            completion = answer.completions[row.sequence.index]
            if completion.first_scheduled is None:
                completion.first_scheduled = record.began
                self.totals.started += not answer.started
                answer.started = True

    def _score_prompts(self, schedule: Schedule) -> None:
        for sequence, position, logits in self.runner.prompt_logits(schedule):
            targets = np.array(sequence.token_ids[position : position + len(logits)], dtype=np.int32)
            assert sequence.prompt_logprobs is not None
            sequence.prompt_logprobs += self.sampler.score(logits, targets, sequence.params.prompt_logprobs or 0)

    def _extend(
        self, schedule: Schedule, drawn: List[Sampled | SamplingFailure], record: StepRecord
    ) -> list[RequestOutput]:
        """Appends the sampled tokens that hold; what goes wrong with one request ends that request only."""
        now = time.monotonic()
        left = iter(drawn)
        advanced: dict[Answer, list[CompletionOutput]] = {}
        failed: dict[Answer, Exception] = {}
        for row in schedule.rows:
            if not row.samples:
                continue
            sequence = row.sequence
            answer = self._answers[sequence.request.id]
            completion = answer.completions[sequence.index]
            deltas = advanced.setdefault(answer, [])
            try:
                delta = completion.advance(holding(left, row.drafts))
                deltas.append(delta)
            except Exception as error:
                failed[answer] = error
                continue
            accepted = len(delta.token_ids) - 1 if row.drafts else 0
            if row.drafts:
                self.scheduler.accept(row, accepted)
            record.advanced(completion, len(delta.token_ids), accepted, now)
            if sequence.finish_reason is not None:
                self._finish(answer, completion, now)
        return [self._output(answer, deltas, failed.get(answer)) for answer, deltas in advanced.items()]

    def _output(self, answer: Answer, deltas: list[CompletionOutput], error: Exception | None) -> RequestOutput:
        if error is None:
            try:
                return answer.output(deltas)
            except Exception as trouble:
                error = trouble
        log.error("Request %s ends with an error", answer.request.id, exc_info=error)
        return self._end(answer, deltas, "error", _message(error))

    def _end(
        self, answer: Answer, deltas: list[CompletionOutput], reason: FinishReason, detail: str | None = None
    ) -> RequestOutput:
        """Ends all choices that have not ended by themselves."""
        now = time.monotonic()
        for completion in answer.completions:
            if completion.sequence.status is not Status.FINISHED:
                deltas.append(completion.end(reason, detail))
                self._finish(answer, completion, now)
        return answer.output(deltas)

    def _finish(self, answer: Answer, completion: Completion, now: float) -> None:
        self.scheduler.finish(completion.sequence)
        answer.unfinished -= 1
        self.totals.finished += 1
        if answer.unfinished == 0:
            del self._answers[answer.request.id]
            self.totals.started += not answer.started
        if self.listener is not None:
            stats = answer.finished_stats(completion, now)
            _tell(self.listener.on_request_finished, stats)

    def _publish(self, record: StepRecord) -> None:
        now = time.monotonic()
        record.add_to(self.totals)
        self.waste.add(record.allocation, record.tokens, now - record.began)
        self.prefixes.stepped(record.tokens, now - record.began)
        if self.listener is not None:
            _tell(self.listener.on_step, record.stats(self.cache, self.scheduler, now))


def _drawn(schedule: Schedule) -> list[SamplingRow]:
    """The positions that get a token in this step."""
    positions: list[SamplingRow] = []
    for row in schedule.rows:
        if row.drafts:
            positions += drawn_positions(row.sequence, row.drafts)
        elif row.samples:
            positions.append(row.sequence)
    return positions


def _prefixes(cache: KVCache, executor: Executor, root: PrefixRoot | None, tier: Tier | None) -> Prefixes:
    if root is None:
        return NoPrefixCache(executor.resumption)
    prefixes = PrefixCache(cache, root, executor.resumption)
    prefixes.on_replace = executor.replace_page
    return prefixes if tier is None else TieredPrefixes(prefixes, executor, tier)


def _spare_core(executor: Executor) -> bool:
    """Whether this process may use a core that the executor leaves."""
    return executor.team is None or usable_cores() > executor.team.threads


def _tell(hook: Callable[[T], None], stats: T) -> None:
    try:
        hook(stats)
    except Exception:
        log.exception("A listener failed")


def _message(error: Exception) -> str:
    return error.message if isinstance(error, SixfoldError) else f"{type(error).__name__}: {error}"
