"""What the engine counts: totals since its start, and what one step did.

Owns: the counters and their snapshots. Must not know: Prometheus, HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sixfold.cache import TierCounts
from sixfold.engine.adapter import NO_ADAPTERS, AdapterCounts
from sixfold.engine.completion import Completion
from sixfold.engine.kv_cache import KVCache
from sixfold.engine.kv_waste import NOTHING, Allocation, WasteMeter
from sixfold.engine.scheduler import Scheduler
from sixfold.types import StepStats


@dataclass(slots=True)
class Totals:
    requests: int = 0  # accepted
    started: int = 0  # requests that have left the queue: a token ran, or they ended before
    finished: int = 0  # choices
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    jumped_tokens: int = 0  # of them, those that a grammar forced and no step sampled


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    running: int  # sequences
    waiting: int  # sequences, preempted ones among them
    requests: int  # unfinished
    queued: int  # requests that never ran yet
    kv_pages_total: int
    kv_pages_used: int  # by sequences
    kv_pages_cached: int  # by the prefix cache alone
    kv_pages_shared: int  # by sequences, with each other
    kv_empty_slots: int  # allocated token slots that hold no token
    kv_waste: float  # share of the allocated KV memory that held no token, 0..1, over the time of all steps
    kv_wasted_byte_seconds: float  # totals from here on
    kv_allocated_byte_seconds: float
    prefix_queries: int  # tokens looked up
    prefix_hits: int  # tokens of them found
    prefix_evictions: int  # pages
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    steps: int
    finished: int  # choices
    jumped_tokens: int = 0  # generated ones that a grammar forced and no step sampled
    fetched_tokens: int = 0  # whose KV came from the tier
    foreseen_tokens: int = 0  # of them, before a request asked
    reused_tokens: int = 0  # whose KV came from elsewhere in other prompts
    recomputed_tokens: int = 0  # found there, and computed all the same
    speculates: bool = False  # tokens are drafted; totals
    drafts: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted ones
    tier: dict[str, TierCounts] | None = None  # by place; None: there is none
    lora: AdapterCounts = NO_ADAPTERS

    @property
    def kv_usage(self) -> float:
        return self.kv_pages_used / self.kv_pages_total

    @property
    def kv_pages_free(self) -> int:
        return self.kv_pages_total - self.kv_pages_used - self.kv_pages_cached

    @classmethod
    def of(
        cls, scheduler: Scheduler, totals: Totals, waste: WasteMeter, requests: int, lora: AdapterCounts
    ) -> EngineStats:
        counts, prefixes = scheduler.cache.counts(), scheduler.prefixes
        speculation = scheduler.speculation
        return cls(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            requests=requests,
            queued=totals.requests - totals.started,
            kv_pages_total=counts.total,
            kv_pages_used=counts.used,
            kv_pages_cached=counts.cached,
            kv_pages_shared=counts.shared,
            kv_empty_slots=max(0, scheduler.allocation.empty_slots),  # a step may run between what it reads
            kv_waste=waste.ratio,
            kv_wasted_byte_seconds=waste.wasted,
            kv_allocated_byte_seconds=waste.allocated,
            prefix_queries=prefixes.queries,
            prefix_hits=prefixes.hits,
            prefix_evictions=prefixes.evictions,
            prompt_tokens=totals.prompt_tokens,
            generation_tokens=totals.generation_tokens,
            preemptions=scheduler.preemptions,
            steps=totals.steps,
            finished=totals.finished,
            jumped_tokens=totals.jumped_tokens,
            fetched_tokens=prefixes.fetched_tokens,
            foreseen_tokens=prefixes.foreseen_tokens,
            reused_tokens=prefixes.reused,
            recomputed_tokens=prefixes.recomputed,
            speculates=speculation.on,
            drafts=speculation.drafts,
            drafted_tokens=speculation.drafted,
            accepted_tokens=speculation.accepted,
            tier=prefixes.tier,
            lora=lora,
        )


@dataclass(slots=True)
class StepRecord:
    """One step while it happens."""

    began: float  # seconds on the monotonic clock
    preemptions: int  # the scheduler's total before the step
    allocation: Allocation = NOTHING  # of KV memory, once it is scheduled
    tokens: int = 0
    prompt_tokens: int = 0
    first_token: list[float] = field(default_factory=list)
    inter_token: list[float] = field(default_factory=list)
    jumped: int = 0  # tokens that were appended beside a sampled one
    accepted: int = 0  # drafted tokens that came true

    def advanced(self, completion: Completion, tokens: int, accepted: int, now: float) -> None:
        """A choice got its next token, and more that came with it, ``accepted`` of them drafted: those have no latency
        of their own."""
        self.jumped += tokens - 1 - accepted
        self.accepted += accepted
        self.tokens += accepted  # their KV stays
        if completion.first_token is None:
            completion.first_token = now
            self.first_token.append(now - completion.sequence.request.arrival)
            if completion.sequence.index == 0:
                self.prompt_tokens += completion.sequence.prompt_length
        else:
            self.inter_token.append(now - completion.last_token)
        completion.last_token = now

    def add_to(self, totals: Totals) -> None:
        totals.steps += 1
        totals.prompt_tokens += self.prompt_tokens
        totals.generation_tokens += self.generated
        totals.jumped_tokens += self.jumped

    @property
    def generated(self) -> int:
        return len(self.first_token) + len(self.inter_token) + self.jumped + self.accepted

    def stats(self, cache: KVCache, scheduler: Scheduler, now: float) -> StepStats:
        return StepStats(
            duration=now - self.began,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_usage=1.0 - cache.num_free / cache.num_pages,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generated,
            preemptions=scheduler.preemptions - self.preemptions,
            first_token_latencies=tuple(self.first_token),
            inter_token_latencies=tuple(self.inter_token),
        )
